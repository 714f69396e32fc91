"""CURVE keys: who a client and a server are, and what they encrypt with. The key files are those of ``zmq.auth``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import zmq
import zmq.auth
from pydantic import SecretStr

from app.pools.core.ignored import keep_out_of_git
from app.pools.errors import ConfigError
from app.pools.zmq_pool.options import OptionValue

_Z85 = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#")

_FILE = """#   A CURVE {kind} key for ZeroMQ, made by poolwire.
#   {advice}

metadata
curve
    public-key = "{public}"
"""


@dataclass(frozen=True)
class KeyPair:
    """A public key, in 40 characters of Z85, and the secret one that belongs to it, which no ``repr`` shows.

    Raises:
        ConfigError: one of them is not a key, or they do not belong together.
    """

    public: str
    secret: SecretStr

    def __post_init__(self) -> None:
        if not isinstance(self.secret, SecretStr):
            raise ConfigError("the secret key must be a SecretStr, so that nothing shows it")
        check_key("public key", self.public)
        check_key("secret key", self.secret.get_secret_value())
        if zmq.curve_public(self.secret.get_secret_value().encode()).decode() != self.public:
            raise ConfigError("the secret key does not belong to the public key; they are KeyPair(public, secret)")

    @classmethod
    def new(cls) -> KeyPair:
        """Return a pair that nobody had before."""
        public, secret = zmq.curve_keypair()
        return cls(public.decode(), SecretStr(secret.decode()))

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> KeyPair:
        """Read a pair from a ``.key_secret`` file.

        Raises:
            ConfigError: the file cannot be read, holds no secret key, or others may read it as well.
        """
        path = Path(file)
        public, secret = _read(path)
        if secret is None:
            raise ConfigError(f"{path} holds no secret key; the file that does ends with .key_secret")
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path} holds a secret key and is open to other users: chmod 600 {path}")
        return cls(public, SecretStr(secret))

    def write(self, folder: str | os.PathLike[str], name: str) -> tuple[Path, Path]:
        """Write ``NAME.key``, for the others, and ``NAME.key_secret``, with mode 0600, which git is told to ignore.

        Returns:
            both paths.

        Raises:
            ConfigError: the folder cannot be written, the name is none for a file, or one of the files is there
                already; a key is never overwritten.
        """
        if not name or "/" in name or name.startswith((".", "-")) or not name.isprintable():
            raise ConfigError(f"{name!r} is not a plain name for key files")
        where = Path(folder)
        public_file, secret_file = where / f"{name}.key", where / f"{name}.key_secret"
        try:
            where.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._create_both(public_file, secret_file)
            keep_out_of_git(where, "*.key_secret")
        except FileExistsError:
            raise ConfigError(f"{where} is no folder; name one for the key files") from None
        except OSError as error:
            raise ConfigError(f"no key files can be made in {where}: {error.strerror}") from error
        return public_file, secret_file

    def _create_both(self, public_file: Path, secret_file: Path) -> None:
        for file in (public_file, secret_file):
            if file.exists():
                raise ConfigError(f"{file} is there already, and a key is never overwritten; choose another name")
        public = _FILE.format(kind="public", advice="Give it to whoever is to trust it.", public=self.public)
        secret = _FILE.format(kind="secret", advice="Keep it where it is, with mode 0600.", public=self.public)
        _create(secret_file, f'{secret}    secret-key = "{self.secret.get_secret_value()}"\n', 0o600)
        _create(public_file, public, 0o644)


def load_public_key(file: str | os.PathLike[str]) -> str:
    """Return the public key of a ``.key`` file. Raises ``ConfigError`` if there is none."""
    return _read(Path(file))[0]


@cache
def _own_keys() -> KeyPair:
    return KeyPair.new()


@dataclass(frozen=True)
class CurveClient:
    """Encrypt to a server that proves who it is.

    Args:
        server_key: the server's public key.
        keys: what proves who the client is; unless given, a pair made for this process, which suffices for
            servers that admit everyone.
    """

    server_key: str
    keys: KeyPair = field(default_factory=_own_keys)

    def __post_init__(self) -> None:
        check_key("server key", self.server_key)
        _check_keys(self.keys)

    def options(self) -> dict[str, OptionValue]:
        """Return libzmq's options. They hold a secret."""
        return {
            "CURVE_SERVERKEY": self.server_key.encode(),
            "CURVE_PUBLICKEY": self.keys.public.encode(),
            "CURVE_SECRETKEY": self.keys.secret.get_secret_value().encode(),
        }


@dataclass(frozen=True)
class CurveServer:
    """Encrypt with clients that know this server's public key.

    Args:
        keys: what proves who the server is.
        allowed: a folder with the ``.key`` files of the clients to admit, or a file with one public key a line.
            It is read again whenever it changes. Without it, whoever knows the server's public key is admitted.
    """

    keys: KeyPair
    allowed: Path | str | None = None

    def __post_init__(self) -> None:
        _check_keys(self.keys)
        if self.allowed is not None:
            object.__setattr__(self, "allowed", _path_of(self.allowed))

    @property
    def domain(self) -> str:
        """The ZAP domain under which the allow-list is asked."""
        # No path gives the first, or a list of that name would admit everybody.
        return "poolwire-anyone" if self.allowed is None else f"poolwire:{self.allowed}"

    def options(self) -> dict[str, OptionValue]:
        """Return libzmq's options. They hold a secret."""
        return {
            "CURVE_SERVER": 1,
            "CURVE_SECRETKEY": self.keys.secret.get_secret_value().encode(),
            "ZAP_DOMAIN": self.domain.encode(),
        }


def curve_from(files: Mapping[str, object], *, bind: bool) -> CurveClient | CurveServer:
    """Return the encryption that key files stand for, as a configuration file names them.

    Args:
        files: ``keys``, the own ``.key_secret`` file, and ``allowed`` for a socket that binds; ``server``, the
            server's ``.key`` file, and optionally ``keys`` for one that connects.
        bind: which of the two it is.

    Raises:
        ConfigError: a name is unknown or missing, or a file cannot be used.
    """
    needed, optional = ({"keys"}, {"allowed"}) if bind else ({"server"}, {"keys"})
    if not needed <= files.keys() <= needed | optional:
        kind = "binds" if bind else "connects"
        raise ConfigError(
            f"curve of a socket that {kind} takes {', '.join(needed)} and optionally {', '.join(optional)}, "
            f"each the path of a file, not {', '.join(map(str, files)) or 'nothing'}"
        )
    paths = {name: Path(str(file)) for name, file in files.items()}
    if bind:
        return CurveServer(KeyPair.load(paths["keys"]), paths.get("allowed"))
    if "keys" in paths:
        return CurveClient(load_public_key(paths["server"]), KeyPair.load(paths["keys"]))
    return CurveClient(load_public_key(paths["server"]))


def check_key(what: str, key: str) -> None:
    """Raise ``ConfigError`` unless ``key`` is 40 characters of Z85; ``what`` names it.

    The error does not show it: where a public key is expected, somebody may have given the secret one.
    """
    if not isinstance(key, str):
        raise ConfigError(f"the {what} must be a str, not {type(key).__name__}")
    if len(key) != 40 or not _Z85.issuperset(key):
        raise ConfigError(
            f"the {what} must be 40 characters of Z85; this one has {len(key)}. `poolwire keys new NAME` makes keys"
        )


def _check_keys(keys: object) -> None:
    if not isinstance(keys, KeyPair):  # not shown: it may be the secret one
        raise ConfigError(f"keys must be a KeyPair, not {type(keys).__name__}; KeyPair.load(file) reads one")


def _path_of(allowed: object) -> Path:
    if isinstance(allowed, str | os.PathLike):
        return Path(allowed)
    raise ConfigError(  # without what it is: keys themselves may have been given, and the wrong ones
        f"allowed must be a path, not {type(allowed).__name__}: that of a folder with the clients' .key files, or of a "
        f"file with one public key a line"
    )


def _read(path: Path) -> tuple[str, str | None]:
    if not path.exists():
        raise ConfigError(f"there is no key file {path}; `poolwire keys new NAME` makes one")
    try:
        public, secret = zmq.auth.load_certificate(path)
        return public.decode(), secret.decode() if secret is not None else None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a key file: {error}") from None


def _create(path: Path, text: str, mode: int) -> None:
    # Created with its mode: a file that is narrowed afterwards was open for a moment.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        file.write(text)

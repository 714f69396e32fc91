"""Endpoints: what ``tcp://``, ``ipc://`` and ``inproc://`` addresses may look like, and who can reach them."""

from __future__ import annotations

import ipaddress
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from app.pools.errors import ConfigError

# sun_path holds 108 bytes on Linux, the last of them a NUL.
IPC_PATH_MAX = 107


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A parsed endpoint."""

    transport: str
    address: str
    bound: bool
    """Whether it is to be bound; otherwise it is connected to."""

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.transport != "tcp" or _is_loopback(self.address.rpartition(":")[0], interface=self.bound)

    @property
    def ipv6(self) -> bool:
        """Whether its address is one of IPv6, which libzmq takes only if it is told to."""
        return self.transport == "tcp" and self.address.rpartition(";")[2].startswith("[")

    @property
    def wildcard(self) -> bool:
        """Whether each bind gets an address of its own, such as ``tcp://127.0.0.1:*``."""
        return self.address == "*" if self.transport == "ipc" else self.address.endswith((":*", ":0"))


def parse(endpoint: str, *, bind: bool) -> Endpoint:
    """Return the parts of ``endpoint``. Raises ``ConfigError`` if libzmq could not use it."""
    transport, separator, address = endpoint.partition("://") if isinstance(endpoint, str) else ("", "", "")
    if not separator or not address:
        raise ConfigError(f"{endpoint!r} is not a ZMQ endpoint such as 'tcp://127.0.0.1:5555' or 'ipc:///run/a.sock'")
    if transport == "tcp":
        _check_tcp(endpoint, address, bind=bind)
    elif transport == "ipc":
        length = len(os.fsencode(address))
        if length > IPC_PATH_MAX:
            raise ConfigError(f"the path of {endpoint!r} has {length} bytes; a Unix socket takes {IPC_PATH_MAX}")
    elif transport != "inproc":
        raise ConfigError(f"the transport of {endpoint!r} is not one of tcp, ipc and inproc")
    return Endpoint(transport, address, bind)


def private_ipc(name: str) -> str:
    """Return an ``ipc://`` endpoint in a folder that only this user can enter; the folder is made if need be.

    Args:
        name: the socket's name in the folder, the same for the processes that want to meet there.

    Raises:
        ConfigError: the folder belongs to someone else, or the path is too long.
    """
    if not name or "/" in name or name.startswith("."):
        raise ConfigError(f"{name!r} is not a plain name for a socket in the private folder")
    base = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(base, "poolwire") if base else Path(tempfile.gettempdir(), f"poolwire-{os.getuid()}")
    make_private(folder)
    endpoint = f"ipc://{folder / name}"
    parse(endpoint, bind=True)
    return endpoint


def make_private(folder: Path) -> None:
    """Make ``folder`` with mode 0700. Raises ``ConfigError`` if it is there and open to others."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat(follow_symlinks=False)
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ConfigError(
            f"the folder {str(folder)!r} is open to other users, who could take over sockets in it: "
            f"chmod 700 it, or use another"
        )


def check_folder(folder: Path) -> None:
    """Make sure that other users cannot put a socket of theirs in the place of one in ``folder``, made if need be.

    Those of its group can, if it lets them write: who gives a folder to a group trusts its members.

    Raises:
        ConfigError: every user may write to it, and its sticky bit does not keep what is there from the others.
    """
    if not folder.exists():
        make_private(folder)
        return
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise ConfigError(
            f"every user may write to the folder {str(folder)!r}, and so take over sockets in it: "
            f"chmod o-w it, or use private_ipc()"
        )


def _check_tcp(endpoint: str, address: str, *, bind: bool) -> None:
    host, _, port = address.rpartition(";")[2].rpartition(":")
    if not host:
        raise ConfigError(f"{endpoint!r} lacks a port, such as 'tcp://127.0.0.1:5555'")
    if bind and port in ("*", "0"):
        return
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        allowed = "1 to 65535, or * for any free one" if bind else "1 to 65535"
        raise ConfigError(f"the port {port!r} of {endpoint!r} is not {allowed}")
    if not bind and host == "*":
        raise ConfigError(f"{endpoint!r} cannot be connected to: '*' means every interface when binding")


def _is_loopback(host: str, *, interface: bool) -> bool:
    """Say whether it is this machine alone; ``interface`` is whether the name may be one of an interface."""
    host = host.rpartition(";")[2].strip("[]").partition("%")[0]
    if host == "localhost" or (interface and host == "lo"):  # which may be another machine's name
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name or an interface: whatever it resolves to may change
        return False

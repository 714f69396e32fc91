"""Encryption, identity, and who is let in."""

import os

import pytest
import zmq
from pydantic import SecretStr

from app.pools.core.settings import ZMQPoolSettings
from app.pools.errors import ConfigError, NotSent
from app.pools.zmq_pool import CurveClient, CurveServer, KeyPair, SocketConfig, SocketType, ZMQPool, private_ipc
from app.pools.zmq_pool.zap import AllowList
from tests.support.waiting import eventually

SERVER, CLIENT, STRANGER = KeyPair.new(), KeyPair.new(), KeyPair.new()


@pytest.fixture
def pool():
    with ZMQPool(ZMQPoolSettings()) as pool:
        yield pool


@pytest.fixture
def served(pool, request):
    """Binds a REP with the CURVE settings given, and returns what asks it as whom."""

    def serve(endpoint, curve):
        server = pool.socket(SocketConfig(SocketType.REP, endpoint, bind=True, curve=curve, receive_timeout=10))
        socket = server.__enter__()
        request.addfinalizer(lambda: server.__exit__(None, None, None))

        def ask(keys, server_key=SERVER.public, send_timeout=0.5):
            client = SocketConfig(
                SocketType.REQ, endpoint, curve=CurveClient(server_key, keys), send_timeout=send_timeout
            )
            with pool.socket(client) as asking:
                asking.send(b"hello")
                assert b"hello" == socket.recv()
                socket.send(b"welcome")
                return asking.recv()

        return ask

    return serve


def test_a_client_that_knows_the_servers_key_is_served(served, free_endpoint):
    """With CURVE the two sides talk; without an allow-list any client that knows the server's key may."""
    ask = served(free_endpoint, CurveServer(SERVER))
    assert b"welcome" == ask(CLIENT, send_timeout=10)


def test_a_list_by_any_name_admits_only_those_on_it(served, free_endpoint, tmp_path, monkeypatch):
    """A list whose path reads like the absence of one is a list, also beside a server that has none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "anyone").write_text(f"{CLIENT.public}\n")
    open_to_all = served("tcp://127.0.0.1:*", CurveServer(SERVER))
    assert open_to_all is not None
    ask = served(free_endpoint, CurveServer(SERVER, allowed="anyone"))
    with pytest.raises(NotSent):
        ask(STRANGER)
    assert b"welcome" == ask(CLIENT, send_timeout=10)


def test_a_list_that_cannot_be_read_admits_nobody_until_it_can(served, free_endpoint, tmp_path):
    """A byte that is no text in an allow-list keeps clients out, and its repair lets them in again."""
    path = tmp_path / "allowed"
    path.write_text(f"{CLIENT.public}\n")
    ask = served(free_endpoint, CurveServer(SERVER, allowed=path))
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(NotSent):
        ask(CLIENT)
    path.write_text(f"# repaired\n{CLIENT.public}\n")
    assert b"welcome" == ask(CLIENT, send_timeout=10)


def test_a_key_file_that_is_no_text_keeps_only_the_clients_of_its_list_out(served, tmp_path):
    """Beside a bind whose list cannot be read the others go on admitting, and so does it after the repair."""
    CLIENT.write(tmp_path, "client")
    broken = tmp_path / "broken.key"
    ask_listed = served(f"ipc://{tmp_path / 'listed'}", CurveServer(SERVER, allowed=tmp_path))
    ask_open = served(f"ipc://{tmp_path / 'open'}", CurveServer(SERVER))
    broken.write_bytes(b'metadata\ncurve\n    public-key = "' + b"\xff" * 40 + b'"\n')
    with pytest.raises(NotSent):
        ask_listed(CLIENT)
    assert b"welcome" == ask_open(CLIENT, send_timeout=10)
    broken.unlink()
    assert b"welcome" == ask_listed(CLIENT, send_timeout=10)


def test_a_failure_to_judge_a_client_refuses_that_client_alone(served, free_endpoint, tmp_path, monkeypatch, caplog):
    """If it cannot be found out whether to admit a client, that is logged, and the next one is judged again."""
    allowed = tmp_path / "allowed"
    allowed.write_text(f"{CLIENT.public}\n")
    ask = served(free_endpoint, CurveServer(SERVER, allowed=allowed))
    with monkeypatch.context() as fault:
        fault.setattr("app.pools.zmq_pool.zap.AllowList.__contains__", lambda *_: 1 / 0)
        with pytest.raises(NotSent):
            ask(CLIENT)
    assert "could not be found out" in caplog.text
    assert b"welcome" == ask(CLIENT, send_timeout=10)


def test_a_wrong_server_key_is_named_in_the_error_and_the_statistics(pool, served, free_endpoint):
    """A client that expects another server sends nothing, and the error says that the handshake failed."""
    ask = served(free_endpoint, CurveServer(SERVER))
    with pytest.raises(NotSent, match="handshake failed"):
        ask(CLIENT, server_key=STRANGER.public)
    label = f"REQ {free_endpoint}"
    assert "handshake failed" in pool.get_stats()["pools"][label]["last_error"]
    assert pool.health()["endpoints"][free_endpoint] is False


def test_an_allow_list_admits_and_is_read_again(served, free_endpoint, tmp_path):
    """Only clients on the list are admitted; a key added while the server runs is admitted, too."""
    CLIENT.write(tmp_path, "client")
    ask = served(free_endpoint, CurveServer(SERVER, allowed=tmp_path))
    assert b"welcome" == ask(CLIENT, send_timeout=10)
    with pytest.raises(NotSent, match="refused this client's key"):
        ask(STRANGER)
    STRANGER.write(tmp_path, "stranger")
    assert b"welcome" == ask(STRANGER, send_timeout=10)


def test_a_server_counts_whom_it_lets_in(pool, served, free_endpoint, tmp_path):
    """The statistics of an encrypted bind say how many connections were admitted and denied, and who was last."""
    allowed = tmp_path / "allowed"
    allowed.write_text(f"{CLIENT.public}\n")
    ask = served(free_endpoint, CurveServer(SERVER, allowed=allowed))
    assert b"welcome" == ask(CLIENT, send_timeout=10)
    figures = pool.get_stats()["pools"][f"REP {free_endpoint} (bound)"]
    assert figures["admitted"] >= 1
    assert (0, "") == (figures["denied"], figures["last_denied"])
    with pytest.raises(NotSent):
        ask(STRANGER)
    figures = pool.get_stats()["pools"][f"REP {free_endpoint} (bound)"]
    assert figures["denied"] >= 1
    assert f"{STRANGER.public} from 127.0.0.1" == figures["last_denied"]


@pytest.mark.parametrize("keys", [(SERVER.public, STRANGER), (STRANGER.public, CLIENT)])
def test_a_push_that_is_refused_says_why(pool, free_endpoint, tmp_path, keys):
    """A PUSH with a wrong server key, or not on the list, fails with the handshake's failure once its queue is full."""
    CLIENT.write(tmp_path, "client")
    served = SocketConfig(SocketType.PULL, free_endpoint, bind=True, curve=CurveServer(SERVER, allowed=tmp_path))
    config = SocketConfig(
        SocketType.PUSH, free_endpoint, curve=CurveClient(*keys), backlog=1, send_timeout=0.5, linger=0.01
    )
    with pool.socket(served):
        pool.push(config, b"queued")
        eventually(lambda: pool.health()["endpoints"][free_endpoint] is False)
        with pytest.raises(NotSent, match=r"handshake failed.*sending it again is safe"):
            pool.push(config, b"refused")
        with pytest.raises(NotSent, match="handshake failed"), pool.socket(config) as socket:
            socket.send(b"refused")
    pool.stop(0.1)


def test_no_error_about_keys_shows_a_secret_one(tmp_path):
    """A secret key given where a public one belongs, in code or as a list of those to admit, stays out of the error."""
    secret = CLIENT.secret.get_secret_value()
    _, secret_file = CLIENT.write(tmp_path, "client")
    for wrong, complaint in (
        (lambda: KeyPair(secret, SecretStr(CLIENT.public)), r"KeyPair\(public, secret\)"),
        (lambda: KeyPair(f"{secret}\n", SecretStr(CLIENT.public)), "this one has 41"),
        (lambda: KeyPair(CLIENT.public, secret), "must be a SecretStr"),
        (lambda: CurveClient(f"{secret}\n"), "server key must be 40 characters of Z85; this one has 41"),
        (lambda: CurveClient(secret.encode()), "must be a str, not bytes"),
        (lambda: CurveClient(SERVER.public, secret), r"must be a KeyPair, not str; KeyPair\.load\(file\) reads one"),
        (lambda: CurveServer(secret), r"must be a KeyPair, not str; KeyPair\.load\(file\) reads one"),
        (lambda: CurveServer(SERVER, allowed=[secret]), "must be a path, not list: that of a folder with the clients'"),
        (lambda: AllowList(secret_file), f"line 4 of {secret_file}"),
    ):
        with pytest.raises(ConfigError, match=complaint) as caught:
            wrong()
        assert secret not in str(caught.value)


@pytest.mark.parametrize("wrong", [5, True, b"clients", ["clients"]])
def test_an_allow_list_is_a_path(wrong):
    """Whatever else is given is refused by a configuration's error, with what is allowed."""
    with pytest.raises(ConfigError, match=f"allowed must be a path, not {type(wrong).__name__}: that of a folder"):
        CurveServer(SERVER, allowed=wrong)


def test_an_allow_list_may_be_one_file(served, free_endpoint, tmp_path):
    """A file with a key a line and comments is an allow-list as well; emptied, it admits nobody new."""
    allowed = tmp_path / "allowed"
    allowed.write_text(f"# our clients\n{CLIENT.public} # the first\n")
    ask = served(free_endpoint, CurveServer(SERVER, allowed=allowed))
    assert b"welcome" == ask(CLIENT, send_timeout=10)
    with pytest.raises(NotSent):
        ask(STRANGER)


def test_a_configuration_file_names_key_files(pool, served, free_endpoint, tmp_path):
    """`curve` may be a table of key files: those of the server, of the client, and the allow-list."""
    SERVER.write(tmp_path, "server")
    CLIENT.write(tmp_path / "clients", "client")
    served(free_endpoint, {"keys": f"{tmp_path}/server.key_secret", "allowed": f"{tmp_path}/clients"})
    files = {"server": f"{tmp_path}/server.key", "keys": f"{tmp_path}/clients/client.key_secret"}
    config = SocketConfig(SocketType.REQ, free_endpoint, curve=files)
    assert config == SocketConfig(SocketType.REQ, free_endpoint, curve=CurveClient(SERVER.public, CLIENT))
    with pool.socket(config) as asking:
        asking.send(b"hello")
    unknown = SocketConfig(SocketType.REQ, free_endpoint, curve={"server": files["server"]}, send_timeout=0.5)
    with pytest.raises(NotSent, match="refused this client's key"):
        pool.request(unknown, b"x")


@pytest.mark.parametrize(
    ("bind", "files"), [(True, {"server": "x"}), (False, {}), (False, {"server": "x", "key": "y"})]
)
def test_a_wrong_table_of_key_files_is_refused(bind, files):
    """A name that is missing or unknown is an error that says which ones there are."""
    with pytest.raises(ConfigError, match=r"takes keys and optionally|takes server and optionally"):
        SocketConfig(SocketType.REQ, "tcp://127.0.0.1:1", bind=bind, curve=files)
    with pytest.raises(ConfigError, match="there is no key file"):
        SocketConfig(SocketType.REQ, "tcp://127.0.0.1:1", curve={"server": "/nowhere/server.key"})


def test_a_plaintext_client_is_not_served_by_an_encrypted_server(pool, served, free_endpoint):
    """A client without keys gets no connection, so its request never leaves."""
    served(free_endpoint, CurveServer(SERVER))
    with pytest.raises(NotSent):
        pool.request(SocketConfig(SocketType.REQ, free_endpoint, send_timeout=0.3), b"x")


@pytest.mark.parametrize(
    ("endpoint", "bind"),
    [
        ("tcp://10.0.0.1:5555", False),
        ("tcp://broker.example:5555", False),
        ("tcp://*:5555", True),
        ("tcp://0.0.0.0:5555", True),
        ("tcp://eth0:5555", True),
        ("tcp://lo:5555", False),
        ("tcp://[2001:db8::1]:5555", False),
    ],
)
def test_plaintext_with_other_machines_must_be_allowed(endpoint, bind):
    """An endpoint that other machines reach needs CURVE or allow_plaintext; the error says how to make keys."""
    with pytest.raises(ConfigError, match="poolwire keys new"):
        SocketConfig(SocketType.REQ, endpoint, bind=bind)
    assert SocketConfig(SocketType.REQ, endpoint, bind=bind, allow_plaintext=True)
    curve = CurveServer(SERVER) if bind else CurveClient(SERVER.public)
    assert SocketConfig(SocketType.REQ, endpoint, bind=bind, curve=curve)


@pytest.mark.parametrize(
    "endpoint", ["tcp://127.0.0.1:1", "tcp://localhost:1", "tcp://[::1]:1", "ipc:///tmp/x", "inproc://x"]
)
def test_plaintext_on_this_machine_needs_no_permission(endpoint):
    """Loopback, ipc and inproc stay on this machine."""
    assert SocketConfig(SocketType.REQ, endpoint)


def test_the_loopback_interface_is_this_machine_to_who_binds_it():
    """`lo` is an interface where it is bound; who connects means a machine of that name."""
    assert SocketConfig(SocketType.REP, "tcp://lo:1", bind=True)


def test_no_secret_is_shown(pool, free_endpoint):
    """Neither a configuration nor its errors, statistics and keys show a secret key."""
    secret = CLIENT.secret.get_secret_value()
    config = SocketConfig(
        SocketType.REQ, free_endpoint, curve=CurveClient(SERVER.public, CLIENT), send_timeout=0.05,
        options={"PLAIN_PASSWORD": "hunter2"},
    )  # fmt: skip
    with pytest.raises(NotSent) as error:
        pool.request(config, b"x")
    shown = f"{config!r} {error.value} {error.value!r} {pool.get_stats()} {pool.health()} {CLIENT!r} {config.options!r}"
    assert secret not in shown
    assert "hunter2" not in shown
    with pytest.raises(ConfigError) as wrong:
        KeyPair(CLIENT.public, STRANGER.secret)
    assert STRANGER.secret.get_secret_value() not in str(wrong.value)


def test_different_keys_never_share_a_socket(pool, served, free_endpoint):
    """Two identities at one endpoint have sockets of their own."""
    served(free_endpoint, CurveServer(SERVER))
    mine, other = (
        SocketConfig(SocketType.REQ, free_endpoint, curve=CurveClient(SERVER.public, k)) for k in (CLIENT, STRANGER)
    )
    assert mine != other
    with pool.socket(mine) as one, pool.socket(other) as two:
        assert one is not two


def test_a_secret_key_file_open_to_others_is_refused(tmp_path):
    """A secret key that others may read is not used, and the error says the command that closes it."""
    _, secret_file = CLIENT.write(tmp_path, "client")
    secret_file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        KeyPair.load(secret_file)


def test_the_private_ipc_folder_is_for_this_user_alone(pool, tmp_path, monkeypatch):
    """Sockets for one user's processes live in a folder with mode 0700; one open to others is refused."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    endpoint = private_ipc("agent")
    assert 0o700 == (tmp_path / "poolwire").stat().st_mode & 0o777
    with pool.socket(SocketConfig(SocketType.PULL, endpoint, bind=True, receive_timeout=10)) as pull:
        assert 0o600 == (tmp_path / "poolwire" / "agent").stat().st_mode & 0o777
        pool.push(SocketConfig(SocketType.PUSH, endpoint), b"x")
        assert b"x" == pull.recv()
    os.chmod(tmp_path / "poolwire", 0o755)
    with pytest.raises(ConfigError, match="open to other users"):
        private_ipc("agent")


@pytest.mark.parametrize(("mode", "fine"), [(0o777, False), (0o703, False), (0o1777, True), (0o775, True)])
def test_a_folder_that_every_user_may_write_to_is_not_bound_in(pool, tmp_path, mode, fine):
    """A socket is bound where others cannot replace it: not in a folder open to all, unless it is sticky."""
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    lease = pool.socket(SocketConfig(SocketType.PULL, f"ipc://{folder}/agent", bind=True))
    if fine:
        with lease:
            assert 0o600 == (folder / "agent").stat().st_mode & 0o777
    else:
        with pytest.raises(ConfigError, match="every user may write"):
            lease.__enter__()


def test_a_folder_that_is_made_for_a_socket_is_private(pool, tmp_path):
    """A folder that is missing is made, for this user alone."""
    with pool.socket(SocketConfig(SocketType.PULL, f"ipc://{tmp_path}/new/agent", bind=True)):
        assert 0o700 == (tmp_path / "new").stat().st_mode & 0o777


def test_an_endpoint_that_comes_and_goes_is_seen_without_sending(pool, free_endpoint):
    """`health()` says down, up, down and up again as the server goes and comes, and counts the reconnect."""
    config = SocketConfig(SocketType.REQ, free_endpoint, send_timeout=0.05)
    label = config.label
    with pytest.raises(NotSent):
        pool.request(config, b"x")
    eventually(lambda: pool.health()["endpoints"][free_endpoint] is False)
    assert not pool.health()["healthy"]
    with pytest.raises(NotSent):
        pool.request(SocketConfig(SocketType.REQ, free_endpoint, send_timeout=0.06), b"x")
    (reason,) = pool.health()["reasons"]
    assert free_endpoint in reason
    for _ in range(2):
        context = zmq.Context()
        server = context.socket(zmq.ROUTER)
        server.bind(free_endpoint)
        eventually(lambda: pool.health()["endpoints"][free_endpoint] is True)
        assert pool.health()["healthy"]
        assert not server.poll(0)
        server.close(0)
        context.term()
        eventually(lambda: pool.health()["endpoints"][free_endpoint] is False)
    assert 1 == pool.get_stats()["pools"][label]["reconnects"]


def test_a_dealers_endpoint_is_watched_without_taking_its_messages(pool, free_endpoint):
    """`health()` says whether a DEALER's server is there; the server sees the DEALER alone, and no answer is lost."""
    config = SocketConfig(SocketType.DEALER, free_endpoint)
    for _ in range(2):
        context = zmq.Context()
        server = context.socket(zmq.ROUTER)
        server.linger = 0
        server.bind(free_endpoint)
        with pool.socket(config) as dealer:
            eventually(lambda: pool.health()["endpoints"][free_endpoint] is True)
            for number in range(20):
                dealer.send_multipart([b"", b"%d" % number])
                assert server.poll(10_000)
                server.send_multipart(server.recv_multipart())
                assert [b"", b"%d" % number] == dealer.recv_multipart()
            assert not server.poll(0)
        server.close(0)
        context.term()
        eventually(lambda: pool.health()["endpoints"][free_endpoint] is False)


def test_a_dealer_that_serves_a_dealer_keeps_all_messages(pool, free_endpoint):
    """Whether a peer that is a DEALER is there is not known, for watching it as a DEALER would take messages away."""
    context = zmq.Context()
    server = context.socket(zmq.DEALER)
    server.linger = 0
    server.bind(free_endpoint)
    config = SocketConfig(SocketType.DEALER, free_endpoint)
    with pool.socket(config) as dealer:
        dealer.send(b"hello")
        assert server.poll(10_000)
        assert b"hello" == server.recv()
        for number in range(50):
            server.send(b"%d" % number)
        assert [b"%d" % number for number in range(50)] == [dealer.recv() for _ in range(50)]
    for _ in range(30):  # while the watching connection is refused again and again
        assert pool.health()["healthy"]
        assert pool.health()["endpoints"][free_endpoint] is None
        assert not server.poll(10)
    server.close()
    context.term()


def test_an_endpoint_is_watched_once(pool, free_endpoint):
    """Configurations that differ in times and options share the one watch of their endpoint."""
    context = zmq.Context()
    server = context.socket(zmq.ROUTER)
    server.linger = 0
    connected = server.get_monitor_socket(zmq.EVENT_ACCEPTED)
    server.bind(free_endpoint)
    configs = [SocketConfig(SocketType.REQ, free_endpoint, receive_timeout=n + 1) for n in range(5)]
    for config in configs:
        with pool.socket(config):
            eventually(lambda config=config: pool.get_stats()["pools"][config.label]["endpoint_up"])
    accepted = 0
    while connected.poll(200):
        connected.recv_multipart()
        accepted += 1
    assert len(configs) + 1 == accepted
    server.disable_monitor()
    connected.close(0)
    server.close(0)
    context.term()

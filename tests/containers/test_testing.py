"""What the package ships for testing agents."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dependency_injector import providers

from app.agents import Agent
from app.containers import AgentContainer, ContainerError, Provide, inject
from app.containers.testing import Call, Fake, StubServer, agent_container, override
from app.containers.testing.plugin import container_for  # noqa: F401 - a fixture
from app.pools.errors import LeaseLeaked
from app.pools.http_pool import HTTPClient, HTTPConfig
from app.pools.sql_pool import Database
from app.pools.zmq_pool import Peer

pytest_plugins = ["pytester"]


class Librarian(Agent):
    endpoint = "librarian"

    @inject
    async def on_request(
        self,
        message: dict[str, Any],
        db: Database = Provide["databases.library.handle"],
        web: HTTPClient = Provide["apis.web"],
        scribe: Peer = Provide["peers.scribe"],
    ) -> dict[str, Any]:
        rows = await db.execute_query_async("SELECT title FROM books WHERE author = ?", (message["author"],))
        if message.get("ask"):
            return {"titles": [row[0] for row in rows], "scribe": await scribe.ask_async({"n": len(rows)})}
        response = await web.get_async("/prices", params={"of": message["author"]})
        return {"titles": [row[0] for row in rows], "prices": response.json()}


@inject
def count(db: Database = Provide["databases.library.handle"]) -> int:
    rows: int = db.execute_query("SELECT count(*) FROM books")[0][0]
    return rows


def fill(container: Any) -> None:
    library = container.databases.library.handle()
    library.execute_query("CREATE TABLE books (author TEXT, title TEXT)")
    library.execute_query("INSERT INTO books VALUES ('Lem', 'Solaris')")


async def test_a_container_for_a_test_has_everything_in_this_process() -> None:
    """Databases are in memory, and an API is a stub server that records what it receives."""
    async with agent_container(Librarian) as container:
        fill(container)
        container.stub_server.reply("GET", "/web/prices", json={"Solaris": 9})

        answer = await Librarian().on_request({"author": "Lem"})

        assert {"titles": ["Solaris"], "prices": {"Solaris": 9}} == answer
        (request,) = container.stub_server.requests
        assert {"of": ["Lem"]} == request.query


def test_each_test_begins_with_an_empty_database(container_for: Callable[..., Any]) -> None:  # noqa: F811
    """Two containers of one agent share nothing, also when they follow each other."""
    for _ in range(2):
        with agent_container(count) as container:
            fill(container)
            assert 1 == count()


async def test_a_fake_stands_for_a_peer_and_records_its_calls() -> None:
    """What is put in a name's place is injected as it is."""
    scribe = Fake(ask={"written": True})
    async with agent_container(Librarian, overrides={"peers.scribe": scribe}) as container:
        fill(container)
        answer = await Librarian().on_request({"author": "Lem", "ask": True})

    assert {"titles": ["Solaris"], "scribe": {"written": True}} == answer
    assert [Call("ask_async", ({"n": 1},), {})] == scribe.calls


def test_a_fake_gives_results_raises_errors_and_calls_functions() -> None:
    """A value is returned, an exception raised, a function called; what it lacks is said."""
    fake = Fake(get=lambda path: path.upper(), post=ConnectionError("down"))

    assert "/X" == fake.get("/x")
    with pytest.raises(ConnectionError, match="down"):
        fake.post()
    with pytest.raises(AttributeError, match=r"this fake has no 'put'; make it with Fake\(put=...\)"):
        fake.put()
    assert ["get", "post"] == [call.method for call in fake.calls]


def test_an_override_ends_with_its_block() -> None:
    """Values, providers and views are replaced inside the block only, whatever happens in it."""
    with agent_container(count) as container:
        fill(container)
        fakes = providers.Factory(Fake, execute_query=[[7]])
        with override(container, {"databases.library.handle": fakes}):
            assert 7 == count()
        with pytest.raises(ZeroDivisionError), override(container, {"databases.library.handle": Fake()}):
            raise ZeroDivisionError
        with override(container, sql_pool=Fake()):
            assert isinstance(container.sql_pool(), Fake)

        assert 1 == count()


class Service:
    """Made once, with what it needs."""

    def __init__(self, mailer: Any) -> None:
        self.mailer = mailer


class ServiceContainer(AgentContainer):
    mailer = providers.Singleton(Fake, send="real")
    service = providers.Singleton(Service, providers.Factory(dict, mailer=mailer))


@inject
def sender(service: Service = Provide["service"]) -> Any:
    return service.mailer["mailer"].send()


def test_a_singleton_does_not_keep_what_was_overridden_nor_the_fake() -> None:
    """A singleton that was made before an override is made anew with the fake, and with the real thing after it."""
    with agent_container(sender, container_class=ServiceContainer) as container:
        for _ in range(3):
            assert "real" == sender()
            with override(container, mailer=Fake(send="fake")):
                assert "fake" == sender()
            assert "real" == sender()
        pool = container.sql_pool()
        with override(container, mailer=Fake(send="fake")):
            assert pool is container.sql_pool()


def test_an_override_of_an_unknown_name_is_refused() -> None:
    """A misspelt name says what there is."""
    with agent_container(count) as container:
        with pytest.raises(ContainerError, match=r"cannot override 'database\.library': the container has .*databases"):
            override(container, {"database.library": Fake()}).__enter__()


def test_an_override_that_no_marker_asks_for_is_refused() -> None:
    """A fake under a misspelt name would leave the real thing in place; the error names the nearest."""
    with pytest.raises(ContainerError, match=r"cannot override 'peers.scrib': .*did you mean 'peers.scribe'\?"):
        agent_container(Librarian, overrides={"peers.scrib": Fake()})


def test_a_misspelt_parameter_is_refused() -> None:
    """Named resources have five kinds, and a sixth is said to be none."""
    with pytest.raises(TypeError, match="has no parameter databses; named resources are given as databases, apis"):
        agent_container(count, databses={})


def test_overrides_of_the_class_do_not_outlive_the_test() -> None:
    """A test that overrides the container's class leaves no trace for the next one."""
    with agent_container(count):
        AgentContainer.zmq_pool.override(providers.Object(Fake()))

    assert not AgentContainer.zmq_pool.overridden


def test_a_lease_left_open_fails_and_names_its_line() -> None:
    """The end of the block raises with the file and the line of the checkout."""
    testing = agent_container(count, stop_timeout=0.05)
    lease = testing.__enter__().databases.library().open()
    lease.__enter__()  # leaked here
    with pytest.raises(ExceptionGroup) as caught:
        testing.__exit__(None, None, None)

    lease.__exit__(None, None, None)
    (error,) = caught.value.exceptions
    assert isinstance(error, LeaseLeaked)
    assert "test_testing.py" in str(error)


def test_an_unexpected_request_is_explained(caplog: pytest.LogCaptureFixture) -> None:
    """The stub server answers 501 with the call that is missing, and logs it for the report of the failure."""
    with StubServer() as stub, agent_container(count) as container:
        response = container.http_pool().request(HTTPConfig(stub.base_url), "POST", "/x", json={"a": 1})

    assert 501 == response.status_code
    assert "the test gave no reply for POST /x" in response.text
    assert {"a": 1} == stub.requests[0].json()
    assert "the test gave no reply for POST /x" in caplog.text


def test_the_tools_work_with_anyio(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that anyio's plugin runs can use the fixture and the containers."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parent.parent.parent))
    pytester.makeconftest(
        """
        import pytest

        pytest_plugins = ["app.containers.testing.plugin"]

        @pytest.fixture
        def anyio_backend():
            return "asyncio"
        """
    )
    pytester.makepyfile(
        """
        import anyio
        import pytest
        from app.containers import Provide, inject
        from app.containers.testing import Fake, agent_container, override

        pytestmark = pytest.mark.anyio

        @inject
        async def count(db=Provide["databases.library.handle"], peer=Provide["peers.scribe"]):
            rows = await db.execute_query_async("SELECT 1")
            return rows[0][0], await peer.ask_async({})

        @pytest.mark.parametrize("number", range(3))
        async def test_block(number):
            async with agent_container(count, overrides={"peers.scribe": Fake(ask=number)}) as container:
                assert await count() == (1, number)
                with override(container, {"peers.scribe": Fake(ask="other")}):
                    async with anyio.create_task_group() as group:
                        for _ in range(10):
                            group.start_soon(count)
                    assert await count() == (1, "other")

        async def test_fixture(container_for):
            container_for(count, overrides={"peers.scribe": Fake(ask=7)})
            assert await count() == (1, 7)
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:asyncio", "-p", "no:cacheprovider", "-W", "error")

    result.assert_outcomes(passed=4)


def test_the_plugin_fails_a_test_that_leaks(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the plugin a leak is an error of the very test, in parallel runs and asynchronous tests too."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parent.parent.parent))
    pytester.makeconftest('pytest_plugins = ["app.containers.testing.plugin"]')
    pytester.makepyfile(
        """
        import pytest
        from app.containers import Provide, inject

        kept = []

        @inject
        def count(db=Provide["databases.library.handle"]):
            return db.execute_query("SELECT 1")[0][0]

        @pytest.mark.parametrize("number", range(4))
        def test_clean(container_for, number):
            container_for(count)
            assert count() == 1

        async def test_asynchronous(container_for):
            container = container_for(count)
            rows = await container.databases.library.handle().execute_query_async("SELECT 1")
            assert rows[0][0] == 1

        def test_leaking(container_for):
            container = container_for(count, stop_timeout=0.05)
            lease = container.databases.library().open()
            kept.append((lease, lease.__enter__()))
        """
    )
    result = pytester.runpytest_subprocess("-n", "2", "-o", "asyncio_mode=auto", "-p", "no:cacheprovider")

    result.assert_outcomes(passed=6, errors=1)
    result.stdout.fnmatch_lines(["*lease(s) not given back*test_the_plugin_fails_a_test_that_leaks.py:*"])

"""The ZMQ pool against sockets held by hand and against what people do instead.

Contenders: a hot socket held by hand, a new socket on a shared context, a new context per request, a pool of queues
behind a lock, ``zmq.asyncio`` with a REQ per task, and a lock around one PUB.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import zmq
import zmq.asyncio

sys.path.insert(0, str(Path(__file__).parent))

from harness import Figure, arguments, interleave, median, ratio, repeat, report
from zmq_server import serving

from app.pools.core.bucket import Bucket, Limits
from app.pools.core.settings import ZMQPoolSettings
from app.pools.zmq_pool import CurveClient, KeyPair, SocketConfig, SocketType, ZMQPool

TEXT = "x" * 100
BODY = TEXT.encode()
FRAMES = [b"topic", b"header", b"x" * 100]

Work = Callable[[], object]


class QueuePool:
    """The pool that this one replaces: queues of sockets behind a lock, handed out by ``@contextmanager``."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.context = context
        self.lock = threading.RLock()
        self.pools: dict[str, queue.Queue[zmq.Socket[bytes]]] = {}
        self.metrics = {"active": 0, "hits": 0, "misses": 0}

    def key(self, kind: int, endpoint: str) -> str:
        return f"{kind}_{endpoint}_connect"

    @contextmanager
    def socket(self, kind: int, endpoint: str) -> Iterator[zmq.Socket[bytes]]:
        key = self.key(kind, endpoint)
        with self.lock:
            pool = self.pools.setdefault(key, queue.Queue(50))
        try:
            socket = pool.get_nowait()
            with self.lock:
                self.metrics["hits"] += 1
        except queue.Empty:
            socket = connected(self.context, kind, endpoint)
            with self.lock:
                self.metrics["misses"] += 1
        with self.lock:
            self.metrics["active"] += 1
        try:
            yield socket
        finally:
            with self.lock:
                self.metrics["active"] -= 1
            try:
                pool.put_nowait(socket)
            except queue.Full:
                socket.close()


def connected(context: zmq.Context[zmq.Socket[bytes]], kind: int, endpoint: str) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.linger = 0
    socket.connect(endpoint)
    return socket


def ask(socket: zmq.Socket[bytes]) -> None:
    socket.send_string(TEXT)
    socket.recv_string()


def ask_in_frames(socket: zmq.Socket[bytes]) -> None:
    socket.send_multipart(FRAMES)
    socket.recv_multipart()


def threaded(make: Callable[[], Work], threads: int) -> Callable[[int], float]:
    """Return a contender whose threads share the work; each does it with what ``make`` gave it beforehand."""
    works = [make() for _ in range(threads)]
    if threads == 1:
        return repeat(works[0])

    def run(count: int) -> float:
        barrier = threading.Barrier(threads)
        began, ended = [0.0] * threads, [0.0] * threads

        def work(number: int, mine: Work) -> None:
            barrier.wait()
            began[number] = time.perf_counter()
            for _ in range(max(1, count // threads)):
                mine()
            ended[number] = time.perf_counter()

        workers = [threading.Thread(target=work, args=each) for each in enumerate(works)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        # By the workers' own clocks: this thread may get its turn long after they have begun.
        return max(ended) - min(began)

    return run


def hot(pool: ZMQPool, endpoint: str, use: Callable[[zmq.Socket[bytes]], None] = ask) -> Callable[[], Work]:
    def make() -> Work:
        socket = connected(pool.context, zmq.REQ, endpoint)
        held.append(socket)
        return lambda: use(socket)

    return make


def leased(pool: ZMQPool, endpoint: str, use: Callable[[zmq.Socket[bytes]], None] = ask) -> Callable[[], Work]:
    config = SocketConfig(SocketType.REQ, endpoint)

    def work() -> None:
        with pool.socket(config) as socket:
            use(socket)

    return lambda: work


def per_context(endpoint: str) -> Callable[[], Work]:
    def work() -> None:
        with zmq.Context() as context, connected(context, zmq.REQ, endpoint) as socket:
            ask(socket)

    return lambda: work


held: list[zmq.Socket[bytes]] = []


@contextmanager
def a_pool(**settings: object) -> Iterator[ZMQPool]:
    with ZMQPool(ZMQPoolSettings(**settings)) as pool:
        try:
            yield pool
        finally:
            while held:
                held.pop().close(0)


def requests(scale: int) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder, serving("echo") as tcp, serving("echo", f"ipc://{folder}/e") as ipc:
        for threads, target in ((1, 0.97), (32, 0.90)):
            for name, endpoint in (("tcp", tcp), ("ipc", ipc)):
                with a_pool() as pool:
                    contenders = {
                        "hot": threaded(hot(pool, endpoint), threads),
                        "leased": threaded(leased(pool, endpoint), threads),
                        "another": threaded(hot(pool, endpoint), threads),
                    }
                    # Many short rounds for one thread: what the machine does meanwhile is larger than a lease.
                    rounds = 15 if threads > 1 else 135
                    runs = interleave(contenders, rounds=rounds, count=5760 * scale // rounds)
                    label = f"100 B, {name}, {threads} thread(s)"
                    yield Figure(f"leased vs hot REQ, {label}", ratio(runs, "hot", "leased"), target)
                    yield Figure(f"another hot REQ vs hot REQ, {label}: the noise", ratio(runs, "hot", "another"))
        with a_pool() as pool:
            contenders = {
                "hot": threaded(hot(pool, tcp, ask_in_frames), 1),
                "leased": threaded(leased(pool, tcp, ask_in_frames), 1),
            }
            runs = interleave(contenders, rounds=135, count=5760 * scale // 135)
            yield Figure("leased vs hot REQ, 3 frames, tcp, 1 thread", ratio(runs, "hot", "leased"), 1.02)
        for threads, target in ((1, 9), (32, 14)):
            with a_pool() as pool:
                contenders = {
                    "new": threaded(per_context(tcp), threads),
                    "leased": threaded(leased(pool, tcp), threads),
                    "hot": threaded(hot(pool, tcp), threads),
                }
                runs = interleave(contenders, rounds=5, count=96 * scale)
                label = f"new Context per request, tcp, {threads} thread(s)"
                yield Figure(f"leased vs {label}", ratio(runs, "new", "leased"), target)
                yield Figure(f"hot vs {label}: the limit", ratio(runs, "new", "hot"))
        yield from crowded(tcp, scale)


def crowded(endpoint: str, scale: int) -> Iterator[Figure]:
    """Measure 32 threads that share 8 sockets against 8 locks, each with a socket and 4 threads of its own."""
    with a_pool() as pool:
        config = SocketConfig(SocketType.REQ, endpoint, max_connections=8)
        shards = [(threading.Lock(), connected(pool.context, zmq.REQ, endpoint)) for _ in range(8)]
        held.extend(socket for _, socket in shards)
        turn = itertools.cycle(shards)

        def sharded() -> Work:
            lock, socket = next(turn)

            def work() -> None:
                with lock:
                    ask(socket)

            return work

        def lease() -> Work:
            def work() -> None:
                with pool.socket(config) as socket:
                    ask(socket)

            return work

        contenders = {"sharded": threaded(sharded, 32), "leased": threaded(lease, 32)}
        runs = interleave(contenders, rounds=9, count=640 * scale)
        yield Figure("32 threads on 8 sockets vs sharded locks", ratio(runs, "sharded", "leased"), 0.90)


def encrypted(scale: int) -> Iterator[Figure]:
    keys = KeyPair.new()
    with serving("echo", keys=keys) as endpoint, a_pool() as pool:
        client = CurveClient(keys.public)
        config = SocketConfig(SocketType.REQ, endpoint, curve=client)

        def lease() -> None:
            with pool.socket(config) as socket:
                ask(socket)

        def opened() -> zmq.Socket[bytes]:
            socket = pool.context.socket(zmq.REQ)
            socket.linger = 0
            for option, value in client.options().items():
                socket.setsockopt(zmq.SocketOption[option], value)
            socket.connect(endpoint)
            return socket

        def new() -> None:
            socket = opened()
            ask(socket)
            socket.close()

        hot = opened()
        contenders = {"new": repeat(new), "leased": repeat(lease), "hot": repeat(lambda: ask(hot))}
        runs = interleave(contenders, rounds=15, count=60 * scale)
        hot.close()
        yield Figure("CURVE: leased vs new socket, tcp, 100 B", ratio(runs, "new", "leased"), 12)
        yield Figure("CURVE: hot vs new socket, tcp, 100 B: the limit", ratio(runs, "new", "hot"))


def checkout_alone(scale: int) -> Iterator[Figure]:
    with serving("echo") as endpoint, a_pool() as pool:
        naive = QueuePool(pool.context)
        config = SocketConfig(SocketType.REQ, endpoint)
        bare: deque[int] = deque([1])
        bucket: Bucket[int] = Bucket("bench", "bench", Limits(2), create=lambda: 1, destroy=lambda _: None)
        pop, append = bare.pop, bare.append
        checkout, give_back = bucket.checkout, bucket.give_back

        def of_a_deque() -> None:
            append(pop())

        def of_the_core() -> None:
            give_back(checkout())

        def lease() -> None:
            with pool.socket(config):
                pass

        def queued() -> None:
            with naive.socket(zmq.REQ, endpoint):
                pass

        contenders = {
            "deque": repeat(of_a_deque),
            "core": repeat(of_the_core),
            "lease": repeat(lease),
            "queue": repeat(queued),
        }
        runs = interleave(contenders, rounds=15, count=2000 * scale)
        for waiting in naive.pools.values():
            held.append(waiting.get_nowait())
        yield Figure("checkout + return, vs the Queue-based pool: times cheaper", ratio(runs, "queue", "core"), 7)
        yield Figure("checkout + return, vs deque pop + append", ratio(runs, "core", "deque"), 12, at_least=False)
        yield Figure("`with pool.socket()`, vs the Queue-based pool: times cheaper", ratio(runs, "queue", "lease"))
        yield Figure("`with pool.socket()` alone", median(runs, "lease") * 1e6, unit="µs")


def asynchronous(scale: int) -> Iterator[Figure]:
    with serving("echo") as endpoint, a_pool() as pool:
        config = SocketConfig(SocketType.REQ, endpoint, receive_timeout=60)
        context = zmq.asyncio.Context(pool.context)
        runner = asyncio.Runner()
        runner.get_loop()

        def tasks(at_once: int, work: Callable[[int], object]) -> Callable[[int], float]:
            async def all_of_them(count: int) -> float:
                async def one(n: int) -> None:
                    for _ in range(max(1, count // at_once)):
                        await work(n)  # type: ignore[misc]

                began = time.perf_counter()
                await asyncio.gather(*(one(n) for n in range(at_once)))
                return time.perf_counter() - began

            return lambda count: runner.run(all_of_them(count))

        async def opened(count: int) -> list[zmq.asyncio.Socket]:
            sockets = [context.socket(zmq.REQ) for _ in range(count)]
            for socket in sockets:
                socket.linger = 0
                socket.connect(endpoint)
            return sockets

        for at_once, target in ((10, 1.8), (100, 4.5), (1000, 6)):
            sockets = runner.run(opened(at_once))

            async def by_hand(n: int, sockets: list[zmq.asyncio.Socket] = sockets) -> None:
                await sockets[n].send(BODY)
                await sockets[n].recv()

            async def multiplexed(n: int) -> None:
                await pool.request_async(config, BODY)

            contenders = {"hot": tasks(at_once, by_hand), "ours": tasks(at_once, multiplexed)}
            runs = interleave(contenders, rounds=7, count=max(4 * at_once, 400) * scale)
            label = f"request_async vs hot zmq.asyncio REQ per task, {at_once} in flight"
            yield Figure(label, ratio(runs, "hot", "ours"), target)

            async def closed(sockets: list[zmq.asyncio.Socket] = sockets) -> None:
                for socket in sockets:
                    socket.close()

            runner.run(closed())
        with serving("rep") as default:
            yield runner.run(lost(pool, default, 20_000 * scale * scale * 2))
        pool.stop()
        runner.close()
        context._shadow = True


async def lost(pool: ZMQPool, endpoint: str, total: int) -> Figure:
    """Count the replies that a default REP server's queue drops, with 3,000 requests in flight."""
    config = SocketConfig(SocketType.REQ, endpoint, receive_timeout=60)
    missing, each = 0, -(-total // 3000)

    async def one() -> None:
        nonlocal missing
        for _ in range(each):
            missing += await pool.request_async(config, BODY) != BODY

    await asyncio.gather(*(one() for _ in range(3000)))
    return Figure(f"replies lost of {each * 3000:,}, 3,000 in flight", missing, 0, at_least=False, unit="")


def publishing(scale: int) -> Iterator[Figure]:
    with serving("sink") as endpoint, a_pool() as pool:
        config = SocketConfig(SocketType.PUB, endpoint, subscriber_wait=10, options={"SNDHWM": 0})
        one, lock = publisher(pool, endpoint), threading.Lock()
        pool.publish(config, BODY)

        def locked() -> None:
            with lock:
                one.send(BODY)

        def own() -> Work:
            socket = publisher(pool, endpoint)
            return lambda: socket.send(BODY)

        def ours() -> None:
            pool.publish(config, BODY)

        for threads, target in ((8, 2), (32, 4)):
            contenders = {
                "locked": threaded(lambda: locked, threads),
                "own": threaded(own, threads),
                "ours": threaded(lambda: ours, threads),
            }
            runs = interleave(contenders, rounds=9, count=16_000 * scale)
            yield Figure(f"publish vs a lock around one PUB, {threads} threads", ratio(runs, "locked", "ours"), target)
            yield Figure(f"publish vs a hot PUB per thread, {threads} threads", ratio(runs, "own", "ours"), 0.9)


def publisher(pool: ZMQPool, endpoint: str) -> zmq.Socket[bytes]:
    socket = pool.context.socket(zmq.XPUB)
    held.append(socket)
    socket.linger = 0
    socket.sndhwm = 0
    socket.connect(endpoint)
    socket.recv()  # the subscription
    return socket


def agents() -> Iterator[Figure]:
    """Measure what 288 agents that use three endpoints each cost the process, one after the other."""
    process = psutil.Process()
    with serving("echo") as one, serving("echo") as two, serving("echo") as three:
        configs = [SocketConfig(SocketType.REQ, endpoint) for endpoint in (one, two, three)]
        threads, descriptors, memory = process.num_threads(), process.num_fds(), process.memory_info().rss
        with a_pool() as pool:

            def agent(_: int) -> None:
                for config in configs:
                    pool.request(config, BODY)

            for n in range(288):
                agent(n)
            names = sum("ZMQ" in Path(f"/proc/self/task/{thread.id}/comm").read_text() for thread in process.threads())
            yield Figure("288 agents x 3 endpoints: file descriptors", process.num_fds() - descriptors, 60, False, "")
            yield Figure("288 agents x 3 endpoints: libzmq's threads", names, 2, False, "")
            grown = (process.memory_info().rss - memory) / 2**20
            yield Figure("288 agents x 3 endpoints: more memory", grown, 5, False, "MB")
            del threads


def main() -> int:
    scale = 1 if arguments(__doc__ or "").quick else 5
    figures = [*agents(), *requests(scale), *encrypted(scale), *checkout_alone(scale), *asynchronous(scale)]
    figures += publishing(scale)
    report("ZMQ", figures, ("pyzmq",))
    return 0


if __name__ == "__main__":
    sys.exit(main())

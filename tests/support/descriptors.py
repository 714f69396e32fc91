"""The file descriptors of this process: what they are of, and what it is like to have none for a moment."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
from collections.abc import Callable, Iterator


def open_files(name: str) -> int:
    """Return how many descriptors this process has of files whose name ends so."""
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{descriptor}").endswith(name)
    return found


@contextlib.contextmanager
def shortage(free: int = 0) -> Iterator[Callable[[], None]]:
    """Leave this process ``free`` file descriptors, until the block ends or what it gives is called."""
    gc.collect()  # what it closes would be free
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + free, hard))
    held = []
    with contextlib.suppress(OSError):
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    for _ in range(free):
        os.close(held.pop())

    def end() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        while held:
            os.close(held.pop())

    try:
        yield end
    finally:
        end()

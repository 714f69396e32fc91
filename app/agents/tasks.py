"""Ending tasks within a time, whether or not they obey."""

from __future__ import annotations

import asyncio
from typing import Any

from app.containers.tasks import to_its_end

GRACE = 1.0
"""Seconds that cancelled work has for its end, when its own budget is spent."""


async def cut_off(*tasks: asyncio.Future[Any], grace: float = GRACE) -> bool:
    """Cancel ``tasks`` and await their end for up to ``grace`` seconds; return whether all ended.

    A task that resists is left behind. If the caller is cancelled meanwhile, that is raised at the end.
    """
    for task in tasks:
        task.cancel()
    running = [task for task in tasks if not task.done()]
    if running:
        await to_its_end(asyncio.wait(running, timeout=grace))
    return all(task.done() for task in tasks)

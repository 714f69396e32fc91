"""The monitor: listens to what the others publish, and keeps counts and recent events."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from app.agents import Agent

RECENT = 20


class Monitor(Agent):
    """Counts events. They are news and may be missed; what is true is in the jobs table."""

    endpoint = "monitor"
    topics = ("job.", "scan.")

    def __init__(self) -> None:
        super().__init__()
        self.surveyed = False
        """Whether the scanner has said how much there is to do."""
        self.survey: dict[str, int] = {"total": 0, "queued": 0, "resumed": 0, "unchanged": 0, "removed": 0}
        """What the scanner found, in numbers of files."""
        self.outcomes: Counter[str] = Counter()
        """Jobs by what became of them: stored, unchanged, skipped, given up."""
        self.failures = 0
        """Attempts at a job that failed; most succeed later."""
        self.passages = 0
        """Passages stored."""
        self.recent: deque[str] = deque(maxlen=RECENT)
        """The latest events, as lines to read, newest last."""

    @property
    def finished_jobs(self) -> int:
        """Jobs of this run that need no more work."""
        return self.outcomes.total()

    async def on_message(self, message: dict[str, Any], topic: str) -> None:
        """Count one event."""
        if topic == "scan.surveyed":
            self.survey = message
            self.surveyed = True
            self.recent.append(f"found {message['total']} files, {message['queued']} to do")
        elif topic == "job.done":
            self.outcomes[message["outcome"]] += 1
            self.passages += message.get("passages", 0)
            self.recent.append(f"{message['outcome']} {message['path']}")
        elif topic == "job.failed":
            self.failures += 1
            self.recent.append(f"failed {message['path']}: {message['reason']}")
        elif topic == "job.given_up":
            self.outcomes["given up"] += 1
            self.recent.append(f"gave up {message['path']}: {message['reason']}")

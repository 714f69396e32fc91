"""A scan of 1,000 files of 400 lines, cold and warm, against ``ast.parse`` over the same files in one process."""

from __future__ import annotations

import ast
import gc
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from harness import Figure, arguments, interleave, median, ratio, report

from app.migration import Config, scan

_HEADER = '''"""Agent {number} of the fleet."""

import json
import logging
import sqlite3
import time
from typing import Any, Dict, List, Optional

import requests
import zmq

from agents.base_{base} import BaseAgent

log = logging.getLogger(__name__)


class Agent{number}(BaseAgent):
    """Answers questions of the kind {number}."""

    def __init__(self, port: int = {port}, db_path: str = "data/{number}.db") -> None:
        super().__init__("agent_{number}")
        self.port = port
        self.db_path = db_path
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.REP)
        self.socket.bind(f"tcp://*:{{port}}")
        self.cache: Dict[str, Any] = {{}}
        self.running = True

'''
_METHODS = (
    '''    def _load_{name}(self, key: str, limit: int = 10) -> List[Dict[str, Any]]:
        """Load the rows of a key."""
        connection = sqlite3.connect(self.db_path)
        cursor = connection.cursor()
        cursor.execute("SELECT id, value FROM items WHERE key = ? LIMIT ?", (key, limit))
        rows = [{{"id": row[0], "value": row[1]}} for row in cursor.fetchall()]
        connection.close()
        log.debug("loaded %d rows for %s", len(rows), key)
        return rows

''',
    '''    def _ask_{name}(self, endpoint: str, message: Dict[str, Any]) -> Optional[Dict[str, Any]]:
        """Ask another agent."""
        context = zmq.Context()
        socket = context.socket(zmq.REQ)
        socket.setsockopt(zmq.RCVTIMEO, 5000)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(endpoint)
        try:
            socket.send_string(json.dumps(message))
            return json.loads(socket.recv_string())
        except zmq.Again:
            log.warning("no answer from %s", endpoint)
            return None
        finally:
            socket.close()
            context.term()

''',
    '''    def _fetch_{name}(self, query: str) -> Dict[str, Any]:
        """Fetch from the API."""
        try:
            response = requests.get(f"{{self.base_url}}/search", params={{"q": query}}, timeout=10)
            response.raise_for_status()
            data = response.json()
            self.cache[query] = data.get("items", [])
            return data
        except requests.RequestException as error:
            log.error("fetch failed: %s", error)
            return {{"items": [], "error": str(error)}}

''',
    '''    def _rank_{name}(self, items: List[Dict[str, Any]], weights: Dict[str, float]) -> List[Dict[str, Any]]:
        """Rank items by their weighted features."""
        ranked = []
        for item in items:
            score = 0.0
            for feature, weight in weights.items():
                value = item.get(feature, 0)
                if isinstance(value, (int, float)):
                    score += weight * value
                elif isinstance(value, str) and value:
                    score += weight * min(len(value) / 100.0, 1.0)
            if score > 0.25 or item.get("pinned"):
                ranked.append({{**item, "score": round(score, 4), "rank": len(ranked) + 1}})
        ranked.sort(key=lambda entry: (-entry["score"], entry.get("name", "")))
        return ranked[: self.cache.get("limit", 50)]

''',
    '''    def _summarise_{name}(self, text: str, sentences: int = 3) -> str:
        """Keep the sentences with the most frequent words."""
        words = [word.strip(".,;:!?").lower() for word in text.split() if len(word) > 3]
        counts = {{word: words.count(word) for word in set(words)}}
        best = sorted(text.split(". "), key=lambda part: sum(counts.get(word, 0) for word in part.split()))
        return ". ".join(best[-sentences:]) if best else text[:200]

''',
)
_LINES = 400


def source(number: int) -> str:
    """Return a file of about 400 lines, like an agent of a real fleet."""
    dice = random.Random(number)
    text = _HEADER.format(number=number, base=number % 20, port=5000 + number)
    method = 0
    while text.count("\n") < _LINES:
        text += dice.choices(_METHODS, weights=(1, 1, 1, 5, 4))[0].format(name=f"{number}_{method}")
        method += 1
    return text


def lay_out(folder: Path, count: int, *, broken_every: int = 0) -> Path:
    """Write ``count`` files; of those, break each so many by a bracket too many in the middle."""
    folder.mkdir(parents=True)
    for number in range(count):
        text = source(number)
        if broken_every and number % broken_every == 0:
            lines = text.split("\n")
            lines[200] += "    value = (1 + 2))" if not lines[200].strip() else ")"
            text = "\n".join(lines)
        (folder / f"agent_{number}.py").write_text(text)
    return folder


def timed(work: Callable[[], object]) -> Callable[[int], float]:
    def run(count: int) -> float:
        gc.collect()
        began = time.perf_counter()
        for _ in range(count):
            work()
        return time.perf_counter() - began

    return run


def parse_all(folder: Path) -> None:
    for file in folder.iterdir():
        ast.parse(file.read_bytes())


def peak_memory(folder: Path) -> float:
    """Return the most megabytes that a scan by command line and its processes held at once (unique to them)."""
    code = "import sys; from app.migration import Config, scan; scan([sys.argv[1]], Config(cache=False))"
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], env={**os.environ, "PYTHONPATH": os.getcwd()})
    watched = psutil.Process(process.pid)
    most = 0.0
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.02):
            try:
                family = [watched, *watched.children(recursive=True)]
                held = sum(each.memory_full_info().uss for each in family)
            except psutil.Error:
                continue
            most = max(most, held / 1e6)

    watcher = threading.Thread(target=watch)
    watcher.start()
    process.wait()
    done.set()
    watcher.join()
    return most


def main() -> None:
    quick = arguments(__doc__ or "").quick
    count, rounds = (200, 2) if quick else (1000, 3)
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["XDG_CACHE_HOME"] = str(Path(temporary) / "cache")
        whole = lay_out(Path(temporary) / "whole", count)
        broken = lay_out(Path(temporary) / "broken", count, broken_every=2)
        scan([whole], Config())  # fills the cache
        runs = interleave(
            {
                "parse": timed(lambda: parse_all(whole)),
                "cold": timed(lambda: scan([whole], Config(cache=False))),
                "cold, one process": timed(lambda: scan([whole], Config(cache=False, jobs=1))),
                "cold, half broken": timed(lambda: scan([broken], Config(cache=False))),
                "warm": timed(lambda: scan([whole], Config())),
            },
            rounds=rounds,
            count=1,
        )
        megabytes = peak_memory(whole)
    report(
        f"Scanning {count} files of {_LINES} lines, times of ast.parse in one process",
        [
            Figure("cold scan", ratio(runs, "cold", "parse"), 3.0, at_least=False),
            Figure("warm scan", ratio(runs, "warm", "parse"), 0.3, at_least=False),
            Figure("memory, all processes", megabytes, 300.0, at_least=False, unit="MB"),
            Figure("cold scan in one process", ratio(runs, "cold, one process", "parse")),
            Figure("cold scan, half of the files broken", ratio(runs, "cold, half broken", "parse")),
            Figure("ast.parse", median(runs, "parse"), unit="s"),
        ],
    )


if __name__ == "__main__":
    main()

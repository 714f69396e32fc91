"""The documentation's code runs: every page is a program, its Python blocks executed in order."""

import ast
import asyncio
import inspect
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# A fenced Python block, or a comment that holds what a page needs and a reader does not.
_BLOCK = re.compile(
    r"^<!-- setup\n(?P<setup>.*?)^-->$|^```python(?P<flags>[^\n]*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def blocks(page: Path) -> Iterator[tuple[int, str]]:
    """Return the line number and the text of each block of ``page`` that runs."""
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        if match["flags"] and "no-run" in match["flags"]:
            continue
        group = "setup" if match["setup"] is not None else "code"
        yield text.count("\n", 0, match.start(group)) + 1, match[group]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block of a page runs without an error, in order, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType(f"documentation_of_{page.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # a page's classes are found by their module
    namespace = vars(module)
    for line, source in blocks(page):
        code = compile(
            "\n" * (line - 1) + source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
        )
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(_awaited(code, namespace))
        else:
            exec(code, namespace)


async def _awaited(code: object, namespace: dict[str, object]) -> None:
    await eval(code, namespace)  # type: ignore[call-overload]


def test_a_block_marked_no_run_says_why() -> None:
    """A block that does not run has a comment above it that gives the reason."""
    silent = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```python[^\n]*no-run", text, re.MULTILINE):
            before = text[: match.start()].rstrip()
            if not re.search(r"<!-- no-run: .+ -->$", before):
                silent.append(f"{page.name}:{text.count(chr(10), 0, match.start()) + 1}")

    assert silent == []

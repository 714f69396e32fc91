"""The types of the public API, as mypy sees them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CASES = sorted(path for path in HERE.glob("*.py") if not path.name.startswith("test_"))


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_mypy_refuses_exactly_what_is_marked(case: Path) -> None:
    """Every line marked ``# refused`` is an error with that text, and no other line is."""
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(case)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    found = dict(re.findall(rf"{case.name}:(\d+): error: (.*)", result.stdout))
    marked = {
        str(number): line.partition("# refused: ")[2]
        for number, line in enumerate(case.read_text().splitlines(), 1)
        if "# refused: " in line
    }

    assert set(marked) == set(found), result.stdout
    for number, text in marked.items():
        assert text in found[number]

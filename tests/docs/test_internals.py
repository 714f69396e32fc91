"""The map of the modules is that of the modules there are."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
_ROW = re.compile(r"^\| (`[^|]*`) \|", re.MULTILINE)


def _mapped(package: str) -> list[str]:
    page = (ROOT / "docs" / "internals.md").read_text(encoding="utf-8")
    (section,) = [part for part in page.split("\n## ") if part.partition("\n")[0].endswith(f"`{package}`")]
    return sorted(name for row in _ROW.findall(section) for name in re.findall(r"`(\w+)`", row))


@pytest.mark.parametrize("package", ["core", "zmq_pool", "sql_pool", "http_pool"])
def test_each_module_of_the_pools_is_on_the_map_once(package: str) -> None:
    """A newcomer finds every module in docs/internals.md, and none that is gone."""
    there = sorted(file.stem for file in (ROOT / "app" / "pools" / package).glob("*.py") if file.stem != "__init__")
    assert _mapped(package) == there

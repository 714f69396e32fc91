"""What every test of the project keeps to."""

import ast
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def test_every_test_says_in_its_docstring_what_it_asserts() -> None:
    """Each test function has a docstring, which is what a reader of a failure sees first."""
    silent = [
        f"{path.relative_to(TESTS)}:{node.lineno}: {node.name}"
        for path in sorted(TESTS.rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]

    assert silent == []

"""What the scan finds in the labelled corpus, and in every broken copy of it."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from app.migration import Config, Kind, Report, scan
from tests.support import migration_corpus
from tests.support.migration_corpus import Label

WITHOUT_CACHE = Config(cache=False, jobs=1)


def found(report: Report) -> set[Label]:
    return {
        Label(Path(site.file).name, site.line, site.kind, site.socket_type or "", site.scope, site.hot)
        for site in report.sites
    }


def keys(labels: set[Label]) -> Counter[tuple[str, int, str]]:
    return Counter((label.file, label.line, label.kind) for label in labels)


@pytest.fixture(scope="module")
def corpus_report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return scan([migration_corpus.lay_out(tmp_path_factory.mktemp("corpus"))], WITHOUT_CACHE)


@pytest.fixture(scope="module")
def labels() -> set[Label]:
    return {label for name in migration_corpus.names() for label in migration_corpus.labels(name)}


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("broken", [False, True])
def test_precision_and_recall(corpus_report: Report, labels: set[Label], kind: Kind, broken: bool) -> None:
    """Each kind is found with a precision of 0.98 and a recall of 0.97, in files that parse and in broken ones."""
    expected = keys({each for each in labels if each.kind == kind and each.file.startswith("broken") == broken})
    got = keys(
        {each for each in found(corpus_report) if each.kind == kind and each.file.startswith("broken") == broken}
    )
    right = (expected & got).total()
    assert right >= 0.98 * got.total(), f"not sites: {sorted(got - expected)}"
    assert right >= 0.97 * expected.total(), f"missed: {sorted(expected - got)}"


def test_corpus_is_large_enough(labels: set[Label]) -> None:
    """The corpus has at least 60 files and every kind, scope and heat."""
    assert len(migration_corpus.names()) >= 60
    assert {label.kind for label in labels} == set(Kind)
    assert {(label.scope, label.hot) for label in labels} >= {
        ("module", False),
        ("init", False),
        ("method", True),
        ("method", False),
        ("loop", True),
        ("loop", False),
    }


def test_scope_socket_type_and_heat(corpus_report: Report, labels: set[Label]) -> None:
    """Scope, socket type and heat agree with the labels in at least 97 of 100 sites."""
    got = found(corpus_report)
    assert len(labels & got) >= 0.97 * len(labels), sorted(labels - got)


def test_broken_files_are_listed(corpus_report: Report) -> None:
    """Exactly the files that do not parse are listed, and their sites are uncertain and not rewritable."""
    broken = {name for name in migration_corpus.names() if name.startswith("broken")}
    assert {Path(problem.file).stem for problem in corpus_report.unparsable} == broken
    for site in corpus_report.sites:
        in_broken = Path(site.file).stem in broken
        assert (site.confidence == "low") == in_broken
        assert not (in_broken and site.rewritable)


def _damage(source: str, dice: random.Random, protected: set[int]) -> tuple[str, int]:
    """Break one line that holds no site, in a way that broken edits do; returns the line's number too."""
    lines = source.split("\n")
    candidates = [
        number for number, line in enumerate(lines, 1) if line.strip() and number not in protected and '"""' not in line
    ]
    number = dice.choice(candidates)
    line = lines[number - 1]
    lines[number - 1] = dice.choice(
        [
            f"{line})",
            f"{line.rstrip()} (",
            f"{line} =",
            f"{line} ]]",
            line.replace("(", "((", 1),
            line.replace(")", "", 1),
            f"{line}\n    )",
            f"{line}\n  , x",
            f"{line}\n<<<<<<< HEAD",
            line.rstrip(":"),
            f"   {line}",
            f"{line} print 'x'",
        ]
    ).replace("\n", " \n", 1)
    return "\n".join(lines), number


def test_one_mistake_hides_nothing_elsewhere(tmp_path: Path) -> None:
    """However one line is broken, nearly every site on the others is still found, and hardly anything else."""
    dice = random.Random(20)
    kept = seen = wrong = 0
    for name in migration_corpus.names():
        source = migration_corpus.source(name)
        sites = _scan_text(tmp_path / f"{name}.py", source).sites
        if name.startswith("broken") or not sites:
            continue
        protected = {line for site in sites for line in range(site.line, site.end_line + 1)}
        protected |= {number for number, line in enumerate(source.split("\n"), 1) if "import" in line}
        for _ in range(4):
            damaged, number = _damage(source, dice, protected)
            shift = damaged.count("\n") - source.count("\n")
            expected = Counter((site.line + (shift if site.line > number else 0), site.kind) for site in sites)
            got = Counter((site.line, site.kind) for site in _scan_text(tmp_path / f"{name}.py", damaged).sites)
            seen += expected.total()
            kept += (expected & got).total()
            wrong += (got - expected).total()
    assert seen > 500
    assert kept >= 0.97 * seen
    assert wrong <= 0.02 * seen


def _scan_text(file: Path, text: str) -> Report:
    file.write_text(text, "utf-8")
    return scan([file], WITHOUT_CACHE)

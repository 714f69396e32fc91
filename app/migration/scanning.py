"""A scan: find the files, read each (in several processes, or from the cache), resolve names across them, judge."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from app.migration import baseline, sources
from app.migration.cache import Cache, default_folder, digest
from app.migration.config import Config, UsageError
from app.migration.facts import FileFacts
from app.migration.index import Index
from app.migration.judging import sites_of
from app.migration.score import folder_weight
from app.migration.sites import FileReport, Problem, Report

# Below this many bytes a second process costs more than it saves.
_WORTH_A_PROCESS = 1_000_000
_LARGEST_CHUNK = 32


def scan(paths: Sequence[str | os.PathLike[str]], config: Config | None = None) -> Report:
    """Find every construction site under ``paths``.

    Args:
        paths: files and folders.
        config: the options; their defaults if not given.

    Returns:
        the files, worst first, with their sites, and the problems: a file that does not parse or cannot be read.

    Raises:
        UsageError: a path does not exist, or the baseline cannot be read.
    """
    config = config or Config()
    roots = [os.fspath(path) for path in paths]
    for root in roots:
        if not os.path.lexists(root):
            raise UsageError(f"{root}: there is no such file or folder")
    report = Report()
    cache = Cache(default_folder() if config.cache else None, roots)
    facts = _read_all(roots, config, cache, report)
    _judge(facts, config, report)
    if config.baseline:
        baseline.excuse(report.sites, config.folder / config.baseline)
    return report


def facts_of_file(path: str) -> FileFacts | str:
    """Read one file; a text instead of its facts says why it cannot be read."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        return f"the file cannot be read: {error.strerror}"
    return sources.facts_of(data)


def _read_all(roots: Sequence[str], config: Config, cache: Cache, report: Report) -> dict[str, FileFacts]:
    known: dict[str, FileFacts] = {}
    kept: dict[str, FileFacts] = {}
    unknown: list[tuple[str, str, int]] = []
    for found in sources.find(roots, config.exclude):
        if found.reason:
            report.problems.append(Problem(found.path, 1, "PM902", found.reason))
            continue
        try:
            with open(found.path, "rb") as file:
                data = file.read()
        except OSError as error:
            report.problems.append(Problem(found.path, 1, "PM902", f"the file cannot be read: {error.strerror}"))
            continue
        name = digest(data)
        facts = cache.get(name)
        if facts is None:
            unknown.append((found.path, name, len(data)))
        else:
            known[found.path] = kept[name] = facts
    for (path, name, _), outcome in zip(unknown, _read_unknown(unknown, config.jobs), strict=True):
        if isinstance(outcome, str):
            report.problems.append(Problem(path, 1, "PM902", outcome))
        else:
            known[path] = kept[name] = outcome
    cache.save(kept)
    return {path: known[path] for path in sorted(known)}


def _read_unknown(files: Sequence[tuple[str, str, int]], jobs: int) -> Iterator[FileFacts | str]:
    paths = [path for path, _, _ in files]
    workers = min(jobs or os.cpu_count() or 1, len(paths))
    if workers < 2 or sum(size for _, _, size in files) < _WORTH_A_PROCESS:
        yield from map(facts_of_file, paths)
        return
    # Forking is much the fastest, and safe as long as no other thread holds a lock at that moment.
    fork = sys.platform.startswith("linux") and threading.active_count() == 1
    chunk = max(1, min(_LARGEST_CHUNK, len(paths) // (workers * 4)))
    with ProcessPoolExecutor(workers, mp_context=get_context("fork" if fork else "spawn")) as executor:
        yield from executor.map(facts_of_file, paths, chunksize=chunk)


def _judge(facts: dict[str, FileFacts], config: Config, report: Report) -> None:
    index = Index(facts)
    allowed = [_absolute(config.folder / folder) for folder in config.allow]
    for path, file_facts in facts.items():
        file = FileReport(path, file_facts.lines, parsed=not file_facts.problem, ignores=file_facts.ignores)
        file.sites = sites_of(path, file_facts, index)
        file.weight, file.weight_reason = folder_weight(path, config.discarded)
        file.score = file.weight * sum(site.score for site in file.sites)
        if file_facts.problem:
            report.problems.append(Problem(path, file_facts.problem_line or 1, "PM901", file_facts.problem))
        place = _absolute(Path(path))
        for folder in allowed:
            if place == folder or place.startswith(folder + os.sep):
                for site in file.sites:
                    site.ignored = "in an allowed folder"
        for site in file.sites:
            if site.code in config.ignore:
                site.ignored = "its code is ignored in the configuration"
        report.problems.extend(_apply_ignores(file))
        report.files.append(file)
    report.files.sort(key=lambda file: (-file.score, file.file))


def _absolute(path: Path) -> str:
    return os.path.abspath(path)


def _apply_ignores(file: FileReport) -> Iterator[Problem]:
    for ignore in file.ignores:
        used = False
        for site in file.sites:
            if site.line <= ignore.line <= site.end_line and (not ignore.codes or site.code in ignore.codes):
                site.ignored = f"ignored by a comment{f': {ignore.reason}' if ignore.reason else ''}"
                used = True
        if not used:
            codes = f"[{', '.join(ignore.codes)}]" if ignore.codes else ""
            yield Problem(file.file, ignore.line, "PM903", f"`poolwire: ignore{codes}` ignores nothing: delete it")

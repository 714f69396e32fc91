"""``poolwire migrate``: find every direct connection of a code base, rank, report, rewrite, and keep it so."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from app.cli.ending import fail
from app.migration import CODES, Config, Report, UsageError, baseline, explain, load, scan
from app.migration.reports import FORMATS, render

if TYPE_CHECKING:
    from app.migration.rewriting import Rewrite

app = typer.Typer(
    help="Find every direct connection in a code base, rank them, report them, rewrite what is safe.",
    no_args_is_help=True,
    add_completion=False,
)

CLEAN, FINDINGS, USAGE, UNPARSABLE = 0, 1, 2, 3

Paths = Annotated[list[Path], typer.Argument(help="Files and folders.", show_default=False)]
Format = Annotated[str, typer.Option("--format", "-f", help=f"One of {', '.join(FORMATS)}.")]
Exclude = Annotated[list[str] | None, typer.Option(help="A pattern of paths or names not to read; may be repeated.")]
Allow = Annotated[list[str] | None, typer.Option(help="A folder where connections belong; may be repeated.")]
BaselineFile = Annotated[str | None, typer.Option("--baseline", help="The file of known findings; '' for none.")]
StrictParse = Annotated[
    bool | None, typer.Option("--strict-parse/--lenient-parse", help="Exit with 3 if a file does not parse.")
]
Jobs = Annotated[int | None, typer.Option(help="Processes; 0 for one for each core.")]
CacheOption = Annotated[bool | None, typer.Option("--cache/--no-cache", help="Keep facts in the user's cache folder.")]


@app.callback()
def migrate() -> None:
    """Find every direct connection in a code base, rank them, report them, rewrite what is safe."""


@app.command("scan")
def scan_command(
    paths: Paths,
    format: Format = "text",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the report to a file.")] = None,
    exclude: Exclude = None,
    allow: Allow = None,
    baseline: BaselineFile = None,
    strict_parse: StrictParse = None,
    jobs: Jobs = None,
    cache: CacheOption = None,
    exit_zero: Annotated[bool, typer.Option("--exit-zero", help="Exit with 0 although there are findings.")] = False,
) -> None:
    """Report every construction site, worst files first.

    Exits with 0 if there is nothing new, 1 with findings, 2 on a wrong option, 3 with files that do not parse under
    --strict-parse. Nothing in the scanned folders is ever written.
    """
    config = _config(exclude, allow, baseline, strict_parse, jobs, cache)
    if format not in FORMATS:
        _usage(f"--format {format}: there are {', '.join(FORMATS)}")
    report = _scan(paths, config)
    rendered = render(report, format)
    if output is not None:
        try:
            output.write_text(rendered, "utf-8")
        except OSError as error:
            _usage(f"--output {output}: {error.strerror}")
    else:
        sys.stdout.write(rendered)
    if format in ("json", "sarif") or output is not None:
        _list_problems(report)
    raise typer.Exit(_exit_code(report, config, exit_zero=exit_zero))


@app.command("check")
def check_command(
    paths: Paths,
    format: Annotated[str, typer.Option("--format", "-f", help="text or github.")] = "text",
    exclude: Exclude = None,
    allow: Allow = None,
    baseline: BaselineFile = None,
    strict_parse: StrictParse = None,
    jobs: Jobs = None,
    cache: CacheOption = None,
) -> None:
    """Fail on a direct connection outside the allowed folders that the baseline does not know: for CI and pre-commit.

    Exits as ``scan`` does, and says one line for each finding.
    """
    config = _config(exclude, allow, baseline, strict_parse, jobs, cache)
    if format not in ("text", "github"):
        _usage(f"--format {format}: there are text, github")
    report = _scan(paths, config)
    if format == "github":
        sys.stdout.write(render(report, "github"))
    else:
        for site in report.findings:
            advice = CODES[site.code].instead.partition(". ")[0]
            typer.echo(f"{site.file}:{site.line}:{site.column}: {site.code} {site.library}: {advice}")
        _list_problems(report)
    count = len(report.findings)
    if count:
        typer.echo(
            f"{count} direct connection(s) outside the pools. Take them by injection, or excuse one by a comment "
            f"`# poolwire: ignore[CODE] reason`",
            err=True,
        )
    raise typer.Exit(_exit_code(report, config))


@app.command("explain")
def explain_command(code: Annotated[str, typer.Argument(help="A code, such as PM201.")]) -> None:
    """Say what a code means, why it matters, and what to do instead."""
    try:
        typer.echo(explain(code))
    except KeyError as error:
        _usage(str(error.args[0]))


@app.command("baseline")
def baseline_command(
    paths: Paths,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("poolwire-baseline.json"),
    exclude: Exclude = None,
    allow: Allow = None,
    jobs: Jobs = None,
    cache: CacheOption = None,
) -> None:
    """Write the findings of today as known, so that only new ones fail."""
    config = _config(exclude, allow, "", None, jobs, cache)
    report = _scan(paths, config)
    try:
        count = baseline.write(output, report.sites)
    except OSError as error:
        _usage(f"--output {output}: {error.strerror}")
    _list_problems(report)
    typer.echo(f"{count} findings are known in {output}; name it in [tool.poolwire.migrate] baseline, or by --baseline")


@app.command("rewrite")
def rewrite_command(
    paths: Paths,
    apply: Annotated[bool, typer.Option("--apply", help="Write the files instead of showing a diff.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="Rewrite only this code; may be repeated.")] = None,
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Ask before each file.")] = False,
    exclude: Exclude = None,
    allow: Allow = None,
    cache: CacheOption = None,
) -> None:
    """Rewrite the safe patterns to injected pools: a diff by default.

    Every site that is left alone is listed with the reason. A file is written only if the result parses, a second
    rewrite changes nothing, and a new scan no longer finds the sites. Exits with 1 if there is something to rewrite
    that was not written.
    """
    config = _config(exclude, allow, "", None, None, cache)
    codes = tuple(code.upper() for code in only or ())
    for code in codes:
        if code not in CODES:
            _usage(f"--only {code}: there are {', '.join(CODES)}")
    try:
        from app.migration import rewriting
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "libcst":
            raise
        _usage("rewriting needs libcst, which the extra `migrate` brings: pip install 'poolwire[migrate]'")
    report = _scan(paths, config)
    pending = 0
    for change in rewriting.plan(report, codes):
        if change.after is not None:
            written = _offer(change, apply=apply, interactive=interactive)
            pending += not written
        for refusal in change.refusals:
            typer.echo(f"{change.file}:{refusal.line}: {refusal.code} left alone: {refusal.reason}", err=True)
    raise typer.Exit(FINDINGS if pending else CLEAN)


def _offer(change: Rewrite, *, apply: bool, interactive: bool) -> bool:
    """Show or write one file's change; returns whether it was written."""
    if interactive or not apply:
        sys.stdout.write(change.diff())
    if interactive and not typer.confirm(f"Write {change.file}?", err=True):
        return False
    if not (apply or interactive):
        return False
    try:
        change.write()
    except OSError as error:
        typer.echo(f"{change.file}: not written: {error.strerror}", err=True)
        return False
    codes = ", ".join(sorted({site.code for site in change.rewritten}))
    typer.echo(f"{change.file}: {len(change.rewritten)} sites rewritten ({codes})", err=True)
    return True


def _config(
    exclude: Sequence[str] | None,
    allow: Sequence[str] | None,
    baseline: str | None,
    strict_parse: bool | None,
    jobs: int | None,
    cache: bool | None,
) -> Config:
    """Return the configuration of the folder we are in, with what the command line says on top."""
    try:
        config = load(Path.cwd())
        if exclude:
            config = replace(config, exclude=(*config.exclude, *exclude))
        if allow:
            config = replace(config, allow=(*config.allow, *(str(Path(folder).resolve()) for folder in allow)))
        if baseline is not None:
            config = replace(config, baseline=str(Path(baseline).resolve()) if baseline else "")
        if strict_parse is not None:
            config = replace(config, strict_parse=strict_parse)
        if jobs is not None:
            config = replace(config, jobs=jobs)
        if cache is not None:
            config = replace(config, cache=cache)
    except UsageError as error:
        _usage(str(error))
    return config


def _scan(paths: Sequence[Path], config: Config) -> Report:
    try:
        return scan(paths, config)
    except UsageError as error:
        _usage(str(error))


def _usage(message: str) -> NoReturn:
    fail(message, USAGE)


def _list_problems(report: Report) -> None:
    for problem in report.problems:
        typer.echo(f"{problem.file}:{problem.line}: {problem.code} {problem.message}", err=True)


def _exit_code(report: Report, config: Config, *, exit_zero: bool = False) -> int:
    if config.strict_parse and any(problem.code in ("PM901", "PM902") for problem in report.problems):
        return UNPARSABLE
    return FINDINGS if report.findings and not exit_zero else CLEAN

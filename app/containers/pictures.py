"""A container's graph as a picture: what needs what, in which order it starts, and how long that took."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from app.containers.graph import AnyContainer, AnyProvider, Graph
from app.containers.providers import LeaseProvider, Named, Pooled
from app.containers.scopes import PerMessage

Edges = list[tuple[str, str]]


class Picture:
    """The named providers of a container and what each needs.

    Args:
        container: an instance of a container, started or not.
        report: by part, the seconds it took to start; ``Lifecycle.report``.
    """

    def __init__(self, container: AnyContainer, report: Mapping[str, float] | None = None) -> None:
        self._report = report or {}
        graph = Graph(container)
        self.names = {
            name: provider
            for name, provider in graph.names.items()
            if not isinstance(provider, Named) and not _is_view(name)
        }
        labels = {provider: name for name, provider in reversed(list(self.names.items()))}
        self.edges: Edges = sorted(
            {(name, needed) for name, provider in self.names.items() for needed in _needs(provider, labels)}
        )
        self.order = {name: number for number, wave in enumerate(graph.start_order(), 1) for name, _ in wave}

    def note(self, name: str) -> str:
        """Return what is known about when a part starts: its place in the order, and the time it took."""
        if name not in self.order:
            return ""
        seconds = self._report.get(name)
        return f"start {self.order[name]}" + ("" if seconds is None else f", {seconds * 1000:.1f} ms")

    def kind(self, name: str) -> str:
        """Return what kind of provider this is: ``pool``, ``lease``, or the class of dependency-injector."""
        provider = self.names[name]
        if isinstance(provider, Pooled):
            return "pool"
        return "lease" if isinstance(provider, (LeaseProvider, PerMessage)) else type(provider).__name__.lower()

    def text(self) -> str:
        """Return one line for each provider: its kind, when it starts, and what it needs."""
        width = max(map(len, self.names), default=0)
        lines = []
        for name in self._sorted():
            needed = ", ".join(to for start, to in self.edges if start == name)
            parts = [self.kind(name), self.note(name), f"needs {needed}" if needed else ""]
            lines.append(f"{name:<{width}}  " + "; ".join(filter(None, parts)))
        return "\n".join(lines)

    def mermaid(self) -> str:
        """Return a Mermaid flowchart, as Markdown pages show it; arrows point at what is needed."""
        ids = {name: f"n{number}" for number, name in enumerate(self.names)}
        nodes = [f'    {ids[name]}["{self._label(name, "<br/>")}"]' for name in self.names]
        return "\n".join(["flowchart LR", *nodes, *(f"    {ids[a]} --> {ids[b]}" for a, b in self.edges)])

    def dot(self) -> str:
        """Return a Graphviz graph; arrows point at what is needed."""
        nodes = [f'    "{name}" [label="{self._label(name, chr(92) + "n")}"];' for name in self.names]
        edges = [f'    "{a}" -> "{b}";' for a, b in self.edges]
        return "\n".join(["digraph container {", "    rankdir=LR;", "    node [shape=box];", *nodes, *edges, "}"])

    def _label(self, name: str, line_break: str) -> str:
        return line_break.join(filter(None, [name, self.kind(name), self.note(name)]))

    def _sorted(self) -> list[str]:
        """The names, what starts first at the top."""
        return sorted(self.names, key=lambda name: (self.order.get(name, len(self.order) + 1), name))


FORMATS: dict[str, Callable[[Picture], str]] = {"text": Picture.text, "mermaid": Picture.mermaid, "dot": Picture.dot}


def _is_view(name: str) -> bool:
    return name.count(".") > 1


def _needs(provider: AnyProvider, labels: Mapping[AnyProvider, str]) -> Iterator[str]:
    """Return the nearest named providers that ``provider`` needs, through those that have no name."""
    seen: set[Any] = set()

    def follow(inner: AnyProvider) -> Iterator[str]:
        for needed in inner.related:
            if needed in seen:
                continue
            seen.add(needed)
            if needed in labels:
                yield labels[needed]
            else:
                yield from follow(needed)

    yield from follow(provider)

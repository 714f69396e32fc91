"""The names of a whole code base: what a symbol of one file means once the other files are known."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from app.migration.facts import ClassFacts, FileFacts
from app.migration.libraries import LIBRARIES, canonical

_DEEPEST = 24
_STEP = re.compile(r"\.(\w+)|(\(\))")


@dataclass(frozen=True, slots=True)
class Value:
    """Something a symbol may stand for.

    ``what`` is ``library``, ``module``, ``class``, ``instance`` or ``function``; ``path`` is the library's path, or
    the qualified name within ``file``.
    """

    what: str
    path: str
    file: str = ""
    owner: str = ""


class Index:
    """All files' facts, and the way from a symbol to a library's name.

    Args:
        files: the facts of each file, by its path with forward slashes.
    """

    def __init__(self, files: Mapping[str, FileFacts]) -> None:
        self._files = files
        self._modules: dict[str, list[str]] = defaultdict(list)
        self._subclasses: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
        self._bases: dict[tuple[str, str], list[Value]] = {}
        self._memory: dict[tuple[str, str], tuple[Value, ...]] = {}
        for file in files:
            parts = list(PurePosixPath(file).with_suffix("").parts)
            if parts and parts[-1] == "__init__":
                parts.pop()
            for start in range(len(parts)):
                self._modules[".".join(parts[start:])].append(file)
        for file, facts in files.items():
            for name in facts.classes:
                for base in self.bases(file, name):
                    if base.what == "class":
                        self._subclasses[base.file, base.path].add((file, name))

    def library_paths(self, symbols: Iterable[str], file: str) -> list[str]:
        """Return the canonical library paths that ``symbols`` of ``file`` may stand for."""
        found: list[str] = []
        for symbol in symbols:
            if symbol[0] == "?":
                continue
            for value in self.values(symbol, file):
                for path in self._library_path(value):
                    if path not in found:
                        found.append(path)
        return found

    def _library_path(self, value: Value) -> Iterator[str]:
        if value.what == "library":
            yield canonical(value.path)
        elif value.what == "class":  # calling a subclass of a library's class builds that
            for base in self._ancestors(value.file, value.path):
                if base.what == "library":
                    yield canonical(base.path)

    def uses(self, file: str, name: str, attribute: str) -> set[str]:
        """Return the watched methods called on an attribute by a class, those it derives from, and those from it."""
        found: set[str] = set()
        seen: set[tuple[str, str]] = set()
        todo = [(file, name)]
        while todo:
            place = todo.pop()
            if place in seen:
                continue
            seen.add(place)
            facts = self._class(*place)
            if facts is None:
                continue
            found.update(facts.uses.get(attribute, ()))
            todo.extend((base.file, base.path) for base in self.bases(*place) if base.what == "class")
            todo.extend(self._subclasses[place])
        return found

    # Symbols

    def values(self, symbol: str, file: str, depth: int = 0) -> tuple[Value, ...]:
        """Return everything that ``symbol`` may stand for in ``file``."""
        known = self._memory.get((file, symbol))
        if known is not None:
            return known
        if depth > _DEEPEST:
            return ()
        self._memory[file, symbol] = ()  # a symbol defined by itself stands for nothing
        head_end = _head_end(symbol)
        values = self._head(symbol[:head_end], file, depth)
        for step in _STEP.finditer(symbol, head_end):
            following: list[Value] = []
            for value in values:
                reached = self._attribute(value, step[1], depth) if step[1] else self._called(value, depth)
                following.extend(each for each in reached if each not in following)
            values = following[:8]
        result = tuple(values)
        if depth == 0 or result:
            self._memory[file, symbol] = result
        else:
            del self._memory[file, symbol]
        return result

    def _all(self, symbols: Iterable[str], file: str, depth: int) -> list[Value]:
        return [value for symbol in symbols for value in self.values(symbol, file, depth + 1)]

    def _head(self, head: str, file: str, depth: int) -> list[Value]:
        if head.startswith(":"):
            return self._name(file, head[1:], depth)
        if head.startswith("*"):
            return self._unbound(file, head[1:], depth)
        if head.startswith("."):
            return self._module_or_member(_absolute(head, file), file, depth, relative=True)
        if head in LIBRARIES and not self._sibling(head, file):
            return [Value("library", head)]
        return [Value("module", head, file)]

    def _sibling(self, module: str, file: str) -> bool:
        folder = PurePosixPath(file).parent
        return str(folder / f"{module}.py") in self._files or str(folder / module / "__init__.py") in self._files

    def _name(self, file: str, name: str, depth: int) -> list[Value]:
        facts = self._files[file]
        found: list[Value] = []
        if name in facts.classes:
            found.append(Value("class", name, file))
        if name in facts.functions:
            found.append(Value("function", name, file))
        own = f":{name}"
        found.extend(self._all((symbol for symbol in facts.names.get(name, ()) if symbol != own), file, depth))
        return found

    def _unbound(self, file: str, name: str, depth: int) -> list[Value]:
        for star in self._files[file].stars:
            module = _absolute(star, file) if star.startswith(".") else star
            if module.partition(".")[0] in LIBRARIES:
                return [Value("library", f"{module}.{name}")]
            for other in self._find(module, file):
                found = self._member(other, name, depth)
                if found:
                    return found
        if name in LIBRARIES:
            return [Value("library", name)]
        return []

    def _find(self, module: str, near: str) -> list[str]:
        """Return the files that ``module`` may be; of several, those nearest to the file that imports it."""
        files = self._modules.get(module, [])
        if len(files) < 2:
            return files
        near_parts = PurePosixPath(near).parts

        def shared(file: str) -> int:
            return sum(1 for mine, other in zip(near_parts, PurePosixPath(file).parts, strict=False) if mine == other)

        most = max(map(shared, files))
        return [file for file in files if shared(file) == most]

    def _module_or_member(self, path: str, file: str, depth: int, *, relative: bool = False) -> list[Value]:
        values = self._imported(path, file, depth)
        if values or relative:
            return values
        return [Value("module", path, file)]

    def _imported(self, path: str, file: str, depth: int) -> list[Value]:
        """Return what ``path`` (``package.module.name``) of the code base is: a member, or a module."""
        module, _, name = path.rpartition(".")
        found = [value for other in self._find(module, file) for value in self._member(other, name, depth)]
        if not found and path in self._modules:
            found = [Value("module", path, file)]
        return found

    def _member(self, file: str, name: str, depth: int) -> list[Value]:
        if depth > _DEEPEST:
            return []
        found = self._name(file, name, depth)
        if not found and self._files[file].stars:
            found = [value for value in self._unbound(file, name, depth + 1) if value.path != name]
        return found

    def _attribute(self, value: Value, name: str, depth: int) -> Iterable[Value]:
        if value.what == "library":
            return [Value("library", canonical(f"{value.path}.{name}"))]
        if value.what == "module":
            return self._module_or_member(f"{value.path}.{name}", value.file, depth)
        if value.what in ("class", "instance"):
            return self._class_attribute(value, name, depth)
        nested = f"{value.path}.{name}"
        return [Value("class", nested, value.file)] if nested in self._files[value.file].classes else []

    def _class_attribute(self, value: Value, name: str, depth: int) -> list[Value]:
        nested = f"{value.path}.{name}"
        if nested in self._files[value.file].classes:
            return [Value("class", nested, value.file)]
        found: list[Value] = []
        for ancestor in self._ancestors(value.file, value.path):
            if ancestor.what == "library":
                suffix = "()" if value.what == "instance" else ""
                found.append(Value("library", canonical(f"{ancestor.path}{suffix}.{name}")))
                continue
            facts = self._class(ancestor.file, ancestor.path)
            if facts is None:
                continue
            found.extend(self._all(facts.attributes.get(name, ()), ancestor.file, depth))
            if name in facts.methods and not found:
                found.append(Value("function", name, ancestor.file, ancestor.path))
            if found:
                break
        if not found and depth < _DEEPEST // 2:  # a mixin uses what the classes it is mixed into define
            for file, subclass in self._subclasses.get((value.file, value.path), ()):
                facts = self._class(file, subclass)
                if facts is not None:
                    found.extend(self._all(facts.attributes.get(name, ()), file, depth + 4))
        return found

    def _called(self, value: Value, depth: int) -> Iterable[Value]:
        if value.what == "library":
            return [Value("library", canonical(f"{value.path}()"))]
        if value.what == "class":
            return [Value("instance", value.path, value.file)]
        if value.what == "function":
            facts = self._files[value.file]
            owner = facts.classes.get(value.owner)
            returned = owner.methods.get(value.path, []) if owner is not None else facts.functions.get(value.path, [])
            return self._all(returned, value.file, depth)
        return []

    # Classes

    def _class(self, file: str, name: str) -> ClassFacts | None:
        facts = self._files.get(file)
        return facts.classes.get(name) if facts is not None else None

    def bases(self, file: str, name: str) -> list[Value]:
        """Return the base classes of a class, the code base's own and the libraries'."""
        key = (file, name)
        if key not in self._bases:
            self._bases[key] = []  # a class that derives from itself, in a broken file, has no bases
            facts = self._class(file, name)
            symbols = facts.bases if facts is not None else []
            values = [value for symbol in symbols for value in self.values(symbol, file)]
            self._bases[key] = [value for value in values if value.what in ("class", "library")]
        return self._bases[key]

    def _ancestors(self, file: str, name: str) -> Iterator[Value]:
        seen: set[Value] = set()
        todo = [Value("class", name, file)]
        while todo:
            value = todo.pop(0)
            if value in seen:
                continue
            seen.add(value)
            yield value
            if value.what == "class":
                todo.extend(self.bases(value.file, value.path))


def _head_end(symbol: str) -> int:
    start = len(symbol) - len(symbol.lstrip(".:*"))
    if symbol[0] == ".":  # a relative import's dots belong to the head, and so does the first name
        match = re.match(r"\.*\w*(?:\.\w+)*", symbol)
        return match.end() if match else len(symbol)
    match = re.match(r"\w+", symbol[start:])
    return start + (match.end() if match else 0)


def _absolute(path: str, file: str) -> str:
    """Return the dotted path from the code base's root that a relative import in ``file`` means."""
    name = path.lstrip(".")
    folder = list(PurePosixPath(file).parent.parts)
    above = len(path) - len(name) - 1
    parts = folder[: len(folder) - above] if above else folder
    return ".".join([*parts, *([name] if name else [])])

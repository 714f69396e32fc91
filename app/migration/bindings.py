"""What imports, parameters and assignments bind in one file."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from app.migration.facts import FileFacts
from app.migration.names import Scope, dotted, instances_of, symbols_of

_PROPERTIES = frozenset({"property", "cached_property", "functools.cached_property"})


class Bindings:
    """Binds names in scopes, and attributes in a file's facts.

    Args:
        facts: the file's, which grow.
    """

    def __init__(self, facts: FileFacts) -> None:
        self._facts = facts

    def imported(self, node: ast.Import | ast.ImportFrom, scope: Scope) -> None:
        """Bind what an import statement brings."""
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                scope.bind(alias.asname or top, [alias.name if alias.asname else top])
            return
        module = "." * node.level + (node.module or "")
        for alias in node.names:
            if alias.name == "*":
                self._facts.stars.append(module)
            else:
                path = f"{module}.{alias.name}" if node.module else f"{module}{alias.name}"
                scope.bind(alias.asname or alias.name, [path])

    def parameters(self, node: ast.FunctionDef | ast.AsyncFunctionDef, scope: Scope, outer: Scope) -> None:
        """Bind a function's parameters: by annotation, by default, and the first of a method to its object.

        Args:
            node: the function, defined in ``outer``.
            scope: its own scope.
        """
        arguments = node.args
        positional = [*arguments.posonlyargs, *arguments.args]
        defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
        pairs = [
            *zip(positional, defaults, strict=False),
            *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=False),
        ]
        for parameter, default in pairs:
            scope.bind(parameter.arg, instances_of(parameter.annotation, outer))
            scope.bind(parameter.arg, symbols_of(default, outer))
        for rest in (arguments.vararg, arguments.kwarg):
            if rest is not None:
                scope.bind(rest.arg, [])
        if outer.kind != "class":
            return
        decorators = {dotted(decorator) for decorator in node.decorator_list}
        if positional and "staticmethod" not in decorators:
            is_class = "classmethod" in decorators or node.name == "__new__"
            scope.bound[positional[0].arg] = [f":{scope.owner}" if is_class else f":{scope.owner}()"]
        if decorators & _PROPERTIES:
            attributes = self._facts.classes[scope.owner].attributes
            attributes.setdefault(node.name, [f":{scope.owner}().{node.name}()"])

    def target(self, node: ast.expr, scope: Scope) -> tuple[str, str]:
        """Return the kind and the name of the place that an assignment to ``node`` fills, as ``Call`` has them."""
        if isinstance(node, ast.Name):
            if scope.kind == "class":
                return "attribute", f"{scope.name}.{node.id}"
            if scope.kind == "module" or node.id in scope.shared:
                return "global", node.id
            return "local", node.id
        if isinstance(node, ast.Attribute):
            return "attribute", self._own_attribute(node, scope) or dotted(node)
        if isinstance(node, (ast.Tuple, ast.List)):
            return "local", ""
        return "item", ""

    def bind(self, node: ast.expr, symbols: Iterable[str], scope: Scope) -> None:
        """Bind a name, or an attribute of the file's own classes, to ``symbols``; the parts of a tuple to nothing."""
        if isinstance(node, ast.Name):
            scope.bind(node.id, symbols)
        elif isinstance(node, ast.Attribute):
            owner, _, attribute = self._own_attribute(node, scope).rpartition(".")
            if owner:
                known = self._facts.classes[owner].attributes.setdefault(attribute, [])
                known.extend(symbol for symbol in symbols if symbol not in known)
        elif isinstance(node, (ast.Tuple, ast.List)):
            for part in node.elts:
                self.bind(part, [], scope)
        elif isinstance(node, ast.Starred):
            self.bind(node.value, [], scope)

    def _own_attribute(self, node: ast.Attribute, scope: Scope) -> str:
        for symbol in symbols_of(node.value, scope):
            if symbol.startswith(":"):
                owner = symbol[1:].removesuffix("()")
                if owner in self._facts.classes:
                    return f"{owner}.{node.attr}"
        return ""

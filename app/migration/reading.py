"""Reading one file: from its syntax tree to its facts."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Sequence

from app.migration.bindings import Bindings
from app.migration.facts import ClassFacts, FileFacts
from app.migration.frames import Frame
from app.migration.lifetimes import INITIALISERS
from app.migration.names import Scope, dotted, instances_of, symbols_of
from app.migration.recording import Recorder

_WATCHED = frozenset({
    "aclose", "bind", "bind_to_random_port", "clear", "close", "closeall", "connect", "destroy", "detach",
    "disconnect", "dispose", "drain", "listen", "shutdown", "subscribe", "term", "terminate", "wait_closed",
})  # fmt: skip
_KEEPERS = frozenset({"add", "append", "appendleft", "insert", "put", "put_nowait", "setdefault", "update"})
_CALLED_LATER = frozenset({
    "callback", "push", "push_async_callback", "addCleanup", "addfinalizer", "register", "finalize",
})  # fmt: skip
_RUNNERS = frozenset({"to_thread", "run_in_executor", "submit", "run_sync", "run_in_threadpool", "map", "starmap"})
_PASSES = (ast.Constant, ast.Name, ast.Pass, ast.Break, ast.Continue)


class Reader:
    """Walks one tree, statements before the bodies of the functions among them, so that names are bound first."""

    def __init__(self, tree: ast.Module, source: str) -> None:
        self.facts = FileFacts()
        self._recorder = Recorder(self.facts, source)
        self._module = Scope("module", "", None)
        self._frame = Frame(self._module)
        self._frames = [self._frame]
        self._later: list[tuple[ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, Scope, bool]] = []
        self._bindings = Bindings(self.facts)
        self._handlers: dict[type[ast.AST], Callable[..., None]] = {
            ast.FunctionDef: self._function, ast.AsyncFunctionDef: self._function, ast.ClassDef: self._class,
            ast.Import: self._import, ast.ImportFrom: self._import, ast.Assign: self._assign,
            ast.AnnAssign: self._annotated, ast.AugAssign: self._augmented, ast.For: self._for,
            ast.AsyncFor: self._for, ast.While: self._while, ast.With: self._with, ast.AsyncWith: self._with,
            ast.Try: self._try, ast.Return: self._return, ast.Expr: self._expression, ast.Global: self._global,
            ast.If: self._if, ast.Call: self._call, ast.Lambda: self._lambda, ast.NamedExpr: self._walrus,
            ast.ListComp: self._comprehension, ast.SetComp: self._comprehension, ast.DictComp: self._comprehension,
            ast.GeneratorExp: self._comprehension, ast.Yield: self._yield, ast.Await: self._await,
            ast.Attribute: self._attribute, ast.ExceptHandler: self._handler,
        }  # fmt: skip
        if hasattr(ast, "TryStar"):
            self._handlers[ast.TryStar] = self._try
        self._statements(tree.body)
        while self._later:
            node, scope, is_init = self._later.pop()
            self._body(node, scope, is_init)
        self._recorder.finish(self._frames, self._module)
        self._handlers.clear()  # they refer back to this object, which would then wait for the garbage collector

    # Statements

    def _statements(self, body: Sequence[ast.AST]) -> None:
        handlers = self._handlers
        for node in body:
            handler = handlers.get(node.__class__)
            if handler is not None:
                handler(node)
            elif not isinstance(node, _PASSES):
                self._children(node)

    def _visit(self, node: ast.AST | None) -> None:
        kind = node.__class__
        if kind is ast.Name or kind is ast.Constant or node is None:
            return
        handler = self._handlers.get(kind)  # type: ignore[arg-type]
        if handler is not None:
            handler(node)
        else:
            self._children(node)

    def _children(self, node: ast.AST) -> None:
        for name in node._fields:
            value = getattr(node, name, None)
            if value.__class__ is list:
                for item in value:
                    if isinstance(item, ast.AST):
                        self._visit(item)
            elif isinstance(value, ast.AST):
                self._visit(value)

    def _attribute(self, node: ast.Attribute) -> None:
        value: ast.expr = node.value
        while value.__class__ is ast.Attribute:
            value = value.value
        self._visit(value)

    def _expression(self, node: ast.Expr) -> None:
        self._visit(node.value)

    def _await(self, node: ast.Await) -> None:
        self._visit(node.value)

    def _if(self, node: ast.If) -> None:
        self._visit(node.test)
        if dotted(node.test).endswith("TYPE_CHECKING"):
            return self._statements([child for child in node.body if isinstance(child, (ast.Import, ast.ImportFrom))])
        self._statements(node.body)
        return self._statements(node.orelse)

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        self._bindings.imported(node, self._frame.scope)

    def _global(self, node: ast.Global) -> None:
        if self._frame.scope.kind != "module":
            self._frame.scope.shared.update(node.names)

    def _class(self, node: ast.ClassDef) -> None:
        outer = self._frame.scope
        name = f"{outer.name}.{node.name}" if outer.name else node.name
        self._statements(node.decorator_list)
        bases = [symbol for base in node.bases for symbol in symbols_of(base, outer)]
        for keyword in node.keywords:
            self._visit(keyword.value)
        facts = self.facts.classes.setdefault(name, ClassFacts())
        facts.bases.extend(base for base in bases if base not in facts.bases)
        outer.bind(node.name, [f":{name}"])
        scope = Scope("class", name, outer)
        previous, self._frame.scope = self._frame.scope, scope
        self._statements(node.body)
        self._frame.scope = previous
        for attribute, symbols in scope.bound.items():
            known = facts.attributes.setdefault(attribute, [])
            known.extend(symbol for symbol in symbols if symbol != f":{name}.{attribute}" and symbol not in known)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        outer = self._frame.scope
        name = f"{outer.name}.{node.name}" if outer.name else node.name
        self._statements(node.decorator_list)
        arguments = node.args
        for default in (*arguments.defaults, *arguments.kw_defaults):
            self._visit(default)
        owner = outer.name if outer.kind == "class" else outer.owner
        scope = Scope("function", name, outer, owner)
        self._bindings.parameters(node, scope, outer)
        if outer.kind == "class":
            self.facts.classes[outer.name].methods.setdefault(node.name, [])
        else:
            self.facts.functions.setdefault(name, [])
        outer.bind(node.name, [f":{name}"])
        is_init = outer.kind == "class" and node.name in INITIALISERS
        self._later.append((node, scope, is_init))

    def _lambda(self, node: ast.Lambda) -> None:
        outer = self._frame.scope
        scope = Scope("function", f"{outer.name}.<lambda>" if outer.name else "<lambda>", outer, outer.owner)
        for default in (*node.args.defaults, *node.args.kw_defaults):
            self._visit(default)
        for parameter in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            scope.bind(parameter.arg, [])
        self._later.append((node, scope, False))

    def _body(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, scope: Scope, is_init: bool) -> None:
        self._frame = Frame(scope, is_init)
        self._frames.append(self._frame)
        if isinstance(node, ast.Lambda):
            self._visit_for(node.body, "return", "")
            return
        self._statements(node.body)
        owner = self.facts.classes.get(scope.owner)
        parent = scope.parent
        if parent is not None and parent.kind == "class" and owner is not None:
            owner.methods[node.name] = self._frame.values
        else:
            self.facts.functions[scope.name] = self._frame.values

    def _assign(self, node: ast.Assign) -> None:
        self._store(node.targets, node.value)

    def _annotated(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._store([node.target], node.value)
        self._bindings.bind(node.target, instances_of(node.annotation, self._frame.scope), self._frame.scope)

    def _augmented(self, node: ast.AugAssign) -> None:
        self._visit(node.value)

    def _walrus(self, node: ast.NamedExpr) -> None:
        self._store([node.target], node.value)

    def _store(self, targets: Sequence[ast.expr], value: ast.expr) -> None:
        first = targets[0]
        if isinstance(first, ast.Tuple) and isinstance(value, ast.Tuple) and len(first.elts) == len(value.elts):
            for target, part in zip(first.elts, value.elts, strict=True):
                self._store([target], part)
            return
        goes_to, place = self._bindings.target(first, self._frame.scope)
        for other in targets[1:]:
            if isinstance(other, ast.Attribute):  # a = self.b = ...: the longest-lived place counts
                goes_to, place = self._bindings.target(other, self._frame.scope)
        self._visit_for(value, goes_to, place)
        if isinstance(value, ast.Name) and goes_to in ("attribute", "item", "global"):
            self._frame.kept[value.id] = (goes_to, place)
        symbols = symbols_of(value, self._frame.scope)
        for each in targets:
            self._bindings.bind(each, symbols, self._frame.scope)
            if not isinstance(each, ast.Name):
                self._visit(each)

    def _for(self, node: ast.For | ast.AsyncFor) -> None:
        self._visit(node.iter)
        symbols: list[str] = []
        if isinstance(node.iter, (ast.Tuple, ast.List)):
            symbols = [symbol for item in node.iter.elts for symbol in symbols_of(item, self._frame.scope)]
        if isinstance(node.target, ast.Name):
            self._frame.scope.bound.setdefault(node.target.id, []).extend(symbols)
        else:
            self._bindings.bind(node.target, [], self._frame.scope)
        self._loop(node.body, "for")
        self._statements(node.orelse)

    def _while(self, node: ast.While) -> None:
        self._frame.whiles.append(node.lineno)
        self._frame.loops += 1
        self._visit(node.test)
        self._frame.loops -= 1
        self._loop(node.body, "while")
        self._statements(node.orelse)

    def _loop(self, body: Sequence[ast.stmt], text: str) -> None:
        frame = self._frame
        outer, frame.loop_text = frame.loop_text, text
        frame.loops += 1
        self._statements(body)
        frame.loops -= 1
        frame.loop_text = outer

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> None:
        for generator in node.generators:
            self._visit(generator.iter)
            self._bindings.bind(generator.target, [], self._frame.scope)
        frame = self._frame
        outer, frame.loop_text = frame.loop_text, "comprehension"
        frame.loops += 1
        for generator in node.generators:
            self._statements(generator.ifs)
        if isinstance(node, ast.DictComp):
            self._visit(node.key)
            self._visit_for(node.value, "item", "")
        else:
            self._visit_for(node.elt, "item", "")
        frame.loops -= 1
        frame.loop_text = outer

    def _with(self, node: ast.With | ast.AsyncWith) -> None:
        for item in node.items:
            place = item.optional_vars.id if isinstance(item.optional_vars, ast.Name) else ""
            self._visit_for(item.context_expr, "with", place)
            for managed in self._managed(item.context_expr):
                self._recorder.use(self._frame, managed, "with", item.context_expr.lineno, guarded=True)
            if item.optional_vars is not None:
                self._bindings.bind(
                    item.optional_vars, symbols_of(item.context_expr, self._frame.scope), self._frame.scope
                )
        self._statements(node.body)

    def _managed(self, node: ast.expr) -> Iterable[ast.expr]:
        if isinstance(node, (ast.Name, ast.Attribute)):
            yield node
        elif isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] in ("closing", "aclosing"):
            for argument in node.args:
                self._recorder.use(self._frame, argument, "close", node.lineno, guarded=True)

    def _try(self, node: ast.Try) -> None:
        self._statements(node.body)
        self._statements(node.handlers)
        self._statements(node.orelse)
        self._frame.finallies += 1
        self._statements(node.finalbody)
        self._frame.finallies -= 1

    def _handler(self, node: ast.ExceptHandler) -> None:
        if node.name:
            self._frame.scope.bind(node.name, [])
        self._statements(node.body)

    def _return(self, node: ast.Return) -> None:
        if node.value is not None:
            self._give(node.value)

    def _yield(self, node: ast.Yield) -> None:
        if node.value is not None:
            self._give(node.value)

    def _give(self, value: ast.expr) -> None:
        self._visit_for(value, "return", "")
        for part in value.elts if isinstance(value, ast.Tuple) else [value]:
            if isinstance(part, ast.Name):
                self._frame.kept[part.id] = ("return", "")
        self._frame.values.extend(
            symbol for symbol in symbols_of(value, self._frame.scope) if symbol not in self._frame.values
        )

    # Calls

    def _visit_for(self, node: ast.expr, target: str, place: str) -> None:
        """Visit ``node``, whose value goes to ``target``."""
        if isinstance(node, ast.Await):
            self._visit_for(node.value, target, place)
        elif isinstance(node, ast.Call):
            self._call(node, target, place)
        elif isinstance(node, ast.BoolOp):
            for value in node.values:
                self._visit_for(value, target, place)
        elif isinstance(node, ast.IfExp):
            self._visit(node.test)
            self._visit_for(node.body, target, place)
            self._visit_for(node.orelse, target, place)
        elif isinstance(node, (ast.Tuple, ast.List)):
            for value in node.elts:
                self._visit_for(value, "item" if target != "return" else target, place)
        elif isinstance(node, ast.Dict):
            self._statements([key for key in node.keys if key is not None])
            for value in node.values:
                self._visit_for(value, "item" if target != "return" else target, place)
        else:
            self._visit(node)

    def _call(self, node: ast.Call, target: str = "inline", place: str = "") -> None:
        function = node.func
        name = ""
        if isinstance(function, ast.Attribute):
            name = function.attr
            self._visit(function.value)
            if name in _WATCHED:
                self._recorder.use(self._frame, function.value, name, node.lineno, guarded=bool(self._frame.finallies))
        elif isinstance(function, ast.Name):
            name = function.id
        else:
            self._visit(function)
        self._recorder.caller(self._frame, node, name)
        keeps = name in _KEEPERS
        wraps = {"closing": "closing", "aclosing": "closing"}.get(name, "")
        if name in ("enter_context", "enter_async_context"):
            wraps = "with"
        for argument in node.args:
            if keeps and isinstance(argument, ast.Name):
                self._frame.kept.setdefault(argument.id, ("item", ""))
            self._visit_for(argument, wraps or ("item" if keeps else "argument"), place if wraps else "")
        if name in _CALLED_LATER:
            for argument in node.args:
                if isinstance(argument, ast.Attribute) and argument.attr in _WATCHED:
                    self._recorder.use(self._frame, argument.value, argument.attr, node.lineno, guarded=True)
        if name in _RUNNERS:
            for argument in node.args[:2]:
                if isinstance(argument, (ast.Name, ast.Attribute)):
                    self._recorder.call(self._frame, node, argument, target, place, deferred=True)
        for keyword in node.keywords:
            self._visit_for(keyword.value, "argument", "")
            if keyword.arg == "default_factory" and isinstance(keyword.value, (ast.Name, ast.Attribute)):
                self._recorder.call(self._frame, node, keyword.value, target, place, deferred=True)
        if isinstance(function, (ast.Name, ast.Attribute)) or (name == "" and isinstance(function, ast.Call)):
            self._recorder.call(self._frame, node, function, target, place)

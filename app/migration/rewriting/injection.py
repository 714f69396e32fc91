"""Adding what a class or a function is given: keyword-only parameters, ``@inject``, and the imports."""

from __future__ import annotations

from collections.abc import Sequence

import libcst as cst

from app.migration.rewriting.tree import Edits, Refused, Source, code, dotted, statement

POOLS = {"zmq_pool": "ZMQPool", "sql_pool": "SQLPool", "http_pool": "HTTPPool"}
_LONGEST_LINE = 100
_PASS = cst.SimpleStatementSuite(body=[cst.Pass()])
_CONTAINERS = "app.containers"


def require_pool(source: Source, edits: Edits, function: cst.FunctionDef, pool: str) -> str:
    """Have ``pool`` injected for ``function`` and return the expression by which it is reached there.

    A plain function gets a parameter, and so does ``__init__``, which keeps it in an attribute for the other methods.
    """
    owner = source.owner(function)
    decorators = {dotted(_name(decorator)) for decorator in function.decorators}
    if owner is None:
        _inject_into(source, edits, function, pool)
        return pool
    if decorators & {"staticmethod", "classmethod"}:
        raise Refused("in a static or class method, which has no object to keep a pool in")
    if any(dotted(_name(decorator)).rpartition(".")[2] == "dataclass" for decorator in owner.decorators):
        raise Refused("in a dataclass, whose __init__ is generated")
    itself = self_name(function)
    init = find_init(owner)
    if init is function:
        _inject_into(source, edits, function, pool)
        _keep(source, edits, function, pool, itself)
        return pool
    if init is None:
        _make_init(source, edits, owner, pool)
    else:
        if not _keeps(init, pool):
            _inject_into(source, edits, init, pool)
            _keep(source, edits, init, pool, self_name(init))
    return f"{itself}.{pool}"


def _name(decorator: cst.Decorator) -> cst.BaseExpression:
    inner = decorator.decorator
    return inner.func if isinstance(inner, cst.Call) else inner


def self_name(function: cst.FunctionDef) -> str:
    """Return the name of a method's own object."""
    parameters = [*function.params.posonly_params, *function.params.params]
    if not parameters:
        raise Refused("in a method without a parameter for its object")
    return parameters[0].name.value


def find_init(owner: cst.ClassDef) -> cst.FunctionDef | None:
    """Return the class's own ``__init__``."""
    for each in owner.body.body:
        if isinstance(each, cst.FunctionDef) and each.name.value == "__init__":
            return each
    return None


def parameter_names(function: cst.FunctionDef) -> set[str]:
    """Return the names of a function's parameters."""
    parameters = function.params
    return {each.name.value for each in (*parameters.posonly_params, *parameters.params, *parameters.kwonly_params)}


def _inject_into(source: Source, edits: Edits, function: cst.FunctionDef, pool: str) -> None:
    has_parameter = pool in parameter_names(function)
    if has_parameter and not any(dotted(_name(each)) == "inject" for each in function.decorators):
        raise Refused(f"a parameter named {pool} is there already")
    if not has_parameter:
        edits.on(function, lambda updated: _with_parameter(updated, pool))
    require_import(source, edits, _CONTAINERS, "Provide")
    require_import(source, edits, _CONTAINERS, "inject")
    require_import(source, edits, f"app.pools.{pool}", POOLS[pool])


def _with_parameter(function: cst.FunctionDef, pool: str) -> cst.FunctionDef:
    template = cst.parse_statement(f'@inject\ndef f(*, {pool}: {POOLS[pool]} = Provide["{pool}"]): pass')
    assert isinstance(template, cst.FunctionDef)
    parameters = function.params
    separator = template.params.star_arg
    star = separator if isinstance(parameters.star_arg, cst.MaybeSentinel) else parameters.star_arg
    several_lines = _on_lines_of_its_own(parameters)
    comma: cst.Comma | cst.MaybeSentinel = cst.MaybeSentinel.DEFAULT
    keyword_only = list(parameters.kwonly_params)
    positional = list(parameters.params)
    new = template.params.kwonly_params[0].with_changes(comma=comma)
    if several_lines is not None:
        # One parameter on each line: the new ones follow the style of the last.
        between, last = several_lines
        if keyword_only:
            keyword_only[-1] = keyword_only[-1].with_changes(comma=between)
        elif positional:
            positional[-1] = positional[-1].with_changes(comma=between)
            if isinstance(star, cst.ParamStar):
                star = cst.ParamStar(comma=between)
        new = new.with_changes(comma=last)
    params = parameters.with_changes(params=positional, star_arg=star, kwonly_params=[*keyword_only, new])
    opened = function.whitespace_before_params
    if several_lines is None and _too_long(function, params):
        opened, params = _on_separate_lines(params)
    decorators = function.decorators
    if not any(dotted(_name(each)) == "inject" for each in decorators):
        # Innermost, so that whatever the other decorators call is the injected function.
        decorators = [*decorators, template.decorators[0]]
    return function.with_changes(params=params, decorators=decorators, whitespace_before_params=opened)


def _on_lines_of_its_own(parameters: cst.Parameters) -> tuple[cst.Comma, cst.Comma] | None:
    """Return the comma between two parameters and the last one, if the parameters stand on lines of their own."""
    named = [*parameters.posonly_params, *parameters.params, *parameters.kwonly_params]
    if len(named) < 2 or parameters.star_kwarg is not None:
        return None
    between, last = named[-2].comma, named[-1].comma
    if not isinstance(between, cst.Comma) or not isinstance(last, cst.Comma):
        return None
    if not isinstance(between.whitespace_after, cst.ParenthesizedWhitespace):
        return None
    return between, last


def _too_long(function: cst.FunctionDef, params: cst.Parameters) -> bool:
    text = code(function.with_changes(params=params, decorators=[], leading_lines=[], body=_PASS))
    return "\n" not in text.strip() and len(text) > _LONGEST_LINE


def _on_separate_lines(params: cst.Parameters) -> tuple[cst.BaseParenthesizableWhitespace, cst.Parameters]:
    """Put each parameter on a line of its own; returns also the white space before the first."""
    between = cst.ParenthesizedWhitespace(indent=True, last_line=cst.SimpleWhitespace("    "))
    comma = cst.Comma(whitespace_after=between)
    last = cst.Comma(whitespace_after=cst.ParenthesizedWhitespace(indent=True))

    def spread(some: Sequence[cst.Param]) -> list[cst.Param]:
        return [each.with_changes(comma=comma) for each in some]

    star = params.star_arg
    if isinstance(star, (cst.Param, cst.ParamStar)):
        star = star.with_changes(comma=comma)
    keyword_only = spread(params.kwonly_params)
    rest = params.star_kwarg
    if rest is not None:
        rest = rest.with_changes(comma=last)
    else:
        keyword_only[-1] = keyword_only[-1].with_changes(comma=last)
    slash = params.posonly_ind
    if isinstance(slash, cst.ParamSlash):
        slash = slash.with_changes(comma=comma)
    return between, params.with_changes(
        posonly_params=spread(params.posonly_params),
        posonly_ind=slash,
        params=spread(params.params),
        star_arg=star,
        kwonly_params=keyword_only,
        star_kwarg=rest,
    )


def _keeps(init: cst.FunctionDef, pool: str) -> bool:
    if not isinstance(init.body, cst.IndentedBlock):
        return False
    target = f"{self_name(init)}.{pool}"
    for line in init.body.body:
        if isinstance(line, cst.SimpleStatementLine):
            for small in line.body:
                if isinstance(small, cst.Assign) and any(dotted(each.target) == target for each in small.targets):
                    return True
    return False


def _keep(source: Source, edits: Edits, init: cst.FunctionDef, pool: str, itself: str) -> None:
    if _keeps(init, pool):
        return
    if not isinstance(init.body, cst.IndentedBlock):
        raise Refused("__init__ is written on one line")

    def change(block: cst.IndentedBlock) -> cst.IndentedBlock:
        body = list(block.body)
        behind = 1 if body and _is_docstring(body[0]) else 0
        body.insert(behind, statement(f"{itself}.{pool} = {pool}"))
        return block.with_changes(body=body)

    edits.on(init.body, change)


def _is_docstring(node: cst.CSTNode) -> bool:
    return (
        isinstance(node, cst.SimpleStatementLine)
        and isinstance(node.body[0], cst.Expr)
        and isinstance(node.body[0].value, (cst.SimpleString, cst.ConcatenatedString))
    )


def _make_init(source: Source, edits: Edits, owner: cst.ClassDef, pool: str) -> None:
    if not isinstance(owner.body, cst.IndentedBlock):
        raise Refused("the class is written on one line")
    typed = f'{pool}: {POOLS[pool]} = Provide["{pool}"]'
    bases = [dotted(base.value) for base in owner.bases]
    if bases in ([], ["object"]):
        text = f"@inject\ndef __init__(self, *, {typed}):\n    self.{pool} = {pool}\n"
    else:
        text = (
            f"@inject\ndef __init__(self, *args, {typed}, **kwargs):\n"
            f"    self.{pool} = {pool}\n    super().__init__(*args, **kwargs)\n"
        )
    require_import(source, edits, _CONTAINERS, "Provide")
    require_import(source, edits, _CONTAINERS, "inject")
    require_import(source, edits, f"app.pools.{pool}", POOLS[pool])

    def change(block: cst.IndentedBlock) -> cst.IndentedBlock:
        body = list(block.body)
        behind = 0
        while behind < len(body) and not isinstance(body[behind], cst.FunctionDef):
            behind += 1
        lines = [cst.EmptyLine(indent=False)] if behind else []
        parsed = cst.parse_statement(text)
        body.insert(behind, parsed.with_changes(leading_lines=lines))
        if behind + 1 < len(body) and not behind:
            following = body[behind + 1]
            if isinstance(following, cst.FunctionDef) and not following.leading_lines:
                body[behind + 1] = following.with_changes(leading_lines=[cst.EmptyLine(indent=False)])
        return block.with_changes(body=body)

    edits.on(owner.body, change)


def require_import(source: Source, edits: Edits, module: str, name: str) -> None:
    """Have ``from module import name`` in the file, or ``import module`` if ``name`` is empty."""
    known = source.imports.get(name or module)
    wanted = f"{module}.{name}" if name else module
    if known == wanted:
        return
    if known is not None:
        raise Refused(f"the name {name or module} means something else in this file: {known}")
    source.imports[name or module] = wanted
    edits.on(source.module, lambda updated: _with_import(updated, module, name))


def _with_import(tree: cst.Module, module: str, name: str) -> cst.Module:
    body = list(tree.body)
    if name:
        for index, line in enumerate(body):
            if isinstance(line, cst.SimpleStatementLine) and len(line.body) == 1:
                small = line.body[0]
                if (
                    isinstance(small, cst.ImportFrom)
                    and not isinstance(small.names, cst.ImportStar)
                    and not small.relative
                    and small.module is not None
                    and dotted(small.module) == module
                ):
                    body[index] = line.with_changes(body=[_extended(small, name)])
                    return tree.with_changes(body=body)
    text = f"from {module} import {name}" if name else f"import {module}"
    position = _behind_imports(body)
    body.insert(position, statement(text))
    return tree.with_changes(body=body)


def _extended(line: cst.ImportFrom, name: str) -> cst.ImportFrom:
    assert not isinstance(line.names, cst.ImportStar)
    names = [code for code in line.names if isinstance(code, cst.ImportAlias)]
    plain = cst.ImportAlias(name=cst.Name(name))
    if line.lpar is not None or any(alias.asname for alias in names):
        last = names[-1].with_changes(comma=cst.Comma(whitespace_after=cst.SimpleWhitespace(" ")))
        return line.with_changes(names=[*names[:-1], last, plain])
    ordered = sorted([*(dotted(alias.name) for alias in names), name], key=lambda each: (each.islower(), each))
    return line.with_changes(names=_aliases(ordered))


def _aliases(names: list[str]) -> list[cst.ImportAlias]:
    comma = cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
    return [
        cst.ImportAlias(name=cst.Name(name), comma=comma if index + 1 < len(names) else cst.MaybeSentinel.DEFAULT)
        for index, name in enumerate(names)
    ]


def _behind_imports(body: Sequence[cst.CSTNode]) -> int:
    position = 0
    for index, line in enumerate(body):
        if isinstance(line, (cst.FunctionDef, cst.ClassDef)):
            break  # defaults are evaluated here, and need the names
        if isinstance(line, cst.SimpleStatementLine):
            if any(isinstance(small, (cst.Import, cst.ImportFrom)) for small in line.body):
                position = index + 1
            elif index == 0 and _is_docstring(line):
                position = 1
    return position

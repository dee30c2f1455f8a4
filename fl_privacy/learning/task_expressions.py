"""Expressions of custom tasks: what has a value, how it is computed, and that everything else is refused."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fl_privacy.learning.task_values import (
    BUILTINS,
    FIELDS,
    KEYWORDS,
    LONGEST,
    METHODS,
    OPERATORS,
    Meter,
    Refused,
    binary,
    call_method,
    field,
    item,
    set_item,
)

NOT_LISTED = "only what is listed for custom tasks can be used"
_METHOD_NAMES: frozenset[str] = frozenset().union(*METHODS.values())
_FIELD_NAMES: frozenset[str] = frozenset().union(*FIELDS.values())


class Problem(NamedTuple):
    """Something in a source that is not part of the language."""

    line: int
    what: str
    why: str


class Frame(NamedTuple):
    """One call in progress: its names, and what it may still do."""

    names: dict[str, Any]
    meter: Meter


Step = Callable[[Frame], Any]  # of an expression: its value; of a statement: None, or how it leaves its block


def forms(node: ast.AST) -> int:
    """How many forms a piece of source consists of: what it costs to go through it once."""
    return sum(1 for _ in ast.walk(node))


class ExpressionReader:
    """Reads expressions into steps, under the names that have been given a meaning so far."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.modules: dict[str, Mapping[str, Any]] = {}
        self.constants: dict[str, Any] = {}
        self.functions: dict[str, Callable[[Sequence[Any], Meter], Any]] = {}
        self.locals: set[str] = set()

    def refuse(self, node: ast.AST, what: str, why: str = NOT_LISTED) -> Step:
        """Note a problem; the step in its place is never run."""
        self.problems.append(Problem(getattr(node, "lineno", 1), what, why))
        return lambda frame: None

    def value(self, node: ast.expr) -> Step:
        """The step that computes an expression."""
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None as constant):
                return lambda frame: constant
            case ast.Name(id=name):
                return self._name(node, name)
            case ast.Attribute():
                return self._attribute(node)
            case ast.Call():
                return self._call(node)
            case ast.BinOp(left=left, op=op, right=right):
                return self.operation(node, type(op), self.value(left), self.value(right))
            case ast.Compare():
                return self._comparison(node)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = self.value(operand)
                return lambda frame: not inner(frame)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.operation(node, ast.Mult, lambda frame: -1, self.value(operand))
            case ast.BoolOp(op=op, values=values):
                return _chain(isinstance(op, ast.And), [self.value(each) for each in values])
            case ast.IfExp(test=test, body=body, orelse=orelse):
                decide, then, other = self.value(test), self.value(body), self.value(orelse)
                return lambda frame: then(frame) if decide(frame) else other(frame)
            case ast.List(elts=elements):
                return _built(list, self._all(elements))
            case ast.Tuple(elts=elements):
                return _built(tuple, self._all(elements))
            case ast.Dict(keys=keys, values=values) if None not in keys:
                return _mapping(self._all([key for key in keys if key]), self._all(values))
            case ast.Subscript(value=target, slice=index):
                owner, place = self.value(target), self.value(index)
                return lambda frame: item(owner(frame), place(frame), frame.meter)
            case ast.Slice(lower=lower, upper=upper, step=step):
                parts = [self.value(part) if part else _nothing for part in (lower, upper, step)]
                return lambda frame: slice(*(part(frame) for part in parts))
            case ast.ListComp(elt=element, generators=[ast.comprehension(is_async=0) as loop]):
                return self._comprehension(node, loop, self.value(element))
        return self.refuse(node, type(node).__name__)

    def target(self, node: ast.expr) -> Callable[[Frame, Any], None]:
        """How a value is stored in what stands left of ``=`` or after ``for``."""
        match node:
            case ast.Name(id=name):
                return lambda frame, value: frame.names.__setitem__(name, value)
            case ast.Subscript(value=target, slice=index):
                owner, place = self.value(target), self.value(index)
                return lambda frame, value: set_item(owner(frame), place(frame), value, frame.meter)
            case ast.Tuple(elts=elements):
                return _unpacked([self.target(element) for element in elements])
        self.refuse(node, ast.unparse(node)[:60], "values are stored in names and in entries of lists, dicts and tensors only")
        return lambda frame, value: None

    def operation(self, node: ast.AST, kind: type[ast.AST], left: Step, right: Step) -> Step:
        """An arithmetic operation or a comparison."""
        if kind not in OPERATORS:
            return self.refuse(node, kind.__name__)
        return lambda frame: binary(kind, left(frame), right(frame), frame.meter)

    def _all(self, nodes: Sequence[ast.expr]) -> list[Step]:
        return [self.value(node) for node in nodes]

    def _name(self, node: ast.AST, name: str) -> Step:
        if name in self.locals:
            return lambda frame: frame.names[name]
        if name in self.constants:
            constant = self.constants[name]
            return lambda frame: constant
        return self.refuse(node, name, "this name holds no value; modules and functions can only be called")

    def _attribute(self, node: ast.Attribute) -> Step:
        match node:
            case ast.Attribute(value=ast.Name(id=module), attr=name) if module in self.modules:
                known = self.modules[module].get(name)
                if known is None or callable(known):
                    return self.refuse(node, f"{module}.{name}")
                return lambda frame: known
            case ast.Attribute(value=target, attr=name) if name in _FIELD_NAMES:
                owner = self.value(target)
                return lambda frame: field(owner(frame), name, frame.meter)
        return self.refuse(node, f".{node.attr}")

    def _call(self, node: ast.Call) -> Step:
        arguments = self._all(node.args)
        named = {keyword.arg: self.value(keyword.value) for keyword in node.keywords if keyword.arg in KEYWORDS}
        for keyword in node.keywords:
            if keyword.arg not in KEYWORDS:
                self.refuse(node, f"{keyword.arg or '**'}=")
        match node.func:
            case ast.Name(id=name) if name in self.functions and not named:
                function = self.functions[name]
                return lambda frame: function([argument(frame) for argument in arguments], frame.meter)
            case ast.Name(id=name) if name in BUILTINS:
                return _listed(BUILTINS[name], arguments, named, iterates=True)
            case ast.Attribute(value=ast.Name(id=module), attr=name) if module in self.modules:
                known = self.modules[module].get(name)
                return _listed(known, arguments, named) if callable(known) else self.refuse(node, f"{module}.{name}")
            case ast.Attribute(value=target, attr=name) if name in _METHOD_NAMES:
                owner = self.value(target)
                return lambda frame: call_method(
                    owner(frame),
                    name,
                    [argument(frame) for argument in arguments],
                    {key: value(frame) for key, value in named.items()},
                    frame.meter,
                )
        return self.refuse(node, f"{ast.unparse(node.func)[:60]}(...)")

    def _comparison(self, node: ast.Compare) -> Step:
        match node:
            case ast.Compare(left=left, ops=[ast.Is() | ast.IsNot() as op], comparators=[ast.Constant(value=None)]):
                value, wanted = self.value(left), isinstance(op, ast.Is)
                return lambda frame: (value(frame) is None) == wanted
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return self.operation(node, type(op), self.value(left), self.value(right))
        values = [node.left, *node.comparators]
        pairs = [ast.Compare(a, [op], [b], lineno=node.lineno) for a, op, b in zip(values, node.ops, values[1:], strict=False)]
        return _chain(True, [self._comparison(pair) for pair in pairs])

    def _comprehension(self, node: ast.AST, loop: ast.comprehension, element: Step) -> Step:
        items, store, tests = self.value(loop.iter), self.target(loop.target), self._all(loop.ifs)
        cost = forms(node)

        def run(frame: Frame) -> Any:
            inner, found = Frame(dict(frame.names), frame.meter), []
            for entry in frame.meter.iterate(items(frame)):
                frame.meter.spend(cost)
                store(inner, entry)
                if all(test(inner) for test in tests):
                    found.append(element(inner))
            return frame.meter.keep(found)

        return run


def _listed(function: Callable[..., Any], arguments: Sequence[Step], named: Mapping[str, Step], iterates: bool = False) -> Step:
    def run(frame: Frame) -> Any:
        values = [argument(frame) for argument in arguments]
        options = {key: value(frame) for key, value in named.items()}
        frame.meter.admit([*values, *options.values()])
        if iterates and any(hasattr(value, "ndim") and value.ndim and len(value) > LONGEST for value in values):
            raise Refused("a loop over a tensor that is too long")
        return frame.meter.keep(function(*values, **options))

    return run


def _chain(is_and: bool, values: Sequence[Step]) -> Step:
    def run(frame: Frame) -> Any:
        result: Any = is_and
        for value in values:
            result = value(frame)
            if bool(result) != is_and:
                break
        return result

    return run


def _built(kind: Callable[[Any], Any], elements: Sequence[Step]) -> Step:
    return lambda frame: frame.meter.keep(kind([element(frame) for element in elements]))


def _mapping(keys: Sequence[Step], values: Sequence[Step]) -> Step:
    def run(frame: Frame) -> Any:
        known = [key(frame) for key in keys]
        frame.meter.admit(known)
        return frame.meter.keep({key: value(frame) for key, value in zip(known, values, strict=True)})

    return run


def _unpacked(stores: Sequence[Callable[[Frame, Any], None]]) -> Callable[[Frame, Any], None]:
    def store_all(frame: Frame, value: Any) -> None:
        entries = frame.meter.iterate(value)
        for store, entry in zip(stores, entries, strict=True):
            store(frame, entry)

    return store_all


def _nothing(frame: Frame) -> None:
    return None

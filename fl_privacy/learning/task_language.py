"""The language of custom tasks: a small part of Python, interpreted here and never executed by Python itself.

Custom code runs on private text, so what it may do is not guessed from its looks but bounded: this module turns a source into
steps of its own, and knows no others than those below. There are no classes, exceptions, decorators, generators, ``while``,
``global`` or nested functions; a function calls only functions above it; an import binds a table of listed functions; an
attribute is a listed one of an object of a listed type; names outside functions hold constants. A call therefore sees its
arguments and nothing else, leaves nothing behind, and does a bounded amount of work. Anything not listed is refused before
any record is read.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fl_privacy.errors import PlanError
from fl_privacy.learning.task_expressions import ExpressionReader, Frame, Problem, Step, forms
from fl_privacy.learning.task_values import BUILTINS, MODULES, WORK, Meter

_BREAK, _CONTINUE = object(), object()


class TaskFailed(Exception):
    """A call of a custom task ended without a result. Tells the line and the error's class, never a value."""

    def __init__(self, line: int, kind: str) -> None:
        super().__init__(f"line {line}: {kind}")


class _Returned(NamedTuple):
    value: Any


class Program:
    """A checked source, ready to be called."""

    def __init__(self, source: str) -> None:
        """Raises: PlanError that names the first line outside the language."""
        reader = _Reader(source)
        if reader.problems:
            first = min(reader.problems)
            raise PlanError(f"custom_task, line {first.line}: {first.what}: {first.why}")
        self._functions = reader.functions

    def call(self, name: str, *arguments: Any, work: int = WORK) -> Any:
        """Call a function. Equal arguments give equal results, whatever was called before. Raises: TaskFailed."""
        return self._functions[name](arguments, Meter(work))


def outline(source: str) -> tuple[Mapping[str, int], tuple[Problem, ...]]:
    """The number of parameters of each function of a source, and everything in it that is not part of the language."""
    reader = _Reader(source)
    return reader.parameters, tuple(sorted(reader.problems))


class _Reader(ExpressionReader):
    """Reads a source into functions, and notes every form, name or attribute that it does not know."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.parameters: dict[str, int] = {}
        try:
            for statement in ast.parse(source).body:
                self._outer(statement)
        except (SyntaxError, ValueError) as problem:
            self.problems.append(Problem(getattr(problem, "lineno", None) or 1, "the source", "this is not Python"))
        except (RecursionError, MemoryError):
            self.problems.append(Problem(1, "the source", "its expressions are nested too deeply"))

    def _outer(self, node: ast.stmt) -> None:
        match node:
            case ast.Import(names=names):
                for alias in names:
                    self._import(node, alias.name, alias.asname or alias.name)
            case ast.ImportFrom(module=module, names=names, level=0):
                for alias in names:
                    self._import(node, f"{module}.{alias.name}", alias.asname or alias.name)
            case ast.FunctionDef():
                self._function(node)
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                self.constants[self.new_name(node, name)] = self._constant(value)
            case ast.Expr(value=ast.Constant(value=str())):
                pass
            case _:
                self.refuse(node, type(node).__name__, "outside functions there are imports, functions and constants only")

    def _import(self, node: ast.AST, module: str, name: str) -> None:
        if module not in MODULES:
            self.refuse(node, f"import {module}", f"a custom task can import {', '.join(MODULES)} only")
        elif "." in name:
            self.refuse(node, f"import {module}", "give it a name of its own: import ... as ...")
        else:
            self.modules[self.new_name(node, name)] = MODULES[module]

    def _constant(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None as value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return -value
            case ast.Tuple(elts=elements):
                return tuple(self._constant(element) for element in elements)
        self.refuse(node, ast.unparse(node)[:60], "outside functions, values are numbers, texts and tuples of them: no state")
        return None

    def _function(self, node: ast.FunctionDef) -> None:
        told = node.args
        if node.decorator_list or told.vararg or told.kwarg or told.kwonlyargs or told.posonlyargs or told.defaults:
            self.refuse(node, f"def {node.name}", "functions have plain parameters, without defaults, * or decorators")
        names = [argument.arg for argument in told.args]
        self.locals = {self.new_name(node, name) for name in names}
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store) and inner.id not in self.locals:
                self.locals.add(self.new_name(inner, inner.id))
        steps = self._block(node.body)

        def call(arguments: Sequence[Any], meter: Meter) -> Any:
            if len(arguments) != len(names):
                raise TypeError("wrong number of arguments")
            outcome = _run(steps, Frame(dict(zip(names, arguments, strict=True)), meter))
            return outcome.value if isinstance(outcome, _Returned) else None

        self.functions[self.new_name(node, node.name)] = call  # only now: a function that calls itself could go on for ever
        self.parameters[node.name] = len(names)
        self.locals = set()

    def new_name(self, node: ast.AST, name: str) -> str:
        """A name that the source gives to something of its own."""
        known = (BUILTINS, self.modules, self.constants, self.functions)
        if any(name in table for table in known) or not name.isascii() or (name.startswith("_") and name != "_"):
            self.refuse(
                node, ascii(name)[1:-1], "a name is in plain letters, starts with no underscore, and has one meaning only"
            )
        return name

    def _block(self, body: Sequence[ast.stmt]) -> tuple[Step, ...]:
        return tuple(_located(node, self._statement(node)) for node in body)

    def _statement(self, node: ast.stmt) -> Step:
        match node:
            case ast.Expr(value=value):
                return _discarded(self.value(value))
            case ast.Assign(targets=[target], value=value):
                return self._assign(target, self.value(value))
            case ast.AugAssign(target=ast.Name() | ast.Subscript() as target, op=op, value=value):
                return self._assign(target, self.operation(node, type(op), self.value(target), self.value(value)))
            case ast.Return(value=None):
                return lambda frame: _Returned(None)
            case ast.Return(value=ast.expr() as value):
                result = self.value(value)
                return lambda frame: _Returned(result(frame))
            case ast.If(test=test, body=body, orelse=orelse):
                decide, then, other = self.value(test), self._block(body), self._block(orelse)
                return lambda frame: _run(then if decide(frame) else other, frame)
            case ast.For(target=target, iter=items, body=body, orelse=[]):
                return _loop(self.value(items), self.target(target), self._block(body))
            case ast.Break():
                return lambda frame: _BREAK
            case ast.Continue():
                return lambda frame: _CONTINUE
            case ast.Pass():
                return lambda frame: None
        return self.refuse(node, type(node).__name__)

    def _assign(self, target: ast.expr, value: Step) -> Step:
        store = self.target(target)
        return lambda frame: store(frame, value(frame))


def _run(steps: Sequence[Step], frame: Frame) -> Any:
    for step in steps:
        outcome = step(frame)
        if outcome is not None:
            return outcome
    return None


def _loop(items: Step, store: Callable[[Frame, Any], None], steps: Sequence[Step]) -> Step:
    def run(frame: Frame) -> Any:
        for entry in frame.meter.iterate(items(frame)):
            frame.meter.spend(1)
            store(frame, entry)
            outcome = _run(steps, frame)
            if outcome is _BREAK:
                break
            if isinstance(outcome, _Returned):
                return outcome
        return None

    return run


def _located(node: ast.stmt, step: Step) -> Step:
    line, cost = node.lineno, sum(1 + forms(part) for part in ast.iter_child_nodes(node) if not isinstance(part, ast.stmt))

    def run(frame: Frame) -> Any:
        try:
            frame.meter.spend(cost)
            return step(frame)
        except TaskFailed:
            raise
        except Exception as problem:  # noqa: BLE001 - whatever it is may depend on the record, so it must not stop the worker
            raise TaskFailed(line, type(problem).__name__) from None

    return run


def _discarded(value: Step) -> Step:
    def run(frame: Frame) -> None:
        value(frame)

    return run

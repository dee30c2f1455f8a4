"""What a static look at submitted Python finds: places that a reader should see, by severity, with the reason.

A static look proves nothing. Python offers endless ways to say the same thing, so code without findings can still do harm;
therefore the guard never runs code other than its own template, whatever is found or not. For custom tasks inside the template
the claim rests on ``learning.task_language``, which runs what it knows and nothing else; findings only explain its refusals.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field

from fl_privacy.messages import Message
from fl_privacy.printable import printable

Severity = Literal["critical", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "note")
MOST = 200  # findings; more say no more
LONG_TEXT = 200  # characters of a literal

KNOWN_IMPORTS = frozenset({"__future__", "math", "torch", "torch.nn.functional", "torch.nn"})
_FILES = "it reaches files: rows, keys and the ledger are files"
_NETWORK = "it reaches the network, past everything that the guard counts"
_PROCESS = "it starts or steers other programs, which nothing here watches"
_UNCOUNTED = "training outside the guard: no noise that the guard has drawn, and nothing written in the ledger"
_INSIDE = "it reaches into the guard or the datasite instead of sending a message"
_HIDDEN = "it runs code that cannot be read here"
_TOLD = "what is printed or logged leaves the guard without noise"
MODULES: Mapping[str, str] = {
    **dict.fromkeys(("os", "pathlib", "shutil", "io", "tempfile", "glob", "sqlite3", "mmap", "fileinput", "zipfile"), _FILES),
    **dict.fromkeys(("socket", "http", "urllib", "requests", "httpx", "aiohttp", "ftplib", "smtplib", "ssl"), _NETWORK),
    **dict.fromkeys(("subprocess", "multiprocessing", "signal", "ctypes", "pty", "asyncio", "threading"), _PROCESS),
    **dict.fromkeys(("opacus", "transformers", "peft"), _UNCOUNTED),
    **dict.fromkeys(("fl_privacy", "syft", "inspect", "gc", "sys"), _INSIDE),
    **dict.fromkeys(("importlib", "runpy", "code", "pickle", "marshal", "base64", "codecs", "builtins", "dill"), _HIDDEN),
    **dict.fromkeys(("logging", "warnings", "syslog"), _TOLD),
}
_INDIRECT = "it reaches names and attributes that do not stand in the text"
CALLS: Mapping[str, str] = {
    **dict.fromkeys(("exec", "eval", "compile", "__import__", "breakpoint"), _HIDDEN),
    **dict.fromkeys(("getattr", "setattr", "delattr", "globals", "locals", "vars", "dir", "type", "super"), _INDIRECT),
    **dict.fromkeys(("print", "input"), _TOLD),
    "open": _FILES,
}
ATTRIBUTES: Mapping[str, str] = {
    **dict.fromkeys(("read_text", "read_bytes", "write_text", "write_bytes", "unlink", "rmtree", "savez", "to_csv"), _FILES),
    **dict.fromkeys(("environ", "getenv", "environb"), "the environment can hold passwords and keys"),
    **dict.fromkeys(("urlopen", "sendall", "sendto", "connect", "create_connection"), _NETWORK),
    **dict.fromkeys(("system", "popen", "Popen", "fork", "execv", "kill", "check_output"), _PROCESS),
    **dict.fromkeys(("PrivacyEngine", "make_private", "make_private_with_epsilon"), _UNCOUNTED),
    **dict.fromkeys(("state_dict", "named_parameters"), "weights that leave without the guard's noise can give rows away"),
    **dict.fromkeys(("info", "debug", "warning", "error", "exception", "critical"), _TOLD),
    **dict.fromkeys(("save", "load", "hub", "jit", "ops", "load_state_dict"), "it reads or writes files, or loads code"),
    **dict.fromkeys(("manual_seed", "set_rng_state", "seed"), "known random numbers take the protection out of noise"),
    **dict.fromkeys(("f_globals", "f_locals", "f_back", "gi_frame", "cr_frame", "tb_frame", "format_map"), _INDIRECT),
}
_PAYLOAD = re.compile(r"(?:[A-Za-z0-9+/_-]{120,}={0,2}|(?:\\x[0-9a-fA-F]{2}){20,}|[0-9a-fA-F]{120,})")
_DISGUISED = re.compile(r"_*(?:0x[0-9a-f]{3,}|[lIO01]{5,})", re.IGNORECASE)


class Finding(Message):
    """One place in submitted code that a reader should see. ``what`` quotes the code with unprintable characters escaped."""

    severity: Severity
    line: Annotated[int, Field(ge=1)]
    what: str
    why: str


def scan(code: str) -> tuple[Finding, ...]:
    """Findings in Python source, the worst first, then by line. Nothing is run or imported."""
    found = set(_in_characters(code))
    try:
        tree = ast.parse(code)
        for node in ast.walk(tree):
            found.update(_in_node(node))
        found.update(_in_module(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as problem:
        line = getattr(problem, "lineno", None) or 1
        found.add(Finding(severity="critical", line=line, what="the code", why="it is not Python source that can be read"))
    return ordered(found)


def ordered(found: set[Finding]) -> tuple[Finding, ...]:
    """Findings, the worst first, then by line; at most MOST of them."""
    return tuple(sorted(found, key=lambda one: (SEVERITIES.index(one.severity), one.line, one.what)))[:MOST]


def _in_characters(code: str) -> Iterator[Finding]:
    for line, text in enumerate(code.split("\n"), start=1):
        if hidden := {character for character in text if not character.isprintable() and character not in "\t\r"}:
            yield _found("critical", line, ascii(min(hidden)), "a character that is not seen, or changes what is seen")


def _in_node(node: ast.AST) -> Iterator[Finding]:
    line = getattr(node, "lineno", 1)
    match node:
        case ast.Import(names=names):
            for alias in names:
                yield from _in_import(line, alias.name)
        case ast.ImportFrom(module=module, names=names):
            yield from _in_import(line, module or ".")
            for alias in names:
                yield from _in_name(line, alias.name)
        case ast.Name(id=name) | ast.arg(arg=name):
            yield from _in_name(line, name)
        case ast.Attribute(attr=name):
            yield from _in_attribute(node, name)
        case ast.keyword(arg="noise_multiplier" | "noise_multiplier_schedule", value=ast.Constant(value=0 | 0.0)):
            yield _found("critical", node.value.lineno, "noise_multiplier=0", "noise is switched off: there is no privacy")
        case ast.Constant(value=str() | bytes() as value):
            yield from _in_literal(line, value)
        case ast.While():
            yield _found("warning", line, "while", "a loop without a bound: it may never end")
        case ast.ClassDef(name=name) | ast.AsyncFunctionDef(name=name):
            yield _found("warning", line, name, "it can keep state from one record or call to the next")
        case ast.Global(names=names) | ast.Nonlocal(names=names):
            yield _found("warning", line, ", ".join(names), "it writes state that outlives the call")
        case ast.Yield() | ast.YieldFrom() | ast.Await() | ast.Lambda():
            yield _found("note", line, ast.unparse(node), "code that runs later than it stands")
        case ast.Try():
            yield _found("note", line, "try", "errors can be hidden, or carry data")
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        yield from _in_function(node)


def _in_import(line: int, module: str) -> Iterator[Finding]:
    why = MODULES.get(module.split(".")[0])
    if why:
        yield _found("critical", line, f"import {module}", why)
    elif module not in KNOWN_IMPORTS:
        yield _found("warning", line, f"import {module}", "not on the list of known imports: nobody here has read it")


def _in_name(line: int, name: str) -> Iterator[Finding]:
    if name in CALLS:
        yield _found("critical", line, name, CALLS[name])
    elif name.startswith("__") and name.endswith("__"):
        yield _found("critical", line, name, _INDIRECT)
    elif name in ("PrivacyEngine",):
        yield _found("critical", line, name, _UNCOUNTED)
    elif _DISGUISED.fullmatch(name) or not name.isascii():
        yield _found("warning", line, name, "a name that is hard to tell from others")


def _in_attribute(node: ast.Attribute, name: str) -> Iterator[Finding]:
    text = ast.unparse(node)
    if name.startswith("_"):
        yield _found("critical", node.lineno, text, _INDIRECT)
    elif name in ATTRIBUTES:
        yield _found("critical", node.lineno, text, ATTRIBUTES[name])
    elif name in ("format", "register_hook", "register_forward_hook"):
        yield _found("warning", node.lineno, text, _INDIRECT)
    if isinstance(node.ctx, ast.Store):
        yield _found("warning", node.lineno, text, "it writes state into an object")


def _in_literal(line: int, value: str | bytes) -> Iterator[Finding]:
    text = value if isinstance(value, str) else value.decode("latin-1")
    if _PAYLOAD.search(text):
        yield _found("critical", line, text[:20] + "...", "it looks like an encoded payload")
    elif len(text) > LONG_TEXT:
        yield _found("warning", line, f"{text[:20]}... ({len(text)} characters)", "a long literal can hide data or code")


def _in_function(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[Finding]:
    defaults = [*node.args.defaults, *(default for default in node.args.kw_defaults if default)]
    if any(isinstance(default, (ast.List, ast.Dict, ast.Set, ast.Call)) for default in defaults):
        yield _found("warning", node.lineno, node.name, "a default that is kept from call to call can carry state")
    if node.decorator_list:
        yield _found("warning", node.lineno, node.name, "a decorator replaces the function that is read here")
    own = {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
    own |= {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)}
    for inner in ast.walk(node):
        if isinstance(inner, ast.Subscript) and isinstance(inner.ctx, ast.Store):
            root = inner.value
            while isinstance(root, (ast.Attribute, ast.Subscript)):
                root = root.value
            if not (isinstance(root, ast.Name) and root.id in own):
                yield _found("warning", inner.lineno, ast.unparse(inner), "it writes state that outlives the call")


def _in_module(tree: ast.Module) -> Iterator[Finding]:
    for statement in tree.body:
        is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if not is_text and not isinstance(statement, (ast.FunctionDef, ast.Import, ast.ImportFrom, ast.Assign)):
            yield _found("warning", statement.lineno, type(statement).__name__, "it runs as soon as the code is read in")


def _found(severity: Severity, line: int, what: str, why: str) -> Finding:
    return Finding(severity=severity, line=line, what=printable(what.replace("\n", " "))[:80], why=why)

"""What a static look at foreign code points out, and that it points out nothing in harmless code."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_privacy.guard.findings import MOST, scan
from fl_privacy.printable import printable

HARMLESS = '''
"""A mean."""
import math
import torch

SCALE = 2.0

def mean(values, weights=None):
    total = {}
    for index, value in enumerate(values):
        total[index] = math.sqrt(value) * SCALE
    return torch.tensor(list(total.values())).mean()
'''
CRITICAL = {
    "a file": "def f(a):\n    return open(a)",
    "a file by its path": "def f(a):\n    return a.read_bytes()",
    "the network": "import socket",
    "the network, late": "def f(a):\n    from urllib.request import urlopen",
    "another program": "import subprocess",
    "the environment": "def f(a):\n    return a.environ",
    "exec": "exec('x = 1')",
    "eval behind a name": "def f(a):\n    g = eval\n    return g(a)",
    "an import by name": "def f(a):\n    return __import__(a)",
    "getattr": "def f(a):\n    return getattr(a, 'b' + 'c')",
    "a dunder attribute": "def f(a):\n    return a.__class__.__mro__",
    "a dunder name": "def f(a):\n    return __builtins__",
    "a private attribute": "def f(a):\n    return a._rows",
    "a frame": "def f(a):\n    return a.gi_frame",
    "printing": "def f(a):\n    print(a)",
    "logging": "import logging\ndef f(a):\n    logging.info(a)",
    "opacus": "from opacus import PrivacyEngine",
    "no noise": "def f(a):\n    return a.train(noise_multiplier=0.0)",
    "weights": "def f(a):\n    return a.state_dict()",
    "the guard": "import fl_privacy.guard.home",
    "pickle": "import pickle",
    "a seed": "import torch\ndef f(a):\n    torch.manual_seed(0)",
    "torch.save": "import torch\ndef f(a):\n    torch.save(a, 'x')",
    "base64 text": f"X = '{'QUJD' * 40}'",
    "hidden characters": "x = 1  # \u202e back",
    "an escape sequence": "x = 1  # \x1b[2J",
    "not python": "def f(:",
    "a zero byte": "\0",
    "too deep": "x = " + "(" * 5000 + ")" * 5000,
}
WARNING = {
    "an unknown import": "import somebody",
    "an endless loop": "def f(a):\n    while a:\n        pass",
    "global": "def f(a):\n    global x\n    x = a",
    "writing an attribute": "def f(a):\n    a.seen = 1",
    "writing into what is not its own": "def f(a):\n    STATE[0] = 1",
    "a mutable default": "def f(a, seen=[]):\n    return a",
    "a class": "class A:\n    pass",
    "a decorator": "@g\ndef f(a):\n    return a",
    "a long literal": f"X = '{'ab ' * 100}'",
    "a name like another": "def f(O0O0O0):\n    return O0O0O0",
    "a name in another script": "def f(\u0430):\n    return \u0430",
    "code that runs when it is read": "for i in []:\n    pass",
    "format": "def f(a):\n    return '{0.b}'.format(a)",
}


@pytest.mark.parametrize("code", CRITICAL.values(), ids=CRITICAL.keys())
def test_what_can_do_harm_is_critical(code: str) -> None:
    assert scan(code)[0].severity == "critical"


@pytest.mark.parametrize("code", WARNING.values(), ids=WARNING.keys())
def test_what_can_keep_state_or_hide_something_is_a_warning(code: str) -> None:
    assert scan(code)[0].severity == "warning"


def test_harmless_code_has_no_findings() -> None:
    assert scan(HARMLESS) == ()


def test_findings_name_line_and_reason_and_come_the_worst_first() -> None:
    found = scan("def f(a):\n    while a:\n        g = lambda: 1\n        print(a)\n    import os\n")
    assert [(one.severity, one.line, one.what) for one in found] == [
        ("critical", 4, "print"),
        ("critical", 5, "import os"),
        ("warning", 2, "while"),
        ("note", 3, "lambda: 1"),
    ]
    assert all(one.why for one in found)


def test_there_is_an_end_to_findings_and_the_worst_are_kept() -> None:
    found = scan("\n".join(["import somebody"] * 500 + ["import os"]))
    assert len(found) == MOST and found[0].what == "import os"


@given(st.text(max_size=200))
def test_any_text_can_be_scanned_and_what_is_shown_can_be_printed(code: str) -> None:
    assert all(one.what.isprintable() for one in scan(code))
    assert all(line.isprintable() for line in printable(code).split("\n"))

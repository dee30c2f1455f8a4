"""Messages spoiled at random, and the doors that they knock at. A door may refuse with FlPrivacyError, and nothing else.

``python -m tests.trust.mutations SEED COUNT FOLDER DOOR...`` feeds COUNT messages to each door in this process, so that a crash
is its end and not the test's. The message in work lies in FOLDER/message; mutation i draws from the seed "DOOR SEED i" alone.
"""

from __future__ import annotations

import faulthandler
import json
import random
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_privacy.errors import FlPrivacyError

HOSTILE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**400,
    0.5,
    -0.0,
    1e308,
    5e-324,
    float("nan"),
    float("inf"),
    "",
    "0" * 64,
    "f" * 64,
    "A" * 64,
    "\0",
    "\ud800",
    "../../etc/passwd",
    "owner-00",
    "a" * 100_000,
    [],
    {},
    [[]],
    "@deep@",
)
DEEP = 20_000  # opening brackets


@dataclass(frozen=True)
class Door:
    """Where messages arrive: well-formed ones to start from, and what is done with one."""

    messages: Sequence[bytes]
    feed: Callable[[bytes], object]
    mutate: Callable[[random.Random, Sequence[bytes]], bytes]


def spoil_bytes(draw: random.Random, messages: Sequence[bytes]) -> bytes:
    """Flip, overwrite, cut, extend, move or splice bytes; half of the time near the beginning, where headers are."""
    data = bytearray(draw.choice(messages))
    for _ in range(draw.choice((1, 1, 2, 8))):
        match draw.randrange(7):
            case 0:
                at = _place(draw, data)
                data[at : at + 1] = bytes([(data[at] if data else 0) ^ 1 << draw.randrange(8)])
            case 1:
                at, size = _place(draw, data), draw.choice((1, 2, 4, 8))
                data[at : at + size] = draw.choice((b"\0", b"\xff", b"\x7f", draw.randbytes(1))) * size
            case 2:
                del data[_place(draw, data) :]
            case 3:
                data += draw.randbytes(draw.choice((1, 8, 1000)))
            case 4:
                at = _place(draw, data)
                del data[at : at + draw.choice((1, 4, 15, 4096))]
            case 5:
                at = _place(draw, data)
                data[at:at] = draw.randbytes(draw.choice((1, 4, 15, 4096)))
            case 6:
                other, at = draw.choice(messages), _place(draw, data)
                data[at:] = other[_place(draw, other) if draw.random() < 0.5 else at :]
    return bytes(data)


def spoil_json(draw: random.Random, messages: Sequence[bytes]) -> bytes:
    """Change the tree behind a JSON message; one time in four spoil its bytes instead."""
    if draw.random() < 0.25:
        return spoil_bytes(draw, messages)
    tree = json.loads(draw.choice(messages))
    donor = json.loads(draw.choice(messages))
    for _ in range(draw.choice((1, 1, 2, 5))):
        tree = spoil_tree(draw, tree, donor)
    return write_json(draw, tree)


def spoil_tree(draw: random.Random, tree: Any, donor: Any) -> Any:
    """One change somewhere in a JSON tree: replaced, dropped, doubled, moved, renamed, or grafted from ``donor``."""
    places = list(_places(tree))
    if not places:
        return deepcopy(draw.choice(HOSTILE))
    parent, key = draw.choice(places)
    if (inner := _tree_in(parent[key])) and draw.random() < 0.8:
        parent[key] = write_json(draw, spoil_tree(draw, inner, donor)).decode("utf-8", "surrogatepass")
        return tree
    match draw.randrange(7):
        case 0 | 1:
            parent[key] = deepcopy(draw.choice(HOSTILE))
        case 2:
            del parent[key]
        case 3 if isinstance(parent, list):
            parent.insert(draw.randrange(len(parent) + 1), deepcopy(parent[key]))
        case 3:
            parent[draw.choice(("version", "extra", "", key + "_"))] = parent.pop(key)
        case 4:
            grafts = list(_places(donor))
            if grafts:
                other, at = draw.choice(grafts)
                parent[key] = deepcopy(other[at])
        case 5:
            parent[key] = _nudged(draw, parent[key])
        case 6 if isinstance(parent, list):
            draw.shuffle(parent)
        case 6:
            siblings = list(parent)
            first, second = draw.choice(siblings), draw.choice(siblings)
            parent[first], parent[second] = parent[second], parent[first]
    return tree


def write_json(draw: random.Random, tree: Any) -> bytes:
    """JSON text, also of values that JSON does not know and of nesting that Python's parser does not survive."""
    text = json.dumps(tree, ensure_ascii=draw.random() < 0.5)
    text = text.replace('"@deep@"', draw.choice(("[", '{"a":')) * draw.choice((100, DEEP)))
    return text.encode("utf-8", "surrogatepass")


def _tree_in(value: Any) -> Any:
    """What a string holds as JSON, if it does."""
    if not isinstance(value, str) or not value.startswith("{"):
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _nudged(draw: random.Random, value: Any) -> Any:
    match value:
        case bool() | None:
            return not value
        case int():
            return value + draw.choice((-1, 1, 1 << 40))
        case float():
            return value * draw.choice((-1, 1 + 1e-9, 1e200))
        case str() if value:
            at = draw.randrange(len(value))
            return value[:at] + draw.choice(("0", "f", "A", "", "é")) + value[at + 1 :]
        case list() | dict():
            return [value, deepcopy(value)]
    return value


def _places(tree: Any) -> Any:
    """Every (container, key) of a tree."""
    if isinstance(tree, dict | list):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _places(tree[key])


def _place(draw: random.Random, data: bytes | bytearray) -> int:
    limit = min(len(data), 64) if draw.random() < 0.5 else len(data)
    return draw.randrange(limit) if limit else 0


def feed(name: str, seed: int, count: int, door: Door, message: Path) -> int:
    """Feed one door; returns how many messages were refused with a typed error, and raises what else comes out."""
    refused = 0
    for index in range(count):
        data = door.mutate(random.Random(f"{name} {seed} {index}"), door.messages)
        message.write_bytes(data)
        message.with_suffix(".seed").write_text(f"{name} {seed} {index}")
        try:
            door.feed(data)
        except FlPrivacyError:
            refused += 1
    return refused


def main(seed: int, count: int, folder: Path, names: Sequence[str]) -> None:
    """Feed each door; a defect ends the process with its traceback."""
    from tests.trust.doors import DOORS

    faulthandler.enable()
    folder.mkdir(exist_ok=True)
    told = {name: {"fed": count, "refused": feed(name, seed, count, DOORS[name](folder), folder / "message")} for name in names}
    print(json.dumps(told))  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])

"""100,000 spoiled messages at every place where another party's bytes are read: only typed errors, and no crash.

The messages are fed in a process of its own, since what is tested includes that the process survives. A failure shows the seed
of the message and where it lies; feeding it again is ``python -m tests.trust.mutations SEED COUNT FOLDER DOOR``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trust.doors import DOORS

SEED = 20_250_101
GROUPS = {
    "BFV": ("update", "total"),
    "CKKS": ("ckks-update", "ckks-total"),
    "words": ("request", "evidence", "order", "cards", "registry", "sealed-key", "safetensors"),
    "guard": ("front", "plan", "code"),
}
FEW, MANY = 5_000, 100_000


def feed(group: str, seed: int, messages: int, folder: Path) -> dict[str, dict[str, int]]:
    """Feed a group's share of so many messages in a fresh process; returns what it tells of each door."""
    doors = GROUPS[group]
    command = [sys.executable, "-m", "tests.trust.mutations", str(seed), str(messages // len(DOORS) + 1), str(folder), *doors]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = folder / "message.seed"
        where = last.read_text() if last.exists() else "before the first message"
        pytest.fail(f"exit code {done.returncode} at door, seed, index: {where}; message in {folder}\n{done.stderr[-4000:]}")
    told: dict[str, dict[str, int]] = json.loads(done.stdout)
    return told


def check(told: dict[str, dict[str, int]], group: str, messages: int) -> None:
    assert told.keys() == set(GROUPS[group])
    for door, count in told.items():
        assert count["fed"] > messages / len(DOORS)
        assert count["refused"] > 0.4 * count["fed"], f"{door}: what was fed was hardly spoiled"


def test_every_door_is_in_one_group() -> None:
    assert sorted(door for doors in GROUPS.values() for door in doors) == sorted(DOORS)


@pytest.mark.parametrize("name", sorted(set(DOORS) - {"front"}))  # what knocks there is never a thing that would start training
def test_a_door_takes_the_message_that_is_not_spoiled(name: str, tmp_path: Path) -> None:
    door = DOORS[name](tmp_path)
    door.feed(door.messages[0])


@pytest.mark.parametrize("group", GROUPS)
def test_spoiled_messages_end_in_typed_errors(group: str, tmp_path: Path) -> None:
    check(feed(group, SEED, FEW, tmp_path), group, FEW)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("group", GROUPS)
def test_a_hundred_thousand_spoiled_messages_end_in_typed_errors(group: str, tmp_path: Path) -> None:
    check(feed(group, SEED + 1, MANY, tmp_path), group, MANY)


def test_a_defect_ends_the_feeding_process_and_names_the_message(tmp_path: Path) -> None:
    """The tests above can fail: a door whose reader breaks on its first message."""
    script = (
        "from pathlib import Path; import sys\n"
        "from tests.trust import doors, mutations\n"
        "doors.DOORS['update'] = lambda folder: mutations.Door([b'x'], lambda data: 1 // 0, mutations.spoil_bytes)\n"
        "mutations.main(1, 5, Path(sys.argv[1]), ['update'])"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "ZeroDivisionError" in done.stderr
    assert (tmp_path / "message.seed").read_text() == "update 1 0"

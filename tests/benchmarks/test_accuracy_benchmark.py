"""The accuracy benchmark keeps public, dev, private and test rows apart, adds up as the product does, and can miss a goal."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_privacy.encryption.packing import choose_encoding
from fl_privacy.messages import Row

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import accuracy
import accuracy_data
from accuracy_arms import Cell
from accuracy_cells import Kept
from accuracy_federation import in_fixed_point, mean_update
from accuracy_report import draw, goals, spread

AMOUNTS = accuracy_data.Amounts(public=10, dev=5, private=20, least=3)
KINDS = ("a", "b", "c")


@pytest.fixture()
def data(tmp_path: Path) -> Path:
    """A data folder of sets in which every text is another one, but for one headline that is also in a labelled set."""
    for domain in accuracy_data.DOMAINS:
        for split, count in (("train", 40), ("test", 6)):
            _write(tmp_path / f"mlm-zh-{domain}" / f"{split}.jsonl", [{"text": f"{domain}{split}{n}"} for n in range(count)])
    for task, (name, fields) in accuracy_data.LABELLED.items():
        for split, count in (("train", 60), ("dev", 6), ("test", 6)):
            rows: list[dict[str, Any]] = [{"text": f"{task}{split}{n}"} for n in range(count)]
            for place, row in enumerate(rows):
                kind = KINDS[place % len(KINDS)]
                other = ["B-" + kind] + ["O"] * (len(row["text"]) - 1)
                row |= {"label": kind} if fields.label else {"tags": " ".join(other)}
            _write(tmp_path / name / f"{split}.jsonl", rows)
    return tmp_path


def test_public_dev_private_and_test_rows_have_no_text_in_common(data: Path) -> None:
    public = {row.text for row in accuracy_data.public_rows(data, AMOUNTS)}
    private = [row.text for rows in accuracy_data.owners_of("mlm", data, AMOUNTS, 0).values() for row in rows]
    dev, test = ({row.text for row in accuracy_data.evaluation_rows("mlm", data, AMOUNTS, split)} for split in ("dev", "test"))
    assert (len(public), len(set(private)), len(dev), len(test)) == (40, 80, 20, 24)
    assert len(public | set(private) | dev | test) == 40 + 80 + 20 + 24


def test_a_public_text_that_is_also_a_labelled_row_is_left_out(data: Path) -> None:
    path = data / "mlm-zh-news" / "train.jsonl"
    path.write_text('{"text": "cls, test 3!"}\n' + path.read_text("utf-8"), encoding="utf-8")
    public = {row.text for row in accuracy_data.public_rows(data, AMOUNTS)}
    assert "cls, test 3!" not in public
    assert "newstrain0" in public


@pytest.mark.parametrize("task", ["cls", "ner"])
def test_every_labelled_row_has_exactly_one_owner_and_a_seed_fixes_which(task: accuracy_data.Task, data: Path) -> None:
    owners = accuracy_data.owners_of(task, data, AMOUNTS, 4)
    texts = [row.text for rows in owners.values() for row in rows]
    assert sorted(texts) == sorted(f"{task}train{n}" for n in range(60))
    assert accuracy_data.owners_of(task, data, AMOUNTS, 4) == owners
    assert accuracy_data.owners_of(task, data, AMOUNTS, 5) != owners


def test_a_split_that_cannot_give_each_owner_enough_is_refused() -> None:
    rows = [Row(text=str(number)) for number in range(8)]
    with pytest.raises(ValueError, match="gave each of 4 owners 3 of 8 rows"):
        accuracy_data.dirichlet_split(rows, ["a"] * 8, 3, np.random.default_rng(0))


def test_the_mean_update_is_the_weighted_mean_within_the_steps_of_its_fixed_point() -> None:
    generator = np.random.default_rng(1)
    updates = [generator.uniform(-1, 1, 500).astype(np.float32) for _ in range(4)]
    sizes = [100, 200, 300, 400]
    encoding = choose_encoding(4, 8, 0.4)
    found = mean_update(in_fixed_point(updates, sizes, encoding, generator), encoding)
    exact = sum(update * (size / 1000) for update, size in zip(updates, sizes, strict=True))
    assert np.abs(found - exact).max() < 4 * 0.4 / 127
    assert np.abs((found - exact).mean()) < 3e-4  # stochastic rounding has no bias


def test_goals_compare_the_seeds_that_both_arms_have_and_can_be_missed() -> None:
    cells = [
        _cell("federated", None, 0, 0.800),
        _cell("federated", None, 1, 0.600),
        _cell("centralised", None, 0, 0.804),
        _cell("federated", 3.0, 0, 0.750),
    ]
    near, private = goals(cells)
    assert (near.met, round(near.found, 3)) == (True, 0.4)
    assert (private.met, round(private.found, 3)) == (False, 5.0)
    assert str(spread(cells, "cls", "federated", None)) == "70.0 ± 14.1"


def test_cells_of_a_killed_run_are_kept_but_for_the_one_that_was_being_written(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    Kept(path).add("one", _cell("base", None, 0, 0.5))
    with path.open("a", encoding="utf-8") as file:
        file.write('{"key": "two", "headl')
    kept = Kept(path)
    kept.add("three", _cell("local", None, 0, 0.25))
    again = Kept(path)
    assert [again.get(key) is not None for key in ("one", "two", "three")] == [True, False, True]


def test_every_arm_is_run_for_every_epsilon_but_the_base_only_once() -> None:
    cells = list(accuracy.cells_of(("mlm", "cls"), (None, 3.0), 2))
    assert len(cells) == len(set(cells)) == 2 * 2 * (1 + 2 * 3)
    assert [cell for cell in cells if cell.arm == "base"] == [Cell(t, "base", None, s) for s in (0, 1) for t in ("mlm", "cls")]


def test_without_data_it_says_so_and_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["accuracy.py", "--data", str(tmp_path), "--json", str(tmp_path / "out.json")])
    accuracy.main()
    assert "skipped" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_figure_is_drawn_from_cells_alone(tmp_path: Path) -> None:
    cells = [_cell(arm, value, seed, 0.5) for arm in ("local", "federated") for value in (None, 3.0) for seed in (0, 1)]
    draw([*cells, _cell("base", None, 0, 0.1)], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def _cell(arm: str, epsilon: float | None, seed: int, value: float) -> dict[str, Any]:
    return {"task": "cls", "arm": arm, "epsilon": epsilon, "seed": seed, "headline": value}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

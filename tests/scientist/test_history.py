"""What a run shows of the owners' budgets: with a period, what the period's budget bounds, and never only the total."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.progress import Progress

from fl_privacy import display
from fl_privacy.scientist.history import History, OwnerSpend, RoundRecord, parse_line

FOR_GOOD = OwnerSpend(epsilon=2.25, budget=8.0, delta=1e-5, ledger_head="0" * 64)
MONTHLY = OwnerSpend(
    epsilon=9.5, budget=4.0, delta=1e-5, ledger_head="1" * 64, period_days=30, epsilon_in_period=1.5
)  # spent over many months


def record(number: int, **spends: OwnerSpend) -> RoundRecord:
    zero: dict[str, Any] = dict.fromkeys(
        ("accuracy", "perplexity", "update_norm", "seconds_training", "seconds_crypto", "seconds_transport"), 0.0
    )
    counts = dict.fromkeys(("attempt", "parameters", "ciphertext_bytes", "bytes_up", "bytes_down"), 0)
    names: dict[str, Any] = {"cohort": tuple(spends), "openers": tuple(spends), "failure_log2": None}
    return RoundRecord(round=number, order="2" * 64, spends=spends, **zero, **counts, **names)


def test_a_budget_for_a_period_is_shown_with_its_period_and_the_total_beside_it() -> None:
    table = display.rounds([record(0, bank=FOR_GOOD, clinic=MONTHLY)])
    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert cells["ε bank"] == ["2.25 / 8.00"]
    assert cells["ε clinic in 30 days"] == ["1.50 / 4.00\n9.50 in total"]


def test_the_noise_floor_is_shown_beside_the_norm_of_the_update_where_there_is_one() -> None:
    plain = record(0, bank=FOR_GOOD)
    assert "noise alone" not in [column.header for column in display.rounds([plain]).columns]
    table = display.rounds([plain, plain.model_copy(update={"update_norm": 0.5, "noise_floor": 0.25})], before=0.1)
    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert cells["update"] == ["", "0", "0.5"]
    assert cells["noise alone"] == ["", "not predicted", "0.25"]


def test_a_history_from_before_the_noise_floor_is_still_read() -> None:
    old = json.loads(record(0, bank=FOR_GOOD).canonical())
    del old["noise_floor"]
    assert parse_line(json.dumps(old)) == record(0, bank=FOR_GOOD)


def test_progress_names_the_largest_epsilon_that_a_budget_bounds_and_its_period() -> None:
    with display.console.capture() as seen:
        display.LiveRounds(1).round_done(record(0, bank=FOR_GOOD, clinic=MONTHLY))
        display.LiveRounds(1).round_done(record(0, clinic=MONTHLY))
    first, second = seen.get().splitlines()
    assert "largest epsilon 2.25, " in first
    assert "largest epsilon 1.50 in 30 days, " in second


def test_an_owners_bar_names_its_phase_and_its_steps() -> None:
    live = display.LiveRounds(3)
    bars = live._screen.bars  # type: ignore[attr-defined]
    live.phase("bank", "sending")
    assert bar_of(bars) == ("sending", None)
    live.step("bank", 2, 20)
    assert bar_of(bars) == ("training", 20)
    live.phase("bank", "encrypting")
    assert bar_of(bars) == ("encrypting", 20)
    with display.console.capture() as seen:
        display.console.print(bars.get_renderable())
    assert "round 1/3 bank" in seen.get() and "encrypting" in seen.get()


def bar_of(bars: Progress) -> tuple[str, float | None]:
    (task,) = bars.tasks
    return task.fields["phase"], task.total


def test_the_picture_sets_the_period_s_epsilon_against_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Axes] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.extend(figure.axes))
    history = History(tmp_path / "history.jsonl", 0.1)
    for number in (0, 1):
        history.append(record(number, bank=FOR_GOOD, clinic=MONTHLY))
    history.plot(tmp_path / "rounds.png")
    lines = {line.get_label(): list(line.get_ydata()) for line in drawn[1].get_lines()}
    assert lines == {
        "bank": [2.25, 2.25],
        "clinic in 30 days": [1.5, 1.5],
        "clinic in total": [9.5, 9.5],
        "smallest budget": [4.0, 4.0],
    }


def test_the_picture_sets_the_score_against_the_largest_total_epsilon_of_all_owners_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Axes] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.extend(figure.axes))
    history = History(tmp_path / "history.jsonl", 0.1)
    history.append(record(0, bank=FOR_GOOD, clinic=MONTHLY).model_copy(update={"accuracy": 0.2}))
    history.append(record(1, bank=FOR_GOOD).model_copy(update={"accuracy": 0.3}))
    history.plot(tmp_path / "rounds.png")
    curve, before = drawn[4].get_lines()
    assert (list(curve.get_xdata()), list(curve.get_ydata())) == ([9.5, 9.5], [0.2, 0.3])
    assert list(before.get_ydata()) == [0.1, 0.1]


def test_a_history_from_before_receipts_told_of_periods_is_still_read() -> None:
    old = {"epsilon": 2.25, "budget": 8.0, "delta": 1e-5, "ledger_head": "0" * 64}
    assert OwnerSpend(**old).counted == 2.25
    assert OwnerSpend(**old) == FOR_GOOD

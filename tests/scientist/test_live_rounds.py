"""``LiveRounds``: lines in a terminal; in a notebook one table and one picture, drawn anew in their places."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from nbclient import NotebookClient

from fl_privacy import display, display_screens
from fl_privacy.errors import RoundFailed
from fl_privacy.scientist.history import History, SkippedRound
from tests.scientist.history_records import evaluated, trained

REPOSITORY = Path(__file__).parents[2]
DRIVEN = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
from concurrent.futures import ThreadPoolExecutor
from fl_privacy import LiveRounds
from tests.scientist.history_records import evaluated, trained

def train(owner):
    live.phase(owner, "sending")
    for step in range(1, 21):
        live.step(owner, step, 20)
    live.phase(owner, "encrypting")

with LiveRounds(4) as live:
    for number in range(2):
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(train, ("bank", "clinic", "school")))
        live.round_done(trained(number))
    live.evaluated(evaluated(4))
"""


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The latest of each kind that a notebook was given."""
    latest: dict[str, Any] = {}

    def show(told: dict[str, Any], handle: object) -> object:
        latest.update(told)
        return handle or object()

    monkeypatch.setattr(display_screens, "_shown", show)
    monkeypatch.setattr(display.console, "is_jupyter", True)
    yield latest


def test_a_notebook_that_has_run_holds_one_table_of_all_rounds_and_one_picture() -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(DRIVEN)])
    NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    table, picture = notebook.cells[0].outputs
    assert table.data["text/html"].count("<tr>") == 3
    assert "<progress" not in table.data["text/html"]
    assert "evaluation of the finished model, on 3 owners&#x27; held-out rows: 50.00%" in table.data["text/html"]
    assert "41.00%" in table.data["text/plain"]
    assert 10_000 < len(picture.data["image/png"]) < 100_000


def test_bars_stand_above_the_table_while_owners_work_and_go_with_the_round(shown: dict[str, Any]) -> None:
    live = display.LiveRounds(4)
    live.step("bank", 5, 20)
    live.phase("clinic", "sending")
    assert 'value="5" max="20"' in shown["text/html"] and "round 1/4 bank: training 5/20" in shown["text/html"]
    assert "clinic: sending" in shown["text/html"]
    live.round_done(trained(0))
    assert "<progress" not in shown["text/html"] and "40.00%" in shown["text/html"]


def test_rounds_of_an_earlier_process_are_in_the_table_and_the_picture(
    shown: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Axes] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.extend(figure.axes))
    live = display.LiveRounds(4)
    live.resumed(History(Path(), 0.35, [trained(0), SkippedRound(round=1, failures=()), evaluated(2)]), 2)
    live.round_done(trained(2))
    assert all(score in shown["text/html"] for score in ("35.00%", "40.00%", "42.00%"))
    scores, epsilon = drawn[-2:]
    assert list(scores.get_lines()[0].get_xdata()) == [0, 1, 3]
    assert list(scores.get_lines()[0].get_ydata()) == [0.35, trained(0).accuracy, trained(2).accuracy]
    assert list(epsilon.get_lines()[0].get_ydata()) == [1.5, 3.5]
    assert scores.get_xlim()[1] > 4


def test_what_owners_wrote_is_text_and_never_markup(shown: dict[str, Any]) -> None:
    live = display.LiveRounds(4)
    live.round_failed(RoundFailed(0, {"bank": "<script>alert(1)</script>\x1b[2J"}), 2)
    assert "<script>" not in shown["text/html"] and "&lt;script&gt;" in shown["text/html"]
    assert "\x1b" not in shown["text/html"] and "\x1b" not in shown["text/plain"]


def test_no_figure_of_pyplot_is_made(shown: dict[str, Any]) -> None:
    import matplotlib.pyplot as plt

    display.LiveRounds(2).round_done(trained(0))
    assert shown["image/png"].startswith(b"\x89PNG") and plt.get_fignums() == []


@pytest.mark.parametrize("total", [2, 10], ids=["after the last round", "after an early end"])
def test_an_evaluation_of_the_finished_model_is_told_as_that(total: int) -> None:
    with display.console.capture() as seen:
        live = display.LiveRounds(total)
        live.evaluated(evaluated(1))
        live.evaluated(evaluated(total))
        live.evaluation_skipped(total, ({"bank": "away"},))
    planned, finished, skipped = seen.get().splitlines()
    assert f"evaluation after round 1/{total}, on 3 owners' held-out rows" in planned
    assert "evaluation of the finished model, on 3 owners' held-out rows" in finished
    assert "the evaluation of the finished model is skipped" in skipped

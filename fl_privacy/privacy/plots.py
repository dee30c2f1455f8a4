"""Pictures of an audit, as SVG images that a page can hold: epsilon over time, by plan, by scientist."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

from matplotlib import dates
from matplotlib.figure import Figure

from fl_privacy.privacy.recount import OwnerReport

INK, MUTED, SIGNED, COUNTED, LIMIT = "#1f2933", "#7b8794", "#9fb3c8", "#0b7285", "#c92a2a"
PALETTE = ("#0b7285", "#e67700", "#5f3dc4", "#2b8a3e", "#a61e4d", "#1864ab", "#846358", "#495057")


@dataclass(frozen=True)
class Picture:
    """An image with its words, for those who cannot see it."""

    title: str
    caption: str
    source: str  # data URI


def draw(owners: Sequence[OwnerReport]) -> list[Picture]:
    """The pictures of a report, of owners with at least one reserve among them."""
    spent = [owner for owner in owners if owner.course]
    return [
        Picture(
            "Epsilon over time, per owner",
            "Upper bound on epsilon after each reserve, by dp-accounting, and as the owner signed it; the dashed line is the"
            " budget in force. Where a budget holds for a period, the filled line is what that budget bounds.",
            _over_time(spent),
        ),
        Picture(
            "Epsilon per request",
            "What all reserves of one plan have cost one owner by themselves, at the approval's delta, by dp-accounting; the"
            " mark is what the owner approved.",
            _per_plan(spent),
        ),
        Picture(
            "Epsilon per scientist",
            "What all plans of one scientist (public key) have cost each owner, at the owner's delta, by dp-accounting.",
            _per_scientist(spent),
        ),
    ]


def _over_time(owners: Sequence[OwnerReport]) -> str:
    columns = min(3, len(owners))
    rows = -(-len(owners) // columns)
    figure = Figure(figsize=(4.1 * columns if columns > 1 else 7, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, owner in zip(axes.flat, owners, strict=False):
        at = [dates.date2num(datetime.fromtimestamp(point.time, UTC)) for point in owner.course]
        end = at[-1] + max(1.0 / 1440, 0.06 * (at[-1] - at[0]))  # the last step has a width, too
        signed = [point.epsilon_signed for point in owner.course]
        counted = [point.epsilon_pld for point in owner.course]
        limits = [point.budget for point in owner.course[:-1]] + [owner.budget]
        axis.step([*at, end], [*signed, signed[-1]], where="post", c=SIGNED, lw=3.5, label="signed by the owner")
        axis.step([*at, end], [*counted, counted[-1]], where="post", c=COUNTED, lw=1.4, marker="o", ms=3, label="recomputed")
        if owner.period_days:
            period = [point.epsilon_in_period for point in owner.course]
            label = f"in {owner.period_days} days"
            axis.fill_between([*at, end], [*period, period[-1]], step="post", color=PALETTE[1], alpha=0.35, label=label)
        budget = f"budget per {owner.period_days} days" if owner.period_days else "budget"
        axis.step([*at, end], [*limits, limits[-1]], where="post", c=LIMIT, ls="--", lw=1.2, label=budget)
        axis.set_title(f"{owner.owner}   (delta {owner.delta:g}, one {owner.unit})", fontsize=9, loc="left", color=INK)
        axis.set_ylim(0, 1.12 * max(*signed, *counted, *limits))
        locator = dates.AutoDateLocator(minticks=2, maxticks=6)
        axis.xaxis.set_major_locator(locator)
        axis.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
        axis.legend(fontsize=7, frameon=False, loc="best")
        _plain(axis)
    for unused in list(axes.flat)[len(owners) :]:
        unused.set_visible(False)
    return _image(figure)


def _per_plan(owners: Sequence[OwnerReport]) -> str:
    bars = [(owner, plan) for owner in owners for plan in owner.plans if plan.trainings]
    figure, axis = _bars(len(bars))
    labels = [_plain_text(f"{plan.name}  ·  {owner.owner}") for owner, plan in bars]
    axis.barh(labels, [plan.epsilon for _, plan in bars], color=COUNTED, height=0.55)
    for row, (_, plan) in enumerate(bars):
        axis.text(plan.epsilon, row, f" {plan.epsilon:.2f}", va="center", fontsize=8, color=INK)
        if plan.approved is not None:
            axis.plot([plan.approved] * 2, [row - 0.38, row + 0.38], c=LIMIT, lw=2)
    axis.set_xlim(0, 1.15 * max(max(plan.epsilon, plan.approved or 0.0) for _, plan in bars))
    return _finish(figure, axis)


def _per_scientist(owners: Sequence[OwnerReport]) -> str:
    scientists = sorted({scientist for owner in owners for scientist in owner.scientists})
    figure, axis = _bars(len(scientists) * len(owners))
    for index, scientist in enumerate(scientists):
        named = f"{scientist[:12]}…" if scientist else "no decision kept"
        have = [owner for owner in owners if scientist in owner.scientists]
        values = [owner.scientists[scientist] for owner in have]
        labels = [f"{named}  ·  {owner.owner}" for owner in have]
        axis.barh(labels, values, color=PALETTE[index % len(PALETTE)], height=0.55)
        for label, value in zip(labels, values, strict=True):
            axis.text(value, label, f" {value:.2f}", va="center", fontsize=8, color=INK)
    axis.set_xlim(0, 1.15 * max(value for owner in owners for value in owner.scientists.values()))
    return _finish(figure, axis)


def _bars(count: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(12.3, 0.75 + 0.32 * count), layout="constrained")
    return figure, figure.subplots()


def _finish(figure: Figure, axis: Any) -> str:
    axis.invert_yaxis()
    axis.set_xlabel("epsilon (upper bound)", fontsize=8, color=MUTED)
    _plain(axis)
    axis.grid(visible=False, axis="y")
    return _image(figure)


def _plain_text(words: str) -> str:
    """A name that somebody else chose: no formula, nothing that cannot be seen."""
    return "".join(letter if letter.isprintable() else "?" for letter in words).replace("$", r"\$")


def _plain(axis: Any) -> None:
    axis.tick_params(labelsize=8, colors=INK, length=0)
    axis.grid(visible=True, color="#e4e7eb", lw=0.7)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left", "bottom"):
        axis.spines[side].set_visible(False)


def _image(figure: Figure) -> str:
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + b64encode(buffer.getvalue()).decode()

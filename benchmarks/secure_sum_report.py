"""What people see of the secure-sum benchmark: tables and one figure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

STEPS = ("protect", "encrypt", "add", "open")  # the baseline has no "protect"
LABELS = {
    "protect": "all of an owner's step",
    "encrypt": "encrypt + serialise",
    "add": "load + add, per owner",
    "open": "load + open",
}
COLOURS = dict(zip(STEPS, ("tab:purple", "tab:blue", "tab:orange", "tab:green"), strict=True))
GOAL_BYTES = 2.1
WIDTH = 118  # where the output is not a terminal that knows its own
ABOVE, BELOW = 6, -13  # where a value is written, in points from its mark
SYSTEMS = (("milliseconds", "-", "secure sum"), ("ckks_milliseconds", "--", "CKKS"))
NAMES = {
    "bytes_per_parameter": "bytes per parameter, up",
    "encrypt_ratio_to_ckks": "encrypt + serialise / CKKS",
    "add_ratio_to_ckks": "load + add / CKKS",
}


def show(results: dict[str, Any], console: Console) -> None:
    """Print every table."""
    console.print(_costs(results["cohorts"]), _goals(results["goals"]))
    sums = "equal the plain integer sums, bit for bit" if results["exact"] else "[bold red]DIFFER from the plain integer sums"
    console.print(f"All opened sums {sums}.")
    if results["full"]:
        console.print(_full(results["full"]))
    machine = results["machine"]
    load = ", ".join(f"{value:.1f}" for value in machine["load_average"])
    console.print(f"{machine['cpu']}, {machine['cores']} cores, load {load}; TenSEAL {results['versions']['tenseal']}")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def _costs(cohorts: Sequence[dict[str, Any]]) -> Table:
    title = "CPU ms per 1M parameters, median (share of CKKS with a public key); adding per owner"
    table = _table(title, "owners, parameters", "fields x bits", "bytes/param up", "to open", *STEPS)
    for cohort in cohorts:
        encoding, bytes_ = cohort["encoding"], cohort["bytes_per_parameter"]
        ours, ckks = _medians(cohort, "milliseconds"), _medians(cohort, "ckks_milliseconds")
        table.add_row(
            f"{cohort['owners']} owners, {cohort['parameters'] / 1e6:.2f}M",
            f"{encoding['fields_per_coefficient']} x {encoding['field_bits']}",
            f"{bytes_['up']:.3f}",
            f"{bytes_['sum']:.3f}",
            *(f"{ours[step]:.1f} ({_share(ours[step] / ckks.get(step, ckks['encrypt']))})" for step in STEPS),
        )
    for name, encrypt in (("CKKS, public", "encrypt"), ("CKKS, symmetric", "encrypt_symmetric")):
        found = (
            statistics.median(_medians(cohort, "ckks_milliseconds")[step] for cohort in cohorts)
            for step in (encrypt, "add", "open")
        )
        size = f"{cohorts[-1]['ckks_bytes_per_parameter']:.2f}"
        table.add_row(name, "", size, "", "", *(f"{value:.0f}" for value in found))
    return table


def _share(ratio: float) -> str:
    return f"1/{1 / ratio:.1f}" if ratio < 1 else f"{ratio:.1f} x"


def _medians(cohort: dict[str, Any], field: str) -> dict[str, float]:
    return {step: found["median"] for step, found in cohort[field].items()}


def _goals(goals: dict[str, dict[str, Any]]) -> Table:
    table = _table("Goals", "", "goal", *(f"{owners} owners" for owners in goals))
    for name, label in NAMES.items():
        found = [cohort[name] for cohort in goals.values()]
        cells = [f"{each['result']:.3f} {'met' if each['met'] else '[red]missed[/red]'}" for each in found]
        table.add_row(label, f"<= {found[0]['goal']:.3g}", *cells)
    return table


def _full(full: dict[str, Any]) -> Table:
    up, total = full["bytes"]["up"], full["bytes"]["sum"]
    title = f"{full['parameters']:,} parameters, {full['owners']} owners: {up / 1e6:.1f} MB up, {total / 1e6:.1f} MB to open"
    table = _table(title, "step", "wall s", "CPU s", "peak MB", "idle MB", "(peak - idle) / fp32 update")
    for name, cost in full["steps"].items():
        megabytes = (f"{cost[field] / 1e6:.0f}" for field in ("peak_bytes", "idle_bytes"))
        ratio = f"{cost['memory_ratio_to_fp32']:.2f}"
        table.add_row(name, f"{cost['wall_seconds']:.1f}", f"{cost['cpu_seconds']:.1f}", *megabytes, ratio)
    return table


def draw(results: dict[str, Any], path: Path) -> None:
    """One PNG: bytes and time against cohort size and against model size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(12, 9), layout="constrained")
    _bytes_by_owners(panels[0, 0], results["cohorts"])
    _time_by_owners(panels[0, 1], results["cohorts"])
    _bytes_by_size(panels[1, 0], results)
    _time_by_size(panels[1, 1], results)
    for panel in panels.flat:
        panel.grid(which="major", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Secure sum (BFV with masks) and CKKS N = 8192 [60, 40, 40], measured in one run", fontsize=13)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _bytes_by_owners(panel: Any, cohorts: Sequence[dict[str, Any]]) -> None:
    owners = [cohort["owners"] for cohort in cohorts]
    lines = {
        "CKKS": ([cohort["ckks_bytes_per_parameter"] for cohort in cohorts], "tab:red", ABOVE),
        "plain float32": ([4.0] * len(owners), "tab:gray", None),
        "secure sum, the sum to open": ([cohort["bytes_per_parameter"]["sum"] for cohort in cohorts], "tab:green", ABOVE),
        "secure sum, one owner's update": ([cohort["bytes_per_parameter"]["up"] for cohort in cohorts], "tab:blue", BELOW),
    }
    for label, (values, colour, place) in lines.items():
        panel.plot(owners, values, marker="o", color=colour, label=label)
        if place is not None:
            _annotate(panel, owners, values, place, colour)
    panel.axhline(GOAL_BYTES, color="tab:blue", linestyle=":", linewidth=1, label=f"goal for an update: {GOAL_BYTES}")
    _axes(panel, "Bytes per parameter", "owners", "bytes per parameter")
    _owner_ticks(panel, owners)
    panel.set_ylim(1, 400)
    panel.legend(loc="upper center", ncols=2, fontsize=9, frameon=False)


def _time_by_owners(panel: Any, cohorts: Sequence[dict[str, Any]]) -> None:
    owners = [cohort["owners"] for cohort in cohorts]
    for step in STEPS:
        for field, style, name in _having(step):
            found = [cohort[field][step] for cohort in cohorts]
            least, medians, most = ([each[which] for each in found] for which in ("min", "median", "max"))
            panel.plot(owners, medians, style, marker="o", color=COLOURS[step], label=f"{name}: {LABELS[step]}")
            panel.fill_between(owners, least, most, color=COLOURS[step], alpha=0.15, linewidth=0)
            first = 0 if field == "milliseconds" else -1  # the baseline's lines are level: one value says all
            _annotate(panel, owners[first:], medians[first:], ABOVE if step == "open" else BELOW, COLOURS[step])
    _axes(panel, "CPU time per 1M parameters (band: least to most)", "owners", "CPU ms per 1M parameters")
    _owner_ticks(panel, owners)
    panel.set_ylim(1, 60_000)
    panel.legend(loc="upper center", ncols=2, fontsize=9, frameon=False)


def _bytes_by_size(panel: Any, results: dict[str, Any]) -> None:
    sizes, full = results["sizes"], results["full"]
    parameters = [each["parameters"] for each in sizes]
    ckks = [each["ckks_bytes_per_parameter"] * each["parameters"] for each in sizes]
    ours = [each["bytes_per_parameter"]["up"] * each["parameters"] for each in sizes]
    plain = [4.0 * each for each in parameters]
    panel.plot(parameters, [each / 1e6 for each in ckks], marker="o", color="tab:red", label="CKKS")
    if full:
        parameters, ours, plain = (
            [*parameters, full["parameters"]],
            [*ours, full["bytes"]["up"]],
            [*plain, full["bytes"]["fp32"]],
        )
        _mark_bert_base(panel, full)
    panel.plot(parameters, [each / 1e6 for each in plain], marker="o", color="tab:gray", label="plain float32")
    panel.plot(parameters, [each / 1e6 for each in ours], marker="o", color="tab:blue", label="secure sum")
    _axes(panel, f"Size of one owner's update ({sizes[0]['owners']} owners)", "parameters", "MB")
    panel.legend(loc="upper left", fontsize=9, frameon=False)


def _time_by_size(panel: Any, results: dict[str, Any]) -> None:
    sizes, full = results["sizes"], results["full"]
    parameters = [each["parameters"] for each in sizes]
    for step in STEPS:
        for field, style, name in _having(step):
            seconds = [each[field][step]["median"] * each["parameters"] / 1e9 for each in sizes]
            whole = full is not None and field == "milliseconds" and step in _full_seconds(full)
            across = [*parameters, full["parameters"]] if whole else parameters
            up = [*seconds, _full_seconds(full)[step]] if whole else seconds
            panel.plot(across, up, style, marker="o", color=COLOURS[step], label=f"{name}: {LABELS[step]}")
    if full:
        _mark_bert_base(panel, full)
    _axes(panel, f"CPU time of one update ({sizes[0]['owners']} owners)", "parameters", "CPU s")
    panel.legend(loc="upper left", fontsize=9, frameon=False)


def _having(step: str) -> tuple[tuple[str, str, str], ...]:
    return SYSTEMS[:1] if step == "protect" else SYSTEMS


def _full_seconds(full: dict[str, Any]) -> dict[str, float]:
    """CPU seconds of an owner's step, of adding one update, and of opening the sum."""
    seconds = {name: cost["cpu_seconds"] for name, cost in full["steps"].items()}
    protect = [value for name, value in seconds.items() if name.endswith("protects")]
    return {
        "protect": sum(protect) / len(protect),
        "add": seconds["scientist adds"] / full["owners"],
        "open": seconds["owner opens"],
    }


def _axes(panel: Any, title: str, across: str, up: str) -> None:
    panel.set(xscale="log", yscale="log", title=title, xlabel=across, ylabel=up)


def _annotate(panel: Any, across: Sequence[int], up: Sequence[float], place: int, colour: str) -> None:
    for x, y in zip(across, up, strict=True):
        text = f"{y:.0f}" if y >= 100 else f"{y:.3g}"
        panel.annotate(text, (x, y), (0, place), textcoords="offset points", ha="center", fontsize=8, color=colour)


def _mark_bert_base(panel: Any, full: dict[str, Any]) -> None:
    panel.axvline(full["parameters"], color="black", linewidth=0.6, linestyle=":")
    where = {"xycoords": panel.get_xaxis_transform(), "textcoords": "offset points", "rotation": 90, "ha": "right"}
    panel.annotate("BERT-base", (full["parameters"], 0.04), (-4, 0), **where)


def _owner_ticks(panel: Any, owners: Sequence[int]) -> None:
    panel.set_xticks(owners, [str(owner) for owner in owners])
    panel.set_xticks([], minor=True)
    panel.set_xlim(owners[0] / 1.4, owners[-1] * 1.4)

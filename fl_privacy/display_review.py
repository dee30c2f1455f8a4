"""A request as its owner reads it in a terminal. Submitted text is escaped: a terminal would obey its control characters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Column, Table
from rich.text import Text

from fl_privacy.printable import printable

SEVERITY_STYLES = {"critical": "bold red", "warning": "yellow", "note": "dim"}
LONGEST_LINE = 220  # characters shown of a line


def review(number: int, email: str, report: Mapping[str, Any], code: bool = True) -> Panel:
    """A request as its owner reads it: words, forecast of epsilon, findings, code, and the verdict last."""
    parts: list[Any] = [*(_text(f"- {line}") for line in report["words"])]
    if report["plan"]:
        period = f", within {report['period_days']} days" if report["period_days"] else ""
        title = f"\nForecast of epsilon: upper bounds for one {report['unit']} at delta {report['delta']:g}{period}"
        parts += [Text(title, style="bold"), _forecast(report)]
    parts += [Text(), _text(report["sentence"], "italic"), Text()]
    if report["findings"]:
        parts += [Text("Findings, the worst first", style="bold"), _findings(report["findings"])]
    if code:
        parts += _code(report)
    parts.append(_verdict(report))
    name = report["plan"]["name"] if report["plan"] else "code that is not a plan"
    return Panel(Group(*parts), title=_text(f"Request {number} from {email}: {name}"), title_align="left")


def _forecast(report: Mapping[str, Any]) -> Table:
    spent = [("now", report["epsilon_now"])]
    spent += [(f"round {index}", value) for index, value in enumerate(report["epsilon_by_round"], start=1)]
    drawn = Table("after", Column("epsilon", justify="right"), Column("left of budget", justify="right"), header_style="bold")
    for when, value in spent:
        drawn.add_row(when, f"{value:.3f}", f"{report['epsilon_budget'] - value:.3f}")
    return drawn


def _findings(found: Sequence[Mapping[str, Any]]) -> Table:
    drawn = Table("severity", Column("line", justify="right"), Column("what", overflow="fold"), "why", header_style="bold")
    for finding in found:
        style = SEVERITY_STYLES[finding["severity"]]
        texts = (_text(finding["severity"], style), _text(finding["line"]), _text(finding["what"]), _text(finding["why"]))
        drawn.add_row(*texts)
    return drawn


def _code(report: Mapping[str, Any]) -> list[Any]:
    if report["diff"]:
        difference = Syntax(_shortened(report["diff"]), "diff", word_wrap=True)
        return [Text("\nDifference from the vetted template", style="bold"), difference]
    shown: list[Any] = [Text("\nCode, equal to the vetted template", style="bold")]
    shown.append(Syntax(_shortened(report["code"]), "python", word_wrap=True))
    if source := report["plan"]["custom_task"]:
        shown.append(Text("\nCustom task, part of the signed plan", style="bold"))
        shown.append(Syntax(printable(source), "python", line_numbers=True, word_wrap=True))
    return shown


def _verdict(report: Mapping[str, Any]) -> Text:
    what = report["verdict"]
    if report["objection"]:
        return _text(f"\nVerdict: {what}; do not approve: {report['objection']}", "bold red")
    noise = f"noise multiplier {report['noise_multiplier']:.4f}, sample rate {report['sample_rate']:.4f}"
    if report["findings"] or what != "template":
        return Text(f"\nVerdict: {what}; read the custom task before you decide; {noise}", style="bold yellow")
    return Text(f"\nVerdict: {what}; the code is the vetted one; {noise}", style="bold green")


def _text(value: object, style: str = "") -> Text:
    return Text(printable(str(value)), style=style)


def _shortened(code: str) -> str:
    return "\n".join(
        line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}… ({len(line)} characters)"
        for line in printable(code).split("\n")
    )

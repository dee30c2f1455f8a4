"""What people see in a terminal: tables, reviews, progress. No decisions are made here."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from fl_privacy.encryption.registry import Registry
from fl_privacy.errors import RoundFailed
from fl_privacy.messages import CorpusCard, LedgerStatement
from fl_privacy.scientist.history import RoundRecord, Watcher

WIDTH = 118  # where the output is not a terminal that knows its own
if TYPE_CHECKING:
    from fl_privacy.privacy.audit import AuditResult
    from fl_privacy.privacy.entries import LedgerEntry

console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table whose first column is left-aligned and the others right-aligned."""
    drawn = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        drawn.add_row(*(str(cell) for cell in row))
    return drawn


def corpora(cards: Mapping[str, Sequence[CorpusCard]], mock_rows: int = 2) -> Table:
    """What the owners offer: declared sizes and a few mock rows."""
    drawn = Table(title="Corpora (mock rows are published by the owners; private rows never leave)", title_justify="left")
    for column in ("owner", "title", "records", "mock rows"):
        drawn.add_column(column, justify="right" if column == "records" else "left", overflow="fold")
    for owner, offered in cards.items():
        for card in offered:
            drawn.add_row(owner, card.title, f"~{card.declared_size:,}", "\n".join(card.mock_rows[:mock_rows]))
    return drawn


def review(number: int, email: str, report: Mapping[str, Any], code: bool = True) -> Panel:
    """A request as its owner reads it: words, code, and the forecast of epsilon."""
    forecast = table(
        f"Forecast of epsilon (upper bound, one record, delta {report['delta']:g})",
        ["after", "epsilon", "left of budget"],
        [
            ("now", f"{report['epsilon_now']:.3f}", f"{report['epsilon_budget'] - report['epsilon_now']:.3f}"),
            *(
                (f"round {index}", f"{value:.3f}", f"{report['epsilon_budget'] - value:.3f}")
                for index, value in enumerate(report["epsilon_by_round"], start=1)
            ),
        ],
    )
    noise = f"noise multiplier {report['noise_multiplier']:.4f}, sample rate {report['sample_rate']:.4f}"
    verdict = Text("Verdict: the code is the vetted template; " + noise, style="green")
    if report["objection"]:
        verdict = Text(f"Verdict: do not approve: {report['objection']}", style="bold red")
    parts: list[Any] = [*(Text(f"- {line}") for line in report["words"]), forecast]
    if code:
        parts.append(Syntax(_shortened(report["code"]), "python", word_wrap=True))
    parts.append(verdict)
    return Panel(Group(*parts), title=f"Request {number} from {email}: {report['plan']['name']}", title_align="left")


def status(told: Mapping[str, Any]) -> Table:
    """One owner at a glance."""
    rows: list[tuple[str, object]] = [
        ("owner", f"{told['owner']} ({told['title']})"),
        ("fingerprint", told["fingerprint"]),
        ("signing key", told["signing_key"]),
        ("enrolled", "yes" if told["enrolled"] else "no"),
        ("encryption key", "held" if told["encryption_key"] else "not yet received"),
        *(("corpus", f"about {card['declared_size']:,} records, {card['corpus'][:16]}…") for card in told["corpora"]),
        ("epsilon spent / budget", f"{told['epsilon_spent']:.3f} / {told['epsilon_budget']:.3f} at delta {told['delta']:g}"),
        ("ledger", f"{told['ledger_entries']} entries"),
        *((f"plan {item['plan']}", f"{item['verdict']} {item['reason']}".strip()) for item in told["decisions"]),
    ]
    return table("Owner", ["", ""], rows)


def fingerprints(registry: Registry) -> Table:
    """What owners read to each other out of band."""
    return table("Fingerprints", ["owner", "fingerprint"], [(card.owner, card.fingerprint) for card in registry.cards])


def request_list(requests: Sequence[Any]) -> Table:
    """All code requests."""
    rows = [(request.number, request.email, request.status, request.reason, request.digest[:16]) for request in requests]
    return table("Requests", ["number", "from", "status", "reason", "code"], rows)


def ledger(entries: Sequence[LedgerEntry], statement: LedgerStatement) -> Group:
    """Every entry, and what it adds up to."""
    rows = []
    for entry in entries:
        event = entry.event.model_dump(mode="json")
        order = str(event.get("order", ""))[:12]
        spend = event.get("spend") or {}
        cost = f"σ {spend['noise_multiplier']:g}, q {spend['sample_rate']:.4g}, {spend['steps']} steps" if spend else ""
        when = datetime.fromtimestamp(entry.time, UTC).isoformat(" ", "seconds")
        epsilon = f"{event['epsilon']:.3f}" if "epsilon" in event else ""
        rows.append((entry.seq, when, event["kind"], order, cost, epsilon))
    total = f"epsilon {statement.epsilon_spent:.3f} of {statement.epsilon_budget:.3f} at delta {statement.delta:g}"
    head = f"unit: one {statement.unit}; accountant: {statement.accountant}; head {statement.head}"
    return Group(table("Ledger", ["entry", "time", "kind", "order", "spend", "epsilon"], rows), Text(f"{total}; {head}"))


def audit(result: AuditResult) -> Table:
    """What an export proves."""
    rows = [
        ("owner", result.owner),
        ("entries", result.entries),
        ("chain and signatures", "verified"),
        (f"epsilon by the ledger ({result.accountant})", f"{result.epsilon_ledger:.4f}"),
        ("epsilon recomputed (dp-accounting PLD)", f"{result.epsilon_recomputed:.4f}"),
        ("budget", f"{result.budget:.4f} at delta {result.delta:g}, unit: one {result.unit}"),
        ("head", result.head),
        ("findings", "; ".join(result.findings) or "none"),
    ]
    return table("Audit", ["", ""], rows)


def rounds(records: Sequence[RoundRecord], before: float | None = None) -> Table:
    """One row per round."""
    owners = sorted({owner for record in records for owner in record.spends})
    columns = ["round", "top-1", *(f"ε {owner}" for owner in owners), "MB up", "MB down", "s train", "s crypto", "s transport"]
    rows: list[list[str]] = []
    if before is not None:
        rows.append(["base", f"{before:.2%}", *([""] * (len(columns) - 2))])
    for record in records:
        spends = [f"{record.spends[owner].epsilon:.2f} / {record.spends[owner].budget:.2f}" for owner in owners]
        seconds = [record.seconds_training, record.seconds_crypto, record.seconds_transport]
        mega = [f"{record.bytes_up / 1e6:.2f}", f"{record.bytes_down / 1e6:.2f}"]
        rows.append([str(record.round + 1), f"{record.accuracy:.2%}", *spends, *mega, *(f"{s:.1f}" for s in seconds)])
    return table("Rounds", columns, rows)


class LiveRounds(Watcher):
    """Progress bars, one per owner and round, and a line per finished round. Use as a context manager."""

    def __init__(self, total_rounds: int) -> None:
        self.total_rounds = total_rounds
        self.round = 1
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=console, transient=True)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> LiveRounds:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def step(self, owner: str, step: int, steps: int) -> None:
        """Move an owner's bar."""
        if owner not in self._tasks:
            self._tasks[owner] = self._bars.add_task(f"round {self.round}/{self.total_rounds} {owner}", total=steps)
        self._bars.update(self._tasks[owner], completed=step, total=steps)

    def round_done(self, record: RoundRecord) -> None:
        """Print the round and clear the bars."""
        self._clear()
        epsilon = max(spend.epsilon for spend in record.spends.values())
        seconds = record.seconds_training + record.seconds_crypto + record.seconds_transport
        console.print(
            f"  round {record.round + 1}/{self.total_rounds}: top-1 {record.accuracy:.2%},"
            f" largest epsilon {epsilon:.2f}, {record.bytes_up / 1e6:.1f} MB up, {seconds:.0f} s"
        )
        self.round = record.round + 2

    def round_failed(self, error: RoundFailed, retries_left: int) -> None:
        """Say who failed and what happens next."""
        self._clear()
        console.print(f"  {error}; {'trying again' if retries_left else 'no retry is left'}", style="red")

    def _clear(self) -> None:
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks.clear()


def _shortened(code: str, width: int = 220) -> str:
    cut = "… (the signed plan, shown in words above)"
    return "\n".join(line if len(line) <= width else line[:width] + cut for line in code.splitlines())

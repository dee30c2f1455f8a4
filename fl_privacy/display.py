"""What people see in a terminal: tables, reviews, progress. No decisions are made here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.progress import track
from rich.table import Table
from rich.text import Text

from fl_privacy.display_corpora import corpora as corpora
from fl_privacy.display_parts import console as console
from fl_privacy.display_parts import table as table
from fl_privacy.display_review import review as review
from fl_privacy.display_runs import LiveRounds as LiveRounds
from fl_privacy.display_runs import by_owner as by_owner
from fl_privacy.display_runs import rounds as rounds
from fl_privacy.encryption.registry import Registry
from fl_privacy.ledger_statement import LedgerStatement

if TYPE_CHECKING:
    from fl_privacy.privacy.audit import AuditResult
    from fl_privacy.privacy.entries import LedgerEntry
    from fl_privacy.privacy.report import AuditReport


def status(told: Mapping[str, Any]) -> Table:
    """One owner at a glance."""
    rows: list[tuple[str, object]] = [
        ("owner", f"{told['owner']} ({told['title']})"),
        ("fingerprint", told["fingerprint"]),
        ("signing key", told["signing_key"]),
        ("registry", _registry_in_words(told["registry"])),
        *((f"{scheme} encryption key", f"{name[:16]}…") for scheme, name in told["keys"].items()),
        *(("corpus", f"about {card['declared_size']:,} {card['unit']}s, {card['corpus'][:16]}…") for card in told["corpora"]),
        ("state", "works" if told["paused"] is None else f"PAUSED: {told['paused']}"),
        ("epsilon spent / budget", _budget_in_words(told)),
        ("ledger", f"{told['ledger_entries']} entries"),
        ("training workers", ", ".join(f"{part} {how}" for part, how in told["sandbox"].items())),
        ("trains on", f"{told['training']['device']}, in {told['training']['processes']} process(es)"),
        ("installed package", f"{told['package'][:16]}…"),
        *((f"plan {item['plan']}", _decision_in_words(item)) for item in told["decisions"]),
    ]
    return table("Owner", ["", ""], rows)


def fingerprints(registry: Registry, before: Registry | None = None) -> Table:
    """What owners read to each other out of band, and what has changed since the registry ``before``."""
    title, columns = f"Registry {registry.serial}: fingerprints", ["owner", "fingerprint"]
    rows = [[card.owner, card.fingerprint] for card in registry.cards]
    if before is not None and before != registry:
        changes = registry.changes_since(before)
        title, columns = f"{title}, with a fresh encryption key", [*columns, f"since registry {before.serial}"]
        rows += [[owner, "", ""] for owner, change in changes.items() if change == "left"]
        rows = [[owner, digits, changes.get(owner, "")] for owner, digits, *_ in sorted(rows)]
    drawn = table(title, columns, rows)
    drawn.add_section()
    drawn.add_row("all of it", registry.fingerprint)
    return drawn


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
        what = f"{event['name']} {event['verdict']}" if event["kind"] == "decision" else cost
        rows.append((entry.seq, when, event["kind"], order, what, epsilon))
    total = f"epsilon {statement.epsilon_spent:.3f} of {statement.epsilon_budget:.3f} at delta {statement.delta:g}"
    if statement.period_days is not None:
        total = (
            f"epsilon {statement.epsilon_in_period:.3f} of {statement.epsilon_budget:.3f} in the last {statement.period_days}"
            f" days, {statement.epsilon_spent:.3f} in total, which nothing bounds, at delta {statement.delta:g}"
        )
    head = f"unit: one {statement.unit}; accountant: {statement.accountant}; head {statement.head}"
    return Group(table("Ledger", ["entry", "time", "kind", "order", "what", "epsilon"], rows), Text(f"{total}; {head}"))


def watched(folders: Sequence[Path]) -> Iterable[Path]:
    """Round folders one by one, under a progress bar."""
    return track(folders, "rounds", console=console, transient=True)


def audit(result: AuditResult) -> Table:
    """What an export proves."""
    period = f" within {result.period_days} days (the total has no bound)" if result.period_days else ""
    rows = [
        ("owner", result.owner),
        ("entries", result.entries),
        ("chain and signatures", "verified"),
        (f"epsilon by the ledger ({result.accountant})", f"{result.epsilon_ledger:.4f}"),
        ("epsilon recomputed (dp-accounting PLD)", f"{result.epsilon_recomputed:.4f}"),
        ("budget", f"{result.budget:.4f}{period} at delta {result.delta:g}, unit: one {result.unit}"),
        ("head", result.head),
        ("findings", "; ".join(result.findings) or "none"),
    ]
    return table("Audit", ["", ""], rows)


def audit_report(report: AuditReport) -> Group:
    """An audit of several ledgers: figures, findings, and what was not verified."""
    rows = []
    for owner in report.owners:
        opacus = "none" if owner.epsilon_opacus is None else f"{owner.epsilon_opacus:.4f} {owner.accountant}"
        budget = f"{owner.budget:.4f}" + (f" per {owner.period_days} days" if owner.period_days else "")
        entries = f"{owner.entries} of {owner.entries_given}"
        confirmed = ", ".join(f"{by} to {last}" for by, last in owner.countersigned.items()) or "nobody"
        figures = (f"{owner.epsilon_signed:.4f}", opacus, f"{owner.epsilon_pld:.4f} PLD", budget)
        rows.append((owner.owner, f"one {owner.unit}, {owner.delta:g}", *figures, entries, confirmed))
    columns = [
        "owner",
        "unit, delta",
        "epsilon signed",
        "Opacus",
        "dp-accounting",
        "budget",
        "entries verified",
        "confirmed by",
    ]
    parts: list[Any] = [table("Ledgers (epsilon: total, upper bound)", columns, rows), Text(report.federation)]
    for finding in report.findings:
        parts.append(Text(f"FOUND {finding.place}: [{finding.kind}] {finding.what}", style="red"))
    if not report.findings:
        parts.append(Text("no findings", style="green"))
    parts += [Text("not verified:"), *(Text(f"- {words}") for words in report.not_verified)]
    return Group(*parts)


def jobs(found: Sequence[Mapping[str, Any]]) -> Table:
    """The guard's orders, the newest first."""
    columns = ["plan", "order", "scientist", "what", "attempt", "state", "step", "seconds"]
    rows = []
    for job in found:
        what = (job["order"][:12], f"{job['scientist'][:12]}…", _work_in_words(job), job["attempt"] + 1)
        rows.append((job["plan"], *what, job["state"], f"{job['step']}/{job['steps']}", f"{job['seconds']:.0f}"))
    return table("Jobs", columns, rows)


def _work_in_words(job: Mapping[str, Any]) -> str:
    training = f"round {job['round'] + 1}"
    if job["purpose"] == "train":
        return training
    return "final evaluation" if job["is_final"] else f"evaluation before {training}"


def _budget_in_words(told: Mapping[str, Any]) -> str:
    end = f"{told['epsilon_budget']:.3f} at delta {told['delta']:g} for one {told['unit']}"
    if told["period_days"] is None:
        return f"{told['epsilon_spent']:.3f} / {end}"
    in_all = f"{told['epsilon_spent']:.3f} in total, which nothing bounds"
    return f"{told['epsilon_in_period']:.3f} / {end} in {told['period_days']} days; {in_all}"


def _decision_in_words(item: Mapping[str, Any]) -> str:
    until = ""
    if item["verdict"] == "approved" and item["expires"] is not None:
        until = f" until {datetime.fromtimestamp(item['expires'], UTC):%Y-%m-%d %H:%M} UTC"
    return f"{item['verdict']}{until} {item['reason']}".strip()


def _registry_in_words(told: Mapping[str, Any] | None) -> str:
    if told is None:
        return "not enrolled yet"
    waiting = f"not yet signed by {', '.join(told['waiting_for'])}" if told["waiting_for"] else "signed by all"
    return f"{told['serial']} ({told['digest'][:16]}…), {waiting}: {', '.join(told['owners'])}"

"""What an auditor is given - exports, the owners' registry, a scientist's run - brought to the audit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from fl_privacy.encryption.evidence import KEPT_IN, Verdict, judge, round_folders
from fl_privacy.encryption.registry import Registry
from fl_privacy.errors import LedgerError, MessageError
from fl_privacy.privacy.cross_check import HistoryClaim
from fl_privacy.privacy.export_file import Export, lines_of
from fl_privacy.privacy.report import AuditReport, audit_exports
from fl_privacy.scientist.history import EvaluationRecord, RoundRecord
from fl_privacy.scientist.shown import Sheet, Shown


def audit_ledgers(exports: Sequence[Path], registry: Registry | None = None, history: Path | None = None) -> AuditReport:
    """Audit exported ledgers, by themselves and against each other.

    Args: registry has the keys that must have signed; without, each export is checked against the key that it names itself;
        history is a run's history.jsonl.
    Raises: LedgerError when a file cannot be read. What is wrong inside the ledgers is among the report's findings.
    """
    keys = {card.owner: card.signing_key for card in registry.cards} if registry else None
    claims = read_history(history) if history else []
    return audit_exports([Export.read(path) for path in exports], keys, claims)


class Sums(Shown, list[Verdict]):
    """What the evidence of each of a run's sums proves: ``found``, or the ``error`` that says why there is none."""

    @property
    def is_true(self) -> bool:
        """Whether everything that is here was proved."""
        return all(verdict.error is None for verdict in self)

    def sheet(self) -> Sheet:
        """Rounds and evaluations as their folders are named, and of which rounds there is no evidence."""
        columns = ("round", "attempt", "cohort", "MB added", "opened by", "verdict")
        rounds = {verdict.folder.name for verdict in self if verdict.folder.parent.name == KEPT_IN["train"]}
        gaps = [name for name in (f"{index:03d}" for index in range(int(max(rounds, default="0")))) if name not in rounds]
        note = f"no evidence of round {', '.join(gaps)}: skipped, or taken away" if gaps else ""
        return Sheet("Sums, added again", columns, [_in_words(verdict) for verdict in self], note)


def verify_sums(
    run: Path, registry: Registry, through: Callable[[Sequence[Path]], Iterable[Path]] = lambda folders: folders
) -> Sums:
    """Add every encrypted update of a run again, and compare with what the owners signed; see ``encryption.evidence``.

    Args: ``run`` is the folder that a scientist trained into; ``registry`` comes from somewhere else than that folder: from
        ``read_signed_registry``, say; ``through`` hands on the rounds' folders one by one, under a progress bar, say.
    Raises: HomeError when the folder holds no rounds. What is wrong with one of them is in its verdict.
    Privacy: needs no secret key and decrypts nothing.
    """
    return Sums(judge(folder, registry) for folder in through(round_folders(run)))


def read_history(file: Path) -> list[HistoryClaim]:
    """What a history says of each owner after each opened sum; what was skipped says nothing. Raises: LedgerError."""
    try:
        records = [_record(line) for line in lines_of(file) if "skipped" not in json.loads(line)]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, MessageError) as problem:
        raise LedgerError(f"{file} cannot be read as a history: {problem}") from None
    return [
        HistoryClaim(
            round=record.round,
            purpose="evaluate" if isinstance(record, EvaluationRecord) else "train",
            order=record.order,
            owner=owner,
            epsilon=spend.epsilon,
            budget=spend.budget,
            delta=spend.delta,
            head=spend.ledger_head,
            is_final=isinstance(record, EvaluationRecord) and record.is_final,
        )
        for record in records
        for owner, spend in record.spends.items()
    ]


def _in_words(verdict: Verdict) -> tuple[str, ...]:
    is_round = verdict.folder.parent.name == KEPT_IN["train"]
    name = verdict.folder.name if is_round else f"evaluation {verdict.folder.name}"
    if verdict.found is None:
        return name, "", "", "", "", f"FALSE: {type(verdict.error).__name__}"
    found = verdict.found
    added = f"{found.bytes_added / 1e6:.2f}"
    return name, str(found.attempt), ", ".join(found.cohort), added, ", ".join(found.openers), "true"


def _record(line: str) -> RoundRecord | EvaluationRecord:
    return EvaluationRecord.parse(line) if "evaluation" in json.loads(line) else RoundRecord.parse(line)

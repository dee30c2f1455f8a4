"""What an auditor is given - exports, the owners' registry, a scientist's history - brought to the audit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fl_privacy.encryption.registry import Registry
from fl_privacy.errors import LedgerError, MessageError
from fl_privacy.privacy.cross_check import HistoryClaim
from fl_privacy.privacy.export_file import Export, lines_of
from fl_privacy.privacy.report import AuditReport, audit_exports
from fl_privacy.scientist.history import EvaluationRecord, RoundRecord


def audit_ledgers(exports: Sequence[Path], registry: Registry | None = None, history: Path | None = None) -> AuditReport:
    """Audit exported ledgers, by themselves and against each other.

    Args: registry has the keys that must have signed; without, each export is checked against the key that it names itself;
        history is a run's history.jsonl.
    Raises: LedgerError when a file cannot be read. What is wrong inside the ledgers is among the report's findings.
    """
    keys = {card.owner: card.signing_key for card in registry.cards} if registry else None
    claims = read_history(history) if history else []
    return audit_exports([Export.read(path) for path in exports], keys, claims)


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
        )
        for record in records
        for owner, spend in record.spends.items()
    ]


def _record(line: str) -> RoundRecord | EvaluationRecord:
    return EvaluationRecord.parse(line) if "evaluation" in json.loads(line) else RoundRecord.parse(line)

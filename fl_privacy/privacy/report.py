"""An audit of all owners of a federation: one value with everything found, and its JSON and HTML."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from fl_privacy.parallel_composition import federation_claim
from fl_privacy.privacy.audit import Finding, check_spends
from fl_privacy.privacy.cross_check import HistoryClaim, check_history, check_paid, check_witnesses, gather
from fl_privacy.privacy.export_file import Export
from fl_privacy.privacy.recount import OwnerReport, recount
from fl_privacy.privacy.scope import not_verified, verified

TEMPLATE = Path(__file__).with_name("report.html.j2")


@dataclass(frozen=True)
class AuditReport:
    """What an audit of several ledgers found, in the order of the owners' names; no findings when all is well."""

    made: int  # Unix seconds
    owners: tuple[OwnerReport, ...]
    federation: str  # the claim for all owners together, and its assumption; empty without owners
    findings: tuple[Finding, ...]
    verified: tuple[str, ...]
    not_verified: tuple[str, ...]

    def to_json(self) -> str:
        """Everything, for machines."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def to_html(self) -> str:
        """One self-contained page: no script, no file beside it."""
        from jinja2 import Environment, select_autoescape

        from fl_privacy.privacy import plots

        environment = Environment(autoescape=select_autoescape(default_for_string=True), trim_blocks=True, lstrip_blocks=True)
        environment.filters["day"] = lambda seconds: datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
        pictures = plots.draw(self.owners) if any(owner.course for owner in self.owners) else []
        page = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
        return page.render(report=self, pictures=pictures)

    def write(self, folder: Path) -> None:
        """Leave report.json and report.html in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(self.to_json() + "\n", encoding="utf-8")
        (folder / "report.html").write_text(self.to_html(), encoding="utf-8")


def audit_exports(
    exports: Sequence[Export], keys: Mapping[str, str] | None = None, history: Sequence[HistoryClaim] = ()
) -> AuditReport:
    """Verify the exports of several owners, by themselves and against each other.

    Args: keys are the owners' public keys (hex) by name, from their registry; without, what the exports themselves name is
    taken, and that is said in ``not_verified``; history is what the scientist tells of the run.
    """
    owners, findings = gather(exports, keys)
    known = dict(keys) if keys is not None else {owner: audited.key for owner, audited in owners.items()}
    findings += check_witnesses(owners, known) + check_history(owners, history) + check_paid(owners, history)
    reports = []
    for _, audited in sorted(owners.items()):
        report, lies = recount(audited)
        findings += lies + check_spends(audited.ledger)
        reports.append(report)
    return AuditReport(
        made=int(time.time()),
        owners=tuple(reports),
        federation=federation_claim({one.owner: (one.epsilon_pld, one.delta) for one in reports}) if reports else "",
        findings=tuple(sorted(findings, key=_place)),
        verified=verified(owners, keys, history),
        not_verified=not_verified(owners, keys, history),
    )


def _place(finding: Finding) -> tuple[str, int, str]:
    return finding.owner, -1 if finding.entry is None else finding.entry, finding.what

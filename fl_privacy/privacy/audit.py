"""An auditor's check of an exported ledger: the owner's public key, and an accountant that shares nothing with the owner's.

The ledger accounts with Opacus; here epsilon is computed again from the bare entries by Google's dp-accounting (privacy loss
distributions), so one faulty accountant cannot hide behind itself.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from fl_privacy.errors import LedgerError
from fl_privacy.messages import LedgerStatement
from fl_privacy.privacy.entries import LedgerEntry, Reserve, VerifiedLedger, must_contain, verify

TOLERANCE = 0.02  # by which two correct upper bounds may differ, relative
GRID = 1e-4  # distance of privacy losses on the grid; wider beyond epsilon 10, which rounds up and saves memory
HOPELESS = 1000.0  # epsilon beyond which a closer look tells nothing

# an order whose series does not converge is left out, which can only make the rough bound larger; not worth four warnings
logging.getLogger("absl").addFilter(lambda record: "_compute_log_a_frac" not in record.getMessage())


@dataclass(frozen=True)
class AuditResult:
    """What an export shows. Epsilons are upper bounds per ``unit`` at ``delta``; ``findings`` is empty when all is well."""

    owner: str
    epsilon_ledger: float
    epsilon_recomputed: float
    budget: float
    delta: float
    accountant: str
    unit: str
    entries: int
    head: str
    findings: tuple[str, ...]


def verify_export(source: Path | Iterable[str], owner_key: str, seen: LedgerStatement | str | None = None) -> VerifiedLedger:
    """Check chain, signatures and meaning of an exported ledger.

    Args: source is a file of JSON lines, or the lines; owner_key the owner's public key (hex), known from elsewhere; seen a
    statement or head that the owner gave out earlier, without which entries cut off the end cannot be noticed.
    Raises: LedgerTampered that names the entry and what is wrong with it; LedgerError when the file cannot be read.
    """
    if isinstance(source, str):
        source = Path(source)
    if isinstance(source, Path):
        try:
            source = source.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as problem:
            raise LedgerError(f"{source} cannot be read as a ledger export: {type(problem).__name__}") from None
    ledger = verify(list(source), owner_key)
    if seen is not None:
        must_contain(ledger, seen)
    return ledger


def recompute_epsilon(entries: VerifiedLedger | Iterable[LedgerEntry], delta: float) -> float:
    """Upper bound on epsilon of all reserves, from the entries alone.

    Privacy: adding or removing one record, Poisson sampling. Source: Koskela et al. 2020, Doroshenko et al. 2022 (PLD).
    """
    steps: Counter[tuple[float, float]] = Counter()
    for entry in entries.entries if isinstance(entries, VerifiedLedger) else entries:
        if isinstance(entry.event, Reserve):
            spend = entry.event.spend
            steps[spend.sample_rate, spend.noise_multiplier] += spend.steps
    rough = RdpAccountant()
    for (rate, noise), count in steps.items():
        rough.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), count)
    size = float(rough.get_epsilon(delta))
    if size > HOPELESS:
        return size
    exact = PLDAccountant(value_discretization_interval=GRID * max(1.0, size / 10))
    for (rate, noise), count in steps.items():
        exact.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), count)
    return float(exact.get_epsilon(delta))


def audit_export(path: Path, owner_key: str, head: LedgerStatement | str | None = None) -> AuditResult:
    """Verify an export, compute its epsilon anew, and compare it with what the owner signed.

    Args: as ``verify_export``. Raises: LedgerTampered, LedgerError.
    """
    ledger = verify_export(path, owner_key, head)
    opening = ledger.opening
    recomputed = recompute_epsilon(ledger, opening.delta)
    findings = []
    if ledger.epsilon < recomputed * (1 - TOLERANCE):
        findings.append(f"the ledger claims epsilon {ledger.epsilon:.4f}, its entries cost {recomputed:.4f}")
    if isinstance(head, LedgerStatement) and head.entries == len(ledger.entries) and head.epsilon_spent < ledger.epsilon:
        findings.append(f"the owner stated epsilon {head.epsilon_spent:.4f}, the ledger claims {ledger.epsilon:.4f}")
    if ledger.epsilon > ledger.budget:
        findings.append(f"epsilon {ledger.epsilon:.4f} is over the budget {ledger.budget:.4f}")
    return AuditResult(
        owner=opening.owner,
        epsilon_ledger=ledger.epsilon,
        epsilon_recomputed=recomputed,
        budget=ledger.budget,
        delta=opening.delta,
        accountant=opening.accountant,
        unit=opening.unit,
        entries=len(ledger.entries),
        head=ledger.head,
        findings=tuple(findings),
    )

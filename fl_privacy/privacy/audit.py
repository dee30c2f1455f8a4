"""An auditor's check of one exported ledger: the owner's public key, and an accountant that shares nothing with the owner's.

The ledger accounts with Opacus; here epsilon is computed again from the bare entries by Google's dp-accounting (privacy loss
distributions), so one faulty accountant cannot hide behind itself. ``cross_check`` sets several owners' ledgers side by side.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
from dp_accounting.rdp import RdpAccountant

from fl_privacy.ledger_statement import LedgerStatement
from fl_privacy.privacy.chain import VerifiedLedger, must_contain
from fl_privacy.privacy.entries import LedgerEntry, Reserve, Spend
from fl_privacy.privacy.export_file import Export

TOLERANCE = 0.02  # by which two correct upper bounds may differ, relative
GRID = 1e-4  # distance of privacy losses on the grid; wider beyond epsilon 10, which rounds up and saves memory
HOPELESS = 1000.0  # epsilon beyond which a closer look tells nothing

# an order whose series does not converge is left out, which can only make the rough bound larger; not worth four warnings
logging.getLogger("absl").addFilter(lambda record: "_compute_log_a_frac" not in record.getMessage())


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be, and where: in whose ledger, at which entry (None: no single one)."""

    kind: str
    owner: str
    entry: int | None
    what: str

    @property
    def place(self) -> str:
        """Owner and entry in words."""
        return self.owner if self.entry is None else f"{self.owner}, entry {self.entry}"


@dataclass(frozen=True)
class AuditResult:
    """What an export shows. Epsilons are upper bounds per ``unit`` at ``delta``; ``findings`` is empty when all is well.

    With ``period_days`` the budget bounds what is reserved within any so many days; nothing bounds the total, which the
    epsilons here are.
    """

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
    period_days: int | None = None


def verify_export(
    source: Path | str | Iterable[str], owner_key: str, seen: LedgerStatement | str | None = None
) -> VerifiedLedger:
    """Check chain, signatures and meaning of an exported ledger.

    Args: source is a file of JSON lines, or the lines; owner_key the owner's public key (hex), known from elsewhere; seen a
    statement or head that the owner gave out earlier, without which the owner could cut entries off the end unnoticed.
    Raises: LedgerTampered that names the entry and what is wrong with it; LedgerError when the file cannot be read.
    """
    ledger = Export.read(source).verify(owner_key)
    if seen is not None:
        must_contain(ledger, seen)
    return ledger


def recompute_epsilon(entries: VerifiedLedger | Iterable[LedgerEntry], delta: float) -> float:
    """Upper bound on epsilon of all reserves, from the entries alone; see ``pld_epsilon``."""
    found = entries.entries if isinstance(entries, VerifiedLedger) else entries
    return pld_epsilon([entry.event.spend for entry in found if isinstance(entry.event, Reserve)], delta)


def pld_epsilon(spends: Sequence[Spend], delta: float) -> float:
    """Upper bound on the epsilon of all spends together.

    Privacy: adding or removing one unit, Poisson sampling. Source: Koskela et al. 2020, Doroshenko et al. 2022 (PLD).
    """
    steps: Counter[tuple[float, float]] = Counter()
    for spend in spends:
        steps[spend.sample_rate, spend.noise_multiplier] += spend.steps
    return _composed(tuple(sorted(steps.items())), delta) if steps else 0.0


@lru_cache(maxsize=4096)
def _composed(steps: tuple[tuple[tuple[float, float], int], ...], delta: float) -> float:
    rough = RdpAccountant()
    for (rate, noise), count in steps:
        rough.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), count)
    size = float(rough.get_epsilon(delta))
    if size > HOPELESS:
        return size
    grid = GRID * max(1, round(size / 10))
    parts = [_one_step(rate, noise, grid).self_compose(count) for (rate, noise), count in steps]
    total = parts[0]
    for part in parts[1:]:
        total = total.compose(part)
    exact = float(total.get_epsilon_for_delta(delta))
    return exact if math.isfinite(exact) else size  # below the grid's smallest delta


@lru_cache(maxsize=64)
def _one_step(rate: float, noise: float, grid: float) -> Any:
    return from_gaussian_mechanism(noise, value_discretization_interval=grid, sampling_prob=rate, use_connect_dots=True)


def check_spends(ledger: VerifiedLedger) -> list[Finding]:
    """Every reserve against the epsilon that it claims, the budget of its time, and its plan's approval."""
    found, spends, by_plan = [], list[Spend](), dict[str, list[Spend]]()
    for number, entry in enumerate(ledger.entries):
        reserve = entry.event
        if not isinstance(reserve, Reserve):
            continue
        spends.append(reserve.spend)
        by_plan.setdefault(reserve.plan, []).append(reserve.spend)
        problems = (
            ("epsilon", _low_claim(reserve, spends, ledger.opening.delta)),
            ("budget", _over_budget(ledger, number, reserve)),
            ("approval", _over_approval(ledger, number, by_plan[reserve.plan])),
        )
        found += [Finding(kind, ledger.opening.owner, number, what) for kind, what in problems if what]
    return found


def _low_claim(reserve: Reserve, spends: Sequence[Spend], delta: float) -> str | None:
    cost = pld_epsilon(spends, delta)
    if reserve.epsilon >= cost * (1 - TOLERANCE):
        return None
    return f"the ledger claims epsilon {reserve.epsilon:.4f}, its entries cost {cost:.4f}"


def _over_budget(ledger: VerifiedLedger, number: int, reserve: Reserve) -> str | None:
    budget, days = ledger.budgets[number], ledger.opening.period_days
    if days is None:
        return None if reserve.epsilon <= budget else f"epsilon {reserve.epsilon:.4f} is over the budget {budget:.4f}"
    cost = pld_epsilon(ledger.spends_in_period(ledger.times[number], upto=number), ledger.opening.delta)
    if cost <= budget:
        return None
    return f"epsilon {cost:.4f} within {days} days is over the budget {budget:.4f}"


def _over_approval(ledger: VerifiedLedger, number: int, spends: Sequence[Spend]) -> str | None:
    decision = ledger.decision_at(number)
    if decision is None:
        return None
    cost = pld_epsilon(spends, decision.delta)
    if cost <= decision.epsilon:
        return None
    return f"plan {decision.name} has cost epsilon {cost:.4f}, approved were {decision.epsilon:.4f} at delta {decision.delta:g}"


def audit_export(path: Path, owner_key: str, head: LedgerStatement | str | None = None) -> AuditResult:
    """Verify an export, compute its epsilon anew, and compare it with what the owner signed.

    Args: as ``verify_export``. Raises: LedgerTampered, LedgerError.
    """
    ledger = verify_export(path, owner_key, head)
    opening = ledger.opening
    findings = [finding.what for finding in check_spends(ledger)]
    if isinstance(head, LedgerStatement) and head.entries == len(ledger.entries) and head.epsilon_spent < ledger.epsilon:
        findings.append(f"the owner stated epsilon {head.epsilon_spent:.4f}, the ledger claims {ledger.epsilon:.4f}")
    return AuditResult(
        owner=opening.owner,
        epsilon_ledger=ledger.epsilon,
        epsilon_recomputed=recompute_epsilon(ledger, opening.delta),
        budget=ledger.budget,
        delta=opening.delta,
        accountant=opening.accountant,
        unit=opening.unit,
        entries=len(ledger.entries),
        head=ledger.head,
        findings=tuple(findings),
        period_days=opening.period_days,
    )

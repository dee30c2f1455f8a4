"""Several owners' ledgers side by side: what each has countersigned of the others, and what the scientist's history says.

One owner can sign a whole new past. It cannot take back its heads that the other owners' witnesses carry, with its own
signature under them, nor those in a scientist's history.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fl_privacy.messages import Purpose, SurvivorList
from fl_privacy.privacy.audit import Finding
from fl_privacy.privacy.chain import VerifiedLedger
from fl_privacy.privacy.entries import Reserve, Witness
from fl_privacy.privacy.export_file import Export

SAME = 1e-6  # relative difference between two records of one number


@dataclass(frozen=True)
class HistoryClaim:
    """What the scientist's history says of one owner after one round or evaluation, from that owner's signed receipt."""

    round: int
    order: str
    owner: str
    epsilon: float
    budget: float
    delta: float
    head: str
    purpose: Purpose = "train"
    is_final: bool = False

    @property
    def place(self) -> str:
        """Where in the history this stands."""
        if self.is_final:
            return "the evaluation of the finished model in the history"
        return f"{'the evaluation before ' if self.purpose == 'evaluate' else ''}round {self.round} of the history"


@dataclass
class Audited:
    """One owner's ledger as far as it could be verified, and the exports that it came from.

    ``given`` counts the entries in the export, verified or not; ``countersigned`` has the last entry that each other owner, or
    "history", has confirmed.
    """

    owner: str
    key: str
    ledger: VerifiedLedger
    given: int
    has_header: bool
    sources: list[str]
    countersigned: dict[str, int] = field(default_factory=dict)

    @property
    def is_broken(self) -> bool:
        """Whether entries were given that could not be verified."""
        return self.given > len(self.ledger.entries)


@dataclass(frozen=True)
class Testimony:
    """A head of ``owner`` that others signed or told, and where that is found."""

    owner: str
    order: str
    head: str
    by: str
    place: str


def gather(exports: Iterable[Export], keys: Mapping[str, str] | None) -> tuple[dict[str, Audited], list[Finding]]:
    """Verify each export as far as it goes, and lay the exports of one owner over each other.

    Args: keys are the owners' public keys (hex) by name; without, each export is checked against the key that it names itself.
    Returns: the longest verified ledger of each owner, and what is wrong with the exports, forks included.
    """
    owners: dict[str, Audited] = {}
    findings: list[Finding] = []
    for export in exports:
        one, fault = _open(export, keys)
        if fault is not None:
            findings.append(fault)
        if one is None:
            continue
        other = owners.setdefault(one.owner, one)
        if other is not one:
            findings += _lay_over(other, one)
            owners[one.owner] = longer = max(other, one, key=lambda audited: len(audited.ledger.entries))
            longer.sources = [*other.sources, *one.sources]
    return owners, findings


def _open(export: Export, keys: Mapping[str, str] | None) -> tuple[Audited | None, Finding | None]:
    owner = export.owner
    key = export.signer if keys is None else keys.get(owner or "")
    if owner is None:
        return None, Finding("chain", export.source, 0, "neither a header nor entry 0 names an owner: this is no ledger export")
    if key is None:
        return None, Finding("registry", owner, None, f"{export.source}: the registry has no owner of this name")
    ledger, fault = export.verify_prefix(key)
    finding = None
    if fault is not None:
        kind = "fork" if "fork" in str(fault) else "chain"
        finding = Finding(kind, owner, fault.entry, f"{export.source}: {fault}")
    if not ledger.entries:
        return None, finding
    return Audited(owner, key, ledger, len(export.lines), export.header is not None, [export.source]), finding


def _lay_over(left: Audited, right: Audited) -> list[Finding]:
    sources = f"{left.sources[0]} and {right.sources[0]}"
    if left.key != right.key:
        return [Finding("fork", left.owner, 0, f"{sources} are signed by different keys")]
    pairs = zip(left.ledger.positions, right.ledger.positions, strict=False)
    for number, (one, other) in enumerate(pairs):
        if one != other:
            what = f"{sources} differ from entry {number} on: the owner signed two histories"
            return [Finding("fork", left.owner, number, what)]
    return []


def check_witnesses(owners: Mapping[str, Audited], keys: Mapping[str, str]) -> list[Finding]:
    """Every countersigned head against the ledger that it is the head of.

    Args: keys are the owners' public keys (hex) by name.
    """
    findings, testimonies = [], list[Testimony]()
    for audited in owners.values():
        for number, witness in _witnesses(audited.ledger):
            forged = _forged(witness, keys)
            if forged:
                findings.append(Finding("countersignature", audited.owner, number, forged))
                continue
            lists = [SurvivorList.parse(signed.body) for signed in witness.survivors]
            for survivors, head in zip(lists, lists[0].heads, strict=True):
                place = f"entry {number} of {audited.owner}"
                testimonies.append(Testimony(survivors.owner, witness.order, head, audited.owner, place))
    return findings + _check_testimonies(owners, [one for one in testimonies if one.by != one.owner], "countersignature")


def _witnesses(ledger: VerifiedLedger) -> Iterator[tuple[int, Witness]]:
    for number, entry in enumerate(ledger.entries):
        if isinstance(entry.event, Witness):
            yield number, entry.event


def _forged(witness: Witness, keys: Mapping[str, str]) -> str | None:
    for signed in witness.survivors:
        name = SurvivorList.parse(signed.body).owner
        if keys.get(name, signed.signer) != signed.signer:
            return f"the witness of order {witness.order[:16]}… has a list of {name} that {name}'s key did not sign"
    return None


def _check_testimonies(owners: Mapping[str, Audited], told: Sequence[Testimony], kind: str) -> list[Finding]:
    missing: dict[str, list[Testimony]] = {}
    findings = []
    for testimony in told:
        audited = owners.get(testimony.owner)
        if audited is None:
            continue
        at = audited.ledger.positions.get(testimony.head)
        if at is None:
            missing.setdefault(testimony.owner, []).append(testimony)
        elif _is_early(audited.ledger, testimony.order, at):
            what = f"{testimony.place} holds this head for order {testimony.order[:16]}…, which was not committed then"
            findings.append(Finding(kind, testimony.owner, at, what))
        else:
            audited.countersigned[testimony.by] = max(at, audited.countersigned.get(testimony.by, -1))
    return findings + [_cut(owners[owner], kind, heads) for owner, heads in missing.items()]


def _is_early(ledger: VerifiedLedger, order: str, at: int) -> bool:
    state = ledger.orders.get(order, "committed")  # an order that took over an update was not reserved again
    return state != "committed" or at < ledger.committed_at.get(order, 0)


def _cut(audited: Audited, kind: str, heads: Sequence[Testimony]) -> Finding:
    entry = max(audited.countersigned.values(), default=-1) + 1
    count, by = len({testimony.head for testimony in heads}), ", ".join(sorted({testimony.by for testimony in heads}))
    what = (
        f"heads of this ledger that are not among its {len(audited.ledger.entries)} verified entries: {count}, held by {by}"
        f" (first: {heads[0].place}); it was cut short, broken or rewritten from entry {entry} on"
    )
    return Finding(kind, audited.owner, entry, what)


def check_history(owners: Mapping[str, Audited], history: Sequence[HistoryClaim]) -> list[Finding]:
    """What the scientist's history says of each owner after each round, against that owner's ledger."""
    told = [Testimony(one.owner, one.order, one.head, "history", one.place) for one in history]
    findings = _check_testimonies(owners, told, "history")
    for one in history:
        audited = owners.get(one.owner)
        at = audited.ledger.positions.get(one.head) if audited else None
        if audited is None or at is None:
            continue
        ledger = audited.ledger
        pairs = {
            "epsilon": (one.epsilon, _epsilon_at(ledger, at)),
            "a budget of": (one.budget, ledger.budgets[at]),
            "delta": (one.delta, ledger.opening.delta),
        }
        for name, (theirs, ours) in pairs.items():
            if not math.isclose(theirs, ours, rel_tol=SAME):
                what = f"{one.place} says {name} {theirs:g}, the ledger {ours:g}"
                findings.append(Finding("history", one.owner, at, what))
    return findings


def _epsilon_at(ledger: VerifiedLedger, number: int) -> float:
    events = (entry.event for entry in reversed(ledger.entries[: number + 1]))
    return next((event.epsilon for event in events if isinstance(event, Reserve)), 0.0)


def check_paid(owners: Mapping[str, Audited], history: Sequence[HistoryClaim]) -> list[Finding]:
    """Every opened sum an owner took part in must be paid: by its own reserve, or by one whose update it took over.

    A repeated attempt may take over a trained update that was committed and never opened; each such reserve pays once.
    """
    opened: dict[str, dict[str, str]] = {}  # owner -> order -> where that is told
    for audited in owners.values():
        for number, witness in _witnesses(audited.ledger):
            for signed in witness.survivors:
                name = SurvivorList.parse(signed.body).owner
                opened.setdefault(name, {}).setdefault(witness.order, f"entry {number} of {audited.owner}")
    for claim in history:
        opened.setdefault(claim.owner, {}).setdefault(claim.order, claim.place)
    findings = []
    for owner, orders in opened.items():
        if owner not in owners or owners[owner].is_broken:
            continue  # what could not be verified may have the reserves
        ledger = owners[owner].ledger
        unpaid = [order for order in orders if order not in ledger.orders]
        spare = sum(order not in orders for order in ledger.committed_at)
        if len(unpaid) > spare:
            first, count = unpaid[spare], len(unpaid) - spare
            what = f"{count} opened sums have no reserve in this ledger (first: order {first[:16]}…, {orders[first]})"
            findings.append(Finding("unpaid", owner, None, what))
    return findings

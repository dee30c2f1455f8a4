"""What an audit has verified and what it has not, in sentences that hold for the ledgers at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fl_privacy.privacy.cross_check import Audited, HistoryClaim
from fl_privacy.privacy.entries import Reserve


def verified(owners: Mapping[str, Audited], keys: Mapping[str, str] | None, history: Sequence[HistoryClaim]) -> tuple[str, ...]:
    """What was checked; anything that did not hold is among the findings."""
    root = "the owners' registry" if keys is not None else "the exports themselves"
    told = [f"The signature of every entry, with the public keys of {root}; number and chain of the entries."]
    accountants = ", ".join(sorted({f"Opacus {audited.ledger.opening.accountant}" for audited in owners.values()}))
    told.append(
        f"The epsilon after every reserve, twice, from the bare entries: {accountants or 'Opacus'} (as the ledger counts) and"
        " dp-accounting PLD (independent code), for adding or removing one unit, with Poisson sampling."
    )
    told.append("Every reserve against the budget that was in force when it was made.")
    keeping = [owner for owner, audited in owners.items() if audited.ledger.entries and audited.ledger.keeps_decisions]
    if keeping:
        told.append(f"Every reserve against its plan's approval (verdict, expiry, count, epsilon): {_and(keeping)}.")
    for owner, audited in sorted(owners.items()):
        others = [by for by in audited.countersigned if by != "history"]
        if others:
            last = max(audited.countersigned[by] for by in others)
            told.append(f"{owner}: entries 0 to {last} against heads that {_and(others)} countersigned.")
    if history:
        orders = len({claim.order for claim in history})
        told.append(f"Heads, epsilon, budget and delta in the scientist's history ({orders} rounds) against the ledgers.")
    return tuple(told)


def not_verified(
    owners: Mapping[str, Audited], keys: Mapping[str, str] | None, history: Sequence[HistoryClaim]
) -> tuple[str, ...]:
    """What a reader might take for verified and must not."""
    told = []
    if keys is None:
        told.append("Who the owners are: no registry was given, so anybody could have made an export under any name.")
    elif missing := sorted(set(keys) - set(owners)):
        told.append(f"{_and(missing)}: in the registry, but without an export that could be verified.")
    if not history:
        told.append("The scientist's history: none was given.")
    elif missing := sorted({claim.owner for claim in history} - set(owners)):
        told.append(f"The history's words about {_and(missing)}, of whom there is no ledger here.")
    for owner, audited in sorted(owners.items()):
        told += [f"{owner}: {words}" for words in _gaps(audited)]
    told += [
        "Whether an owner trained as it recorded: with this noise, these sampling rates, fresh randomness, on this corpus.",
        "Whether an owner used its text outside of this ledger, or keeps another one.",
        "When entries were made: times are each owner's own word, and periods and expiry rest on them.",
        "Whether one person's text lies at several owners; that person's epsilons add up.",
    ]
    return tuple(told)


def _gaps(audited: Audited) -> list[str]:
    ledger, gaps = audited.ledger, []
    count = len(ledger.entries)
    if audited.is_broken:
        gaps.append(f"entries {count} to {audited.given - 1}, after the one at fault; no figure here contains them.")
    last = max(audited.countersigned.values(), default=-1)
    if last < count - 1:
        tail = f"entries {last + 1} to {count - 1}" if last + 1 < count - 1 else f"entry {count - 1}"
        gaps.append(f"{tail}, which nobody else has confirmed: the owner could replace or drop them, and add others.")
    if not audited.has_header:
        gaps.append("the end of its export, which has no signed header: anybody could have cut entries off.")
    early = _reserves_without_decisions(audited)
    if early:
        gaps.append(f"whether {early} of its reserves were approved: the ledger kept no decisions when they were made.")
    if days := ledger.opening.period_days:
        gaps.append(f"any bound on the total: its budget holds for every {days} days, and the total grows without end.")
    return gaps


def _reserves_without_decisions(audited: Audited) -> int:
    ledger, count = audited.ledger, 0
    if ledger.opening.decisions_kept:
        return 0
    for entry in ledger.entries:
        if entry.event.kind == "decision":
            break
        count += isinstance(entry.event, Reserve)
    return count


def _and(names: Sequence[str]) -> str:
    return ", ".join(sorted(names))

"""Three owners who trained two rounds of one plan and countersigned each other: what an auditor is given."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_privacy.messages import Signed, SurvivorList, public_hex, sign
from fl_privacy.privacy.accounting import Spend, epsilon
from fl_privacy.privacy.cross_check import HistoryClaim
from fl_privacy.privacy.entries import FIRST, LedgerEntry
from fl_privacy.privacy.export_file import Export
from fl_privacy.privacy.ledger import Ledger

OWNERS = ("bank", "clinic", "school")
KEYS = {owner: Ed25519PrivateKey.from_private_bytes(bytes([number + 1]) * 32) for number, owner in enumerate(OWNERS)}
PUBLIC = {owner: public_hex(key) for owner, key in KEYS.items()}
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32)
DELTA = 1e-5
ROUND = Spend(noise_multiplier=1.0, sample_rate=0.02, steps=20)


def digest(of: str) -> str:
    return hashlib.sha256(of.encode()).hexdigest()


PLAN = digest("plan")


def order(number: int) -> str:
    return digest(f"order {number}")


def decision(**changes: Any) -> dict[str, Any]:
    """An approval of PLAN for three trainings of ROUND."""
    return {
        "plan": PLAN,
        "code": digest("code"),
        "corpus": digest("corpus"),
        "package": digest("package"),
        "scientist": digest("scientist"),
        "name": "clinic-notes",
        "verdict": "approved",
        "epsilon": epsilon([ROUND] * 3, DELTA, "rdp"),
        "delta": DELTA,
        "accountant": "rdp",
        "rounds": 3,
    } | changes


def survivor_lists(
    number: int, heads: Mapping[str, str], keys: Mapping[str, Ed25519PrivateKey] = KEYS, **changes: Any
) -> tuple[Signed, ...]:
    """The signed lists of a whole cohort for order ``number``."""
    cohort = sorted(heads)
    fields = {
        "order": order(number),
        "ciphertexts": tuple(digest(f"{owner} {number}") for owner in cohort),
        "heads": tuple(heads[owner] for owner in cohort),
        "total": digest(f"total {number}"),
    } | changes
    return tuple(sign(SurvivorList(owner=owner, **fields), keys[owner]) for owner in cohort)


@dataclass
class Federation:
    """Three ledgers on disk, and the history that the scientist keeps."""

    folder: Path
    ledgers: dict[str, Ledger] = field(default_factory=dict)
    history: list[HistoryClaim] = field(default_factory=list)

    def open(self, budget: float = 4.0, **options: Any) -> Federation:
        for owner in OWNERS:
            path = self.folder / f"{owner}.sqlite"
            ledger = Ledger.create(path, owner, KEYS[owner], budget, DELTA, "rdp", **{"decisions_kept": True} | options)
            ledger.decide(**decision())
            self.ledgers[owner] = ledger
        return self

    def round(self, number: int) -> None:
        """Entries of each owner: reserve, commit, witness."""
        heads = {}
        for owner, ledger in self.ledgers.items():
            ledger.reserve(order(number), PLAN, ROUND)
            ledger.commit(order(number))
            told = ledger.statement()
            heads[owner] = told.head
            claim = HistoryClaim(number, order(number), owner, told.epsilon_spent, told.epsilon_budget, told.delta, told.head)
            self.history.append(claim)
        lists = survivor_lists(number, heads)
        for ledger in self.ledgers.values():
            ledger.witness(order(number), lists)

    def lines(self, owner: str) -> list[str]:
        """The export of one owner: header, opening, decision, then three entries a round."""
        path = self.folder / f"{owner}.jsonl"
        self.ledgers[owner].export(path)
        return path.read_text(encoding="utf-8").splitlines()

    def exports(self, **instead: Iterable[str]) -> list[Export]:
        """All exports; ``instead`` gives the lines of some owners."""
        return [Export.read(list(instead.get(owner, self.lines(owner)))) for owner in OWNERS]


def federation(folder: Path, rounds: int = 2, **options: Any) -> Federation:
    made = Federation(folder).open(**options)
    for number in range(rounds):
        made.round(number)
    return made


def entries_of(lines: Iterable[str]) -> list[LedgerEntry]:
    """The entries of an export, without its header."""
    return [LedgerEntry.parse(Signed.parse(line).body) for line in list(lines)[1:]]


def rewritten(
    lines: Iterable[str],
    owner: str,
    change: Callable[[list[LedgerEntry]], Iterable[LedgerEntry]],
) -> list[str]:
    """A new past: the entries of an export after ``change``, numbered, chained and signed anew by their owner."""
    previous, signed = FIRST, []
    for number, entry in enumerate(change(entries_of(lines))):
        link = sign(entry.model_copy(update={"seq": number, "previous": previous}), KEYS[owner])
        previous = link.body_digest()
        signed.append(link.canonical().decode())
    return signed

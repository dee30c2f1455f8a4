"""Who the owners are: their public keys, verified once by all of them, and receipts checked against those keys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Annotated, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from fl_privacy.errors import CohortMismatch, CohortTooSmall, DigestMismatch, KeyMissing, MessageError, SignatureInvalid
from fl_privacy.messages import Digest, Message, OwnerName, RoundOrder, Signed, UpdateReceipt, first_problem, open_signed
from fl_privacy.plan import MINIMAL_COHORT


class OwnerCard(Message):
    """An owner's public keys (hex): Ed25519 to sign, X25519 to agree on masks and receive keys. Signed by itself."""

    owner: OwnerName
    signing_key: Digest
    agreement_key: Digest
    tenseal: Annotated[str, StringConstraints(pattern=r"^[0-9a-z.+]{1,32}$")]

    @property
    def fingerprint(self) -> str:
        """128 bits of sha256 over the card, in groups of four, to be compared by telephone or on paper."""
        short = sha256(self.canonical()).hexdigest()[:32]
        return " ".join(short[start : start + 4] for start in range(0, len(short), 4))


class Registry(Message):
    """The cards of all owners, sorted by name. Its digest is in every order, so owners with different registries never sum.

    Privacy: masks hide an update only among owners who are who they claim to be; compare fingerprints outside this channel.
    """

    cards: Annotated[tuple[OwnerCard, ...], Field(min_length=MINIMAL_COHORT)]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [card.owner for card in self.cards]
        if names != sorted(set(names)):
            raise ValueError("cards: must be sorted by owner, each owner once")
        for field in ("signing_key", "agreement_key"):
            if len({getattr(card, field) for card in self.cards}) != len(names):
                raise ValueError(f"cards: two owners have the same {field}")
        if len({card.tenseal for card in self.cards}) != 1:
            raise ValueError("cards: owners run different TenSEAL versions, whose ciphertexts do not mix")
        return self

    @property
    def dealer(self) -> str:
        """The owner who makes the HE secret key and seals it for the others: the first by name."""
        return self.cards[0].owner

    def card(self, owner: str) -> OwnerCard:
        """The card of one owner. Raises: KeyMissing."""
        for card in self.cards:
            if card.owner == owner:
                return card
        raise KeyMissing(f"the registry has no card of {owner[:40]!r}")


class SealedKey(Message):
    """The HE secret key, sealed by the dealer for one owner; ``ciphertext`` is a PyNaCl SealedBox in hex."""

    sender: OwnerName
    recipient: OwnerName
    registry: Digest
    ciphertext: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2})+$", max_length=100_000)]


def build_registry(cards: Iterable[Signed]) -> Registry:
    """Verify that each card is signed by the key it names, and put them in order.

    Raises: SignatureInvalid, MessageError (fewer than three owners, a name or key twice, unequal TenSEAL versions).
    """
    opened = []
    for signed in cards:
        card = open_signed(signed, OwnerCard, signed.signer)
        if card.signing_key != signed.signer:
            raise SignatureInvalid(f"the card of {card.owner!r} is not signed by the key that it names")
        opened.append(card)
    try:
        return Registry(cards=tuple(sorted(opened, key=lambda card: card.owner)))
    except ValidationError as problem:
        raise MessageError(f"Registry: {first_problem(problem)}") from None


def check_cohort(order: RoundOrder) -> None:
    """Refuse a cohort with a repeated name, without one weight per owner, or too small to hide one update.

    Raises: CohortMismatch, CohortTooSmall.
    """
    if len(set(order.cohort)) != len(order.cohort) or len(order.weights) != len(order.cohort):
        raise CohortMismatch("the order's cohort must name each owner once, with one weight each")
    if len(order.cohort) < MINIMAL_COHORT:
        raise CohortTooSmall(f"the order's cohort has {len(order.cohort)} owners; {MINIMAL_COHORT} are needed to hide one")


def check_registry(order: RoundOrder, registry: Registry) -> None:
    """Refuse an order made for another registry. Raises: DigestMismatch."""
    if order.registry != registry.digest():
        raise DigestMismatch(f"the order is for registry {order.registry[:16]}…, this one is {registry.digest()[:16]}…")


def verify_receipts(order: RoundOrder, receipts: Sequence[Signed], registry: Registry) -> tuple[UpdateReceipt, ...]:
    """Check that exactly the cohort has sent updates for this very order, each signed by the owner's registered key.

    Returns: the receipts in the order of ``order.cohort``.
    Raises: CohortMismatch (missing, repeated, other order), SignatureInvalid, CohortTooSmall, DigestMismatch (registry),
        KeyMissing (an owner without a card).
    """
    check_cohort(order)
    check_registry(order, registry)
    owners = {registry.card(owner).signing_key: owner for owner in order.cohort}
    digest, found = order.digest(), {}
    for signed in receipts:
        if signed.signer not in owners:
            raise SignatureInvalid(f"a receipt is signed by key {signed.signer[:16]}…, which no owner of the cohort has")
        owner = owners[signed.signer]
        receipt = open_signed(signed, UpdateReceipt, signed.signer)
        if receipt.owner != owner:
            raise SignatureInvalid(f"a receipt in the name of {receipt.owner!r} is signed by {owner!r}")
        if receipt.order != digest:
            raise CohortMismatch(f"the receipt of {owner!r} is for order {receipt.order[:16]}…, not {digest[:16]}…")
        if owner in found:
            raise CohortMismatch(f"{owner!r} has two receipts for one order")
        found[owner] = receipt
    missing = sorted(set(order.cohort) - set(found))
    if missing:
        raise CohortMismatch(f"no receipt of {', '.join(missing)}")
    return tuple(found[owner] for owner in order.cohort)

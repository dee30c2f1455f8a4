"""Who the owners are: their public keys, vetted and signed by all of them.

Every owner builds the registry from the cards that it vetted, signs it, and accepts only signatures of that very registry by
its members. So whoever relays cards can show different owners different keys, but such owners never agree on a registry.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from fl_privacy.cohort_fields import MINIMAL_COHORT
from fl_privacy.errors import CohortMismatch, CohortTooSmall, DigestMismatch, KeyMissing, MessageError, SignatureInvalid
from fl_privacy.messages import Digest, Message, OwnerName, Signed, first_problem, open_signed
from fl_privacy.round_order import RoundOrder

Scheme = Literal["bfv", "ckks"]  # how sums are encrypted: exact integers under masks, or floats without


class OwnerCard(Message):
    """An owner's public keys (hex): Ed25519 to sign, X25519 to agree on masks and receive keys. Signed by itself."""

    owner: OwnerName
    signing_key: Digest
    agreement_key: Digest
    tenseal: Annotated[str, StringConstraints(pattern=r"^[0-9a-z.+]{1,32}$")]

    @property
    def fingerprint(self) -> str:
        """128 bits of sha256 over the card, in groups of four, to be compared by telephone or on paper."""
        return _grouped(sha256(self.canonical()).hexdigest()[:32])


class Registry(Message):
    """The cards of all owners, sorted by name. Its digest is in every order, so owners with different registries never sum.

    Any change of a key or a member is a new registry with a higher ``serial``, which all its members sign.
    Privacy: masks hide an update only among owners who are who they claim to be; compare fingerprints outside this channel.
    """

    serial: Annotated[int, Field(ge=1, lt=2**31)]
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
            versions = ", ".join(f"{card.owner} {card.tenseal}" for card in self.cards)
            raise ValueError(f"cards: ciphertexts of different TenSEAL versions do not mix; install one version ({versions})")
        return self

    @property
    def fingerprint(self) -> str:
        """192 bits of the digest. If every owner reads out the same one, all cards are true: a guard knows its own card.

        Longer than a card's, since a relay might look for two registries that share one fingerprint.
        """
        return _grouped(self.digest()[:48])

    @property
    def owners(self) -> tuple[str, ...]:
        """The members' names, sorted."""
        return tuple(card.owner for card in self.cards)

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

    def changes_since(self, earlier: Registry) -> dict[str, str]:
        """What is different from another registry, by owner: ``joined``, ``left`` or ``new card``."""
        before, after = ({card.owner: card for card in registry.cards} for registry in (earlier, self))
        told = {owner: "left" for owner in before if owner not in after}
        for owner, card in after.items():
            if before.get(owner) != card:
                told[owner] = "new card" if owner in before else "joined"
        return dict(sorted(told.items()))


class RegistryRecord(Message):
    """A registry signed by the owner who keeps this record, and the other members' signatures of the same registry."""

    registry: Signed
    signatures: tuple[Signed, ...] = ()

    def signed_by(self) -> tuple[str, ...]:
        """The members whose signatures are here, each verified. Raises: SignatureInvalid, DigestMismatch, MessageError."""
        registry = open_signed(self.registry, Registry, self.registry.signer)
        return tuple(sorted({signatory(signed, registry) for signed in (self.registry, *self.signatures)}))


class RegistryState(Message):
    """What a guard tells about its registry: its own signature, whose signatures it holds, and the names of its HE keys."""

    registry: Signed
    signed_by: tuple[OwnerName, ...]
    keys: dict[Scheme, Digest]


class SealedKey(Message):
    """An HE secret key, sealed by the dealer for one owner; ``ciphertext`` is a PyNaCl SealedBox in hex.

    ``name`` is the key's public name (``encryption.keys.key_name``), the same for all owners to whom one key was dealt.
    """

    sender: OwnerName
    recipient: OwnerName
    registry: Digest
    scheme: Scheme
    name: Digest
    ciphertext: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2})+$", max_length=1_000_000)]


def build_registry(cards: Iterable[Signed], serial: int = 1) -> Registry:
    """Verify that each card is signed by the key it names, and put them in order.

    Raises: SignatureInvalid, MessageError (fewer than three owners, a name or key twice, unequal TenSEAL versions).
    """
    opened = []
    for signed in cards:
        card = open_signed(signed, OwnerCard, signed.signer)
        if card.signing_key != signed.signer:
            raise SignatureInvalid(f"the card of {card.owner!r} is not signed by the key that it names")
        opened.append(card)
    return registry_of(opened, serial)


def registry_of(cards: Iterable[OwnerCard], serial: int) -> Registry:
    """A registry of cards that were verified before. Raises: MessageError, as ``build_registry`` does."""
    try:
        return Registry(serial=serial, cards=tuple(sorted(cards, key=lambda card: card.owner)))
    except ValidationError as problem:
        raise MessageError(f"Registry: {first_problem(problem)}") from None


def signatory(signed: Signed, registry: Registry) -> str:
    """The member of ``registry`` who signed exactly this registry.

    Raises: DigestMismatch (it signed another one; says whose card differs), SignatureInvalid (no member), MessageError.
    """
    theirs = open_signed(signed, Registry, signed.signer)
    member = next((card.owner for card in registry.cards if card.signing_key == signed.signer), None)
    if theirs != registry:
        who = member or f"the holder of key {signed.signer[:16]}…, who is no member of this registry,"
        error = DigestMismatch if member else SignatureInvalid
        raise error(f"{who} signed another registry: {difference(theirs, registry)}")
    if member is None:
        raise SignatureInvalid(f"the registry is signed by key {signed.signer[:16]}…, which no member has")
    return member


def difference(other: Registry, expected: Registry) -> str:
    """In words, how another registry differs from the expected one; empty if it does not."""
    words = {"joined": "an additional card of", "left": "no card of", "new card": "another card of"}
    told = [f"{words[change]} {owner}" for owner, change in other.changes_since(expected).items()]
    if other.serial != expected.serial:
        told.append(f"serial {other.serial} instead of {expected.serial}")
    return "; ".join(told)


def verify_registry(record: RegistryRecord, known: str) -> Registry:
    """Verify a complete registry as an auditor does, who knows the public signing key or the fingerprint of one member.

    That member's signature vouches for all other cards; every other member must have signed the same registry.
    Args: known is in hex, spaces are ignored. Raises: SignatureInvalid, DigestMismatch, MessageError, KeyMissing (a member
        has not signed).
    """
    registry = complete_registry(record)
    wanted = known.replace(" ", "").lower()
    if not any(wanted in (card.signing_key, card.fingerprint.replace(" ", "")) for card in registry.cards):
        raise SignatureInvalid("no member of this registry has the key or fingerprint that was given")
    return registry


def complete_registry(record: RegistryRecord) -> Registry:
    """The registry, if all its members have signed it. It may be anyone's: see ``verify_registry``.

    Raises: KeyMissing that names who has not signed, SignatureInvalid, DigestMismatch, MessageError.
    """
    signed_by = record.signed_by()
    registry = Registry.parse(record.registry.body)
    missing = [owner for owner in registry.owners if owner not in signed_by]
    if missing:
        raise KeyMissing(
            f"registry {registry.serial} is not signed by {', '.join(missing)}; once they have enrolled with the same cards,"
            " the scientist's `submit` and `train` relay the signatures"
        )
    return registry


def _grouped(digits: str) -> str:
    return " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))


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

"""What the owners of a cohort sign before a sum is opened, and how each step is checked. No secret key is used here.

receipts: every owner delivered one ciphertext      survivor lists: all owners saw the same ciphertexts and the same total
reveals: only then every owner gives its self-mask seed b_k, and the sum can be opened

Option R: if anybody is missing, nobody signs, no b_k is ever revealed, and the attempt stays uniformly random even to a
scientist together with K - 2 owners, who hold the HE key and all ciphertexts; so the same update may go into a later attempt.
Source: Bonawitz et al. 2017, section 4 (self-masks; there with secret sharing instead of a new attempt).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import TypeVar

from fl_privacy.encryption.registry import Registry, check_cohort, check_registry
from fl_privacy.errors import CohortMismatch, SignatureInvalid
from fl_privacy.messages import (
    CloseRequest,
    OpenRequest,
    RevealRequest,
    SelfMaskReveal,
    Signed,
    SurvivorList,
    UpdateReceipt,
    open_signed,
)
from fl_privacy.round_order import RoundOrder

Word = TypeVar("Word", UpdateReceipt, SurvivorList, SelfMaskReveal)


def commit(seed: bytes, order: str, owner: str) -> str:
    """The commitment to a self-mask seed that goes into a receipt (hex); 32 random bytes cannot be found from it."""
    return hashlib.sha256(b"\0".join((b"fl_privacy/v1/self-mask", order.encode(), owner.encode(), seed))).hexdigest()


def verify_receipts(order: RoundOrder, receipts: Sequence[Signed], registry: Registry) -> tuple[UpdateReceipt, ...]:
    """Check that exactly the cohort has sent updates for this very order, each signed by the owner's registered key.

    Returns: the receipts in the order of ``order.cohort``.
    Raises: CohortMismatch (missing, repeated, other order, one ciphertext twice), SignatureInvalid, CohortTooSmall,
        DigestMismatch (registry), KeyMissing (an owner without a card).
    """
    opened = _one_from_each(order, receipts, UpdateReceipt, registry)
    if len({receipt.ciphertext for receipt in opened}) != len(opened):
        raise CohortMismatch("two owners delivered the same ciphertext")
    if any((receipt.self_mask is None) != (order.encoding.scheme == "ckks") for receipt in opened):
        raise CohortMismatch("a receipt commits to a self-mask where the order's scheme has none, or lacks it")
    return opened


def verify_survivors(request: RevealRequest, order: RoundOrder, registry: Registry) -> tuple[UpdateReceipt, ...]:
    """Check that all owners of the cohort signed the same survivor list, for these receipts and this total.

    Returns: the receipts in the order of ``order.cohort``. Raises: what ``verify_receipts`` raises.
    """
    receipts = verify_receipts(order, request.receipts, registry)
    for survivors in _one_from_each(order, request.survivors, SurvivorList, registry):
        if survivors != survivor_list(request, order, receipts, survivors.owner):
            raise CohortMismatch(f"{survivors.owner!r} signed another survivor list than the one of these receipts")
    return receipts


def verify_reveals(request: OpenRequest, order: RoundOrder, registry: Registry) -> tuple[bytes, ...]:
    """Check survivor lists and that every owner revealed the self-mask that its receipt commits to.

    Returns: the seeds in the order of ``order.cohort``; none where the scheme has no masks.
    Raises: what ``verify_receipts`` raises; CohortMismatch also for a seed that does not fit its commitment.
    """
    receipts = verify_survivors(request, order, registry)
    if order.encoding.scheme == "ckks":
        return ()
    seeds = []
    for receipt, reveal in zip(receipts, _one_from_each(order, request.reveals, SelfMaskReveal, registry), strict=True):
        seed = bytes.fromhex(reveal.seed)
        if not hmac.compare_digest(commit(seed, reveal.order, reveal.owner), receipt.self_mask or ""):
            raise CohortMismatch(f"{reveal.owner!r} revealed another self-mask than its receipt commits to")
        seeds.append(seed)
    return tuple(seeds)


def survivor_list(request: CloseRequest, order: RoundOrder, receipts: Sequence[UpdateReceipt], owner: str) -> SurvivorList:
    """What ``owner`` signs for verified receipts."""
    return SurvivorList(
        order=order.digest(),
        owner=owner,
        ciphertexts=tuple(receipt.ciphertext for receipt in receipts),
        heads=tuple(receipt.ledger_head for receipt in receipts),
        total=request.total,
    )


def _one_from_each(order: RoundOrder, words: Sequence[Signed], kind: type[Word], registry: Registry) -> tuple[Word, ...]:
    """One word of ``kind`` for this order from every owner of the cohort, signed with its registered key."""
    check_cohort(order)
    check_registry(order, registry)
    owners = {registry.card(owner).signing_key: owner for owner in order.cohort}
    digest, found, called = order.digest(), {}, kind.__name__
    for signed in words:
        if signed.signer not in owners:
            raise SignatureInvalid(f"a {called} is signed by key {signed.signer[:16]}…, which no owner of the cohort has")
        owner = owners[signed.signer]
        word = open_signed(signed, kind, signed.signer)
        if word.owner != owner:
            raise SignatureInvalid(f"a {called} in the name of {word.owner!r} is signed by {owner!r}")
        if word.order != digest:
            raise CohortMismatch(f"the {called} of {owner!r} is for order {word.order[:16]}…, not {digest[:16]}…")
        if owner in found:
            raise CohortMismatch(f"{owner!r} has two of {called} for one order")
        found[owner] = word
    missing = sorted(set(order.cohort) - set(found))
    if missing:
        raise CohortMismatch(f"no {called} of {', '.join(missing)}")
    return tuple(found[owner] for owner in order.cohort)

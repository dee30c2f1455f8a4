"""Owners as witnesses of each other's ledgers: the signed survivor lists of an order carry the heads of its whole cohort."""

from __future__ import annotations

from fl_privacy.errors import MessageError, SignatureInvalid
from fl_privacy.messages import SurvivorList, open_signed
from fl_privacy.privacy.entries import Witness


def agreed_heads(witness: Witness, owner: str, owner_key: str) -> dict[str, str]:
    """The ledger head of each owner that the whole cohort signed, by owner.

    Only ``owner``'s signature is checked against a known key here; each other list must be signed by the key that it names,
    which an auditor compares with the registry. Heads stand in the order of the cohort, which is sorted by name.
    Raises: SignatureInvalid, MessageError (another order, lists that differ, an owner missing or twice).
    """
    lists = [open_signed(signed, SurvivorList, signed.signer) for signed in witness.survivors]
    names = [survivors.owner for survivors in lists]
    if names != sorted(set(names)):
        raise MessageError("the survivor lists must be sorted by owner, one from each")
    first = lists[0]
    for survivors in lists:
        if survivors.order != witness.order:
            raise MessageError(f"the survivor list of {survivors.owner!r} is for order {survivors.order[:16]}…")
        if survivors != first.model_copy(update={"owner": survivors.owner}):
            raise MessageError(f"{first.owner!r} and {survivors.owner!r} signed different survivor lists")
    if len(first.heads) != len(names):
        raise MessageError(f"{len(first.heads)} owners are in the cohort, {len(names)} signed")
    if owner not in names or witness.survivors[names.index(owner)].signer != owner_key:
        raise SignatureInvalid(f"{owner!r} has not signed its own survivor list")
    return dict(zip(names, first.heads, strict=True))

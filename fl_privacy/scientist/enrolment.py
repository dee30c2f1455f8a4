"""The scientist's part in the owners' enrolment: carrying signatures and sealed keys between them, trusted with neither."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fl_privacy.encryption.registry import Registry, RegistryState, Scheme, SealedKey, difference
from fl_privacy.errors import OwnerFailed, SignatureInvalid
from fl_privacy.messages import open_signed
from fl_privacy.scientist.relay import RelayClient


class Relayed(NamedTuple):
    """How many signatures of the registry and how many sealed keys were carried from owner to owner."""

    signatures: int
    keys: int


def registry_states(relays: Mapping[str, RelayClient]) -> dict[str, RegistryState]:
    """What each owner tells about its registry; unverified. Raises: KeyMissing (an owner has not enrolled), MessageError."""
    return {owner: RegistryState.parse(relay.registry()) for owner, relay in relays.items()}


def common_registry(states: Mapping[str, RegistryState]) -> Registry:
    """The registry, if every owner has signed the same.

    Raises: OwnerFailed (one owner differs from most; says in what), SignatureInvalid (not signed by that owner), MessageError.
    """
    shown = {owner: open_signed(state.registry, Registry, state.registry.signer) for owner, state in states.items()}
    usual = Counter(shown.values()).most_common(1)[0][0]
    odd = {owner: difference(registry, usual) for owner, registry in shown.items() if registry != usual}
    if odd:
        agreed = ", ".join(owner for owner in shown if owner not in odd)
        told = "; ".join(f"{owner}: {what}" for owner, what in odd.items())
        raise OwnerFailed(next(iter(odd)), f"signed another registry of owners than {agreed} ({told}); {_ADVICE}")
    for owner, state in states.items():
        if state.registry.signer != usual.card(owner).signing_key:
            raise SignatureInvalid(f"{owner} shows a registry that is not signed by the key in its own card")
    return usual


def common_key(states: Mapping[str, RegistryState], owners: Sequence[str], scheme: Scheme) -> str:
    """The public name of the HE key that these owners hold. Raises: OwnerFailed naming one without it or with another."""
    names = {owner: states[owner].keys.get(scheme) for owner in owners}
    usual = Counter(filter(None, names.values())).most_common(1)
    for owner, name in names.items():
        if name is None:
            reason = "its domain.toml must allow ckks when the key is made" if scheme == "ckks" else "relay it with `submit`"
            raise OwnerFailed(owner, f"does not hold the {scheme} encryption key; {reason}")
        if name != usual[0][0]:
            raise OwnerFailed(owner, f"holds another {scheme} encryption key than the others; {_ROTATE}")
    return usual[0][0]


def relay_keys(relays: Mapping[str, RelayClient]) -> Relayed:
    """Carry every owner's signature of the registry to all others, then the dealer's sealed keys to whom they are for.

    Raises: OwnerFailed, SignatureInvalid, KeyMissing; see ``Federation.relay_keys``.
    """
    states = registry_states(relays)
    registry = common_registry(states)
    signatures = 0
    for owner, relay in relays.items():
        for signer, state in states.items():
            if signer not in states[owner].signed_by:
                relay.put_registry(state.registry)
                signatures += 1
    keys = 0
    for envelope in relays[registry.dealer].envelopes() if registry.dealer in relays else ():
        sealed = SealedKey.parse(envelope.body)
        recipient = states.get(sealed.recipient)
        if recipient is not None and recipient.keys.get(sealed.scheme) != sealed.name:
            keys += relays[sealed.recipient].put_envelope(envelope)
    return Relayed(signatures, keys)


_ADVICE = "let all owners run `fl-privacy owner enrol` with the same cards and, where they differ, --serial N"
_ROTATE = "let all owners run `fl-privacy owner enrol --rotate`"

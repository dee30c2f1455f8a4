"""How an owner enrols with others, changes members or keys, and comes to hold the shared HE secret keys.

``registry.json`` is written last, in one piece: until then the old registry stands without its keys, so nothing can be summed
under it, and repeating the command does everything again.
"""

from __future__ import annotations

import threading
from typing import Annotated, Any, get_args

from pydantic import Field

from fl_privacy.durable_files import write_atomically
from fl_privacy.encryption.keys import generate_secret_key, is_registered, key_name, seal_key, unseal_key
from fl_privacy.encryption.registry import (
    OwnerCard,
    Registry,
    RegistryRecord,
    RegistryState,
    Scheme,
    SealedKey,
    build_registry,
    registry_of,
    signatory,
)
from fl_privacy.errors import KeyMissing, OrderRefused, SignatureInvalid
from fl_privacy.guard.home import GuardHome
from fl_privacy.messages import Message, Signed, sign

SCHEMES: tuple[Scheme, ...] = get_args(Scheme)


class EnrolRequest(Message):
    """What an owner asks of its own guard: enrol with the owners of these cards, whose fingerprints it has compared.

    Without ``serial`` it is the present one if nothing changes, else the next. ``rotate`` asks for a fresh HE key; without
    ``cards`` it keeps the present members.
    """

    cards: tuple[Signed, ...] = ()
    serial: Annotated[int, Field(ge=1)] | None = None
    rotate: bool = False


class Enrolment:
    """The registry and the HE keys of one guard."""

    def __init__(self, home: GuardHome) -> None:
        self.home = home
        self._changing = threading.Lock()  # so that no key or signature of the old registry lands in the new one

    def propose(self, request: EnrolRequest) -> Registry:
        """The registry that ``enrol`` would sign; changes nothing. Raises: what ``enrol`` raises."""
        current = self._current()
        if current is not None and request.rotate and not request.cards:
            cards = current.cards
        else:
            cards = build_registry(request.cards).cards
        registry = registry_of(cards, self._serial(request, cards, current))
        if not is_registered(self.home.identity, self.home.owner, registry):
            raise SignatureInvalid(f"the card of {self.home.owner} is not its own: another key, or another TenSEAL version")
        if current and registry != current and registry.serial <= current.serial:
            told = f"{self.home.owner} has signed registry {current.serial} before"
            raise OrderRefused(f"{told}; another one needs a higher serial, the same at all owners")
        return registry

    def enrol(self, request: EnrolRequest) -> Registry:
        """Sign a registry; the same request again changes nothing. With a new one the old HE keys are removed.

        The first owner by name makes the new key. Plans stay approved; orders of the old registry can no longer be opened.
        Raises: SignatureInvalid (a card not signed by its own key, or another card for this owner than its own), MessageError,
            KeyMissing (this owner has no card), OrderRefused (another registry of this or a higher serial was signed before).
        """
        with self._changing:
            registry = self.propose(request)
            if registry != self._current():
                self._destroy_keys()
                if registry.dealer == self.home.owner:
                    self._make_keys()
                self._write(RegistryRecord(registry=sign(registry, self.home.identity.signing_key)))
            return registry

    def take_signature(self, signed: Signed) -> tuple[str, ...]:
        """Accept another member's signature of the registry that this owner signed; returns who has signed it now.

        Raises: DigestMismatch (a member signed another registry; says whose card differs), SignatureInvalid, KeyMissing.
        """
        with self._changing:
            record = self.home.registry_record
            signed_by = record.signed_by()
            if signatory(signed, self.home.registry) not in signed_by:
                record = RegistryRecord(registry=record.registry, signatures=(*record.signatures, signed))
                self._write(record)
            return record.signed_by()

    def state(self) -> RegistryState:
        """What the relaying scientist is told. Raises: KeyMissing before enrolment."""
        record = self.home.registry_record
        return RegistryState(registry=record.registry, signed_by=record.signed_by(), keys=self.key_names())

    def summary(self) -> dict[str, Any] | None:
        """Serial, digest and signatures for the owner's eyes; None before enrolment."""
        registry = self._current()
        if registry is None:
            return None
        waiting_for = self._waiting_for(registry)
        return {"serial": registry.serial, "digest": registry.digest(), "owners": registry.owners, "waiting_for": waiting_for}

    def key_names(self) -> dict[Scheme, str]:
        """The public names of the HE keys that this owner holds."""
        return {scheme: key_name(self.home.secret_key(scheme)) for scheme in self._held()}

    def envelopes(self) -> list[Signed]:
        """The HE keys, sealed for each other owner; only the dealer has any. The relaying scientist cannot read them.

        Raises: KeyMissing until all owners have signed the registry, so that no key goes to owners who disagree about it.
        """
        home, registry = self.home, self.home.registry
        if registry.dealer != home.owner:
            return []
        home.require_complete_registry()
        return [
            seal_key(home.secret_key(scheme), home.owner, owner, home.identity, registry, scheme)
            for scheme in self._held()
            for owner in registry.owners
            if owner != home.owner
        ]

    def take_envelope(self, envelope: Signed) -> bool:
        """Accept an HE key sealed for this owner by the dealer; False if this owner's policy forbids its scheme.

        Raises: SignatureInvalid, DigestMismatch, CiphertextInvalid, KeyMissing before enrolment, OrderRefused if a different
            key is held.
        """
        if SealedKey.parse(envelope.body).scheme not in self._allowed():
            return False
        with self._changing:
            home = self.home
            scheme, key = unseal_key(envelope, home.owner, home.identity, home.registry)
            if scheme not in self._held():
                write_atomically(home.secret_key_path(scheme), key)
            elif home.secret_key(scheme) != key:
                told = f"{home.owner} already holds another {scheme} key of this registry"
                raise OrderRefused(f"{told}; let all owners run `fl-privacy owner enrol --rotate`")
            return True

    def _serial(self, request: EnrolRequest, cards: tuple[OwnerCard, ...], current: Registry | None) -> int:
        if request.serial is not None:
            return request.serial
        if current is None:
            return 1
        # a registry that not all have signed yet is the change that was asked for: repeating the command repeats nothing
        changes = cards != current.cards or (request.rotate and not self._waiting_for(current))
        return current.serial + changes

    def _current(self) -> Registry | None:
        try:
            return self.home.registry
        except KeyMissing:
            return None

    def _waiting_for(self, registry: Registry) -> list[str]:
        signed_by = self.home.registry_record.signed_by()
        return [owner for owner in registry.owners if owner not in signed_by]

    def _held(self) -> list[Scheme]:
        return [scheme for scheme in SCHEMES if self.home.secret_key_path(scheme).exists()]

    def _allowed(self) -> tuple[Scheme, ...]:
        return SCHEMES if self.home.domain.policy.allow_ckks else ("bfv",)

    def _make_keys(self) -> None:
        for scheme in self._allowed():
            write_atomically(self.home.secret_key_path(scheme), generate_secret_key(scheme))

    def _destroy_keys(self) -> None:
        for scheme in SCHEMES:
            path = self.home.secret_key_path(scheme)
            for file in path.parent.glob(path.name + "*"):  # with what a crash may have left of an unfinished write
                file.unlink()

    def _write(self, record: RegistryRecord) -> None:
        write_atomically(self.home.folder / "registry.json", record.canonical())

"""An owner's identity, and the HE secret key that all owners share: how it is made, sealed for an owner, and opened.

One owner, the dealer, makes the key. That gives it nothing that the others lack: every owner holds this key anyway, which is
why masks, not this key, hide an update from the other owners. The key hides updates from the scientist, who holds none.
The scientist relays sealed keys: it cannot read them (SealedBox) nor replace them (signed by the dealer, bound to the
recipient, the registry, the scheme and the key's name). A dealer who deals different keys under one name is found out when an
owner opens its own; under different names, by the first order, which names one key for all.
"""

from __future__ import annotations

import os
import stat
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
import tenseal.sealapi as seal
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from fl_privacy.encryption import cipher
from fl_privacy.encryption.masks import derive_seed
from fl_privacy.encryption.packing import DEGREE, POLYNOMIAL_BYTES
from fl_privacy.encryption.registry import OwnerCard, Registry, Scheme, SealedKey, check_registry
from fl_privacy.errors import CiphertextInvalid, CohortMismatch, DigestMismatch, EncryptionError, HomeError, KeyMissing
from fl_privacy.messages import Signed, open_signed, public_hex, sign
from fl_privacy.parameters import Vector
from fl_privacy.round_order import RoundOrder

_FILE = "identity.key"
_KEY_TAG = b"FLKEY\0\0\1"
_KEY_BYTES = len(_KEY_TAG) + POLYNOMIAL_BYTES
_MADE_WITH_BITS = 49  # any plain modulus will do: the key depends on N and q only


@cache
def tenseal_version() -> str:
    """The installed TenSEAL, looked up once: that reads files."""
    return version("tenseal")


class Identity:
    """An owner's long-term private keys: Ed25519 to sign, X25519 to agree on masks and to receive sealed keys."""

    def __init__(self, signing_key: Ed25519PrivateKey, agreement_key: X25519PrivateKey) -> None:
        self.signing_key = signing_key
        self.agreement_key = agreement_key

    def __repr__(self) -> str:
        return f"Identity({public_hex(self.signing_key)[:16]}…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an identity holds private keys; it is never pickled or copied")

    @classmethod
    def generate(cls) -> Self:
        """Fresh keys from the operating system's generator."""
        return cls(Ed25519PrivateKey.generate(), X25519PrivateKey.generate())

    def save(self, folder: Path) -> None:
        """Write the keys to a new file that only this user can read. Raises: HomeError, also when an identity is there."""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(folder / _FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except OSError as problem:
            raise HomeError(f"{folder / _FILE} cannot be created: {problem.strerror}") from None
        with os.fdopen(descriptor, "wb") as file:
            file.write(self.signing_key.private_bytes_raw() + self.agreement_key.private_bytes_raw())
            file.flush()
            os.fsync(descriptor)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the keys. Raises: HomeError when missing, damaged, or open to other users."""
        path = folder / _FILE
        try:
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                found, data = os.fstat(file.fileno()), file.read(65)
        except OSError as problem:
            raise HomeError(f"{path} cannot be read: {problem.strerror}") from None
        if stat.S_IMODE(found.st_mode) & 0o077 or found.st_uid != os.geteuid():
            raise HomeError(f"{path} is open to other users; replace the identity if they could read it, else set mode 0600")
        if len(data) != 64:
            raise HomeError(f"{path} is damaged: 64 bytes expected")
        return cls(Ed25519PrivateKey.from_private_bytes(data[:32]), X25519PrivateKey.from_private_bytes(data[32:]))

    def card(self, owner: str) -> Signed:
        """The public keys under an owner's name, signed; the card is what the other owners put in their registry."""
        card = OwnerCard(
            owner=owner,
            signing_key=public_hex(self.signing_key),
            agreement_key=self.agreement_key.public_key().public_bytes_raw().hex(),
            tenseal=tenseal_version(),
        )
        return sign(card, self.signing_key)


def generate_secret_key(scheme: Scheme = "bfv") -> bytes:
    """A fresh HE secret key (ternary, from SEAL's generator); for BFV as coefficients modulo q, for every plain modulus."""
    if scheme == "ckks":
        from fl_privacy.encryption import ckks  # which imports Identity from here

        return ckks.generate_key()
    with cipher.Scratch() as scratch:
        payload = scratch.saved(seal.KeyGenerator(cipher.context(_MADE_WITH_BITS)).secret_key().save)
    prefix = _key_members(_MADE_WITH_BITS)
    if not payload.startswith(prefix):
        raise EncryptionError("this SEAL writes keys in a form that is not known here; install the pinned TenSEAL")
    return _KEY_TAG + cipher.pack_coefficients(np.frombuffer(payload, "<u8", DEGREE, len(prefix)))


def load_secret_key(secret_key: bytes, modulus_bits: int) -> Any:
    """The SEAL key for one plain modulus. Raises: KeyMissing when the bytes are not a key of these parameters."""
    if len(secret_key) != _KEY_BYTES or not secret_key.startswith(_KEY_TAG):
        raise KeyMissing("the HE secret key is missing or was made for other parameters; have it dealt again")
    key, chain = seal.SecretKey(), cipher.context(modulus_bits)
    try:
        coefficients = cipher.unpack_coefficients(secret_key[len(_KEY_TAG) :])
        with cipher.Scratch() as scratch:
            scratch.load(lambda path: key.load(chain, path), _key_members(modulus_bits), coefficients.tobytes())
    except (CiphertextInvalid, RuntimeError, ValueError):
        raise KeyMissing("the HE secret key is damaged; have it dealt again") from None
    return key


def key_name(secret_key: bytes) -> str:
    """The public name of an HE secret key (64 hex digits), which orders and sealed keys carry; tells nothing of the key."""
    return derive_seed(secret_key, "key-name").hex()


def seal_key(
    secret_key: bytes, sender: str, recipient: str, identity: Identity, registry: Registry, scheme: Scheme = "bfv"
) -> Signed:
    """Seal an HE secret key for one owner; the dealer does this for every other owner.

    Raises: KeyMissing (no such owner, not the dealer's identity, not a key of this scheme).
    Privacy: only ``recipient``'s agreement key opens it; whoever relays it learns names, scheme and length.
    """
    if sender != registry.dealer or not is_registered(identity, sender, registry):
        raise KeyMissing(f"only {registry.dealer!r}, with its own identity, deals the HE secret key of this registry")
    check_secret_key(secret_key, scheme)
    box = SealedBox(PublicKey(bytes.fromhex(registry.card(recipient).agreement_key)))
    try:
        ciphertext = box.encrypt(secret_key)
    except CryptoError:  # a point of low order, with which anybody could open the box
        raise KeyMissing(f"the agreement key of {recipient!r} is not usable; the owner must enrol with a new card") from None
    sealed = SealedKey(
        sender=sender,
        recipient=recipient,
        registry=registry.digest(),
        scheme=scheme,
        name=key_name(secret_key),
        ciphertext=ciphertext.hex(),
    )
    return sign(sealed, identity.signing_key)


def unseal_key(envelope: Signed, owner: str, identity: Identity, registry: Registry) -> tuple[Scheme, bytes]:
    """Open a sealed HE secret key. The dealer could seal a new key under the same registry: keep the first.

    Returns: the scheme and the key.
    Raises: SignatureInvalid (not the dealer's), DigestMismatch (registry), CiphertextInvalid (not for this owner, does not
        open, or not the key that it names), KeyMissing (not a key of this scheme).
    """
    sealed = open_signed(envelope, SealedKey, registry.card(registry.dealer).signing_key)
    if sealed.registry != registry.digest():
        raise DigestMismatch(f"the key was sealed for registry {sealed.registry[:16]}…, not {registry.digest()[:16]}…")
    if (sealed.sender, sealed.recipient) != (registry.dealer, owner):
        raise CiphertextInvalid(f"the key was sealed by {sealed.sender!r} for {sealed.recipient!r}, not for {owner!r}")
    try:
        opened: bytes = SealedBox(PrivateKey(identity.agreement_key.private_bytes_raw())).decrypt(
            bytes.fromhex(sealed.ciphertext)
        )
    except CryptoError:
        raise CiphertextInvalid("the sealed key does not open with this owner's agreement key") from None
    check_secret_key(opened, sealed.scheme)
    if key_name(opened) != sealed.name:
        raise CiphertextInvalid(f"{sealed.sender!r} sealed another key than it names; the dealer deals different keys")
    return sealed.scheme, opened


def check_secret_key(secret_key: bytes, scheme: Scheme) -> None:
    """Return if the bytes are an HE secret key of this scheme. Raises: KeyMissing."""
    if scheme == "ckks":
        from fl_privacy.encryption import ckks  # which imports Identity from here

        ckks.check_key(secret_key)
    else:
        load_secret_key(secret_key, _MADE_WITH_BITS)


def check_author(update: Vector, order: RoundOrder, owner: str, identity: Identity, registry: Registry) -> None:
    """Refuse what must not be encrypted under this order in this owner's name.

    Raises: DigestMismatch (registry), CohortMismatch, KeyMissing (another identity), EncryptionError (another shape).
    """
    check_registry(order, registry)
    if owner not in order.cohort:
        raise CohortMismatch(f"{owner!r} is not in the order's cohort")
    if not is_registered(identity, owner, registry):
        raise KeyMissing(f"this identity, or this TenSEAL, is not the one that the registry has for {owner!r}")
    if update.shape != (order.coordinates,):
        raise EncryptionError(f"an update of shape {update.shape} does not fit {order.coordinates} coordinates")


def is_registered(identity: Identity, owner: str, registry: Registry) -> bool:
    """Whether the registry holds this identity's card (both keys, and the TenSEAL version in use) for the owner."""
    return identity.card(owner).body == registry.card(owner).canonical().decode()


def _key_members(modulus_bits: int) -> bytes:
    """SEAL's framing of a key, with the id of all parameters: it depends on t, the key does not."""
    return cipher.plain_members(np.array(cipher.context(modulus_bits).key_parms_id(), "<u8").tobytes())

"""An owner's identity, and the HE secret key that all owners share: how it is made, sealed for an owner, and opened.

The scientist relays sealed keys: it cannot read them (SealedBox) nor replace them (signed by the dealer, bound to the
recipient and the registry).
"""

from __future__ import annotations

import os
import stat
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
import tenseal.sealapi as seal
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from fl_privacy.encryption import cipher
from fl_privacy.encryption.packing import DEGREE
from fl_privacy.encryption.registry import OwnerCard, Registry, SealedKey
from fl_privacy.errors import CiphertextInvalid, DigestMismatch, EncryptionError, HomeError, KeyMissing
from fl_privacy.messages import Signed, open_signed, public_hex, sign

_FILE = "identity.key"
_KEY_TAG = b"FLKEY\0\0\1"
_KEY_BYTES = len(_KEY_TAG) + cipher.POLYNOMIAL_BYTES
_MADE_WITH_BITS = 49  # any plain modulus will do: the key depends on N and q only


class Identity:
    """An owner's long-term private keys: Ed25519 to sign, X25519 to agree on masks and to receive sealed keys."""

    def __init__(self, signing_key: Ed25519PrivateKey, agreement_key: X25519PrivateKey) -> None:
        self.signing_key = signing_key
        self.agreement_key = agreement_key

    def __repr__(self) -> str:
        return f"Identity({public_hex(self.signing_key)[:16]}…)"

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
            tenseal=version("tenseal"),
        )
        return sign(card, self.signing_key)


def generate_secret_key() -> bytes:
    """A fresh HE secret key (ternary, from SEAL's generator), as coefficients modulo q; serves every plain modulus."""
    payload = cipher.saved(seal.KeyGenerator(cipher.context(_MADE_WITH_BITS)).secret_key().save)
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
        cipher.load(lambda path: key.load(chain, path), _key_members(modulus_bits) + coefficients.tobytes())
    except (CiphertextInvalid, RuntimeError, ValueError):
        raise KeyMissing("the HE secret key is damaged; have it dealt again") from None
    return key


def seal_key(secret_key: bytes, sender: str, recipient: str, identity: Identity, registry: Registry) -> Signed:
    """Seal the HE secret key for one owner; the dealer does this once per owner.

    Raises: KeyMissing (no such owner, not the dealer's identity, not an HE key).
    Privacy: only ``recipient``'s agreement key opens it; whoever relays it learns names and length.
    """
    if sender != registry.dealer or not is_registered(identity, sender, registry):
        raise KeyMissing(f"only {registry.dealer!r}, with its own identity, deals the HE secret key of this registry")
    load_secret_key(secret_key, _MADE_WITH_BITS)
    box = SealedBox(PublicKey(bytes.fromhex(registry.card(recipient).agreement_key)))
    sealed = SealedKey(sender=sender, recipient=recipient, registry=registry.digest(), ciphertext=box.encrypt(secret_key).hex())
    return sign(sealed, identity.signing_key)


def unseal_key(envelope: Signed, owner: str, identity: Identity, registry: Registry) -> bytes:
    """Open a sealed HE secret key. The dealer could seal a new key under the same registry: keep the first.

    Raises: SignatureInvalid (not the dealer's), DigestMismatch (registry), CiphertextInvalid, KeyMissing (not an HE key).
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
    load_secret_key(opened, _MADE_WITH_BITS)
    return opened


def is_registered(identity: Identity, owner: str, registry: Registry) -> bool:
    """Whether the registry holds this identity's card (both keys, and the TenSEAL version in use) for the owner."""
    return identity.card(owner).body == registry.card(owner).canonical().decode()


def _key_members(modulus_bits: int) -> bytes:
    """SEAL's framing of a key: parameter id (it depends on t, the key does not), coefficient count, scale 1, array header."""
    parameter_id = np.array(cipher.context(modulus_bits).key_parms_id(), "<u8").tobytes()
    return parameter_id + np.uint64(DEGREE).tobytes() + np.float64(1).tobytes() + cipher.array_header(DEGREE)

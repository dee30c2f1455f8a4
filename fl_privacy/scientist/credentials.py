"""A scientist's secrets: the signing key, and passwords, which are never in a notebook or in the federation's file."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_privacy.errors import HomeError

VARIABLE = "FL_PRIVACY_PASSWORD_"  # and the owner's name, in capitals
SERVICE = "fl-privacy:"  # and the owner's name: the service of a keyring's entry, whose user is the e-mail


@dataclass(frozen=True)
class Login:
    """How to reach one owner's datasite."""

    owner: str
    url: str
    email: str
    password: str

    def __repr__(self) -> str:
        return f"Login({self.owner!r}, {self.url!r}, {self.email!r}, password hidden)"


def password_of(owner: str, email: str, file: Path | None, ask: Callable[[str], str] | None = None) -> str:
    """The password of one account: from the environment, a file that only its user can read, the system's keyring, or a prompt.

    The keyring is asked where the package ``keyring`` is installed; ``keyring set fl-privacy:OWNER EMAIL`` fills it.
    Args: ``file`` is the owner's ``password_file``, if the federation's file names one; ``ask`` gets a prompt.
    Raises: HomeError when the file is missing or open to others.
    """
    variable = VARIABLE + owner.upper().replace("-", "_")
    if given := os.environ.get(variable):
        return given
    if file is not None:
        return _read(file, owner)
    if kept := _from_keyring(owner, email):
        return kept
    return (ask or getpass.getpass)(f"Password of {email} at {owner}: ")


def _from_keyring(owner: str, email: str) -> str | None:
    if find_spec("keyring") is None:
        return None
    keyring = import_module("keyring")
    try:
        found: str | None = keyring.get_password(SERVICE + owner, email)
    except keyring.errors.KeyringError:  # none on this machine, or it stays locked
        return None
    return found


def _read(file: Path, owner: str) -> str:
    try:
        if file.stat().st_mode & 0o077:
            raise HomeError(f"{file} can be read by other users; run `chmod 600 {file}`")
        return file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise HomeError(f"{file} does not exist; write the password that {owner} gave you into it") from None


def signing_key(home: Path) -> Ed25519PrivateKey:
    """The scientist's key, made on first use; orders signed with another key are not covered by an approval.

    Raises: HomeError when other users can read it.
    """
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = home / "scientist.key"
    if not path.exists():
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(Ed25519PrivateKey.generate().private_bytes_raw())
    if path.stat().st_mode & 0o077:
        raise HomeError(f"{path} can be read by other users; run `chmod 600 {path}`")
    return Ed25519PrivateKey.from_private_bytes(path.read_bytes())

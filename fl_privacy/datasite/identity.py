"""Who a datasite is: Syft's server key and the owner's generated root password, one file under the datasite's home."""

from __future__ import annotations

import json
import os
import secrets
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fl_privacy.errors import HomeError

FILE = "identity.json"


@dataclass(frozen=True)
class DatasiteIdentity:
    """Persistent identity of one datasite; the secrets stay out of its repr."""

    owner: str
    server_uid: str
    email: str
    server_key: str = field(repr=False)
    password: str = field(repr=False)

    @classmethod
    def load(cls, home: Path) -> DatasiteIdentity:
        """Read the identity of a home. Raises: HomeError when there is none, or when others could read it."""
        path = home / FILE
        try:
            if path.stat().st_mode & 0o077 or home.stat().st_mode & 0o077:
                raise HomeError(f"{path} can be read by other users; run chmod 700 {home} and chmod 600 {path}")
            return cls(**json.loads(path.read_text()))
        except FileNotFoundError:
            raise HomeError(f"{home} is no datasite's home: there is no {FILE}") from None
        except (TypeError, ValueError):
            raise HomeError(f"{path} is damaged; restore it from a backup") from None

    @classmethod
    def load_or_create(cls, home: Path, owner: str) -> DatasiteIdentity:
        """Read the identity of a home, or draw a fresh one. Raises: HomeError when the home is another owner's."""
        if (home / FILE).exists():
            found = cls.load(home)
            if found.owner != owner:
                raise HomeError(f"{home} belongs to the datasite of {found.owner}, not of {owner}")
            return found
        made = cls(owner, uuid.uuid4().hex, f"{owner}@datasite.example.org", secrets.token_hex(32), secrets.token_urlsafe(24))
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.chmod(0o700)
        with os.fdopen(os.open(home / FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(asdict(made), file)
        return made

"""Which code this guard runs: the digest of the installed package, which every approval is bound to."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path


@cache
def installed_package() -> str:
    """The digest of fl_privacy as it was when this process first asked."""
    return package_digest(Path(__file__).parents[1])


def package_digest(folder: Path) -> str:
    """sha256 over sorted relative paths and contents of all files but compiled ones.

    Privacy: tells an owner that an upgrade, or a hand, has changed the code since an approval. Whoever can change the code can
        also change this function, so it guards against accidents and honest upgrades, not against the guard's own user.
    """
    seal = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        name, content = path.relative_to(folder).as_posix().encode(), path.read_bytes()
        seal.update(b"%d %d\n" % (len(name), len(content)) + name + content)
    return seal.hexdigest()

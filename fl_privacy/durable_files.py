"""Files that a crash leaves whole: the old content or the new, never a part."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fl_privacy.errors import HomeError


def write_atomically(path: Path, content: bytes | str, mode: int = 0o600) -> None:
    """Replace a file so that a crash leaves the old or the new content, never a part. Raises: HomeError (full disk)."""
    partial = path.with_name(path.name + ".partial")
    with disk_problems_named(path):
        try:
            with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder last: without it a new one could be lost with the power."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def disk_problems_named(path: Path) -> Iterator[None]:
    """Raises: HomeError that says which write failed, where the system says why: no space, no permission, a broken disk."""
    try:
        yield
    except ConnectionError:
        raise  # a sender that went away, not the disk
    except OSError as problem:
        told = f"{path.parent.name}/{path.name} cannot be written"
        raise HomeError(f"{told}: {problem.strerror or problem}; see to that disk, then try again") from None


def write_json(path: Path, value: dict[str, Any]) -> None:
    """``write_atomically`` for a small mapping."""
    write_atomically(path, json.dumps(value, ensure_ascii=False, sort_keys=True))

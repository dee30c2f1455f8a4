"""The owner's brake: while a datasite is paused, its guard admits, closes, reveals and opens nothing. Reads still answer.

What was admitted before trains to its end, since it was paid for, and waits sealed. The file outlives a restart.
"""

from __future__ import annotations

import json

from fl_privacy.durable_files import write_json
from fl_privacy.errors import DatasitePaused
from fl_privacy.guard.home import GuardHome

FILE = "paused.json"


def pause(home: GuardHome, reason: str) -> None:
    """Pause; again with another reason only changes the reason."""
    write_json(home.folder / FILE, {"reason": reason})


def resume(home: GuardHome) -> None:
    """Go on; does nothing when it was not paused."""
    (home.folder / FILE).unlink(missing_ok=True)


def paused(home: GuardHome) -> str | None:
    """The owner's reason while paused, else None."""
    try:
        return str(json.loads((home.folder / FILE).read_bytes())["reason"])
    except FileNotFoundError:
        return None


def check_running(home: GuardHome) -> None:
    """Raise DatasitePaused with the owner's reason while paused."""
    reason = paused(home)
    if reason is not None:
        raise DatasitePaused(f"{home.owner} has paused its datasite: {reason}")

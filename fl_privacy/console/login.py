"""Who may use the console: a random password in the owner's folder, and sessions that it opens."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fl_privacy.console.words import Language
from fl_privacy.errors import CredentialsRefused, HomeError

SESSION_SECONDS = 12 * 3600.0
MOST_SESSIONS = 20  # the oldest ends when one more begins
WRONG_TRIES = 5  # within WINDOW_SECONDS; then nobody logs in until the oldest of them is that old
WINDOW_SECONDS = 60.0
PASSWORD_BYTES = 18  # 144 random bits: nobody guesses it, whatever the limit on tries

Clock = Callable[[], float]


def password_of(home: Path) -> str:
    """The console's password in HOME/console, made at the first call, readable by the owner's OS user only.

    Raises: HomeError when the file is open to other users or cannot be read.
    """
    folder, path = home / "console", home / "console" / "password"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
                file.write(secrets.token_urlsafe(PASSWORD_BYTES))
        except FileExistsError:
            pass  # made earlier
        if path.stat().st_mode & 0o077 or path.stat().st_uid != os.getuid():
            raise HomeError(f"{path} is open to other users; delete it and start the console again for a new password")
        password = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as problem:
        raise HomeError(f"{path}: the console's password cannot be read ({type(problem).__name__})") from None
    if len(password) < PASSWORD_BYTES:
        raise HomeError(f"{path} holds no password; delete it and start the console again")
    return password


@dataclass
class Session:
    """One browser that knew the password; ``ends`` is a time of the doorkeeper's clock."""

    ends: float
    language: Language = "en"


@dataclass
class Doorkeeper:
    """Compares passwords and remembers sessions, in memory only: a restarted console knows nobody."""

    password: str = field(repr=False)
    clock: Clock = time.monotonic
    _sessions: dict[str, Session] = field(default_factory=dict, repr=False)
    _wrong: deque[float] = field(default_factory=lambda: deque(maxlen=WRONG_TRIES), repr=False)

    def enter(self, password: str) -> str:
        """A new session's token. Raises: CredentialsRefused (wrong password, or too many wrong ones lately)."""
        now = self.clock()
        if len(self._wrong) == WRONG_TRIES and now - self._wrong[0] < WINDOW_SECONDS:
            raise CredentialsRefused("too many wrong passwords; wait a minute")
        if not hmac.compare_digest(_digest(password), _digest(self.password)):
            self._wrong.append(now)
            raise CredentialsRefused("wrong password; see the terminal in which the console was started")
        self._wrong.clear()
        while len(self._sessions) >= MOST_SESSIONS:
            self._sessions.pop(next(iter(self._sessions)))
        token = secrets.token_urlsafe(32)
        self._sessions[_name(token)] = Session(now + SESSION_SECONDS)
        return token

    def session(self, token: str) -> Session | None:
        """The session of this token, if it has not ended."""
        session = self._sessions.get(_name(token))
        return session if session is not None and self.open(session) else None

    def open(self, session: Session) -> bool:
        """Whether the session still counts: pages in a browser outlive it, and must do nothing more then."""
        return self.clock() < session.ends and any(session is known for known in self._sessions.values())

    def leave(self, token: str) -> None:
        """End a session at once."""
        self._sessions.pop(_name(token), None)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _name(token: str) -> str:
    return _digest(token).hex()  # looking up a digest in a dict tells nothing about tokens by its timing

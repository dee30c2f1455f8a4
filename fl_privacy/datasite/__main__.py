"""``python -m fl_privacy.datasite HOME --port N``: serve one datasite, without its guard, until it is told to stop.

For a datasite under an OS user of its own; the environment variable ``FL_PRIVACY_GUARD_SOCKET`` names the guard's front socket.
"""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from fl_privacy.datasite.front_desk import GUARD_SOCKET
from fl_privacy.datasite.identity import DatasiteIdentity
from fl_privacy.datasite.launch import Datasite
from fl_privacy.errors import ConnectionFailed, FlPrivacyError, HomeError
from fl_privacy.guard.client import GuardClient
from fl_privacy.messages import CorpusCard


def serve(home: Path, port: int | None) -> NoReturn:
    """Start the datasite of a prepared home, publish its owner's mock rows, and wait.

    Raises: HomeError, ConnectionFailed, also when the datasite ends by itself: systemd starts again what failed.
    """
    if GUARD_SOCKET not in os.environ:
        raise HomeError(f"{GUARD_SOCKET} is not set; it names the guard's front socket")
    guard = Path(os.environ[GUARD_SOCKET])
    with Datasite(home, DatasiteIdentity.load(home).owner, guard, port) as datasite:
        from fl_privacy.datasite import accounts  # seconds of imports, while the server starts its own

        cards = [CorpusCard.model_validate(card) for card in GuardClient(guard).call("GET", "/v1/corpora")]
        accounts.publish_corpus(accounts.login_owner(datasite), cards)
        raise ConnectionFailed(f"the datasite ended by itself (exit status {datasite.wait()}); see {datasite.log}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="fl_privacy.datasite")
    parser.add_argument("home", type=Path)
    parser.add_argument("--port", type=int, help="on 127.0.0.1; that of the last start by default")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        serve(arguments.home, arguments.port)
    except FlPrivacyError as error:
        sys.exit(f"{type(error).__name__}: {error}")

"""``python -m tests.console.served FOLDER``: the console of a made-up owner as a process of its own, for a browser."""

from __future__ import annotations

import sys
from pathlib import Path

from fl_privacy.console.server import serve
from tests.console.fake_owner import fake_owner


def main(folder: Path) -> None:
    """Serve until SIGTERM; address and password go to the first line of standard output."""
    with fake_owner(folder, history=True) as owner:
        serve(owner, 0, tell)


def tell(address: str, password: str) -> None:
    sys.stdout.write(f"{address} {password}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

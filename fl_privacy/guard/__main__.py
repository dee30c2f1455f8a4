"""``python -m fl_privacy.guard HOME``: serve one guard until it is told to stop."""

import asyncio
import sys
from pathlib import Path

from fl_privacy.errors import FlPrivacyError
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.service import serve

if __name__ == "__main__":
    try:
        asyncio.run(serve(GuardHome(Path(sys.argv[1]))))
    except FlPrivacyError as error:
        sys.exit(f"{type(error).__name__}: {error}")

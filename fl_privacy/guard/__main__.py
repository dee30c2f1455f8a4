"""``python -m fl_privacy.guard HOME [--front-socket PATH]``: serve one guard until it is told to stop."""

import argparse
import asyncio
import sys
from pathlib import Path

from fl_privacy.errors import FlPrivacyError
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.service import serve

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="fl_privacy.guard")
    parser.add_argument("home", type=Path)
    parser.add_argument("--front-socket", type=Path, help="where a datasite of another OS user reaches it; mode 0660")
    arguments = parser.parse_args()
    try:
        asyncio.run(serve(GuardHome(arguments.home), arguments.front_socket))
    except FlPrivacyError as error:
        sys.exit(f"{type(error).__name__}: {error}")

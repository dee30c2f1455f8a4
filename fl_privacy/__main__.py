"""``python -m fl_privacy``."""

from fl_privacy.cli import app

if __name__ == "__main__":
    app()

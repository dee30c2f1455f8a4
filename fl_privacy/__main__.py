"""``python -m fl_privacy``."""

from fl_privacy.cli import main

if __name__ == "__main__":
    main()

"""A module of its own: training workers import the main module again, but for one of this name."""

import sys

from tests.durability.crash_matrix import main

sys.exit(main())

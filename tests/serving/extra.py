"""Whether the packages that export and serve models are there."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from fl_privacy.serving.export_format import PACKAGES


def need_extra() -> None:
    """Skip the module that calls this at its top, and say why."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        told = f"not installed: {', '.join(missing)}; pip install --constraint constraints.txt --editable '.[serve]'"
        pytest.skip(told, allow_module_level=True)

"""What docs/files.md has to say about each field of the files that people write: its default, and what is allowed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def fields(model: type[BaseModel]) -> Iterator[tuple[str, str, str]]:
    """Name, default and allowed values of each field, as a row of a Markdown table has them."""
    schema = model.model_json_schema()
    for name, told in schema["properties"].items():
        if "$ref" in told:  # a section of its own
            continue
        yield name, _default(name, told, schema.get("required", ())), _allowed(told)


def _default(name: str, told: dict[str, Any], required: list[str]) -> str:
    if name in required:
        return "required"
    if "default" not in told:
        return "derived"  # from other fields
    return "none" if told["default"] is None else f"`{json.dumps(told['default'])}`"


def _allowed(told: dict[str, Any]) -> str:
    told = next((kind for kind in told.get("anyOf", ()) if kind["type"] != "null"), told)
    if "const" in told:
        return f"`{told['const']}`"
    if "enum" in told:
        return ", ".join(f"`{json.dumps(value)}`" for value in told["enum"])
    if told["type"] == "array":
        return "some of the default" if "enum" in told["items"] else "list"
    if told["type"] in ("string", "boolean"):
        return {"string": "text", "boolean": "`true`, `false`"}[told["type"]]
    return ", ".join(f"{words} {_number(told[key])}" for key, words in BOUNDS.items() if key in told)


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else str(value)

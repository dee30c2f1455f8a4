"""The two files that a scientist writes by hand: PLAN.toml and federation.toml."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fl_privacy.errors import CorpusError, HomeError, PlanError
from fl_privacy.learning.models import ModelBundle, load_bundle
from fl_privacy.messages import OwnerName, first_problem
from fl_privacy.plan import TrainingPlan
from fl_privacy.scientist.federation import Federation, Login


def read_plan(path: Path) -> tuple[TrainingPlan, ModelBundle]:
    """Read a plan whose ``model`` is a folder (relative to the plan's file) or a Hugging Face name.

    Raises: PlanError that names the file and field, ModelError.
    """
    try:
        text = path.read_text(encoding="utf-8")
        source = tomllib.loads(text).get("model")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise PlanError(f"{path}: {problem}") from None
    if not isinstance(source, str):
        raise PlanError(f'{path}: model: give a folder or a Hugging Face name, such as model = "base"')
    beside = path.parent / source
    bundle = load_bundle(beside if beside.is_dir() else source)
    try:
        return TrainingPlan.from_toml(text, model=bundle.spec), bundle
    except PlanError as problem:
        raise PlanError(f"{path}: {problem}") from None


def read_texts(path: Path) -> list[str]:
    """Validation text of the scientist's own: JSONL with ``text``, or one text a line. Raises: CorpusError."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [json.loads(line)["text"] for line in lines] if path.suffix == ".jsonl" else lines
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as problem:
        raise CorpusError(f"{path}: cannot be read as validation text ({type(problem).__name__})") from None


class _OwnerEntry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: OwnerName
    url: str
    email: str
    password_file: str | None = None


class _FederationFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    home: str = "scientist"
    owner: Annotated[list[_OwnerEntry], Field(min_length=1)]


def connect(path: Path, ask_password: Callable[[str], str]) -> Federation:
    """Log in at every owner of a federation.toml.

    Args: ``ask_password`` is called with a prompt for an owner without ``password_file``. Raises: HomeError that names the
    field, CredentialsRefused, ConnectionFailed.
    """
    try:
        described = _FederationFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise HomeError(f"{path}: {problem}") from None
    except ValidationError as problem:
        raise HomeError(f"{path}: {first_problem(problem)}") from None
    logins = [
        Login(entry.name, entry.url, entry.email, _password(path.parent, entry, ask_password)) for entry in described.owner
    ]
    return Federation.connect(path.parent / described.home, logins)


def _password(folder: Path, entry: _OwnerEntry, ask_password: Callable[[str], str]) -> str:
    if entry.password_file is None:
        return ask_password(f"Password of {entry.email} at {entry.name}")
    file = folder / entry.password_file
    try:
        if file.stat().st_mode & 0o077:
            raise HomeError(f"{file} can be read by other users; run `chmod 600 {file}`")
        return file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise HomeError(f"{file} does not exist; write the password that {entry.name} gave you into it") from None

"""The files that a scientist writes by hand: PLAN.toml with, perhaps, a task of its own beside it, and federation.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fl_privacy.errors import HomeError, PlanError
from fl_privacy.learning.custom_task import check
from fl_privacy.learning.models import ModelBundle, load_bundle
from fl_privacy.messages import OwnerName, Row, first_problem
from fl_privacy.model_spec import Head
from fl_privacy.plan import TrainingPlan
from fl_privacy.row_files import Fields, read_rows
from fl_privacy.scientist.credentials import Login, password_of


def read_plan(path: Path) -> tuple[TrainingPlan, ModelBundle]:
    """Read a plan whose ``model`` is a folder (relative to the plan's file) or a Hugging Face name.

    With ``task = "classification"`` or ``"ner"`` the file also lists ``labels``, the classes or kinds of entities; with
    ``pretraining_rounds`` the model keeps its language-model head beside theirs.
    ``task = "FILE.py"`` (relative as well) stands for a custom task with that file's text; see ``learning.custom_task``.
    Raises: PlanError that names the file and field, or the line of a custom task that no guard would run; ModelError.
    """
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise PlanError(f"{path}: {problem}") from None
    source = fields.get("model")
    if not isinstance(source, str):
        raise PlanError(f'{path}: model: give a folder or a Hugging Face name, such as model = "base"')
    beside = path.parent / source
    bundle = load_bundle(
        beside if beside.is_dir() else source,
        head=_head(fields),
        labels=_labels(path, fields),
        language_head=bool(fields.get("pretraining_rounds")),
    )
    try:
        plan = TrainingPlan.create(**(fields | {"model": bundle.spec} | _own_task(path.parent, fields)))
        if plan.task == "custom":
            check(plan.custom_task)
    except PlanError as problem:
        raise PlanError(f"{path}: {problem}") from None
    return plan, bundle


def _head(fields: Mapping[str, Any]) -> Head | None:
    """The head that a plan's task needs; None, the model's own language head, for a custom task."""
    return next((head for head in get_args(Head) if fields.get("task", "mlm") == head), None)


def _labels(path: Path, fields: dict[str, Any]) -> tuple[str, ...]:
    """Take the labels out of a plan's fields: they belong to its model. Raises: PlanError."""
    labels = fields.pop("labels", [])
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise PlanError(f'{path}: labels: give a list of names, such as labels = ["sports", "finance"]')
    return tuple(labels)


def _own_task(folder: Path, fields: Mapping[str, Any]) -> dict[str, str]:
    """The plan's fields that ``task = "FILE.py"`` stands for; none for other tasks. Raises: PlanError."""
    name = fields.get("task")
    if not isinstance(name, str) or not name.endswith(".py"):
        return {}
    if "custom_task" in fields:
        raise PlanError(f"task = {name!r} and custom_task both bring a task; keep one of them")
    try:
        return {"task": "custom", "custom_task": (folder / name).read_text(encoding="utf-8")}
    except (OSError, UnicodeDecodeError) as problem:
        raise PlanError(f"task = {name!r} cannot be read: {problem}") from None


def read_validation(path: Path, plan: TrainingPlan) -> list[Row]:
    """Validation rows of the scientist's own: a file with ``text``, and ``label`` or ``tags`` where the plan's task needs them.

    Raises: CorpusError as ``read_rows``.
    """
    needed = {None: Fields(), "label": Fields(label="label"), "tags": Fields(tags="tags")}
    return list(read_rows(path, needed[plan.annotation]))


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


def read_federation(path: Path, ask_password: Callable[[str], str] | None = None) -> tuple[Path, list[Login]]:
    """The scientist's home and the log-ins that a federation.toml describes; both paths in it are relative to the file.

    Args: ``ask_password`` is called with a prompt where ``credentials.password_of`` finds no password; by default it is asked
    for in the terminal or the notebook. Raises: HomeError that names the field.
    """
    try:
        described = _FederationFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise HomeError(f"{path}: {problem}") from None
    except ValidationError as problem:
        raise HomeError(f"{path}: {first_problem(problem)}") from None
    logins = []
    for entry in described.owner:
        file = None if entry.password_file is None else path.parent / entry.password_file
        password = password_of(entry.name, entry.email, file, ask_password)
        logins.append(Login(entry.name, entry.url, entry.email, password))
    return path.parent / described.home, logins

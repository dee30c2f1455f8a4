"""What an export is made from: a finished run's folder, or a saved model's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fl_privacy.errors import ExportError
from fl_privacy.learning import loading
from fl_privacy.learning.adapters import merged
from fl_privacy.learning.families import FAMILIES, configuration
from fl_privacy.learning.models import load_bundle
from fl_privacy.messages import Row
from fl_privacy.model_spec import OUTSIDE, Head, ModelSpec
from fl_privacy.parameters import Parameters, from_bytes
from fl_privacy.plan import TrainingPlan
from fl_privacy.scientist.history import History
from fl_privacy.scientist.run_folder import RunFolder


@dataclass(frozen=True, repr=False)
class TrainedRun:
    """What a run tells about its model. ``score`` is that of the model that counts, on ``validation``, which is not private."""

    plan: TrainingPlan
    history: History
    validation: tuple[Row, ...]
    score: float
    counts: int  # the rounds after which the model that counts stood
    ended: str


@dataclass(frozen=True, repr=False)
class Source:
    """A whole model, adapters merged into it, and the run that it comes from, if it comes from one."""

    name: str
    spec: ModelSpec
    vocabulary: bytes
    parameters: Parameters
    run: TrainedRun | None = None

    @cached_property
    def token_types(self) -> bool:
        """Whether the model takes ``token_type_ids``."""
        return FAMILIES[self.spec.config["model_type"]].token_types


def read_source(path: Path) -> Source:
    """Read what is to be exported. Raises: ExportError, CheckpointError, ModelError."""
    if RunFolder(path).exists:
        return _of_run(path)
    if (path / "config.json").exists():
        return _of_folder(path)
    raise ExportError(f"{path} holds neither a run (`train --out`) nor a saved model (config.json)")


def _of_run(path: Path) -> Source:
    folder = RunFolder(path)
    position, plan, bundle, history = folder.position, folder.settings.plan, folder.bundle, folder.read_history()
    if position.purpose is not None:
        raise ExportError(f"the run in {path} is not over; finish it with `fl-privacy resume {path}`")
    parameters = folder.model(position)
    if plan.adapter is not None:
        parameters = merged(plan.model, plan.adapter, parameters)
    counts = len(history.rounds) if position.best is None else _opened(history, position.best)
    run = TrainedRun(plan, history, tuple(folder.validation), history.scores[counts], counts, position.ended)
    return Source(path.resolve().name, plan.model, bundle.vocabulary, parameters, run)


def _opened(history: History, rounds: int) -> int:
    """How many of the first ``rounds`` rounds were opened; the others left the model as it was."""
    return sum(record.round < rounds for record in history.rounds)


def _of_folder(path: Path) -> Source:
    fields, _ = loading.read_description(path)
    head = _head(path, fields)
    names = loading.labels_of(fields)
    labels = {"classification": names, "ner": _kinds(names)}.get(head, ())
    bundle = load_bundle(path, head=head, labels=labels)
    family = FAMILIES[bundle.spec.config["model_type"]]
    _, unread = loading.read_weights(path, family.models[head], configuration(bundle.spec))
    if unread:  # for training they would be made anew
        raise ExportError(f"{path}: tensor {min(unread)!r} is missing or of another shape; the model is not whole")
    return Source(path.resolve().name, bundle.spec, bundle.vocabulary, from_bytes(bundle.weights))


def _head(path: Path, fields: Mapping[str, Any]) -> Head:
    """The head that a configuration names by its class."""
    named = fields.get("architectures") or []
    family = FAMILIES.get(str(fields.get("model_type")))
    for head, kind in family.models.items() if family else ():
        if kind.__name__ in named:
            return head
    known = ", ".join(kind.__name__ for family in FAMILIES.values() for kind in family.models.values())
    raise ExportError(f"{path / 'config.json'}: architectures names no model that can be exported; known are {known}")


def _kinds(tags: tuple[str, ...]) -> tuple[str, ...]:
    """The kinds of entities of BIO tags in the order in which plans have them; ``load_bundle`` refuses others."""
    return tuple(tag.removeprefix("B-") for tag in tags if tag != OUTSIDE and tag.startswith("B-"))

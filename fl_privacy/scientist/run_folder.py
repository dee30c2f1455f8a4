"""What a run keeps in its folder so that it can go on after its process has died, at whatever moment.

checkpoint/run.json           plan and settings, written once     checkpoint/weights.safetensors, vocabulary, validation.jsonl
checkpoint/position.json      where the run stands                checkpoint/state-004.safetensors  the state before round 4
history.jsonl                 one line per finished turn

``position.json`` is replaced as a whole, after the state that it names is on disk: its replacement is the moment at which a
turn is finished. It holds the history's last line, too, so that one that was not written, or only in part, is written again.
An order is in it before any owner gets it: after a crash the very same order is sent again, which owners answer from what
they have, at no cost.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

from fl_privacy import parameters
from fl_privacy.durable_files import write_atomically
from fl_privacy.errors import CheckpointError, MessageError, ModelError
from fl_privacy.learning.models import ModelBundle
from fl_privacy.messages import Message, Purpose, Row, Signed
from fl_privacy.plan import TrainingPlan
from fl_privacy.scientist.history import History, parse_line
from fl_privacy.scientist.late_owners import WhenLate
from fl_privacy.strategies.base import ServerState

WEIGHTS = "weights.safetensors"
_WIRE = "wire:"  # before the names of what is in a state's ``wire``
Some = TypeVar("Some", bound=Message)


class RunSettings(Message):
    """What a run was started with. ``strategy`` is its description, ``timeout`` and ``wait`` are in seconds."""

    version: Literal[1] = 1
    plan: TrainingPlan
    strategy: str
    when_late: WhenLate
    wait: float
    timeout: float
    score_before: float


class Position(Message):
    """Where a run stands: the turn to take next, and all that was decided about it.

    ``purpose`` is None when the run is over; ``ended`` says why no round is left. ``state`` names the file of the server's
    state; with ``state_round`` and ``state_since`` that is all of it. ``best`` names the best model so far by the number of
    rounds before it, where the plan asks for the best. ``order`` is the attempt that owners may have got, ``failures`` are of
    the attempts before it. ``gone`` are owners that no round is to ask any more, and why. The history has so many ``lines``,
    the last being ``line``.
    """

    version: Literal[1] = 1
    round: int
    purpose: Purpose | None
    ended: str = ""
    state: str
    state_round: int
    state_since: int
    best: int | None = None
    order: Signed | None = None
    failures: tuple[dict[str, str], ...] = ()
    gone: dict[str, str] = {}
    lines: int = 0
    line: str = ""


class RunFolder:
    """A run's folder; use ``locked`` around whatever writes into it."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._kept = out / "checkpoint"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out. The system releases the lock when this process dies. Raises: CheckpointError."""
        self._kept.mkdir(parents=True, exist_ok=True)
        with (self._kept / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CheckpointError(f"{self.out} is in use by another process; wait for it, or end it first") from None
            yield

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return (self._kept / "position.json").exists()

    @property
    def settings(self) -> RunSettings:
        """What the run was started with. Raises: CheckpointError."""
        return self._read("run.json", RunSettings)

    @property
    def position(self) -> Position:
        """Where the run stands. Raises: CheckpointError."""
        return self._read("position.json", Position)

    @property
    def bundle(self) -> ModelBundle:
        """The model that the run started from. Raises: CheckpointError when it is not the plan's."""
        spec = self.settings.plan.model
        blobs = {name: self._bytes(name) for name in (WEIGHTS, "vocabulary")}
        for (name, blob), digest in zip(blobs.items(), (spec.weights, spec.vocabulary), strict=True):
            if hashlib.sha256(blob).hexdigest() != digest:
                raise CheckpointError(f"{self._kept / name} is not the plan's: it was changed or damaged")
        return ModelBundle(spec, blobs["vocabulary"], blobs[WEIGHTS])

    @property
    def validation(self) -> list[Row]:
        """The rows that the run validates on. Raises: CheckpointError."""
        return [self._parsed("validation.jsonl", Row, line) for line in self._bytes("validation.jsonl").splitlines()]

    def create(
        self, settings: RunSettings, bundle: ModelBundle, validation: Sequence[Row], state: ServerState, first: Purpose | None
    ) -> Position:
        """Begin a run in the place of an earlier one. Until the last write there is none here."""
        (self._kept / "position.json").unlink(missing_ok=True)
        for old in self._kept.glob("*.safetensors"):
            old.unlink()
        (self.out / "history.jsonl").write_bytes(b"")
        self._write(WEIGHTS, bundle.weights)
        self._write("vocabulary", bundle.vocabulary)
        self._write("validation.jsonl", b"".join(row.canonical() + b"\n" for row in validation))
        self._write("run.json", settings.canonical())
        best = self.keep_best(state) if settings.plan.patience else None
        return self.commit(Position(round=0, purpose=first, state="", state_round=0, state_since=0, best=best), state)

    def move(self, position: Position) -> Position:
        """Write down where the run stands, with the state as it is; on disk when this returns."""
        self._write("position.json", position.canonical())
        return position

    def commit(self, position: Position, state: ServerState) -> Position:
        """Write down a new state and where the run stands with it: both, or after a crash neither."""
        is_anew = 0 < state.since == state.round  # the slots were emptied after this round's state had been written
        name = f"state-{state.round:03d}{'-anew' if is_anew else ''}.safetensors"
        if position.state != name:
            tensors = {f"model/{tensor}": array for tensor, array in state.model.items()}
            for slot, arrays in (*state.slots.items(), *((_WIRE + name, arrays) for name, arrays in state.wire.items())):
                tensors |= {f"{slot}/{tensor}": array for tensor, array in arrays.items()}
            self._write(name, parameters.to_bytes(tensors))
        moved = position.model_copy(update={"state": name, "state_round": state.round, "state_since": state.since})
        self._forget_others(self.move(moved))
        return moved

    def state(self, position: Position) -> ServerState:
        """The server's state. Raises: CheckpointError."""
        grouped: dict[str, parameters.Parameters] = {}
        try:
            for name, array in parameters.from_bytes(self._bytes(position.state)).items():
                slot, _, tensor = name.partition("/")
                grouped.setdefault(slot, {})[tensor] = array
            model = grouped.pop("model")
        except (ModelError, KeyError) as problem:
            raise CheckpointError(f"{self._kept / position.state} holds no state of a run: {problem}") from None
        wire = {slot.removeprefix(_WIRE): grouped.pop(slot) for slot in list(grouped) if slot.startswith(_WIRE)}
        return ServerState(round=position.state_round, model=model, slots=grouped, since=position.state_since, wire=wire)

    def keep_best(self, state: ServerState) -> int:
        """Keep a model beside the state until there is a better one; its name in the next position."""
        self._write(_best(state.round), parameters.to_bytes(state.model))
        return state.round

    def model(self, position: Position) -> parameters.Parameters:
        """The model that counts: the best so far, where the plan asks for it, else the latest. Raises: CheckpointError."""
        if position.best is None:
            return self.state(position).model
        return parameters.from_bytes(self._bytes(_best(position.best)))

    def history(self, position: Position) -> History:
        """The history, its last line mended if a crash has kept it from being written. Raises: CheckpointError."""
        return History.reopen(self.out / "history.jsonl", self.settings.score_before, position.lines, position.line)

    def read_history(self) -> History:
        """What is in the history so far, without touching it. Raises: CheckpointError."""
        try:
            lines = (self.out / "history.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        except OSError as problem:
            raise CheckpointError(f"{self.out / 'history.jsonl'} cannot be read: {problem.strerror}") from None
        return History(self.out / "history.jsonl", self.settings.score_before, [parse_line(line) for line in lines])

    def _forget_others(self, position: Position) -> None:
        best = "" if position.best is None else _best(position.best)
        for path in self._kept.glob("*.safetensors"):
            if path.name not in (position.state, best, WEIGHTS):
                path.unlink()

    def _read(self, name: str, kind: type[Some]) -> Some:
        return self._parsed(name, kind, self._bytes(name))

    def _parsed(self, name: str, kind: type[Some], data: bytes) -> Some:
        try:
            return kind.parse(data)
        except MessageError as problem:
            raise CheckpointError(f"{self._kept / name} cannot be read: {problem}") from None

    def _bytes(self, name: str) -> bytes:
        try:
            return (self._kept / name).read_bytes()
        except OSError as problem:
            told = f"{self.out} holds no run that could go on: {name} cannot be read ({problem.strerror})"
            raise CheckpointError(told) from None

    def _write(self, name: str, content: bytes) -> None:
        write_atomically(self._kept / name, content)


def _best(rounds: int) -> str:
    return f"best-{rounds:03d}.safetensors"

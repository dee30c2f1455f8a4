"""What lies in an export's folder, and ``export.json``, which says what it is and binds every file by its digest."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fl_privacy.errors import ExportError, ExtraMissing, MessageError
from fl_privacy.messages import Digest, Message

DESCRIPTION = "export.json"
MODEL, INT8 = "model.onnx", "model.int8.onnx"
TOKENIZER = "tokenizer.json"
CARD = "README.md"
PACKAGES = ("onnx", "onnxruntime", "onnxscript", "prometheus_client")

Task = Literal["fill-mask", "classify", "ner"]
Count = Annotated[int, Field(ge=0)]


class SpecialTokens(Message):
    """Ids of the tokens that begin and end every text, fill up shorter ones, and, for fill-mask, are guessed."""

    first: Count
    last: Count
    padding: Count
    mask: Count | None = None
    mask_text: str = ""


class Quantised(Message):
    """Of so many predictions on validation rows (0 without rows), in how many the 8-bit model's best guess is PyTorch's."""

    predictions: Count
    equal: Count

    @property
    def share(self) -> float | None:
        """Share of equal best guesses; None where there were no rows to predict."""
        return self.equal / self.predictions if self.predictions else None


class Export(Message):
    """``export.json``. ``outputs`` names what classify and ner choose from; a fill-mask chooses from the vocabulary.

    ``max_length`` is the most tokens of a text, first and last included. ``largest_difference`` is between a score of the ONNX
    model and the PyTorch model's, over texts of the ``checked_lengths`` in tokens; it is at most ``tolerance``. ``files`` maps
    each file to its sha256.
    """

    version: Literal[1] = 1
    task: Task
    source: str
    model_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    scores: Annotated[int, Field(ge=1)]  # of one place: classes, tags, or the vocabulary's size
    max_length: Annotated[int, Field(ge=3)]
    tokens: SpecialTokens
    tolerance: float
    largest_difference: float
    checked_lengths: tuple[int, ...]
    int8: Quantised | None = None
    files: dict[str, Digest]


def read_export(folder: Path) -> Export:
    """The description of a whole export. Raises: ExportError when there is none, or a file is not the one that it names."""
    try:
        told = Export.parse((folder / DESCRIPTION).read_bytes())
    except OSError as problem:
        raise ExportError(
            f"{folder} holds no export: {DESCRIPTION} cannot be read ({problem.strerror}); make one with `fl-privacy export`"
        ) from None
    except MessageError as problem:
        raise ExportError(f"{folder / DESCRIPTION} cannot be read: {problem}") from None
    for name, digest in told.files.items():
        if Path(name).name != name:
            raise ExportError(f"{folder / DESCRIPTION} names a file outside its folder")
        if sha256_of(folder / name) != digest:
            raise ExportError(f"{folder / name} is not the exported file: it was changed or damaged; export the model again")
    return told


def sha256_of(path: Path) -> str:
    """Digest of a file. Raises: ExportError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as problem:
        raise ExportError(f"{path} cannot be read: {problem.strerror}") from None


def require_packages() -> None:
    """Raises: ExtraMissing unless the extra ``serve`` is installed."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ExtraMissing(
            f"{', '.join(missing)} not installed: the extra 'serve' of this package brings it; in its repository, run"
            " `pip install -c constraints.txt '.[serve]'`"
        )

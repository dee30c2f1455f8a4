"""The engine answers as the library's own pipelines do, and reads texts as training does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_privacy.errors import ExportError, InputRefused
from fl_privacy.learning.tasks.ner import _tokens
from fl_privacy.learning.text_encoder import TextEncoder
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.serving.answers import Classified, Entities, Filled, entities_of, probabilities
from fl_privacy.serving.export_format import Export, SpecialTokens, Task
from fl_privacy.serving.texts import TextReader, Tokens, beginnings
from tests.serving.conftest import Exported
from tests.serving.extra import need_extra
from tests.tiny_families import LABELS, VOCABULARIES
from tests.tiny_model import SENTENCES

need_extra()

from transformers import pipeline  # noqa: E402

from fl_privacy.serving.engine import Engine  # noqa: E402

TAGS = ("O", "B-人名", "I-人名", "B-地名", "I-地名")
TEXTS = st.text(alphabet=st.sampled_from("病人今天上午头痛ab 3,。[MASK]é\u0301\n<s>"), min_size=1, max_size=30)


def of_library(folder: Path, task: Any) -> Any:
    return pipeline(task, model=str(folder.with_name(f"model-{folder.name}")), device="cpu")


def reader_of(family: str, task: Task, folder: Path) -> tuple[TextReader, TextEncoder]:
    """The reader of an export that was never made, and training's encoder of the same vocabulary."""
    tokenizer = tokenizer_of(VOCABULARIES[family])
    file = folder / f"{family}.json"
    file.write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
    special = SpecialTokens(
        first=tokenizer.cls_token_id,
        last=tokenizer.sep_token_id,
        padding=tokenizer.pad_token_id,
        mask=tokenizer.mask_token_id,
        mask_text=tokenizer.mask_token or "",
    )
    export = Export(
        task=task,
        source="tiny",
        model_type=family,
        inputs=("input_ids",),
        scores=2,
        max_length=500,
        tokens=special,
        tolerance=0.0,
        largest_difference=0.0,
        checked_lengths=(),
        files={},
    )
    return TextReader(file, export), TextEncoder(tokenizer, 500)


@pytest.mark.parametrize("masks", [1, 2])
def test_masks_are_filled_as_the_library_fills_them(exported: Exported, masks: int) -> None:
    folder = exported("bert", "mlm")
    text = SENTENCES[0].replace("天", "[MASK]", 1)
    text = text if masks == 1 else f"[MASK]{text}"
    told = Engine(folder).answer(text, top_k=4)
    assert isinstance(told, Filled)
    expected = of_library(folder, "fill-mask")(text, top_k=4)
    expected = [expected] if masks == 1 else expected
    assert len(told.masks) == masks
    for mask, guesses in zip(told.masks, expected, strict=True):
        assert [guess.token_id for guess in mask.guesses] == [guess["token"] for guess in guesses]
        assert [guess.probability for guess in mask.guesses] == pytest.approx([guess["score"] for guess in guesses], abs=1e-5)
        assert text[mask.start : mask.end] == "[MASK]"


def test_a_text_is_classified_as_the_library_does(exported: Exported) -> None:
    folder = exported("bert", "classification")
    library = of_library(folder, "text-classification")
    for text in SENTENCES[::9]:
        told = Engine(folder).answer(text, top_k=3)
        assert isinstance(told, Classified)
        expected = library(text, top_k=None)
        assert [one.label for one in told.classes] == [one["label"] for one in expected]
        assert [one.probability for one in told.classes] == pytest.approx([one["score"] for one in expected], abs=1e-5)


def test_tags_are_those_of_the_library(exported: Exported) -> None:
    folder = exported("bert", "ner")
    engine, library = Engine(folder), of_library(folder, "token-classification")
    for text in SENTENCES[::9]:
        tokens = engine.read(text)
        chosen = engine.score([tokens])[0].argmax(axis=1)
        expected = {one["start"]: one["entity"] for one in library(text)}
        found = {int(tokens.characters[place, 0]): TAGS[tag] for place, tag in zip(tokens.places, chosen, strict=True)}
        assert {start: tag for start, tag in found.items() if tag != "O"} == {
            start: tag for start, tag in expected.items() if start in found
        }


@pytest.mark.parametrize("family", VOCABULARIES)
@given(text=TEXTS)
def test_a_text_is_read_as_in_training(family: str, text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    reader, encoder = reader_of(family, "ner", tmp_path_factory.getbasetemp())
    ids, starts = encoder.encode_with_characters(text)
    if len(ids) == 2 or not text.strip():
        with pytest.raises(InputRefused):
            reader.read(text)
        return
    tokens = reader.read(text)
    assert tokens.ids.tolist() == ids.tolist()
    for ours, theirs in zip(beginnings(tokens.characters, len(text)), _tokens(starts), strict=True):
        assert ours.tolist() == theirs.tolist()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, len(TAGS) - 1)), min_size=1, max_size=20))
def test_entities_are_in_order_apart_and_tell_their_own_characters(drawn: list[tuple[int, int]]) -> None:
    """Each token stands for two characters, after a gap of 0 to 2."""
    characters, at = [(0, 0)], 0
    for gap, _ in drawn:
        characters.append((at + gap, at + gap + 2))
        at += gap + 2
    text = "".join(chr(0x4E00 + index) for index in range(at))
    spans = np.array([*characters, (0, 0)])
    tokens = Tokens(np.zeros(len(spans), dtype=np.int64), spans, np.arange(1, len(spans) - 1))
    scores = np.eye(len(TAGS), dtype=np.float32)[[tag for _, tag in drawn]] * 9
    told = entities_of(text, tokens, scores, TAGS).entities
    assert all(text[one.start : one.end] == one.text and one.start < one.end for one in told)
    assert all(before.end <= after.start for before, after in zip(told, told[1:], strict=False))
    assert len(told) == sum(TAGS[tag].startswith("B") for _, tag in drawn)
    assert all(one.probability == pytest.approx(probabilities(scores[:1]).max()) for one in told)


def test_an_entity_goes_on_through_a_space() -> None:
    tokens = Tokens(np.zeros(4, dtype=np.int64), np.array([(0, 0), (0, 2), (3, 5), (0, 0)]), np.array([1, 2]))
    scores = np.eye(len(TAGS), dtype=np.float32)[[3, 4]]
    told = entities_of("ab cd", tokens, scores, TAGS)
    assert [(one.label, one.start, one.end, one.text) for one in told.entities] == [("地名", 0, 5, "ab cd")]


def test_texts_of_all_lengths_together_are_answered_as_one_by_one(exported: Exported) -> None:
    engine = Engine(exported("bert", "ner"))
    texts = [SENTENCES[index][:length] for index, length in enumerate(range(2, 20))] + [SENTENCES[0] * 2]
    read = [engine.read(text) for text in texts]
    for text, tokens, scores in zip(texts, read, engine.score(read), strict=True):
        told, alone = engine.told(text, tokens, scores), engine.answer(text)
        assert isinstance(told, Entities) and isinstance(alone, Entities)
        assert [(one.label, one.start, one.end) for one in told.entities] == [
            (one.label, one.start, one.end) for one in alone.entities
        ]
        assert np.allclose(scores, engine.score([tokens])[0], atol=1e-5)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("病人头痛", r"no \[MASK\]"),
        ("  \n", "empty"),
        ("[MASK]" * 59, "61 tokens, first and last included; the model takes 60"),
        ("[MASK]" * 33, "33 masks; at most 32"),
        ("[PAD][CLS]", "no character"),
        ("\ud800[MASK]", "cannot read"),
    ],
)
def test_a_text_without_an_answer_is_refused_without_being_repeated(exported: Exported, text: str, why: str) -> None:
    with pytest.raises(InputRefused, match=why) as refused:
        Engine(exported("bert", "mlm")).answer(text)
    assert "头痛" not in str(refused.value)


def test_the_8_bit_model_answers_only_where_there_is_one(exported: Exported) -> None:
    assert isinstance(Engine(exported("bert", "mlm"), int8=True).answer("病人[MASK]痛"), Filled)
    with pytest.raises(ExportError, match="export it with --int8"):
        Engine(exported("bert", "classification"), int8=True)


def test_texts_do_not_show_in_a_repr(exported: Exported) -> None:
    assert "[" not in repr(Engine(exported("bert", "mlm")).read("病人[MASK]"))


def test_a_model_answers_in_a_process_that_has_no_torch(exported: Exported) -> None:
    script = f"""
import sys
from pathlib import Path
sys.modules["torch"] = sys.modules["transformers"] = None  # importing either fails
from fl_privacy.serving.app import make_app
from fl_privacy.serving.engine import Engine
engine = Engine(Path({str(exported("bert", "classification"))!r}))
make_app(engine)
print(engine.answer("病人头痛").classes[0].label)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip() in LABELS["classification"]

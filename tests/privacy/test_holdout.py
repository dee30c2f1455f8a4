"""The held-out part: a function of each unit alone, stable, of the right size, and without overlap with what is trained on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_privacy.errors import PrivacyError
from fl_privacy.learning.batches import by_length
from fl_privacy.messages import Row
from fl_privacy.privacy.holdout import Part, held_out

KEY = b"k" * 32
records = st.builds(
    Row,
    text=st.text("病人头痛abc ", min_size=1, max_size=6),
    label=st.sampled_from([None, "news", "sport"]),
    subject=st.integers(0, 4),
)
many = st.lists(records, max_size=12)


def numbered(count: int, subjects: int | None = None) -> list[Row]:
    return [Row(text=f"row {index}", subject=None if subjects is None else index % subjects) for index in range(count)]


@settings(max_examples=100, deadline=None)
@given(before=many, row=records, after=many, key=st.binary(min_size=1, max_size=32), share=st.floats(0.05, 0.5))
def test_a_record_more_or_less_moves_no_other_record(
    before: list[Row], row: Row, after: list[Row], key: bytes, share: float
) -> None:
    with_it = held_out([*before, row, *after], share, key, "record").tolist()
    without = held_out([*before, *after], share, key, "record").tolist()
    del with_it[len(before)]
    assert with_it == without


@settings(max_examples=100, deadline=None)
@given(rows=many, share=st.floats(0.05, 0.5))
def test_a_subject_is_held_out_whole_and_whoever_else_is_there_does_not_matter(rows: list[Row], share: float) -> None:
    """Nor does its number, which depends on who stands before it in the file."""
    fates = held_out(rows, share, KEY, "subject")
    for subject in {row.subject for row in rows}:
        own = [place for place, row in enumerate(rows) if row.subject == subject]
        alone = held_out([rows[place].model_copy(update={"subject": 99}) for place in own], share, KEY, "subject")
        assert fates[own].tolist() == alone.tolist() and len(set(alone.tolist())) == 1


def test_the_share_is_kept_and_a_larger_one_holds_out_more_of_the_same() -> None:
    rows = numbered(4000)
    small, large = (held_out(rows, share, KEY, "record") for share in (0.1, 0.3))
    for fates, share in ((small, 0.1), (large, 0.3)):
        assert abs(fates.mean() - share) < 6 * np.sqrt(share * (1 - share) / len(rows))
    assert (large | ~small).all()


def test_the_split_is_the_same_every_time_and_another_one_with_another_key() -> None:
    rows = numbered(200)
    assert held_out(rows, 0.5, KEY, "record").tolist() == held_out(rows, 0.5, KEY, "record").tolist()
    assert held_out(rows, 0.5, KEY, "record").tolist() != held_out(rows, 0.5, b"j" * 32, "record").tolist()


def test_label_and_tags_are_part_of_a_records_content() -> None:
    rows = [Row(text="x", label=f"label-{index}") for index in range(100)]
    assert 0 < held_out(rows, 0.5, KEY, "record").sum() < 100


def test_the_two_parts_make_up_the_whole() -> None:
    rows = numbered(50)
    fates = held_out(rows, 0.3, KEY, "record")
    kept, trained = Part(rows, fates), Part(rows, ~fates)
    assert len(kept) + len(trained) == 50 and 0 < len(kept) < 50
    assert sorted([*kept, *trained], key=lambda row: row.text) == sorted(rows, key=lambda row: row.text)
    assert kept[:2] == [kept[0], kept[1]] and kept[-1] == list(kept)[-1]
    with pytest.raises(IndexError):
        kept[len(kept)]


def test_a_part_of_rows_on_disk_knows_their_lengths() -> None:
    class OnDisk(list[Row]):
        lengths = np.array([3, 1, 2])

    part = Part(OnDisk(numbered(3)), np.array([True, False, True]))
    assert part.lengths is not None and part.lengths.tolist() == [3, 2]
    assert by_length(part).tolist() == [1, 0]
    assert Part(numbered(3), np.array([True] * 3)).lengths is None


def test_rows_without_what_the_split_needs_are_refused() -> None:
    with pytest.raises(PrivacyError, match="without a subject"):
        held_out(numbered(3), 0.5, KEY, "subject")
    with pytest.raises(PrivacyError, match="without a key"):
        held_out(numbered(3), 0.5, b"", "record")

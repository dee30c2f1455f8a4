"""Anybody with the registry can check, from the files of a round alone, that the aggregator added what the owners sent."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fl_privacy.encryption import blind_sum
from fl_privacy.encryption.agreement import survivor_list
from fl_privacy.encryption.evidence import Evidence, judge, round_folders, verify_round
from fl_privacy.errors import (
    ChecksumMismatch,
    CiphertextInvalid,
    CohortMismatch,
    DigestMismatch,
    FlPrivacyError,
    HomeError,
    MessageError,
    SignatureInvalid,
)
from fl_privacy.messages import CloseRequest, OpenRequest, Signed, UpdateReceipt, sign
from tests.secure_cohort import make_cohort
from tests.signed_round import SignedRound, make_signed_round, opened_sum, sha256

OWNERS = ("owner-00", "owner-01", "owner-02")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> SignedRound:
    return make_signed_round(make_cohort(3, 300), tmp_path_factory.mktemp("run") / "rounds" / "000")


@pytest.fixture
def folder(kept: SignedRound, tmp_path: Path) -> Path:
    """A copy of the round's evidence that a test may spoil."""
    return Path(shutil.copytree(kept.evidence.folder, tmp_path / "rounds" / "000"))


def told(folder: Path, kept: SignedRound, kind: type[FlPrivacyError]) -> str:
    """The reason why a round is not proved."""
    with pytest.raises(kind) as caught:
        verify_round(folder, kept.cohort.registry)
    assert type(caught.value) is kind
    return str(caught.value)


def with_ciphertext(kept: SignedRound, owner: str, ciphertext: str) -> list[UpdateReceipt]:
    """The receipts, of which one is for another ciphertext."""
    changed = {"ciphertext": ciphertext}
    return [receipt.model_copy(update=changed) if receipt.owner == owner else receipt for receipt in kept.receipts]


def survivors(request: CloseRequest, kept: SignedRound, receipts: list[UpdateReceipt]) -> tuple[Signed, ...]:
    """Survivor lists of all owners, as they would sign them for these receipts."""
    return tuple(sign(survivor_list(request, kept.cohort.order, receipts, owner), kept.key(owner)) for owner in OWNERS)


def rewritten(folder: Path, kept: SignedRound, opened: tuple[Signed, ...] | None = None, **changes: object) -> None:
    Evidence(folder).write(OpenRequest(**dict(kept.request) | changes), kept.opened if opened is None else opened)


def test_a_round_as_it_should_be_is_proved_with_its_figures(kept: SignedRound) -> None:
    found = verify_round(kept.evidence.folder, kept.cohort.registry)
    assert (found.round, found.attempt, found.order) == (0, 0, kept.cohort.order.digest())
    assert found.cohort == OWNERS
    assert found.openers == OWNERS[:2]
    assert found.total == sha256(kept.evidence.total_path.read_bytes())
    assert found.values == sha256(kept.evidence.values_path.read_bytes())
    assert found.bytes_added == sum(receipt.ciphertext_bytes for receipt in kept.receipts)


def test_the_sum_of_the_updates_is_the_same_bytes_in_any_order(kept: SignedRound, tmp_path: Path) -> None:
    updates = [kept.evidence.update_path(owner) for owner in reversed(OWNERS)]
    blind_sum.add_updates(updates, kept.cohort.order, tmp_path / "total.bin")
    assert (tmp_path / "total.bin").read_bytes() == kept.evidence.total_path.read_bytes()


def test_evidence_reads_back_what_was_written(kept: SignedRound, folder: Path) -> None:
    assert Evidence(folder).read() == (kept.request, kept.opened)
    assert sorted(path.name for path in folder.iterdir()) == [
        "opened.json",
        "request.json",
        "total.bin",
        "updates",
        "values.bin",
    ]


def test_a_total_that_is_not_the_sum_is_found_although_all_owners_signed_it(kept: SignedRound, folder: Path) -> None:
    """The aggregator adds something of its own before anybody signs; nobody at the table can see it, the verifier can."""
    wrong = kept.request.model_copy(update={"total": sha256(b"another total")})
    request = wrong.model_copy(update={"survivors": survivors(wrong, kept, kept.receipts)})
    digest = kept.cohort.order.digest()
    opened = tuple(sign(opened_sum(request, digest, owner, kept.values), kept.key(owner)) for owner in OWNERS)
    Evidence(folder).write(request, opened)
    assert "round 0: the aggregator added wrongly" in told(folder, kept, ChecksumMismatch)


def test_a_changed_update_file_is_named(kept: SignedRound, folder: Path) -> None:
    path = Evidence(folder).update_path("owner-01")
    blob = path.read_bytes()
    path.write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
    assert "the encrypted update of 'owner-01' has sha256" in told(folder, kept, DigestMismatch)


def test_a_missing_update_file_is_named_and_where_to_ask_for_it(kept: SignedRound, folder: Path) -> None:
    Evidence(folder).update_path("owner-02").unlink()
    reason = told(folder, kept, HomeError)
    assert "owner-02.bin is missing" in reason
    assert f"ask the scientist or owner-02 for blob {kept.receipts[2].ciphertext}" in reason


def test_values_that_the_openers_did_not_sign_are_found(kept: SignedRound, folder: Path) -> None:
    path = Evidence(folder).values_path
    path.write_bytes(path.read_bytes()[4:] + path.read_bytes()[:4])
    assert "the opened values of round 0" in told(folder, kept, DigestMismatch)
    path.unlink()
    assert "values.bin is missing" in told(folder, kept, HomeError)


def test_one_opener_is_not_enough_also_when_it_signs_twice(kept: SignedRound, folder: Path) -> None:
    for opened in ((), kept.opened[:1], (kept.opened[0], kept.opened[0])):
        rewritten(folder, kept, opened)
        assert "2 must agree" in told(folder, kept, CohortMismatch)


def test_openers_who_disagree_are_named(kept: SignedRound, folder: Path) -> None:
    order = kept.cohort.order.digest()
    other = sign(opened_sum(kept.request, order, "owner-01", kept.values + 1), kept.key("owner-01"))
    rewritten(folder, kept, (kept.opened[0], other))
    reason = told(folder, kept, ChecksumMismatch)
    assert "disagree on its values" in reason
    assert "owner-00" in reason
    assert "owner-01" in reason


@pytest.mark.parametrize("changes", [{"order": "0" * 64}, {"total": "0" * 64}])
def test_an_opening_of_something_else_does_not_count(kept: SignedRound, folder: Path, changes: dict[str, str]) -> None:
    word = opened_sum(kept.request, kept.cohort.order.digest(), "owner-01", kept.values).model_copy(update=changes)
    rewritten(folder, kept, (kept.opened[0], sign(word, kept.key("owner-01"))))
    assert "'owner-01' opened another order or total" in told(folder, kept, CohortMismatch)


def test_an_opening_in_anothers_name_does_not_count(kept: SignedRound, folder: Path) -> None:
    word = opened_sum(kept.request, kept.cohort.order.digest(), "owner-02", kept.values)
    rewritten(folder, kept, (kept.opened[0], sign(word, kept.key("owner-01"))))
    assert "in the name of 'owner-02' is signed by 'owner-01'" in told(folder, kept, SignatureInvalid)
    rewritten(folder, kept, (kept.opened[0], sign(word, kept.cohort.scientist)))
    assert "which no owner of the cohort has" in told(folder, kept, SignatureInvalid)


def test_a_lost_or_repeated_word_of_an_owner_is_found(kept: SignedRound, folder: Path) -> None:
    for field, kind in (("receipts", "UpdateReceipt"), ("survivors", "SurvivorList"), ("reveals", "SelfMaskReveal")):
        words = getattr(kept.request, field)
        rewritten(folder, kept, **{field: words[:2]})
        assert f"no {kind} of owner-02" in told(folder, kept, CohortMismatch)
        rewritten(folder, kept, **{field: (*words, words[0])})
        assert "'owner-00'" in told(folder, kept, CohortMismatch)


def test_an_order_that_was_changed_after_it_was_signed_is_refused(kept: SignedRound, folder: Path) -> None:
    order = kept.request.order
    forged = order.model_copy(update={"body": order.body.replace('"round":0', '"round":1')})
    rewritten(folder, kept, order=forged)
    told(folder, kept, SignatureInvalid)
    changed = kept.cohort.ordering(round=1).order
    rewritten(folder, kept, order=sign(changed, kept.cohort.scientist))
    assert "is for order" in told(folder, kept, CohortMismatch)


def test_another_registry_is_not_trusted(kept: SignedRound) -> None:
    with pytest.raises(DigestMismatch, match="the order is for registry"):
        verify_round(kept.evidence.folder, make_cohort(3).registry)


def test_one_ciphertext_under_two_names_is_refused(kept: SignedRound, folder: Path) -> None:
    receipts = with_ciphertext(kept, "owner-01", kept.receipts[0].ciphertext)
    rewritten(folder, kept, receipts=tuple(sign(receipt, kept.key(receipt.owner)) for receipt in receipts))
    assert "the same ciphertext" in told(folder, kept, CohortMismatch)


def test_signed_rubbish_in_place_of_a_ciphertext_is_a_typed_error(kept: SignedRound, folder: Path) -> None:
    """An owner signs for bytes that are no ciphertext at all: the verifier says so and does not fall over."""
    Evidence(folder).update_path("owner-01").write_bytes(b"rubbish")
    receipts = with_ciphertext(kept, "owner-01", sha256(b"rubbish"))
    signed = tuple(sign(receipt, kept.key(receipt.owner)) for receipt in receipts)
    rewritten(folder, kept, receipts=signed, survivors=survivors(kept.request, kept, receipts))
    told(folder, kept, CiphertextInvalid)


@pytest.mark.parametrize("name", ["request.json", "opened.json"])
@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda path: path.unlink(), HomeError),
        (lambda path: path.write_bytes(b""), MessageError),
        (lambda path: path.write_bytes(b"[" * 100_000), MessageError),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), MessageError),
    ],
)
def test_lost_or_damaged_words_are_typed_errors(
    kept: SignedRound, folder: Path, name: str, spoil: Callable[[Path], None], kind: type[FlPrivacyError]
) -> None:
    spoil(folder / name)
    assert name in told(folder, kept, kind) or kind is MessageError


def test_a_report_goes_on_after_a_false_round_and_knows_a_round_in_the_wrong_place(kept: SignedRound, folder: Path) -> None:
    shutil.copytree(folder, folder.parent / "001")
    (folder / "request.json").unlink()
    first, second = [judge(found, kept.cohort.registry) for found in round_folders(folder.parent.parent)]
    assert isinstance(first.error, HomeError)
    assert "holds the evidence of round 0" in str(second.error)
    assert judge(kept.evidence.folder, kept.cohort.registry).error is None


def test_a_folder_without_rounds_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(HomeError, match="holds no rounds"):
        round_folders(tmp_path)

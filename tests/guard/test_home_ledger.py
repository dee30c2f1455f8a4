"""The guard's ledger: its head beside it, what the other owners countersigned in it, and budgets over a period."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from fl_privacy.errors import LedgerError, LedgerTampered
from fl_privacy.guard.admission import plan_spends, round_spend
from fl_privacy.guard.corpus import add_corpus
from fl_privacy.guard.domain import Domain
from fl_privacy.guard.guard import Guard
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.home_ledger import FILE, HEAD
from fl_privacy.messages import UpdateReceipt, sign
from fl_privacy.owner_files import export_ledger, import_ledger, read_ledger
from fl_privacy.privacy.entries import Spend, Witness
from fl_privacy.round_order import RoundOrder
from tests.builders import texts, write_domain
from tests.guard.conftest import ROWS, Strongrooms, make_strongrooms
from tests.guard.protocol import Attempt, Worker, changed
from tests.guard.protocol import sealed as sealed_by

DIGEST = "ab" * 32


@pytest.fixture
def home(tmp_path: Path) -> GuardHome:
    (tmp_path / "owner").mkdir()
    made = GuardHome.create(tmp_path / "owner" / "guard", Domain.read(write_domain(tmp_path, "bank")))
    made.close()
    return made


def change_budget(home: GuardHome, epsilon: float) -> None:
    """One more entry, as when the owner edits domain.toml and starts the guard."""
    file = home.folder / "domain.toml"
    lines = [f"epsilon = {epsilon}" if line.startswith("epsilon = ") else line for line in file.read_text().splitlines()]
    file.write_text("\n".join(lines))
    GuardHome(home.folder).close()


def test_the_head_follows_every_entry(home: GuardHome) -> None:
    heads = []
    for epsilon in (7.0, 6.0, 5.0):
        change_budget(home, epsilon)
        heads.append((home.folder / HEAD).read_text())
        assert heads[-1] == read_ledger(home.folder.parent)[1].head
    assert len(set(heads)) == 3


def test_an_older_copy_of_the_ledger_is_noticed_at_the_next_start(home: GuardHome, tmp_path: Path) -> None:
    shutil.copy(home.folder / FILE, tmp_path / "older.sqlite")
    change_budget(home, 7.0)
    shutil.copy(tmp_path / "older.sqlite", home.folder / FILE)
    with pytest.raises(LedgerTampered, match="cut short"):
        GuardHome(home.folder)
    with pytest.raises(LedgerTampered):
        read_ledger(home.folder.parent)


def test_a_crash_before_the_head_was_written_is_no_tampering(home: GuardHome) -> None:
    former = (home.folder / HEAD).read_text()
    change_budget(home, 7.0)
    (home.folder / HEAD).write_text(former)
    GuardHome(home.folder).close()


def test_a_head_that_is_gone_is_not_passed_over(home: GuardHome) -> None:
    (home.folder / HEAD).unlink()
    with pytest.raises(LedgerTampered, match=r"ledger\.head is gone.*ledger import"):
        GuardHome(home.folder)


def test_an_import_brings_the_head_back_and_refuses_an_export_without_it(home: GuardHome, tmp_path: Path) -> None:
    owner = home.folder.parent
    export_ledger(owner, tmp_path / "old.jsonl")
    change_budget(home, 7.0)
    export_ledger(owner, tmp_path / "new.jsonl")
    (home.folder / FILE).unlink()
    with pytest.raises(LedgerError, match="cut short"):
        import_ledger(owner, tmp_path / "old.jsonl")
    assert import_ledger(owner, tmp_path / "new.jsonl") == 2
    (home.folder / HEAD).unlink()
    import_ledger(owner, tmp_path / "new.jsonl")
    GuardHome(home.folder).close()


def test_a_reveal_leaves_every_owners_countersigned_head_in_the_ledger_first(sealed: Attempt) -> None:
    revealing = sealed.revealing(sealed.close())
    for _ in range(2):  # again, as after a lost answer
        for owner in sealed.order.cohort:
            sealed.guards[owner].closing.reveal(revealing)
    heads = tuple(UpdateReceipt.parse(receipt.body).ledger_head for receipt in sealed.receipts)
    for guard in sealed.guards.values():
        found = [entry.event for entry in guard.home.ledger.entries() if isinstance(entry.event, Witness)]
        assert [event.order for event in found] == [sealed.order.digest()]
        assert {signed.body.count(head) for signed in found[0].survivors for head in heads} == {1}


def test_a_reveal_is_refused_when_the_ledger_never_had_the_head_that_all_signed(sealed: Attempt) -> None:
    """As when an owner put an older ledger back between its receipt and the reveal: the others hold the proof."""
    bank = sealed.guards["bank"]
    word = changed(UpdateReceipt.parse(sealed.receipts[0].body), ledger_head=DIGEST)
    receipts = (sign(word, bank.home.identity.signing_key), *sealed.receipts[1:])
    (bank.orders.folder(sealed.order.digest()).path / "receipt.json").write_bytes(receipts[0].canonical())
    closing = changed(sealed.closing, receipts=receipts)
    revealing = changed(sealed.revealing(sealed.close(receipts=receipts)), receipts=closing.receipts)
    with pytest.raises(LedgerError, match="never had"):
        bank.closing.reveal(revealing)


def test_without_an_approval_in_the_ledger_nothing_can_be_paid(home: GuardHome) -> None:
    with GuardHome(home.folder) as opened, pytest.raises(LedgerError, match="no approval of plan"):
        opened.ledger.reserve(DIGEST, DIGEST, Spend(noise_multiplier=1.0, sample_rate=0.1, steps=2))


def test_a_budget_over_a_period_is_reviewed_by_what_it_bounds(
    rooms: Strongrooms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was spent before the period counts in the total, which the owner is told has no bound."""
    file = write_domain(tmp_path, "bank", 4.5)
    file.write_text(file.read_text().replace("[budget]\n", "[budget]\nperiod_days = 30\n"))
    guard = Guard(GuardHome.create(tmp_path / "period", Domain.read(file)))
    (tmp_path / "rows.txt").write_text("\n".join(texts(ROWS)), encoding="utf-8")
    add_corpus(guard.home, tmp_path / "rows.txt", [])
    guard.approve(rooms.code)
    ledger, now = guard.home.ledger, time.time()
    for digest in (DIGEST, "cd" * 32):
        ledger.reserve(digest, rooms.plan.digest(), round_spend(rooms.plan, ROWS))
    report = guard.review(rooms.code)
    assert report.epsilon_now == ledger.spent == guard.status()["epsilon_in_period"] > 0
    assert "within 30 days); ask for fewer rounds" in report.objection
    monkeypatch.setattr("time.time", lambda: now + 31 * 86_400)
    report = guard.review(rooms.code)
    assert (report.period_days, report.epsilon_now, report.objection) == (30, 0.0, "")
    assert "in the last 30 days" in report.sentence
    assert f"it would reach {ledger.forecast(plan_spends(rooms.plan, ROWS)):.2f}, which nothing bounds" in report.sentence
    guard.close()


def test_a_receipt_tells_what_a_budget_over_a_period_bounds_and_the_total(
    tmp_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def monthly(folder: Path, owner: str, epsilon: float) -> Path:
        file = write_domain(folder, owner, epsilon)
        file.write_text(file.read_text().replace("[budget]\n", "[budget]\nperiod_days = 30\n"))
        return file

    monkeypatch.setattr("tests.guard.conftest.write_domain", monthly)
    rooms = make_strongrooms(tmp_path)
    bank, now = rooms.guards["bank"].home.ledger, time.time()
    bank.reserve(DIGEST, rooms.plan.digest(), round_spend(rooms.plan, ROWS))
    once = bank.spent
    monkeypatch.setattr("time.time", lambda: now + 40 * 86_400)
    rooms.guards["bank"].approve(rooms.code, 90)
    signed = rooms.order()
    rooms.guards["bank"].rounds.place(signed)
    word = UpdateReceipt.parse(sealed_by(rooms.guards["bank"], RoundOrder.parse(signed.body)).body)
    assert (word.period_days, word.epsilon_in_period, word.epsilon_spent) == (30, once, bank.spent)
    assert word.epsilon_spent > once
    for guard in rooms.guards.values():
        guard.close()

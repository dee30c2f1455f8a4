"""What a federation tells shows itself, in a notebook and in a terminal, and what owners wrote stays text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fl_privacy.errors import PlanError, RequestDenied
from fl_privacy.ledger_statement import LedgerStatement
from fl_privacy.messages import Row
from fl_privacy.scientist.federation import Federation
from fl_privacy.scientist.preview import preview
from fl_privacy.scientist.traffic import CKKS_BYTES, CKKS_SLOTS
from fl_privacy.scientist.views import Corpora, MockRows, Owners, OwnerView, RequestState, Statuses
from tests.builders import OWNERS, tiny_bundle, tiny_plan
from tests.ckks_cohort import make_cohort
from tests.scientist.fake_desks import FakeDesk

HOSTILE = "<script>alert(1)</script> [red]\x1b[31m\u202e"


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path, {owner: FakeDesk(owner, HOSTILE) for owner in OWNERS})  # type: ignore[misc]


def ledger(owner: str, spent: float, **more: object) -> LedgerStatement:
    fields = {"owner": owner, "epsilon_spent": spent, "epsilon_budget": 8.0, "delta": 1e-5, "accountant": "rdp"}
    return LedgerStatement.model_validate(fields | {"entries": 3, "head": "0" * 64} | more)


def test_what_an_owner_writes_is_shown_as_text_and_never_as_markup_or_control(federation: Federation) -> None:
    rows = MockRows([Row(text=HOSTILE)])
    for shown in (federation.owners(), federation.corpora(), rows, Statuses(bank=RequestState("denied", HOSTILE))):
        html = shown._repr_html_()
        assert "&lt;script&gt;" in html and "<script" not in html
        for text in (html, str(shown)):
            assert "[red]" in text and "\\x1b" in text
            assert "\x1b" not in text and "\u202e" not in text


def test_a_value_shows_the_same_in_a_terminal_as_in_its_repr(federation: Federation) -> None:
    corpora = federation.corpora()
    console = Console(width=118, force_terminal=False, color_system=None)
    with console.capture() as seen:
        console.print(corpora)
    assert seen.get().rstrip("\n") == repr(corpora) == str(corpora)
    assert "~990 records" in str(corpora)


def test_values_are_ordinary_dicts_and_lists(federation: Federation) -> None:
    corpora = federation.corpora()
    assert corpora == {owner: desk.corpora() for owner, desk in federation.desks.items()}
    assert corpora["bank"][0].declared_size == 990
    assert len(federation.mock_rows()) == 15 and isinstance(federation.mock_rows()[0], Row)
    assert isinstance(corpora, Corpora)


def test_an_owners_budget_is_shown_with_its_period_or_that_nobody_can_check_it_yet(federation: Federation) -> None:
    monthly = ledger("bank", 9.5, period_days=30, epsilon_in_period=1.5)
    shown = str(Owners(bank=OwnerView("bank", "Bank", "http://bank", "a@b", monthly)))
    assert "1.50 / 8.00 in 30 days" in shown
    assert "not enrolled yet" in str(federation.owners())


def test_a_revoked_approval_is_told_as_such(federation: Federation) -> None:
    plan = tiny_plan(tiny_bundle())
    federation.submit(plan)
    federation.desks["school"].state = RequestState("revoked", "the term is over")  # type: ignore[attr-defined]
    assert "revoked" in str(federation.status(plan))
    for owner in ("bank", "clinic"):
        federation.desks[owner].state = RequestState("approved")  # type: ignore[attr-defined]
    assert not federation.status(plan).is_approved
    with pytest.raises(RequestDenied, match="school revoked plan 'tiny': the term is over"):
        federation.run(plan, tiny_bundle(), [], Path("unused"))


def test_a_forecast_adds_the_plan_to_what_is_spent_and_says_where_a_budget_may_not_do(federation: Federation) -> None:
    plan = tiny_plan(tiny_bundle(), target_epsilon=4.0)
    corpora = federation.corpora()
    ledgers = {"bank": ledger("bank", 3.0), "clinic": ledger("clinic", 5.0), "school": ledger("school", 0.0)}
    told = preview(plan, tiny_bundle(), corpora, ledgers)
    assert [(one.owner, one.before, one.after) for one in told.owners] == [
        ("bank", 3.0, 7.0),
        ("clinic", 5.0, 9.0),
        ("school", 0.0, 4.0),
    ]
    assert [row[-1] for row in told.sheet().rows] == ["yes", "perhaps not", "yes"]
    assert told.seconds is None and "not measured yet" in told._repr_html_()


def test_a_forecast_without_readable_ledgers_gives_the_plans_own_cost(federation: Federation) -> None:
    told = federation.preview(tiny_plan(tiny_bundle()), tiny_bundle())
    assert [(one.before, one.after, one.plan) for one in told.owners] == [(None, None, 4.0)] * 3


def test_a_forecast_of_a_plan_that_no_corpus_suits_is_refused(federation: Federation) -> None:
    with pytest.raises(PlanError, match="batch_size: 1000 is more"):
        federation.preview(tiny_plan(tiny_bundle(), batch_size=1000), tiny_bundle())


def test_the_forecast_knows_the_size_of_a_ckks_vector() -> None:
    cohort = make_cohort(3, coordinates=2 * CKKS_SLOTS)
    protected = cohort.protect(cohort.order.cohort[0], cohort.updates()[0])
    assert len(protected) == pytest.approx(2 * CKKS_BYTES, rel=0.01)
    assert (
        len(make_cohort(3, coordinates=CKKS_SLOTS + 1).protect("owner-00", np.zeros(CKKS_SLOTS + 1, np.float32)))
        > CKKS_BYTES * 1.9
    )


def test_the_forecast_counts_what_scaffold_sends_down(federation: Federation) -> None:
    bundle, cards = tiny_bundle(), {owner: federation.desks[owner].corpora() for owner in OWNERS}
    changes = {"rounds": 4, "optimizer": "sgd"}
    plain, corrected = (
        preview(tiny_plan(bundle, strategy=name, **changes), bundle, cards, {}) for name in ("fedavg", "scaffold")
    )
    assert corrected.bytes_up == plain.bytes_up
    variate = len(bundle.weights)  # of all tensors, like the model
    assert corrected.bytes_down - plain.bytes_down == pytest.approx(3 * len(OWNERS) * variate, rel=1e-3)

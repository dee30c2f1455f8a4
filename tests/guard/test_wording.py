"""What an owner reads of a plan that trains or sends other things in other rounds, or keeps some: whole lines, so that they are
read before they change."""

from __future__ import annotations

from typing import Any

import pytest

from fl_privacy.guard.wording import labels_in_words, plan_in_words, sentence
from fl_privacy.learning.models import ModelBundle
from fl_privacy.ledger_statement import LedgerStatement
from fl_privacy.messages import CorpusCard
from fl_privacy.plan import TrainingPlan
from tests.builders import tiny_plan
from tests.scientist.test_layers_by_round import LABELS, a_bundle

CARD = CorpusCard.model_construct(owner="bank", declared_size=200, unit="record", annotations=("label",))
STATEMENT = LedgerStatement.model_construct(
    epsilon_spent=0.0, epsilon_budget=8.0, delta=1e-5, unit="record", period_days=None, epsilon_in_period=None
)
PLAIN = a_bundle(4)
LABELLED, BOTH = (a_bundle(4, head="classification", labels=LABELS, language_head=both) for both in (False, True))
TO_CLASSIFY: dict[str, Any] = {"task": "classification"}
FEDBT: dict[str, Any] = {"layer_schedule": "fedbt"}
TOP: dict[str, Any] = {"sent": "shared-top", "sent_share": 0.01, "error_feedback": True}


def told(plan: TrainingPlan, about: str) -> list[str]:
    """What the lines about one thing say."""
    lines = plan_in_words(plan, "a" * 64, CARD, "record")
    return [line.removeprefix(f"What is {about}: ") for line in lines if line.startswith(f"What is {about}: ")]


@pytest.mark.parametrize(
    ("bundle", "fields", "line"),
    [
        (PLAIN, {"trainable": "layers:2-2"}, "encoder layer 2 and the prediction head of tiny; 2 rounds of 2 steps."),
        (
            PLAIN,
            FEDBT | {"rounds": 3, "local_depths": (2, 3, 4)},
            "changing parts of tiny; 3 rounds of 2 steps. Of these rounds, 2 train encoder layer 0 and the prediction head; 1"
            " trains encoder layer 1 and the prediction head. Rounds that train a single layer do it on a model of 2 layers"
            " here: those above the trained one are drawn from the model's, whatever the records are.",
        ),
        (
            LABELLED,
            TO_CLASSIFY | FEDBT | {"rounds": 5},
            "changing parts of tiny; 5 rounds of 2 steps. Of these rounds, 3 train encoder layer 3 and the prediction head; 2"
            " train encoder layers 2 to 3 and the prediction head.",
        ),
        (
            BOTH,
            TO_CLASSIFY | FEDBT | {"rounds": 3, "pretraining_rounds": 1},
            "changing parts of tiny; 3 rounds of 2 steps. Of these rounds, 1 trains encoder layer 0 and the head that"
            " guesses masked characters; 1 trains encoder layer 3 and the prediction head; 1 trains encoder layers 2 to 3"
            " and the prediction head.",
        ),
        (
            PLAIN,
            {"layer_schedule": "progfed", "rounds": 8, "growth_stages": 2, "warmup_rounds": 1},
            "changing parts of tiny; 8 rounds of 2 steps. Of these rounds, 2 train all of the model cut to its first 2 layers;"
            " 1 trains encoder layers 2 to 3 and the prediction head; 5 train all layers.",
        ),
        (LABELLED, TO_CLASSIFY | {"local_layers": "2-3"}, "all layers of tiny; 2 rounds of 2 steps."),
    ],
)
def test_what_is_trained_is_told_by_round(bundle: ModelBundle, fields: dict[str, Any], line: str) -> None:
    assert told(tiny_plan(bundle, **fields), "trained") == [line]


@pytest.mark.parametrize(
    ("bundle", "fields", "words"),
    [
        (PLAIN, FEDBT | {"rounds": 3}, "3 different updates, each of what its round trains, each with random noise added"),
        (
            LABELLED,
            TO_CLASSIFY | {"local_layers": "2-3"},
            "of all layers but encoder layers 2 to 3 and the prediction head, each",
        ),
        (
            LABELLED,
            TO_CLASSIFY | {"local_layers": "3-3", "trainable": "layers:1-3"},
            "updates of encoder layers 1 to 2, each with",
        ),
        (
            LABELLED,
            TO_CLASSIFY | {"local_layers": "2-2", "trainable": "layers:0-3"},
            "updates of encoder layers 0 to 1 and encoder layer 3, each with",
        ),
    ],
)
def test_the_sentence_says_of_what_updates_leave(bundle: ModelBundle, fields: dict[str, Any], words: str) -> None:
    assert words in sentence(tiny_plan(bundle, **fields), CARD, STATEMENT, 4.0, 4.0)


def test_own_layers_are_told_as_kept_and_never_sent() -> None:
    (line,) = told(tiny_plan(LABELLED, **TO_CLASSIFY, local_layers="3-3"), "kept")
    assert line.startswith("encoder layer 3 and the prediction head are this owner's own.")
    assert "never sent" in line and "until the plan is revoked" in line


def test_what_compression_leaves_out_is_told_as_kept_only_where_it_is() -> None:
    (line,) = told(tiny_plan(PLAIN, **TOP), "kept")
    assert line.startswith("what is not sent of an update, to be added to the next.")
    assert told(tiny_plan(PLAIN, sent="random", sent_share=0.1), "kept") == []


def test_a_plan_may_keep_two_things() -> None:
    assert len(told(tiny_plan(LABELLED, **TO_CLASSIFY, local_layers="3-3", **TOP), "kept")) == 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "after each round one update of the model, with noise"),
        ({"rotation": True}, "after each round one update of the model, with noise"),
        (
            {"sent": "random", "sent_share": 0.07},
            "7% of the numbers of one update of the model (which ones is drawn anew for each round, by the plan), with",
        ),
        (
            TOP,
            "1% of the numbers of one update of the model (which ones the scientist says, the same to all owners), with",
        ),
    ],
)
def test_how_much_of_an_update_leaves_and_who_chooses_it(fields: dict[str, Any], words: str) -> None:
    """A guard checks how many coordinates of a shared top there are; not every guard knows the sum that they are the top of."""
    (line,) = [line for line in plan_in_words(tiny_plan(PLAIN, **fields), "a" * 64, CARD, "record") if "What leaves" in line]
    assert words in line


def test_further_pretraining_is_told_as_another_use_of_every_record() -> None:
    plan = tiny_plan(BOTH, **TO_CLASSIFY, **FEDBT, rounds=3, pretraining_rounds=1)
    (read,) = told(plan, "read")
    assert "in the first round used to guess masked characters (masked language model), without its label; after that" in read
    assert "change nothing in the model after the first round, though" in labels_in_words(plan, 3, 200)
    assert "change nothing in the model, though" in labels_in_words(tiny_plan(LABELLED, **TO_CLASSIFY), 3, 200)

"""A plan in plain words, for people who decide and for those who must answer for it. Every sentence here must be true."""

from __future__ import annotations

import math
from collections import Counter

from fl_privacy.ledger_statement import LedgerStatement
from fl_privacy.messages import CorpusCard
from fl_privacy.parallel_composition import ASSUMPTION
from fl_privacy.plan import TrainingPlan
from fl_privacy.round_plan import round_plan

SHOWN = 40  # labels of a plan; its signed text has all
UNITS = {"record": "one record (one row)", "subject": "all records of one person"}


def plan_in_words(plan: TrainingPlan, scientist: str, card: CorpusCard, unit: str) -> list[str]:
    """Who, why, what is read, what is computed, what leaves, to whom, and what protects it."""
    others = ", ".join(owner for owner in plan.owners if owner != card.owner)
    return [
        f"Purpose: {plan.purpose}",
        f"Who: scientist's key {scientist[:16]}…; together with {others}.",
        f"What is read: {_read(plan, card)}; each record that is read is cut to {plan.max_length} tokens and {_use(plan)}.",
        f"What is trained: {_trained(plan)}; {plan.rounds} rounds of {plan.local_steps} steps"
        + _own_rounds(plan, card.owner)
        + (f", and up to {plan.retries} rounds repeated." if plan.retries else ".")
        + _by_round(plan)
        + _small_model(plan, card.owner),
        *_what_is_kept(plan),
        *_what_is_evaluated(plan),
        *_what_leaves(plan),
        f"Protection: (epsilon, delta)-differential privacy. {UNITS[unit].capitalize()} more or less changes the probability of"
        f" whatever is released by a factor of at most e^{plan.target_epsilon:g}, and by {plan.delta:g} besides, all rounds"
        f"{' and evaluations' if plan.evaluations else ''} together.",
    ]


def _trained(plan: TrainingPlan) -> str:
    return f"{_layers(plan, plan) if plan.layer_schedule == 'fixed' else 'changing parts'} of {plan.model.source}"


def _by_round(plan: TrainingPlan) -> str:
    """Which layers are trained in how many rounds, where that changes."""
    if plan.layer_schedule == "fixed":
        return ""
    told = Counter(_layers(round_plan(plan, round_index), plan) for round_index in range(plan.rounds))
    parts = "; ".join(f"{rounds} train{'s' if rounds == 1 else ''} {layers}" for layers, rounds in told.items())
    return f" Of these rounds, {parts}."


def _layers(stage: TrainingPlan, plan: TrainingPlan) -> str:
    """Which layers a round of a plan trains; ``stage`` is the plan of the round."""
    if stage.layers:
        if stage.task == "clm" != plan.task:  # whose output layer is the word embedding
            return _span(*stage.layers)
        head = "the prediction head" if stage.task == plan.task else "the head that guesses masked characters"
        return f"{_span(*stage.layers)} and {head}"
    if stage.adapter:
        head = "" if stage.annotation is None else " and the prediction head"
        return f"low-rank adapters (rank {stage.adapter.rank}) of every layer{head}"
    if stage.model.num_layers < plan.model.num_layers:
        return f"all of the model cut to its first {_counted(stage.model.num_layers, 'layer')}"
    return {"all": "all layers", "head": "only the prediction head"}[stage.trainable]


def _released(plan: TrainingPlan) -> str:
    """What updates are of."""
    if plan.layer_schedule != "fixed":
        return ", each of what its round trains"
    if not plan.local_layers:
        return f" of {_layers(plan, plan)}"
    if not plan.layers:
        return f" of all layers but {_own_layers(plan)}"
    parts = ((plan.layers[0], plan.own_layers[0] - 1), (plan.own_layers[-1] + 1, plan.layers[1]))
    return " of " + " and ".join(_span(*part) for part in parts if part[0] <= part[1])


def _own_layers(plan: TrainingPlan) -> str:
    return f"{_span(plan.own_layers[0], plan.own_layers[-1])} and the prediction head"


def _span(first: int, last: int) -> str:
    return f"encoder layer {first}" if first == last else f"encoder layers {first} to {last}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def labels_in_words(plan: TrainingPlan, misfits: int, rows: int) -> str:
    """Which labels are learnt, and how many of the owner's rows have others: an exact number, which nobody else is told."""
    labels, more = ", ".join(map(repr, plan.model.labels[:SHOWN])), len(plan.model.labels) - SHOWN
    labels += f" and {more} more" if more > 0 else ""
    kind = "a label" if plan.task == "classification" else "a kind of entity"
    first = f" after {_first_rounds(plan)}" if plan.pretraining_rounds else ""
    return (
        f"What is learnt: {labels}. Only you are told: {misfits} of your {rows} rows have {kind} that is not among these; such"
        f" rows change nothing in the model{first}, though they may be sampled."
    )


def sentence(plan: TrainingPlan, card: CorpusCard, statement: LedgerStatement, epsilon_after: float, total: float) -> str:
    """What approving means, for somebody who reads contracts rather than code.

    Args: epsilon_after is what the budget would bound of what is then spent, total all that is then spent.
    """
    factor = math.exp(plan.target_epsilon)
    told = f"{factor:,.1f}" if factor < 1000 else f"{factor:,.0f}" if factor < 1e9 else f"{factor:.1e}"
    sentences = [
        f"If {card.owner} approves this plan, its guard may release at most {plan.trainings} different updates{_released(plan)}"
        f"{_and_counts(plan)}, each with random noise added before it leaves.",
        f"Whatever anyone concludes from all of them together - the scientist, the other owners, whoever gets the model later,"
        f" with any other knowledge - the probability of that conclusion is at most {told} times as"
        f" large (epsilon {plan.target_epsilon:g}) as it would be if {UNITS[statement.unit]} had not been in the corpus, apart"
        f" from an additional probability of {plan.delta:g} (delta); and the same the other way round.",
        _against_the_budget(card.owner, statement, epsilon_after, total),
        f"The same epsilon and delta hold for all that the {len(plan.owners)} owners release under this plan together, provided"
        f" that {ASSUMPTION}; for a person with records at several, they add up.",
        f"Not covered: {_not_covered(plan, statement.unit)}.",
    ]
    return " ".join(sentences)


def _against_the_budget(owner: str, statement: LedgerStatement, epsilon_after: float, total: float) -> str:
    if statement.period_days is None:
        return (
            f"Counted with everything released before, the guard's ledger would reach epsilon {epsilon_after:.2f} of the"
            f" {statement.epsilon_budget:.2f} that {owner} has set as its limit, at delta {statement.delta:g}."
        )
    return (
        f"Counted with everything released in the last {statement.period_days} days, the guard's ledger would reach epsilon"
        f" {epsilon_after:.2f} of the {statement.epsilon_budget:.2f} that {owner} has set as its limit for any so many days, at"
        f" delta {statement.delta:g}; counted with everything ever released it would reach {total:.2f}, which nothing bounds."
    )


def _read(plan: TrainingPlan, card: CorpusCard) -> str:
    rate = plan.sample_rate(card.declared_size)
    share = f"a random {rate:.1%} of {'those that are not held out' if plan.holdout else 'them'} a step"
    if card.unit == "record":
        return f"about {card.declared_size} records, {share}"
    return f"the records of about {card.declared_size} persons, {share} and of each of these one record, drawn anew each time"


def _first_rounds(plan: TrainingPlan) -> str:
    return "the first round" if plan.pretraining_rounds == 1 else f"the first {plan.pretraining_rounds} rounds"


def _use(plan: TrainingPlan) -> str:
    use = _USES[plan.task]
    if not plan.pretraining_rounds:
        return use
    first = f"in {_first_rounds(plan)} {_USES[round_plan(plan, 0).task]}"
    return f"{first}, without its {plan.annotation}; after that {use}"


_USES = {
    "custom": "handed, one at a time, to the scientist's own features and loss (code below)",
    "mlm": "used to guess masked characters (masked language model)",
    "clm": "used to guess each next token (causal language model)",
    "classification": "used with its label, to guess the label from the text",
    "ner": "used with its tags, to find and name entities in the text",
}


def _own_rounds(plan: TrainingPlan, owner: str) -> str:
    own = sum(owner in plan.cohort(round_index) for round_index in range(plan.rounds))
    return "" if own == plan.rounds else f", of which this owner trains in {own}"


def _small_model(plan: TrainingPlan, owner: str) -> str:
    depth = plan.depth_at(plan.owners.index(owner), plan.model.num_layers)
    if depth == plan.model.num_layers:
        return ""
    return (
        f" Rounds that train a single layer do it on a model of {_counted(depth, 'layer')} here: those above the trained one"
        " are drawn from the model's, whatever the records are."
    )


def _what_is_kept(plan: TrainingPlan) -> list[str]:
    kept = []
    if plan.local_layers:
        kept.append(
            f"What is kept: {_own_layers(plan)} are this owner's own. They are trained with the others, by the same steps and"
            " with the same noise, and are never sent. They stay in the guard's home until the plan is revoked; evaluations use"
            " them."
        )
    if plan.error_feedback:
        kept.append(
            "What is kept: what is not sent of an update, to be added to the next. It is made of this owner's own updates,"
            " their noise included, stays in the guard's home until the plan is revoked, and is no further release."
        )
    if plan.strategy == "scaffold":
        kept.append(
            "What is kept: a control variate, made of this owner's own updates, their noise included, and of public numbers."
            " It shifts each step of later rounds (SCAFFOLD). It stays in the guard's home until the plan is revoked, and is no"
            " further release."
        )
    return kept


def _what_is_evaluated(plan: TrainingPlan) -> list[str]:
    if not plan.evaluations:
        return []
    models = "the finished model is" if plan.evaluations == 1 else f"{plan.evaluations} models, the finished one too, are"
    return [
        f"What is evaluated: {plan.holdout:.0%} of the corpus, chosen by a secret key of this owner, is never trained on. On it"
        f" {models} tried, and guesses are counted: right and wrong ones, and how sure they were. The counts leave as updates"
        " do: only the sum over the owners is opened. What one record or person adds to them is cut to a length of"
        f" {plan.evaluation_bound:g}; each has noise of standard deviation {plan.evaluation_noise * plan.evaluation_bound:g}."
    ]


def _and_counts(plan: TrainingPlan) -> str:
    if not plan.evaluations:
        return ""
    return f" and {plan.evaluations} {'list' if plan.evaluations == 1 else 'lists'} of counts on held-out records"


def _what_leaves(plan: TrainingPlan) -> list[str]:
    hidden = {"bfv": "quantised, masked and encrypted", "ckks": "encrypted (CKKS) but not masked"}[plan.encryption]
    words = [
        f"What leaves: after each round {_part(plan)}, with noise added by DP-SGD, {hidden};"
        f" only the sum over at least {plan.minimal_cohort} owners is opened. No record leaves."
    ]
    if plan.encryption == "ckks":
        words.append(
            "WARNING: without masks, any one of the other owners can read this owner's own update of every round if it gets"
            " hold of the ciphertext, as it does when it works with the scientist; only the noise of DP-SGD then protects"
            " the records. Sums are approximate, and opened sums leak about the key that all owners share."
        )
    return words


def _part(plan: TrainingPlan) -> str:
    share = f"{plan.sent_share * 100:g}% of the numbers of one update of the model"
    return {
        "all": "one update of the model",
        "random": f"{share} (which ones is drawn anew for each round, by the plan)",
        "shared-top": f"{share} (which ones the scientist says, the same to all owners)",
    }[plan.sent]


def _not_covered(plan: TrainingPlan, unit: str) -> str:
    exceptions = [
        "what holds for many records alike, which is what training is for",
        "that this owner takes part, the corpus's rounded size, and how long training takes"
        + (" (and evaluating)" if plan.evaluations else ""),
        "a guard, computer or key that is not under the owner's control any more",
    ]
    if unit == "record":
        exceptions.insert(0, "a person with several records, for whom epsilon counts about once for each")
    else:
        exceptions.insert(0, "a person who stands under several names in the corpus, or is named in the records of others")
    return "; ".join(exceptions)

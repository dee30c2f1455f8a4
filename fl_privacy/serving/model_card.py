"""The model card of an export: what the model is, how it was trained, what was spent for it, and what that does not cover."""

from __future__ import annotations

from collections.abc import Iterator

from fl_privacy.model_spec import ModelSpec
from fl_privacy.plan import TrainingPlan
from fl_privacy.printable import printable
from fl_privacy.scientist.history import EvaluationRecord, History, OwnerSpend, RoundRecord
from fl_privacy.serving.export_format import INT8, MODEL, Export, Quantised
from fl_privacy.serving.sources import TrainedRun

_PIPELINES = {"fill-mask": "fill-mask", "classify": "text-classification", "ner": "token-classification"}
_USES = {
    "fill-mask": "It guesses hidden tokens of a text, and is a start for further training.",
    "classify": "It gives a text one of its labels.",
    "ner": "It finds entities in a text.",
}
_SCORES = {
    "mlm": "hidden tokens that it guesses right",
    "clm": "next tokens that it guesses right",
    "classification": "accuracy",
    "ner": "strict micro-F1 of entities",
    "custom": "predictions of the plan's own task that are right",
}
_TRAINED = {
    "all": "all tensors",
    "head": "the head alone",
    "lora": "low-rank adapters (LoRA), merged into the weights here",
    "ffa-lora": "low-rank adapters with a frozen A (FFA-LoRA), merged into the weights here",
}
_NOT_COVERED = """\
- A person with several records is protected about as if epsilon were that many times as large, unless the owner's ledger
  counts persons. The rows of one person at several owners are not one unit to anybody: those owners' epsilons and deltas
  add up.
- What holds for many records alike, which is what training is for, may be learnt, also about somebody who is not among them.
- The base model and its vocabulary are outside the guarantee: they must come from public text.
- What owners publish by decision (mock rows, declared sizes), and how long they train, are not covered.
- Nothing holds if an owner's machine, keys or installed code are not under its control; nobody can tell from outside whether
  noise was added."""


def model_card(export: Export, spec: ModelSpec, run: TrainedRun | None) -> str:
    """The card as Markdown, with the fields that model hubs read at its top. Only numbers of the run's history are in it."""
    sections = [_front_matter(export, run), _title(export, run), _use(export, spec)]
    sections += _of_run(run) if run else [_NO_RUN]
    sections += [_files(export)]
    return "\n\n".join(sections) + "\n"


_NO_RUN = """## Training and privacy

This was exported from a saved model without its run. Nothing is told here of what it was trained on, or under which privacy."""


def _front_matter(export: Export, run: TrainedRun | None) -> str:
    lines = ["---", "library_name: onnx", f"pipeline_tag: {_PIPELINES[export.task]}"]
    if run:
        lines.append("tags: [federated-learning, differential-privacy]")
    return "\n".join([*lines, "---"])


def _title(export: Export, run: TrainedRun | None) -> str:
    title = f"# {_plain(run.plan.name if run else export.source)}"
    return f"{title}\n\n{_plain(run.plan.purpose)}" if run else title


def _use(export: Export, spec: ModelSpec) -> str:
    told = [
        "## Intended use",
        "",
        f"A {export.model_type} model for {export.task}. {_USES[export.task]}",
        f"It takes texts of up to {export.max_length} tokens.",
    ]
    if spec.labels:
        told.append(f"Labels: {', '.join(_plain(label) for label in spec.labels)}.")
    told.append(
        "Its answers are likelihoods from text like that it was trained on, no statements of fact; try it on text of your own"
        " before anything depends on it."
    )
    return "\n".join(told)


def _of_run(run: TrainedRun) -> Iterator[str]:
    yield _training(run)
    yield _validation(run)
    yield _privacy(run.plan, run.history)
    yield _audit(run.plan)


def _training(run: TrainedRun) -> str:
    plan, opened = run.plan, len(run.history.rounds)
    skipped = sum(skip.purpose == "train" for skip in run.history.skipped)
    told = [
        "## Training",
        "",
        f"- Owners: {', '.join(plan.owners)}. Each trained where its text lies; no record was sent.",
        f"- Base: {_plain(plan.model.source)}.",
        f"- Rounds: {opened} opened, {skipped} skipped, {plan.rounds} planned; {plan.local_steps} steps a round and owner, on"
        f" {plan.batch_size} units a step in the mean.",
        f"- Strategy: {plan.strategy}. Trained: {_trained(plan)}. Texts were cut to {plan.max_length} tokens.",
    ]
    if run.ended:
        told.append(f"- It ended: {_plain(run.ended)}.")
    if run.counts != opened:
        told.append(f"- This is the best model, of those by validation score: the one after {run.counts} opened rounds.")
    if plan.own_layers:
        told.append(f"- Layers {plan.local_layers} stay with each owner; this model has the first model's in their place.")
    return "\n".join(told)


def _trained(plan: TrainingPlan) -> str:
    if plan.layers:
        return f"encoder layers {plan.layers[0]} to {plan.layers[1]} and the head"
    scheduled = "" if plan.layer_schedule == "fixed" else f", by the schedule {plan.layer_schedule}"
    return _TRAINED[plan.trainable] + scheduled


def _validation(run: TrainedRun) -> str:
    return "\n".join(
        [
            "## Validation",
            "",
            f"On {len(run.validation)} rows that are not private (published by the owners, or the scientist's own):",
            f"{_SCORES[run.plan.task]}.",
            "",
            "| model | score |",
            "|---|---|",
            f"| before the run | {run.history.accuracy_before:.2%} |",
            f"| this model | {run.score:.2%} |",
        ]
    )


def _privacy(plan: TrainingPlan, history: History) -> str:
    spends = last_spends(history)
    told = [
        "## Privacy",
        "",
        f"All that an owner's guard releases under this plan is (epsilon, delta)-differentially private with epsilon"
        f" {plan.target_epsilon:g} and delta {plan.delta:g}, for adding or removing one unit at that owner, by DP-SGD"
        f" (accountant: {plan.accountant}). A unit is what the owner's ledger counts: one record (one row), or one person where"
        " the owner has set that. Exporting the model, and its 8-bit form, costs nothing more.",
    ]
    if not spends:
        return "\n".join([*told, "", "No round was opened: this is the model that the run started from."])
    told += [
        "",
        "What the owners' ledgers count in all, over this and every other plan, by their last signed receipts in this run:",
        "",
        "| owner | epsilon | budget | delta | ledger head |",
        "|---|---|---|---|---|",
    ]
    told += [_row(owner, spend) for owner, spend in sorted(spends.items())]
    return "\n".join([*told, "", history.federation_claim, "", "Not covered by epsilon:", "", _NOT_COVERED])


def _row(owner: str, spend: OwnerSpend) -> str:
    budget = f"{spend.budget:.2f}"
    if spend.period_days:
        budget += f" in {spend.period_days} days ({spend.counted:.2f} counted)"
    return f"| {owner} | {spend.epsilon:.2f} | {budget} | {spend.delta:g} | `{spend.ledger_head}` |"


def last_spends(history: History) -> dict[str, OwnerSpend]:
    """Each owner's ledger by its last receipt."""
    opened: list[RoundRecord | EvaluationRecord] = [*history.evaluations, *history.rounds]
    opened.sort(key=lambda record: record.round)  # a round's evaluation comes before its training
    return {owner: spend for record in opened for owner, spend in record.spends.items()}


def _audit(plan: TrainingPlan) -> str:
    return f"""## Verify

The plan's digest is `{plan.digest()}`. With the run's folder, the owners' ledger exports and one owner's public key:

```sh
fl-privacy sums verify RUN --registry owners.json --key KEY
fl-privacy audit LEDGER.jsonl --registry owners.json --key KEY --history RUN/history.jsonl
```"""


def _files(export: Export) -> str:
    lengths = export.checked_lengths
    told = [
        "## Files",
        "",
        f"- `{MODEL}`: inputs {', '.join(f'`{name}`' for name in export.inputs)} (batch and length are open), output `logits`."
        f" Over texts of {lengths[0]} to {lengths[-1]} tokens its scores differ from PyTorch's by at most"
        f" {export.largest_difference:.2g}; {export.tolerance:g} was allowed.",
    ]
    if export.int8 is not None:
        told.append(f"- `{INT8}`: weights in 8 bits. {_agreement(export.int8)}")
    told.append("- `tokenizer.json` and its like: the tokenizer. `export.json`: what the export is, and each file's sha256.")
    return "\n".join([*told, "", "```sh", "fl-privacy serve EXPORT", "```"])


def _agreement(told: Quantised) -> str:
    if told.share is None:
        return "How often its best guess is the same was not measured: there were no rows to predict."
    return f"Its best guess is the same in {told.share:.2%} of {told.predictions} predictions on the validation rows."


def _plain(text: str) -> str:
    """Somebody's words in one line, with nothing in them that Markdown or HTML would obey."""
    line = " ".join(printable(text).split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>#|&!" else c for c in line)

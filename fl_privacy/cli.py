"""The command line: commands only; what they do is in the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fl_privacy.cli_ledger import audit, ledger_app
from fl_privacy.cli_owner import FILE, home_option, owner_app
from fl_privacy.cli_pretrain import pretrain_command
from fl_privacy.cli_serving import export_command, serve_command
from fl_privacy.cli_verify import sums_app
from fl_privacy.errors import FlPrivacyError

if TYPE_CHECKING:
    from fl_privacy.learning.models import ModelBundle
    from fl_privacy.plan import TrainingPlan
    from fl_privacy.scientist.history import History
    from fl_privacy.scientist.late_owners import WhenLate
    from fl_privacy.scientist.tracking import Tracker
    from fl_privacy.scientist.views import Corpora

federation_option = click.option(
    "--federation",
    "-f",
    type=FILE,
    default="federation.toml",
    show_default=True,
    help="Owners' addresses and accounts, as TOML.",
)


tensorboard_option = click.option(
    "--tensorboard", type=FILE, metavar="FOLDER", help="Write the history there, too, as TensorBoard's event files."
)
mlflow_option = click.option("--mlflow", metavar="URI", help="Tell the history to an MLflow server, too.")


class Commands(click.Group):
    """A group whose commands print our own errors in one line and exit with 1."""

    def invoke(self, context: click.Context) -> Any:
        """Run a command; anything but our own errors is a defect and keeps its traceback."""
        try:
            return super().invoke(context)
        except FlPrivacyError as error:
            raise click.ClickException(f"{type(error).__name__}: {error}") from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def app() -> None:
    """Federated training of language models on text that may not be shared.

    An owner runs `owner`, `corpus`, `requests` and `ledger`; a scientist runs `pretrain`, `corpora`, `submit` and `train`; an
    auditor runs `audit` and `sums verify`. `export` and `serve` put a trained model to use.
    """


app.add_command(owner_app)
app.add_command(ledger_app)
app.add_command(sums_app)
app.add_command(audit)
app.add_command(pretrain_command)
app.add_command(export_command)
app.add_command(serve_command)


@app.group("corpus")
def corpus_app() -> None:
    """The owner's private text."""


@app.group("requests")
def requests_app() -> None:
    """What scientists ask of this owner: read, approve, deny, revoke."""


@corpus_app.command("add")
@click.argument("file", type=FILE)
@home_option
@click.option("--mock", type=FILE, help="Rows that you publish for scientists to look at.")
@click.option("--field", default="text", show_default=True, help="Field or column of the text; also of the mock rows.")
@click.option("--label-field", help="Field or column of each text's class, for plans that classify.")
@click.option("--tags-field", help="Field or column of each text's BIO tags, one per character, for plans that find entities.")
@click.option("--subject-field", help='Field or column that says whom a row is about; with budget.unit = "subject".')
def corpus_add(
    file: Path,
    home: Path,
    mock: Path | None,
    field: str,
    label_field: str | None,
    tags_field: str | None,
    subject_field: str | None,
) -> None:
    """Copy the corpus in FILE (.jsonl, .csv, .parquet, or .txt) into the strong room. Stop `owner serve` first."""
    from fl_privacy.display import console
    from fl_privacy.display_corpora import labels
    from fl_privacy.owner_files import add_corpus, count_labels

    card = add_corpus(home, file, mock, text=field, label=label_field, tags=tags_field, subject=subject_field)
    console.print(
        f"{card.owner}: about {card.declared_size:,} {card.unit}s (declared), {len(card.mock_rows)} mock rows published"
    )
    for what, counts in count_labels(home).items():
        console.print(labels(what, counts))


@requests_app.command("list")
@home_option
def requests_list(home: Path) -> None:
    """List all requests with their numbers."""
    from fl_privacy.display import console, request_list
    from fl_privacy.owner import Owner

    console.print(request_list(Owner.running(home).all_requests()))


@requests_app.command("review")
@click.argument("number", type=int)
@home_option
def requests_review(number: int, home: Path) -> None:
    """Explain request NUMBER: the plan in words, the code, the forecast of epsilon."""
    from fl_privacy.display import console, review
    from fl_privacy.owner import Owner

    owner = Owner.running(home)
    console.print(review(number, owner.request(number).email, owner.review(number)))


@requests_app.command("approve")
@click.argument("number", type=int)
@home_option
@click.option("--days", type=click.IntRange(1, 36_500), help="How long orders are admitted; by default policy.approval_days.")
def requests_approve(number: int, home: Path, days: int | None) -> None:
    """Approve request NUMBER: exactly this plan, code, corpus, scientist's key and installed package."""
    from fl_privacy.owner import Owner

    Owner.running(home).approve(number, days)
    click.echo(f"request {number} is approved")


@requests_app.command("deny")
@click.argument("number", type=int)
@click.option("--reason", required=True, help="What the scientist is told.")
@home_option
def requests_deny(number: int, reason: str, home: Path) -> None:
    """Deny request NUMBER, or take an approval back."""
    from fl_privacy.owner import Owner

    Owner.running(home).deny(number, reason)
    click.echo(f"request {number} is denied")


@requests_app.command("revoke")
@click.argument("number", type=int)
@click.option("--reason", required=True, help="What the scientist is told.")
@home_option
def requests_revoke(number: int, reason: str, home: Path) -> None:
    """Take the approval of request NUMBER back at once: its training ends, its sums stay shut; what is spent stays spent."""
    from fl_privacy.owner import Owner

    Owner.running(home).revoke(number, reason)
    click.echo(f"request {number} is revoked")


@app.command("corpora")
@federation_option
def corpora_show(federation: Path) -> None:
    """Scientist: show what the owners offer, with mock rows."""
    from fl_privacy.display import console, corpora

    with _connected(federation) as connected:
        console.print(corpora(connected.corpora()))


@app.command("submit")
@click.argument("plan_file", type=FILE, metavar="PLAN.toml")
@federation_option
def submit(plan_file: Path, federation: Path) -> None:
    """Scientist: pass the owners' signatures and sealed keys on, and ask every owner of PLAN.toml for approval.

    A task of your own (task = "FILE.py" in PLAN.toml) is checked, and tried on the owners' mock rows, before anyone is asked.
    """
    from fl_privacy.display import console
    from fl_privacy.scientist.files import read_plan

    plan, bundle = read_plan(plan_file)
    with _connected(federation) as connected:
        connected.relay_keys()
        connected.submit(plan, bundle)
    console.print(f"submitted {plan.name!r} to {', '.join(plan.owners)}; run `fl-privacy train {plan_file}` once approved")


@app.command("train")
@click.argument("plan_file", type=FILE, metavar="PLAN.toml")
@federation_option
@click.option("--out", type=FILE, default="runs/latest", show_default=True, help="Where model, history and picture go.")
@click.option("--validation", type=FILE, help="Your own validation rows; by default the owners' mock rows.")
@click.option(
    "--when-late",
    type=click.Choice(["go-on", "wait", "skip"]),
    default="go-on",
    show_default=True,
    help="When an owner is late, away or out of budget: go on without it, wait for it, or skip the round.",
)
@tensorboard_option
@mlflow_option
def train(
    plan_file: Path,
    federation: Path,
    out: Path,
    validation: Path | None,
    when_late: WhenLate,
    tensorboard: Path | None,
    mlflow: str | None,
) -> None:
    """Scientist: train PLAN.toml, which every owner has approved; shows progress and leaves the model in --out."""
    from fl_privacy.display import LiveRounds
    from fl_privacy.scientist.files import read_plan, read_validation

    plan, bundle = read_plan(plan_file)
    track = _trackers(tensorboard, mlflow)
    with _connected(federation) as connected, LiveRounds(plan.rounds) as live:
        connected.relay_keys()  # the owners may have changed their registry since the plan was submitted
        rows = read_validation(validation, plan) if validation else connected.mock_rows(plan)
        cards = connected.corpora()  # now: an owner may be away when the run is over
        history = connected.run(plan, bundle, rows, out, watcher=live, when_late=when_late, track=track)
    _show_run(plan, bundle, history, cards, out)


@app.command("resume")
@click.argument("out", type=FILE, default="runs/latest")
@federation_option
@tensorboard_option
@mlflow_option
def resume(out: Path, federation: Path, tensorboard: Path | None, mlflow: str | None) -> None:
    """Scientist: go on with the run in OUT, whose process has ended; nothing is trained or paid for twice."""
    from fl_privacy.display import LiveRounds
    from fl_privacy.scientist.run_folder import RunFolder

    folder, track = RunFolder(out), _trackers(tensorboard, mlflow)
    plan = folder.settings.plan
    with _connected(federation) as connected, LiveRounds(plan.rounds) as live:
        connected.relay_keys()
        cards = connected.corpora()
        history = connected.resume(out, watcher=live, track=track)
    _show_run(plan, folder.bundle, history, cards, out)


def _trackers(tensorboard: Path | None, mlflow: str | None) -> list[Tracker]:
    from fl_privacy.scientist.mlflow_tracking import MLflow
    from fl_privacy.scientist.tracking import TensorBoard

    return [*([TensorBoard(tensorboard)] if tensorboard else []), *([MLflow(mlflow)] if mlflow else [])]


def _show_run(plan: TrainingPlan, bundle: ModelBundle, history: History, cards: Corpora, out: Path) -> None:
    from fl_privacy.display import by_owner, console, rounds
    from fl_privacy.scientist.by_owner import measure_by_owner

    console.print(rounds(history.rounds, history.accuracy_before))
    console.print(by_owner(measure_by_owner(plan, bundle, cards, out)))
    console.print(history.federation_claim)
    console.print(f"model: {out / 'model'}   picture: {out / 'rounds.png'}")


def _connected(federation: Path) -> Any:
    from fl_privacy.scientist.federation import Federation

    return Federation.connect(federation, lambda prompt: str(click.prompt(prompt.rstrip(": "), hide_input=True)))

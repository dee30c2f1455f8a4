"""The command line: commands only; what they do is in the package."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import click

from fl_privacy.errors import FlPrivacyError

FILE = click.Path(path_type=Path)
home_option = click.option(
    "--home",
    "-H",
    type=FILE,
    default=".",
    envvar="FL_PRIVACY_HOME",
    show_default=True,
    show_envvar=True,
    help="The owner's folder.",
)
federation_option = click.option(
    "--federation",
    "-f",
    type=FILE,
    default="federation.toml",
    show_default=True,
    help="Owners' addresses and accounts, as TOML.",
)


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

    An owner runs `owner`, `corpus`, `requests` and `ledger`; a scientist runs `corpora`, `submit` and `train`; an auditor
    runs `ledger verify`.
    """


@app.group("owner")
def owner_app() -> None:
    """Run a data owner: its guard (strong room) and its datasite (front desk)."""


@app.group("corpus")
def corpus_app() -> None:
    """The owner's private text."""


@app.group("requests")
def requests_app() -> None:
    """What scientists ask of this owner: read, approve, deny."""


@app.group("ledger")
def ledger_app() -> None:
    """The owner's privacy ledger: what was spent, and proof of it."""


@owner_app.command("init")
@home_option
@click.option(
    "--domain", type=FILE, default="domain.toml", show_default=True, help="domain.toml: name, title, budget and policy."
)
def owner_init(home: Path, domain: Path) -> None:
    """Make a new owner's folder: fresh keys, an empty ledger with the budget of domain.toml."""
    from fl_privacy.display import console
    from fl_privacy.owner import Owner

    made = Owner.init(home, domain)
    console.print(f"{made.name} is ready in {made.home}. Next: fl-privacy corpus add FILE --home {home}")


@owner_app.command("serve")
@home_option
@click.option("--port", type=int, default=0, help="Port of the datasite; a free one by default.")
def owner_serve(home: Path, port: int) -> None:
    """Run guard and datasite on 127.0.0.1 until Ctrl-C."""
    from fl_privacy.display import console
    from fl_privacy.owner import Owner

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with Owner(home, port or None) as owner:
        console.print(f"{owner.name} answers at {owner.datasite.url}; stop with Ctrl-C")
        try:
            owner.datasite.wait()
        except KeyboardInterrupt:
            console.print("stopping")


@owner_app.command("status")
@home_option
def owner_status(home: Path) -> None:
    """Show keys, corpus, budget and decisions of a running owner."""
    from fl_privacy.display import console, status
    from fl_privacy.owner import Owner

    console.print(status(Owner.running(home).guard.call("GET", "/v1/status")))


@owner_app.command("card")
@home_option
def owner_card(home: Path) -> None:
    """Print this owner's signed identity card as JSON; send it to the other owners."""
    from fl_privacy.encryption.keys import Identity
    from fl_privacy.guard.domain import Domain

    guard = home / "guard"
    click.echo(Identity.load(guard / "keys").card(Domain.read(guard / "domain.toml").owner).canonical().decode())


@owner_app.command("enrol")
@click.argument("cards", type=FILE, nargs=-1, required=True)
@home_option
@click.option("--yes", is_flag=True, help="The fingerprints have been compared already.")
def owner_enrol(cards: tuple[Path, ...], home: Path, yes: bool) -> None:
    """Join the other owners, after comparing their fingerprints by telephone or in person."""
    from fl_privacy.display import console, fingerprints
    from fl_privacy.encryption.registry import build_registry
    from fl_privacy.messages import Signed
    from fl_privacy.owner import Owner

    signed = [Signed.parse(path.read_bytes()) for path in cards]
    console.print(fingerprints(build_registry(signed)))
    if not yes:
        click.confirm("Do these fingerprints match what each owner reads out?", abort=True)
    answer = Owner.running(home).enrol(signed)
    console.print(f"enrolled in registry {answer['registry'][:16]}…")


@owner_app.command("invite")
@click.argument("name")
@click.argument("email")
@home_option
def owner_invite(name: str, email: str, home: Path) -> None:
    """Create a scientist's account; prints the generated password once."""
    from fl_privacy.owner import Owner

    click.echo(Owner.running(home).invite(name, email))


@corpus_app.command("add")
@click.argument("file", type=FILE)
@home_option
@click.option("--mock", type=FILE, help="Rows that you publish for scientists to look at.")
@click.option("--field", default="text", show_default=True, help="Name of the text field or column.")
def corpus_add(file: Path, home: Path, mock: Path | None, field: str) -> None:
    """Copy a corpus into the strong room. Stop `owner serve` first."""
    from fl_privacy.display import console
    from fl_privacy.guard.corpus import add_corpus, load_rows
    from fl_privacy.guard.home import GuardHome

    with GuardHome(home / "guard") as guard:
        card = add_corpus(guard, file, load_rows(mock) if mock else [], field)
    console.print(f"{card.owner}: about {card.declared_size:,} records (declared), {len(card.mock_rows)} mock rows published")


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
def requests_approve(number: int, home: Path) -> None:
    """Approve request NUMBER: exactly this plan, code, corpus and scientist's key."""
    from fl_privacy.owner import Owner

    Owner.running(home).approve(number)
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


@ledger_app.command("show")
@home_option
def ledger_show(home: Path) -> None:
    """Show every entry of the ledger, after checking its chain and signatures."""
    from fl_privacy.display import console, ledger
    from fl_privacy.owner import read_ledger

    console.print(ledger(*read_ledger(home)))


@ledger_app.command("export")
@click.argument("file", type=FILE)
@home_option
def ledger_export(file: Path, home: Path) -> None:
    """Write the signed entries to FILE (JSON lines) for an auditor; prints the owner's public key."""
    from fl_privacy.owner import export_ledger

    click.echo(export_ledger(home, file))


@ledger_app.command("verify")
@click.argument("file", type=FILE)
@click.option("--key", required=True, help="The owner's public signing key, in hex (see `owner status`).")
def ledger_verify(file: Path, key: str) -> None:
    """Verify an export: chain, signatures, and epsilon recomputed by an independent accountant."""
    from fl_privacy.display import audit, console
    from fl_privacy.privacy.audit import audit_export

    console.print(audit(audit_export(file, key)))


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
    """Scientist: pass the owners' sealed keys on and ask every owner of PLAN.toml for approval."""
    from fl_privacy.display import console
    from fl_privacy.scientist.files import read_plan

    plan, _ = read_plan(plan_file)
    with _connected(federation) as connected:
        connected.relay_keys()
        connected.submit(plan)
    console.print(f"submitted {plan.name!r} to {', '.join(plan.owners)}; run `fl-privacy train {plan_file}` once approved")


@app.command("train")
@click.argument("plan_file", type=FILE, metavar="PLAN.toml")
@federation_option
@click.option("--out", type=FILE, default="runs/latest", show_default=True, help="Where model, history and picture go.")
@click.option("--validation", type=FILE, help="Your own validation text; by default the owners' mock rows.")
def train(plan_file: Path, federation: Path, out: Path, validation: Path | None) -> None:
    """Scientist: train PLAN.toml, which every owner has approved; shows progress and leaves the model in --out."""
    from fl_privacy.display import LiveRounds, console, rounds
    from fl_privacy.scientist.files import read_plan, read_texts

    plan, bundle = read_plan(plan_file)
    with _connected(federation) as connected, LiveRounds(plan.rounds) as live:
        texts = read_texts(validation) if validation else connected.mock_rows(plan)
        history = connected.run(plan, bundle, texts, out, watcher=live)
    console.print(rounds(history.rounds, history.accuracy_before))
    console.print(f"model: {out / 'model'}   picture: {out / 'rounds.png'}")


def _connected(federation: Path) -> Any:
    from fl_privacy.scientist.files import connect

    return connect(federation, lambda prompt: str(click.prompt(prompt, hide_input=True)))

"""Commands of a data owner: its folder, its processes, and the owners it sums with."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click

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


@click.group("owner")
def owner_app() -> None:
    """Run a data owner: its guard (strong room) and its datasite (front desk)."""


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
    """Run guard and datasite on 127.0.0.1 until Ctrl-C; one that ends by itself is started again, a few times."""
    from fl_privacy.display import console
    from fl_privacy.owner import Owner

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with Owner(home, port or None) as owner:
        console.print(f"{owner.name} answers at {owner.datasite.url}; stop with Ctrl-C")
        try:
            owner.attend(lambda told: console.print(told, soft_wrap=True))
        except KeyboardInterrupt:
            console.print("stopping")


@owner_app.command("status")
@home_option
def owner_status(home: Path) -> None:
    """Show keys, corpus, budget and decisions of a running owner."""
    from fl_privacy.display import console, status
    from fl_privacy.owner import Owner

    console.print(status(Owner.running(home).guard.call("GET", "/v1/status")))


@owner_app.command("jobs")
@home_option
def owner_jobs(home: Path) -> None:
    """Show the orders that the guard has admitted, the newest first, with their progress."""
    from fl_privacy.display import console, jobs
    from fl_privacy.owner import Owner

    console.print(jobs(Owner.running(home).jobs()))


@owner_app.command("stop-job")
@click.argument("order")
@home_option
@click.option("--reason", required=True, help="What the scientist is told.")
def owner_stop_job(order: str, home: Path, reason: str) -> None:
    """End the training of ORDER (its digest, or the beginning of it, see `owner jobs`); what it has spent stays spent."""
    from fl_privacy.owner import Owner

    Owner.running(home).stop_job(order, reason)
    click.echo(f"order {order} is stopped")


@owner_app.command("pause")
@home_option
@click.option("--reason", required=True, help="What scientists are told.")
def owner_pause(home: Path, reason: str) -> None:
    """Take no orders and let nothing out until `owner resume`, also after a restart; training that runs goes on."""
    from fl_privacy.owner import Owner

    Owner.running(home).pause(reason)
    click.echo("paused")


@owner_app.command("resume")
@home_option
def owner_resume(home: Path) -> None:
    """Go on after `owner pause`."""
    from fl_privacy.owner import Owner

    Owner.running(home).resume()
    click.echo("resumed")


@owner_app.command("card")
@home_option
def owner_card(home: Path) -> None:
    """Print this owner's signed identity card as JSON; send it to the other owners."""
    from fl_privacy.encryption.keys import Identity
    from fl_privacy.guard.domain import Domain

    guard = home / "guard"
    click.echo(Identity.load(guard / "keys").card(Domain.read(guard / "domain.toml").owner).canonical().decode())


@owner_app.command("enrol")
@click.argument("cards", type=FILE, nargs=-1)
@home_option
@click.option("--rotate", is_flag=True, help="Ask for a fresh encryption key; without CARDS for the same owners.")
@click.option("--serial", type=int, help="Number of the registry; only needed to catch up with owners who have a higher one.")
@click.option("--yes", is_flag=True, help="The fingerprints have been compared already.")
def owner_enrol(cards: tuple[Path, ...], home: Path, rotate: bool, serial: int | None, yes: bool) -> None:
    """Sign the registry of the owners in CARDS, your own included, after comparing all fingerprints by telephone or in person.

    It is enough to compare the last line, "all of it", with every owner. Every owner runs the same command; the scientist's
    `submit` and `train` carry the signatures and the sealed encryption key. Run it again when an owner joins, leaves or has a
    new card: that makes the next registry with a fresh encryption key. Plans stay approved.

    \b
    fl-privacy owner enrol *.card                 # first enrolment, or the owners have changed
    fl-privacy owner enrol *.card --serial 2      # this owner joins the others, who are about to sign registry 2
    fl-privacy owner enrol --rotate               # same owners, fresh encryption key
    """
    from fl_privacy.display import console, fingerprints
    from fl_privacy.errors import KeyMissing
    from fl_privacy.messages import Signed
    from fl_privacy.owner import Owner
    from fl_privacy.owner_files import read_registry

    if not cards and not rotate:
        raise click.UsageError("give the CARDS of all owners, or --rotate for a fresh encryption key")
    owner, signed = Owner.running(home), [Signed.parse(path.read_bytes()) for path in cards]
    try:
        before = read_registry(home)
    except KeyMissing:
        before = None
    proposed = owner.propose(signed, serial, rotate)
    console.print(fingerprints(proposed, before))
    if proposed != before and not yes:
        click.confirm("Does every owner read out the same fingerprint of all of it?", abort=True)
    enrolled = owner.enrol(signed, proposed.serial, rotate)
    console.print(f"enrolled in registry {enrolled.serial}, {enrolled.digest()[:16]}…")


@owner_app.command("registry")
@home_option
def owner_registry(home: Path) -> None:
    """Print the registry with all owners' signatures as JSON, for auditors."""
    from fl_privacy.owner_files import export_registry

    click.echo(export_registry(home).canonical().decode())


@owner_app.command("personal-model")
@click.argument("model", type=FILE)
@click.argument("out", type=FILE)
@home_option
@click.option("--plan", required=True, help="Name of the plan, or its digest, or the beginning of that.")
def owner_personal_model(model: Path, out: Path, home: Path, plan: str) -> None:
    """Write this owner's own model to OUT, a new folder: MODEL, the scientist's RUN/model, with this owner's layers in place.

    For plans with `local_layers`, whose upper layers and head differ from owner to owner and never leave them. Stop `owner
    serve` first.
    """
    from fl_privacy.owner_files import personal_model

    personal_model(home, plan, model, out)
    click.echo(f"{out} is this owner's own model of plan {plan}")


@owner_app.command("invite")
@click.argument("name")
@click.argument("email")
@home_option
def owner_invite(name: str, email: str, home: Path) -> None:
    """Create an account for the scientist NAME, known by EMAIL; prints the generated password once."""
    from fl_privacy.owner import Owner

    click.echo(Owner.running(home).invite(name, email))


@owner_app.command("console")
@home_option
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of the console; a free one by default.")
def owner_console(home: Path, port: int) -> None:
    """Serve the owner's web page on 127.0.0.1 until Ctrl-C, beside a running `owner serve`; prints address and password."""
    from fl_privacy.console.server import serve
    from fl_privacy.display import console
    from fl_privacy.owner import Owner

    owner = Owner.running(home)

    def ready(address: str, password: str) -> None:
        console.print(f"console of {owner.name} at {address}, password {password}; stop with Ctrl-C", soft_wrap=True)

    serve(owner, port, ready)

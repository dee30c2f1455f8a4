"""The command line: help for every command, an owner's first steps, and errors in one line."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import psutil
import pytest
from click.testing import CliRunner, Result

from fl_privacy.cli import app
from fl_privacy.encryption.keys import Identity
from fl_privacy.encryption.registry import RegistryRecord, verify_registry
from fl_privacy.guard.client import FRONT_SOCKET, GuardClient
from fl_privacy.messages import public_hex, sign
from fl_privacy.owner import Owner
from fl_privacy.owner_files import read_registry
from tests.builders import write_domain


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", [path for path, _ in commands(app)], ids=" ".join)
def test_every_command_teaches_itself(path: tuple[str, ...]) -> None:
    result = run(*path, "--help")
    assert result.exit_code == 0
    assert len(result.output.splitlines()[2].strip()) > 10


def test_every_option_has_help() -> None:
    silent = [
        (*path, parameter.name)
        for path, command in commands(app)
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.help
    ]
    assert silent == []


def test_an_owners_first_steps(tmp_path: Path) -> None:
    home, corpus = tmp_path / "clinic", tmp_path / "rows.txt"
    corpus.write_text("头痛三天\n" * 1234, encoding="utf-8")
    assert "clinic is ready" in run("owner", "init", "--home", home, "--domain", write_domain(tmp_path, "clinic")).output
    assert "about 1,200 records" in run("corpus", "add", corpus, "--home", home).output
    assert '"kind":"OwnerCard"' in run("owner", "card", "--home", home).output
    shown = run("ledger", "show", "--home", home).output
    assert "open" in shown
    assert "epsilon 0.000 of 8.000 at delta 1e-05" in shown

    export = tmp_path / "ledger.jsonl"
    key = run("ledger", "export", export, "--home", home).output.strip()
    verified = run("ledger", "verify", export, "--key", key)
    assert verified.exit_code == 0
    assert "verified" in verified.output
    export.write_text(export.read_text().replace('\\"epsilon\\":8.0', '\\"epsilon\\":80.0'))
    tampered = run("ledger", "verify", export, "--key", key)
    assert tampered.exit_code == 1
    assert tampered.output.startswith("Error: LedgerTampered: entry 0")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("owner", "status"), "HomeError"),
        (("owner", "serve"), "HomeError"),
        (("requests", "list"), "HomeError"),
        (("ledger", "show"), "HomeError"),
        (("corpus", "add", "missing.txt"), "HomeError"),
        (("owner", "init", "--domain", "missing.toml"), "missing.toml does not exist"),
    ],
)
def test_a_wrong_folder_is_one_clear_line(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    result = run(*arguments, "--home", tmp_path / "nowhere")
    assert result.exit_code == 1
    assert told in result.output
    assert len(result.output.splitlines()) == 1
    assert "Traceback" not in result.output


def test_an_owner_that_is_not_served_is_said_so(tmp_path: Path) -> None:
    home = tmp_path / "clinic"
    run("owner", "init", "--home", home, "--domain", write_domain(tmp_path, "clinic"))
    result = run("requests", "list", "--home", home)
    assert "is not being served; start it with `fl-privacy owner serve" in result.output


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rounds = = 1", "PlanError"),
        ('name = "x"', "model: give a folder"),
        ('model = "no such folder"', "ModelError"),
    ],
)
def test_a_bad_plan_file_is_named(tmp_path: Path, text: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    plan = tmp_path / "plan.toml"
    plan.write_text(text)
    result = run("train", plan)
    assert result.exit_code == 1
    assert told in result.output


def test_a_bad_federation_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "federation.toml"
    file.write_text('[[owner]]\nname = "bank"\nurl = "http://127.0.0.1:1"\nemail = "a@b.org"\npassword_file = "pw"\n')
    result = run("corpora", "--federation", file)
    assert result.exit_code == 1
    assert "write the password that bank gave you" in result.output
    (tmp_path / "pw").write_text("x")
    (tmp_path / "pw").chmod(0o600)
    result = run("corpora", "--federation", file)
    assert "ConnectionFailed: the datasite of bank at http://127.0.0.1:1 does not answer" in result.output


def test_a_served_owner_ends_on_sigterm_with_all_that_it_started(tmp_path: Path) -> None:
    home = tmp_path / "clinic"
    run("owner", "init", "--home", home, "--domain", write_domain(tmp_path, "clinic"))
    command = [sys.executable, "-m", "fl_privacy", "owner", "serve", "--home", str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None
        assert "clinic answers at http://127.0.0.1:" in served.stdout.readline()
        started = psutil.Process(served.pid).children(recursive=True)
        served.send_signal(signal.SIGTERM)
        assert served.wait(60) == 0
    assert len(started) >= 3, "guard, datasite and its fork server at least"
    _, alive = psutil.wait_procs(started, timeout=10)
    assert alive == []


def test_an_owner_enrols_rotates_and_hands_an_auditor_the_signed_registry(tmp_path: Path) -> None:
    home, others = tmp_path / "bank", {name: Identity.generate() for name in ("clinic", "school")}
    owner = Owner.init(home, write_domain(tmp_path, "bank"))
    files = [tmp_path / "bank.card"]
    files[0].write_text(run("owner", "card", "--home", home).output)
    for name, identity in others.items():
        files.append(tmp_path / f"{name}.card")
        files[-1].write_bytes(identity.card(name).canonical())
    try:
        owner.start_guard()
        assert "not enrolled yet" in run("owner", "status", "--home", home).output
        assert "give the CARDS" in run("owner", "enrol", "--home", home).output
        refused = CliRunner().invoke(app, ["owner", "enrol", *map(str, files), "--home", str(home)], input="n\n")
        assert refused.exit_code == 1 and "all of it" in refused.output
        assert "KeyMissing: bank has not enrolled" in run("owner", "registry", "--home", home).output
        assert "enrolled in registry 1," in run("owner", "enrol", *files, "--yes", "--home", home).output
        assert "1 (" in (told := run("owner", "status", "--home", home).output) and "not yet signed by clinic, school" in told
        assert "not signed by clinic, school;" in run("owner", "registry", "--home", home).output
        sign_all(owner, others)
        record = RegistryRecord.parse(run("owner", "registry", "--home", home).output)
        assert verify_registry(record, public_hex(others["school"].signing_key)).owners == ("bank", "clinic", "school")
        rotated = run("owner", "enrol", "--rotate", "--yes", "--home", home).output
        assert "Registry 2: fingerprints, with a fresh encryption key" in rotated and "enrolled in registry 2," in rotated
        sign_all(owner, others)
        assert "signed by all" in run("owner", "status", "--home", home).output
        left = run("owner", "enrol", *files[:2], "--yes", "--home", home)
        assert left.exit_code == 1 and left.output.startswith("Error: MessageError: Registry: cards:")
    finally:
        owner.stop()


def sign_all(owner: Owner, others: dict[str, Identity]) -> None:
    front = GuardClient(owner.guard_home / FRONT_SOCKET)
    for identity in others.values():
        front.call("PUT", "/v1/registry", sign(read_registry(owner.home), identity.signing_key).canonical())

"""``sums verify``: an owner and an auditor add a run's ciphertexts again; every round is listed, a false one ends it with 1."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fl_privacy import read_signed_registry, verify_sums
from fl_privacy.cli import app
from fl_privacy.encryption.registry import RegistryRecord
from fl_privacy.errors import CohortMismatch
from fl_privacy.messages import public_hex, sign
from tests.builders import write_domain
from tests.secure_cohort import SecureCohort, make_cohort
from tests.signed_round import make_signed_round


@dataclass(frozen=True)
class Kept:
    """A run of two rounds, and what a verifier has of its owners."""

    cohort: SecureCohort
    run: Path
    registry: Path

    @property
    def key(self) -> str:
        """The public signing key of one owner."""
        return public_hex(self.cohort.identities["owner-01"].signing_key)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    cohort = make_cohort(3, 300)
    for index in range(2):
        make_signed_round(cohort.ordering(round=index), tmp_path / "run" / "rounds" / f"{index:03d}")
    signatures = [sign(cohort.registry, identity.signing_key) for identity in cohort.identities.values()]
    file = tmp_path / "owners.json"
    file.write_bytes(RegistryRecord(registry=signatures[0], signatures=tuple(signatures[1:])).canonical())
    return Kept(cohort, tmp_path / "run", file)


def verify(run: Path, *arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["sums", "verify", str(run), *(str(argument) for argument in arguments)])


def test_an_auditor_who_knows_one_owners_key_verifies_every_round(kept: Kept) -> None:
    result = verify(kept.run, "--registry", kept.registry, "--key", kept.key)
    assert result.exit_code == 0, result.output
    rows = [line for line in result.output.splitlines() if "owner-02" in line]
    assert [row.split("│")[1].strip() for row in rows] == ["000", "001"]
    assert all("true" in row and "0.09" in row for row in rows)


def test_an_owner_verifies_against_the_keys_in_its_own_home(kept: Kept, tmp_path: Path) -> None:
    home = tmp_path / "owner-00"
    CliRunner().invoke(app, ["owner", "init", "--home", str(home), "--domain", str(write_domain(tmp_path, "owner-00"))])
    (home / "guard" / "keys" / "identity.key").unlink()
    kept.cohort.identities["owner-00"].save(home / "guard" / "keys")
    shutil.copy(kept.registry, home / "guard" / "registry.json")
    assert verify(kept.run, "--home", home).exit_code == 0


def test_a_false_round_is_told_in_one_line_and_the_others_are_listed_all_the_same(kept: Kept) -> None:
    update = kept.run / "rounds" / "000" / "updates" / "owner-01.bin"
    update.write_bytes(update.read_bytes()[:-1])
    result = verify(kept.run, "--registry", kept.registry, "--key", kept.key)
    assert result.exit_code == 1
    assert "FALSE: DigestMismatch" in result.output
    assert "true" in result.output
    last = result.output.splitlines()[-1]
    assert last.startswith("Error: DigestMismatch:")
    assert "the encrypted update of 'owner-01'" in last


def test_a_round_whose_folder_is_gone_is_told(kept: Kept) -> None:
    shutil.rmtree(kept.run / "rounds" / "000")
    result = verify(kept.run, "--registry", kept.registry, "--key", kept.key)
    assert result.exit_code == 0
    assert "no evidence of round 000" in result.output


def test_a_stranger_to_the_registry_convinces_nobody(kept: Kept) -> None:
    stranger = public_hex(make_cohort(3).identities["owner-01"].signing_key)
    result = verify(kept.run, "--registry", kept.registry, "--key", stranger)
    assert result.exit_code == 1
    assert "no member of this registry has the key" in result.output


def test_other_owners_with_the_same_names_do_not_make_a_round_true(kept: Kept, tmp_path: Path) -> None:
    other = make_cohort(3)
    signatures = [sign(other.registry, identity.signing_key) for identity in other.identities.values()]
    file = tmp_path / "others.json"
    file.write_bytes(RegistryRecord(registry=signatures[0], signatures=tuple(signatures[1:])).canonical())
    result = verify(kept.run, "--registry", file, "--key", public_hex(other.identities["owner-01"].signing_key))
    assert result.exit_code == 1
    assert "the order is for registry" in result.output


@pytest.mark.parametrize("arguments", [(), ("--home", "x", "--registry", "y"), ("--registry", "y"), ("--key", "z")])
def test_where_the_keys_come_from_must_be_said(kept: Kept, arguments: tuple[str, ...]) -> None:
    result = verify(kept.run, *arguments)
    assert result.exit_code == 2
    assert "give --home (an owner), or --registry and --key (an auditor)" in result.output


def test_a_folder_that_is_no_run_is_named(kept: Kept, tmp_path: Path) -> None:
    result = verify(tmp_path / "nowhere", "--registry", kept.registry, "--key", kept.key)
    assert result.exit_code == 1
    assert "holds no rounds" in result.output


def test_the_same_from_python_is_a_list_of_verdicts_that_shows_itself(kept: Kept) -> None:
    sums = verify_sums(kept.run, read_signed_registry(kept.registry, kept.key))
    assert sums.is_true and [verdict.found.round for verdict in sums if verdict.found] == [0, 1]
    assert "owner-00, owner-01, owner-02" in sums._repr_html_() and "no evidence" not in str(sums)
    (kept.run / "rounds" / "000").rename(kept.run / "rounds" / "002")
    moved = verify_sums(kept.run, read_signed_registry(kept.registry, kept.key))
    assert not moved.is_true and [type(verdict.error) for verdict in moved] == [type(None), CohortMismatch]
    assert "FALSE: CohortMismatch" in str(moved) and "no evidence of round 000" in str(moved)

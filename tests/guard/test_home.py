"""An owner's folder: made once, closed to others, used by one process."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from fl_privacy.errors import HomeError, KeyMissing
from fl_privacy.guard.domain import Domain
from fl_privacy.guard.home import GuardHome
from tests.builders import write_domain


@pytest.fixture
def domain(tmp_path: Path) -> Domain:
    return Domain.read(write_domain(tmp_path, "clinic"))


def test_nothing_in_a_new_home_can_be_read_by_others(tmp_path: Path, domain: Domain) -> None:
    GuardHome.create(tmp_path / "home", domain).close()
    for path in [tmp_path / "home", *(tmp_path / "home").rglob("*")]:
        if path.is_dir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
    assert stat.S_IMODE((tmp_path / "home" / "keys" / "identity.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "home" / "ledger.sqlite").stat().st_mode) == 0o600


def test_a_home_open_to_others_is_refused(tmp_path: Path, domain: Domain) -> None:
    GuardHome.create(tmp_path / "home", domain).close()
    (tmp_path / "home").chmod(0o755)
    with pytest.raises(HomeError, match="chmod 700"):
        GuardHome(tmp_path / "home")


def test_two_processes_cannot_share_a_home(tmp_path: Path, domain: Domain) -> None:
    with GuardHome.create(tmp_path / "home", domain), pytest.raises(HomeError, match="in use"):
        GuardHome(tmp_path / "home")
    GuardHome(tmp_path / "home").close()


def test_a_folder_with_content_is_never_overwritten(tmp_path: Path, domain: Domain) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(HomeError, match="not empty"):
        GuardHome.create(tmp_path / "home", domain)


def test_a_folder_that_is_no_home_is_named(tmp_path: Path) -> None:
    with pytest.raises(HomeError, match="owner init"):
        GuardHome(tmp_path)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("epsilon = 8.0", "budget.epsilon"),
        ('owner = "clinic"', "owner"),
        ("minimal_cohort = 3", "policy.minimal_cohort"),
    ],
)
def test_a_bad_domain_file_names_the_field(tmp_path: Path, line: str, told: str) -> None:
    path = write_domain(tmp_path, "clinic")
    wrong = {"epsilon = 8.0": "epsilon = -1", 'owner = "clinic"': 'owner = "../x"', "minimal_cohort = 3": "minimal_cohort = 2"}
    path.write_text(path.read_text().replace(line, wrong[line]))
    with pytest.raises(HomeError, match=told):
        Domain.read(path)


def test_keys_that_have_not_arrived_are_named(tmp_path: Path, domain: Domain) -> None:
    with GuardHome.create(tmp_path / "home", domain) as home:
        with pytest.raises(KeyMissing, match="enrol"):
            _ = home.registry
        with pytest.raises(KeyMissing, match="enrol"):
            home.require_complete_registry()
        for scheme in ("bfv", "ckks"):
            with pytest.raises(KeyMissing, match=f"does not hold the owners' {scheme} encryption key"):
                home.secret_key(scheme)

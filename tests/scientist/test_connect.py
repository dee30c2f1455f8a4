"""Log-ins come from a file without passwords; passwords from the environment, a private file, a keyring, or a prompt."""

from __future__ import annotations

import asyncio
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from fl_privacy.errors import HomeError
from fl_privacy.scientist.async_federation import AsyncFederation, no_prompt
from fl_privacy.scientist.credentials import password_of
from fl_privacy.scientist.desk import Desk
from fl_privacy.scientist.federation import Federation
from fl_privacy.scientist.files import read_federation
from tests.builders import OWNERS, tiny_bundle, tiny_plan
from tests.scientist.fake_desks import FakeDesk

EMAIL = "ada@lab.example.org"


@pytest.fixture(autouse=True)
def no_keyring_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_privacy.scientist.credentials.find_spec", lambda name: None)


def refuse(prompt: str) -> str:
    raise AssertionError(f"asked for: {prompt}")


def write(folder: Path, *lines: str) -> Path:
    owners = [f'[[owner]]\nname = "{owner}"\nurl = "http://{owner}.example.org"\nemail = "{EMAIL}"' for owner in OWNERS]
    path = folder / "federation.toml"
    path.write_text("\n".join(('home = "me"', *owners, *lines)))
    return path


def test_a_file_names_the_owners_and_the_passwords_are_asked_for(tmp_path: Path) -> None:
    home, logins = read_federation(write(tmp_path), ask_password=lambda prompt: prompt)
    assert home == tmp_path / "me"
    assert [login.owner for login in logins] == list(OWNERS)
    assert logins[0].password == f"Password of {EMAIL} at bank: "
    assert "Password of" not in repr(logins)


def test_a_password_in_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HomeError, match=r"federation.toml: owner.2.password: Extra inputs are not permitted"):
        read_federation(write(tmp_path, 'password = "secret"'), refuse)


def test_passwords_are_taken_from_where_they_are_kept_before_anyone_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file := tmp_path / "word").write_text("from the file\n")
    file.chmod(0o600)
    assert password_of("river-bank", EMAIL, file, refuse) == "from the file"
    monkeypatch.setenv("FL_PRIVACY_PASSWORD_RIVER_BANK", "from the environment")
    assert password_of("river-bank", EMAIL, file, refuse) == "from the environment"
    file.chmod(0o644)
    with pytest.raises(HomeError, match="can be read by other users; run `chmod 600"):
        password_of("bank", EMAIL, file, refuse)


class KeyringError(Exception):
    pass


def test_a_keyring_is_asked_and_one_that_stays_locked_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {("fl-privacy:bank", EMAIL): "from the keyring"}
    keyring = types.ModuleType("keyring")
    keyring.errors = types.SimpleNamespace(KeyringError=KeyringError)  # type: ignore[attr-defined]
    keyring.get_password = lambda service, user: kept.get((service, user))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keyring", keyring)
    monkeypatch.setattr("fl_privacy.scientist.credentials.find_spec", lambda name: ModuleSpec(name, None))
    assert password_of("bank", EMAIL, None, refuse) == "from the keyring"
    assert password_of("clinic", EMAIL, None, lambda prompt: "asked") == "asked"

    def locked(service: str, user: str) -> str:
        raise KeyringError

    keyring.get_password = locked  # type: ignore[attr-defined]
    assert password_of("bank", EMAIL, None, lambda prompt: "asked") == "asked"


def test_connect_logs_in_everywhere_and_a_server_never_waits_for_a_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Desk, "login", lambda owner, url, email, password: FakeDesk(owner, password))
    with Federation.connect(write(tmp_path), lambda prompt: "p") as federation:
        desks = federation.desks
    assert [desk.title for desk in desks.values()] == ["p"] * 3  # type: ignore[attr-defined]
    assert all(desk.asked == ["close"] for desk in desks.values())  # type: ignore[attr-defined]
    assert (tmp_path / "me" / "scientist.key").stat().st_mode & 0o077 == 0
    with pytest.raises(HomeError, match=rf"Password of {EMAIL} at bank is neither in the environment"):
        asyncio.run(AsyncFederation.connect(tmp_path / "federation.toml"))
    with pytest.raises(HomeError):
        no_prompt("Password: ")


def test_asynchronous_calls_give_what_the_others_give_one_after_the_other(tmp_path: Path) -> None:
    federation = Federation(tmp_path, {owner: FakeDesk(owner) for owner in OWNERS})  # type: ignore[misc]
    plan = tiny_plan(tiny_bundle())

    async def use() -> None:
        async with AsyncFederation(federation) as wrapped:
            corpora, owners, ids = await asyncio.gather(wrapped.corpora(), wrapped.owners(), wrapped.submit(plan))
            assert (corpora, owners) == (federation.corpora(), federation.owners())
            assert ids == dict.fromkeys(OWNERS, "1")
            assert not (await wrapped.status(plan)).is_approved

    asyncio.run(use())
    assert federation.desks["bank"].asked[-1] == "close"  # type: ignore[attr-defined]

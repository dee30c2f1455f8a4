"""The console in a real headless browser: on a desktop and a telephone, before a made-up owner and before a real one.

``FL_PRIVACY_SCREENSHOTS=FOLDER`` keeps pictures of the pages, to be looked at.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fl_privacy.guard.corpus import add_corpus
from fl_privacy.guard.home import GuardHome
from fl_privacy.owner import Owner
from fl_privacy.owner_files import read_ledger
from fl_privacy.scientist.desk import Desk
from tests.builders import text_rows, texts, write_domain
from tests.console.fake_owner import code_of

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

pytestmark = [pytest.mark.slow, pytest.mark.end_to_end, pytest.mark.timeout(300)]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZES = {"desktop": (1280, 860), "telephone": (390, 844)}
PAGES = ("requests", "requests/4", "requests/5", "requests/6", "requests/7", "budget", "ledger", "jobs", "owners")


class Visitor:
    """A browser at one console; collects what no page should do."""

    def __init__(self, browser: playwright.Browser, address: str, password: str, size: str) -> None:
        width, height = SIZES[size]
        self.size, self.width, self.address, self.password = size, width, address, password
        self.page = browser.new_context(viewport={"width": width, "height": height}).new_page()
        self.page.set_default_timeout(30_000)
        self.foreign: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self._request(request.url))
        self.page.on("websocket", lambda socket: self._request(socket.url.replace("ws://", "http://")))
        self.page.on("console", lambda told: self.errors.append(told.text) if told.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _request(self, url: str) -> None:
        if not url.startswith((f"{self.address}/", f"blob:{self.address}/", "data:")):
            self.foreign.append(url)

    def log_in(self) -> None:
        self.page.goto(self.address)
        self.picture("login")
        self.page.fill("#password", self.password)
        self.page.get_by_role("button", name="Log in").click()
        self.page.wait_for_url("**/requests")

    def open(self, path: str) -> None:
        self.page.goto(f"{self.address}/{path}")
        self.page.wait_for_selector(".page .card")

    def see(self, text: str) -> None:
        self.page.get_by_text(text).first.wait_for()

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).first.click()

    def agree(self, name: str, reason: str = "") -> None:
        """Answer the question in the dialog."""
        dialog = self.page.get_by_role("dialog")
        if reason:
            dialog.get_by_label("Reason").fill(reason)
        dialog.get_by_role("button", name=name).click()

    def picture(self, name: str) -> None:
        if folder := os.environ.get("FL_PRIVACY_SCREENSHOTS"):
            self.page.wait_for_timeout(700)  # charts draw themselves
            self.page.screenshot(path=Path(folder) / f"{self.size}-{name.replace('/', '-')}.png", full_page=True)

    def behaved(self) -> None:
        """Nothing was loaded from elsewhere, nothing failed, nothing is wider than the screen."""
        assert (self.foreign, self.errors) == ([], [])
        assert self.page.evaluate("document.documentElement.scrollWidth") <= self.width


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser is installed; looked for {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as tools:
        launched = tools.chromium.launch(executable_path=path)
        yield launched
        launched.close()


@contextmanager
def process(*arguments: str) -> Iterator[tuple[str, str]]:
    """Address and password of a console served by ``python ARGUMENTS``."""
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True) as served:
        try:
            assert served.stdout is not None
            line = served.stdout.readline()
            address, password = re.search(r"http://127\.0\.0\.1:\d+", line), re.search(r"[\w-]{24}", line)
            assert address is not None and password is not None, line
            yield address[0], password[0]
        finally:
            served.terminate()
            served.wait(30)


@pytest.fixture(params=SIZES)
def visitor(request: pytest.FixtureRequest, tmp_path: Path, browser: playwright.Browser) -> Iterator[Visitor]:
    with process("-m", "tests.console.served", str(tmp_path)) as (address, password):
        came = Visitor(browser, address, password, request.param)
        yield came
        came.page.context.close()


def test_every_page_fits_the_screen_and_loads_nothing_from_elsewhere(visitor: Visitor) -> None:
    visitor.log_in()
    for path in PAGES:
        visitor.open(path)
        visitor.picture(path)
        visitor.behaved()
    visitor.page.get_by_role("button", name="中文").click()
    visitor.see("参与方")
    visitor.open("requests/4")
    visitor.picture("chinese")
    visitor.behaved()


def test_an_owner_reads_approves_watches_stops_and_pauses(visitor: Visitor) -> None:
    visitor.log_in()
    visitor.page.locator("a.request-row", has_text="triage").click()
    visitor.see("What approving means")
    visitor.press("Approve")
    visitor.see("What counts against the budget may then rise by epsilon")
    visitor.picture("approve")
    visitor.agree("Approve")
    visitor.see("Request 4 is approved")

    visitor.open("jobs")
    before = visitor.page.get_by_text("of 400").inner_text()
    visitor.page.wait_for_function("before => !document.body.innerText.includes(before)", arg=before)
    visitor.press("Stop")
    visitor.agree("Stop", "the office closes")
    visitor.see("No training is running.")
    visitor.press("Pause everything")
    visitor.agree("Pause everything", "an audit")
    visitor.see("This datasite is paused: an audit")
    visitor.picture("paused")

    visitor.open("ledger")
    with visitor.page.expect_download() as download:
        visitor.press("Export for an auditor")
    assert download.value.suggested_filename == "clinic-ledger.jsonl"
    assert "LedgerEntry" in download.value.path().read_text()
    visitor.behaved()
    visitor.press("Log out")
    visitor.page.wait_for_url("**/login")
    visitor.page.goto(f"{visitor.address}/jobs")
    assert visitor.page.url.endswith("/login")


def test_hostile_code_is_text_in_the_browser_too(visitor: Visitor) -> None:
    visitor.log_in()
    visitor.open("requests/7")
    visitor.see("<script>document.title = 'owned'</script>")
    visitor.see('print("{{ 7 * 7 }} ${7 * 7} `7`", key)  # \\u202e reversed')
    assert visitor.page.title() == "clinic · Requests"
    assert visitor.page.locator("img").count() == 0
    visitor.behaved()


def test_a_wrong_password_stays_outside(visitor: Visitor) -> None:
    visitor.page.goto(visitor.address)
    visitor.page.fill("#password", "wrong")
    visitor.page.get_by_role("button", name="Log in").click()
    visitor.see("wrong password")
    visitor.picture("refused")
    visitor.page.goto(f"{visitor.address}/budget")
    assert visitor.page.url.endswith("/login")


@pytest.fixture
def clinic(tmp_path: Path) -> Iterator[Owner]:
    """A real owner, served, with one request from a scientist."""
    home = tmp_path / "clinic"
    owner = Owner.init(home, write_domain(tmp_path, "clinic"))
    file = tmp_path / "rows.txt"
    file.write_text("\n".join(texts(400)), encoding="utf-8")
    with GuardHome(home / "guard") as guard:
        add_corpus(guard, file, text_rows(20, seed=1))
    with owner:
        password = owner.invite("Ada Lin", "ada@university.example.org")
        Desk.login("clinic", owner.datasite.url, "ada@university.example.org", password).submit(
            code_of(name="triage"), "triage"
        )
        yield owner


def test_the_console_of_a_real_owner_approves_pauses_and_revokes(clinic: Owner, browser: playwright.Browser) -> None:
    with process("-m", "fl_privacy", "owner", "console", "--home", str(clinic.home)) as (address, password):
        visitor = Visitor(browser, address, password, "desktop")
        visitor.log_in()
        visitor.page.locator("a.request-row", has_text="ada@university.example.org").click()
        visitor.press("Approve")
        visitor.agree("Approve")
        visitor.see("Request 1 is approved")
        assert clinic.request(1).status == "approved"
        visitor.open("jobs")
        visitor.press("Pause everything")
        visitor.agree("Pause everything", "lunch")
        visitor.see("This datasite is paused: lunch")
        assert clinic.guard.call("GET", "/v1/status")["paused"] == "lunch"
        visitor.press("Resume")
        visitor.see("This datasite takes orders.")
        visitor.open("requests/1")
        visitor.press("Revoke")
        visitor.agree("Revoke", "the vote ended")
        visitor.see("Reason given: the vote ended")
        visitor.open("ledger")
        visitor.see("every link and signature holds")
        visitor.see("triage: revoked")
        for path in ("budget", "owners"):
            visitor.open(path)
        visitor.picture("real-owner")
        visitor.behaved()
    verdicts = [entry.event.verdict for entry in read_ledger(clinic.home)[0] if entry.event.kind == "decision"]
    assert verdicts == ["approved", "revoked"]

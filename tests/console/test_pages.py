"""What the owner sees and does in the console, without a browser: every text, every button, and hostile text shown as text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from nicegui import ui
from nicegui.testing import User

from fl_privacy.console import parts
from fl_privacy.errors import BudgetExceeded, ConnectionFailed, HomeError
from tests.console.fake_owner import HOSTILE, FakeOwner, code_of, fake_owner, job
from tests.console.visitor import visit

ADA = "ada.lin@university.example.org"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeOwner]:
    with fake_owner(tmp_path_factory.mktemp("owners"), history=True) as made:
        yield made


@pytest.fixture
def owner(world: FakeOwner) -> Iterator[FakeOwner]:
    """The owner as it was after its three weeks."""
    before = (list(world.requests), [dict(one) for one in world.running])
    yield world
    world.requests, world.running = before
    world.calls.clear()
    world.paused = None


async def opened(user: User, path: str, *seen: str) -> None:
    await user.open(path)
    for text in seen:
        await user.should_see(text, retries=60)


async def press(user: User, marker: str) -> None:
    await user.should_see(marker=marker, retries=60)
    user.find(marker=marker).click()


async def confirm(user: User, reason: str = "") -> None:
    await user.should_see(marker="confirm", retries=60)
    if reason:
        user.find(ui.input).type(reason)
    user.find(marker="confirm").click()


def test_the_list_tells_who_asks_for_what_and_whether_it_may_be_approved(owner: FakeOwner) -> None:
    async def story(user: User) -> None:
        await opened(user, "/requests", "triage", ADA, "waits for you", "vetted template", "template with custom task")
        await opened(user, "/requests", "code that is not a plan", "custom code, never run", "do not approve")
        await user.should_see("4 waiting for your decision")

    visit(owner, story)


def test_a_review_tells_meaning_cost_findings_and_what_is_bound(owner: FakeOwner) -> None:
    report = owner.review(4)

    async def story(user: User) -> None:
        await opened(user, "/requests/4", report["sentence"], report["plan_digest"], report["scientist"], *report["words"])
        await user.should_see(f"{report['epsilon_after']:.3f}")
        await user.should_see("Upper bounds for adding or removing one record, at delta 1e-05")
        assert len(chart_of(user, "bar")["series"][0]["data"]) == 1 + 6

    visit(owner, story)


def test_approving_asks_first_with_the_epsilon_it_costs(owner: FakeOwner) -> None:
    report = owner.review(4)
    cost = report["epsilon_after"] - report["epsilon_now"]

    async def story(user: User) -> None:
        await opened(user, "/requests/4")
        await press(user, "approve")
        await user.should_see(f"may then rise by epsilon {cost:.3f}: from {report['epsilon_now']:.3f} to at most")
        await user.should_see("Taken alone, the plan may cost up to epsilon 2.5.")
        assert owner.calls == []
        await confirm(user)
        await user.should_see("Request 4 is approved", retries=60)
        await user.should_see(marker="revoke", retries=60)

    visit(owner, story)
    assert owner.calls == [("approved", 4, "", 90)]


def test_an_approval_can_be_given_for_fewer_days_than_the_policy_says(owner: FakeOwner) -> None:
    async def story(user: User) -> None:
        await opened(user, "/requests/4")
        await press(user, "approve")
        await user.should_see("Days for which orders are admitted", retries=60)
        for wrong in ("0", "36501", "ten", "-1", "1.5", "²", ""):
            user.find(ui.input).clear().type(wrong)
            user.find(marker="confirm").click()
            await user.should_see("Give whole days, from 1 to 36500.", retries=60)
        assert owner.calls == []
        user.find(ui.input).clear().type("14")
        await confirm(user)
        await user.should_see("Request 4 is approved", retries=60)

    visit(owner, story)
    assert owner.calls == [("approved", 4, "", 14)]


def test_cancelling_does_nothing(owner: FakeOwner) -> None:
    async def story(user: User) -> None:
        await opened(user, "/requests/4")
        await press(user, "approve")
        await user.should_see("Cancel", retries=60)
        user.find("Cancel").click()
        await user.should_not_see(marker="confirm", retries=60)

    visit(owner, story)
    assert owner.calls == []


def test_a_denial_needs_a_reason(owner: FakeOwner) -> None:
    async def story(user: User) -> None:
        await opened(user, "/requests/6", "Why it cannot be approved")
        await user.should_not_see(marker="approve")
        await press(user, "deny")
        await confirm(user)
        await user.should_see("Please give a reason.", retries=60)
        assert owner.calls == []
        await confirm(user, "more than we give anyone")
        await user.should_see("Reason given: more than we give anyone", retries=60)

    visit(owner, story)
    assert owner.calls == [("denied", 6, "more than we give anyone")]


def test_an_approval_can_be_revoked(owner: FakeOwner) -> None:
    async def story(user: User) -> None:
        await opened(user, "/requests/1")
        await press(user, "revoke")
        await confirm(user, "the ethics vote ended")
        await user.should_see("The approval of request 1 is revoked", retries=60)

    visit(owner, story)
    assert owner.calls == [("denied", 1, "the ethics vote ended")]


def test_a_request_that_changed_since_it_was_shown_is_not_approved(owner: FakeOwner) -> None:
    async def story(user: User) -> None:
        await opened(user, "/requests/4")
        await press(user, "approve")
        other = owner.requests[4]
        owner.requests[3] = type(other)(4, ADA, other.code)
        await confirm(user)
        await user.should_see("NotApproved: request 4 is not the one that was shown; open it again", retries=60)

    visit(owner, story)
    assert owner.calls == []


def test_the_guards_refusal_is_one_line_and_the_page_goes_on(owner: FakeOwner, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int, days: int) -> None:
        raise BudgetExceeded("too much\nfor this\x1b[31m owner")

    monkeypatch.setattr(owner, "approve", refuse)

    async def story(user: User) -> None:
        await opened(user, "/requests/4")
        await press(user, "approve")
        await confirm(user)
        await user.should_see("BudgetExceeded: too much for this\\x1b[31m owner", retries=60)
        await user.should_see(marker="approve", retries=60)

    visit(owner, story)


def test_hostile_text_is_shown_as_it_is_and_hidden_characters_are_seen(owner: FakeOwner) -> None:
    owner.submit("<b>eve</b>@example.org", code_of(name="markup", purpose="<img src=x onerror=alert(1)> {{ 7 * 7 }} `x`"))
    owner.submit("eve@example.org", HOSTILE, "denied", "<script>alert(2)</script>\u202e")

    async def story(user: User) -> None:
        await opened(user, "/requests", "<b>eve</b>@example.org")
        await opened(user, "/requests/8", "<img src=x onerror=alert(1)> {{ 7 * 7 }} `x`")
        await opened(
            user, "/requests/9", "Reason given: <script>alert(2)</script>\\u202e", "<script>document.title = 'owned'</script>"
        )
        await user.should_see("\\u202e reversed")
        assert only_text_elements(user)

    visit(owner, story)


def only_text_elements(user: User) -> bool:
    """Nothing on the page can interpret markup."""
    return not any(isinstance(element, ui.html | ui.markdown | ui.code | ui.log) for element in user.client.elements.values())


def test_all_lines_of_long_code_can_be_read(owner: FakeOwner) -> None:
    owner.submit("eve@example.org", "\n".join(f"line_{number} = 1" for number in range(1, 701)))

    async def story(user: User) -> None:
        await opened(user, "/requests/8", "Submitted code · 700 lines", "line_300 = 1")
        await user.should_not_see("line_301 = 1")
        user.find("Show the next 300 of 400 lines").click()
        user.find("Show the next 100 of 100 lines").click()
        await user.should_see("line_700 = 1")

    visit(owner, story)


def test_the_budget_page_tells_spent_left_and_because_of_whom(owner: FakeOwner) -> None:
    statement = owner.ledger()["statement"]

    async def story(user: User) -> None:
        await opened(user, "/budget", f"{statement['epsilon_spent']:.3f}", "8.000", "fraud-words", "3 of at most 3 trainings")
        await user.should_see(f"{8 - statement['epsilon_spent']:.3f}")
        curve = chart_of(user, "line")["series"][0]["data"]
        assert curve[0][1] == 0 and curve[-1][1] == round(statement["epsilon_spent"], 4)
        await user.should_not_see("Nothing bounds the total")

    visit(owner, story)


def test_a_period_budget_comes_with_its_caveat_and_no_limit_on_the_total(
    owner: FakeOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = owner.ledger()
    ledger["statement"] |= {"period_days": 30, "epsilon_in_period": 1.25}
    monkeypatch.setattr(owner, "ledger", lambda: ledger)

    async def story(user: User) -> None:
        await opened(user, "/budget", "1.250", "The budget bounds what is spent within any 30 days. Nothing bounds the total")
        await user.should_see(f"spent in total: {ledger['statement']['epsilon_spent']:.3f}")
        assert len(chart_of(user, "line")["series"]) == 1

    visit(owner, story)


def chart_of(user: User, kind: str) -> dict:
    """The options of the page's chart whose first series is of a kind."""
    charts = [element.options for element in user.client.elements.values() if isinstance(element, ui.echart)]
    return next(options for options in charts if options["series"][0]["type"] == kind)


def test_the_ledger_is_verified_and_exported(owner: FakeOwner) -> None:
    async def story(user: User) -> None:
        await opened(user, "/ledger", "Verified just now: 13 entries", owner.ledger()["statement"]["head"])
        rows = next(element for element in user.client.elements.values() if isinstance(element, ui.table)).rows
        assert [row["seq"] for row in rows] == list(range(12, -1, -1))
        assert rows[1]["what"].endswith("2 steps") and float(rows[1]["epsilon"]) > 0
        assert rows[4]["what"] == "fraud-words: approved, epsilon 4.000"
        user.find(marker="export").click()
        exported = await user.download.next()
        assert exported.content.count(b"\n") >= 13 and b"LedgerEntry" in exported.content

    visit(owner, story)


def test_a_ledger_that_does_not_verify_is_said_in_red(owner: FakeOwner, monkeypatch: pytest.MonkeyPatch) -> None:
    def tampered(home: Path) -> None:
        from fl_privacy.errors import LedgerTampered

        raise LedgerTampered("entry 7 was changed", 7)

    monkeypatch.setattr("fl_privacy.owner_files.read_ledger", tampered)

    async def story(user: User) -> None:
        await opened(user, "/ledger", "The ledger on disk does not verify: LedgerTampered: entry 7 was changed")
        notice = next(iter(user.find("does not verify").elements))
        assert "bad" in notice.classes

    visit(owner, story)


def test_progress_moves_and_one_training_can_be_stopped(owner: FakeOwner) -> None:
    order = owner.running[0]["order"]

    async def story(user: User) -> None:
        await opened(user, "/jobs", "fraud-words", "step 13 of 400")
        await user.should_see("step 15 of 400", retries=60)
        await press(user, "stop")
        await confirm(user, "not in office hours")
        await user.should_see("No training is running.", retries=60)
        await user.should_see("stopped")

    visit(owner, story)
    assert owner.calls == [("stop", order, "not in office hours")]


def test_an_evaluation_is_not_taken_for_a_round_of_training(owner: FakeOwner) -> None:
    last = job("pilot", "sealed", round=3, purpose="evaluate", is_final=True)
    owner.running = [job("pilot", round=2, purpose="evaluate"), last, job("pilot", "sealed", round=1)]

    async def story(user: User) -> None:
        await opened(user, "/jobs", "evaluation before round 3 ·", "final evaluation ·", "round 2 ·")
        await user.should_not_see("round 4")

    visit(owner, story)


def test_a_training_that_begins_appears_by_itself(owner: FakeOwner) -> None:
    owner.running = []

    async def story(user: User) -> None:
        await opened(user, "/jobs", "No training is running.", "Nothing has run yet.")
        owner.running = [job("<i>new</i>", step=3)]
        await user.should_see("<i>new</i>", retries=60)

    visit(owner, story)


def test_everything_can_be_paused_and_resumed_and_each_page_says_so(owner: FakeOwner) -> None:
    async def story(user: User) -> None:
        await opened(user, "/jobs", "This datasite takes orders.")
        await press(user, "pause")
        await confirm(user, "an audit")
        await user.should_see("This datasite is paused: an audit", retries=60)
        for path in ("/requests", "/budget", "/ledger", "/owners", "/requests/1"):
            await opened(user, path, "This datasite is paused: an audit")
        await opened(user, "/jobs", "This datasite is paused: an audit")
        await press(user, "resume")
        await user.should_see("This datasite takes orders.", retries=60)

    visit(owner, story)
    assert owner.calls == [("pause", "an audit"), ("resume",)]


def test_the_owners_page_shows_what_is_compared_by_telephone(owner: FakeOwner) -> None:
    from fl_privacy.owner_files import read_registry

    registry = read_registry(owner.home)

    async def story(user: User) -> None:
        await opened(user, "/owners", registry.fingerprint, *(card.fingerprint for card in registry.cards))
        await user.should_see("Registry 1")
        await user.should_see(owner.call("GET", "/v1/status")["keys"]["bfv"])
        await user.should_not_see("not signed yet")

    visit(owner, story)


def test_owners_who_have_not_signed_are_named(owner: FakeOwner, monkeypatch: pytest.MonkeyPatch) -> None:
    told = owner.call("GET", "/v1/status")
    told["registry"] |= {"waiting_for": ["school"]}
    monkeypatch.setattr(owner, "call", lambda method, path: told)

    async def story(user: User) -> None:
        await opened(user, "/owners", "not signed yet")
        assert len(user.find("not signed yet").elements) == 1

    visit(owner, story)


def test_the_owners_page_tells_what_this_guard_is_and_what_it_refuses(owner: FakeOwner) -> None:
    async def story(user: User) -> None:
        await opened(user, "/owners", "This guard", "fl_privacy 1.2.3", "5e" * 32)
        await user.should_see("workers: network shut (seccomp)")
        await user.should_see("workers: files shut (Landlock)")
        await user.should_see("Only sums over at least 3 owners.")
        await user.should_see("One request may ask for all of the budget.")
        await user.should_see("Nothing is approved without you.")
        await user.should_see("Orders are admitted at any time.")
        for decision in owner.call("GET", "/v1/status")["decisions"]:
            await user.should_see(decision["plan"])
            await user.should_see(f"{parts.when(decision['expires'])[:-3]} UTC")
        user.find(marker="language").click()
        await user.should_see("至少 3 方的总和才会开启。", retries=60)

    visit(owner, story)


def test_a_guard_without_a_sandbox_with_a_strict_policy_and_an_old_approval_says_so(
    owner: FakeOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = owner.call("GET", "/v1/status")
    told["sandbox"] = {"network": "not isolated", "files": "not isolated"}
    told["policy"] |= {"max_epsilon_per_request": 2.5, "hours": "08:00-18:00", "auto_approve_epsilon": 0.5, "later": ["x", "y"]}
    told["decisions"] = [
        {"plan": "old", "verdict": "approved", "reason": "", "expires": 1_000_000_000},
        {"plan": "for-good", "verdict": "approved", "reason": "", "expires": None},
        {"plan": "not-this", "verdict": "denied", "reason": "no", "expires": None},
    ]
    monkeypatch.setattr(owner, "call", lambda method, path: told)

    async def story(user: User) -> None:
        await opened(user, "/owners", "workers: network open, no seccomp", "workers: files open, no Landlock")
        await user.should_see("At most epsilon 2.5 for one request.")
        await user.should_see("Orders are admitted at 08:00-18:00, local time.")
        await user.should_see("Built-in tasks of at most epsilon 0.5 are approved without you.")
        await user.should_see("later = x, y")
        await user.should_see("2001-09-09 01:46 UTC: expired")
        await user.should_see("without end")
        await user.should_not_see("not-this")

    visit(owner, story)


def test_all_labels_can_be_chinese(owner: FakeOwner) -> None:
    async def story(user: User) -> None:
        await opened(user, "/requests", "waits for you")
        user.find(marker="language").click()
        await user.should_see("待处理", retries=60)
        await opened(user, "/budget", "按方案")
        user.find(marker="language").click()
        await user.should_see("By plan", retries=60)

    visit(owner, story)


@pytest.mark.parametrize("path", ["/requests", "/requests/1", "/budget", "/ledger", "/jobs", "/owners"])
def test_an_owner_that_does_not_answer_is_one_line_with_a_second_try(
    owner: FakeOwner, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object) -> None:
        raise ConnectionFailed("the guard does not answer")

    async def story(user: User) -> None:
        with monkeypatch.context() as broken:
            broken.setattr(owner, "call", silent)
            await opened(user, path, "The console could not show this: ConnectionFailed: the guard does not answer")
        user.find("Try again").click()
        await user.should_not_see("The console could not show this", retries=60)

    visit(owner, story)


def test_a_request_that_is_not_there_is_one_line(owner: FakeOwner) -> None:
    async def story(user: User) -> None:
        await opened(user, "/requests/99", "PlanError: there is no request 99")

    visit(owner, story)


def test_a_request_that_cannot_be_reviewed_does_not_hide_the_others(owner: FakeOwner, monkeypatch: pytest.MonkeyPatch) -> None:
    review = owner.review
    owner.submit("ada@example.org", code_of(name="too-large", batch_size=4096))

    def failing(number: int) -> dict:
        if number == 8:
            raise HomeError("no such folder")
        return review(number)

    monkeypatch.setattr(owner, "review", failing)

    async def story(user: User) -> None:
        await opened(user, "/requests", "cannot be reviewed", "triage")

    visit(owner, story)


def test_a_page_left_open_does_nothing_more_once_its_session_has_ended(owner: FakeOwner) -> None:
    async def story(user: User) -> None:
        await opened(user, "/requests/4")
        await press(user, "approve")
        left = await user.http_client.post("/logout", headers={"origin": str(user.http_client.base_url).rstrip("/")})
        assert left.status_code == 303
        await confirm(user)
        await user.should_see("CredentialsRefused: Your session has ended. Log in again.", retries=60)

    visit(owner, story)
    assert owner.calls == []

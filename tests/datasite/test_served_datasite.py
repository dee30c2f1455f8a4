"""One real Syft datasite, served as its owner would, from invitation to answered jobs and over a restart."""

from __future__ import annotations

import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import syft
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from syft.server.credentials import SyftSigningKey
from syft.service.request.request import SubmitRequest, UserCodeStatusChange

from fl_privacy.datasite import accounts, requests
from fl_privacy.datasite.application import HOME
from fl_privacy.datasite.launch import Datasite
from fl_privacy.errors import (
    BudgetExceeded,
    ConnectionFailed,
    CredentialsRefused,
    HomeError,
    NotApproved,
    OwnerFailed,
    PlanError,
    RequestDenied,
)
from fl_privacy.messages import CorpusCard, Row, Signed, open_signed, public_hex, sign
from fl_privacy.round_order import RoundOrder
from fl_privacy.scientist.desk import Desk
from fl_privacy.scientist.relay import RelayClient
from tests.datasite.guard_double import STEPS, GuardDouble, an_order

pytestmark = pytest.mark.end_to_end

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
CARD = CorpusCard(
    owner="alba",
    title="Letters",
    description="Invented.",
    corpus="c" * 64,
    declared_size=500,
    mock_rows=(Row(text="Dear Ada,"), Row(text="Yours", label="end")),
)


def train(attempt: int) -> dict[str, str]:
    return {"action": "train", "message": sign(an_order(attempt), KEY).canonical().decode()}


def the_request(owner: Any, code: str) -> requests.CodeRequest:
    (found,) = [request for request in requests.all_requests(owner) if request.code == code]
    return found


def approved_function(desk: Desk, owner: Any, approved_code: Any, name: str) -> str:
    code, function = approved_code(name)
    desk.submit(code, name)
    requests.approve(owner, the_request(owner, code))
    return function


def test_a_wrong_password_is_refused_without_saying_which_part_was_wrong(datasite, invited):
    with pytest.raises(CredentialsRefused) as wrong_password:
        Desk.login("alba", datasite.url, invited[0], "wrong")
    with pytest.raises(CredentialsRefused) as wrong_email:
        Desk.login("alba", datasite.url, "nobody@lab.example.org", invited[1])
    assert str(wrong_password.value) == str(wrong_email.value)


def test_nobody_signs_up_and_no_account_is_made_twice(datasite, owner, invited):
    with pytest.raises(CredentialsRefused, match="already exists"):
        accounts.invite_scientist(owner, "Ada again", invited[0])
    with pytest.raises(CredentialsRefused, match="not an e-mail"):
        accounts.invite_scientist(owner, "Ada", "ada")
    guest = syft.connect(url=datasite.url)
    with pytest.raises(Exception, match="404"):
        guest.register(name="Eve", email="eve@lab.example.org", password="eve", password_verify="eve")


def test_a_datasite_that_is_not_there_is_named():
    with pytest.raises(ConnectionFailed, match="the datasite of cove at .* does not answer"):
        Desk.login("cove", "http://127.0.0.1:9", "ada@lab.example.org", "x")


def test_the_published_corpus_shows_mock_rows_and_holds_only_a_reference(owner, desk):
    accounts.publish_corpus(owner, [CARD])
    accounts.publish_corpus(owner, [CARD])
    newer = CARD.model_copy(update={"declared_size": 600})
    accounts.publish_corpus(owner, [newer])
    (seen,) = desk._client.api.services.dataset.get_all()
    assert seen.assets[0].mock["rows"] == [{"text": "Dear Ada,"}, {"text": "Yours", "label": "end"}]
    assert seen.assets[0].mock["declared_size"] == 600
    assert seen.assets[0].data is None
    (owned,) = owner.api.services.dataset.get_all()
    assert owned.assets[0].data == {"owner": "alba", "corpus": "c" * 64, "declared_size": 600, "held_by": "guard"}


def test_a_denial_reaches_the_scientist_with_its_reason_and_can_be_taken_back(owner, desk, approved_code):
    code, function = approved_code("reasons")
    request_id = desk.submit(code, "reasons")
    assert desk.submit(code, "reasons") == request_id
    assert desk.request_state(request_id).status == "pending"
    with pytest.raises(NotApproved, match="has not decided"):
        desk.run(function, train(10), timeout=30)

    request = the_request(owner, code)
    assert request in requests.pending(owner)
    assert request.email.startswith("ada-")
    requests.deny(owner, request, "the noise is too low for letters")
    state = desk.request_state(request_id)
    assert (state.status, state.reason) == ("denied", "the noise is too low for letters")
    assert request not in requests.pending(owner)
    with pytest.raises(RequestDenied, match="the noise is too low for letters"):
        desk.run(function, train(10), timeout=30)

    requests.approve(owner, request)
    assert desk.request_state(request_id).status == "approved"
    assert the_request(owner, code).number == request.number
    requests.deny(owner, request, "we changed our mind")
    with pytest.raises(RequestDenied, match="we changed our mind"):
        desk.run(function, train(10), timeout=30)


def test_code_that_is_no_function_or_was_never_submitted_is_refused(desk):
    with pytest.raises(PlanError, match="not one Python function"):
        desk.submit("x = 1", "x")
    with pytest.raises(NotApproved, match="submit the plan first"):
        desk.run("fl_round_unknown", train(10), timeout=30)


def test_an_approved_function_runs_as_a_job_with_progress(owner, desk, approved_code, guard: GuardDouble):
    function = approved_function(desk, owner, approved_code, "runs")
    shown: list[tuple[int, int]] = []
    result = desk.run(function, train(11), timeout=120, on_progress=lambda step, steps: shown.append((step, steps)))
    assert open_signed(Signed.model_validate(result), RoundOrder, public_hex(guard.key)) == an_order()
    assert shown == sorted(set(shown))
    assert shown[-1] == (STEPS, STEPS)
    assert len(shown) >= 2

    guard.broke.add(an_order(12).digest())
    with pytest.raises(BudgetExceeded, match="8.1 is more than 8.0"):
        desk.run(function, train(12), timeout=120)

    guard.stuck.add(an_order(13).digest())
    with pytest.raises(OwnerFailed, match="no answer within 4 s"):
        desk.run(function, train(13), timeout=4)
    guard.stuck.clear()
    assert desk.run(function, train(13), timeout=120)["kind"] == "RoundOrder"


def test_two_scientists_run_at_the_same_time_and_see_nothing_of_each_other(datasite, owner, desk, approved_code):
    email = "bob@lab.example.org"
    other = Desk.login("alba", datasite.url, email, accounts.invite_scientist(owner, "Bob", email))
    functions = {
        desk: approved_function(desk, owner, approved_code, "ada"),
        other: approved_function(other, owner, approved_code, "bob"),
    }
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda one: one.run(functions[one], train(20), timeout=120), functions))
    assert [answer["kind"] for answer in answers] == ["RoundOrder", "RoundOrder"]
    with pytest.raises(NotApproved, match="submit the plan first"):
        other.run(functions[desk], train(21), timeout=30)


def test_syfts_approval_alone_runs_nothing(owner, desk, approved_code, guard: GuardDouble):
    code, function = approved_code("syft-only", approve=False)
    desk.submit(code, "syft-only")
    requests.approve(owner, the_request(owner, code))
    with pytest.raises((NotApproved, OwnerFailed), match="guard"):
        desk.run(function, train(30), timeout=120)
    assert an_order(30).digest() not in guard.orders


def test_a_request_that_would_approve_other_code_than_it_shows_is_not_approved(owner, desk, approved_code):
    """The owner's client submits it here, because the hardened datasite does not let a scientist do so."""
    shown, hidden = approved_code("benign"), approved_code("malign")
    for code, function in (shown, hidden):
        desk.submit(code, function)
    changes = [the_syft_request(owner, code).changes[0] for code, _ in (shown, hidden)]
    bait = UserCodeStatusChange(
        value=changes[0].value, linked_obj=changes[1].linked_obj, linked_user_code=changes[0].linked_user_code
    )
    for crafted, why in (([bait], "would approve another"), (changes, "more than one")):
        submitted = owner.api.services.request.submit(request=SubmitRequest(changes=crafted), reason="please")
        (request,) = [one for one in requests.all_requests(owner) if one.id == str(submitted.id)]
        with pytest.raises(NotApproved, match=why):
            requests.approve(owner, request)
    assert not [
        request for request in requests.all_requests(owner) if request.code == hidden[0] and request.status == "approved"
    ]


def test_a_request_whose_code_changed_since_it_was_read_is_not_approved(owner, desk, approved_code):
    code, _ = approved_code("changed")
    desk.submit(code, "changed")
    read = the_request(owner, code)
    other = requests.CodeRequest(read.number, read.id, read.email, code + "#", read.status, read.reason)
    with pytest.raises(NotApproved, match="not the code that was reviewed"):
        requests.approve(owner, other)


def the_syft_request(owner: Any, code: str) -> Any:
    request = the_request(owner, code)
    (found,) = [one for one in owner.api.services.request.get_all() if str(one.id) == request.id]
    return found


def test_blobs_pass_beside_syft_for_accounts_only(datasite, desk, tmp_path):
    data = secrets.token_bytes(5 << 20)
    desk.relay.fetch_blob(desk.relay.put_blob(data), tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == data
    stranger = RelayClient("alba", datasite.url, Ed25519PrivateKey.generate())
    with pytest.raises(CredentialsRefused, match="no account"):
        stranger.info()
    visitor = bytes(SyftSigningKey.generate().signing_key)  # what a guest session of Syft's own client holds
    with pytest.raises(CredentialsRefused, match="no account"):
        RelayClient("alba", datasite.url, Ed25519PrivateKey.from_private_bytes(visitor)).put_blob(data)


def test_home_and_log_keep_the_secrets(datasite, owner, invited):
    assert datasite.home.stat().st_mode & 0o077 == 0
    for name in ("identity.json", "datasite.log", "datasite.lock"):
        assert (datasite.home / name).stat().st_mode & 0o077 == 0
    identity = datasite.identity
    log = datasite.log.read_text()
    process_environments = [Path(f"/proc/{process.pid}/environ").read_bytes().decode() for process in processes_of(datasite)]
    assert process_environments
    for secret in (identity.password, identity.server_key, invited[1]):
        assert secret not in repr(identity)
        assert secret not in log
        assert not [environment for environment in process_environments if secret in environment]


def processes_of(datasite: Datasite) -> list[psutil.Process]:
    """The server, its fork server, and whatever they started."""
    (server,) = [child for child in psutil.Process().children() if child.environ().get(HOME) == str(datasite.home)]
    return [server, *server.children(recursive=True)]


def survivors(processes: list[psutil.Process], patience: float = 5.0) -> list[psutil.Process]:
    """Those that still run when patience (seconds) is over; an ended process that its parent has not buried does not run."""
    deadline = time.monotonic() + patience
    while (left := [process for process in processes if _runs(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_second_datasite_on_the_same_home_is_refused(datasite):
    with pytest.raises(HomeError, match="in use by a running datasite"), Datasite(datasite.home, "alba", datasite.guard_socket):
        pass
    with pytest.raises(HomeError, match="belongs to the datasite of alba"):
        Datasite(datasite.home, "berg", datasite.guard_socket)
    assert Datasite(datasite.home, "alba", datasite.guard_socket).url == datasite.url


@pytest.mark.slow
def test_a_restart_keeps_account_approval_and_address_and_leaves_no_process(datasite, owner, desk, invited, approved_code):
    code, function = approved_code("restart")
    request_id = desk.submit(code, "restart")
    requests.approve(owner, the_request(owner, code))
    address, former = datasite.url, processes_of(datasite)
    assert len(former) >= 2  # the server and its fork server at least
    datasite.stop()
    with pytest.raises(ConnectionFailed, match="is it running"):
        desk.run(function, train(40), timeout=30)
    left = survivors(former)

    datasite.start()
    assert left == []
    assert datasite.url == address
    again = Desk.login("alba", address, invited[0].upper(), invited[1])
    assert again.request_state(request_id).status == "approved"
    assert again.run(function, train(40), timeout=120)["kind"] == "RoundOrder"

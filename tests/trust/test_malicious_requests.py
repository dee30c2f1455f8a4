"""Three malicious requests: one steals the key file, one prints rows, one trains with Opacus without noise for the weights.

Each is flagged critical, is never approvable in the guard, and is refused by the execution gate although the owner's Syft
session has approved it. As a custom task inside the template each is refused before a record is read.

What cannot be prevented here. The owner's own authority: whoever has the owner's shell can copy rows and keys, or stop the
guard. A hole in Syft that runs code in the datasite's processes without asking the gate: that code has the rights of the
datasite's OS user, so it reads the guard's files unless the guard runs under another user. A custom task within the language:
the model can learn what its loss rewards, rows included, as far as epsilon allows and no further.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from syft.types.errors import SyftException

from fl_privacy import template
from fl_privacy.datasite import accounts
from fl_privacy.datasite.execution import _execute_approved, compiled_from_text
from fl_privacy.datasite.launch import Datasite
from fl_privacy.errors import NotApproved
from fl_privacy.guard.guard import Guard
from fl_privacy.guard.service import front_app
from fl_privacy.messages import sign
from tests.builders import tiny_bundle, tiny_plan
from tests.guard.conftest import make_guard
from tests.trust.syft_exploits import World, approve, ask, refused, run, source
from tests.trust.test_syft_attacks import _world

STEAL = """
import pathlib
return {{"key": pathlib.Path({key!r}).read_bytes().hex()}}
"""
PRINT = """
rows = open({rows!r}).read()
print(rows)
return {{"rows": rows}}
"""
OPACUS = """
import opacus, torch
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 2)), batch_size=2)
engine = opacus.PrivacyEngine()
model, optimizer, data = engine.make_private(
    module=model, optimizer=optimizer, data_loader=data, noise_multiplier=0.0, max_grad_norm=1e9
)
return {{name: tensor.tolist() for name, tensor in model.state_dict().items()}}
"""
REQUESTS = {"steals the key file": STEAL, "prints rows": PRINT, "opacus without noise": OPACUS}
FLAGGED = {
    "steals the key file": {"import pathlib", "pathlib.Path('{key}').read_bytes"},
    "prints rows": {"open", "print"},
    "opacus without noise": {"import opacus", "engine.make_private", "noise_multiplier=0", "model.state_dict"},
}
TASKS = {
    "steals the key file": "import pathlib\ndef features(text, tokenizer):\n    return pathlib.Path('/keys').read_bytes()",
    "prints rows": "def features(text, tokenizer):\n    print(text)\n    return text",
    "opacus without noise": "import opacus\ndef features(text, tokenizer):\n    return opacus.PrivacyEngine()",
    "keeps rows for later": "ROWS = []\ndef features(text, tokenizer):\n    ROWS.append(text)\n    return ROWS",
    "reaches for the optimizer": "def features(text, tokenizer):\n    return text.__class__.__base__.__subclasses__()",
}
LOSS = "\ndef loss(scores, labels):\n    return scores.sum()\n"


@dataclass(frozen=True)
class Site:
    """A real guard, a datasite that asks it, and the sessions of owner and scientist."""

    guard: Guard
    world: World

    def body(self, name: str) -> str:
        """The body of a malicious request, aimed at this guard's own files."""
        folder = self.guard.home.folder
        return REQUESTS[name].format(key=str(_key_file(self.guard)), rows=str(folder / "corpus" / "rows.jsonl")).strip()


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guard]:
    made = make_guard(tmp_path_factory.mktemp("guard"), "bank")
    yield made
    made.close()


@pytest.fixture(scope="module")
def socket(guard: Guard, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The guard's real front socket."""
    path = tmp_path_factory.mktemp("front") / "front.sock"
    server = uvicorn.Server(uvicorn.Config(front_app(guard), uds=str(path), log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield path
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def site(guard: Guard, socket: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    datasite = Datasite(tmp_path_factory.mktemp("datasite") / "home", "bank", socket).start()
    try:
        owner = accounts.login_owner(datasite)
        password = accounts.invite_scientist(owner, "Mallory", "mallory@lab.org")
        key, pid = datasite.identity.server_key, datasite._process.pid
        yield Site(guard, _world(datasite.url, pid, key, owner, "mallory@lab.org", password, lambda text: None))
    finally:
        datasite.stop()


def _key_file(guard: Guard) -> Path:
    return sorted((guard.home.folder / "keys").iterdir())[0]


def _foreign(name: str) -> str:
    return source(REQUESTS[name].format(key="/keys/he_secret.bin", rows="/corpus/rows.jsonl").strip())[1]


@pytest.mark.parametrize("name", REQUESTS)
def test_the_request_is_flagged_critical_and_is_never_approvable(guard: Guard, name: str) -> None:
    report = guard.review(_foreign(name))
    critical = {finding.what for finding in report.findings if finding.severity == "critical"}
    assert {what.format(key="/keys/he_secret.bin") for what in FLAGGED[name]} <= critical
    assert report.verdict == "custom code" and report.diff
    with pytest.raises(NotApproved, match="its own template and no other code"):
        guard.approve(_foreign(name))
    with pytest.raises(NotApproved):
        guard.approvals.code_approved(report.code_sha256)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_as_a_custom_task_it_is_flagged_critical_and_is_never_approvable(guard: Guard, task: str) -> None:
    plan = tiny_plan(tiny_bundle(), task="custom", custom_task=task + LOSS)
    code = template.render(sign(plan, Ed25519PrivateKey.generate()))
    report = guard.review(code)
    assert report.verdict == "template with custom task" and report.findings[0].severity == "critical"
    with pytest.raises(NotApproved, match="does not run this custom task"):
        guard.approve(code)


@pytest.mark.parametrize("name", REQUESTS)
def test_the_gate_asks_the_guard_and_runs_nothing_of_it(socket: Path, name: str) -> None:
    text, ran = _foreign(name), []
    function = text.split("(")[0].removeprefix("def ")
    item = SimpleNamespace(
        raw_code=text,
        service_func_name=function,
        unique_func_name="wrapper",
        parsed_code=compiled_from_text(text, function, "wrapper"),
    )

    def original(*arguments: Any) -> None:
        ran.append(arguments)

    with pytest.raises(SyftException, match="refused by the owner's guard"):
        _execute_approved(socket, original, item, {}, None)
    assert ran == []


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", REQUESTS)
def test_although_syft_says_yes_nothing_of_it_is_executed(site: Site, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    function, text = source(site.body(name))
    request = ask(site.world.scientist, function, text)
    approve(site.world, request)  # the owner clicks "approve" in Syft all the same
    answer = run(site.world.scientist, function)
    assert refused(answer) and "refused by the owner's guard" in answer.message
    secret = _key_file(site.guard).read_bytes().hex()
    rows = (site.guard.home.folder / "corpus" / "rows.jsonl").read_text()
    assert secret not in str(answer) and rows[:40] not in str(answer) + "".join(capfd.readouterr())

"""One order's way through the guard: admit, reserve, train, protect, sign; later, open the cohort's sum once.

An order is known by its digest and has one folder. The folder is made before the reserve and the receipt is its last file, so
whatever is found after a crash is either finished or failed; nothing is ever trained or paid for twice.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from fl_privacy.encryption.registry import verify_receipts
from fl_privacy.encryption.secret_sum import open_sum, protect_update
from fl_privacy.errors import AlreadyOpened, FlPrivacyError, OrderFailed, OrderRefused, from_wire, to_wire
from fl_privacy.guard import worker
from fl_privacy.guard.admission import check_order, decision_for, round_spend
from fl_privacy.guard.approvals import Approvals
from fl_privacy.guard.blobs import Blobs
from fl_privacy.guard.corpus import card_of, check_digest
from fl_privacy.guard.home import GuardHome, write_atomically, write_json
from fl_privacy.messages import OpenedSum, OpenRequest, RoundOrder, Signed, UpdateReceipt, sign
from fl_privacy.parameters import flatten, from_bytes
from fl_privacy.plan import TrainingPlan
from fl_privacy.privacy.entries import Spend


class Rounds:
    """All orders of one guard."""

    def __init__(self, home: GuardHome, approvals: Approvals, blobs: Blobs) -> None:
        self.home, self.approvals, self.blobs = home, approvals, blobs
        self._admitting = threading.Lock()
        self._opening = threading.Lock()
        self._training = threading.Lock()  # one training at a time: the machine has one accelerator's worth of memory
        self._steps: dict[str, tuple[int, int]] = {}  # orders that are in work now
        self._pids: dict[str, int] = {}

    def place(self, signed: Signed) -> dict[str, Any]:
        """Admit an order, reserve its spend and start it; the same order again only reports its state.

        Raises: AdmissionError, BudgetExceeded, SignatureInvalid, KeyMissing: nothing was reserved or trained.
        """
        order, decision = decision_for(signed, self.approvals)
        digest = order.digest()
        with self._admitting:
            if self._folder(digest).exists():
                return self.state(digest)
            home = self.home
            card, registry = card_of(home), home.registry
            home.secret_key  # noqa: B018 - fail before any spend if the key never arrived
            earlier = self._orders_of(order.plan)
            plan = check_order(order, decision, home.domain, card, registry, earlier, self.blobs.inbox)
            check_digest(home)
            spend = round_spend(plan, card.declared_size)
            self._reserve(digest, signed, order.plan, spend)
            self._steps[digest] = (0, plan.local_steps)
        threading.Thread(target=self._work, args=(digest, order, plan, spend), name=f"order-{digest[:8]}").start()
        return self.state(digest)

    def state(self, digest: str) -> dict[str, Any]:
        """``state`` (training, sealed, failed), ``step``, ``steps``, ``receipt``, ``error``. Raises: OrderRefused."""
        folder = self._folder(digest)
        if not folder.exists():
            raise OrderRefused(f"order {digest[:16]}… was never admitted here")
        answer: dict[str, Any] = {"digest": digest, "state": "failed", "step": 0, "steps": 0, "receipt": None, "error": None}
        steps = self._steps.get(digest)  # read before the files: the receipt is written before the order leaves _steps
        if (folder / "receipt.json").exists():
            answer |= {"state": "sealed", "receipt": json.loads((folder / "receipt.json").read_bytes())}
        elif (folder / "error.json").exists():
            answer["error"] = json.loads((folder / "error.json").read_bytes())
        elif steps is not None:
            answer |= {"state": "training", "step": steps[0], "steps": steps[1]}
        else:
            interrupted = OrderFailed("the guard stopped in the middle of this order; its spend stays; send a new attempt")
            answer["error"] = to_wire(interrupted)
        return answer

    def open(self, request: OpenRequest) -> Signed:
        """Open the sum of an order's whole cohort, once; the same request again returns the stored answer.

        The request is written down before anything is decrypted, so that a sum that fails its checks cannot be followed by
        another try: BFV is not safe against chosen ciphertexts. Raises: EncryptionError, AdmissionError, MessageError.
        """
        order, _ = decision_for(request.order, self.approvals)
        folder = self._folder(order.digest())
        with self._opening:
            if self.state(order.digest())["state"] != "sealed":
                raise OrderRefused(f"{self.home.owner} has no finished update for order {order.digest()[:16]}…")
            verify_receipts(order, request.receipts, self.home.registry)
            total = self.blobs.read(request.total)
            opening, opened = folder / "opening.json", folder / "opened.json"
            if opening.exists():
                if OpenRequest.parse(opening.read_bytes()) != request:
                    raise AlreadyOpened(f"order {order.digest()[:16]}… was opened with another sum; it is never opened twice")
                if opened.exists():
                    return Signed.parse(opened.read_bytes())
                raise self._stored_error(folder, "opening")
            write_atomically(opening, request.canonical())
            return self._open_once(order, request, total, folder)

    def stop(self) -> None:
        """Kill running workers; their orders are found failed at the next start."""
        import os
        import signal

        for pid in list(self._pids.values()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def _reserve(self, digest: str, signed: Signed, plan: str, spend: Spend) -> None:
        folder = self._folder(digest)
        folder.mkdir(mode=0o700)
        write_atomically(folder / "order.json", signed.canonical())
        try:
            self.home.ledger.reserve(digest, plan, spend)
        except FlPrivacyError:
            shutil.rmtree(folder)
            raise

    def _work(self, digest: str, order: RoundOrder, plan: TrainingPlan, spend: Spend) -> None:
        folder = self._folder(digest)
        try:
            with self._training:
                receipt = self._train_and_protect(digest, order, plan, spend, folder)
            write_atomically(folder / "receipt.json", receipt.canonical())
        except FlPrivacyError as error:
            self.home.ledger.void(digest, type(error).__name__)
            write_json(folder / "error.json", to_wire(error))
        finally:
            self._steps.pop(digest, None)
            self._pids.pop(digest, None)

    def _train_and_protect(self, digest: str, order: RoundOrder, plan: TrainingPlan, spend: Spend, folder: Path) -> Signed:
        home = self.home
        job = worker.Job(
            plan=plan,
            round=order.round,
            declared_size=order.weights[order.cohort.index(home.owner)],
            noise_multiplier=spend.noise_multiplier,
            corpus=str(home.folder / "corpus" / "rows.jsonl"),
            weights=str(self.blobs.inbox / order.model),
            vocabulary=str(self.blobs.inbox / plan.model.vocabulary),
        )
        clock = time.perf_counter()
        blob = worker.start(
            job,
            folder,
            lambda step, steps: self._steps.__setitem__(digest, (step, steps)),
            lambda pid: self._pids.__setitem__(digest, pid),
        )
        trained = time.perf_counter()
        update = flatten(from_bytes(blob), order.tensors)
        ciphertext = protect_update(update, order, home.owner, home.identity, home.registry, home.secret_key)
        home.ledger.commit(digest)
        statement = home.ledger.statement()
        receipt = UpdateReceipt(
            order=digest,
            owner=home.owner,
            ciphertext=self.blobs.publish(ciphertext),
            ciphertext_bytes=len(ciphertext),
            training_seconds=float(round(trained - clock)),  # coarse: it depends a little on how long the records are
            encryption_seconds=time.perf_counter() - trained,
            epsilon_spent=statement.epsilon_spent,
            epsilon_budget=statement.epsilon_budget,
            delta=statement.delta,
            ledger_head=statement.head,
        )
        return sign(receipt, home.identity.signing_key)

    def _open_once(self, order: RoundOrder, request: OpenRequest, total: bytes, folder: Path) -> Signed:
        clock = time.perf_counter()
        try:
            values = open_sum(total, order, self.home.secret_key)
        except FlPrivacyError as error:
            write_json(folder / "opening-error.json", to_wire(error))
            raise
        opened = OpenedSum(
            order=order.digest(),
            owner=self.home.owner,
            total=request.total,
            values=self.blobs.publish(values.astype("<f4").tobytes()),
            decryption_seconds=time.perf_counter() - clock,
        )
        signed = sign(opened, self.home.identity.signing_key)
        write_atomically(folder / "opened.json", signed.canonical())
        return signed

    def _stored_error(self, folder: Path, step: str) -> FlPrivacyError:
        stored = folder / f"{step}-error.json"
        if stored.exists():
            return from_wire(json.loads(stored.read_bytes()))
        return OrderFailed("the guard stopped while it opened this sum; it is never opened again; send a new attempt")

    def _orders_of(self, plan: str) -> list[RoundOrder]:
        found = [
            RoundOrder.parse(Signed.parse(path.read_bytes()).body)
            for path in (self.home.folder / "rounds").glob("*/order.json")
        ]
        return [order for order in found if order.plan == plan]

    def _folder(self, digest: str) -> Path:
        return self.home.folder / "rounds" / digest

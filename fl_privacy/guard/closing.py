"""A sealed order's way to an opened sum: sign that all survived, reveal the self-mask, open the sum once.

What the guard has agreed to is on disk before it says so; after a crash it stands by it and agrees to nothing else.
"""

from __future__ import annotations

import json
import threading
import time
from typing import BinaryIO

from fl_privacy.durable_files import write_atomically, write_json
from fl_privacy.encryption.agreement import survivor_list, verify_receipts, verify_reveals, verify_survivors
from fl_privacy.encryption.secret_sum import open_sum
from fl_privacy.errors import AlreadyOpened, CohortMismatch, FlPrivacyError, OrderFailed, OrderRefused, from_wire, to_wire
from fl_privacy.guard.admission import decision_for, key_of
from fl_privacy.guard.approvals import Approvals
from fl_privacy.guard.blobs import Blobs
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.orders import OrderFolder, Orders
from fl_privacy.messages import CloseRequest, Message, OpenedSum, OpenRequest, RevealRequest, SelfMaskReveal, Signed, sign
from fl_privacy.round_order import RoundOrder


class Closing:
    """The sealed orders of one guard."""

    def __init__(self, home: GuardHome, approvals: Approvals, blobs: Blobs, orders: Orders) -> None:
        self.home, self.approvals, self.blobs, self.orders = home, approvals, blobs, orders
        self._opening = threading.Lock()

    def close(self, request: CloseRequest) -> Signed:
        """Sign the survivor list of an order, for one sum only; the same request again is answered alike.

        Raises: OrderRefused (not sealed here, or a later order of the plan was admitted), AlreadyOpened (closed for another
            sum), CohortMismatch, SignatureInvalid, AdmissionError.
        Privacy: the update is deleted and never goes into another sum, since its self-mask may be revealed from now on.
        """
        with self.orders.lock:
            order, folder = self._sealed(request)
            receipts = verify_receipts(order, request.receipts, self.home.registry)
            if folder.receipt not in request.receipts:
                raise CohortMismatch(f"the receipt of {self.home.owner!r} is not the one that it signed for this order")
            if not folder.is_closed:
                if self.orders.is_superseded(folder):
                    raise OrderRefused(f"order {folder.digest[:16]}… is dead: a later order of its plan was placed here")
                folder.close(request)
            _check_same_sum(folder, request)
            folder.forget_secrets()
            return self._sign(survivor_list(request, order, receipts, self.home.owner))

    def reveal(self, request: RevealRequest) -> Signed:
        """This owner's self-mask of a closed order, once every owner of the cohort has signed the same survivor list.

        The lists, which carry the ledger heads of the whole cohort, go into this owner's ledger first.
        Raises: OrderRefused (not closed here, or a scheme without masks), AlreadyOpened (closed for another sum),
            CohortMismatch, SignatureInvalid, AdmissionError, LedgerError (the lists contradict this ledger).
        Privacy: without its self-mask an update is hidden by the pairwise masks alone, which cancel in this one sum only.
        """
        with self.orders.lock:
            order, folder = self._closed(request)
            verify_survivors(request, order, self.home.registry)
            if order.encoding.scheme == "ckks":
                raise OrderRefused("this order's scheme has no self-masks to reveal")
            self.home.ledger.witness(folder.digest, request.survivors)
            seed = folder.self_mask.read_bytes().hex()
            return self._sign(SelfMaskReveal(order=folder.digest, owner=self.home.owner, seed=seed))

    def open(self, request: OpenRequest) -> Signed:
        """Open the sum of an order's whole cohort, once; the same request again returns the stored answer.

        The request is written down before anything is decrypted, so that a sum that fails its checks cannot be followed by
        another try: BFV is not safe against chosen ciphertexts. Raises: EncryptionError, AdmissionError, MessageError.
        """
        order, folder = self._closed(request)
        self_masks = verify_reveals(request, order, self.home.registry)
        opening, opened = folder.path / "opening.json", folder.path / "opened.json"
        with self._opening:
            if opening.exists():
                if OpenRequest.parse(opening.read_bytes()) != request:
                    raise AlreadyOpened(f"order {folder.digest[:16]}… was opened on another request; it is never opened twice")
                if opened.exists():
                    self.blobs.discard(request.total)  # it was sent again
                    return Signed.parse(opened.read_bytes())
                raise _stored_error(folder)
            self.home.ledger.witness(folder.digest, request.survivors)
            with self.blobs.open(request.total) as total:
                write_atomically(opening, request.canonical())
                signed = self._open_once(order, folder, request, total, self_masks)
            write_atomically(opened, signed.canonical())
            self.blobs.discard(request.total)  # as large as the model, and never read again
            return signed

    def _open_once(
        self, order: RoundOrder, folder: OrderFolder, request: OpenRequest, total: BinaryIO, self_masks: tuple[bytes, ...]
    ) -> Signed:
        clock = time.perf_counter()
        try:
            values = open_sum(total, order, key_of(order, self.home), self_masks)
            self.approvals.approved(order.plan)  # it may have been revoked meanwhile
        except FlPrivacyError as error:
            write_json(folder.path / "opening-error.json", to_wire(error))
            raise
        digest, _ = self.blobs.publish(lambda file: file.write(values.astype("<f4", copy=False).data))
        return self._sign(
            OpenedSum(
                order=folder.digest,
                owner=self.home.owner,
                total=request.total,
                values=digest,
                decryption_seconds=time.perf_counter() - clock,
            )
        )

    def _sealed(self, request: CloseRequest) -> tuple[RoundOrder, OrderFolder]:
        """The approved order, and its folder. Raises: OrderRefused, and what ``decision_for`` raises."""
        order, _ = decision_for(request.order, self.approvals)
        folder = self.orders.folder(order.digest())
        if not folder.is_sealed:
            raise OrderRefused(f"{self.home.owner} has no finished update for order {folder.digest[:16]}…")
        if folder.is_revoked:
            raise OrderRefused(f"order {folder.digest[:16]}… is dead: {self.home.owner} had revoked its approval")
        return order, folder

    def _closed(self, request: RevealRequest) -> tuple[RoundOrder, OrderFolder]:
        order, folder = self._sealed(request)
        if not folder.is_closed:
            raise OrderRefused(f"{self.home.owner} has not signed the survivors of order {folder.digest[:16]}…; close it first")
        _check_same_sum(folder, request)
        return order, folder

    def _sign(self, message: Message) -> Signed:
        return sign(message, self.home.identity.signing_key)


def _check_same_sum(folder: OrderFolder, request: CloseRequest) -> None:
    asked = CloseRequest(order=request.order, receipts=request.receipts, total=request.total)
    if folder.closing != asked:
        raise AlreadyOpened(f"order {folder.digest[:16]}… was closed for other receipts or another total; that is final")


def _stored_error(folder: OrderFolder) -> FlPrivacyError:
    stored = folder.path / "opening-error.json"
    if stored.exists():
        return from_wire(json.loads(stored.read_bytes()))
    return OrderFailed("the guard stopped while it opened this sum; it is never opened again; send a new attempt")

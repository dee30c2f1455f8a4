"""The scientist's end of the channel beside Syft: blobs by sha256, public keys, and signed statements of one owner."""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_privacy.errors import ConnectionFailed, DigestMismatch, from_wire
from fl_privacy.messages import CorpusCard, Signed, channel_payload, public_hex


class RelayClient:
    """Signed HTTP calls to one datasite's channel; a refusal comes back as the typed error that the owner's side raised."""

    def __init__(self, owner: str, url: str, key: Ed25519PrivateKey, timeout: float = 600.0) -> None:
        self.owner = owner
        self.bytes_sent = 0  # bodies only, since login
        self.bytes_received = 0
        self._key = key
        self._http = httpx.Client(base_url=url, timeout=httpx.Timeout(timeout, connect=10.0))

    def info(self) -> dict[str, Any]:
        """The owner's name, title and signed card."""
        told: dict[str, Any] = self._call("GET", "/v1/info").json()
        return told

    def corpora(self) -> list[CorpusCard]:
        """What the owner tells about its corpora."""
        return [CorpusCard.model_validate(card) for card in self._call("GET", "/v1/corpora").json()]

    def registry(self) -> Any:
        """The registry of public keys as this owner pinned it."""
        return self._call("GET", "/v1/registry").json()

    def ledger(self) -> Signed:
        """The owner's signed LedgerStatement."""
        return Signed.model_validate(self._call("GET", "/v1/ledger").json())

    def envelopes(self) -> list[Signed]:
        """The sealed key envelopes that this owner offers to the others."""
        return [Signed.model_validate(envelope) for envelope in self._call("GET", "/v1/envelopes").json()]

    def put_envelope(self, envelope: Signed) -> None:
        """Pass another owner's sealed envelope on."""
        self._call("PUT", "/v1/envelopes", envelope.canonical())

    def put_blob(self, data: bytes) -> str:
        """Upload bytes; returns their sha256."""
        digest = hashlib.sha256(data).hexdigest()
        self._call("PUT", f"/v1/blobs/{digest}", data)
        return digest

    def get_blob(self, digest: str) -> bytes:
        """Download bytes by sha256. Raises: DigestMismatch when other bytes arrive."""
        data = self._call("GET", f"/v1/blobs/{digest}").content
        if hashlib.sha256(data).hexdigest() != digest:
            raise DigestMismatch(f"{self.owner} sent bytes that are not blob {digest[:16]}…")
        return data

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _call(self, method: str, path: str, body: bytes | None = None) -> httpx.Response:
        path = "/fl" + path
        try:
            answer = self._http.request(method, path, content=body, headers=self._signed(method, path))
        except httpx.HTTPError as problem:
            told = f"the datasite of {self.owner} at {self._http.base_url} does not answer ({type(problem).__name__})"
            raise ConnectionFailed(f"{told}; is it running?") from None
        self.bytes_sent += len(body or b"")
        self.bytes_received += len(answer.content)
        if answer.is_success:
            return answer
        try:
            wire = answer.json()
        except ValueError:
            wire = None
        if not isinstance(wire, dict) or "error" not in wire:
            raise ConnectionFailed(f"the datasite of {self.owner} answered {answer.status_code} without a reason")
        raise from_wire(wire)

    def _signed(self, method: str, path: str) -> dict[str, str]:
        now, nonce = int(time.time()), secrets.token_hex(16)
        signature = self._key.sign(channel_payload(method, path, now, nonce)).hex()
        return {"X-FL-Key": public_hex(self._key), "X-FL-Time": str(now), "X-FL-Nonce": nonce, "X-FL-Signature": signature}

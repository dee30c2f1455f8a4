"""The scientist's end of the channel beside Syft: blobs by sha256, public keys, and signed statements of one owner."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_privacy.errors import ConnectionFailed, DigestMismatch, FlPrivacyError, from_wire
from fl_privacy.messages import CloseRequest, CorpusCard, RevealRequest, Signed, channel_payload, public_hex

CHUNK_BYTES = 1 << 20


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

    def registry(self) -> bytes:
        """The owner's ``RegistryState`` as JSON: the registry that it signed, and whose signatures and which keys it holds."""
        return self._call("GET", "/v1/registry").content

    def put_registry(self, signed: Signed) -> None:
        """Pass another owner's signature of the registry on."""
        self._call("PUT", "/v1/registry", signed.canonical())

    def ledger(self) -> Signed:
        """The owner's signed LedgerStatement."""
        return Signed.model_validate(self._call("GET", "/v1/ledger").json())

    def envelopes(self) -> list[Signed]:
        """The sealed key envelopes that this owner offers to the others."""
        return [Signed.model_validate(envelope) for envelope in self._call("GET", "/v1/envelopes").json()]

    def put_envelope(self, envelope: Signed) -> bool:
        """Pass another owner's sealed envelope on; False when this owner's policy has no use for a key of that scheme."""
        return bool(self._call("PUT", "/v1/envelopes", envelope.canonical()).json()["accepted"])

    def close_order(self, request: CloseRequest) -> Signed:
        """Ask the owner to sign the survivor list of an order; returns a signed SurvivorList."""
        return Signed.parse(self._call("POST", "/v1/closings", request.canonical()).content)

    def reveal_self_mask(self, request: RevealRequest) -> Signed:
        """Ask the owner for its self-mask of an order that all have closed; returns a signed SelfMaskReveal."""
        return Signed.parse(self._call("POST", "/v1/reveals", request.canonical()).content)

    def put_blob(self, data: bytes) -> str:
        """Upload bytes; returns their sha256."""
        digest = hashlib.sha256(data).hexdigest()
        self._call("PUT", f"/v1/blobs/{digest}", data)
        return digest

    def holds(self, digest: str) -> bool:
        """Whether the owner still has what this key uploaded under this sha256, so that it need not come again."""
        return bool(self._call("GET", f"/v1/uploads/{digest}").json()["held"])

    def put_model(self, digest: str, base: str, step: str) -> None:
        """Have the owner make a model of an earlier one and a step that it holds, all by sha256; see ``compression.steps``.

        Raises: BlobMissing, TooLarge: it can only be uploaded whole. DigestMismatch: it came out as another one.
        """
        self._call("PUT", f"/v1/models/{digest}/{base}/{step}")

    def put_file(self, digest: str, path: Path) -> None:
        """Upload the file whose sha256 is ``digest``, in pieces."""
        with path.open("rb") as file:
            self._call("PUT", f"/v1/blobs/{digest}", file)
        self.bytes_sent += path.stat().st_size

    def fetch_blob(self, digest: str, path: Path) -> None:
        """Download a blob into a file, in pieces; what is there is replaced once all bytes are right.

        Raises: DigestMismatch when other bytes arrive.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        partial, hashed = path.with_name(path.name + ".partial"), hashlib.sha256()
        try:
            with self._answer("GET", f"/v1/blobs/{digest}") as answer, partial.open("wb") as file:
                for chunk in answer.iter_bytes(CHUNK_BYTES):
                    hashed.update(chunk)
                    file.write(chunk)
                    self.bytes_received += len(chunk)
            if hashed.hexdigest() != digest:
                raise DigestMismatch(f"{self.owner} sent bytes that are not blob {digest[:16]}…")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _call(self, method: str, path: str, body: bytes | BinaryIO | None = None) -> httpx.Response:
        with self._answer(method, path, body) as answer:
            self.bytes_received += len(answer.read())
        self.bytes_sent += len(body) if isinstance(body, bytes) else 0
        return answer

    @contextmanager
    def _answer(self, method: str, path: str, body: bytes | BinaryIO | None = None) -> Iterator[httpx.Response]:
        """An answer of success whose body is still to be read. Raises: ConnectionFailed, or what the owner's side raised."""
        path = "/fl" + path
        try:
            with self._http.stream(method, path, content=body, headers=self._signed(method, path)) as answer:
                if not answer.is_success:
                    answer.read()
                    raise self._refusal(answer)
                yield answer
        except httpx.HTTPError as problem:
            told = f"the datasite of {self.owner} at {self._http.base_url} does not answer ({type(problem).__name__})"
            raise ConnectionFailed(f"{told}; is it running?") from None

    def _refusal(self, answer: httpx.Response) -> FlPrivacyError:
        try:
            wire = answer.json()
        except ValueError:
            wire = None
        if not isinstance(wire, dict) or "error" not in wire:
            return ConnectionFailed(f"the datasite of {self.owner} answered {answer.status_code} without a reason")
        return from_wire(wire)

    def _signed(self, method: str, path: str) -> dict[str, str]:
        now, nonce = int(time.time()), secrets.token_hex(16)
        signature = self._key.sign(channel_payload(method, path, now, nonce)).hex()
        return {"X-FL-Key": public_hex(self._key), "X-FL-Time": str(now), "X-FL-Nonce": nonce, "X-FL-Signature": signature}

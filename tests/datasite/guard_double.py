"""A guard that keeps its wire contract and nothing more, and small values to send to it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from fl_privacy.errors import BlobMissing, BudgetExceeded, FlPrivacyError, MessageError, NotApproved, OrderRefused, to_wire
from fl_privacy.messages import CloseRequest, RevealRequest, Signed, sign
from fl_privacy.model_spec import ModelSpec
from fl_privacy.plan import TrainingPlan
from fl_privacy.round_order import RoundOrder

STEPS = 4


class GuardDouble:
    """The guard's front routes over plain dictionaries; an order makes one step each time somebody looks."""

    def __init__(self) -> None:
        self.approved: set[str] = set()
        self.orders: dict[str, int] = {}
        self.blobs: dict[str, bytes] = {}
        self.uploaders: dict[str, str] = {}
        self.key = Ed25519PrivateKey.generate()
        self.broke: set[str] = set()  # digests of orders that fail after two steps
        self.stuck: set[str] = set()  # digests of orders that never end

    def state(self, digest: str) -> dict[str, Any]:
        step = self.orders[digest]
        if digest not in self.stuck:
            self.orders[digest] = min(step + 1, STEPS)
        answer = {"digest": digest, "state": "training", "step": step, "steps": STEPS, "receipt": None, "error": None}
        if digest in self.broke and step >= 2:
            return answer | {"state": "failed", "error": to_wire(BudgetExceeded("epsilon 8.1 is more than 8.0"))}
        if step >= STEPS:
            return answer | {"state": "sealed", "receipt": sign(an_order(), self.key).model_dump(mode="json")}
        return answer

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.exception_handler(FlPrivacyError)
        def refuse(_: Request, error: FlPrivacyError) -> JSONResponse:
            return JSONResponse(to_wire(error), 409)

        @app.get("/v1/info")
        def info() -> dict[str, str]:
            return {"owner": "alba"}

        @app.get("/v1/code/{sha256}")
        def code(sha256: str) -> dict[str, bool]:
            if sha256 not in self.approved:
                raise NotApproved("the guard did not approve this code")
            return {"approved": True}

        @app.post("/v1/orders")
        def place(order: Signed) -> dict[str, Any]:
            digest = RoundOrder.parse(order.body).digest()
            self.orders.setdefault(digest, 0)
            return self.state(digest)

        @app.get("/v1/orders/{digest}")
        def order_state(digest: str) -> dict[str, Any]:
            return self.state(digest)

        @app.post("/v1/closings")
        def close(request: CloseRequest) -> Signed:
            return sign(request, self.key)

        @app.post("/v1/reveals")
        def reveal(request: RevealRequest) -> Signed:
            raise OrderRefused(f"nothing to reveal for {request.total[:4]}")

        @app.post("/v1/openings/{sha256}")
        def open_sum(sha256: str) -> Signed:
            raise OrderRefused(f"nothing to open for {sha256[:4]}")

        @app.put("/v1/blobs/{sha256}")
        async def put_blob(sha256: str, request: Request) -> dict[str, int]:
            body = b"".join([chunk async for chunk in request.stream()])
            if hashlib.sha256(body).hexdigest() != sha256:
                raise MessageError("other bytes")
            self.blobs[sha256], self.uploaders[sha256] = body, request.headers["x-fl-key"]
            return {"bytes": len(body)}

        @app.get("/v1/uploads/{sha256}")
        def holds(sha256: str, request: Request) -> dict[str, bool]:
            return {"held": self.uploaders.get(sha256) == request.headers["x-fl-key"]}

        @app.put("/v1/models/{sha256}/{base}/{step}")
        def compose(sha256: str, base: str, step: str, request: Request) -> dict[str, bool]:
            if not {base, step} <= self.blobs.keys():
                raise BlobMissing("has not been uploaded")
            self.blobs[sha256], self.uploaders[sha256] = self.blobs[base] + self.blobs[step], request.headers["x-fl-key"]
            return {"held": True}

        @app.get("/v1/blobs/{sha256}")
        def get_blob(sha256: str) -> Response:
            if sha256 not in self.blobs:
                raise MessageError("no such blob")
            return Response(self.blobs[sha256], media_type="application/octet-stream")

        return app


@contextlib.contextmanager
def serve(app: FastAPI, **where: Any) -> Iterator[uvicorn.Server]:
    """Run an application in a thread until the block ends."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", **where))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield server
    finally:
        server.should_exit = True
        thread.join()


def a_plan(name: str = "a-plan") -> TrainingPlan:
    architecture = json.dumps({"model_type": "bert", "num_hidden_layers": 2, "max_position_embeddings": 512})
    model = ModelSpec(source="none", architecture=architecture, vocabulary="1" * 64, weights="2" * 64)
    return TrainingPlan.create(name=name, purpose="nothing but this test", model=model, owners=("alba", "berg", "cove"))


def an_order(attempt: int = 0) -> RoundOrder:
    return RoundOrder.model_validate(
        {
            "plan": "1" * 64,
            "code": "2" * 64,
            "registry": "3" * 64,
            "key": "5" * 64,
            "round": 0,
            "attempt": attempt,
            "model": "4" * 64,
            "tensors": [{"name": "w", "shape": [3]}],
            "cohort": ["alba", "berg", "cove"],
            "weights": [1, 1, 1],
            "encoding": {
                "scheme": "bfv",
                "value_range": 1.0,
                "value_bits": 8,
                "field_bits": 12,
                "fields_per_coefficient": 2,
                "modulus_bits": 40,
            },
        }
    )

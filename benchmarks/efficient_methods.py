"""The methods that the benchmark of efficient training compares: what their plans say, and what was published of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

Task = Literal["mlm", "classification"]
Fields = Callable[[int], Mapping[str, Any]]  # of a plan, for a model with so many encoder layers

RANDOM_TENTH = {"sent": "random", "sent_share": 0.1, "error_feedback": True}
RANDOM_QUARTER = RANDOM_TENTH | {"sent_share": 0.25}


class Published(NamedTuple):
    """Shares of full FedAvg's cost, as published; None where nothing was. ``why`` is shown where ours is larger."""

    compute: float | None
    traffic: float | None
    compute_why: str = ""
    traffic_why: str = ""
    traffic_bits: Literal[8, 32] = 32  # of a parameter, in the figure


class Method(NamedTuple):
    """One way to train, as the cost part runs it; ``rounds`` are those of the schedule over which costs are averaged."""

    title: str
    task: Task
    fields: Fields
    rounds: int = 1
    published: Published | None = None


METHODS: dict[str, Method] = {
    "full-mlm": Method("full FedAvg, language model", "mlm", lambda layers: {}),
    "fedbt-1": Method(
        "FedBT stage 1",
        "mlm",
        lambda layers: {"layer_schedule": "fedbt", "local_depths": (layers // 2,)},
        rounds=10,
        published=Published(
            0.3431,
            0.0704,
            traffic_why="differently counted: of a vocabulary of 30,522, whose whole model is 438.1 MB; the layer and the head"
            " that travel are as large",
        ),
    ),
    "full": Method("full FedAvg, classes", "classification", lambda layers: {}),
    "full-random": Method("full FedAvg, a random tenth sent", "classification", lambda layers: RANDOM_TENTH),
    "full-quarter": Method("full FedAvg, a random quarter sent", "classification", lambda layers: RANDOM_QUARTER),
    "lora": Method("LoRA r = 8", "classification", lambda layers: {"trainable": "lora"}),
    "ffa-lora": Method("FFA-LoRA r = 8", "classification", lambda layers: {"trainable": "ffa-lora"}),
    "fedbt-2": Method(
        "FedBT stage 2",
        "classification",
        lambda layers: {"layer_schedule": "fedbt"},
        rounds=10,
        published=Published(
            0.4826,
            0.2019,
            compute_why="differently counted: it fits 12 passes forward, 3.1 for weights and 2.1 back, of 36 (47.8 %); the"
            " lowest trained layer also passes gradients back within itself, three quarters of a pass",
            traffic_why="differently counted: of a vocabulary of 30,522 and without the pooler, which we train and send:"
            " 87.9 of 435.6 MB; the layers that travel are the same",
        ),
    ),
    "progfed": Method(
        "ProgFed",
        "classification",
        lambda layers: {"layer_schedule": "progfed"},
        rounds=24,
        published=Published(
            0.80,
            0.37,
            compute_why="published as up to 20 %; its schedule on layers that all cost the same gives 81.25 %",
            traffic_why="published for CNNs and a U-net; BERT's layers are alike and its embeddings travel in every round",
        ),
    ),
    "split": Method(
        "FedSplitBERT, 8 bit",
        "classification",
        lambda layers: {
            "trainable": f"layers:0-{layers - 1}",
            "local_layers": f"{layers // 3}-{layers - 1}",
            "downlink_bits": 8,
        },
        published=Published(None, 1 / 11.9, traffic_bits=8),
    ),
}
BASELINE: dict[Task, str] = {"mlm": "full-mlm", "classification": "full"}

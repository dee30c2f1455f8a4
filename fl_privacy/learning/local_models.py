"""The small models of FedBT and ProgFed: a plan's architecture with fewer layers, filled with copies of the global ones.

Tensors keep their names: local layer i is called i wherever it is copied from. So an update needs no renaming as long as it
holds only layers that are copies of themselves, which is so for all that a schedule trains (``layer_schedules``).
"""

from __future__ import annotations

from collections.abc import Sequence

from fl_privacy.errors import ModelError
from fl_privacy.learning.adapters import named_tensors
from fl_privacy.learning.families import FAMILIES
from fl_privacy.learning.models import outline
from fl_privacy.model_spec import ModelSpec
from fl_privacy.parameters import Parameters


def local_parameters(spec: ModelSpec, parameters: Parameters, sources: Sequence[int]) -> Parameters:
    """The tensors of a model with other layers, or another head, copied out of the whole global parameters.

    Args: spec is that of the model asked for (``ModelSpec.with_layers``, ``ModelSpec.language_model``), which has one head;
        sources says of which global layer each of its layers is a copy. Embeddings and the head are copied as they are; tensors
        of other layers, of another head and of adapters are left out.
    Raises: ModelError when there is not one source for each layer, when a tensor is missing, and for an ALBERT, whose layers
        are one set of weights.
    """
    prefix = FAMILIES[spec.config["model_type"]].layers
    if not prefix:
        raise ModelError(f"model {spec.source!r}: the layers of an ALBERT are one set of weights, none can be left out")
    if len(sources) != spec.num_layers:
        raise ModelError(f"a model of {spec.num_layers} layers needs as many layers to copy, not {len(sources)}")
    origin = {name: _origin(name, prefix, sources) for name in named_tensors(outline(spec))}
    if missing := sorted(set(origin.values()) - parameters.keys()):
        raise ModelError(f"tensor {missing[0]!r} is missing")
    return {name: parameters[source].copy() for name, source in origin.items()}


def _origin(name: str, prefix: str, sources: Sequence[int]) -> str:
    """Where a local tensor is copied from: the tensor of the same name, but for layers."""
    if not name.startswith(prefix):
        return name
    index, _, rest = name.removeprefix(prefix).partition(".")
    return f"{prefix}{sources[int(index)]}.{rest}"

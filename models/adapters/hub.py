"""The systems with `save_pretrained`, `from_pretrained` and `push_to_hub`: the extra `hub`.

    from strnn_models.adapters import hub
    hub.STRNN(num_classes=3).save_pretrained("folder")
    model = hub.STRNN.from_pretrained("folder")

Each is the system itself: its options, by keyword, go into config.json, its weights into
model.safetensors. A topology is kept as its cells or predecessors; a frame CNN is given as a dict
of `FrameCNN`'s arguments. What config.json cannot hold is refused, and so are weights that do not
fit and pickled ones.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
import strnn_models
from huggingface_hub import PyTorchModelHubMixin
from strnn_models.adapters import eeg
from strnn_models.layers.backbone import FrameCNN

import strnn_kernels as sk
from strnn_kernels.topology import NEIGHBOURHOODS


class OnHub(PyTorchModelHubMixin):
    """What the systems below have besides their own: methods of huggingface_hub's mixin.

    Args:
        options: of the system.

    Raises:
        ArgumentError: an option cannot be written into config.json.
    """

    def __init__(self, **options: Any) -> None:
        known = inspect.signature(super().__init__).parameters.values()
        # With the defaults, which another version may have others of.
        options = {p.name: p.default for p in known if p.default is not p.empty} | options
        kept = {name: self._written(name, value) for name, value in options.items()}
        super().__init__(**{name: _read(value) for name, value in kept.items()})
        self._hub_mixin_config = kept

    def _written(self, name: str, value: Any) -> Any:
        if isinstance(value, sk.Topology):
            return _write_topology(value)
        if isinstance(value, np.ndarray):
            value = value.tolist()
        try:
            json.dumps(value)
        except TypeError:
            raise sk.ArgumentError(
                f"hub.{type(self).__name__}: {name} must be numbers, text, lists, dicts or a "
                f"Topology, got {type(value).__name__}: config.json cannot hold it"
            ) from None
        return value

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **options: Any) -> Any:
        return super()._from_pretrained(strict=strict, **options)

    @classmethod
    def _load_as_pickle(cls, *_: Any) -> NoReturn:
        raise sk.ArgumentError(f"hub.{cls.__name__}: there is no model.safetensors")


def _write_topology(topology: sk.Topology) -> dict[str, Any]:
    for neighbourhood in NEIGHBOURHOODS if topology.positions is not None else ():
        kept = {
            "cells": np.asarray(topology.positions).tolist(),
            "names": topology.names and list(topology.names),  # a dict would come back sorted
            "neighbourhood": neighbourhood,
        }
        if _read(kept) == topology:
            return kept
    D, N = topology.num_directions, topology.num_nodes
    return {"dag": [[topology.predecessors(d, n) for n in range(N)] for d in range(D)]}


def _read(value: Any) -> Any:
    """The option that was written: of a dict, the topology or the frame CNN that it describes."""
    if not isinstance(value, Mapping):
        return value
    if "dag" in value:
        return sk.Topology.dag(value["dag"])
    if "cells" in value:
        cells, names = value["cells"], value["names"]
        where = cells if names is None else dict(zip(names, cells, strict=True))
        return sk.Topology.cells(where, neighbourhood=value["neighbourhood"])
    return FrameCNN(**value)


class STRNN(OnHub, strnn_models.STRNN):
    """`strnn_models.STRNN`."""


class RawSTRNN(OnHub, eeg.RawSTRNN):
    """`strnn_models.adapters.eeg.RawSTRNN`."""


class CNNIRNN(OnHub, strnn_models.CNNIRNN):
    """`strnn_models.CNNIRNN`."""


class CategoricalDimensional(OnHub, strnn_models.CategoricalDimensional):
    """`strnn_models.CategoricalDimensional`."""


class AttentionPooling(OnHub, strnn_models.AttentionPooling):
    """`strnn_models.AttentionPooling`."""


class CNNLSTM(OnHub, strnn_models.CNNLSTM):
    """`strnn_models.CNNLSTM`."""


class InflatedCNN(OnHub, strnn_models.InflatedCNN):
    """`strnn_models.InflatedCNN`."""

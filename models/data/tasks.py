"""Tasks: a data set, split and shaped for training, by name.

A task is made by a function with the decorator `register`; its keyword arguments are the
`task_options` of a run. The same options and seed give the same task on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from strnn_models.common.options import check_options
from strnn_models.data.records import Skip
from torch import Tensor
from torch.utils.data import Dataset

import strnn_kernels as sk

#: what is predicted -> what an item has besides x
KINDS = {
    "classes": "y (), the class of a clip",
    "frames": "label (T,), the class of each frame, -1 where it has none",
    "traces": "y (T, V), numbers such as valence and arousal, and valid (T,), where they count",
    "both": "label, y and valid",
    "units": "y (T, V), 0 or 1 for each action unit, and valid (T,)",
}
# Windows of a video also have video (), its number, and start (), the number of its first frame.


@dataclass
class Task:
    """What a model is trained on, and what the report must say about it.

    Attributes:
        name: in the registry.
        about: what the data are, in a sentence that the report repeats.
        train: items, dicts of tensors: "x" (T, ...) and what `KINDS` says; see `collate`.
        valid: for early stopping and for choosing the best epoch; None: there is none.
        test: looked at once, at the end.
        channels: features of an electrode, or channels of an image.
        sample_length: the most slices or frames of an item.
        kind: what is predicted, see `KINDS`.
        classes: names of the K classes; empty where none are predicted.
        traces: names of the V traces, or action units, of each frame; likewise.
        topology: of the electrodes; None for images.
        size: (rows, cols) of an image; None for electrodes.
        truth: share of the signal's power that the simulation put at each electrode, (N,).
        skipped: records that were left out.
    """

    name: str
    about: str
    train: Dataset
    valid: Dataset | None
    test: Dataset
    channels: int
    sample_length: int
    kind: str = "classes"
    classes: tuple[str, ...] = ()
    traces: tuple[str, ...] = ()
    topology: sk.Topology | None = None
    size: tuple[int, int] | None = None
    truth: np.ndarray | None = None
    skipped: list[Skip] = field(default_factory=list)


_COUNTS = ("length", "num", "num_train", "num_test", "num_trials", "num_frames", "seconds")
#: Options of the same name mean the same in all tasks: the range of each.
_RANGES = {
    **dict.fromkeys((*_COUNTS, "sample_length", "stride", "size"), (1, math.inf)),
    **dict.fromkeys(("seed", "split_seed"), (0, 2**32 - 1)),
    **dict.fromkeys(("valid_size", "test_size"), (0, 1)),
    **dict.fromkeys(("fps", "strength"), (1e-3, 1e6)),
}
_TASKS: dict[str, Callable[..., Task]] = {}


def register(name: str) -> Callable[[Callable[..., Task]], Callable[..., Task]]:
    """Decorator: makes a function from options to a `Task` known under a name."""

    def add(make: Callable[..., Task]) -> Callable[..., Task]:
        _TASKS[name] = make
        return make

    return add


def names() -> list[str]:
    """The tasks there are."""
    _load()
    return sorted(_TASKS)


def make(name: str, **options: Any) -> Task:
    """The task of that name.

    Raises:
        ValueError: there is no such task, it has no such option or lacks one, or too few data.
        DataError: its files are not as they must be.
    """
    _load()
    if name not in _TASKS:
        raise ValueError(f"task must be one of {', '.join(names())}, got {name!r}")
    check_options("task", name, options, _TASKS[name])
    for option, value in options.items():
        low, high = _RANGES.get(option, (-math.inf, math.inf))
        if isinstance(value, int | float) and not low <= value <= high:
            raise ValueError(f"task {name}: {option} must be in {low:g}..{high:g}, got {value}")
    task = _TASKS[name](**options)
    for part in ("train", "test"):
        if not len(getattr(task, part)):
            raise ValueError(f"task {name}: nothing is left for the {part} part")
    if task.valid is not None and not len(task.valid):
        task.valid = None
    return task


def collate(items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch; shorter clips are padded at the end, see `pad`, and `lengths` (B,) says where."""
    lengths = [len(item["x"]) for item in items]
    longest = max(lengths)
    batch = {key: torch.stack([pad(key, item[key], longest) for item in items]) for key in items[0]}
    return batch if len(set(lengths)) == 1 else batch | {"lengths": torch.tensor(lengths)}


def pad(name: str, x: Tensor, length: int) -> Tensor:
    """X (T, ...) with zeros, or labels with -1, up to `length` steps; a scalar as it is."""
    if x.ndim == 0 or len(x) == length:
        return x
    widths = [0, 0] * (x.ndim - 1) + [0, length - len(x)]
    return torch.nn.functional.pad(x, widths, value=-1 if name == "label" else 0)


def _load() -> None:
    """The modules that register the other tasks; here, because they import this one."""
    from strnn_models.data import digits, emotion_tasks, photographs, simulated

    _ = digits, emotion_tasks, photographs, simulated

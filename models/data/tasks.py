"""Tasks: a data set, split and shaped for training, by name.

A task is made by a function with the decorator `register`; its keyword arguments are the
`task_options` of a run. The same options and seed give the same task on every machine.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from strnn_models.data.records import Skip
from torch import Tensor
from torch.utils.data import Dataset

import strnn_kernels as sk


@dataclass
class Task:
    """What a model is trained on, and what the report must say about it.

    Attributes:
        name: in the registry.
        about: what the data are, in a sentence that the report repeats.
        train: items {"x": (T, ...), "y": ...}; see `collate`.
        valid: for early stopping and for choosing the best epoch; None: there is none.
        test: looked at once, at the end.
        classes: names of the classes; empty for traces.
        traces: names of the two traces where there are no classes.
        channels: features of an electrode, or channels of an image.
        sample_length: the most slices or frames of an item.
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
    classes: tuple[str, ...]
    channels: int
    sample_length: int
    traces: tuple[str, str] = ("valence", "arousal")
    topology: sk.Topology | None = None
    size: tuple[int, int] | None = None
    truth: np.ndarray | None = None
    skipped: list[Skip] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """What is predicted: "classes", or two "traces" over time."""
        return "classes" if self.classes else "traces"


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
        ValueError: there is no such task, or it has no such option or lacks one.
        DataError: its files are not as they must be.
    """
    _load()
    if name not in _TASKS:
        raise ValueError(f"task must be one of {', '.join(names())}, got {name!r}")
    known = inspect.signature(_TASKS[name]).parameters
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, 1) or sorted(known)
            raise ValueError(f"task {name} has no option {option!r}; it has {', '.join(near)}")
    missing = [k for k, p in known.items() if p.default is p.empty and k not in options]
    if missing:
        raise ValueError(f"task {name} needs task_options.{missing[0]}=...")
    return _TASKS[name](**options)


def collate(items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch; shorter clips are padded with zeros at the end, and `lengths` (B,) says where."""
    lengths = [len(item["x"]) for item in items]
    if len(set(lengths)) == 1:
        return {key: torch.stack([item[key] for item in items]) for key in items[0]}
    batch = {key: torch.stack([pad(item[key], max(lengths)) for item in items]) for key in items[0]}
    return batch | {"lengths": torch.tensor(lengths)}


def pad(x: Tensor, length: int) -> Tensor:
    """X (T, ...) with zeros up to `length` steps; a scalar as it is."""
    if x.ndim == 0 or len(x) == length:
        return x
    return torch.nn.functional.pad(x, [0, 0] * (x.ndim - 1) + [0, length - len(x)])


def _load() -> None:
    """The modules that register the other tasks; here, because they import this one."""
    from strnn_models.data import digits, emotion_tasks, simulated

    _ = digits, emotion_tasks, simulated

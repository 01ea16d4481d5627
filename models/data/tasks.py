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
from torch.utils.data import Dataset, TensorDataset

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
        classes: names of the classes; empty for valence and arousal.
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
    topology: sk.Topology | None = None
    size: tuple[int, int] | None = None
    truth: np.ndarray | None = None
    skipped: list[Skip] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """What is predicted: "classes", or "traces" of valence and arousal."""
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
    batch = {key: torch.stack([item[key] for item in items]) for key in items[0] if key != "x"}
    xs = [item["x"] for item in items]
    lengths = [len(x) for x in xs]
    if len(set(lengths)) > 1:
        batch["lengths"] = torch.tensor(lengths)
        xs = [
            torch.nn.functional.pad(x, [0, 0] * (x.ndim - 1) + [0, max(lengths) - len(x)])
            for x in xs
        ]
    batch["x"] = torch.stack(xs)
    return batch


class Arrays(Dataset):
    """Items from tensors x (n, T, ...) and y (n,)."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.data = TensorDataset(x, y)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x, y = self.data[index]
        return {"x": x, "y": y}


@register("digits")
def digits(seed: int = 0, num: int | None = None) -> Task:
    """Scikit-learn's 1797 handwritten digits, 8 x 8: 60 % training, 20 % validation, 20 % test.

    Args:
        seed: of the split.
        num: how many of them; None: all.
    """
    images, labels, parts = _digits(seed, num)
    train, valid, test = (Arrays(images[part][:, None], labels[part]) for part in parts)
    return Task(
        "digits",
        "real images of handwritten digits (scikit-learn load_digits), not emotion data",
        train,
        valid,
        test,
        tuple("0123456789"),
        channels=1,
        sample_length=1,
        size=(8, 8),
    )


@register("digit_sequences")
def digit_sequences(
    seed: int = 0, length: int = 5, num_train: int = 3000, num_test: int = 600
) -> Task:
    """Sequences of real digit images that count up, count down or stay, modulo 10.

    To tell them apart a model must read the digits and their order. No image is in two of the
    three parts.

    Args:
        seed: of the split and the sequences.
        length: T.
        num_train: sequences to train on.
        num_test: sequences to validate on, and as many to test on.
    """
    images, labels, parts = _digits(seed, None)
    random = np.random.default_rng(seed + 1)

    def sequences(part: np.ndarray, num: int) -> Arrays:
        of_digit = [part[labels[part].numpy() == d] for d in range(10)]
        y = np.arange(num) % 3
        first = random.integers(0, 10, num)
        step = np.array([1, -1, 0])[y]
        shown = (first[:, None] + step[:, None] * np.arange(length)) % 10
        chosen = [[random.choice(of_digit[d]) for d in row] for row in shown]
        return Arrays(images[torch.tensor(np.array(chosen))], torch.tensor(y))

    train, valid, test = (
        sequences(part, num)
        for part, num in zip(parts, (num_train, num_test, num_test), strict=True)
    )
    return Task(
        "digit_sequences",
        "sequences of real images of handwritten digits (scikit-learn load_digits) with a "
        "constructed label, not emotion data",
        train,
        valid,
        test,
        ("up", "down", "same"),
        channels=1,
        sample_length=length,
        size=(8, 8),
    )


def _digits(seed: int, num: int | None) -> tuple[Tensor, Tensor, list[np.ndarray]]:
    """Images (n, 1, 8, 8) in 0..1, labels (n,), and the numbers of the three parts."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images.astype(np.float32) / 16)[:, None]
    order = np.random.default_rng(seed).permutation(len(images))[:num]
    return (
        images,
        torch.from_numpy(data.target.astype(np.int64)),
        np.split(order, [int(0.6 * len(order)), int(0.8 * len(order))]),
    )


def _load() -> None:
    """The modules that register the other tasks; here, because they import this one."""
    from strnn_models.data import emotion_tasks, simulated

    _ = emotion_tasks, simulated

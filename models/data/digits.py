"""Tasks from scikit-learn's handwritten digits: real images that every installation has."""

from __future__ import annotations

import numpy as np
import torch
from strnn_models.data.tasks import Task, register
from torch import Tensor
from torch.utils.data import Dataset


class Arrays(Dataset):
    """Items from tensors by name, x (n, T, ...) and y (n, ...) among them."""

    def __init__(self, **tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors["x"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: tensor[index] for name, tensor in self.tensors.items()}


@register("digits")
def digits(seed: int = 0, num: int | None = None) -> Task:
    """Scikit-learn's 1797 handwritten digits, 8 x 8: 60 % training, 20 % validation, 20 % test.

    Args:
        seed: of the split.
        num: how many of them; None: all.
    """
    images, labels, parts = _digits(seed, num)
    train, valid, test = (Arrays(x=images[part][:, None], y=labels[part]) for part in parts)
    return Task(
        "digits",
        "real images of handwritten digits (scikit-learn load_digits), not emotion data",
        train,
        valid,
        test,
        channels=1,
        sample_length=1,
        classes=tuple("0123456789"),
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
        y = np.arange(num) % 3
        first = random.integers(0, 10, num)
        step = np.array([1, -1, 0])[y]
        shown = (first[:, None] + step[:, None] * np.arange(length)) % 10
        return Arrays(x=_show(random, images, labels, part, shown), y=torch.tensor(y))

    sizes = (num_train, num_test, num_test)
    return Task(
        "digit_sequences",
        "sequences of real images of handwritten digits (scikit-learn load_digits) with a "
        "constructed label, not emotion data",
        *(sequences(part, num) for part, num in zip(parts, sizes, strict=True)),
        channels=1,
        sample_length=length,
        classes=("up", "down", "same"),
        size=(8, 8),
    )


@register("digit_spotting")
def digit_spotting(
    seed: int = 0, length: int = 8, num_train: int = 3000, num_test: int = 600
) -> Task:
    """Sequences of real digit images, even but for one, and the class is that odd digit.

    One frame matters, none follows from another: what pooling over time is for. `at` of an item is
    its number. No image is in two of the three parts.

    Args:
        seed: of the split and the sequences.
        length: T.
        num_train: sequences to train on.
        num_test: sequences to validate on, and as many to test on.
    """
    images, labels, parts = _digits(seed, None)
    random = np.random.default_rng(seed + 3)

    def sequences(part: np.ndarray, num: int) -> Arrays:
        y = np.arange(num) % 5
        shown = 2 * random.integers(0, 5, (num, length))
        at = random.integers(0, length, num)
        shown[np.arange(num), at] = 2 * y + 1
        x = _show(random, images, labels, part, shown)
        return Arrays(x=x, y=torch.tensor(y), at=torch.from_numpy(at))

    sizes = (num_train, num_test, num_test)
    return Task(
        "digit_spotting",
        "sequences of real images of handwritten digits (scikit-learn load_digits) with a "
        "constructed label, not emotion data",
        *(sequences(part, num) for part, num in zip(parts, sizes, strict=True)),
        channels=1,
        sample_length=length,
        classes=tuple("13579"),
        size=(8, 8),
    )


@register("digit_traces")
def digit_traces(
    seed: int = 0,
    length: int = 16,
    num_train: int = 1200,
    num_test: int = 200,
    predict: str = "traces",
) -> Task:
    """Sequences of real digit images with two traces: the digit, and the last step up or down.

    The digits wander at random, by at most 3 at a time. The first trace can be read off a frame,
    the second needs memory; both are scaled to -1..1. They stand in for valence and arousal. Where
    each digit lies in their plane is known: at (digit / 4.5 - 1, its mean step).

    Args:
        seed: of the split and the sequences.
        length: T.
        num_train: sequences to train on.
        num_test: sequences to validate on, and as many to test on.
        predict: "traces"; "frames", the digit of each frame as its class; or "both".
    """
    if predict not in ("traces", "frames", "both"):
        raise ValueError(
            f"task digit_traces: predict must be traces, frames or both, got {predict!r}"
        )
    images, labels, parts = _digits(seed, None)
    random = np.random.default_rng(seed + 2)

    def sequences(part: np.ndarray, num: int) -> Arrays:
        shown = [random.integers(0, 10, num)]
        for _ in range(length - 1):
            shown.append(np.clip(shown[-1] + random.integers(-3, 4, num), 0, 9))
        shown = np.stack(shown, axis=1)
        step = np.diff(shown, axis=1, prepend=shown[:, :1])
        y = np.stack([shown / 4.5 - 1, step / 3], axis=2).astype(np.float32)
        digits_of = {"label": torch.from_numpy(shown)}
        traces_of = {"y": torch.from_numpy(y), "valid": torch.ones(num, length, dtype=torch.bool)}
        return Arrays(
            x=_show(random, images, labels, part, shown),
            video=torch.arange(num),
            start=torch.zeros(num, dtype=torch.int64),
            **({} if predict == "frames" else traces_of),
            **({} if predict == "traces" else digits_of),
        )

    sizes = (num_train, num_test, num_test)
    return Task(
        "digit_traces",
        "sequences of real images of handwritten digits (scikit-learn load_digits) with "
        "constructed traces, not emotion data",
        *(sequences(part, num) for part, num in zip(parts, sizes, strict=True)),
        channels=1,
        sample_length=length,
        kind=predict,
        classes=() if predict == "traces" else tuple("0123456789"),
        traces=() if predict == "frames" else ("digit", "step"),
        size=(8, 8),
    )


def _show(
    random: np.random.Generator, images: Tensor, labels: Tensor, part: np.ndarray, shown: np.ndarray
) -> Tensor:
    """Images (n, T, 1, 8, 8) of the digits shown (n, T), drawn at random from the part."""
    of_digit = [part[labels[part].numpy() == d] for d in range(10)]
    chosen = [[random.choice(of_digit[d]) for d in row] for row in shown]
    return images[torch.tensor(np.array(chosen))]


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

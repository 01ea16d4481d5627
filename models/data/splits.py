"""Splits that keep a trial, or a subject, on one side; a random one only for those who insist."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from strnn_models.data.windows import Windows

Indices = NDArray[np.int64]


class LeakageWarning(UserWarning):
    """Parts of one recording stand on both sides of a split: the score is inflated."""


def split(
    windows: Windows,
    by: str = "trial",
    *,
    test_size: float = 0.25,
    seed: int = 0,
    allow_leakage: bool = False,
) -> tuple[Indices, Indices]:
    """Indices of the windows for training and for testing.

    Args:
        windows: what to split.
        by: "trial" or "subject": each is on one side entirely; or "random", windows at will.
        test_size: share of trials, subjects or windows to test on.
        seed: of the choice.
        allow_leakage: needed for "random" where windows of one trial could be parted.

    Raises:
        ValueError: unknown `by`, too few groups, or a random split without the flag.
    """
    n, groups = len(windows), windows.groups
    if by == "random":
        _check_random(windows, allow_leakage)
        unit = np.arange(n)
    elif by in groups:
        _, unit = np.unique(groups[by], return_inverse=True)
    else:
        raise ValueError(f"split: by must be one of trial, subject, random, got {by!r}")
    num_units = int(unit.max()) + 1 if n else 0
    if num_units < 2:
        raise ValueError(f"split: needs two or more of {by} to split by, got {num_units}")
    num_test = min(max(1, round(test_size * num_units)), num_units - 1)
    chosen = np.random.default_rng(seed).permutation(num_units)[:num_test]
    is_test = np.isin(unit, chosen)
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def leave_one_subject_out(windows: Windows) -> Iterator[tuple[str, Indices, Indices]]:
    """For each subject: its name, the indices of all others, and its own."""
    subject = windows.groups["subject"]
    names = np.unique(subject)
    if len(names) < 2:
        raise ValueError(f"leave_one_subject_out: needs two or more subjects, got {len(names)}")
    for name in names:
        yield str(name), np.flatnonzero(subject != name), np.flatnonzero(subject == name)


def _check_random(windows: Windows, allow_leakage: bool) -> None:
    same_trial = len(np.unique(windows.starts[:, 0])) < len(windows)
    if not same_trial:
        return
    what = "overlapping windows" if windows.overlap else "windows"
    if not allow_leakage:
        raise ValueError(
            f"split: a random split parts {what} of the same trial, so the test set "
            'leaks into the training set; split by "trial" or "subject", or pass allow_leakage=True'
        )
    warnings.warn(
        f"random split of {what} of the same trial: the test score is inflated by leakage",
        LeakageWarning,
        stacklevel=3,
    )

"""Valence and arousal over time, as SEWA and Aff-Wild2 have them, and windows with frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from strnn_models.data.frames import load_frames
from torch.utils.data import Dataset


@dataclass(frozen=True)
class Trace:
    """Annotations of one video.

    Attributes:
        name: of the video.
        values: valence and arousal, or action units, (T, V) float32; zero where not valid.
        valid: whether there is an annotation (and a frame, once frames are attached), bool (T,).
        labels: class of each step, int64 (T,), -1 where there is none; None without classes.
        classes: their names.
        times: seconds from the start, (T,), or None where the steps are video frames.
        frames: the image of each step, or None; an entry is None where there is no image.
    """

    name: str
    values: NDArray[np.float32]
    valid: NDArray[np.bool_]
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    times: NDArray[np.float64] | None = None
    frames: tuple[Path | None, ...] | None = None


class TraceWindows(Dataset):
    """Windows of T steps of traces with frames, `stride` apart, each within one video.

    An item has x (T, 1 or 3, rows, cols), y (T, V) and valid (T,), label (T,), or all three,
    `video`, the number of its trace, and `start`. Steps without an image are black and not valid.
    The last window of a video ends with it; a video shorter than T is one window.

    Args:
        traces: with frames.
        length: T.
        stride: from window to window, at most T.
        size: (rows, cols) of a frame.
        grey: one channel in place of three.

    Raises:
        ValueError: the stride would leave gaps, the size is not positive, or a trace has no frames.
    """

    def __init__(
        self,
        traces: Sequence[Trace],
        length: int,
        stride: int,
        size: tuple[int, int],
        grey: bool = False,
    ) -> None:
        if not 1 <= stride <= length:
            raise ValueError(f"TraceWindows: stride must be in 1..{length}, got {stride}: no gaps")
        if min(size) < 1:
            raise ValueError(f"TraceWindows: size must be positive, got {size}")
        self.traces, self.length, self.size, self.grey = list(traces), length, size, grey
        self.starts: list[tuple[int, int]] = []
        for k, trace in enumerate(self.traces):
            if trace.frames is None:
                raise ValueError(f"TraceWindows: {trace.name} has no frames")
            last = max(0, len(trace.values) - length)
            self.starts += [(k, start) for start in [*range(0, last, stride), last]]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        k, start = self.starts[index]
        trace, steps = self.traces[k], slice(start, start + self.length)
        frames = trace.frames[steps]
        x = torch.zeros(len(frames), 1 if self.grey else 3, *self.size)
        for t, frame in enumerate(frames):
            if frame is not None:
                x[t] = load_frames([frame], self.size, self.grey)[0]
        item = {"x": x, "video": torch.tensor(k), "start": torch.tensor(start)}
        if trace.values.shape[1]:
            item["y"] = torch.from_numpy(trace.values[steps].copy())
            item["valid"] = torch.from_numpy(trace.valid[steps].copy())
        if trace.labels is not None:
            item["label"] = torch.from_numpy(trace.labels[steps].copy())
        return item

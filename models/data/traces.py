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
        values: valence and arousal, (T, 2) float32; zero where not valid.
        valid: whether there is an annotation (and a frame, once frames are attached), bool (T,).
        times: seconds from the start, (T,), or None where the steps are video frames.
        frames: the image of each step, or None; an entry is None where there is no image.
    """

    name: str
    values: NDArray[np.float32]
    valid: NDArray[np.bool_]
    times: NDArray[np.float64] | None = None
    frames: tuple[Path | None, ...] | None = None


class TraceWindows(Dataset):
    """Windows of T steps of traces with frames; within one video, `stride` apart.

    An item has x (T, 1 or 3, rows, cols), y (T, 2), valid (T,) and `video`, the number of its
    trace. Steps without an image are black and not valid; windows without a valid step are left
    out.

    Args:
        traces: with frames.
        length: T.
        stride: from window to window; the last window of a video ends at its end.
        size: (rows, cols) of a frame.
        grey: one channel in place of three.
    """

    def __init__(
        self,
        traces: Sequence[Trace],
        length: int,
        stride: int,
        size: tuple[int, int],
        grey: bool = False,
    ) -> None:
        self.traces, self.length, self.size, self.grey = list(traces), length, size, grey
        self.starts: list[tuple[int, int]] = []
        for k, trace in enumerate(self.traces):
            if trace.frames is None:
                raise ValueError(f"TraceWindows: {trace.name} has no frames")
            last = len(trace.values) - length
            for start in [*range(0, last, stride), last] if last >= 0 else ():
                if trace.valid[start : start + length].any():
                    self.starts.append((k, start))

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        k, start = self.starts[index]
        trace, steps = self.traces[k], slice(start, start + self.length)
        x = torch.zeros(self.length, 1 if self.grey else 3, *self.size)
        for t, frame in enumerate(trace.frames[steps]):
            if frame is not None:
                x[t] = load_frames([frame], self.size, self.grey)[0]
        return {
            "x": x,
            "y": torch.from_numpy(trace.values[steps].copy()),
            "valid": torch.from_numpy(trace.valid[steps].copy()),
            "video": torch.tensor(k),
            "start": torch.tensor(start),
        }

"""Traces of whole videos: from overlapping windows, smoothed and calibrated, scored.

The steps of Teixeira et al. 2021 as far as we recall them (see `continuous`), and of the AVEC
challenges; how they are chosen here is ours.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from strnn_models.layers.backbone import one_of
from strnn_models.layers.losses import ccc
from torch import Tensor

import strnn_kernels as sk


def sliding_windows(T: int, window: int, overlap: float = 0.5) -> list[int]:
    """Where windows over T frames start; the last one ends with the video.

    Args:
        T: frames of the video.
        window: frames of a window; a shorter video has one window, of its own length.
        overlap: share of a window that the next one has too, in [0, 1); 0.5, ours (recalled: the
            paper compares 0.2, 0.5 and 0.8).

    Raises:
        ArgumentError: a number is out of its range.
    """
    if T < 1 or window < 1 or not 0 <= overlap < 1:
        raise sk.ArgumentError(
            "sliding_windows: T and window must be at least 1 and overlap in [0, 1), got "
            f"{T}, {window} and {overlap}"
        )
    hop = max(1, round(window * (1 - overlap)))
    last = max(0, T - window)
    return [*range(0, last, hop), last]


def overlap_average(values: Tensor, starts: Sequence[int], T: int) -> Tensor:
    """The mean, at each of T frames, of the windows (windows, L, V) that cover it: (T, V).

    Raises:
        ArgumentError: there are not as many starts as windows, or a frame is in no window.
    """
    total = values.new_zeros(T, values.shape[2])
    count = values.new_zeros(T, 1)
    L = values.shape[1]
    if len(starts) == len(values) and all(0 <= start <= T - L for start in starts):
        for window, start in zip(values, starts, strict=True):
            total[start : start + L] += window
            count[start : start + L] += 1
    if not len(starts) or not count.all():
        raise sk.ArgumentError(
            f"overlap_average: {len(values)} windows of {L} frames that start at {list(starts)} "
            f"do not cover {T} frames"
        )
    return total / count


@torch.no_grad()
def predict_video(
    model: Callable[[Tensor], Tensor],
    video: Tensor,
    *,
    window: int = 64,
    overlap: float = 0.5,
    batch_size: int = 8,
) -> Tensor:
    """The traces (T, V) of one video, the mean of those of its windows.

    Args:
        model: from (B, T, ..) to (B, T, V), in eval mode.
        video: (T, C, rows, cols), or stored features (T, F).
        window: frames of a window; 64 (recalled: the paper has 16 and 64).
        overlap: see `sliding_windows`.
        batch_size: windows at a time.
    """
    T = len(video)
    starts = sliding_windows(T, window, overlap)
    windows = torch.stack([video[start : start + window] for start in starts])
    values = torch.cat([model(part) for part in windows.split(batch_size)])
    return overlap_average(values, starts, T)


def smooth(values: Tensor, width: int, kind: str = "mean") -> Tensor:
    """A filter over time that holds the first and last value: the mean or median of `width` frames.

    Args:
        values: (T, ..).
        width: odd; 1 changes nothing.
        kind: "mean" or "median".

    Raises:
        ArgumentError: width is not odd and positive, or kind is unknown.
    """
    one_of("smooth", "kind", kind, ("mean", "median"))
    if width < 1 or width % 2 == 0:
        raise sk.ArgumentError(f"smooth: width must be odd and positive, got {width}")
    near = torch.stack([shift(values, width // 2 - k) for k in range(width)])
    return near.mean(0) if kind == "mean" else near.median(0).values


def shift(values: Tensor, steps: int) -> Tensor:
    """The trace `steps` frames later, earlier if negative, its first or last value held.

    Annotators follow a video with a delay. A model trained on annotations moved to the front (AVEC
    2019's baseline: by 2 s) gives traces that are early: shift them back by as much.
    """
    T = len(values)
    return values[(torch.arange(T, device=values.device) - steps).clamp(0, T - 1)]


@dataclass(frozen=True)
class PostProcessing:
    """What is done to each of V traces: filter, centre and scale, shift, in this order.

    Attributes:
        kind: of filter, see `smooth`.
        widths: of the filter, one for each trace.
        centres: what is taken off each trace.
        gains: what the rest is multiplied by.
        offsets: what is added then.
        delays: frames by which each trace is made later.
    """

    widths: tuple[int, ...]
    centres: tuple[float, ...]
    gains: tuple[float, ...]
    offsets: tuple[float, ...]
    delays: tuple[int, ...]
    kind: str = "mean"

    def __call__(self, values: Tensor) -> Tensor:
        """Applies the steps to the traces (T, V) of one video.

        Raises:
            ArgumentError: there are not V traces.
        """
        if values.ndim != 2 or values.shape[1] != len(self.widths):
            raise sk.ArgumentError(
                f"PostProcessing: values must have shape (T, V) = (.., {len(self.widths)}), "
                f"got {tuple(values.shape)}"
            )
        steps = zip(
            values.T, self.widths, self.centres, self.gains, self.offsets, self.delays, strict=True
        )
        return torch.stack(
            [
                shift((smooth(trace, width, self.kind) - centre) * gain + offset, delay)
                for trace, width, centre, gain, offset, delay in steps
            ],
            1,
        )


def fit_postprocessing(
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    masks: Sequence[Tensor] | None = None,
    *,
    widths: Sequence[int] = (1, 5, 11, 25, 51),
    delays: Sequence[int] = (0,),
    kind: str = "mean",
) -> PostProcessing:
    """Chooses each step in turn, for each trace, by the pooled CCC; one that does not help is left.

    Fit it on videos that are neither trained on nor tested on.

    Args:
        predictions: a trace (T, V) for each video.
        targets: likewise.
        masks: bool (T,) or (T, V) for each video, the frames that count; None: all.
        widths: of the filter, to choose from; 1 is always one of them.
        delays: to choose from; 0 is always one of them.
        kind: of filter.

    Raises:
        ArgumentError: the videos differ in number or shape.
    """
    goals, counted = _joined("fit_postprocessing", predictions, targets, masks)
    if int(counted.sum(0).min()) < 2:
        raise sk.ArgumentError("fit_postprocessing: each trace needs two frames that count")
    fitted = [
        _fit_trace([p[:, v] for p in predictions], goal, inside, widths, delays, kind)
        for v, (goal, inside) in enumerate(zip(goals.T, counted.T, strict=True))
    ]
    widths, centres, gains, offsets, delays = zip(*fitted, strict=True)
    return PostProcessing(widths, centres, gains, offsets, delays, kind)


def _fit_trace(
    traces: list[Tensor],
    goal: Tensor,
    inside: Tensor,
    widths: Sequence[int],
    delays: Sequence[int],
    kind: str,
) -> tuple[int, float, float, float, int]:
    """Width, centre, gain, offset and delay for one trace of each video."""

    def score(traces: list[Tensor]) -> float:
        value = ccc(torch.cat(traces)[None, :, None], goal[None, :, None], inside[None, :, None])
        return float(value.nan_to_num(-1))

    def choose(step: Callable[[Tensor, Any], Tensor], nothing: Any, options: Sequence) -> Any:
        """The option that scores best; the one that does nothing where none is better."""
        options = (nothing, *options)
        return max(options, key=lambda option: score([step(t, option) for t in traces]))

    width = choose(lambda t, w: smooth(t, w, kind), 1, widths)
    traces = [smooth(t, width, kind) for t in traces]
    counted = torch.cat(traces)[inside]
    centre, spread = counted.mean().item(), counted.std().item()
    aim, wanted = goal[inside].mean().item(), goal[inside].std().item()
    offset = choose(lambda t, o: t - centre + o, centre, [aim])
    gain = choose(lambda t, g: (t - centre) * g + offset, 1.0, [wanted / spread] if spread else [])
    traces = [(t - centre) * gain + offset for t in traces]
    return width, centre, gain, offset, choose(shift, 0, delays)


class Agreement(NamedTuple):
    """How traces agree with their targets, a number for each of V traces."""

    ccc: Tensor
    pcc: Tensor
    mse: Tensor


class VideoScores(NamedTuple):
    """Agreement in each video, its mean over the videos for which it is defined, and pooled."""

    videos: list[Agreement]
    mean: Agreement
    pooled: Agreement


def score_videos(
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    masks: Sequence[Tensor] | None = None,
) -> VideoScores:
    """CCC, correlation and squared error, per video and over all frames of all videos together.

    By torchmetrics, in float64. AVEC pools; the two can differ much, as only the pooled CCC rewards
    to tell videos apart. A constant trace agrees with none: its CCC is 0, its correlation NaN.

    Args:
        predictions: a trace (T, V) for each video.
        targets: likewise.
        masks: bool (T,) or (T, V) for each video; None: all frames count.

    Raises:
        ArgumentError: the videos differ in number or shape.
    """
    goals, counted = _joined("score_videos", predictions, targets, masks)
    sizes = [len(p) for p in predictions]
    parts = zip(predictions, goals.split(sizes), counted.split(sizes), strict=True)
    videos = [_agreement(*part) for part in parts]
    mean = Agreement(*(torch.stack(column).nanmean(0) for column in zip(*videos, strict=True)))
    return VideoScores(videos, mean, _agreement(torch.cat(list(predictions)), goals, counted))


def _agreement(prediction: Tensor, target: Tensor, mask: Tensor) -> Agreement:
    """Of traces (T, V); NaN where it is not defined, as without two frames that count."""
    from torchmetrics import functional as metrics

    columns = []
    for p, t, counts in zip(prediction.T, target.T, mask.T, strict=True):
        p, t = p[counts].double(), t[counts].double()
        ccc, pcc, mse = (torch.tensor(torch.nan, dtype=torch.float64) for _ in Agreement._fields)
        if len(p):
            mse = metrics.mean_squared_error(p, t)
        if len(p) > 1 and (p != p[0]).any() and (t != t[0]).any():
            with warnings.catch_warnings():  # a trace that hardly moves: float64 is enough for it
                warnings.filterwarnings("ignore", "The variance of predictions or target")
                pcc = metrics.pearson_corrcoef(p, t)
                ccc = metrics.concordance_corrcoef(p, t)
        elif len(p) > 1 and (p != t).any():
            ccc = torch.zeros_like(ccc)
        columns.append([value.reshape(()) for value in (ccc, pcc, mse)])
    return Agreement(*(torch.stack(column) for column in zip(*columns, strict=True)))


def _joined(
    name: str,
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    masks: Sequence[Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """All targets, and which of their entries count, (frames of all videos, V)."""
    if masks is None:
        masks = [torch.ones_like(t, dtype=torch.bool) for t in targets]
    shapes = [[tuple(x.shape) for x in group] for group in (predictions, targets)]
    lengths = [[len(x) for x in group] for group in (targets, masks)]
    if not predictions or shapes[0] != shapes[1] or lengths[0] != lengths[1]:
        raise sk.ArgumentError(
            f"{name}: predictions, targets and masks must have shapes (T, V), (T, V) and (T,) or "
            f"(T, V), got {shapes[0]}, {shapes[1]} and {[tuple(m.shape) for m in masks]}"
        )
    goals = torch.cat(list(targets))
    counted = torch.cat(
        [m if m.ndim == 2 else m[:, None].expand_as(t) for m, t in zip(masks, targets, strict=True)]
    )
    return goals, counted

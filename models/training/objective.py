"""What a model's output means for a task: the loss, the predictions, the scores."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from strnn_models.data.tasks import Task
from strnn_models.losses import ccc
from strnn_models.postprocess import overlap_average, score_videos
from torch import Tensor, nn


class Output(NamedTuple):
    """A model's output in one form."""

    predicted: Tensor  # class scores (B, K), or traces (B, T, 2)
    penalty: Tensor | None  # a term of the loss


def call(model: nn.Module, batch: dict[str, Tensor], task: Task) -> Output:
    """Runs a model, whichever way it answers: a tensor, `Reading` or `Pooled`."""
    output = model(batch["x"], batch["lengths"]) if "lengths" in batch else model(batch["x"])
    if isinstance(output, Tensor):
        return Output(output, None)
    if hasattr(output, "log_probs"):
        inner = getattr(model, "module", model)
        return Output(output.log_probs, inner.penalty_weight * output.penalty)
    return Output(output.scores if task.kind == "classes" else output.values, None)


def losses(
    output: Output, batch: dict[str, Tensor], weight: Tensor, task: Task
) -> tuple[Tensor, Tensor]:
    """The loss summed over a share of a batch, and how many terms it has; their ratio is the loss.

    Cross-entropy of each clip; or 1 - CCC of each trace of each window in which it is defined.

    Args:
        output: of the model.
        batch: what it was given.
        weight: of each item, (B,), zero for copies that fill up a share.
        task: says which of the two.
    """
    predicted = output.predicted.float()
    if task.kind == "classes":
        terms = nn.functional.cross_entropy(predicted, batch["y"], reduction="none")
        return (terms * weight).sum(), weight.sum()
    terms = 1 - ccc(predicted, batch["y"], batch["valid"], eps=1e-8)
    weight = torch.where(terms.isnan(), 0, weight[:, None])
    return (torch.where(weight > 0, terms, 0) * weight).sum(), weight.sum()


def score(task: Task, found: dict[str, Tensor]) -> dict[str, float]:
    """The scores of predictions, as `predict` of `strnn_models.train` returns them.

    Classes: loss, accuracy, macro F1. Traces: after averaging windows over each video, CCC, PCC and
        MSE,
    pooled over all videos, and the mean CCC over videos.
    """
    if task.kind == "classes":
        from sklearn.metrics import accuracy_score, f1_score

        labels, guesses = found["y"].numpy(), found["predicted"].argmax(1).numpy()
        return {
            "loss": float(nn.functional.cross_entropy(found["predicted"], found["y"])),
            "accuracy": float(accuracy_score(labels, guesses)),
            "f1": float(f1_score(labels, guesses, average="macro", zero_division=0)),
        }
    videos = join_windows(found)
    result = score_videos(
        *([video[key] for video in videos] for key in ("predicted", "y", "valid"))
    )
    pooled = {}
    for name, values in result.pooled._asdict().items():
        pooled |= {f"{name}_{t}": float(v) for t, v in zip(task.traces, values, strict=True)}
    both = float(result.pooled.ccc.nanmean())
    return {"loss": 1 - both, "ccc": both, **pooled, "ccc_videos": float(result.mean.ccc.nanmean())}


def join_windows(found: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """For each video its traces, the mean of the windows over each step: predicted, y, valid."""
    videos = []
    for k in found["video"].unique().tolist():
        at = found["video"] == k
        starts, lengths = found["start"][at], found["lengths"][at]
        size, length = int((starts + lengths).max()), int(lengths.max())
        values = {key: found[key][at, :length].float() for key in ("predicted", "y")}
        valid = found["valid"][at, :length].float()[..., None]
        videos.append(
            {
                "predicted": overlap_average(values["predicted"], starts.tolist(), size),
                "y": overlap_average(values["y"], starts.tolist(), size),
                "valid": overlap_average(valid, starts.tolist(), size)[:, 0] > 0,
            }
        )
    return videos


def is_better(task: Task, new: dict[str, Any], old: dict[str, Any] | None) -> bool:
    """Whether validation scores are better: accuracy or CCC, and of equal ones the smaller loss."""
    if old is None:
        return True

    def rank(scores: dict[str, Any]) -> tuple[float, float]:
        main = scores["accuracy" if task.kind == "classes" else "ccc"]
        return (main, -scores["loss"]) if np.isfinite(main) else (-np.inf, -np.inf)

    return rank(new) > rank(old)

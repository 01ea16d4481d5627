"""What a model's output means for a task: the loss, the predictions, the scores."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from strnn_models.data.tasks import Task
from strnn_models.layers.losses import ccc
from strnn_models.layers.postprocess import overlap_average, score_videos
from torch import Tensor, nn
from torch.nn import functional as F


class Output(NamedTuple):
    """A model's output in one form.

    `predicted`: class scores (B, K) of clips; or, of each frame, class scores, traces or both, the
    scores first: (B, T, K + V). `penalty`: a term of the loss, (B,). `balance`: what the loss of
    the traces is multiplied by.
    """

    predicted: Tensor
    penalty: Tensor | None = None
    balance: float = 1.0


def call(model: nn.Module, batch: dict[str, Tensor]) -> Output:
    """Runs a model, whichever way it answers: a tensor, `Reading` or `Pooled`."""
    output = model(batch["x"], batch["lengths"]) if "lengths" in batch else model(batch["x"])
    if isinstance(output, Tensor):
        return Output(output)
    inner: Any = getattr(model, "module", model)
    if hasattr(output, "log_probs"):
        return Output(output.log_probs, inner.penalty_weight * output.penalty)
    parts = [part for part in output if part is not None]
    return Output(torch.cat(parts, -1), balance=inner.dimensional_weight)


def losses(output: Output, batch: dict[str, Tensor], weight: Tensor, task: Task) -> Tensor:
    """The terms of the loss, each as its sum over a share of a batch and how many it is the sum of.

    Cross-entropy of each clip or labelled frame, 1 - CCC of each trace of each window in which it
    is defined, binary cross-entropy of each action unit; and the penalty of each clip.

    Args:
        output: of the model.
        batch: what it was given.
        weight: of each item, (B,), zero for copies that fill up a share.
        task: says which of them.

    Returns:
        (terms, 2). The loss is the sum of the ratios.
    """
    scores, values = _parted(output.predicted.float(), task)
    terms = []
    if task.kind == "classes":
        terms.append((F.cross_entropy(scores, batch["y"], reduction="none"), weight))
    elif task.classes:
        label = batch["label"]
        each = F.cross_entropy(scores.mT, label, ignore_index=-1, reduction="none")
        terms.append((each, (label >= 0) * weight[:, None]))
    if task.kind == "units":
        each = F.binary_cross_entropy_with_logits(values, batch["y"], reduction="none")
        terms.append((each, (batch["valid"] * weight[:, None])[..., None].expand_as(each)))
    elif task.traces:
        each = 1 - ccc(values, batch["y"], batch["valid"], eps=1e-8)
        counted = torch.where(each.isnan(), 0, weight[:, None])
        terms.append((output.balance * each, counted))
    if output.penalty is not None:
        terms.append((output.penalty, weight))
    return torch.stack(
        [torch.stack([(torch.where(n > 0, each, 0) * n).sum(), n.sum()]) for each, n in terms]
    )


def score(task: Task, found: dict[str, Tensor]) -> dict[str, float]:
    """The scores of predictions, as `predict` of `strnn_models.training.trainer` returns them.

    Classes: loss, accuracy, macro F1, over clips or labelled frames. Traces: CCC, PCC and MSE
    pooled over all videos, and the mean CCC over videos. Action units: F1 of each, and their mean.
    A mean of F1 counts the classes, or units, that occur (`present`): of one that does not, F1 is
    0 for any guess and not defined without one. Of frames, the windows that overlap are averaged
    first.
    """
    if task.kind == "classes":
        return _score_classes(found["predicted"], found["y"])
    return score_joined(task, join_windows(found))


def score_joined(task: Task, videos: list[dict[str, Tensor]]) -> dict[str, float]:
    """As `score`, of the frames of whole videos, as `join_windows` makes them."""
    scores, values = zip(*(_parted(video["predicted"], task) for video in videos), strict=True)
    result: dict[str, float] = {}
    if task.classes:
        labels = torch.cat([video["label"] for video in videos])
        result = _score_classes(torch.cat(scores)[labels >= 0], labels[labels >= 0])
    if task.kind == "units":
        valid = torch.cat([video["valid"] for video in videos])
        truth = torch.cat([video["y"] for video in videos])[valid]
        result = _score_units(torch.cat(values)[valid], truth, task.traces)
    elif task.traces:
        traces = _score_traces(values, videos, task.traces)
        result = result | traces | {"loss": result.get("loss", 0.0) + traces["loss"]}
    return result


def join_windows(found: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """For each video what its items have of each frame, predictions averaged over windows."""
    videos = []
    for k in found["video"].unique().tolist():
        at = found["video"] == k
        starts, length = found["start"][at].tolist(), int(found["lengths"][at].max())
        size = max(starts) + length
        video = {}
        for name, dtype in _OF_FRAMES.items():
            if name in found:
                windows = found[name][at, :length].double()  # (windows, L) or (windows, L, V)
                mean = overlap_average(windows.view(*windows.shape[:2], -1), starts, size)
                # Annotations are the same in each window, so that the mean changes nothing.
                video[name] = mean.view(size, *windows.shape[2:]).to(dtype)
        videos.append(video)
    return videos


def main_scores(task: Task) -> tuple[str, ...]:
    """Names of the scores that count: accuracy, pooled CCC, both, or the F1 of units."""
    return {"traces": ("ccc",), "both": ("accuracy", "ccc"), "units": ("f1",)}.get(
        task.kind, ("accuracy",)
    )


def is_better(task: Task, new: dict[str, Any], old: dict[str, Any] | None) -> bool:
    """Whether validation scores are better: `main_scores`, and of equal ones the smaller loss."""
    if old is None:
        return True

    def rank(scores: dict[str, Any]) -> tuple[float, float]:
        main = sum(scores[name] for name in main_scores(task))
        return (main, -scores["loss"]) if np.isfinite(main) else (-np.inf, -np.inf)

    return rank(new) > rank(old)


_OF_FRAMES = {
    "predicted": torch.float32,
    "y": torch.float32,
    "valid": torch.bool,
    "label": torch.int64,
}


def _parted(predicted: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """Class scores and traces, either of which may be empty."""
    return predicted[..., : len(task.classes)], predicted[..., len(task.classes) :]


def _score_classes(scores: Tensor, labels: Tensor) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score

    if not len(labels):  # no frame of the part is labelled
        return dict.fromkeys(("loss", "accuracy", "f1"), float("nan"))
    truth, guesses = labels.numpy(), scores.argmax(1).numpy()
    f1 = f1_score(truth, guesses, labels=present(truth), average="macro", zero_division=0)
    return {
        "loss": float(F.cross_entropy(scores, labels)),
        "accuracy": float(accuracy_score(truth, guesses)),
        "f1": float(f1),
    }


def present(truth: NDArray) -> NDArray[np.int64]:
    """Numbers of the classes (n,), or of the units (n, V), that occur."""
    return np.unique(truth) if truth.ndim == 1 else np.flatnonzero(truth.any(axis=0))


def _score_units(logits: Tensor, truth: Tensor, names: tuple[str, ...]) -> dict[str, float]:
    from sklearn.metrics import f1_score

    each, there = np.full(len(names), np.nan), present(truth.numpy())
    for k in there:
        each[k] = f1_score(truth[:, k], logits[:, k] > 0, zero_division=0)
    return {
        "loss": float(F.binary_cross_entropy_with_logits(logits, truth)),
        "f1": float(each[there].mean()) if len(there) else float("nan"),
        **{f"f1_{name}": float(value) for name, value in zip(names, each, strict=True)},
    }


def _score_traces(
    values: tuple[Tensor, ...], videos: list[dict[str, Tensor]], names: tuple[str, ...]
) -> dict[str, float]:
    truth, valid = ([video[key] for video in videos] for key in ("y", "valid"))
    result = score_videos(values, truth, valid)
    pooled = {
        f"{metric}_{name}": float(value)
        for metric, numbers in result.pooled._asdict().items()
        for name, value in zip(names, numbers, strict=True)
    }
    both = float(result.pooled.ccc.nanmean())
    return {"loss": 1 - both, "ccc": both, **pooled, "ccc_videos": float(result.mean.ccc.nanmean())}

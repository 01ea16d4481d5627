"""Simple answers beside a model's: linear models on pixels or features, on the same parts."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from strnn_models.data.tasks import Task, collate, pad
from strnn_models.training import objective
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

#: Items that a linear model is fitted on, spread over the training part.
MOST_ITEMS = 3000
#: Larger frames are averaged down to so many rows and cols.
MOST_PIXELS = 16

_MEAN = "mean over time"
_OF_CLIPS = ("all steps", _MEAN)
_OF_FRAMES = ("each frame", "each frame and the one before", _MEAN)


def baselines(task: Task, dataset: Dataset) -> dict[str, dict[str, float]]:
    """What linear models see -> their scores, as `objective.score` gives them.

    Logistic regression for classes, ridge regression for traces and action units. Of a clip it
    sees all steps or their mean ("mean pooling"); for a frame, that frame alone, the one before
    too, or the mean of the clip.

    Args:
        task: they are fitted on its training part.
        dataset: the part to score.
    """
    at = np.linspace(0, len(task.train) - 1, min(MOST_ITEMS, len(task.train))).round()
    train = [_small(task.train[int(k)]) for k in at]
    test = [_small(dataset[k]) for k in range(len(dataset))]
    views = _OF_CLIPS if task.kind == "classes" else _OF_FRAMES
    if task.sample_length == 1:
        views = views[:1]
    return {view: objective.score(task, _predict(task, train, test, view)) for view in views}


def _predict(task: Task, train: list[dict], test: list[dict], view: str) -> dict[str, Tensor]:
    """Predictions and targets of the items to test on, as those of a model."""
    x, x_test = (
        np.concatenate([_seen(item["x"], view, task) for item in part]) for part in (train, test)
    )
    centre, scale = x.mean(0), x.std(0)
    scale[scale == 0] = 1
    x, x_test = (x - centre) / scale, (x_test - centre) / scale
    if task.kind == "classes":
        labels = np.array([int(item["y"]) for item in train])
        scores = _classify(x, labels, x_test, len(task.classes))
        truth = torch.stack([item["y"] for item in test])
        return {"predicted": torch.from_numpy(scores).float(), "y": truth}
    predicted = []
    if task.classes:
        labels = np.concatenate([item["label"] for item in train])
        known = labels >= 0
        predicted.append(_classify(x[known], labels[known], x_test, len(task.classes)))
    if task.traces:
        values = np.concatenate([item["y"] for item in train])
        known = np.concatenate([item["valid"] for item in train])
        # A unit counts as predicted above a logit of 0, which stands for a probability of 0.5.
        threshold = 0.5 if task.kind == "units" else 0.0
        predicted.append(_regress(x[known], values[known] - threshold, x_test))
    lengths = [len(item["x"]) for item in test]
    parts = torch.from_numpy(np.concatenate(predicted, axis=1)).float().split(lengths)
    found = collate([item | {"predicted": p} for item, p in zip(test, parts, strict=True)])
    return found | {"lengths": torch.tensor(lengths)}


def _small(item: dict[str, Tensor]) -> dict[str, Tensor]:
    """The item with x (T, F), frames made small."""
    x = item["x"]
    if x.ndim == 4 and max(x.shape[2:]) > MOST_PIXELS:
        x = F.adaptive_avg_pool2d(x, [min(extent, MOST_PIXELS) for extent in x.shape[2:]])
    return item | {"x": x.flatten(1)}


def _seen(x: Tensor, view: str, task: Task) -> NDArray:
    """What a linear model sees of x (T, F): a row for the clip, or one for each frame."""
    if view == "all steps":
        return pad("x", x, task.sample_length).flatten()[None].numpy()
    if view == _MEAN:
        return x.mean(0, keepdim=True).expand(1 if task.kind == "classes" else len(x), -1).numpy()
    before = [] if view == "each frame" else [torch.cat([x[:1], x[:-1]])]
    return torch.cat([x, *before], 1).numpy()


def _classify(x: NDArray, labels: NDArray, x_test: NDArray, num_classes: int) -> NDArray:
    """Log-probabilities (n, K); that of a class never seen in training is very small."""
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression

    several = len(np.unique(labels)) > 1
    classifier = LogisticRegression(max_iter=1000) if several else DummyClassifier()
    classifier.fit(x, labels)
    probabilities = np.zeros((len(x_test), num_classes))
    probabilities[:, classifier.classes_] = classifier.predict_proba(x_test)
    return np.log(np.maximum(probabilities, 1e-12))


def _regress(x: NDArray, values: NDArray, x_test: NDArray) -> NDArray:
    from sklearn.linear_model import Ridge

    return Ridge().fit(x, values).predict(x_test)

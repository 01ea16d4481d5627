"""What a model looks at: pictures for a report, and numbers where the truth is known."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from strnn_models.data.tasks import Task, collate
from strnn_models.layers.backbone import saliency
from strnn_models.systems.attention_pooling import AttentionPooling
from strnn_models.systems.categorical_dimensional import category_map
from strnn_models.systems.cnn_irnn import CNNIRNN
from strnn_models.systems.strnn import STRNN
from strnn_models.training import objective, pictures
from strnn_models.training.report import Report
from torch import Tensor, nn

#: Electrodes that count as reached by a simulated source: the first ones by its power.
NUM_REACHED = 12


def look(report: Report, task: Task, model: nn.Module) -> dict[str, float]:
    """Draws what there is to see inside the model; returns how it agrees with a known truth."""
    model = model.eval()
    numbers: dict[str, float] = {}
    strnn = next((m for m in model.modules() if isinstance(m, STRNN)), None)
    if strnn is not None:
        numbers |= _projections(report, task, model, strnn)
    if task.size is not None:
        clip = _first_clip(task, model)
        if isinstance(model, AttentionPooling):
            numbers |= _attention(report, task, model, clip)
        if isinstance(model, CNNIRNN):
            _reading(report, task, model, clip)
        _saliency(report, task, model, clip)
    return numbers


def look_at_categories(
    report: Report, task: Task, videos: list[dict[str, Tensor]]
) -> dict[str, float]:
    """Where the categories lie in the plane of the two traces, as annotated and as predicted."""
    num_classes = len(task.classes)
    predicted = torch.cat([video["predicted"] for video in videos])
    labels = torch.cat([video["label"] for video in videos])
    values = torch.cat([video["y"] for video in videos])
    valid = torch.cat([video["valid"] for video in videos])
    guesses = predicted[:, :num_classes].argmax(1)
    maps = {
        "annotated": category_map(values, labels, num_classes, valid),
        "predicted": category_map(predicted[:, num_classes:], guesses, num_classes),
    }
    report.heading("Categories in the plane of the traces")
    figure = pictures.category_map(maps, task.classes, task.traces)
    caption = (
        "Mean of the traces over the frames of each category, and an ellipse of one standard "
        "deviation. Left: annotated traces and categories. Right: the model's own."
    )
    report.picture("categories", figure, caption)
    apart = (maps["annotated"].centres - maps["predicted"].centres).norm(dim=1)
    return {"category_distance": float(apart.nanmean())}


def electrode_saliency(model: nn.Module, task: Task, most: int = 64) -> NDArray:
    """The mean of |x d(score of the true class) / dx| over items, time and bands, (N,)."""
    device = next(model.parameters()).device
    at = np.unique(np.linspace(0, len(task.test) - 1, most).round().astype(int))
    batch = collate([task.test[int(k)] for k in at])
    batch = {key: value.to(device) for key, value in batch.items()}
    batch["x"].requires_grad_()
    scores = objective.call(model.eval(), batch).predicted
    total = scores.gather(1, batch["y"][:, None]).sum()
    (slope,) = torch.autograd.grad(total, batch["x"])
    return (slope * batch["x"].detach()).abs().mean(dim=(0, 1, 3)).cpu().numpy()


def auc(truth: NDArray, values: NDArray) -> float:
    """How well values find the `NUM_REACHED` electrodes of the largest truth."""
    from sklearn.metrics import roc_auc_score

    reached = np.zeros(len(truth), dtype=bool)
    reached[np.argsort(-truth)[:NUM_REACHED]] = True
    return float(roc_auc_score(reached, values))


def _projections(report: Report, task: Task, model: nn.Module, strnn: STRNN) -> dict[str, float]:
    """|G| in space and |Q| in time; saliency beside |G| over electrodes."""
    numbers: dict[str, float] = {}
    report.heading("What the sparse projections picked")
    G, Q = strnn.projections()
    chosen = G.weight.detach().abs().sum(1).cpu().numpy()
    figure, how = pictures.nodes(chosen, pictures.SPACE[: len(chosen)], strnn.topology)
    caption = f"Sum of |G| over the projections, for each direction, each on its own scale ({how})."
    report.picture("space", figure, caption)
    if task.topology is not None:
        maps = {
            "|G|": chosen.sum(0),
            "saliency": electrode_saliency(model, task),
        }
        if task.truth is not None:
            numbers = {f"{name}: auc": auc(task.truth, v) for name, v in maps.items()}
            report.text(
                f"The simulated source is known. Probability that one of the {NUM_REACHED} "
                "electrodes it reaches most is ranked above another one (0.5 is chance): "
                + ", ".join(f"{name} {value:.3f}" for name, value in numbers.items())
                + ". |G| says where states are read; a state has seen all before it in its sweep, "
                "so that it need not be where the signal comes from."
            )
            maps["truth: power of the source"] = task.truth
        figure, _ = pictures.nodes(np.stack(list(maps.values())), list(maps), strnn.topology)
        caption = "Saliency is |x d score / dx|, the mean over test items, time and bands."
        report.picture("electrodes", figure, caption)
    weights = Q.weight.detach().abs().cpu().numpy()
    if weights.shape[2] > 1:
        caption = "|Q|: what each projection takes of each time step."
        report.picture("time", pictures.temporal(weights), caption)
    return numbers


def _first_clip(task: Task, model: nn.Module) -> dict[str, Tensor]:
    """The first clip to test on, or the first in which the frame to find is known, B = 1."""
    device = next(model.parameters()).device
    items = (task.test[k] for k in range(len(task.test)))
    item = next(item for item in items if int(item.get("at", 0)) >= 0)
    return {name: value[None].to(device) for name, value in item.items()}


@torch.no_grad()
def _attention(
    report: Report, task: Task, model: AttentionPooling, clip: dict[str, Tensor]
) -> dict[str, float]:
    pooled = model(clip["x"])
    heads = pooled.attention[0].transpose(0, 1).cpu().numpy()  # (R, T, rows, cols)
    report.heading("Attention")
    figure = pictures.frames(
        _grey(clip),
        {f"head {r}": maps for r, maps in enumerate(heads)},
        [f"{weight:.2f}" for weight in pooled.frame_weights[0]],
    )
    caption = "A test clip, the weight of each frame, and below it where each head looks."
    report.picture("attention", figure, caption)
    if "at" not in clip:
        return {}
    from sklearn.metrics import accuracy_score

    items = [task.test[k] for k in range(len(task.test))]
    items = [item for item in items if int(item["at"]) >= 0]
    x = torch.stack([item["x"] for item in items]).to(clip["x"].device)
    chosen = torch.cat([model(part).frame_weights.argmax(1) for part in x.split(64)]).cpu()
    hits = float(accuracy_score(torch.stack([item["at"] for item in items]), chosen))
    report.text(
        f"In {len(items)} test clips the frame that decides is known. It has the largest weight in "
        f"a share of {hits:.3f} of them (chance: {1 / task.sample_length:.3f})."
    )
    return {"frame_found": hits}


@torch.no_grad()
def _reading(report: Report, task: Task, model: CNNIRNN, clip: dict[str, Tensor]) -> None:
    scores, _ = model.frame_scores(clip["x"])
    report.heading("Reading along the clip")
    figure = pictures.reading(scores[0].softmax(1).cpu().numpy(), task.classes)
    caption = "Probability of each class after each step of a test clip; the last one counts."
    report.picture("reading", figure, caption)


def _saliency(report: Report, task: Task, model: nn.Module, clip: dict[str, Tensor]) -> None:
    """|d output / d pixel| of a clip's class, or of what is predicted of its middle frame."""
    middle, num_classes = clip["x"].shape[1] // 2, len(task.classes)

    def predict(x: Tensor) -> Tensor:
        return objective.call(model, {"x": x}).predicted

    if task.kind == "classes":
        name = task.classes[int(clip["y"])]
        outputs = {f"class {name}": lambda x: predict(x)[:, int(clip["y"])]}
    else:
        outputs = {
            name: lambda x, v=v: predict(x)[:, middle, num_classes + v]
            for v, name in enumerate(task.traces[:3])
        }
        if task.classes:
            outputs["class"] = lambda x: predict(x)[:, middle, :num_classes].amax(1)
    maps = {name: saliency(output, clip["x"])[0].cpu().numpy() for name, output in outputs.items()}
    report.heading("Saliency")
    if task.kind == "classes":
        near, whose = slice(None), "its class"
    else:
        near, whose = slice(max(0, middle - 5), middle + 3), f"what is predicted of frame {middle}"
    numbers = range(clip["x"].shape[1])[near]
    maps = {name: values[near] for name, values in maps.items()}
    figure = pictures.frames(_grey(clip)[near], maps, [f"frame {t}" for t in numbers])
    caption = f"A test clip, and below each frame how much its pixels move {whose}."
    report.picture("saliency", figure, caption)


def _grey(clip: dict[str, Tensor]) -> NDArray:
    return clip["x"][0].mean(1).cpu().numpy()

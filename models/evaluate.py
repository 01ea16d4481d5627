"""`strnn-eval`: a report on a run, Markdown with pictures.

    strnn-eval out/run --baseline

writes out/run/report/report.md: scores, confusion matrix or traces, the learning curve, and what
the model looks at: |G| per direction over the electrodes or cells, |Q| over time, attention over
frames.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from strnn_models.data.tasks import Task, collate
from strnn_models.strnn import STRNN
from strnn_models.train import prepare
from strnn_models.training import checkpoint, objective, processes
from strnn_models.training.checkpoint import CheckpointError
from strnn_models.training.config import load
from strnn_models.training.trainer import predict
from torch import nn

#: Electrodes that count as reached by a simulated source: the first ones by its power.
NUM_REACHED = 12


def evaluate(
    run: Path | str,
    *,
    part: str = "test",
    out: Path | str | None = None,
    baseline: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Writes the report on a run's selected weights.

    Args:
        run: folder of the run.
        part: "test" or "valid".
        out: folder of the report; None: run/report.
        baseline: also fit a logistic regression on the means over time.
        device: as in the settings of a run.

    Returns:
        What the report says in numbers; also written as report.json.

    Raises:
        ConfigError, CheckpointError, DataError: the run or its data cannot be read.
        ValueError: the task has no such part.
    """
    run = Path(run)
    out = run / "report" if out is None else Path(out)
    config, where = load(run / "config.yaml"), processes.choose_device(device)
    trainer = prepare(config, where)
    task, model = trainer.task, trainer.model
    model.load_state_dict(checkpoint.load_weights(run / checkpoint.SELECTED))
    dataset = {"test": task.test, "valid": task.valid}.get(part)
    if dataset is None:
        raise ValueError(f"the task {task.name} has no part {part!r}")
    found = predict(model, task, dataset, config, where)
    report = Report(out, f"{config.model} on {config.task}")
    numbers = objective.score(task, found)
    report.text(
        f"Data: **{task.about}**. Part: {part}, {len(dataset)} items. "
        f"Settings: `{run / 'config.yaml'}`, seed {config.seed}."
    )
    report.table({name: f"{value:.4f}" for name, value in numbers.items()})
    if baseline and task.kind == "classes":
        numbers["baseline_accuracy"] = _baseline(task, dataset)
        report.text(
            "Baseline, logistic regression on the means over time: "
            f"accuracy {numbers['baseline_accuracy']:.4f}."
        )
    _predictions(report, task, found)
    _learning(report, run)
    numbers |= _looks(report, task, model)
    if task.skipped:
        report.heading(f"{len(task.skipped)} records skipped")
        report.text("\n".join(f"* {skip}" for skip in task.skipped))
    report.write()
    checkpoint.write_atomic(out / "report.json", json.dumps(numbers, indent=1) + "\n")
    return numbers


class Report:
    """A Markdown file and its pictures in a folder."""

    def __init__(self, out: Path, title: str) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.parts = out, [f"# {title}"]

    def heading(self, text: str) -> None:
        """Adds a heading."""
        self.parts.append(f"## {text}")

    def text(self, text: str) -> None:
        """Adds a paragraph."""
        self.parts.append(text)

    def table(self, row: dict[str, str]) -> None:
        """Adds a table of one row."""
        lines = [list(row), ["---"] * len(row), list(row.values())]
        self.parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))

    def picture(self, name: str, figure: Any, caption: str) -> None:
        """Saves a figure as PNG and shows it."""
        figure.savefig(self.out / f"{name}.png", dpi=110)
        self.parts.append(f"![{caption}]({name}.png)\n\n{caption}")

    def write(self) -> None:
        """Writes report.md."""
        checkpoint.write_atomic(self.out / "report.md", "\n\n".join(self.parts) + "\n")


def _predictions(report: Report, task: Task, found: dict[str, torch.Tensor]) -> None:
    from strnn_models.training import pictures

    if task.kind == "traces":
        report.heading("Traces")
        videos = objective.join_windows(found)
        caption = "The first videos: annotated and predicted; windows that overlap are averaged."
        report.picture("traces", pictures.traces(videos, task.traces), caption)
        return
    from sklearn.metrics import confusion_matrix

    report.heading("Confusion matrix")
    guesses = found["predicted"].argmax(1)
    matrix = confusion_matrix(found["y"], guesses, labels=range(len(task.classes)))
    caption = "Items by true class (row) and predicted class (column)."
    report.picture("confusion", pictures.confusion(matrix, task.classes), caption)


def _learning(report: Report, run: Path) -> None:
    from strnn_models.training import pictures

    log = run / "log.jsonl"
    if not log.exists():
        return
    history = [json.loads(line) for line in log.read_text().splitlines()]
    report.heading("Learning curve")
    report.picture("learning", pictures.learning_curve(history), "Over the epochs of training.")


def _looks(report: Report, task: Task, model: nn.Module) -> dict[str, float]:
    """Pictures of what the model looks at, and how they agree with a known truth."""
    from strnn_models.training import pictures

    numbers: dict[str, float] = {}
    strnn = next((m for m in model.modules() if isinstance(m, STRNN)), None)
    if strnn is not None:
        report.heading("What the sparse projections picked")
        chosen = strnn.spatial.projection.weight.detach().abs().sum(1).cpu().numpy()
        titles = pictures.SPACE[: len(chosen)]
        figure, how = pictures.nodes(chosen, titles, strnn.topology)
        caption = (
            f"Sum of |G| over the projections, for each direction, each on its own scale ({how})."
        )
        report.picture("space", figure, caption)
        maps = {"|G|, all directions": chosen.sum(0)}
        if task.topology is not None:
            maps["saliency"] = electrode_saliency(model, task)
        if task.truth is not None:
            numbers = {f"{name}: auc": auc(task.truth, v) for name, v in maps.items()}
            report.text(
                f"The simulated source is known. Probability that one of the {NUM_REACHED} "
                "electrodes it reaches most is ranked above another one (0.5 is chance): "
                + ", ".join(f"{name} {value:.3f}" for name, value in numbers.items())
                + "."
            )
            maps["truth: power of the source"] = task.truth
        if len(maps) > 1:
            figure, _ = pictures.nodes(np.stack(list(maps.values())), list(maps), strnn.topology)
            caption = "Saliency is |x d score / dx|, the mean over test items, time and bands."
            report.picture("electrodes", figure, caption)
        weights = strnn.temporal_projection.weight.detach().abs().cpu().numpy()
        if weights.shape[2] > 1:
            caption = "|Q|: what each projection takes of each time step."
            report.picture("time", pictures.temporal(weights), caption)
    if hasattr(model, "attention"):
        report.heading("Attention")
        figure = _attention(task, model)
        caption = "The first test clip, and below each frame the attention of each head."
        report.picture("attention", figure, caption)
    return numbers


def electrode_saliency(model: nn.Module, task: Task, most: int = 64) -> np.ndarray:
    """The mean of |x d(score of the true class) / dx| over items, time and bands, (N,)."""
    device = next(model.parameters()).device
    at = np.unique(np.linspace(0, len(task.test) - 1, most).round().astype(int))
    batch = collate([task.test[int(k)] for k in at])
    batch = {key: value.to(device) for key, value in batch.items()}
    batch["x"].requires_grad_()
    scores = objective.call(model.eval(), batch, task).predicted
    total = scores.gather(1, batch["y"][:, None]).sum()
    (slope,) = torch.autograd.grad(total, batch["x"])
    return (slope * batch["x"].detach()).abs().mean(dim=(0, 1, 3)).cpu().numpy()


def auc(truth: np.ndarray, values: np.ndarray) -> float:
    """How well values find the `NUM_REACHED` electrodes of the largest truth."""
    from sklearn.metrics import roc_auc_score

    reached = np.zeros(len(truth), dtype=bool)
    reached[np.argsort(-truth)[:NUM_REACHED]] = True
    return float(roc_auc_score(reached, values))


def _attention(task: Task, model: nn.Module) -> Any:
    from strnn_models.training import pictures

    item = task.test[0]
    device = next(model.parameters()).device
    with torch.no_grad():
        pooled = model.eval()(item["x"][None].to(device))
    maps = pooled.attention[0].cpu().numpy()
    frames = item["x"].mean(1).numpy()
    return pictures.attention(frames, maps, pooled.frame_weights[0].cpu().numpy())


def _baseline(task: Task, dataset: Any) -> float:
    """Accuracy of a logistic regression on the mean over time of the inputs."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def table(part: Any) -> tuple[np.ndarray, np.ndarray]:
        items = [part[k] for k in range(len(part))]
        x = np.stack([item["x"].mean(0).flatten().numpy() for item in items])
        return x, np.array([int(item["y"]) for item in items])

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return float(classifier.fit(*table(task.train)).score(*table(dataset)))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser("strnn-eval", description="Write a report on a run.")
    parser.add_argument("run", help="folder of the run")
    parser.add_argument("--part", default="test", choices=("test", "valid"))
    parser.add_argument("--out", help="folder of the report; run/report if not given")
    parser.add_argument("--baseline", action="store_true", help="add a logistic regression")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    try:
        numbers = evaluate(**vars(options))
    except (ValueError, CheckpointError, ImportError, OSError) as error:
        print(f"strnn-eval: {error}", file=sys.stderr)
        return 2
    print(", ".join(f"{name} {value:.4f}" for name, value in numbers.items()))
    print(Path(options.out or Path(options.run) / "report") / "report.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())

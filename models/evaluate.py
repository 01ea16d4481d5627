"""`strnn-eval`: a report on a run, Markdown with pictures.

    strnn-eval out/run --baseline

writes out/run/report/report.md: scores beside those of linear models, confusion matrix, traces, the
map of categories in the plane of the traces, the learning curve, and what the model looks at: |G|
per direction over the electrodes or cells, |Q| over time, attention over the face grid and weights
of frames, the reading along a clip, saliency.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from strnn_models.data.tasks import Task
from strnn_models.layers.postprocess import PostProcessing, fit_postprocessing
from strnn_models.train import prepare
from strnn_models.training import checkpoint, objective, pictures, processes
from strnn_models.training.baselines import baselines
from strnn_models.training.checkpoint import CheckpointError
from strnn_models.training.config import load_whole
from strnn_models.training.looks import look, look_at_categories
from strnn_models.training.report import Report
from strnn_models.training.trainer import predict


def evaluate(
    run: Path | str,
    *,
    part: str = "test",
    out: Path | str | None = None,
    baseline: bool = False,
    postprocess: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Writes the report on a run's selected weights.

    Args:
        run: folder of the run.
        part: "test" or "valid".
        out: folder of the report; None: run/report.
        baseline: also fit linear models, see `baselines`.
        postprocess: also score traces after `fit_postprocessing` on the validation part.
        device: as in the settings of a run.

    Returns:
        What the report says in numbers; also written as report.json.

    Raises:
        ConfigError, CheckpointError, DataError: the run or its data cannot be read.
        FolderError: another process writes there, or it has files that would be replaced.
        ValueError: the task has no such part, or nothing to post-process.
    """
    run = Path(run)
    out = run / "report" if out is None else Path(out)
    settings, selected = run / checkpoint.CONFIG, run / checkpoint.SELECTED
    config, where = load_whole(settings), processes.choose_device(device)
    trainer = prepare(config, where)
    task, model = trainer.task, trainer.model
    checkpoint.give(model, checkpoint.load_weights(selected), selected)
    if postprocess and (task.kind != "traces" or task.valid is None):
        raise ValueError(f"post-processing is for traces with a validation part, not {task.name}")
    dataset = {"test": task.test, "valid": task.valid}.get(part)
    if dataset is None:
        raise ValueError(f"the task {task.name} has no part {part!r}")
    found = predict(model, task, dataset, config, where)
    report = Report(out, f"{config.model} on {config.task}")
    numbers = objective.score(task, found)
    report.text(
        f"Data: **{task.about}**. Part: {part}, {len(dataset)} items. "
        f"Settings: `{settings}`, seed {config.seed}."
    )
    rows = {config.model: numbers}
    if baseline:
        simple = baselines(task, dataset)
        rows |= {f"linear model, {seen}": scores for seen, scores in simple.items()}
        numbers = numbers | {
            f"baseline ({seen}) {name}": scores[name]
            for seen, scores in simple.items()
            for name in objective.main_scores(task)
        }
    if postprocess:
        steps, scores = _postprocessed(task, found, predict(model, task, task.valid, config, where))
        rows["post-processed"] = scores
        numbers = numbers | {f"postprocessed {name}": value for name, value in scores.items()}
    cells = ([name, *(f"{v:.4f}" for v in scores.values())] for name, scores in rows.items())
    report.table(["", *rows[config.model]], cells)
    if postprocess:
        report.text(
            "Post-processing, chosen on the validation part for each trace: mean of widths "
            f"{steps.widths}, centres {_short(steps.centres)}, gains {_short(steps.gains)}, "
            f"offsets {_short(steps.offsets)}, delays {steps.delays} frames."
        )
    numbers = numbers | _predictions(report, task, found)
    _learning(report, run)
    numbers |= look(report, task, model)
    if task.skipped:
        report.heading(f"{len(task.skipped)} records skipped")
        report.text("\n".join(f"* {skip}" for skip in task.skipped))
    report.write(numbers)
    return numbers


def _postprocessed(
    task: Task, found: dict[str, torch.Tensor], valid: dict[str, torch.Tensor]
) -> tuple[PostProcessing, dict[str, float]]:
    """The steps that are best on the validation part, and the scores of `found` after them."""
    columns = (
        [video[name] for video in objective.join_windows(valid)]
        for name in ("predicted", "y", "valid")
    )
    steps = fit_postprocessing(*columns, widths=(1, 3, 5, 11, 25), delays=range(-5, 6))
    videos = objective.join_windows(found)
    for video in videos:
        video["predicted"] = steps(video["predicted"])
    return steps, objective.score_joined(task, videos)


def _short(numbers: Sequence[float]) -> str:
    return f"({', '.join(f'{number:.3f}' for number in numbers)})"


def _predictions(report: Report, task: Task, found: dict[str, torch.Tensor]) -> dict[str, float]:
    """Confusion matrix, traces, F1 of units and the map of categories, as the task has them."""
    from sklearn.metrics import confusion_matrix

    videos = [] if task.kind == "classes" else objective.join_windows(found)
    if task.classes:
        if videos:
            labels = torch.cat([video["label"] for video in videos])
            scores = torch.cat([video["predicted"] for video in videos])
            labels, scores = labels[labels >= 0], scores[labels >= 0, : len(task.classes)]
        else:
            labels, scores = found["y"], found["predicted"]
        matrix = confusion_matrix(labels, scores.argmax(1), labels=range(len(task.classes)))
        report.heading("Confusion matrix")
        what = "Frames" if videos else "Items"
        caption = f"{what} by true class (row) and predicted class (column)."
        _counted(report, task.classes, objective.present(labels.numpy()))
        report.picture("confusion", pictures.confusion(matrix, task.classes), caption)
    if task.traces:
        report.heading("Traces")
        shown = [v | {"predicted": v["predicted"][:, len(task.classes) :]} for v in videos]
        if task.kind == "units":
            shown = [v | {"predicted": v["predicted"].sigmoid()} for v in shown]
            truth = torch.cat([video["y"][video["valid"]] for video in videos])
            _counted(report, task.traces, objective.present(truth.numpy()))
        caption = "The first videos: annotated and predicted; windows that overlap are averaged."
        report.picture("traces", pictures.traces(shown, task.traces), caption)
    return look_at_categories(report, task, videos) if task.kind == "both" else {}


def _counted(report: Report, names: Sequence[str], present: Sequence[int]) -> None:
    """Says which classes or units the mean of F1 counts."""
    counted = ", ".join(names[k] for k in present) or "none"
    missing = ", ".join(name for k, name in enumerate(names) if k not in present) or "none"
    report.text(f"F1 is the mean over those that occur: {counted}. Not in this part: {missing}.")


def _learning(report: Report, run: Path) -> None:
    if not (run / checkpoint.LOG).exists():
        return
    history = checkpoint.load_log(run / checkpoint.LOG)
    report.heading("Learning curve")
    report.picture("learning", pictures.learning_curve(history), "Over the epochs of training.")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser("strnn-eval", description="Write a report on a run.")
    parser.add_argument("run", help="folder of the run")
    parser.add_argument("--part", default="test", choices=("test", "valid"))
    parser.add_argument("--out", help="folder of the report; run/report if not given")
    parser.add_argument("--baseline", action="store_true", help="add linear models")
    parser.add_argument(
        "--postprocess",
        action="store_true",
        help="add traces after filter, scale and delay chosen on the validation part",
    )
    parser.add_argument("--device", default="auto")
    options = parser.parse_intermixed_args(arguments)
    try:
        numbers = evaluate(**vars(options))
    except KeyboardInterrupt:
        print("strnn-eval: interrupted", file=sys.stderr)
        return 130
    except (ValueError, CheckpointError, ImportError, OSError) as error:
        print(f"strnn-eval: {error}", file=sys.stderr)
        return 2
    print(", ".join(f"{name} {value:.4f}" for name, value in numbers.items()))
    print(Path(options.out or Path(options.run) / "report") / "report.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())

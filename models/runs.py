"""The runs of the table in README.md: trained and scored anew, printed as that table.

    python -m strnn_models.runs [--out out/runs] [words ...]

Words, such as `cnn_irnn` or `task=faces`, choose the runs whose settings have all of them. None is
on emotion data: the input is what every machine has, from scikit-learn, scikit-image and a
simulation by MNE.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from strnn_models.data import tasks
from strnn_models.evaluate import evaluate
from strnn_models.train import train
from strnn_models.training import objective
from strnn_models.training.baselines import baselines
from strnn_models.training.config import load

_CNN = "model_options.widths=[16,32]"
_RNN = f"{_CNN} model_options.hidden_size=64"
_STRNN_EEG = "model_options.lambda1=1.0 model_options.lambda2=0.3 select=last"
_IRNN = f"model=cnn_irnn lr=1e-3 {_RNN} model_options.input_std=0.1"
_ATTENTION = f"model=attention_pooling epochs=5 lr=3e-3 {_CNN} model_options.penalty_weight=0.1"
_BOTH = f"task=digit_traces model=categorical_dimensional epochs=8 lr=1e-3 {_RNN}"

#: Settings of `strnn-train`, besides seed=0, threads=1 and out.
RUNS = (
    "task=digits epochs=30 lr=3e-3",
    "task=digit_sequences epochs=15 lr=3e-3",
    "task=faces model_options.patch=5 epochs=20 lr=3e-3",
    "task=face_sequences model_options.patch=5 epochs=8 lr=3e-3",
    f"task=simulated_eeg epochs=40 lr=1e-3 {_STRNN_EEG}",
    f"task=digit_sequences epochs=12 {_IRNN}",
    f"task=face_sequences epochs=6 {_IRNN}",
    f"{_BOTH} task_options.predict=frames",
    f"{_BOTH} task_options.predict=traces",
    f"{_BOTH} task_options.predict=both",
    f"task=digit_spotting {_ATTENTION}",
    f"task=face_spotting {_ATTENTION}",
    f"task=digit_traces model=cnn_lstm epochs=8 lr=1e-3 {_RNN}",
    f"task=digit_traces model=inflated_cnn epochs=8 lr=1e-3 {_CNN}",
    f"task=camera_pans model=inflated_cnn epochs=6 lr=3e-3 {_CNN}",
)
ALSO = ("zeros_spatial", "|G|: auc", "saliency: auc", "frame_found", "category_distance")
HEAD = ("model", "settings of `strnn-train`", "test score", "linear models", "also", "time")


def rows(out: Path, words: Sequence[str] = ()) -> Iterator[tuple[str, ...]]:
    """Trains and scores the runs whose settings have all the words; for each the cells of `HEAD`.

    Args:
        out: folder of their folders.
        words: none: all runs.
    """
    for number, settings in enumerate(RUNS, start=1):
        if not all(word in settings for word in words):
            continue
        folder = out / f"{number:02d}"
        config = load(None, [*settings.split(), "seed=0", "threads=1", f"out={folder}"])
        started = time.perf_counter()
        result = train(config, restart=True)
        seconds = time.perf_counter() - started
        numbers = evaluate(folder) | result["history"][-1]
        task = tasks.make(config.task, **config.task_options)
        main = objective.main_scores(task)
        simple = baselines(task, task.test)
        yield (
            config.model,
            f"`{settings}`",
            _cell(result["test"], main),
            "; ".join(f"{seen}: {_cell(scores, main)}" for seen, scores in simple.items()),
            _cell(numbers, ALSO),
            f"{seconds:.0f} s",
        )


def _cell(numbers: dict[str, float], names: Sequence[str]) -> str:
    cell = ", ".join(f"{name} {numbers[name]:.3f}" for name in names if name in numbers)
    return cell.replace("|", "\\|")  # as Markdown has it in a table


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser("python -m strnn_models.runs", description=__doc__)
    parser.add_argument("words", nargs="*", help="of the settings of the runs to make")
    parser.add_argument("--out", type=Path, default=Path("out/runs"))
    options = parser.parse_intermixed_args(arguments)
    print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}", flush=True)
    for row in rows(options.out, options.words):
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()

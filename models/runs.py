"""The runs of the table in README.md: trained and scored anew, printed as that table.

    python -m strnn_models.runs [--seeds 3] [--out out/runs] [words ...]

Words, such as `cnn_irnn` or `task=faces`, choose the runs whose settings have all of them. Each is
made with the seeds 0, 1, .. of weights and order; the data stay, and with them the linear models.
None is on emotion data: the input is what every machine has, from scikit-learn, scikit-image and a
simulation by MNE.
"""

from __future__ import annotations

import argparse
import statistics
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
_SPARSE = "model_options.lambda1=1.0 model_options.lambda2=0.3 select=last"
_IRNN = f"model=cnn_irnn lr=1e-3 {_RNN} model_options.input_std=0.1"
_ATTENTION = f"model=attention_pooling epochs=5 lr=3e-3 {_CNN} model_options.penalty_weight=0.1"
_BOTH = f"task=digit_traces model=categorical_dimensional epochs=8 lr=1e-3 {_RNN}"

#: Settings of `strnn-train`, besides seed, threads=1 and out.
RUNS = (
    "task=digits epochs=30 lr=3e-3 schedule=cosine",
    "task=digit_sequences epochs=15 lr=3e-3",
    "task=digit_sequences epochs=15 lr=3e-3 model_options.cell=gru",
    "task=faces model_options.patch=5 epochs=20 lr=3e-3",
    "task=face_sequences model_options.patch=5 epochs=8 lr=3e-3",
    "task=simulated_eeg epochs=40 lr=1e-3",
    f"task=simulated_eeg epochs=40 lr=1e-3 {_SPARSE}",
    f"task=digit_sequences epochs=12 {_IRNN}",
    f"task=face_sequences epochs=6 {_IRNN}",
    f"{_BOTH} task_options.predict=frames",
    f"{_BOTH} task_options.predict=traces",
    f"{_BOTH} task_options.predict=both",
    f"task=digit_spotting {_ATTENTION}",
    f"task=face_spotting {_ATTENTION}",
    f"task=digit_traces model=cnn_lstm epochs=8 lr=1e-3 {_RNN}",
    f"task=digit_traces model=inflated_cnn epochs=8 lr=1e-3 {_CNN}",
    f"task=camera_pans model=cnn_lstm epochs=8 lr=3e-3 {_RNN} model_options.pool=flatten",
    f"task=camera_pans model=inflated_cnn epochs=6 lr=3e-3 {_CNN}",
)
ALSO = ("zeros_spatial", "|G|: auc", "saliency: auc", "frame_found", "category_distance")
HEAD = ("model", "settings of `strnn-train`", "test score", "linear models", "also", "time")


def rows(out: Path, words: Sequence[str] = (), seeds: int = 3) -> Iterator[tuple[str, ...]]:
    """Trains and scores the runs whose settings have all the words; for each the cells of `HEAD`.

    Args:
        out: folder of their folders.
        words: none: all runs.
        seeds: each run is made with the seeds 0 .. seeds - 1.
    """
    for number, settings in enumerate(RUNS, start=1):
        if not all(word in settings for word in words):
            continue
        tests, numbers, times = [], [], []
        for seed in range(seeds):
            folder = out / f"{number:02d}" / f"seed{seed}"
            config = load(None, [*settings.split(), f"seed={seed}", "threads=1", f"out={folder}"])
            started = time.perf_counter()
            result = train(config, restart=True)
            times.append(time.perf_counter() - started)
            tests.append(result["test"])
            selected = result["history"][result["selected"]["epoch"] - 1]
            numbers.append(evaluate(folder) | selected)
        task = tasks.make(config.task, **config.task_options)
        main = objective.main_scores(task)
        simple = baselines(task, task.test)
        yield (
            config.model,
            f"`{settings}`",
            cell(tests, main),
            "; ".join(f"{seen}: {cell([scores], main)}" for seen, scores in simple.items()),
            cell(numbers, ALSO),
            f"{statistics.median(times):.0f} s",
        )


def cell(seeds: Sequence[dict[str, float]], names: Sequence[str]) -> str:
    """Mean and range of the named numbers that the seeds have: `accuracy 0.950 (0.900 to 1.000)`.

    One number where both ends are printed as the same, as of a single seed.
    """
    parts = []
    for name in names:
        values = [numbers[name] for numbers in seeds if name in numbers]
        if values:
            low, mean, high = (f"{f(values):.3f}" for f in (min, statistics.fmean, max))
            parts.append(f"{name} {mean}" + (f" ({low} to {high})" if low != high else ""))
    return ", ".join(parts).replace("|", "\\|")  # as Markdown has it in a table


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser("python -m strnn_models.runs", description=__doc__)
    parser.add_argument("words", nargs="*", help="of the settings of the runs to make")
    parser.add_argument("--seeds", type=int, default=3, help="how many: 0, 1, ..; default: 3")
    parser.add_argument("--out", type=Path, default=Path("out/runs"))
    options = parser.parse_intermixed_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
    print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}", flush=True)
    for row in rows(options.out, options.words, options.seeds):
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()

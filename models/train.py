"""`strnn-train`: trains a model on a task; killed at any moment, the same command goes on.

    strnn-train run.yaml lr=3e-4 task_options.root=/data/SEED
    torchrun --nproc-per-node=2 -m strnn_models.train run.yaml

The folder of the run has config.yaml, log.csv and log.jsonl (a line for each epoch), the last
checkpoint, selected.safetensors and, at the end, results.json. `strnn-eval` makes a report of it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from strnn_models.data import tasks
from strnn_models.training import checkpoint, objective, processes, zoo
from strnn_models.training.checkpoint import CheckpointError
from strnn_models.training.config import Config, ConfigError, difference, load
from strnn_models.training.trainer import (
    Trainer,
    TrainingError,
    one_line,
    predict,
    sizes,
    write_logs,
)


def train(config: Config, *, quiet: bool = True, restart: bool = False) -> dict[str, Any]:
    """Trains, or goes on with, a run, and scores its selected weights on the test part.

    Args:
        config: the settings.
        quiet: no progress on the screen.
        restart: begin anew even if the folder has a checkpoint.

    Returns:
        {"epochs": .., "best": .., "selected": .., "test": scores, "history": a dict for each
        epoch}.

    Raises:
        ConfigError: the folder has a run of other settings.
        CheckpointError: its checkpoint is damaged.
        DataError: a data file is.
        TrainingError: the loss is not finite.
    """
    config.check()
    device = processes.choose_device(config.device)
    with processes.group(device), _reproducible(config):
        run = Path(config.out)
        if processes.rank() == 0:
            _open_run(run, config, restart)
        processes.wait()
        trainer = prepare(config, device, quiet)
        is_first = processes.rank() == 0
        if trainer.resume() and is_first and not quiet:
            print(f"going on after epoch {trainer.epoch} of {run}")
        if is_first and not quiet:
            _introduce(trainer)
        trainer.fit()
        weights = checkpoint.load_weights(run / checkpoint.SELECTED)
        trainer.model.load_state_dict(weights)
        found = predict(trainer.net, trainer.task, trainer.task.test, config, device)
        result = {
            "task": config.task,
            "about": trainer.task.about,
            "model": config.model,
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "epochs": trainer.epoch,
            "best": trainer.best,
            "selected": trainer.selected,
            "test": objective.score(trainer.task, found),
        }
        if is_first:
            write_logs(run, trainer.history)
            checkpoint.write_atomic(run / "results.json", json.dumps(result, indent=1) + "\n")
            if not quiet:
                print(f"test, epoch {trainer.selected['epoch']}: {one_line(result['test'])}")
        processes.wait()
        return result | {"history": trainer.history}


def prepare(config: Config, device: torch.device, quiet: bool = True) -> Trainer:
    """Task, model and optimizer of a configuration, at their start."""
    task = tasks.make(config.task, **config.task_options)
    torch.manual_seed(config.seed)
    model = zoo.build(config.model, task, **config.model_options)
    # The same weights in every process, but dropout of its own in each.
    torch.manual_seed(config.seed + processes.rank())
    return Trainer(config, task, model, device, quiet)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        "strnn-train",
        description="Train a model; the same command goes on with a run that was interrupted.",
        epilog=f"tasks: {', '.join(tasks.names())}; models: {', '.join(zoo.names())}",
    )
    parser.add_argument(
        "settings",
        nargs="*",
        help="a YAML file, and key=value such as lr=1e-3 task_options.root=/data",
    )
    parser.add_argument("--restart", action="store_true", help="begin anew, drop the checkpoint")
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out damaged records, list them"
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing")
    options = parser.parse_intermixed_args(arguments)
    try:
        config = _read_settings(options.settings, options.skip_bad)
        train(config, quiet=options.quiet, restart=options.restart)
    except KeyboardInterrupt:
        print("strnn-train: interrupted; the same command goes on", file=sys.stderr)
        return 130
    except (ValueError, CheckpointError, TrainingError, ImportError, OSError) as error:
        print(f"strnn-train: {error}", file=sys.stderr)
        return 2
    return 0


def _read_settings(settings: Sequence[str], skip_bad: bool) -> Config:
    files = [s for s in settings if "=" not in s]
    if len(files) > 1:
        raise ConfigError(f"one YAML file at most, got {' '.join(files)}")
    overrides = [s for s in settings if "=" in s]
    if skip_bad:
        overrides.append("task_options.skip_bad=true")
    return load(files[0] if files else None, overrides)


def _open_run(run: Path, config: Config, restart: bool) -> None:
    """Makes the folder, or checks that what it has is of the same settings."""
    run.mkdir(parents=True, exist_ok=True)
    pointer, settings = run / checkpoint.POINTER, run / "config.yaml"
    if restart:
        pointer.unlink(missing_ok=True)
    if pointer.exists() and settings.exists():
        changed = difference(load(settings), config)
        if changed:
            raise ConfigError(
                f"{run} has a run with other settings: {', '.join(changed)}; "
                "choose another out=, or --restart to drop it"
            )
    checkpoint.write_atomic(settings, config.to_yaml())


@contextmanager
def _reproducible(config: Config) -> Iterator[None]:
    """Threads and deterministic algorithms as wanted; afterwards as before."""
    threads = torch.get_num_threads()
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        # cuBLAS reads it at its first call; without it its sums may differ from run to run.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def _introduce(trainer: Trainer) -> None:
    task, config = trainer.task, trainer.config
    train, valid, test = sizes(task)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    print(f"{config.task}: {task.about}")
    print(f"{train} items to train on, {valid} to validate on, {test} to test on")
    where = f"{trainer.device}, {processes.count()} process(es)"
    print(f"{config.model}: {parameters} parameters, {where}")
    if task.skipped:
        print(f"{len(task.skipped)} records skipped:")
        print("\n".join(f"  {skip}" for skip in task.skipped))


if __name__ == "__main__":
    sys.exit(main())

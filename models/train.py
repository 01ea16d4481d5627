"""`strnn-train`: trains a model on a task; killed at any moment, the same command goes on.

    strnn-train run.yaml lr=3e-4 task_options.root=/data/SEED
    torchrun --nproc-per-node=2 -m strnn_models.train run.yaml

The folder of the run has config.yaml, log.csv and log.jsonl (a line for each epoch), the last two
checkpoints, selected.safetensors and, at the end, results.json. `strnn-eval` makes a report of it.
One process at a time writes there; files that no run wrote are neither replaced nor deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from strnn_models.data import tasks
from strnn_models.training import checkpoint, objective, processes, zoo
from strnn_models.training.checkpoint import CheckpointError
from strnn_models.training.config import Config, ConfigError, difference, load, load_whole
from strnn_models.training.folder import hold, write_atomic
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
        FolderError: another process writes there, or it has files that would be replaced.
        CheckpointError: its checkpoint is damaged.
        DataError: a data file is.
        TrainingError: the loss is not finite.
    """
    config.check()
    device = processes.choose_device(config.device)
    with processes.group(device), _reproducible(config):
        return _train(config, device, quiet, restart)


def _train(config: Config, device: torch.device, quiet: bool, restart: bool) -> dict[str, Any]:
    """The run inside the group; nothing of it outlives it, see `processes.group`."""
    run = Path(config.out)
    with ExitStack() as held:
        processes.first(lambda: held.enter_context(_open_run(run, config, restart)))
        trainer = prepare(config, device, quiet)
        is_first = processes.rank() == 0
        if not restart and trainer.resume() and is_first and not quiet:
            print(f"going on after epoch {trainer.epoch} of {run}")
        if is_first and not quiet:
            _introduce(trainer)
        processes.first(lambda: _begin(run, config, restart))
        trainer.fit()
        selected = run / checkpoint.SELECTED
        checkpoint.give(trainer.model, checkpoint.load_weights(selected), selected)
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

        def finish() -> None:
            write_logs(run, trainer.history)
            write_atomic(run / checkpoint.RESULTS, json.dumps(result, indent=1) + "\n")
            if not quiet:
                print(f"test, epoch {trainer.selected['epoch']}: {one_line(result['test'])}")

        processes.first(finish)
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


@contextmanager
def _open_run(run: Path, config: Config, restart: bool) -> Iterator[None]:
    """Holds the folder; what it has must be a run of the same settings, or will be dropped.

    A run that ends before its first checkpoint leaves nothing.
    """
    settings = run / checkpoint.CONFIG
    with hold(run, lambda: _is_run(run), checkpoint.writes):
        if checkpoint.exists(run) and not restart:
            changed = difference(load_whole(settings), config)
            if changed:
                raise ConfigError(
                    f"{run} has a run with other settings: {', '.join(changed)}; "
                    "choose another out=, or --restart to drop it"
                )
        try:
            yield
        finally:
            if not checkpoint.exists(run):
                checkpoint.drop(run)


def _is_run(run: Path) -> bool:
    """Whether a run has written here, by a pointer to a checkpoint; a damaged one has settings."""
    if checkpoint.is_readable(run):
        return True
    try:
        load_whole(run / checkpoint.CONFIG)
    except ConfigError:
        return False
    return checkpoint.exists(run)


def _begin(run: Path, config: Config, restart: bool) -> None:
    """Writes the settings; drops what a restart or a killed run left, now that all is well."""
    if restart or not checkpoint.exists(run):
        checkpoint.drop(run)
    write_atomic(run / checkpoint.CONFIG, config.to_yaml())


@contextmanager
def _reproducible(config: Config) -> Iterator[None]:
    """Threads and deterministic algorithms as wanted; afterwards as before."""
    threads = torch.get_num_threads()
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        # cuBLAS reads it at its first call; without it its sums may differ from run to run.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        memory.fill_uninitialized_memory = fill


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

"""The loop of `strnn-train`: epochs, checkpoints, predictions."""

from __future__ import annotations

import csv
import io
import json
import math
import signal
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from strnn_models.data import tasks
from strnn_models.data.records import DataError
from strnn_models.data.tasks import Task
from strnn_models.training import checkpoint, objective, processes
from strnn_models.training.checkpoint import CheckpointError
from strnn_models.training.config import Config
from strnn_models.training.folder import write_atomic
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is not finite."""


@dataclass
class Trainer:
    """A run in progress: everything that a checkpoint saves, and what it works on."""

    config: Config
    task: Task
    model: nn.Module
    device: torch.device
    quiet: bool = True

    def __post_init__(self) -> None:
        self.model = self.model.to(self.device)
        self.optimizer = _optimizer(self.config, self.model)
        is_fp16 = self.config.amp == "fp16"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=is_fp16)
        self.net = self.model
        if processes.count() > 1:
            ids = [self.device] if self.device.type == "cuda" else None
            self.net = DistributedDataParallel(self.model, device_ids=ids)
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] | None = None
        self.selected: dict[str, float] | None = None

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return Path(self.config.out)

    def fit(self) -> None:
        """Trains the epochs that are left, with a checkpoint after each."""
        while self.epoch < self.config.epochs and not self._is_stale():
            started = time.perf_counter()
            row = self._train_epoch()
            if self.task.valid is not None:
                found = predict(self.net, self.task, self.task.valid, self.config, self.device)
                scores = objective.score(self.task, found)
                row |= {f"valid_{name}": value for name, value in scores.items()}
                is_best = objective.is_better(self.task, scores, self.best)
            else:
                scores, is_best = {}, True
            row["seconds"] = round(time.perf_counter() - started, 3)
            self.epoch += 1
            self.history.append({"epoch": self.epoch, **row})
            is_selected = is_best or self.config.select == "last"
            if is_selected:
                self.selected = {"epoch": self.epoch, **scores}
            if is_best:
                self.best = {"epoch": self.epoch, **scores}
            self._save(is_selected)
            if processes.rank() == 0 and not self.quiet:
                print(one_line(self.history[-1]))

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the weights; random states of all processes."""
        generators = {"cpu": processes.gather(torch.get_rng_state().to(self.device))}
        if self.device.type == "cuda":
            generators["cuda"] = processes.gather(
                torch.cuda.get_rng_state(self.device).to(self.device)
            )
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": {name: [s.cpu() for s in states] for name, states in generators.items()},
            "history": self.history,
            "best": self.best,
            "selected": self.selected,
            "items": sizes(self.task),
        }

    def resume(self) -> bool:
        """Takes up the checkpoint of the run, if there is one.

        Raises:
            CheckpointError: it is damaged, or of another model or other data.
        """
        found = checkpoint.load(self.run)
        if found is None:
            return False
        self.epoch, weights, state = found
        weights_path, state_path = (self.run / name for name in checkpoint.names(self.epoch))
        checkpoint.give(self.model, weights, weights_path)
        try:
            items = list(state["items"])
            self.optimizer.load_state_dict(state["optimizer"])
            missing = self.optimizer.defaults.keys() - self.optimizer.param_groups[0].keys()
            if missing:
                raise ValueError(f"the optimizer was one without {', '.join(sorted(missing))}")
            self.scaler.load_state_dict(state["scaler"])
            self.history = [dict(row) for row in state["history"]]
            self.best, self.selected = (
                None if state[key] is None else dict(state[key]) for key in ("best", "selected")
            )
            states = state["random"]
            if len(states["cpu"]) == processes.count():
                torch.set_rng_state(states["cpu"][processes.rank()])
                if self.device.type == "cuda" and "cuda" in states:
                    torch.cuda.set_rng_state(states["cuda"][processes.rank()], self.device)
        except Exception as error:  # a state of another kind trips anywhere
            what = f"{type(error).__name__}: {textwrap.shorten(str(error), 200)}"
            raise CheckpointError(f"{state_path}: not the state of such a run ({what})") from error
        if items != sizes(self.task):
            raise CheckpointError(
                f"{self.run}: trained on {items} items, the task now has {sizes(self.task)}"
            )
        return True

    def _train_epoch(self) -> dict[str, float]:
        config, task = self.config, self.task
        lr = self._lr()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.net.train()
        order = torch.Generator().manual_seed(config.seed * 1_000_003 + self.epoch)
        batches = torch.randperm(len(task.train), generator=order).split(config.batch_size)
        shares = [processes.share(batch.tolist()) for batch in batches]
        loaded = _loaded(task.train, [items for items, _ in shares], config, self.device)
        bar = tqdm(
            zip(loaded, shares, strict=True),
            total=len(shares),
            desc=f"epoch {self.epoch + 1}/{config.epochs}",
            # None: no bar where the screen is a file.
            disable=True if self.quiet or processes.rank() else None,
            leave=False,
        )
        sums = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch, (_, weights) in bar:
            batch = {key: value.to(self.device) for key, value in batch.items()}
            terms = self._step(batch, torch.tensor(weights, device=self.device), lr)
            sums = sums + terms
            if not bar.disable:
                bar.set_postfix(loss=f"{_mean(sums):.4f}", refresh=False)
        loss = _mean(processes.total(sums))
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is not finite in epoch {self.epoch + 1}: "
                "try a smaller lr, clip_norm, or amp=off"
            )
        row = {"lr": lr, "train_loss": loss}
        if hasattr(self.model, "sparsity"):
            row |= {f"zeros_{name}": share for name, share in self.model.sparsity().items()}
        return row

    def _step(self, batch: dict[str, Tensor], weight: Tensor, lr: float) -> Tensor:
        """One optimizer step; the sum and the count of each of this share's loss terms."""
        config = self.config
        self.optimizer.zero_grad(set_to_none=True)
        with _precision(config, self.device):
            output = objective.call(self.net, batch)
        terms = objective.losses(output, batch, weight, self.task)
        value, count = terms.unbind(1)
        # DDP takes the mean over processes: times their number, the sum over all shares.
        everywhere = processes.total(count).clamp(min=1)
        loss = (value * processes.count() / everywhere).sum()
        if config.sparsity == "penalty" and hasattr(self.model, "proximal_step_"):
            loss = loss + self.model.penalty()
        self.scaler.scale(loss).backward()
        if config.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if config.sparsity == "proximal" and hasattr(self.model, "proximal_step_"):
            with torch.no_grad():
                self.model.proximal_step_(lr)
        return terms.detach().double()

    def _lr(self) -> float:
        if self.config.schedule == "cosine":
            return self.config.lr * 0.5 * (1 + math.cos(math.pi * self.epoch / self.config.epochs))
        return self.config.lr

    def _is_stale(self) -> bool:
        if not self.config.patience or self.task.valid is None or self.best is None:
            return False
        return self.epoch - self.best["epoch"] >= self.config.patience

    def _save(self, is_selected: bool) -> None:
        state = self.state()

        def write() -> None:
            weights = self.model.state_dict()
            if is_selected:
                write_atomic(self.run / checkpoint.SELECTED, checkpoint.pack(weights))
            checkpoint.save(self.run, self.epoch, weights, state)
            write_logs(self.run, self.history)

        processes.first(write)


@torch.no_grad()
def predict(
    model: nn.Module, task: Task, dataset: Dataset, config: Config, device: torch.device
) -> dict[str, Tensor]:
    """Predictions and targets of a whole dataset in its order, on the CPU.

    Returns:
        "predicted", class scores (n, K), or what is predicted of each frame, padded to the task's
        T; "lengths" (n,); and what else the items have besides x: "y", "valid" and so on.
    """
    model = getattr(model, "module", model)
    was_training = model.training
    model.eval()
    items, _ = processes.share(list(range(len(dataset))))
    batches = [items[k : k + config.batch_size] for k in range(0, len(items), config.batch_size)]
    parts: dict[str, list[Tensor]] = {}
    for batch in _loaded(dataset, batches, config, device):
        x = batch["x"] = batch["x"].to(device)
        lengths = batch.get("lengths", torch.full((len(x),), x.shape[1]))
        if "lengths" in batch:
            batch["lengths"] = lengths.to(device)
        with _precision(config, device):
            predicted = objective.call(model, batch).predicted.float()
        kept = {k: v for k, v in batch.items() if k not in ("x", "lengths")}
        kept |= {"predicted": predicted, "lengths": lengths}
        for key, value in kept.items():
            if task.kind != "classes" and value.ndim > 1:
                value = torch.stack([tasks.pad(key, item, task.sample_length) for item in value])
            parts.setdefault(key, []).append(value.to(device))
    model.train(was_training)
    found = {}
    for key, values in parts.items():
        shares = processes.gather(torch.cat(values))
        found[key] = torch.stack(shares, dim=1).flatten(0, 1)[: len(dataset)].cpu()
    return found


def write_logs(run: Path, history: Sequence[dict[str, float]]) -> None:
    """Writes log.jsonl and log.csv anew, a line for each epoch; the checkpoint has the same."""
    lines = [json.dumps(row) for row in history]
    write_atomic(run / checkpoint.LOG, "\n".join(lines) + "\n", durable=False)
    table = io.StringIO()
    names = list(dict.fromkeys(name for row in history for name in row))
    writer = csv.DictWriter(table, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_atomic(run / checkpoint.TABLE, table.getvalue(), durable=False)


def one_line(row: dict[str, float]) -> str:
    """Numbers by name, for people."""
    cells = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()]
    return ", ".join(cells)


def _optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=config.momentum, **options)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(model.parameters(), **options)


def _loaded(
    dataset: Dataset, batches: list[list[int]], config: Config, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """The batches of items, loaded by the workers.

    Raises:
        DataError: of an item, also where a worker met it.
    """
    loader = DataLoader(
        _Guarded(dataset),
        batch_sampler=batches,
        collate_fn=_collate,
        num_workers=config.workers,
        worker_init_fn=_ignore_interrupts,
        pin_memory=device.type == "cuda",
        # Without a generator of its own the loader draws from the one that a checkpoint saves.
        generator=torch.Generator().manual_seed(config.seed),
    )
    # Where Ctrl-C meets the loader's own bookkeeping it is lost, or the workers are.
    held = _interrupts_held if config.workers else nullcontext
    with held():
        batches = iter(loader)
    while True:
        with held():
            batch = next(batches, None)
        if batch is None:
            return
        if isinstance(batch, DataError):
            raise batch
        yield batch


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C is answered at the end of the block, a second one at once."""
    before, waiting = signal.getsignal(signal.SIGINT), []
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield  # it is ignored, or interrupts another thread
        return

    def wait(*arguments: Any) -> None:
        if waiting:
            before(*arguments)
        waiting.append(arguments)

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if waiting:
        before(*waiting[0])


def _ignore_interrupts(worker: int) -> None:
    # Ctrl-C reaches the workers too; it ends the first process, which ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass
class _Guarded(Dataset):
    """A data set that returns a DataError: raised in a worker, its message would be a traceback."""

    dataset: Dataset

    def __getitem__(self, index: int) -> dict[str, Tensor] | DataError:
        try:
            return self.dataset[index]
        except DataError as error:
            return error


def _collate(items: list[dict[str, Tensor] | DataError]) -> dict[str, Tensor] | DataError:
    errors = [item for item in items if isinstance(item, DataError)]
    return errors[0] if errors else tasks.collate(items)


def _precision(config: Config, device: torch.device) -> Any:
    dtype = torch.float16 if config.amp == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=config.amp != "off")


def _mean(terms: Tensor) -> float:
    """The loss from the sum and the count (terms, 2) of each of its terms."""
    value, count = terms.unbind(-1)
    return float((value / count.clamp(min=1)).sum())


def sizes(task: Task) -> list[int]:
    """Items of the three parts of a task."""
    return [0 if part is None else len(part) for part in (task.train, task.valid, task.test)]

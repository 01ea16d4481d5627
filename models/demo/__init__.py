"""The main job on real input: STRNN learns from images of handwritten digits.

``python -m strnn_models.demo [--quick] [--out out]`` trains on clips of digits and on single digits
(scikit-learn's ``load_digits``), prints a held-out score for each epoch, times one training step
with the fused backend and with the reference loops, and leaves pictures and ``demo.json`` in the
out folder.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, confusion_matrix
from sklearn.model_selection import StratifiedKFold
from strnn_models import STRNN
from strnn_models.demo import pictures
from torch import Tensor, nn
from tqdm import tqdm

import strnn_kernels as sk

MOMENTS = 9
FIRST, LAST = 2, 5  # the zero stands at one of these moments, counted from 0
RULE = f"""Task 1, clips of {MOMENTS} digits. Exactly one of them is a 0, at one of the moments \
{FIRST + 1} to {LAST + 1};
  the label is the digit right after it, 1 to 9. Space says which digit is which, time says which
  one comes after; the first two moments and the last two never matter."""


@dataclass(frozen=True)
class Budget:
    """How long to learn."""

    epochs: int  # on clips
    steps: int  # in an epoch, each on fresh clips
    batch: int  # clips in a step
    held_out: int  # clips for the score
    digit_epochs: int  # on single digits, in each of 5 folds
    digit_batch: int
    repeats: int  # of the timed step


FULL = Budget(24, 50, 64, 1000, digit_epochs=30, digit_batch=64, repeats=3)
QUICK = Budget(2, 4, 8, 50, digit_epochs=1, digit_batch=256, repeats=1)


@dataclass(frozen=True)
class Digits:
    """Images (n, 1, 8, 8) with values in 0 .. 1 and the digits (n,) that they show."""

    images: Tensor
    labels: Tensor

    def __getitem__(self, index: Tensor | slice) -> Digits:
        return Digits(self.images[index], self.labels[index])

    def __len__(self) -> int:
        return len(self.labels)


def read_digits(device: str) -> Digits:
    """The 1797 images of `load_digits`, in its order."""
    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32, device=device)
    return Digits(images[:, None], torch.tensor(data.target, device=device))


def make_clips(
    digits: Digits, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Clips drawn by the rule.

    Returns:
        clips (count, MOMENTS, 1, 8, 8), labels (count,) from 0 for the digit 1, and the digits of
        each clip (count, MOMENTS).
    """
    labels = digits.labels.cpu()
    zeros, others = (torch.nonzero(kind)[:, 0] for kind in (labels == 0, labels != 0))

    def draw(pool: Tensor, *shape: int) -> Tensor:
        return pool[torch.randint(len(pool), shape, generator=generator)]

    chosen = draw(others, count, MOMENTS)
    row = torch.arange(count)
    moment = torch.randint(FIRST, LAST + 1, (count,), generator=generator)
    chosen[row, moment] = draw(zeros, count)
    shown = labels[chosen]
    device = digits.images.device
    return digits.images[chosen.to(device)], (shown[row, moment + 1] - 1).to(device), shown


class Learner:
    """Adam, then a proximal step for the projections, under a one-cycle schedule."""

    def __init__(self, net: STRNN, lr: float, steps: int) -> None:
        self.net = net
        self.optimiser = torch.optim.Adam(net.parameters(), lr)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimiser, lr, total_steps=steps)

    def step(self, x: Tensor, y: Tensor) -> float:
        """One training step on a batch; its cross-entropy."""
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        self.net.proximal_step_(self.schedule.get_last_lr()[0])
        self.schedule.step()
        return loss.item()


@torch.no_grad()
def predict(net: STRNN, x: Tensor) -> Tensor:
    """The most likely class of each clip."""
    return torch.cat([net(part).argmax(1) for part in x.split(256)])


def learn_clips(train: Digits, test: Digits, budget: Budget, seed: int) -> tuple[STRNN, dict]:
    """Task 1. Returns the trained net and what happened on the way."""
    generator = torch.Generator().manual_seed(seed)
    x_test, y_test, shown = make_clips(test, budget.held_out, generator)
    guess, blind = 1 / 9, order_blind_score(shown)
    linear = linear_score(train, x_test, y_test, budget, generator)
    print(
        f"  Guessing: {guess:.3f}. Reading every digit but not their order: {blind:.3f} at best.\n"
        f"  Logistic regression on all {MOMENTS * 64} pixels: {linear:.3f}."
    )
    torch.manual_seed(seed)
    net = STRNN(
        in_channels=1,
        num_classes=9,
        sample_length=MOMENTS,
        topology=sk.Topology.grid(8, 8),
        lambda1=0.2,
        lambda2=0.3,
    ).to(x_test.device)
    learner = Learner(net, 4e-3, budget.epochs * budget.steps)
    history = []
    with tqdm(total=budget.epochs * budget.steps, desc="clips", unit="step") as bar:
        for epoch in range(1, budget.epochs + 1):
            losses = []
            for _ in range(budget.steps):
                x, y, _ = make_clips(train, budget.batch, generator)
                losses.append(learner.step(x, y))
                bar.update()
            guesses = predict(net, x_test).cpu()
            score = accuracy_score(y_test.cpu(), guesses)
            zeros = net.sparsity()
            history.append({"loss": statistics.fmean(losses), "score": score, **zeros})
            bar.write(
                f"  epoch {epoch:2d}: loss {history[-1]['loss']:.3f}, held-out score {score:.3f}, "
                f"zeros in G {zeros['spatial']:.0%}, in Q {zeros['temporal']:.0%}"
            )
    return net, {
        "history": history,
        "score": history[-1]["score"],
        "baselines": {"guessing": guess, "order-blind reader": blind, "linear": linear},
        "confusion": confusion_matrix(
            y_test.cpu(), predict(net, x_test).cpu(), labels=range(9)
        ).tolist(),
        "example": x_test[0, :, 0].tolist(),
        "example_label": y_test[0].item() + 1,
    }


def order_blind_score(shown: Tensor) -> float:
    """The score of naming the most frequent non-zero digit of each clip (count, MOMENTS)."""
    counts = nn.functional.one_hot(shown, 10)[:, :, 1:].sum(1)
    return (counts.amax(1) / counts.sum(1)).mean().item()


def linear_score(
    train: Digits, x_test: Tensor, y_test: Tensor, budget: Budget, generator: torch.Generator
) -> float:
    """Logistic regression on the pixels of whole clips."""
    x, y, _ = make_clips(train, 4 * budget.held_out, generator)
    linear = LogisticRegression(max_iter=1000).fit(x.flatten(1).cpu(), y.cpu())
    return float(linear.score(x_test.flatten(1).cpu(), y_test.cpu()))


def learn_digits(digits: Digits, budget: Budget, seed: int) -> dict:
    """Task 2, one digit: 5-fold cross-validation, logistic regression on the same folds."""
    pixels, labels = digits.images.flatten(1).cpu().numpy(), digits.labels.cpu().numpy()
    ours, linear, predicted = [], [], torch.zeros_like(digits.labels)
    with tqdm(total=5 * budget.digit_epochs, desc="single digits", unit="epoch") as bar:
        for train, test in StratifiedKFold(5).split(pixels, labels):
            regression = LogisticRegression(max_iter=5000).fit(pixels[train], labels[train])
            linear.append(float(regression.score(pixels[test], labels[test])))
            torch.manual_seed(seed)
            net = learn_fold(digits[torch.from_numpy(train)], budget, bar)
            held_out = digits[torch.from_numpy(test)]
            predicted[test] = predict(net, held_out.images[:, None])
            ours.append(accuracy_score(held_out.labels.cpu(), predicted[test].cpu()))
            bar.write(
                f"  fold {len(ours)}: STRNN {ours[-1]:.3f}, logistic regression {linear[-1]:.3f}, "
                f"zeros in G {net.sparsity()['spatial']:.0%}"
            )
    return {
        "score": statistics.fmean(ours),
        "linear": statistics.fmean(linear),
        "folds": ours,
        "linear_folds": linear,
        "confusion": confusion_matrix(digits.labels.cpu(), predicted.cpu()).tolist(),
    }


def learn_fold(train: Digits, budget: Budget, bar: tqdm) -> STRNN:
    """STRNN trained on single digits, clips of one moment."""
    net = STRNN(
        in_channels=1,
        num_classes=10,
        sample_length=1,
        tp_projection=1,
        topology=sk.Topology.grid(8, 8),
        activation="tanh",
        lambda1=0.3,
        lambda2=0.0,
    ).to(train.labels.device)
    epochs, batch = budget.digit_epochs, budget.digit_batch
    learner = Learner(net, 6e-3, epochs * math.ceil(len(train) / batch))
    for _ in range(epochs):
        for some in torch.randperm(len(train)).split(batch):
            part = train[some]
            learner.step(part.images[:, None], part.labels)
        bar.update()
    return net


def time_step(net: STRNN, train: Digits, budget: Budget, seed: int) -> dict:
    """Median seconds of one and the same training step, fused and with the reference loops."""
    x, y, _ = make_clips(train, budget.batch, torch.Generator().manual_seed(seed))
    seconds: dict[str, list[float]] = {"fused": [], "reference": []}
    loss = {}

    def run(kind: str) -> None:
        learner = Learner(copy.deepcopy(net), 1e-3, 10)
        _wait(x)
        start = time.perf_counter()
        loss[kind] = learner.step(x, y)
        _wait(x)
        seconds[kind].append(time.perf_counter() - start)

    run("fused")  # warms up
    seconds["fused"].clear()
    for _ in range(budget.repeats):
        for _ in range(3):
            run("fused")
        with sk.use_backend("reference"):
            run("reference")
    result = {kind: statistics.median(times) for kind, times in seconds.items()}
    difference = abs(loss["fused"] - loss["reference"])
    return result | {"ratio": result["reference"] / result["fused"], "loss_difference": difference}


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def main(argv: list[str] | None = None) -> None:
    """Runs the demo."""
    parser = argparse.ArgumentParser(prog="python -m strnn_models.demo", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that all works")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    budget, start = (QUICK if args.quick else FULL), time.perf_counter()

    ready = [name for name, reason in sk.backends().items() if reason is None]
    device = "cuda" if {"cuda", "triton"} & set(ready) and torch.cuda.is_available() else "cpu"
    print(f"strnn_kernels {sk.__version__}; backends here: {', '.join(ready)}; device {device}")
    digits = read_digits(device)
    split = 4 * len(digits) // 5
    train, test = digits[:split], digits[split:]
    print(
        f"Data: {len(digits)} images of handwritten digits, 8 x 8 (scikit-learn load_digits); "
        f"in task 1\n  the first {len(train)} are for training, the other {len(test)} for the "
        f"held-out score."
    )
    print(RULE)
    net, clips = learn_clips(train, test, budget, args.seed)
    print("Task 2, one digit: which of ten? 5-fold cross-validation, folds unshuffled.")
    single = learn_digits(digits, budget, args.seed)
    timing = time_step(net, train, budget, args.seed)

    args.out.mkdir(parents=True, exist_ok=True)
    G, Q = (projection.weight.detach().abs().cpu() for projection in net.projections())
    drawn = pictures.draw(args.out, clips, single, timing, G.numpy(), Q.numpy())
    report = {"clips": clips, "single_digits": single, "training_step_seconds": timing}
    (args.out / "demo.json").write_text(json.dumps(report, indent=1) + "\n")

    best, ms = max(clips["baselines"].values()), {k: 1e3 * timing[k] for k in timing}
    rows = {
        "Clips": f"held-out score {clips['score']:.3f}; the best of the simple answers {best:.3f}",
        "Single digits": f"STRNN {single['score']:.3f}, logistic regression "
        f"{single['linear']:.3f}, on the same five folds",
        "Training step": f"{budget.batch} clips of {MOMENTS} digits: fused {ms['fused']:.1f} ms, "
        f"reference {ms['reference']:.0f} ms, {timing['ratio']:.0f} times as fast",
        "Kept by Q": f"moments {moments(Q[0].numpy())} forward in time, "
        f"{moments(Q[1].numpy())} backward",
        "Pictures": " ".join(str(path) for path in drawn),
        "Time": f"{time.perf_counter() - start:.0f} s",
    }
    print("\n" + "\n".join(f"{name + ':':<15}{text}" for name, text in rows.items()))


def moments(q: np.ndarray) -> str:
    """The moments, counted from 1, that hold nearly all of the weight |Q| (K, T)."""
    weight = q.sum(0)
    kept = [str(t + 1) for t, w in enumerate(weight) if w > 0.05 * weight.max()]
    return " ".join(kept) or "none"

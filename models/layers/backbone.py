"""From frames to feature vectors to states: what the four video models have in common.

Frames go through any network that makes feature maps of them, only the valid ones; features go
through recurrent layers, with lengths. Weights are read from files that cannot execute code.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from strnn_models.common import files, weights
from torch import Tensor, nn

import strnn_kernels as sk
from strnn_kernels import checks


class FrameCNN(nn.Sequential):
    """A compact CNN after VGG: stages of 3 x 3 convolutions, each closed by 2 x 2 max-pooling.

    Frames (frames, C, rows, cols) give maps (frames, F, rows // 2^S, cols // 2^S) after S stages,
    with F = widths[-1].

    Args:
        in_channels: C, 3 for colour.
        widths: channels of each stage; ours, small enough to train on a CPU (VGG-16: 64, 128, 256,
            512, 512).
        convs: convolutions in a stage; 2, as in the first stages of VGG-16.
        norm: before each ReLU: "group" (ours: it neither mixes frames of different clips nor
            depends on how a batch is split over processes), "batch", or "none" (VGG).
        dropout: after each stage; none by default, as in VGG's convolutions.

    Raises:
        ArgumentError: norm is unknown.

    Source: the pattern of Simonyan & Zisserman, arXiv 1409.1556; the papers' own backbones
        (VGG-Face, ResNet-50) can be passed to the models in its place.
    """

    def __init__(
        self,
        in_channels: int = 3,
        widths: Sequence[int] = (32, 64, 128),
        *,
        convs: int = 2,
        norm: str = "group",
        dropout: float = 0.0,
    ) -> None:
        one_of("FrameCNN", "norm", norm, ("group", "batch", "none"))
        layers: list[nn.Module] = []
        last = in_channels
        for width in widths:
            for _ in range(convs):
                layers.append(nn.Conv2d(last, width, 3, padding=1, bias=norm == "none"))
                if norm == "group":
                    layers.append(nn.GroupNorm(math.gcd(8, width), width))
                elif norm == "batch":
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU())
                last = width
            layers.append(nn.MaxPool2d(2))
            if dropout:
                layers.append(nn.Dropout(dropout))
        super().__init__(*layers)
        self.in_channels, self.out_channels, self.stride = in_channels, last, 2 ** len(widths)
        for layer in self:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")


class FrameEncoder(nn.Module):
    """Feature vectors (B, T, F) of clips of frames (B, T, C, rows, cols).

    The backbone sees the valid frames alone: padding costs nothing and enters no statistics. Clips
    that are features already, (B, T, F), pass: a model can be trained on stored features.

    Args:
        backbone: any module from frames (frames, C, rows, cols) to maps (frames, F, rows', cols')
            or vectors (frames, F); `FrameCNN()` if None.
        pool: what is done with maps: "mean" over their positions (ours), or "flatten".
        feature_size: F after pooling; None: `backbone.out_channels`, or, flattened,
            `backbone.feature_size`.

    Raises:
        ArgumentError: pool is unknown, or nothing says how wide a feature is.
    """

    def __init__(
        self,
        backbone: nn.Module | None = None,
        *,
        pool: str = "mean",
        feature_size: int | None = None,
    ) -> None:
        super().__init__()
        one_of("FrameEncoder", "pool", pool, ("mean", "flatten"))
        self.backbone = FrameCNN() if backbone is None else backbone
        known = "out_channels" if pool == "mean" else "feature_size"
        if feature_size is None:
            feature_size = getattr(self.backbone, known, None)
        if feature_size is None:
            raise sk.ArgumentError(
                f"FrameEncoder: the backbone {type(self.backbone).__name__} has no {known}: "
                "pass feature_size="
            )
        self.pool, self.feature_size = pool, feature_size

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Features, (B, T, F), zero past the end of each clip.

        Args:
            x: (B, T, C, rows, cols), or features (B, T, F).
            lengths: int (B,), the valid frames of each clip; None: all.

        Raises:
            ArgumentError: a shape does not fit.
        """
        if isinstance(x, Tensor) and x.ndim == 3:
            if x.shape[2] != self.feature_size or not x.shape[1]:
                raise sk.ArgumentError(
                    f"FrameEncoder: x must have shape (B, T, F) = (.., .., {self.feature_size}) or "
                    f"(B, T, C, rows, cols), got {tuple(x.shape)}"
                )
            inside = valid("FrameEncoder", lengths, x)
            return x if inside is None else torch.where(inside[..., None], x, 0)
        maps = self.maps(x, lengths)
        if maps.ndim == 5:
            maps = maps.mean((3, 4)) if self.pool == "mean" else maps.flatten(2)
        if maps.ndim != 3 or maps.shape[2] != self.feature_size:
            raise sk.ArgumentError(
                f"FrameEncoder: the backbone must give F = {self.feature_size} features for each "
                f"frame (pool={self.pool}), got {tuple(maps.shape[2:])}"
            )
        return maps

    def maps(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What the backbone makes of clips, (B, T, F, rows', cols') or (B, T, F), zero past ends.

        Arguments and errors as in `forward`, but x has to be frames.
        """
        name = "FrameEncoder"
        B, T, C, rows, cols = checks.dims(name, "x", checks.tensor(name, "x", x), "B T C rows cols")
        wanted, stride = (getattr(self.backbone, key, None) for key in ("in_channels", "stride"))
        if wanted not in (None, C) or min(rows, cols) < (stride or 1):
            raise sk.ArgumentError(
                f"{name}: x must have shape (B, T, C, rows, cols) = (.., .., {wanted or C}, "
                f"at least {stride or 1}, at least {stride or 1}), got {tuple(x.shape)}"
            )
        inside = valid(name, lengths, x)
        if inside is None:
            maps = self.backbone(x.flatten(0, 1))
            return maps.unflatten(0, (B, T))
        maps = self.backbone(x[inside])
        padded = maps.new_zeros(B, T, *maps.shape[1:])
        return padded.index_put((inside,), maps)


class Recurrence(nn.Module):
    """Recurrent layers over the time of x (B, T, F), giving states (B, T, D * H) that know lengths.

    Args:
        input_size: F.
        hidden_size: H.
        cell: "elman", "gru" or "lstm".
        num_layers: how many.
        dropout: between layers.
        bidirectional: whether D is 2; otherwise a state depends on nothing that comes after it.
        activation: of "elman".

    Raises:
        ArgumentError: cell or activation is unknown.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        cell: str = "gru",
        num_layers: int = 1,
        dropout: float = 0.0,
        bidirectional: bool = False,
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        one_of("Recurrence", "cell", cell, ("elman", "gru", "lstm"))
        self.output_size = D_H = hidden_size * (2 if bidirectional else 1)
        make: Callable[..., nn.Module] = sk.TemporalRNN
        options: dict[str, Any] = {"activation": activation}
        if cell != "elman":
            make, options = {"gru": sk.GRU, "lstm": sk.LSTM}[cell], {"batch_first": True}
        sizes = [input_size] + [D_H] * (num_layers - 1)
        self.layers = nn.ModuleList(
            make(size, hidden_size, bidirectional=bidirectional, **options) for size in sizes
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """States, (B, T, D * H), zero past the end of each clip.

        Raises:
            ArgumentError: x or lengths has the wrong shape.
        """
        checks.dims("Recurrence", "x", checks.tensor("Recurrence", "x", x), "B T F")
        for i, layer in enumerate(self.layers):
            x, _ = layer(self.dropout(x) if i else x, lengths=lengths)
        return x


def valid(function: str, lengths: Tensor | None, x: Tensor) -> Tensor | None:
    """Which steps of x (B, T, ..) count: bool (B, T), or None if all do.

    Raises:
        ArgumentError: lengths are not integers in 0..T of shape (B,).
    """
    if lengths is None:
        return None
    B, T = x.shape[:2]
    lengths = checks.lengths(function, lengths, B, T)
    return torch.arange(T, device=x.device) < lengths.to(x.device)[:, None]


def saliency(score: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """How much each pixel moves a score: ``|d score / d x|``, the largest over channels.

    Args:
        score: from clips to one number each, such as `lambda x: model(x)[:, label]`.
        x: clips, (B, T, C, rows, cols).

    Returns:
        (B, T, rows, cols).
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(score(x).sum(), x)
    return slope.abs().amax(2)


def load_weights(
    module: nn.Module, path: str | Path, *, prefix: str = "", strict: bool = True
) -> list[str]:
    """Copies weights from a file into a module; nothing in the file can be executed.

    Args:
        module: the receiver.
        path: a .safetensors file, or a state_dict (or a dict that holds one under "state_dict")
            written by torch.save.
        prefix: only entries whose names start with it, and without it: "backbone." for instance.
        strict: refuse a file that lacks a parameter or has one too many.

    Returns:
        The names that the module has and the file has not.

    Raises:
        ArgumentError: the file is not readable as weights, or the names or shapes do not fit.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load  # optional: the train extra
    else:
        load = weights.unpickle
    try:
        state: Any = load(files.read_bytes(path, weights.MOST))
    except Exception as error:  # what a reader trips over in a damaged file varies
        why = textwrap.shorten(str(error), 300)
        raise sk.ArgumentError(f"load_weights: {path} holds no readable weights: {why}") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise sk.ArgumentError(f"load_weights: {path} holds no state_dict of tensors")
    state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    try:
        return module.load_state_dict(state, strict=strict).missing_keys
    except RuntimeError as error:
        raise sk.ArgumentError(f"load_weights: {path}: {error}") from error


def one_of(function: str, name: str, value: object, known: Sequence[str]) -> None:
    """Refuses an unknown option.

    Raises:
        ArgumentError: value is not one of the known ones.
    """
    if value not in known:
        raise sk.ArgumentError(
            f"{function}: {name} must be one of {', '.join(known)}, got {value!r}"
        )

"""Valence and arousal over time: a CNN-LSTM, or a 3-D CNN inflated from a 2-D one, over windows.

Teixeira, Granger, Koerich, "Continuous Emotion Recognition with Spatiotemporal Convolutional Neural
Networks", arXiv 2011.09280, Applied Sciences 11(24):11738, 2021. We could read its abstract, not
its text: "recalled" marks what we remember of it, unchecked. "Inflation code" is a published
program of the same laboratory (temporal-stochastic-softmax), which we read. Whole videos, and what
is done to their traces afterwards, are in `postprocess`.
"""

from __future__ import annotations

import copy

import torch
from strnn_models.layers.backbone import FrameCNN, FrameEncoder, Recurrence, one_of, valid
from torch import Tensor, nn

import strnn_kernels as sk


class CNNLSTM(nn.Module):
    """Traces of clips: features of frames, an LSTM, a linear layer.

    Args:
        num_values: V; 2, valence and arousal.
        backbone: frames to maps or vectors; None: the compact `FrameCNN` (recalled: VGG-16 or
            ResNet-50, trained on faces).
        pool: "mean" or "flatten", see `FrameEncoder`.
        feature_size: F, see `FrameEncoder`.
        cell: "lstm" (abstract), "gru", or "elman".
        hidden_size: H; ours, the paper's is not known.
        num_layers: ours, likewise.
        bidirectional: ours, likewise.
        dropout: of features and of states, in training; ours, likewise.

    Raises:
        ArgumentError: an option is unknown.
    """

    def __init__(
        self,
        num_values: int = 2,
        *,
        backbone: nn.Module | None = None,
        pool: str = "mean",
        feature_size: int | None = None,
        cell: str = "lstm",
        hidden_size: int = 128,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = FrameEncoder(backbone, pool=pool, feature_size=feature_size)
        self.dropout = nn.Dropout(dropout)
        self.recurrence = Recurrence(
            self.encoder.feature_size,
            hidden_size,
            cell=cell,
            num_layers=num_layers,
            bidirectional=bidirectional,
            dropout=dropout,
        )
        self.output = nn.Linear(self.recurrence.output_size, num_values)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Traces, (B, T, V), zero past the end of each clip.

        Args:
            x: clips (B, T, C, rows, cols), or stored features (B, T, F).
            lengths: int (B,), the valid frames of each clip; None: all.

        Raises:
            ArgumentError: a shape does not fit.
        """
        states = self.recurrence(self.dropout(self.encoder(x, lengths)), lengths)
        inside = valid("CNNLSTM", lengths, states)
        values = self.output(self.dropout(states))
        return values if inside is None else torch.where(inside[..., None], values, 0)


class InflatedCNN(nn.Module):
    """Traces of clips: a 3-D CNN made of a 2-D one, the mean over positions, a linear layer.

    Args:
        num_values: V; 2, valence and arousal.
        backbone: the 2-D network, from frames to maps of F channels, with its trained weights;
            copied. None: the compact `FrameCNN` (recalled: VGG-16 or ResNet-50).
        feature_size: F; None: `backbone.out_channels`.
        time: taps in time of each convolution; 3 (inflation code).
        mode: "center" or "mean", see `inflate_weight`; "center", ours: the inflation code has both.
        time_padding: "replicate" or "zeros", see `inflate`.
        dropout: before the linear layer, in training; ours.

    Raises:
        ArgumentError: an option is unknown, or the backbone has a layer that cannot be inflated.
    """

    def __init__(
        self,
        num_values: int = 2,
        *,
        backbone: nn.Module | None = None,
        feature_size: int | None = None,
        time: int = 3,
        mode: str = "center",
        time_padding: str = "replicate",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        backbone = FrameCNN() if backbone is None else backbone
        if feature_size is None:
            feature_size = getattr(backbone, "out_channels", None)
        if feature_size is None:
            raise sk.ArgumentError(
                f"InflatedCNN: the backbone {type(backbone).__name__} has no out_channels: "
                "pass feature_size="
            )
        self.backbone = inflate(backbone, time, mode=mode, time_padding=time_padding)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(feature_size, num_values)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Traces, (B, T, V), zero past the end of each clip.

        Args:
            x: clips, (B, T, C, rows, cols).
            lengths: int (B,), the valid frames of each clip, which then stands still; None: all.

        Raises:
            ArgumentError: a shape does not fit.
        """
        if x.ndim != 5 or not x.shape[1]:
            raise sk.ArgumentError(
                f"InflatedCNN: x must have shape (B, T, C, rows, cols), got {tuple(x.shape)}"
            )
        B, T = x.shape[:2]
        inside = valid("InflatedCNN", lengths, x)
        if inside is not None:
            last = (inside.sum(1, keepdim=True) - 1).clamp(min=0)
            held = torch.arange(T, device=x.device).minimum(last)  # (B, T)
            x = x[torch.arange(B, device=x.device)[:, None], held]
        maps = self.backbone(x.transpose(1, 2))  # (B, F, T, rows', cols')
        if maps.ndim != 5 or maps.shape[1:3] != (self.output.in_features, T):
            raise sk.ArgumentError(
                "InflatedCNN: the maps of the backbone must have (F, T) = "
                f"{(self.output.in_features, T)}, got {tuple(maps.shape)}"
            )
        values = self.output(self.dropout(maps.mean((3, 4)).mT))
        return values if inside is None else torch.where(inside[..., None], values, 0)


def inflate_weight(weight: Tensor, time: int, *, mode: str = "mean") -> Tensor:
    """The weight of a 3-D convolution that does to a still video what a 2-D one does to its frame.

    Args:
        weight: (O, I, rows, cols).
        time: taps in time.
        mode: "mean", the weight over `time` at each tap; or "center", the weight at the middle tap
            and zeros elsewhere.

    Returns:
        (O, I, time, rows, cols).

    Raises:
        ArgumentError: mode is unknown, or time is even with "center".

    Source: I3D (mean), Detect-and-Track (centre); both in the inflation code.
    """
    one_of("inflate_weight", "mode", mode, ("mean", "center"))
    if time < 1 or (mode == "center" and time % 2 == 0):
        raise sk.ArgumentError(
            f"inflate_weight: time must be positive, and odd for a centre, got {time}"
        )
    if mode == "mean":
        return weight[:, :, None].repeat(1, 1, time, 1, 1) / time
    inflated = weight.new_zeros(*weight.shape[:2], time, *weight.shape[2:])
    inflated[:, :, time // 2] = weight
    return inflated


class InflatedConv(nn.Conv3d):
    """A 3-D convolution made of a 2-D one; as many steps come out as go in.

    Args:
        conv: the 2-D convolution.
        time: taps in time, odd.
        mode: see `inflate_weight`.
        time_padding: see `inflate`.

    Raises:
        ArgumentError: the convolution's padding is not in numbers or not of zeros, or time is even.
    """

    def __init__(self, conv: nn.Conv2d, time: int, *, mode: str, time_padding: str) -> None:
        if isinstance(conv.padding, str) or conv.padding_mode != "zeros" or time % 2 == 0:
            raise sk.ArgumentError(
                "InflatedConv: padding must be numbers of zeros and time odd, got "
                f"padding={conv.padding!r}, padding_mode={conv.padding_mode!r}, time={time}"
            )
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            (time, *conv.kernel_size),
            stride=(1, *conv.stride),
            padding=(0, *conv.padding),
            dilation=(1, *conv.dilation),
            groups=conv.groups,
            bias=conv.bias is not None,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )
        self.time_padding = time_padding
        with torch.no_grad():
            self.weight.copy_(inflate_weight(conv.weight, time, mode=mode))
            if conv.bias is not None:
                self.bias.copy_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolves x (B, I, T, rows, cols)."""
        p = self.kernel_size[0] // 2
        if p:
            first, last = x[:, :, :1], x[:, :, -1:]
            if self.time_padding == "zeros":
                first, last = torch.zeros_like(first), torch.zeros_like(last)
            x = torch.cat([first] * p + [x] + [last] * p, 2)
        return super().forward(x)


def inflate(
    module: nn.Module, time: int = 3, *, mode: str = "mean", time_padding: str = "replicate"
) -> nn.Module:
    """A copy of a 2-D network that takes videos (B, C, T, rows, cols) and keeps all T steps.

    Convolutions wider than one pixel get `time` taps, others one; pooling is left to space; batch
    norms keep their statistics. What acts on each number or each channel stays as it is.

    Args:
        module: the network; its forward must not care how many dimensions its input has.
        time: taps in time, odd; 3 (inflation code).
        mode: "mean" or "center", see `inflate_weight`.
        time_padding: before the first and after the last frame: "replicate" (ours: a still video
            then gives the 2-D network's output at every step), or "zeros" (inflation code: it does
            so only away from the ends).

    Raises:
        ArgumentError: an option is unknown, or there is a layer that has no 3-D form here.
    """
    one_of("inflate", "time_padding", time_padding, ("replicate", "zeros"))

    def inflated(layer: nn.Module) -> nn.Module:
        if isinstance(layer, nn.Conv2d):
            taps = time if max(layer.kernel_size) > 1 else 1
            return InflatedConv(layer, taps, mode=mode, time_padding=time_padding)
        if type(layer) in _IN_SPACE:
            return _IN_SPACE[type(layer)](layer).train(layer.training)
        if type(layer).__name__.endswith("2d") or isinstance(layer, nn.Linear | nn.Flatten):
            raise sk.ArgumentError(f"inflate: {type(layer).__name__} has no 3-D form here")
        for name, child in layer._modules.items():
            if child is not None:
                setattr(layer, name, inflated(child))
        return layer

    return inflated(copy.deepcopy(module))


def _batch_norm(norm: nn.BatchNorm2d) -> nn.BatchNorm3d:
    new = nn.BatchNorm3d(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    new.load_state_dict(norm.state_dict())
    return new.to(next(iter([*norm.parameters(), *norm.buffers()]), torch.empty(())))


def _in_space(sizes: object, in_time: int) -> tuple[int, int, int]:
    return (in_time, *(sizes if isinstance(sizes, tuple) else (sizes, sizes)))


_IN_SPACE = {
    nn.BatchNorm2d: _batch_norm,
    nn.Dropout2d: lambda layer: nn.Dropout3d(layer.p, layer.inplace),
    nn.MaxPool2d: lambda pool: nn.MaxPool3d(
        _in_space(pool.kernel_size, 1),
        _in_space(pool.stride, 1),
        _in_space(pool.padding, 0),
        _in_space(pool.dilation, 1),
        ceil_mode=pool.ceil_mode,
    ),
    nn.AvgPool2d: lambda pool: nn.AvgPool3d(
        _in_space(pool.kernel_size, 1),
        _in_space(pool.stride, 1),
        _in_space(pool.padding, 0),
        pool.ceil_mode,
        pool.count_include_pad,
        pool.divisor_override,
    ),
    nn.AdaptiveAvgPool2d: lambda pool: nn.AdaptiveAvgPool3d(_in_space(pool.output_size, None)),
    nn.AdaptiveMaxPool2d: lambda pool: nn.AdaptiveMaxPool3d(_in_space(pool.output_size, None)),
}

"""The models by name, each built to fit a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from strnn_models.common.options import brief, check_options
from strnn_models.data.tasks import KINDS, Task
from strnn_models.layers.backbone import FrameCNN, load_weights, one_of
from strnn_models.systems.attention_pooling import AttentionPooling
from strnn_models.systems.categorical_dimensional import CategoricalDimensional
from strnn_models.systems.cnn_irnn import CNNIRNN, KahouCNN
from strnn_models.systems.continuous import CNNLSTM, InflatedCNN
from strnn_models.systems.strnn import STRNN
from torch import Tensor, nn

import strnn_kernels as sk

Widths = Sequence[int] | None

#: Name -> who makes the model, then who takes the options that the maker hands on.
_MODELS: dict[str, tuple[Callable[..., nn.Module], ...]] = {}


def register(
    name: str, *behind: type[nn.Module]
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Decorator: makes a function from a task and options to a model known under a name.

    Args:
        name: of the model in a configuration.
        behind: the module to which the function hands the options that are not its own.
    """

    def add(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        _MODELS[name] = (make, *behind)
        return make

    return add


def names() -> list[str]:
    """The models there are."""
    return sorted(_MODELS)


def build(name: str, task: Task, **options: Any) -> nn.Module:
    """The model of that name for the task.

    Raises:
        ValueError: there is no such model, it has no such option, or it does not fit the task.
    """
    if name not in _MODELS:
        raise ValueError(f"model must be one of {', '.join(names())}, got {brief(name)}")
    check_options("model", name, options, *_MODELS[name], fixed=_FIXED)
    try:
        return _MODELS[name][0](task, **options)
    except RuntimeError as error:  # torch's, of a size that is negative
        raise ValueError(f"model {name}: {error}") from error


class FramesSTRNN(nn.Module):
    """STRNN on videos: each frame becomes a grid of patches, or of the features of a CNN.

    Args:
        task: of frames (channels, rows, cols).
        patch: rows and cols of a patch; its pixels are the features of a cell.
        widths: of the stages of a `FrameCNN` in place of patches, each of which halves the grid.
        weights: a file of the CNN's weights, see `load_weights`.
        options: of `STRNN`.
    """

    def __init__(
        self,
        task: Task,
        patch: int = 1,
        widths: Widths = None,
        weights: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if patch < 1 or (widths is None and (task.size[0] % patch or task.size[1] % patch)):
            raise ValueError(f"model strnn: patch must divide {task.size}, got {patch}")
        step = patch if widths is None else 2 ** len(widths)
        rows, cols = (extent // step for extent in task.size)
        if widths is None:
            self.cells: nn.Module = nn.PixelUnshuffle(patch)
            channels = task.channels * patch**2
        else:
            self.cells, channels = _backbone(task, widths, weights), widths[-1]
        self.strnn = STRNN(
            in_channels=channels,
            num_classes=len(task.classes),
            sample_length=task.sample_length,
            topology=sk.Topology.grid(rows, cols),
            **options,
        )

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Class scores of clips (B, T, C, rows, cols)."""
        return self.strnn(self.cells(x.flatten(0, 1)).unflatten(0, x.shape[:2]), lengths)

    def penalty(self) -> Tensor:
        """As `STRNN.penalty`."""
        return self.strnn.penalty()

    def proximal_step_(self, lr: float) -> None:
        """As `STRNN.proximal_step_`."""
        self.strnn.proximal_step_(lr)

    def sparsity(self) -> dict[str, float]:
        """As `STRNN.sparsity`."""
        return self.strnn.sparsity()


@register("strnn", STRNN)
def strnn(
    task: Task,
    patch: int = 1,
    widths: Widths = None,
    weights: str | None = None,
    **options: Any,
) -> nn.Module:
    """STRNN; on frames with `FramesSTRNN`'s options patch, widths and weights."""
    _needs("strnn", task, "classes")
    if task.topology is None:
        return FramesSTRNN(task, patch, widths, weights, **options)
    return STRNN(
        in_channels=task.channels,
        num_classes=len(task.classes),
        sample_length=task.sample_length,
        topology=task.topology,
        **options,
    )


@register("cnn_irnn", CNNIRNN)
def cnn_irnn(
    task: Task,
    widths: Widths = None,
    weights: str | None = None,
    frame_cnn: str = "compact",
    **options: Any,
) -> nn.Module:
    """CNN and IRNN for categories in video, `CNNIRNN`; frame_cnn="kahou" is `KahouCNN`."""
    _needs("cnn_irnn", task, "classes", frames=True)
    one_of("model cnn_irnn", "frame_cnn", frame_cnn, ("compact", "kahou"))
    if frame_cnn == "compact":
        backbone = _backbone(task, widths, weights)
    else:
        backbone = _sized(KahouCNN(task.channels), task, weights)
        options = {"pool": "flatten"} | options
    return CNNIRNN(len(task.classes), backbone=backbone, **options)


@register("categorical_dimensional", CategoricalDimensional)
def categorical_dimensional(
    task: Task, widths: Widths = None, weights: str | None = None, **options: Any
) -> nn.Module:
    """CNN and GRU with the head that the task has labels for, `CategoricalDimensional`."""
    _needs("categorical_dimensional", task, *KINDS, frames=True)
    modes = {"classes": "categorical", "frames": "categorical", "both": "combined"}
    return CategoricalDimensional(
        len(task.classes),
        len(task.traces),
        mode=modes.get(task.kind, "dimensional"),
        per="clip" if task.kind == "classes" else "frame",
        backbone=_backbone(task, widths, weights),
        **options,
    )


@register("attention_pooling", AttentionPooling)
def attention_pooling(
    task: Task, widths: Widths = None, weights: str | None = None, **options: Any
) -> nn.Module:
    """Spatial attention and temporal softmax, `AttentionPooling`."""
    _needs("attention_pooling", task, "classes", frames=True)
    return AttentionPooling(len(task.classes), backbone=_backbone(task, widths, weights), **options)


@register("cnn_lstm", CNNLSTM)
def cnn_lstm(
    task: Task, widths: Widths = None, weights: str | None = None, **options: Any
) -> nn.Module:
    """Valence and arousal by CNN and LSTM, `CNNLSTM`."""
    _needs("cnn_lstm", task, "traces", "units", frames=True)
    return CNNLSTM(len(task.traces), backbone=_backbone(task, widths, weights), **options)


@register("inflated_cnn", InflatedCNN)
def inflated_cnn(
    task: Task, widths: Widths = None, weights: str | None = None, **options: Any
) -> nn.Module:
    """Valence and arousal by an inflated 3-D CNN, `InflatedCNN`."""
    _needs("inflated_cnn", task, "traces", "units", frames=True)
    return InflatedCNN(len(task.traces), backbone=_backbone(task, widths, weights), **options)


def _backbone(task: Task, widths: Widths, weights: str | None) -> nn.Module:
    """A FrameCNN with a stage for each width; by default three, fewer if the frame is too small.

    `weights`: a file of its weights, see `load_weights`.
    """
    if widths is None:
        widths = [w for s, w in enumerate((32, 64, 128), start=1) if min(task.size) >= 2**s]
    if not widths or min(task.size) < 2 ** len(widths):
        raise ValueError(f"widths: 1 stage or more, frames of {task.size} halved by each: {widths}")
    return _sized(FrameCNN(task.channels, widths), task, weights)


def _sized(backbone: nn.Module, task: Task, weights: str | None) -> nn.Module:
    """The network with its weights and, for pool="flatten", the size of its maps."""
    if weights is not None:
        load_weights(backbone, weights)
    cells = [extent // backbone.stride for extent in task.size]
    backbone.feature_size = backbone.out_channels * cells[0] * cells[1]
    return backbone


def _needs(name: str, task: Task, *kinds: str, frames: bool = False) -> None:
    if task.kind not in kinds:
        known = " or ".join(kinds)
        raise ValueError(f"model {name} predicts {known}, the task {task.name} has {task.kind}")
    if frames and task.size is None:
        raise ValueError(f"model {name} takes frames, the task {task.name} has electrodes")


# What the task decides, or what no setting can spell.
_FIXED = (
    *("task", "options", "backbone", "topology", "mask", "feature_size", "mode", "per"),
    *("num_classes", "num_values", "num_electrodes", "in_channels", "sample_length"),
)

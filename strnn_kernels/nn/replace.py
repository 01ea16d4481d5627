"""A model's recurrent layers, replaced in place."""

from __future__ import annotations

from typing import Any

from torch import nn

from strnn_kernels import checks
from strnn_kernels.backends import BackendError, select

from .recurrent import GRU, LSTM, RNN

_CLASSES = {ours.torch_class: ours for ours in (RNN, GRU, LSTM)}


class Replaced(list):
    """The names of the layers that were replaced.

    Attributes:
        left: the layers of torch.nn that were not, by name, with the reason.
    """

    def __init__(self):
        super().__init__()
        self.left: dict[str, str] = {}


def replace_rnns(module: nn.Module) -> Replaced:
    """Makes every ``nn.RNN``, ``nn.GRU`` and ``nn.LSTM`` of a model one of ours, in place.

    A layer stays the object that it is, with its Parameters (so an optimizer goes on), options,
    mode and hooks, and becomes an instance of :class:`strnn_kernels.RNN`, ``GRU`` or ``LSTM``;
    ``module`` may be such a layer itself, with the name "". What cannot be replaced stays as it
    was: layers with a proj_size, of a user's own subclass (its code may rely on its base), with
    parametrized weights, and those on a device or of a dtype for which no backend has their cell.

    Args:
        module: the model.

    Returns:
        The names of the layers replaced, a list, with the reasons for the others in its attribute
        ``left``, a dict.

    Raises:
        ArgumentError: module is not a Module.

    Example:
        >>> model = nn.Sequential(nn.GRU(3, 4), nn.Identity(), nn.LSTM(4, 4, proj_size=2))
        >>> replaced = replace_rnns(model)
        >>> replaced, replaced.left
        (['0'], {'2': 'rnn must have proj_size = 0, got 2'})
    """
    if not isinstance(module, nn.Module):
        raise checks.ArgumentError(
            f"replace_rnns: module must be a torch.nn.Module, got {type(module).__name__}"
        )
    replaced = Replaced()
    for name, layer in list(module.named_modules()):
        ours = next((to for of, to in _CLASSES.items() if isinstance(layer, of)), None)
        if ours is None:
            continue
        reason = ours._refusal(layer) or _no_backend(layer)
        if reason:
            replaced.left[name] = reason
        else:
            ours._adopt(layer)
            replaced.append(name)
    return replaced


def _no_backend(layer: nn.RNNBase) -> str | None:
    weight: Any = layer.weight_ih_l0
    try:
        select("replace_rnns", weight.device, weight.dtype)
    except BackendError as error:
        return str(error)
    return None

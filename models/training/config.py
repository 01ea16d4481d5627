"""Configuration of a run: a dataclass, filled from a YAML file and from key=value arguments."""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from strnn_models.common.files import read_bytes, why
from strnn_models.common.options import brief

CHOICES = {
    "optimizer": ("adam", "adamw", "sgd"),
    "schedule": ("constant", "cosine"),
    "sparsity": ("proximal", "penalty", "none"),
    "select": ("best", "last"),
    "amp": ("off", "bf16", "fp16"),
}


#: Characters of settings that are read, and of one text in them; how deep lists may be nested.
MOST, MOST_TEXT, DEEPEST = 1 << 16, 1 << 12, 20


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type or out of range; says which and where it was read."""


@dataclass
class Config:
    """All settings of a run.

    Attributes:
        task: name of the task, see `strnn_models.data.tasks`.
        task_options: its options, such as root.
        model: name of the model, see `strnn_models.training.zoo`.
        model_options: its options.
        out: folder of the run: settings, logs, checkpoints, report.
        seed: of the initial weights, the order of the items and dropout.
        epochs: to train.
        batch_size: items in a step, over all processes together.
        optimizer: "adam", "adamw" or "sgd".
        lr: learning rate.
        momentum: of sgd.
        weight_decay: of the optimizer.
        schedule: of the learning rate: "constant", or "cosine" from lr to 0 over the epochs.
        clip_norm: largest norm of the gradient; 0: no clipping.
        sparsity: how L1 terms of a model act: "proximal" steps, which make exact zeros; a "penalty"
            in the loss; or "none".
        amp: mixed precision: "off", "bf16", or "fp16" with loss scaling.
        select: weights that are tested: of the "best" epoch by validation, or of the "last", which
            an L1 term has made sparsest.
        patience: epochs without a better validation score before training stops; 0: never.
        device: "auto", "cpu", "cuda" or "cuda:0" and so on.
        workers: processes that load data; 0: none besides the training process.
        deterministic: ask torch for deterministic algorithms.
        threads: of the CPU; 0: torch's choice. The same number of them gives the same run, bit for
            bit; with another, sums are rounded in another order and runs drift apart.
    """

    task: str = "digits"
    task_options: dict[str, Any] = field(default_factory=dict)
    model: str = "strnn"
    model_options: dict[str, Any] = field(default_factory=dict)
    out: str = "out/run"
    seed: int = 0
    epochs: int = 20
    batch_size: int = 32
    optimizer: str = "adam"
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    clip_norm: float = 1.0
    sparsity: str = "proximal"
    amp: str = "off"
    select: str = "best"
    patience: int = 0
    device: str = "auto"
    workers: int = 0
    deterministic: bool = True
    threads: int = 0

    def check(self) -> Config:
        """Itself, if each setting is in its range.

        Raises:
            ConfigError: one is not.
        """
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                known = ", ".join(choices)
                raise ConfigError(
                    f"{name} must be one of {known}, got {brief(getattr(self, name))}"
                )
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        # Each epoch's order of the items has a seed of 64 bits made of this one.
        if not 0 <= self.seed < 2**40:
            raise ConfigError(f"seed must be in 0..2**40, got {self.seed}")
        most = dict.fromkeys(("lr", "momentum", "weight_decay", "clip_norm"), 1e30)
        most |= {"patience": 2**63 - 1, "workers": 1024, "threads": 1024}
        for name, limit in most.items():
            if not 0 <= getattr(self, name) <= limit:
                got = f"got {getattr(self, name)}"
                raise ConfigError(f"{name} must not be negative or above {limit}, {got}")
        return self

    def to_yaml(self) -> str:
        """The settings as a file that `load` reads."""
        return yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True)


def load(path: Path | str | None = None, overrides: Iterable[str] = ()) -> Config:
    """Settings from a file, then from key=value; `task_options.root=/data` reaches inside.

    Args:
        path: a YAML file. None: the defaults.
        overrides: values are YAML too: lr=1e-3, task_options.subjects=[1,2].

    Raises:
        ConfigError: the file cannot be read, or a setting is not as it must be.
    """
    config = Config()
    if path is not None:
        for key, value in _read_yaml(Path(path)).items():
            _set(config, str(key), value, str(path))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"an argument must be key=value, got {brief(override)}")
        try:
            value = _parse(text, "not a YAML value")
        except ConfigError as error:
            raise ConfigError(f"{key[:80]}: {error}, got {brief(text)}") from error
        _set(config, key, value, "command line")
    return config.check()


def load_whole(path: Path) -> Config:
    """The settings that a run has written, all of them.

    Raises:
        ConfigError: as `load`, or one is missing.
    """
    missing = [f.name for f in fields(Config) if f.name not in _read_yaml(path)]
    if missing:
        raise ConfigError(f"{path}: damaged, it lacks {', '.join(missing)}")
    return load(path)


def difference(old: Config, new: Config) -> list[str]:
    """Names of settings that differ, save those that do not change what is computed."""
    free = {"out", "patience", "device", "workers", "threads"}
    if new.schedule == "constant":
        free.add("epochs")
    names = [f.name for f in fields(Config) if f.name not in free]
    return [name for name in names if getattr(old, name) != getattr(new, name)]


class _Loader(yaml.SafeLoader):
    """Plain values only: no aliases, which can stand for any amount of data, and no deep lists."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not taken", mark)
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, "too many levels", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _parse(text: str, otherwise: str) -> Any:
    """The value of YAML text.

    Raises:
        ConfigError: it is not YAML, or has what no setting can be.
    """
    if len(text) > MOST:
        raise ConfigError(f"must have at most {MOST} characters, has {len(text)}")
    try:
        value = yaml.load(text, _Loader)  # noqa: S506, a SafeLoader
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"{otherwise}: {where}{(error.problem or 'damaged')[:200]}") from error
    except Exception as error:  # what the values of YAML's own types trip over varies
        raise ConfigError(f"{otherwise}: {str(error)[:200]}") from error
    _check_sizes(value)
    return value


def _check_sizes(value: Any) -> None:
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set):
        for each in value:
            _check_sizes(each)
    elif isinstance(value, int) and value.bit_length() > 63:
        raise ConfigError(f"a whole number must have at most 63 bits, one has {value.bit_length()}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"a number must be finite, one is {value}")
    elif isinstance(value, str | bytes) and len(value) > MOST_TEXT:
        raise ConfigError(f"a text must have at most {MOST_TEXT} characters, one has {len(value)}")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = _parse(read_bytes(path, MOST).decode(), "not YAML")
    except OSError as error:
        raise ConfigError(f"{path}: {why(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold settings key: value, got a {type(content).__name__}")
    return content


def _set(config: Config, key: str, value: Any, source: str) -> None:
    kinds = typing.get_type_hints(Config)
    name, dot, inner = key.partition(".")
    if name not in kinds:
        near = difflib.get_close_matches(name, kinds, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(kinds)}"
        raise ConfigError(f"{source}: unknown setting {brief(key)}{hint}")
    if dot:
        if typing.get_origin(kinds[name]) is not dict or not inner or "." in inner:
            raise ConfigError(f"{source}: {name!r} has no settings inside, got {brief(key)}")
        getattr(config, name)[inner] = _number(value)
    else:
        setattr(config, name, _typed(name, value, kinds[name], source))


def _typed(name: str, value: Any, kind: Any, source: str) -> Any:
    if typing.get_origin(kind) is dict:
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {key: _number(inner) for key, inner in value.items()}
        kind = dict
    elif kind is float:
        value = _number(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return float(value)
    elif kind is str and isinstance(value, bool):
        # YAML reads off and on as booleans.
        value = "on" if value else "off"
    if type(value) is not kind or isinstance(kind, types.UnionType):
        raise ConfigError(f"{source}: {name} must be {kind.__name__}, got {brief(value)}")
    return value


def _number(value: Any) -> Any:
    """YAML 1.1 takes 1e-3, without a point, for text."""
    if isinstance(value, str) and value[:1] in "+-.0123456789" and value[:1]:
        try:
            number = float(value)
        except ValueError:
            return value
        return number if math.isfinite(number) else value
    return value

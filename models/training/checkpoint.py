"""Checkpoints that are whole or not there, whenever the process dies.

An epoch writes two new files, weights (safetensors) and the rest (torch.save, read with
weights_only), and then replaces the small file that names them, with their checksums. Whatever
moment a kill hits, that file names a complete pair. The pair before it stays, named by a second
such file: if a disk damages the last, training goes on from there. Only what these files name is
ever deleted.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from strnn_models.common import files
from strnn_models.common.weights import MOST as MOST_DATA
from strnn_models.common.weights import unpickle
from strnn_models.training import processes
from strnn_models.training.folder import write_atomic
from torch import Tensor, nn

POINTER, BEFORE = "checkpoint.json", "checkpoint-before.json"
SELECTED = "selected.safetensors"
CONFIG, LOG, TABLE, RESULTS = "config.yaml", "log.jsonl", "log.csv", "results.json"
#: Bytes of a pointer, and of a log, that are read.
MOST, MOST_LOG = 1 << 16, 1 << 24


class CheckpointError(RuntimeError):
    """A checkpoint is damaged or does not fit; names the file."""


def save(run: Path, epoch: int, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Makes this the checkpoint of the run, keeps the one before, deletes the one before that.

    Args:
        run: folder of the run.
        epoch: epochs that are done.
        weights: the model's state_dict.
        state: everything else: tensors, numbers, text, lists and dicts of them.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    parts = dict(zip(names(epoch), (pack(weights), buffer.getvalue()), strict=True))
    (_, last), (_, before) = (_known(run / name) for name in (POINTER, BEFORE))
    for name, data in parts.items():
        write_atomic(run / name, data)
    # Not where this epoch is done again because its checkpoint was damaged.
    if last and last.keys() != parts.keys():
        for name in before.keys() - last.keys() - parts.keys():
            (run / name).unlink(missing_ok=True)
        write_atomic(run / BEFORE, (run / POINTER).read_bytes())
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
    write_atomic(run / POINTER, json.dumps({"epoch": epoch, "files": digests}, indent=1) + "\n")


def load(run: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """Epoch, weights and state of the run's checkpoint; None if it has none.

    Where the last is damaged, those of the one before, and a line on stderr says so.

    Raises:
        CheckpointError: a file is missing or not the one that was written, and there is no other.
    """
    problem = None
    for path in (run / POINTER, run / BEFORE):
        if not path.exists():
            continue
        try:
            found = _load(path)
        except CheckpointError as error:
            problem = problem or error
            continue
        if path.name == BEFORE and processes.rank() == 0:
            what = problem or f"{run / POINTER}: missing"
            print(f"{what}; going on from the one before, of epoch {found[0]}", file=sys.stderr)
        return found
    if problem:
        raise problem
    return None


def exists(run: Path) -> bool:
    """Whether the folder has a checkpoint, be it damaged."""
    return (run / POINTER).exists() or (run / BEFORE).exists()


def is_readable(run: Path) -> bool:
    """Whether a pointer of the folder is one that a run has written."""
    return any(_known(run / name)[0] for name in (POINTER, BEFORE))


def drop(run: Path) -> None:
    """Deletes the files of a run, by their names."""
    epochs = [_known(run / name)[0] for name in (BEFORE, POINTER)]
    # A killed run may have begun with the next one. The pointers, by which the rest is known, last.
    parts = [name for epoch in {*epochs, *(e + 1 for e in epochs)} for name in names(epoch)]
    for name in (*parts, SELECTED, LOG, TABLE, RESULTS, CONFIG, BEFORE, POINTER):
        (run / name).unlink(missing_ok=True)


def names(epoch: int) -> list[str]:
    """The files of an epoch's checkpoint: weights, everything else."""
    return [f"epoch-{epoch:05d}.safetensors", f"epoch-{epoch:05d}.pt"]


def writes(name: str) -> bool:
    """Whether a run writes a file of that name."""
    fixed = (SELECTED, LOG, TABLE, RESULTS, CONFIG, BEFORE, POINTER)
    return name in fixed or re.fullmatch(r"epoch-\d{5,}\.(safetensors|pt)", name) is not None


def pack(weights: dict[str, Tensor]) -> bytes:
    """A state_dict in the safetensors format, with a checksum of the numbers."""
    # Cloned: safetensors refuses tensors that share memory, as tied weights do.
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in weights.items()}
    return save_tensors(tensors, {"sha256": _header(save_tensors(tensors))[1]})


def load_weights(path: Path) -> dict[str, Tensor]:
    """The state_dict in a safetensors file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    return _unpack(_read(path), path)


def load_log(path: Path) -> list[dict[str, float]]:
    """The numbers of each epoch in a log.jsonl.

    Raises:
        CheckpointError: it is damaged.
    """
    text = _read(path, MOST_LOG)
    try:
        rows = [json.loads(line, parse_int=float) for line in text.splitlines()]
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged ({error})") from error
    if not rows:
        raise CheckpointError(f"{path}: damaged (it is empty)")
    for number, row in enumerate(rows, start=1):
        fits = isinstance(row, dict) and {"epoch", "train_loss"} <= row.keys() == rows[-1].keys()
        if not fits or not all(isinstance(value, float) for value in row.values()):
            raise CheckpointError(f"{path}: damaged (line {number} is not an epoch's numbers)")
    return rows


def give(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Puts weights into a model; `path` is for the error.

    Raises:
        CheckpointError: they are of another model.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        what = textwrap.shorten(str(error), 500)
        raise CheckpointError(f"{path}: the weights are of another model: {what}") from error


def _read(path: Path, most: int = MOST_DATA) -> bytes:
    try:
        return files.read_bytes(path, most)
    except OSError as error:
        raise CheckpointError(f"{path}: {files.why(error)}") from error


def _pointer(path: Path) -> tuple[int, dict[str, str]]:
    """The epoch that a pointer is of, and the checksums of the two files by their names."""
    try:
        pointer = json.loads(_read(path, MOST))
        epoch, digests = int(pointer["epoch"]), dict(pointer["files"])
        if epoch < 1 or list(digests) != names(epoch):
            found = files.shown(", ".join(map(str, digests)))
            raise ValueError(f"it names {found} as the files of epoch {epoch}")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged ({error})") from error
    return epoch, digests


def _known(path: Path) -> tuple[int, dict[str, str]]:
    """As `_pointer`; of a pointer that is missing or damaged epoch 0 and no files."""
    try:
        return _pointer(path)
    except CheckpointError:
        return 0, {}


def _load(path: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    epoch, digests = _pointer(path)
    weights_path, state_path = (path.with_name(name) for name in digests)
    data = {}
    for part in (weights_path, state_path):
        data[part] = _read(part)
        if hashlib.sha256(data[part]).hexdigest() != digests[part.name]:
            raise CheckpointError(f"{part}: damaged, its checksum is not the one written")
    try:
        state = unpickle(data[state_path])
    except Exception as error:  # what the restricted unpickler trips over varies
        what = textwrap.shorten(str(error), 200)
        raise CheckpointError(f"{state_path}: damaged ({what})") from error
    return epoch, _unpack(data[weights_path], weights_path), state


def _unpack(data: bytes, path: Path) -> dict[str, Tensor]:
    try:
        header, digest = _header(data)
        if header.get("__metadata__", {}).get("sha256", digest) != digest:
            raise ValueError("its checksum is not the one written")
        return load_tensors(data)
    except Exception as error:  # what the library trips over varies
        what = textwrap.shorten(str(error), 200)
        raise CheckpointError(f"{path}: not a safetensors file ({what})") from error


def _header(data: bytes) -> tuple[dict[str, Any], str]:
    """What a safetensors file says of its tensors, and the checksum of the numbers behind it."""
    start = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:start]), hashlib.sha256(memoryview(data)[start:]).hexdigest()

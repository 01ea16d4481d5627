"""Checkpoints that are whole or not there, whenever the process dies.

An epoch writes two new files, weights (safetensors) and the rest (torch.save, read with
weights_only), and then replaces the small file that names them, with their checksums. Whatever
moment a kill hits, that file names a complete pair.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

POINTER = "checkpoint.json"
SELECTED = "selected.safetensors"


class CheckpointError(RuntimeError):
    """A checkpoint is damaged or does not fit; names the file."""


def write_atomic(path: Path, content: bytes | str, *, durable: bool = True) -> None:
    """Writes a file so that after a crash it has its old content or the new, never a part.

    Args:
        path: the file.
        content: all of it.
        durable: whether it must be on disk at return; otherwise a loss of power may lose it.
    """
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)


def save(run: Path, epoch: int, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Makes this the checkpoint of the run, and deletes what no longer belongs to one.

    Args:
        run: folder of the run.
        epoch: epochs that are done.
        weights: the model's state_dict.
        state: everything else: tensors, numbers, text, lists and dicts of them.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    parts = {
        f"epoch-{epoch:05d}.safetensors": pack(weights),
        f"epoch-{epoch:05d}.pt": buffer.getvalue(),
    }
    for name, data in parts.items():
        write_atomic(run / name, data)
    pointer = {
        "epoch": epoch,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()},
    }
    write_atomic(run / POINTER, json.dumps(pointer, indent=1) + "\n")
    for path in [*run.glob("epoch-*"), *run.glob(".*.????????")]:
        if path.name not in parts:
            path.unlink(missing_ok=True)


def load(run: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """Epoch, weights and state of the run's checkpoint; None if it has none.

    Raises:
        CheckpointError: a file is missing or not the one that was written.
    """
    path = run / POINTER
    if not path.exists():
        return None
    try:
        pointer = json.loads(path.read_text())
        epoch, files = int(pointer["epoch"]), dict(pointer["files"])
        weights_name, state_name = files
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error})") from error
    data = {}
    for name, digest in files.items():
        try:
            data[name] = (run / Path(name).name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{run / name}: {error.strerror}") from error
        if hashlib.sha256(data[name]).hexdigest() != digest:
            raise CheckpointError(f"{run / name}: damaged, its checksum is not the one written")
    try:
        state = torch.load(io.BytesIO(data[state_name]), weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise CheckpointError(f"{run / state_name}: damaged ({error})") from error
    return epoch, unpack(data[weights_name], run / weights_name), state


def pack(weights: dict[str, Tensor]) -> bytes:
    """A state_dict in the safetensors format."""
    # Cloned: safetensors refuses tensors that share memory, as tied weights do.
    return save_tensors({k: v.detach().cpu().contiguous().clone() for k, v in weights.items()})


def unpack(data: bytes, path: Path) -> dict[str, Tensor]:
    """The state_dict in bytes of the safetensors format; `path` is for the error."""
    try:
        return load_tensors(data)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from error


def load_weights(path: Path) -> dict[str, Tensor]:
    """The state_dict in a safetensors file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        return unpack(path.read_bytes(), path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error


def _sync_folder(path: Path) -> None:
    # A rename is on disk only once the folder is; systems without folder handles do it themselves.
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

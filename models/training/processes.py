"""One process or several: a group by torchrun's environment, shares of batches, sums over all."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from strnn_models.common.options import brief
from torch import Tensor


@contextmanager
def group(device: torch.device) -> Iterator[None]:
    """Joins the processes that torchrun started: nccl on GPUs, otherwise gloo.

    What DistributedDataParallel made must be gone before the group: as the last owner of a gloo
    group it would join threads that wait for Python's lock, which it holds.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def choose_device(name: str) -> torch.device:
    """The device of a setting; "auto" is this process's GPU, or the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:<n>, got {brief(name)}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name}: {torch.cuda.device_count()} GPUs are visible to torch")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def share(batch: list[int]) -> tuple[list[int], list[float]]:
    """This process's items of a batch and their weights; all shares are of one size.

    A batch that does not divide evenly is filled up with copies of weight zero.
    """
    size = -(-len(batch) // count())
    mine = batch[rank() :: count()]
    weights = [1.0] * len(mine) + [0.0] * (size - len(mine))
    return mine + batch[:1] * (size - len(mine)), weights


def total(value: Tensor) -> Tensor:
    """The sum over all processes, without a gradient."""
    value = value.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def gather(value: Tensor) -> list[Tensor]:
    """The tensors of all processes, which must have one shape."""
    if not dist.is_initialized():
        return [value]
    parts = [torch.empty_like(value) for _ in range(count())]
    dist.all_gather(parts, value.contiguous())
    return parts


def first(work: Callable[[], object]) -> None:
    """Has the first process do something; the others wait, and raise the error that it raises."""
    outcome: list[Exception | None] = [None]
    if rank() == 0:
        try:
            work()
        except Exception as error:  # raised below
            outcome = [error]
    if dist.is_initialized():
        dist.broadcast_object_list(outcome)
    if outcome[0] is not None:
        raise outcome[0]

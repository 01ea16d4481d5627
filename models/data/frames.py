"""Clips of image files: found, checked and loaded with Pillow, nothing but PNG, JPEG and BMP."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from strnn_models.data.records import DataError
from torch.utils.data import Dataset

#: Other formats stay shut: some of Pillow's start a program (EPS: Ghostscript).
FORMATS = ("PNG", "JPEG", "BMP")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
# What ends a complete file of each format.
_ENDS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}


@dataclass(frozen=True)
class Clip:
    """A labelled sequence of image files; `fold` where the data set is split into folds."""

    name: str
    subject: str
    frames: tuple[Path, ...]
    label: int
    fold: int | None = None


def list_frames(folder: Path, *, decode: bool = False) -> tuple[Path, ...]:
    """The image files of a folder by the last number in their names, each passed by `check_frame`.

    Args:
        folder: that has them.
        decode: look at all of each file, not only at its ends: readers do so with `skip_bad`, as
            what is skipped has to be known before training starts.

    Raises:
        DataError: there is none, one has no number, two have the same, or one is damaged.
    """
    numbered: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in _SUFFIXES:
            continue
        digits = re.findall(r"\d+", path.stem)
        if not digits:
            raise DataError(folder, path.name, "the name of a frame must have a number")
        if int(digits[-1]) in numbered:
            reason = f"has the same number as {numbered[int(digits[-1])].name}"
            raise DataError(folder, path.name, reason)
        numbered[int(digits[-1])] = path
    if not numbered:
        raise DataError(folder, None, "has no image files")
    frames = tuple(numbered[k] for k in sorted(numbered))
    for frame in frames:
        check_frame(frame)
        if decode:
            _load(frame, (1, 1), grey=True)
    return frames


def check_frame(path: Path) -> None:
    """Looks at the first and last bytes of an image file: quick, finds empty and cut-off files.

    Raises:
        DataError: it is no image, or its end is missing.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            end = _ENDS.get(image.format)
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 64))
            tail = file.read()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(path, None, f"not a readable image ({error})") from error
    if end is not None and end not in tail:
        raise DataError(path, None, "the image is cut off: its end marker is missing")


def load_frames(frames: Sequence[Path], size: tuple[int, int], grey: bool = True) -> torch.Tensor:
    """The frames as float32 in 0..1, (T, 1 or 3, rows, cols), resized to `size` = (rows, cols).

    Raises:
        DataError: a file is missing or damaged.
    """
    return torch.stack([_load(path, size, grey) for path in frames])


def _load(path: Path, size: tuple[int, int], grey: bool) -> torch.Tensor:
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            image = image.convert("L" if grey else "RGB")
            image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            pixels = np.asarray(image, dtype=np.float32) / 255
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(path, None, f"not a readable image ({error})") from error
    pixels = pixels[None] if grey else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(pixels))


def spread(num_frames: int, wanted: int) -> list[int]:
    """At most `wanted` frame numbers spread evenly from the first to the last."""
    if num_frames <= wanted:
        return list(range(num_frames))
    return np.linspace(0, num_frames - 1, wanted).round().astype(int).tolist()


class ClipDataset(Dataset):
    """Clips as tensors, loaded when asked for.

    Args:
        clips: what was read.
        num_frames: the most frames of a clip, spread evenly over it.
        size: (rows, cols) of a frame.
        grey: one channel in place of three.

    Raises:
        ValueError: a number is not positive.
    """

    def __init__(
        self, clips: Sequence[Clip], num_frames: int, size: tuple[int, int], grey: bool = True
    ) -> None:
        if num_frames < 1 or min(size) < 1:
            raise ValueError(
                f"ClipDataset: num_frames and size must be positive, got {num_frames}, {size}"
            )
        self.clips, self.num_frames, self.size, self.grey = list(clips), num_frames, size, grey

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        clip = self.clips[index]
        frames = [clip.frames[k] for k in spread(len(clip.frames), self.num_frames)]
        x = load_frames(frames, self.size, self.grey)
        return {"x": x, "y": torch.tensor(clip.label)}

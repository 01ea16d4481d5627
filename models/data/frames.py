"""Clips of image files: found, checked and loaded with Pillow, nothing but PNG, JPEG and BMP."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from strnn_models.common.files import read_bytes
from strnn_models.data.records import DataError, listed
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from PIL.Image import Image

#: Other formats stay shut: some of Pillow's start a program (EPS: Ghostscript).
FORMATS = ("PNG", "JPEG", "BMP")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
#: Most bytes of an image file, and most pixels of an image: a frame of 8K video has 33.2 million.
MOST_BYTES, MOST_PIXELS = 1 << 28, 1 << 25
# What a complete file of each format mostly ends with.
_ENDS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}
# Pillow's modes for grey PNG of 16 bits a pixel: "I" before version 11.
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")


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
    for path in listed(folder):
        if path.suffix.lower() not in _SUFFIXES:
            continue
        number = frame_number(path)
        if number in numbered:
            reason = f"has the same number as {numbered[number].name}"
            raise DataError(folder, path.name, reason)
        numbered[number] = path
    if not numbered:
        raise DataError(folder, None, "has no image files")
    frames = tuple(numbered[k] for k in sorted(numbered))
    for frame in frames:
        check_frame(frame, decode=decode)
    return frames


def frame_number(path: Path) -> int:
    """The last number in the name of a frame.

    Raises:
        DataError: there is none.
    """
    digits = re.findall(r"[0-9]+", path.stem)
    if not digits:
        raise DataError(path, None, "the name of a frame must have a number")
    return int(digits[-1])


@contextmanager
def open_image(path: Path, formats: Sequence[str] = FORMATS) -> Iterator[Image]:
    """An image file that is being read with Pillow.

    Raises:
        DataError: Pillow cannot read it, in the block too, or it is too large to be decoded.
    """
    from PIL import Image

    try:
        # Of a file, Pillow asks for as many bytes as a chunk claims to have, and Python makes room.
        content = io.BytesIO(read_bytes(path, MOST_BYTES))
        with warnings.catch_warnings():
            # Of what is not pixels; and of sizes, which are checked here.
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(content, formats=formats) as image:
                if image.width * image.height > MOST_PIXELS:
                    size = f"{image.width} x {image.height} pixels"
                    raise ValueError(f"{size} are more than {MOST_PIXELS}")
                yield image
    except (DataError, MemoryError):
        raise
    except Exception as error:  # Pillow passes on whatever its decoders meet
        what = (
            "the image is cut off" if "truncated" in str(error).lower() else "not a readable image"
        )
        raise DataError(path, None, f"{what} ({error})") from error


def check_frame(path: Path, *, decode: bool = False) -> None:
    """Looks at the first and last bytes of an image: quick, finds empty and cut-off files.

    Where the end of the format is not among the last bytes, or with `decode`, all is decoded: a
    file may have more after it. Whether it is cut off is for the decoder to say.

    Raises:
        DataError: it is no image, or cut off.
    """
    with open_image(path) as image:
        end = _ENDS.get(image.format)
        if end is not None and end not in read_bytes(path, MOST_BYTES)[-64:]:
            image.verify() if image.format == "PNG" else image.load()
    if decode:
        _load(path, (1, 1), grey=True)


def load_frames(frames: Sequence[Path], size: tuple[int, int], grey: bool = True) -> torch.Tensor:
    """The frames as float32 in 0..1, (T, 1 or 3, rows, cols), resized to `size` = (rows, cols).

    Raises:
        DataError: a file is missing or damaged.
    """
    return torch.stack([_load(path, size, grey) for path in frames])


def _load(path: Path, size: tuple[int, int], grey: bool) -> torch.Tensor:
    with open_image(path) as image:
        pixels = pixel_values(image, (size[1], size[0]), grey)
    pixels = pixels[None] if grey else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(pixels))


def pixel_values(image: Image, size: tuple[int, int], grey: bool) -> NDArray[np.float32]:
    """The pixels in 0..1, black to white whatever their bits, resized to `size` = (cols, rows).

    Colours under transparent pixels are kept as they are.

    Returns:
        (rows, cols) or (rows, cols, 3).

    Raises:
        ValueError: the mode is one whose white is not known.
    """
    from PIL import Image

    if image.mode in _DEEP:  # converted to "L", all above 255 would be white
        image, white = Image.fromarray(np.asarray(image, dtype=np.float32)), 65535
    elif image.mode == "F":
        raise ValueError("the white of mode F is not known")
    else:
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        image, white = image.convert("L" if grey else "RGB"), 255
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR), dtype=np.float32) / white
    return pixels if grey or pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


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

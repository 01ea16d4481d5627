"""Tasks from the pictures that scikit-image's wheel carries: real photographs, not emotion data.

`lfw_subset` has 100 crops of faces (Labeled Faces in the Wild) and 100 crops of the same pictures
without a face, 25 x 25, grey. The other pictures are filmed by a camera that moves over them. The
files are read where scikit-image is installed; nothing is downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from strnn_models.common.files import open_regular, why
from strnn_models.data.digits import Arrays
from strnn_models.data.frames import MOST_PIXELS, open_image, pixel_values
from strnn_models.data.npy import read_npy
from strnn_models.data.records import DataError, float32
from strnn_models.data.tasks import Task, register
from torch import Tensor

CROPS = "crops with and without a face (scikit-image lfw_subset), real, not emotion data"
#: Pictures that the camera moves over; the gif is a short film, its frames go on meanwhile.
PICTURES = (
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "coffee.png"),
    *("coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png"),
    *("motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg"),
    "no_time_for_that_tiny.gif",
)
FILM_SIZE = 96
#: Most bytes of the file of crops, which has 1,000,128.
MOST_BYTES = 1 << 21


@register("faces")
def faces(seed: int = 0) -> Task:
    """The 200 crops, face or not: 60 % training, 20 % validation, 20 % test.

    Args:
        seed: of the split.
    """
    images, parts = _crops(seed)

    def items(groups: tuple[NDArray, NDArray]) -> Arrays:
        y = torch.cat([torch.full((len(g),), c) for c, g in enumerate(groups)])
        return Arrays(x=images[np.concatenate(groups)][:, None], y=y)

    return _task("faces", f"single {CROPS}", map(items, parts), ("no face", "face"), 1)


@register("face_sequences")
def face_sequences(
    seed: int = 0, length: int = 8, num_train: int = 2000, num_test: int = 400
) -> Task:
    """Sequences of crops in which a face appears, disappears, stays, or is absent.

    Frames are drawn anew. To tell the first two apart a model needs their order. No crop is in two
    of the three parts.

    Args:
        seed: of the split and the sequences.
        length: T.
        num_train: sequences to train on.
        num_test: sequences to validate on, and as many to test on.
    """
    if length < 2:
        raise ValueError(f"task face_sequences: length must be at least 2, got {length}")
    images, parts = _crops(seed)
    random = np.random.default_rng(seed + 1)

    def sequences(groups: tuple[NDArray, NDArray], num: int) -> Arrays:
        y = np.arange(num) % 4
        later = np.arange(length) >= random.integers(1, length, (num, 1))  # after the change
        is_face = np.select([y[:, None] == k for k in range(3)], [later, ~later, True], False)
        return Arrays(x=_show(random, images, groups, is_face), y=torch.from_numpy(y))

    return _task(
        "face_sequences",
        f"constructed sequences of {CROPS}",
        map(sequences, parts, (num_train, num_test, num_test)),
        ("appears", "disappears", "stays", "absent"),
        length,
    )


@register("face_spotting")
def face_spotting(
    seed: int = 0, length: int = 6, num_train: int = 2000, num_test: int = 400
) -> Task:
    """Sequences of crops without a face, but for one frame in half of them: is there a face?

    `at` of an item is the number of that frame, or -1: the weights that a model gives to frames
    can be held against it. No crop is in two of the three parts.

    Args:
        seed: of the split and the sequences.
        length: T.
        num_train: sequences to train on.
        num_test: sequences to validate on, and as many to test on.
    """
    images, parts = _crops(seed)
    random = np.random.default_rng(seed + 2)

    def sequences(groups: tuple[NDArray, NDArray], num: int) -> Arrays:
        y = np.arange(num) % 2
        at = np.where(y, random.integers(0, length, num), -1)
        is_face = at[:, None] == np.arange(length)
        x = _show(random, images, groups, is_face)
        return Arrays(x=x, y=torch.from_numpy(y), at=torch.from_numpy(at))

    return _task(
        "face_spotting",
        f"constructed sequences of {CROPS}",
        map(sequences, parts, (num_train, num_test, num_test)),
        ("no face", "face"),
        length,
    )


@register("camera_pans")
def camera_pans(
    seed: int = 0, length: int = 12, size: int = 24, num_train: int = 800, num_test: int = 160
) -> Task:
    """What a camera sees that moves over a picture; the traces are its speed to the right and down.

    The speed wanders within 3 pixels a frame, scaled to -1..1; no single frame shows it. It stands
    in for valence and arousal. No picture is in two of the three parts, which have 9, 4 and 4 of
    them; the gif is one to test on.

    Args:
        seed: of the split and the ways of the camera.
        length: T.
        size: rows and cols of what the camera sees.
        num_train: sequences to train on.
        num_test: sequences to validate on, and as many to test on.
    """
    if size > FILM_SIZE:
        raise ValueError(f"task camera_pans: size must be at most {FILM_SIZE}, got {size}")
    films = [_film(name) for name in PICTURES]
    random = np.random.default_rng(seed + 3)
    order = [*random.permutation(len(films) - 1), len(films) - 1]

    def pans(part: list[int], num: int) -> Arrays:
        x = np.empty((num, length, 1, size, size), np.float32)
        speed = np.empty((num, length, 2), np.float32)
        for n in range(num):
            film = films[part[n % len(part)]]
            speed[n], places = _way(random, length, np.array(film.shape[1:]) - size)
            first = random.integers(len(film))
            for t, (row, col) in enumerate(places):
                frame = film[(first + t) % len(film)]
                x[n, t, 0] = frame[row : row + size, col : col + size]
        valid = np.tile(np.arange(length) > 0, (num, 1))  # the first frame shows no motion
        return Arrays(
            x=torch.from_numpy(x),
            y=torch.from_numpy(speed / 3),
            valid=torch.from_numpy(valid),
            video=torch.arange(num),
            start=torch.zeros(num, dtype=torch.int64),
        )

    parts = (order[:9], order[9:13], order[13:])
    sizes = (num_train, num_test, num_test)
    return Task(
        "camera_pans",
        "real photographs and a gif (scikit-image) under a camera that moves, not emotion data",
        *(pans(part, num) for part, num in zip(parts, sizes, strict=True)),
        channels=1,
        sample_length=length,
        kind="traces",
        traces=("right", "down"),
        size=(size, size),
    )


def _task(
    name: str, about: str, parts: Iterable[Arrays], classes: tuple[str, ...], length: int
) -> Task:
    return Task(
        name,
        about,
        *parts,
        channels=1,
        sample_length=length,
        classes=classes,
        size=(25, 25),
    )


def _crops(seed: int) -> tuple[Tensor, list[tuple[NDArray, NDArray]]]:
    """All crops (200, 1, 25, 25), and for each part the numbers without and with a face."""
    path = _file("lfw_subset.npy")
    shape = (200, 25, 25)
    try:
        with open_regular(path, MOST_BYTES) as file:
            images = read_npy(file, 8 * math.prod(shape))
    except OSError as error:
        raise DataError(path, None, why(error)) from error
    except ValueError as error:
        raise DataError(path, None, f"not a readable array ({error})") from error
    if images.shape != shape:
        raise DataError(path, None, f"must have shape {shape}, got {images.shape}")
    images = float32(path, None, images)
    random = np.random.default_rng(seed)
    with_face, without = random.permutation(100), 100 + random.permutation(100)
    parts = zip(np.split(without, [60, 80]), np.split(with_face, [60, 80]), strict=True)
    return torch.from_numpy(images)[:, None], list(parts)


def _show(
    random: np.random.Generator,
    images: Tensor,
    groups: tuple[NDArray, NDArray],
    is_face: NDArray,
) -> Tensor:
    """Crops (n, T, 1, 25, 25) of the wanted kind (n, T), each drawn and mirrored at random."""
    chosen = np.where(is_face, *(random.choice(group, is_face.shape) for group in groups[::-1]))
    mirrored = torch.from_numpy(random.random(is_face.shape) < 0.5)[..., None, None, None]
    shown = images[torch.from_numpy(chosen)]
    return torch.where(mirrored, shown.flip(-1), shown)


def _film(name: str) -> NDArray[np.float32]:
    """A picture as grey frames (F, rows, cols) in 0..1, its shorter side `FILM_SIZE`."""
    from PIL import ImageSequence

    path = _file(name)
    with open_image(path, ("PNG", "JPEG", "GIF")) as image:
        scale = FILM_SIZE / min(image.size)
        size = (round(scale * image.width), round(scale * image.height))
        if math.prod(size) * getattr(image, "n_frames", 1) > MOST_PIXELS:
            raise ValueError(f"its frames of {size} have more than {MOST_PIXELS} pixels")
        frames = [pixel_values(frame, size, grey=True) for frame in ImageSequence.Iterator(image)]
    return np.stack(frames)


def _way(
    random: np.random.Generator, length: int, room: NDArray
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Speed (T, 2) to the right and down of a camera, and its places (T, 2) as (row, col).

    Args:
        random: source of the random numbers.
        length: T.
        room: rows and cols that the camera's corner can move over.
    """
    steps = [random.integers(-3, 4, 2)]
    for _ in range(length - 1):
        steps.append(np.clip(steps[-1] + random.integers(-1, 2, 2), -3, 3))
    steps = np.array(steps)  # (T, 2) as (row, col)
    way = np.cumsum(steps, axis=0)
    # A start from which the whole way stays inside; longer ways than there is room are bent back.
    low, high = -way.min(axis=0), room - way.max(axis=0)
    start = np.array([random.integers(a, max(a, b) + 1) for a, b in zip(low, high, strict=True)])
    places = np.clip(start + way, 0, room)
    speed = np.diff(places, axis=0, prepend=places[:1])
    return speed[:, ::-1].astype(np.float32), places


def _file(name: str) -> Path:
    found = find_spec("skimage")
    if found is None or found.origin is None:
        raise ImportError("these tasks need scikit-image: pip install scikit-image")
    path = Path(found.origin).parent / "data" / name
    if not path.is_file():
        raise DataError(path, None, "this scikit-image does not carry it; nothing is downloaded")
    return path

"""Damage at random, in every kind of file that is read: what comes of it is finite, or a DataError.

The readers run in a process of its own with limited memory. `python tests/data/test_fuzz.py FOLDER
COUNT NAMES..` runs some by hand.
"""

from __future__ import annotations

import importlib.util
import io
import pickle
import struct
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
from PIL import Image
from scipy.io import loadmat, savemat
from strnn_models.data import deap, photographs, seed, seed_files, synthetic
from strnn_models.data.afew import read_afew
from strnn_models.data.aff_wild2 import read_annotations
from strnn_models.data.ck_plus import read_ck_plus
from strnn_models.data.de_features import differential_entropy
from strnn_models.data.frames import list_frames, load_frames
from strnn_models.data.recola import read_recola
from strnn_models.data.records import DataError, Records
from strnn_models.data.sewa import read_avec, read_sewa
from torch import Tensor

COUNT, IN_CI = 2000, 500  # damaged files for each reader, the same in every run; the first of them
ORDER = ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")

#: What a file is read by: the files to damage, and a reader of the folder that gives arrays.
Target = tuple[list[Path], Callable[[bool], Iterator[np.ndarray]]]


def _seed(root: Path, compressed: bool) -> Target:
    synthetic.write_seed(root, num_sessions=1, lengths=[1] * 15, features=["de_LDS"])
    path = root / f"1_{seed_files.DATES['1'][0]}.mat"
    if compressed:
        arrays = {f"de_LDS{n}": np.full((62, 1, 5), n) for n in range(1, 16)}
        savemat(path, arrays, do_compression=True)
    return [path, path, path, root / "label.mat"], lambda skip_bad: (
        trial.x for trial in seed.read_seed(root, skip_bad=skip_bad)
    )


def _seed_raw(root: Path) -> Target:
    synthetic.write_seed(root, num_sessions=1, lengths=[1] * 15, features=["de_LDS"])
    path = root / f"1_{seed_files.DATES['1'][0]}.mat"
    savemat(path, {"a_eeg1": np.ones((62, 331))})  # the others are missing
    return [path], lambda skip_bad: (
        trial.x for trial in seed.read_seed(root, feature="raw", skip_bad=True)
    )


def _sewa(root: Path) -> Target:
    synthetic.write_sewa(root, num_videos=1)
    return sorted(root.glob("*.csv")), lambda skip_bad: _values(read_sewa(root, skip_bad=skip_bad))


def _avec(root: Path) -> Target:
    synthetic.write_avec(root, num_videos=1)
    files = sorted(root.rglob("*.csv"))
    return files, lambda skip_bad: _values(read_avec(root, skip_bad=skip_bad))


def _aff_wild2(root: Path) -> Target:
    synthetic.write_aff_wild2(root, num_videos=1, with_frames=False)
    kinds = ("VA", "EXPR", "AU")

    def read(skip_bad: bool) -> Iterator[np.ndarray]:
        for kind in kinds:
            yield from _values(read_annotations(root, kind=kind, skip_bad=skip_bad))

    return [root / f"{kind}_Set" / "Train_Set" / "t0.txt" for kind in kinds], read


def _values(records: Records) -> Iterator[np.ndarray]:
    for record in records:
        assert record.values.min() >= -1
        yield record.values


def _ck_plus(root: Path) -> Target:
    synthetic.write_ck_plus(root, num_subjects=1, sequences=(1,))

    def read(skip_bad: bool) -> Iterator[np.ndarray]:
        for clip in read_ck_plus(root, skip_bad=skip_bad):
            assert 0 <= clip.label < 7
            yield _load(clip.frames)

    return [*root.rglob("*.txt"), next(root.rglob("*1.png"))], read


def _afew(root: Path) -> Target:
    synthetic.write_afew(root, order=ORDER, per_class=1, num_frames=1)
    files = [root / "list.txt", root / "Angry" / "000000000" / "00001.jpg"]
    return files, lambda skip_bad: (
        _load(clip.frames)
        for clip in read_afew(root, order=ORDER, list_file=files[0], skip_bad=skip_bad)
    )


def _images(root: Path) -> Target:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    grey = Image.fromarray(pixels)
    grey.save(root / "1.png")
    Image.fromarray(pixels.astype(np.uint16) * 257).save(root / "2.png")
    grey.convert("P").save(root / "3.png", transparency=bytes(range(256)))
    grey.convert("1").save(root / "4.bmp")
    grey.convert("RGB").save(root / "5.bmp")
    grey.convert("RGB").save(root / "6.jpg", progressive=True)
    grey.convert("CMYK").save(root / "7.jpg", exif=Image.Exif())
    return sorted(root.iterdir()), lambda skip_bad: iter(
        [_load(list_frames(root, decode=skip_bad), grey=skip_bad)]
    )


def _seed_v(root: Path) -> Target:
    path, windows = root / "1_123.npz", {k: np.ones((1, 310)) for k in range(45)}
    labels = {k: np.full(1, k % 5) for k in range(45)}
    np.savez(path, data=pickle.dumps(windows), label=pickle.dumps(labels))
    return [path], lambda skip_bad: (t.x for t in seed.read_seed_v(root, skip_bad=skip_bad))


def _mat73(root: Path) -> Target:
    path, random = root / "1.mat", np.random.default_rng(0)
    arrays = {f"de_LDS_{n}": random.normal(size=(1 + n % 3, 5, 62)) for n in range(1, 4)}
    synthetic.write_mat73(path, arrays, compression="gzip", shuffle=True)
    return [path], lambda skip_bad: (t.x for t in seed.read_seed_vii(root, skip_bad=True))


def _deap(root: Path, pickled: bool) -> Target:
    small = {"data": (2, 40, 640), "labels": (2, 4)}
    path = synthetic.write_deap(root, shape=small["data"]) / "s01.mat"
    if pickled:
        arrays = {name: loadmat(path)[name] for name in small}
        path.unlink()
        path = root / "s01.dat"
        path.write_bytes(pickle.dumps(arrays, 2))
    read = mock.patch.dict(deap.SHAPES, small)(deap.read_deap)
    return [path], lambda skip_bad: (trial.x for trial in read(root, skip_bad=skip_bad))


def _recola(root: Path) -> Target:
    synthetic.write_recola(root, num_videos=1)
    kinds = ("gold_standard", "individual")

    def read(skip_bad: bool) -> Iterator[np.ndarray]:
        for kind in kinds:
            yield from _values(read_recola(root, ratings=kind, skip_bad=skip_bad))

    return [root / f"ratings_{k}" / "arousal" / f"train_1.{e}" for k, e in
            zip(kinds, ("arff", "csv"), strict=True)], read  # fmt: skip


def _mtl(root: Path) -> Target:
    synthetic.write_mtl(root, with_frames=False)

    def read(skip_bad: bool) -> Iterator[np.ndarray]:
        for kind in ("VA", "EXPR", "AU"):
            yield from _values(read_annotations(root, kind=kind, mtl=True, skip_bad=skip_bad))

    return [root / "MTL_Challenge" / "train_set.txt"], read


def _faces(root: Path) -> Target:
    """CK+48 and AFEW's aligned faces."""
    synthetic.write_ck_plus_48(root / "ck", num_subjects=2, size=8)
    synthetic.write_afew_aligned(root / "afew", order=ORDER, num_frames=1)

    def read(skip_bad: bool) -> Iterator[np.ndarray]:
        clips = read_ck_plus(root / "ck", skip_bad=skip_bad)
        for clip in clips + read_afew(root / "afew", order=ORDER, skip_bad=skip_bad):
            yield _load(clip.frames)

    return [next(root.rglob("*_00000012.png")), next(root.rglob("*_000.jpg"))], read


def _load(frames: tuple[Path, ...], grey: bool = True) -> np.ndarray:
    x = load_frames(frames, (5, 7), grey).numpy()
    assert x.min() >= 0 and x.max() <= 1
    return x


def _photographs(root: Path) -> Target:
    names = ("lfw_subset.npy", "no_time_for_that_tiny.gif", "astronaut.png")
    (root / "data").mkdir()
    crops = np.zeros((200, 25, 25))
    np.save(root / "data" / names[0], crops)
    frames = [Image.fromarray(np.full((16, 16), 40 * k, np.uint8)) for k in range(3)]
    frames[0].save(root / "data" / names[1], save_all=True, append_images=frames[1:])
    frames[1].save(root / "data" / names[2])
    place = SimpleNamespace(origin=root / "x")
    spec = mock.patch.object(photographs, "find_spec", lambda name: place)

    def read(skip_bad: bool) -> Iterator[np.ndarray]:
        with spec:
            yield photographs._crops(0)[0].numpy()
            yield from (photographs._film(name) for name in names[1:])

    return [root / "data" / name for name in names], read


TARGETS: dict[str, Callable[[Path], Target]] = {
    "seed": lambda root: _seed(root, compressed=False),
    "seed_compressed": lambda root: _seed(root, compressed=True),
    "seed_raw": _seed_raw,
    "sewa": _sewa,
    "avec": _avec,
    "aff_wild2": _aff_wild2,
    "afew": _afew,
    "ck_plus": _ck_plus,
    "images": _images,
    "photographs": _photographs,
    "seed_v": _seed_v,
    **({"mat73": _mat73} if importlib.util.find_spec("h5py") else {}),
    "deap": lambda root: _deap(root, pickled=False),
    "deap_pickled": lambda root: _deap(root, pickled=True),
    "recola": _recola,
    "faces": _faces,
    "mtl": _mtl,
}

#: Targets that try one reader share its count.
SHARES = {
    **dict.fromkeys(("seed", "seed_compressed", "seed_raw"), 3),
    **dict.fromkeys(("deap", "deap_pickled", "aff_wild2", "mtl", "faces"), 2),
}

_NUMBERS = (0, 1, 4, 5, 64, 65, 127, 255, 256, 0x7FFF, 0xFFFF, 0x10000, 2**31 - 1, 2**31, 2**32 - 1)
_TEXTS = (
    *(b"nan", b"-inf", b"1e39", b"1e999", b"0_5", b"9" * 5000, b"77", b"-5", b"-1", b"", b" "),
    *("\u0663".encode(), "\u00b2".encode(), "\uff10".encode(), b"\xff\xfe", b"A" * 9000),
    *(b"\n", b"\r", b"\x0c", b",", b";", b",,,,", b"/", b"../", b"\0", b"'"),
)


def damage(random: np.random.Generator, data: bytes) -> bytes:
    """One to three changes."""
    data = bytearray(data)
    for _ in range(random.integers(1, 4)):
        at = int(random.integers(len(data) + 1))
        if random.random() < 0.5:  # headers are where it hurts
            at = min(at, int(random.exponential(60)))
        length = int(random.integers(1, 9))
        match random.integers(9):
            case 0 | 1:
                data[at : at + 1] = random.bytes(1)
            case 2:
                data[at : at + length] = random.bytes(length)
            case 3:
                number = _NUMBERS[random.integers(len(_NUMBERS))]
                at -= at % 4 * (random.random() < 0.7)
                data[at : at + 4] = struct.pack("<>"[random.integers(2)] + "I", number)
            case 4:
                del data[at:]
            case 5:
                del data[at : at + length]
            case 6:
                start = int(random.integers(len(data) + 1))
                data[at:at] = data[start : start + int(random.integers(1, 200))]
            case 7:
                data[at : at + 8] = struct.pack("<d", 10.0 ** random.integers(30, 308))
            case _:
                text = _TEXTS[random.integers(len(_TEXTS))]
                data[at : at + length * int(random.integers(2))] = text
    return bytes(data)


def damage_inside(random: np.random.Generator, data: bytes) -> bytes:
    """Damage in the inflated bytes of compressed MATLAB elements, or in the pickles of a .npz."""
    if data.startswith(b"PK"):
        with np.load(io.BytesIO(data)) as archive:
            members = {name: archive[name].item() for name in archive}
        name = list(members)[random.integers(len(members))]
        members[name] = damage(random, members[name])
        buffer = io.BytesIO()
        np.savez(buffer, **members)
        return buffer.getvalue()
    if len(data) < 136 or data[124:128] != b"\0\1IM" or data[128:132] != b"\x0f\0\0\0":
        return damage(random, data)
    elements, at = [], 128
    while at < len(data):
        size = struct.unpack_from("<I", data, at + 4)[0]
        elements.append(zlib.decompress(data[at + 8 : at + 8 + size]))
        at += 8 + size
    k = random.integers(len(elements))
    elements[k] = damage(random, elements[k])
    packed = [zlib.compress(element, 1) for element in elements]
    return data[:128] + b"".join(struct.pack("<II", 15, len(z)) + z for z in packed)


def _of_one(eeg: Tensor, *args: object, **options: object) -> Tensor:
    """`differential_entropy` of one electrode for all: reading is tried here, and 62 take long."""
    return differential_entropy(eeg[:1], *args, **options).expand(-1, len(eeg), -1)


def _write(path: Path, data: bytes) -> None:
    """As a new file: cutting an old one short waits for the disk, on some file systems."""
    path.unlink()
    path.write_bytes(data)


@mock.patch.object(seed, "differential_entropy", _of_one)
def fuzz(name: str, root: Path, count: int) -> Counter[str]:
    """Damages and reads; how often what was read, was skipped or raised."""
    files, read = TARGETS[name](root)
    good, found = [path.read_bytes() for path in files], Counter()
    random = np.random.default_rng(len(name))
    assert all(np.isfinite(array).all() for array in read(False))
    for k in range(count):
        path, data = files[k % len(files)], good[k % len(files)]
        change = damage_inside if random.random() < 0.7 else damage
        _write(path, change(random, data))
        try:
            for array in read(k // len(files) % 2 == 1):
                assert np.isfinite(array).all()
            found["read"] += 1
        except DataError as error:
            assert path.stem in str(error) or path.parent.name in str(error), (path, str(error))
            assert len(str(error)) < 1000, str(error)
            found["refused"] += 1
        except BaseException:
            (root / "failed").write_bytes(path.read_bytes())
            print(f"{name}: {path}, {k}: {root / 'failed'}", file=sys.stderr)
            raise
        finally:
            _write(path, data)
    return found


def test_damage_is_finite_or_refused(tmp_path, limited, is_exhaustive):
    code = "sys.path.insert(0, sys.argv[1]); import test_fuzz; test_fuzz.main(*sys.argv[2:])"
    here = Path(__file__).parent
    names = list(TARGETS)
    shares = names[::2], names[1::2]  # side by side, of about the same time

    def run(share):
        count = COUNT if is_exhaustive else IN_CI
        return limited(code, here, tmp_path, count, *share, mebibytes=768, seconds=900)

    with ThreadPoolExecutor(len(shares)) as pool:
        for share, out in zip(shares, pool.map(run, shares), strict=True):
            assert [line.split()[0] for line in out.splitlines()] == share


def main(folder: str, count: str, *names: str) -> None:
    """Fuzzes readers and prints what came of it."""
    for name in names:
        share = int(count) // SHARES.get(name, 1)
        print(name, dict(fuzz(name, Path(tempfile.mkdtemp(dir=folder)), share)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

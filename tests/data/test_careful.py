"""Kinds of files that hung, filled the memory, were misread, or raised what nothing catches."""

from __future__ import annotations

import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from strnn_models.data import (
    aff_wild2,
    deap,
    mat5,
    records,
    seed,
    seed_files,
    sewa,
    synthetic,
    windows,
)
from strnn_models.data.afew import read_afew
from strnn_models.data.aff_wild2 import read_aff_wild2, read_annotations
from strnn_models.data.ck_plus import read_ck_plus
from strnn_models.data.frames import check_frame, list_frames, load_frames
from strnn_models.data.recola import read_recola
from strnn_models.data.records import DataError
from strnn_models.data.seed import Trial, read_seed, read_seed_iv, read_seed_v, read_seed_vii
from strnn_models.data.sewa import read_avec, read_sewa
from strnn_models.training import objective

ORDER = ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
#: DEAP in small.
SMALL = {"data": (3, 40, 640), "labels": (3, 4)}
WRITERS = {
    "seed": lambda root: synthetic.write_seed(root, lengths=[1] * 15, features=["de_LDS"]),
    "sewa": synthetic.write_sewa,
    "avec": synthetic.write_avec,
    "aff_wild2": synthetic.write_aff_wild2,
    "ck_plus": lambda root: synthetic.write_ck_plus(root, num_subjects=1),
    "afew": lambda root: synthetic.write_afew(root, order=ORDER, per_class=1),
    "seed_v": synthetic.write_seed_v,
    "seed_vii": synthetic.write_seed_vii,
    "deap": lambda root: synthetic.write_deap(root, shape=SMALL["data"]),
    "ck_plus_48": synthetic.write_ck_plus_48,
    "afew_aligned": lambda root: synthetic.write_afew_aligned(root, order=ORDER),
    "recola": synthetic.write_recola,
    "mtl": synthetic.write_mtl,
}
READERS = {
    "seed": read_seed,
    "sewa": read_sewa,
    "avec": read_avec,
    "aff_wild2": lambda root, **options: read_aff_wild2(
        root, images=root / "cropped_aligned", **options
    ),
    "ck_plus": read_ck_plus,
    "afew": lambda root, **options: read_afew(root, order=ORDER, **options),
    "seed_v": read_seed_v,
    "seed_vii": read_seed_vii,
    "deap": mock.patch.dict(deap.SHAPES, SMALL)(deap.read_deap),
    "ck_plus_48": read_ck_plus,
    "afew_aligned": lambda root, **options: read_afew(root, order=ORDER, **options),
    "recola": read_recola,
    "mtl": lambda root, **options: read_aff_wild2(
        root, mtl=True, images=root / "cropped_aligned", **options
    ),
}
#: One file of each that is read.
FILES = {
    "seed": "1_20131027.mat",
    "sewa": "SEW1100_Arousal_AV_Aligned.csv",
    "avec": "labels/Train_DE_01.csv",
    "aff_wild2": "VA_Set/Train_Set/t0.txt",
    "ck_plus": "Emotion/S001/001/S001_001_00000004_emotion.txt",
    "afew": "Angry/000000000/00002.jpg",
    "seed_v": "1_123.npz",
    "seed_vii": "1.mat",
    "deap": "s01.mat",
    "ck_plus_48": "disgust/S002_001_00000012.png",
    "afew_aligned": "AlignedFaces_LBPTOP_Points/Faces/000000000/000000000_001.jpg",
    "recola": "ratings_gold_standard/arousal/train_2.arff",
    "mtl": "MTL_Challenge/train_set.txt",
}


def matrix(name: bytes, dims: list[int], size: int, data: bytes = b"") -> bytes:
    """A matrix element of doubles that claims to have `size` bytes of numbers."""

    def element(kind: int, data: bytes) -> bytes:
        return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)

    parts = element(6, struct.pack("<II", 6, 0)) + element(5, struct.pack(f"<{len(dims)}i", *dims))
    parts += element(1, name) + struct.pack("<II", 9, size)
    return struct.pack("<II", 14, len(parts) + size) + parts + data


def mat(path: Path, *elements: bytes) -> None:
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + b"".join(elements))


def deflated(head: bytes, size: int) -> bytes:
    """A compressed element: what it starts with, and so many zeros."""
    deflater = zlib.compressobj(1)
    z = deflater.compress(head)
    for start in range(0, size, 1 << 20):
        z += deflater.compress(bytes(min(size - start, 1 << 20)))
    z += deflater.flush()
    return struct.pack("<II", 15, len(z)) + z


def chunk(kind: bytes, part: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))


def png(path: Path, depth: int, colour: int, value: int, palette: bytes = b"") -> None:
    """A PNG of 8 x 8 pixels whose samples all have this value; written here, bit by bit."""
    samples = 3 if colour == 2 else 1
    row = sum(value << depth * k for k in range(8 * samples)).to_bytes(depth * samples, "big")
    header = struct.pack(">II5B", 8, 8, depth, colour, 0, 0, 0)
    parts = {b"IHDR": header, b"PLTE": palette, b"IDAT": zlib.compress(8 * (b"\0" + row))}
    data = b"".join(chunk(kind, part) for kind, part in parts.items() if part) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def blank_png(path: Path, width: int, height: int) -> None:
    """Written row by row: no image of that size is made here."""
    deflater = zlib.compressobj(1)
    packed = b"".join(deflater.compress(bytes(1 + width)) for _ in range(height))
    header = struct.pack(">II5B", width, height, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, part in ((b"IHDR", header), (b"IDAT", packed + deflater.flush()), (b"IEND", b"")):
        data += chunk(kind, part)
    path.write_bytes(data)


def zeros_npz(path: Path, kind: bytes, size: int) -> None:
    """A .npz whose array has zeros of this type, and so many bytes of them."""
    header = b"{'descr': '%s', 'fortran_order': False, 'shape': (), }\n" % kind
    file = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
    with file as archive, archive.open("data.npy", "w") as member:
        member.write(b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header)
        for _ in range(0, size, 1 << 20):
            member.write(bytes(1 << 20))


READ_ALL = """
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_careful
for folder in sorted(Path(sys.argv[2]).iterdir()):
    try:
        test_careful.READERS[folder.name.split("-")[0]](folder)
        print(folder.name, "was read")
    except test_careful.DataError as error:
        print(folder.name, error)
"""


def write(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


def large_files() -> list[tuple[str, Callable[[Path], object], str]]:
    """Reader, what makes its file, and the reason that is given."""
    size, million = 62 * 42_280 * 5 * 8, 1_000_000  # 100 MiB: no one of the 12 is too large
    heads = [matrix(b"de_LDS%d" % n, [62, 42_280, 5], size) for n in range(1, 13)]
    none, va, avec = matrix(b"a", [1, 1], 0), "valence,arousal\n", ";".join(sewa.AVEC_HEADER)
    return [
        *((name, os.mkfifo, "must be a regular file") for name in READERS),
        *((name, lambda p: p.symlink_to("/dev/zero"), "regular file") for name in READERS),
        *((name, lambda p: p.touch() or os.truncate(p, 1 << 40), "at most") for name in READERS),
        ("seed", lambda p: mat(p, *(deflated(h, size) for h in heads)), "more than 1073741824"),
        ("seed", lambda p: mat(p, *[none] * 20_000), "more than 10000 variables"),
        ("sewa", write("0" + ",0" * million), "at most 256 columns, got 1000001"),
        ("aff_wild2", write(f"{va}0" + ",0" * million), "2 values, got 1000001"),
        ("avec", write(f"{avec}\n0" + ";0" * million), "5 columns, got 1000001"),
        ("aff_wild2", write(va + "0,0\n" * (2 << 20)), "more than 1048576 lines"),
        ("afew", lambda p: blank_png(p, 13_300, 13_300), "13300 x 13300 pixels"),
        (
            "seed_v",
            lambda p: zeros_npz(p, b"|S%d" % (1 << 30), 1 << 30),
            "more than 67108864 bytes",
        ),
        ("seed_v", lambda p: zeros_npz(p, b"|S9", 1 << 29), "more follows its numbers"),
    ]


def test_files_that_ask_for_much_are_refused_with_little(tmp_path, limited):
    """Each took more than 600 MiB, or never came back."""
    expected = {}
    for k, (name, make, reason) in enumerate(large_files()):
        root = WRITERS[name](tmp_path / f"{name}-{k:02d}")
        (root / FILES[name]).unlink()
        make(root / FILES[name])
        expected[root.name] = rf"{FILES[name]}.*{reason}"
    found = limited(READ_ALL, Path(__file__).parent, tmp_path, mebibytes=300, seconds=120)
    lines = dict(line.split(maxsplit=1) for line in found.splitlines())
    assert lines.keys() == expected.keys()
    for name, line in lines.items():
        assert re.search(expected[name], line) and len(line) < 1000, line


def test_a_large_file_is_read_one_variable_at_a_time(tmp_path, limited):
    size = 62 * 21_140 * 5 * 8
    heads = [matrix(b"de_LDS%d" % n, [62, 21_140, 5], size) for n in range(1, 16)]  # 50 MiB each
    mat(tmp_path / "x.mat", *(deflated(head, size) for head in heads))
    code = """
import re, pathlib
from strnn_models.data.mat5 import MatFile
with MatFile(pathlib.Path(sys.argv[1]), re.compile("de_LDS[0-9]+")) as file:
    for name in file.variables:
        assert not file.read(name).any()
    print(len(file.variables))
"""
    assert limited(code, tmp_path / "x.mat", mebibytes=200, seconds=60) == "15\n"


@pytest.mark.parametrize("name", READERS)
def test_hidden_files_are_no_data(tmp_path, name):
    """As macOS leaves them: `._` beside every file and folder, and a folder of its archives."""
    root = WRITERS[name](tmp_path / "x")
    whole = READERS[name](root)
    for path in [root, *root.rglob("*")]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    for place in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        (place / "__MACOSX" / place.name).mkdir(parents=True)
        (place / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    found = READERS[name](root)
    assert len(found) == len(whole)
    assert [record.name for record in found] == [record.name for record in whole]


@pytest.mark.parametrize("name", READERS)
def test_a_wrong_root_says_what_is_there(tmp_path, name):
    root = WRITERS[name](tmp_path / "data" / "right")
    if name != "sewa":  # which is searched with all that is below
        with pytest.raises(DataError, match=r"data.*right"):
            READERS[name](root.parent)
    with pytest.raises(DataError, match=r"wrong: no such folder; .*data has right/"):
        READERS[name](root.parent / "wrong")
    with pytest.raises(DataError, match="no such folder"):
        READERS[name](root.parent / ("9" * 300))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty.*it has nothing"):
        READERS[name](tmp_path / "empty")


@pytest.mark.parametrize("value", [1e39, -3.5e38, 1e308])
def test_no_value_becomes_infinite_as_float32(tmp_path, value):
    """Finite in the file, and no infinity in what is trained on."""
    root = WRITERS["seed"](tmp_path / "seed")
    arrays = {f"de_LDS{n}": np.ones((62, 2, 5)) for n in range(1, 16)}
    arrays["de_LDS7"][3, 1, 2] = value
    savemat(root / FILES["seed"], arrays)
    with pytest.raises(DataError, match=r"de_LDS7: 1 values are not finite.*\(3, 1, 2\)"):
        read_seed(root)
    found = read_seed(root, skip_bad=True)
    assert len(found) == 44 and all(np.isfinite(trial.x).all() for trial in found)
    signals = {f"a_eeg{n}": np.ones((62, 400)) for n in range(1, 16)}
    signals["a_eeg7"][3, 1] = value
    savemat(root / FILES["seed"], signals)
    with pytest.raises(DataError, match="a_eeg7: 1 values are not finite"):
        read_seed(root, feature="raw", sessions=[1])
    far = Trial(np.full((2, 1, 1), 1e30, np.float32), 0, "1", 1, 2)
    near = Trial(np.float32([[[0]], [[1e-20]]]), 0, "1", 1, 1)
    with pytest.raises(DataError, match="trial 2, standardised: 2 values"):
        windows.standardise([near], [far])


#: float() reads the first four.
NO_NUMBERS = (
    *("0_5", "\u0660", "\uff10.5", "\u0967", "\u00b2", "0x1", "1e999", "nan", "-inf"),
    *("", "1 2", "--1", "1e", "."),
)


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_number_is_refused(tmp_path, text):
    cells = {
        "sewa": ("0.1,0.2,0.3,{}", 2),
        "avec": ("'Train_DE_01';0.1;{};0.2;0.3", 3),
        "aff_wild2": ("{},0.2", 4),
        "ck_plus": ("{}", 1),
    }
    for name, (line, n) in cells.items():
        root = WRITERS[name](tmp_path / name)
        path = root / FILES[name]
        lines = path.read_text().splitlines()
        lines[n - 1] = line.format(text)
        path.write_text("\n".join(lines) + "\n")
        reason = "the file is empty" if path.read_text().isspace() else f"line {n}: must be"
        with pytest.raises(DataError, match=f"{path.name}: {reason}"):
            READERS[name](root)


def test_a_long_number_that_is_none_takes_no_time_of_its_square(tmp_path, limited):
    """A pattern that can cut digits in two in many ways tries them all: hours."""
    path = WRITERS["sewa"](tmp_path) / FILES["sewa"]
    path.write_text(path.read_text().replace("0.1", "1" * 2_000_000 + "x", 1))
    code = """
from strnn_models.data.records import DataError
from strnn_models.data.sewa import read_sewa
try:
    read_sewa(sys.argv[1])
except DataError as error:
    print(error)
"""
    out = limited(code, tmp_path, mebibytes=256, seconds=60)
    assert "line 1: must be a number, got" in out and len(out) < 1000


@pytest.mark.parametrize("text", ["77", "-1.001", "1e30"])
def test_sewa_values_have_a_range(tmp_path, text):
    path = WRITERS["sewa"](tmp_path) / FILES["sewa"]
    lines = path.read_text().splitlines()
    lines[4] = lines[4].rsplit(",", 1)[0] + f",{text}"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"line 5: must be in -1\.\.1"):
        read_sewa(tmp_path)
    lines[4] = "-0.1" + lines[4][3:]
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match="line 5: must be in 0"):
        read_sewa(tmp_path)


@pytest.mark.parametrize(
    "header", ["time,A1,A2,A3", "Time (s),1,2,3", "t,a,b,c", '"t","a","b","c"']
)
def test_a_header_is_a_first_line_of_names(tmp_path, header):
    path = WRITERS["sewa"](tmp_path) / FILES["sewa"]
    lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *lines]))
    assert len(read_sewa(tmp_path)[0].values) == 20
    lines[6] = lines[6].replace(",", ",x", 1)
    path.write_text("\n".join([header, *lines]))
    with pytest.raises(DataError, match="line 8: must be a number, got 'x"):
        read_sewa(tmp_path)


@pytest.mark.parametrize("cell", ["O.0", "0_0", "", "-", "0.0.0"])
def test_a_damaged_first_line_is_no_header(tmp_path, cell):
    path = WRITERS["sewa"](tmp_path) / FILES["sewa"]
    path.write_text(cell + path.read_text()[5:])
    with pytest.raises(DataError, match="line 1: must be a number"):
        read_sewa(tmp_path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_are_counted_as_editors_do(tmp_path, end):
    """str.splitlines also ends lines at form feeds and other separators."""
    root = WRITERS["aff_wild2"](tmp_path)
    text = end.join(["valence,arousal", "0,0\x0c", "0,0\u2028", "0,0\x1c", "0,x"])
    (root / FILES["aff_wild2"]).write_bytes(text.encode())
    with pytest.raises(DataError, match="line 5: must be a number, got 'x'"):
        read_annotations(root)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (matrix(b"de_LDS1", [1] * 65, 8, bytes(8)), None),
        (matrix(b"de_LDS1", [], 0), "de_LDS1"),
        (matrix(b"de_LDS1", [0, 2**31 - 1, 2**31 - 1, 2**31 - 1], 0), "de_LDS1"),
        (matrix(b"de_LDS1", [-62, 1, -5], 62 * 5 * 8, bytes(62 * 5 * 8)), "de_LDS1"),
        (matrix(b"de_LDS1", [62, 2**31 - 1, 5], 8, bytes(8)), "de_LDS1"),
        (matrix(b"de_LDS" + b"9" * 5000, [1, 1], 8, bytes(8)), None),
        (matrix(b"de_LDS" + b"9" * 50, [1, 1], 8, bytes(8)), "de_LDS" + "9" * 50),
        (matrix(b"de_LDS0", [1, 1], 8, bytes(8)), "de_LDS0"),
        (deflated(matrix(b"de_LDS1", [1, 1], 8), 1 << 20), "de_LDS1"),
    ],
    ids=["65 dims", "0 dims", "empty and vast", "negative", "vast", "5000", "50", "0", "longer"],
)
def test_damaged_variables_are_named(tmp_path, content, name):
    root = WRITERS["seed"](tmp_path)
    mat(root / FILES["seed"], content)
    with pytest.raises(DataError) as caught:
        read_seed(root)
    assert (caught.value.file, caught.value.record) == (root / FILES["seed"], name)
    found = read_seed(root, skip_bad=True)
    assert len(found) == 30 and {skip.file for skip in found.skipped} == {root / FILES["seed"]}


@pytest.mark.parametrize("name", ["5².jpg", "\u0665.jpg", "x.jpg", "1.jpg", f"{'9' * 250}.jpg"])
def test_names_of_frames(tmp_path, name):
    """A digit for str.isdigit, or for int, is not always one of 0 to 9."""
    root = WRITERS["aff_wild2"](tmp_path)
    synthetic.write_frames(root / "cropped_aligned" / "t0", [name])
    with pytest.raises(DataError, match=r"number|no annotation"):
        READERS["aff_wild2"](root)
    found = READERS["aff_wild2"](root, skip_bad=True)
    assert found and len(found.skipped) == 1


@pytest.mark.parametrize("line", ["Angry/" + "9" * 5000 + " Angry", "A" * 9000, "Angry/\0 Angry"])
def test_lines_longer_than_a_file_name(tmp_path, line):
    root = WRITERS["afew"](tmp_path)
    (root / "list.txt").write_text((root / "list.txt").read_text() + line)
    with pytest.raises(DataError, match=r"list\.txt: line 8") as caught:
        read_afew(root, order=ORDER, list_file=root / "list.txt")
    assert len(str(caught.value)) < 1000
    found = read_afew(root, order=ORDER, list_file=root / "list.txt", skip_bad=True)
    assert len(found) == 7 and len(found.skipped) == 1


def test_names_that_are_no_text_can_be_told(tmp_path):
    root = WRITERS["seed"](tmp_path)
    Path(os.fsdecode(os.fsencode(root) + b"/\xff.mat")).write_bytes(b"x")
    (skip,) = read_seed(root, skip_bad=True).skipped
    assert "\\udcff" in str(skip).encode().decode()


@pytest.mark.parametrize("given", ["12", b"12", "1", 12, 1.0, [], [1.5], [None]])
def test_a_text_is_no_list(tmp_path, given):
    """Subjects "12" were 1 and 2."""
    roots = {read_seed: WRITERS["seed"](tmp_path / "a")}
    roots[read_seed_iv] = synthetic.write_seed_iv(tmp_path / "b")
    for read, root in roots.items():
        for what in ("subjects", "sessions"):
            with pytest.raises(ValueError, match=f"{what} must be a list such as"):
                read(root, **{what: given})
        for sessions in ([0], [4], [1, 7]):
            with pytest.raises(ValueError, match=r"sessions must be in 1\.\.3"):
                read(root, sessions=sessions)
        assert {trial.session for trial in read(root, subjects={"1"}, sessions=range(2, 4))} == {
            2,
            3,
        }
        assert {t.session for t in read(root, subjects=np.array([1]), sessions=(3,))} == {3}


def test_tables_of_electrodes_hold_whole_numbers():
    from strnn_models.data.montages import grid_from_table

    assert grid_from_table({"A": np.array([1, 2])}) == {"A": (1, 2)}
    for cell in ("12", [1.7, 2], ["1", "2"], [1, 2, 3], 7):
        with pytest.raises(ValueError, match="A is at"):
            grid_from_table({"A": cell})
    with pytest.raises(ValueError, match="names must be a list"):
        grid_from_table([[0, 0]] * 2, "CZ")


def test_sessions_are_told_by_their_dates(tmp_path):
    root = WRITERS["seed"](tmp_path)
    first, second, third = (root / f"1_{date}.mat" for date in seed_files.DATES["1"])
    second.unlink()
    assert [(t.session, t.file) for t in read_seed(root)[::15]] == [(1, first), (3, third)]
    assert {t.file for t in read_seed(root, sessions=[3])} == {third}
    first.unlink()
    assert {t.session for t in read_seed(root)} == {3}
    with pytest.raises(DataError, match=r"no file <subject>.*it has 1_20131107\.mat, label.mat"):
        read_seed(root, sessions=[1])
    third.rename(root / "1_20200101.mat")
    with pytest.raises(DataError, match="subject 1: which sessions its 1 files are is not known"):
        read_seed(root)


def test_seed_with_a_folder_for_each_session(tmp_path):
    root = WRITERS["seed"](tmp_path)
    for session, date in enumerate(seed_files.DATES["1"], start=1):
        (root / str(session)).mkdir()
        (root / f"1_{date}.mat").rename(root / str(session) / f"1_2020010{5 - session}.mat")
    assert [t.session for t in read_seed(root)[::15]] == [1, 2, 3]
    (found,) = {t.file for t in read_seed(root, sessions=[2])}
    assert found.parent.name == "2"
    (root / "label.mat").rename(root / "1" / "label.mat")
    assert len(read_seed(root)) == 45
    found.rename(root / "1" / found.name)
    with pytest.raises(DataError, match="subject 1: 2 files of it in one folder: 1_"):
        read_seed(root)


@pytest.mark.parametrize("extra", [b"\0" * 100, b"\xff\xd8 another" * 50, b"\n"])
def test_a_jpeg_may_have_more_after_its_end(tmp_path, extra):
    path = tmp_path / "1.jpg"
    synthetic.write_frames(tmp_path, ["1.jpg"], size=64)
    whole = load_frames([path], (64, 64))
    path.write_bytes(path.read_bytes() + extra)
    (frame,) = list_frames(tmp_path)
    assert torch.equal(load_frames([frame], (64, 64)), whole)


def test_a_jpeg_is_cut_off_where_its_decoder_says_so(tmp_path):
    path = tmp_path / "1.jpg"
    synthetic.write_frames(tmp_path, ["1.jpg"], size=64)
    data = path.read_bytes()
    for end in (len(data) // 2, len(data) - 30, len(data) - 3):
        path.write_bytes(data[:end])
        with pytest.raises(DataError, match=r"1\.jpg: the image is cut off"):
            check_frame(path)


@pytest.mark.parametrize(
    ("mode", "value", "grey", "colour"),
    [
        ("1", 1, 1, None),
        ("L", 51, 0.2, None),
        ("LA", (51, 9), 0.2, None),
        ("I;16", 13107, 0.2, None),
        ("I;16", 65535, 1, None),
        ("I;16", 255, 255 / 65535, None),
        ("P", 3, None, (1, 0, 0)),
        ("RGB", (255, 51, 0), None, (1, 0.2, 0)),
        ("RGBA", (255, 51, 0, 40), None, (1, 0.2, 0)),
        ("CMYK", (0, 255, 255, 0), None, (1, 0, 0)),
    ],
)
def test_pixels_are_what_a_viewer_shows(tmp_path, mode, value, grey, colour):
    image = Image.new(mode, (8, 8), value)
    if mode == "P":
        image.putpalette([0, 0, 0] * 3 + [255, 0, 0])
        image.info["transparency"] = bytes([255, 255, 0])
    path = tmp_path / ("1.jpg" if mode == "CMYK" else "1.png")
    image.save(path, **({"quality": 100} if mode == "CMYK" else {}))
    colour = (grey,) * 3 if colour is None else colour
    # Luma of ITU-R 601; JPEG rounds.
    grey = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] if grey is None else grey
    atol = 0.02 if mode == "CMYK" else 0.003
    x = load_frames([path], (4, 6), grey=False)
    np.testing.assert_allclose(x[0].mean(dim=(1, 2)), colour, atol=atol)
    x = load_frames([path], (4, 6), grey=True)
    assert x.shape == (1, 1, 4, 6) and x.dtype == torch.float32
    np.testing.assert_allclose(x, grey, atol=atol)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_is_a_share_of_white_whatever_the_bits(tmp_path, depth):
    white = 2**depth - 1
    for value in {0, 1, white // 3, white}:
        png(tmp_path / "1.png", depth, 0, value)
        for grey in (True, False):
            x = load_frames([tmp_path / "1.png"], (5, 7), grey)
            np.testing.assert_allclose(x, value / white, atol=1e-6)


@pytest.mark.parametrize(("depth", "atol"), [(8, 1e-6), (16, 1 / 255)])
def test_colours_of_8_and_16_bits(tmp_path, depth, atol):
    for share in (0, 0.2, 0.4, 1):
        png(tmp_path / "1.png", depth, 2, round(share * (2**depth - 1)))
        x = load_frames([tmp_path / "1.png"], (5, 7), grey=False)
        np.testing.assert_allclose(x, share, atol=atol)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palettes_are_looked_up(tmp_path, depth):
    png(tmp_path / "1.png", depth, 3, 1, palette=bytes([9, 9, 9, 255, 51, 0]))
    x = load_frames([tmp_path / "1.png"], (5, 7), grey=False)
    np.testing.assert_allclose(x.mean(dim=(2, 3))[0], [1, 0.2, 0], atol=1e-6)


_CHALLENGES = ("VA_Estimation_Challenge", "{}_Challenge", "AU_Detection_Challenge")
YEARS = {
    2020: ("VA_Set", "Expression_Set", "AU_Set", "Training_Set", 8),
    2021: ("VA_Set", "EXPR_Set", "AU_Set", "Train_Set", 12),
    2022: (*(c.format("EXPR_Classification") for c in _CHALLENGES), "Train_Set", 12),
    2023: (*(c.format("EXPR_Classification") for c in _CHALLENGES), "Train_Set", 12),
    2024: (*(c.format("EXPR_Recognition") for c in _CHALLENGES), "Train_Set", 12),
    2025: (*(c.format("EXPR_Recognition") for c in _CHALLENGES), "Train_Set", 12),
}


@pytest.mark.parametrize("year", YEARS)
def test_aff_wild2_of_each_year(tmp_path, year):
    root = synthetic.write_aff_wild2(tmp_path, with_frames=False)
    *folders, part, units = YEARS[year]
    for kind, name in zip(("VA", "EXPR", "AU"), folders, strict=True):
        (root / f"{kind}_Set" / "Train_Set").rename(root / f"{kind}_Set" / part)
        (root / f"{kind}_Set").rename(root / name)
    if units == 8:
        for path in (root / "AU_Set").rglob("*.txt"):
            rows = [line.split(",")[:8] for line in path.read_text().splitlines()]
            rows[0] = aff_wild2.ACTION_UNITS_2020
            path.write_text("\n".join(map(",".join, rows)))
    for kind in ("VA", "EXPR", "AU", "VA+EXPR"):
        traces = read_aff_wild2(root, kind=kind)
        assert len(traces) == 2
        assert traces[0].values.shape[1] == {"EXPR": 0, "AU": units}.get(kind, 2)


def test_files_of_other_action_units_are_not_mixed(tmp_path):
    root = synthetic.write_aff_wild2(tmp_path, with_frames=False)
    path = root / "AU_Set" / "Train_Set" / "t1.txt"
    path.write_text(",".join(aff_wild2.ACTION_UNITS_2020) + "\n" + ",".join("0" * 8))
    with pytest.raises(DataError, match=r"t1\.txt: line 1: must have the 12 action units"):
        read_aff_wild2(root, kind="AU")


def test_a_missing_frame_does_not_shift_the_others(tmp_path):
    traces = read_avec(WRITERS["avec"](tmp_path))
    for trace in traces:
        names = [f"{k:05d}.jpg" for k in range(1, 21) if k != 5]
        synthetic.write_frames(tmp_path / "frames" / trace.name, names)
    framed = sewa.with_frames(traces, tmp_path / "frames", fps=10)[0]
    found = [frame and int(frame.stem) for frame in framed.frames]
    assert found == [*range(1, 5), None, *range(6, 21)]
    assert framed.valid.tolist() == [k != 4 for k in range(20)]


def test_sewa_in_folders_of_valence_and_arousal(tmp_path):
    root = WRITERS["sewa"](tmp_path / "x")
    whole = read_sewa(root)
    for path in sorted(root.glob("*.csv")):
        stem, what, *_ = path.name.split("_")
        (root / stem / what.lower()).mkdir(parents=True)
        path.rename(root / stem / what.lower() / path.name)
    assert [trace.name for trace in read_sewa(root)] == [trace.name for trace in whole]
    (root / "copy").mkdir()
    (root / "copy" / FILES["sewa"]).write_bytes(b"0,0")
    with pytest.raises(DataError, match=r"SEW1100_Arousal.*is there twice"):
        read_sewa(root)


def test_f1_counts_the_classes_that_occur():
    """One wrong of 48 with a class of its own, which occurs in guesses alone: 0.739 once."""
    truth = torch.arange(48) % 3
    scores = 9 * torch.nn.functional.one_hot(truth, 4).float()
    scores[0] = torch.tensor([0.0, 0, 0, 9])
    found = objective._score_classes(scores, truth)
    assert found["f1"] == pytest.approx((30 / 31 + 2) / 3)
    assert objective.present(truth.numpy()).tolist() == [0, 1, 2]
    units = torch.tensor([[0.0, 1, 0], [0, 0, 1], [0, 1, 1]])
    found = objective._score_units(torch.tensor([[9.0, 9, -9]] * 3), units, ("a", "b", "c"))
    assert found["f1"] == pytest.approx((0.8 + 0) / 2) and np.isnan(found["f1_a"])
    found = objective._score_units(torch.zeros(2, 1), torch.zeros(2, 1), ("a",))
    assert np.isnan(found["f1"])
    found = objective._score_units(torch.ones(2, 1), torch.tensor([[1.0], [0]]), ("a",))
    assert found["f1"] == pytest.approx(2 / 3)


def test_limits_have_room_for_what_there_is():
    """The longest of SEED, as the data sets have it, and hours of video."""
    assert 62 * max(seed.TRIAL_LENGTHS) * seed.RATE * 8 < mat5.MOST_VARIABLE / 8
    assert 62 * sum(seed.TRIAL_LENGTHS) * seed.RATE * 8 < mat5.MOST_WANTED / 3
    assert records.MOST_LINES > 9 * 3600 * 30

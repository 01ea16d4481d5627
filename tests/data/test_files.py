"""MATLAB 7.3, numpy's files and pickles: what is read back, what is refused, what never runs."""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from strnn_models.data import mat5, mat73
from strnn_models.data.mat73 import Mat73File, open_mat
from strnn_models.data.npy import read_npy, read_npz
from strnn_models.data.pickled import read_dict
from strnn_models.data.records import DataError
from strnn_models.data.synthetic import write_mat73

ANY = re.compile(".*")
NUMBERS = {
    "a": np.arange(3 * 7 * 5.0).reshape(3, 7, 5),
    "b": np.arange(6, dtype=np.int16).reshape(2, 3),
    "c": np.array([[0.5]], np.float32),
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": True},
        {"compression": "gzip"},
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"shuffle": True, "chunks": True},
    ],
    ids=["plain", "chunks", "gzip", "all", "shuffle"],
)
def test_mat73_round_trip(tmp_path, options):
    pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
    write_mat73(tmp_path / "x.mat", NUMBERS, **options)
    with open_mat(tmp_path / "x.mat", re.compile("[ab]")) as file:
        assert isinstance(file, Mat73File) and set(file.variables) == {"a", "b"}
        for name, variable in file.variables.items():
            assert variable.shape == NUMBERS[name].shape
            np.testing.assert_array_equal(file.read(name), NUMBERS[name])
            assert file.read(name).dtype == NUMBERS[name].dtype


@pytest.mark.parametrize("chunks", [(1, 1, 1), (2, 3, 2), (5, 7, 3), (4, 2, 3)])
def test_mat73_chunks_that_do_not_fit(tmp_path, chunks):
    h5py = pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
    write_mat73(tmp_path / "x.mat", {"a": NUMBERS["a"]}, chunks=chunks, compression="gzip")
    with open_mat(tmp_path / "x.mat", ANY) as file, h5py.File(tmp_path / "x.mat") as other:
        np.testing.assert_array_equal(file.read("a"), other["a"][()].T)
        np.testing.assert_array_equal(file.read("a"), NUMBERS["a"])


def test_a_version_is_told_by_the_file(tmp_path):
    savemat(tmp_path / "x.mat", NUMBERS)
    with open_mat(tmp_path / "x.mat", ANY) as file:
        assert isinstance(file, mat5.MatFile)
    (tmp_path / "y.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + bytes(999))
    with pytest.raises(DataError, match=r"y\.mat: .*7\.3, but HDF5 does not follow"):
        open_mat(tmp_path / "y.mat", ANY)


def test_without_h5py_the_extra_is_named(tmp_path, monkeypatch):
    header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM"
    (tmp_path / "x.mat").write_bytes(header.ljust(512, b"\0") + b"\x89HDF\r\n\x1a\n")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"x\.mat: .*strnn-kernels\[hdf5\].*-v7"):
        open_mat(tmp_path / "x.mat", ANY)


def refused_hdf5(h5py, path: Path) -> dict[str, str]:
    """A file of variables that are refused, and why."""
    other = path.with_name("other.h5")
    with h5py.File(other, "w") as file:
        file["a"] = np.ones((2, 3))
    np.ones((2, 3)).tofile(path.with_name("raw"))
    ones = np.ones((4, 3))
    with h5py.File(path, "w") as file:
        file["elsewhere"] = h5py.ExternalLink(str(other), "a")
        file["soft"] = h5py.SoftLink("/group")
        file.create_group("group")
        file["text"] = np.zeros(3, np.uint16)
        file["text"].attrs["MATLAB_class"] = np.bytes_(b"char")
        file["class"] = ones
        file["class"].attrs["MATLAB_class"] = "double" * 99
        file["complex"] = ones * 1j
        file["string"] = b"abc"
        file["none"] = np.array([0, 3], np.uint64)
        file["none"].attrs["MATLAB_empty"] = np.uint8(1)
        file["null"] = h5py.Empty("f8")
        file.create_dataset("lzf", data=ones, compression="lzf")
        file.create_dataset("vast", (1 << 20, 1 << 20), "f8", chunks=(1, 1 << 10))
        file.create_dataset("chunk", (1, 1), "f8", chunks=(1 << 16, 1 << 16), maxshape=(None, None))
        file.create_dataset("many", (1 << 9, 1 << 9), "f8", chunks=(1, 1))
        file.create_dataset("missing", (4, 3), "f8", chunks=(2, 3))
        file.create_dataset("late", (4, 3), "f8")
        layout = h5py.VirtualLayout((2, 3), "f8")
        layout[:] = h5py.VirtualSource(str(other), "a", shape=(2, 3))
        file.create_virtual_dataset("virtual", layout)
        raw = [(str(path.with_name("raw")), 0, 48)]
        file.create_dataset("external", (2, 3), "f8", external=raw)
        packed = {"short": zlib.compress(bytes(8)), "long": zlib.compress(bytes(1 << 20))}
        packed |= {"cut": zlib.compress(ones.tobytes())[:-6], "noise": b"no zlib at all"}
        for name, chunk in packed.items():
            data = file.create_dataset(name, (4, 3), "f8", chunks=(4, 3), compression="gzip")
            data.id.write_direct_chunk((0, 0), chunk)
    return {
        **dict.fromkeys(("elsewhere", "soft"), "is a link"),
        **dict.fromkeys(("group", "text", "class", "complex", "string"), "must hold real numbers"),
        **dict.fromkeys(("none", "null"), "is empty"),
        "lzf": "filters .32000.",
        **dict.fromkeys(("vast", "chunk"), "have more than 268435456 bytes"),
        "many": "more than 65536 chunks",
        "missing": "missing or too large",
        "late": "does not fit what is stored",
        **dict.fromkeys(("virtual", "external"), "must stand in the file itself"),
        "short": "has 8 of 96 bytes",
        "long": "longer than it must be",
        "cut": "cut off",
        "noise": "incorrect header",
    }


def test_mat73_refuses(tmp_path):
    h5py = pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
    expected = refused_hdf5(h5py, tmp_path / "x.mat")
    with open_mat(tmp_path / "x.mat", ANY) as file:
        assert set(file.variables) == set(expected)
        for name, reason in expected.items():
            with pytest.raises(DataError, match=rf"x\.mat: {name}: .*{reason}"):
                file.read(name)


def test_mat73_limits_are_those_of_version_5(tmp_path, monkeypatch):
    pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
    write_mat73(tmp_path / "x.mat", NUMBERS)
    for name, limit, reason in (
        ("MOST_VARIABLES", 2, "more than 2 variables"),
        ("MOST_WANTED", 100, "its variables up to a have more than 100 bytes"),
        ("MOST_FILE", 1000, "at most 1000 bytes"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(mat73, name, limit)
            with pytest.raises(DataError, match=rf"x\.mat: .*{reason}"):
                open_mat(tmp_path / "x.mat", ANY)


def test_mat73_names_are_as_short_as_matlab_has_them(tmp_path):
    pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
    write_mat73(
        tmp_path / "x.mat", {"de" + "9" * 5000: NUMBERS["b"], "de" + "9" * 61: NUMBERS["b"]}
    )
    with open_mat(tmp_path / "x.mat", re.compile("de[0-9]+")) as file:
        assert list(file.variables) == ["de" + "9" * 61]


def python_2(arrays: dict[str, np.ndarray]) -> bytes:
    """A pickle as Python 2 wrote it: the bytes of an array are a text."""
    parts = [b"\x80\x02}("]
    for name, array in arrays.items():
        parts += [b"U", bytes([len(name)]), name.encode()]
        parts.append(
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tU\x01btR(K\x01("
        )
        parts += [b"J" + struct.pack("<i", n) for n in array.shape]
        parts.append(
            b"tcnumpy\ndtype\n(U\x02f8K\0K\x01tR(K\x03U\x01<NNN" + b"J\xff\xff\xff\xff" * 2
        )
        data = array.astype("<f8").tobytes()
        parts += [b"K\0tb\x89T", struct.pack("<i", len(data)), data, b"tb"]
    return b"".join(parts) + b"u."


ARRAYS = {
    0: np.arange(15.0).reshape(3, 5),
    7: np.asfortranarray(np.arange(12, dtype=np.int32).reshape(4, 3)),
    "labels": np.array([1, -3], ">i8"),
    "strided": np.arange(20, dtype=np.float32).reshape(4, 5)[::2, 1:4],
}


@pytest.mark.parametrize("protocol", range(1, pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_arrays(protocol):
    found = read_dict(pickle.dumps(ARRAYS, protocol))
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_pickles_of_python_2():
    arrays = {"data": np.random.default_rng(0).normal(size=(3, 4, 5)), "labels": np.ones((3, 4))}
    data = python_2(arrays)
    for found in (read_dict(data), pickle.loads(data, encoding="latin1")):
        assert list(found) == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


BAD_PICKLES = {
    "evil": (pickle.dumps(Evil()), "names 'posix.mkdir'"),
    "evil inside": (pickle.dumps({"a": [Evil()]}), "names 'posix.mkdir'"),
    "eval": (b"c__builtin__\neval\n(U\x011tR.", "names '__builtin__.eval'"),
    "objects": (pickle.dumps({"a": np.array([None])}), "something else than an array"),
    "strings": (pickle.dumps({"a": np.array(["x"])}), "something else than an array"),
    "a list": (pickle.dumps([1]), "must hold a dict, holds list"),
    "an array": (pickle.dumps(np.ones(3)), "must hold a dict, holds array"),
    "empty": (b"", "cut off"),
    "cut off": (pickle.dumps(ARRAYS)[:-20], "cut off|bytes"),
    "set": (pickle.dumps({1: {2, 3}}), "opcode EMPTY_SET"),
    "keys": (pickle.dumps({(1, 2): 3}), "keys of a dict"),
    "no mark": (b"}u.", "lacks a mark"),
    "memo": (b"h\7.", "KeyError"),
    "stack": (b"R.", "IndexError"),
    "self": (b"](h\0e.", "KeyError"),
    "endless": (b"N" * 200_000 + b".", "more than 100000 opcodes"),
    "vast memo": (b"}r\xff\xff\xff\xff0.", "opcode POP"),
    "vast bytes": (b"\x8e" + b"\xff" * 7 + b"\x7f.", "expected .* bytes"),
    "copies": (
        b"\x80\x02}(" + b"U\x01bX" + struct.pack("<I", 5000) + b"x" * 5000 + b"q\0"
        + b"".join(b"X\x01\0\0\0%dc_codecs\nencode\nh\0U\x06latin1\x86R" % k for k in range(9))
        + b"u.",
        "the same bytes many times",
    ),
    "shape": (
        pickle.dumps({"a": np.ones((3, 5))}, 2).replace(b"K\x03K\x05\x86", b"K\x04K\x05\x86"),
        "does not fit its 120 bytes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_PICKLES)
def test_bad_pickles(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, reason = BAD_PICKLES[name]
    with pytest.raises(ValueError, match=reason) as caught:
        read_dict(data)
    assert len(str(caught.value)) < 300 and not Path("executed").exists()


def test_tuples_within_tuples_are_not_followed(limited):
    """2 ** 200 of them as a name, a key, a shape: what hashes or prints it never comes back."""
    code = """
from strnn_models.data.pickled import read_dict
pairs = [b"h" + bytes([k]) + b"h" + bytes([k]) + b"\\x86\\x94" for k in range(200)]
memo = b"\\x80\\x04)\\x94" + b"".join(pairs)
for data in (
    memo + b".",
    memo + b"\\x8c\\x01a\\x93.",
    b"\\x80\\x04}" + memo[2:] + b"Ns.",
    memo + b"cnumpy\\ndtype\\n" + b"h\\xc8\\x85R.",
):
    try:
        read_dict(data)
    except ValueError as error:
        print(len(str(error)) < 300)
"""
    assert limited(code, mebibytes=100, seconds=20) == "True\n" * 4


def npy_bytes(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version)
    return buffer.getvalue()


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("array", [ARRAYS[0], ARRAYS[7], ARRAYS["labels"], np.float32(3)])
def test_npy_round_trip(array, version):
    found = read_npy(io.BytesIO(npy_bytes(np.asarray(array), version)), 1000)
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "its header is damaged"),
        (b"\x93NUMPY\x09\0" + bytes(99), "version is"),
        (npy_bytes(np.ones(9))[:-1], "1 of 72 bytes are missing"),
        (npy_bytes(np.ones(200)), "more than 1000 bytes"),
        (npy_bytes(np.ones(3)).replace(b"(3,)", b"(-3,)", 1)[:-1], "negative"),
        (npy_bytes(np.ones(3)).replace(b"(3,)", b"(os)"), "its header is damaged"),
        (npy_bytes(np.array(["a"])), "must hold real numbers"),
        (npy_bytes(np.ones(3, [("a", "f4")])), "must hold real numbers"),
    ],
)
def test_bad_npy(data, reason):
    with pytest.raises(ValueError, match=reason):
        read_npy(io.BytesIO(data), 1000)


def test_bad_npz(tmp_path):
    path, good = tmp_path / "x.npz", {"a": np.bytes_(b"abc"), "b": np.bytes_(b"d")}
    np.savez(path, **good)
    found = read_npz(path, ("a", "b"), kinds="S")
    assert {name: array.item() for name, array in found.items()} == {"a": b"abc", "b": b"d"}

    def refuse(reason: str) -> None:
        with pytest.raises(DataError, match=rf"x\.npz: .*{reason}"):
            read_npz(path, ("a", "b"), kinds="S")

    np.savez(path, a=good["a"])
    refuse("b: no such array")
    np.savez(path, a=np.ones(3), b=good["b"])
    refuse("a: must hold bytes, holds float64")
    path.write_bytes(b"PK\x05\x06 no archive")
    refuse("not a readable .npz")
    np.savez(path, **good, **{f"c{k}": good["a"] for k in range(99)})
    refuse("more than 64 arrays")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.npy", npy_bytes(np.asarray(good["a"])))
    refuse("as it is or by deflate")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", npy_bytes(np.asarray(good["a"])) + bytes(99))
    refuse("a: more follows")
    np.savez(path, **good)
    path.write_bytes(path.read_bytes().replace(b"abc", b"abd"))
    refuse("a: .*Bad CRC")

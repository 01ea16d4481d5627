"""SEED-V, SEED-VII, DEAP, CK+48, AFEW's faces, RECOLA, multi-task files: values and damage."""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat, savemat
from strnn_models.data import afew, ck_plus, deap, seed, synthetic, tasks
from strnn_models.data.afew import read_afew
from strnn_models.data.aff_wild2 import read_aff_wild2, read_annotations
from strnn_models.data.ck_plus import read_ck_plus
from strnn_models.data.de_features import differential_entropy
from strnn_models.data.deap import read_deap
from strnn_models.data.recola import read_recola
from strnn_models.data.records import DataError
from strnn_models.data.seed import read_seed_v, read_seed_vii

from strnn_kernels.montages import MONTAGES

ORDER = afew.ORDERS["alphabetical"]


def pickles(path: Path) -> tuple[dict, dict]:
    with np.load(path) as archive:
        return pickle.loads(archive["data"].item()), pickle.loads(archive["label"].item())


def rewrite_v(path: Path, data: dict, label: dict) -> None:
    np.savez(path, data=pickle.dumps(data), label=pickle.dumps(label))


def test_seed_v(tmp_path):
    root = synthetic.write_seed_v(tmp_path, subjects=(2, 11))
    trials = read_seed_v(root)
    assert [t.subject for t in trials[::45]] == ["2", "11"] and len(trials) == 90
    data, label = pickles(root / "11_123.npz")
    for k, trial in enumerate(trials[45:]):
        assert (trial.session, trial.trial) == (1 + k // 15, 1 + k % 15)
        assert trial.label == label[k][0] and trial.x.dtype == np.float32
        # Electrode by electrode: feature 5 n + c is band c of electrode n.
        for n, c in ((0, 0), (3, 4), (61, 2)):
            np.testing.assert_array_equal(trial.x[:, n, c], data[k][:, 5 * n + c].astype("f4"))
    chosen = read_seed_v(root, subjects=[11], sessions=[2])
    assert [(t.session, t.trial) for t in chosen] == [(2, n) for n in range(1, 16)]
    np.testing.assert_array_equal(chosen[3].x, trials[45 + 18].x)
    task = tasks.make("seed_v", root=str(root), subjects=[2], sample_length=2)
    assert task.classes == ("disgust", "fear", "sad", "neutral", "happy")
    assert {trial.trial for trial in task.test.trials} == set(range(11, 16))


def test_seed_v_damage(tmp_path):
    path = synthetic.write_seed_v(tmp_path) / "1_123.npz"
    data, label = pickles(path)
    for change, reason in (
        (lambda d, y: d.pop(17), "data 17: no such trial"),
        (lambda d, y: y.pop(17), "label 17: no such trial"),
        (lambda d, y: d.update({17: d[17][:, 1:]}), r"data 17: must have shape .*got \(5, 309\)"),
        (lambda d, y: d.update({17: d[17][0]}), "data 17: must have shape"),
        (lambda d, y: d.update({17: "x"}), "data 17: must be an array"),
        (lambda d, y: y[17].__setitem__(2, 4), r"label 17: must be 5 times .*got 5 of \[2, 4\]"),
        (lambda d, y: y.update({17: y[17][1:]}), r"label 17: .*got 4 of \[2\]"),
        (lambda d, y: y[17].fill(5), r"label 17: .*of \[5\]"),
        (lambda d, y: d[17].__setitem__((1, 7), np.nan), r"data 17: 1 values .*at \(1, 1, 2\)"),
    ):
        d, y = ({k: v.copy() for k, v in part.items()} for part in (data, label))
        change(d, y)
        rewrite_v(path, d, y)
        with pytest.raises(DataError, match=rf"1_123\.npz: {reason}"):
            read_seed_v(tmp_path)
        found = read_seed_v(tmp_path, skip_bad=True)
        assert len(found) == 44 and len(found.skipped) == 1
        assert len(read_seed_v(tmp_path, sessions=[1, 3])) == 30  # the damage is in session 2
    path.rename(tmp_path / "1_12.npz")
    with pytest.raises(DataError, match=r"1_12\.npz: must be named <subject>_123\.npz"):
        read_seed_v(tmp_path)
    with pytest.raises(ValueError, match="read_seed_v: feature must be one of de, got 'psd'"):
        read_seed_v(tmp_path, feature="psd")


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_seed_vii(tmp_path, version):
    path = synthetic.write_seed_vii(tmp_path, subjects=(3,)) / "3.mat"
    arrays = {name: array for name, array in loadmat(path).items() if name.startswith("de")}
    if version == "7.3":
        pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
        synthetic.write_mat73(path, arrays, compression="gzip")
    for feature in ("de", "de_LDS"):
        trials = read_seed_vii(tmp_path, feature=feature)
        assert len(trials) == 80
        for k, trial in enumerate(trials):
            assert (trial.session, trial.trial) == (1 + k // 20, 1 + k % 20)
            array = arrays[f"{feature}_{k + 1}"]
            np.testing.assert_array_equal(trial.x, array.transpose(0, 2, 1).astype(np.float32))
    assert [t.trial for t in read_seed_vii(tmp_path, sessions=[4])] == list(range(1, 21))
    task = tasks.make("seed_vii", root=str(tmp_path), sample_length=2)
    assert len(task.classes) == 7 and {t.trial for t in task.test.trials} == set(range(16, 21))


def test_seed_vii_labels_are_as_the_data_set_tells():
    """Twelve clips of each emotion, eight of none; five emotions in a session, four times each."""
    every = [label for labels in seed.LABELS_VII for label in labels]
    names = [seed.CLASSES_VII[label] for label in every]
    assert {name: names.count(name) for name in names} == dict.fromkeys(
        ("happy", "surprise", "disgust", "fear", "sad", "anger"), 12
    ) | {"neutral": 8}
    for labels in seed.LABELS_VII:
        assert sorted(labels.count(label) for label in set(labels)) == [4] * 5
        assert labels == labels[::-1]


def test_seed_vii_damage(tmp_path):
    path = synthetic.write_seed_vii(tmp_path) / "1.mat"
    arrays = {name: array for name, array in loadmat(path).items() if name.startswith("de_LDS")}
    missing = {name: array for name, array in arrays.items() if name != "de_LDS_25"}
    for changed, reason in (
        (missing, r"de_LDS_25: no such key \(trial 25 of 80\)"),
        (arrays | {"de_LDS_25": np.ones((2, 62, 5))}, r"de_LDS_25: must have shape \(T, bands, el"),
        (missing | {"de_LDS_25": np.ones((2, 5))}, "de_LDS_25: must have shape"),
        (missing | {"de_LDS_25": np.ones((0, 5, 62))}, "de_LDS_25: must have shape"),
    ):
        savemat(path, changed)
        with pytest.raises(DataError, match=rf"1\.mat: {reason}"):
            read_seed_vii(tmp_path)
        assert len(read_seed_vii(tmp_path, skip_bad=True)) == 79
        assert len(read_seed_vii(tmp_path, sessions=[1])) == 20
    savemat(path, arrays | {"de_LDS_81": np.ones((2, 5, 62))})
    with pytest.raises(DataError, match="de_LDS_81: trial 81 of 80: it has no label"):
        read_seed_vii(tmp_path)


SMALL = (3, 40, 8064)


@pytest.fixture
def three_trials(monkeypatch) -> None:
    """DEAP with 3 trials for 40."""
    monkeypatch.setitem(deap.SHAPES, "data", SMALL)
    monkeypatch.setitem(deap.SHAPES, "labels", (3, 4))


@pytest.mark.parametrize("form", ["mat", "mat, version 7.3", "dat"])
def test_deap(tmp_path, three_trials, form):
    path = synthetic.write_deap(tmp_path, subjects=(7,), shape=SMALL) / "s07.mat"
    arrays = {name: loadmat(path)[name] for name in ("data", "labels")}
    if form == "dat":
        path.unlink()
        path = path.with_suffix(".dat")
        path.write_bytes(pickle.dumps(arrays, 2))
    elif form != "mat":
        pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
        synthetic.write_mat73(path, arrays, compression="gzip")
    for column, target in enumerate(("valence", "arousal", "dominance", "liking")):
        trials = read_deap(tmp_path, target=target, threshold=4.5)
        assert [t.label for t in trials] == [int(r > 4.5) for r in arrays["labels"][:, column]]
        assert [(t.subject, t.trial) for t in trials] == [("7", 1), ("7", 2), ("7", 3)]
    eeg = torch.from_numpy(arrays["data"][1, :32, 3 * 128 :].astype(np.float64))
    bands = ((4.0, 8.0), (8.0, 14.0), (14.0, 31.0), (31.0, 45.0))
    expected = differential_entropy(eeg, 128, bands=bands)
    assert trials[1].x.shape == (60, 32, 4)
    np.testing.assert_allclose(trials[1].x, expected, rtol=1e-5)
    task = tasks.make("deap", root=str(tmp_path), subjects=[7])
    assert task.classes == ("low valence", "high valence") and task.channels == 4
    assert task.topology.names == tuple(MONTAGES["deap-32"])


def test_deap_channels_are_in_order():
    names = list(MONTAGES["deap-32"])
    assert (names[0], names[15], names[16], names[31]) == ("FP1", "PZ", "FP2", "O2")
    assert len(names) == len(set(MONTAGES["deap-32"].values())) == 32
    seed_62 = MONTAGES["seed-62"]
    for name, (row, col) in MONTAGES["deap-32"].items():  # the same columns, but for PO3 and PO4
        assert seed_62[name][1] == col or name in ("PO3", "PO4"), (name, row, col)


def test_deap_damage(tmp_path, three_trials):
    root = synthetic.write_deap(tmp_path, shape=SMALL)
    arrays = {name: loadmat(root / "s01.mat")[name] for name in ("data", "labels")}

    def refuse(reason: str, left: int, **changed: np.ndarray) -> None:
        savemat(root / "s01.mat", arrays | changed)
        with pytest.raises(DataError, match=rf"s01\.mat: {reason}"):
            read_deap(root)
        assert len(read_deap(root, skip_bad=True)) == left

    rated = arrays["labels"].copy()
    rated[1, 0] = 9.5
    refuse(r"labels, trial 2, valence: must be in 1\.\.9, got 9\.5", 2, labels=rated)
    gap = arrays["data"].copy()
    gap[2, 5, 4000] = np.nan
    refuse("data, trial 3: 1 values are not finite", 2, data=gap)
    refuse(r"data: must have shape \(3, 40, 8064\)", 0, data=arrays["data"][:, :32])
    refuse(r"labels: must have shape \(3, 4\)", 0, labels=arrays["labels"].T)
    savemat(root / "s01.mat", {"data": arrays["data"]})
    with pytest.raises(DataError, match=r"s01\.mat: labels: no such array"):
        read_deap(root)
    (root / "s01.dat").write_bytes(pickle.dumps(arrays, 2)[:-9])
    with pytest.raises(DataError, match=r"subject 1: 2 files of it in one folder: s01\.dat, s01"):
        read_deap(root)
    (root / "s01.mat").unlink()
    with pytest.raises(DataError, match=r"s01\.dat: .*data_preprocessed_matlab has the same as"):
        read_deap(root)
    (root / "s01.dat").rename(root / "s01.npy")
    with pytest.raises(DataError, match=r"s01\.npy: must be named s<subject>\.mat or \.dat"):
        read_deap(root)
    (root / "s01.npy").unlink()
    with pytest.raises(DataError, match=r"subject 5: no file s<subject>\.mat or \.dat"):
        read_deap(root, subjects=[5])
    for options in ({"target": "fun"}, {"threshold": 0.5}, {"threshold": 10}, {"subjects": "1"}):
        with pytest.raises(ValueError, match=f"read_deap: {next(iter(options))} must be"):
            read_deap(root, **options)


def test_ck_plus_48(tmp_path):
    root = synthetic.write_ck_plus_48(tmp_path)
    clips = read_ck_plus(root)
    assert [clip.name for clip in clips] == [f"S{s:03d}/001" for s in range(1, 13)]
    for s, clip in enumerate(clips, start=1):
        emotion = ck_plus.CLASSES[clip.label]
        assert clip.label == s % 7 and clip.fold == (s - 1) % 10 and clip.subject == f"S{s:03d}"
        names = [f"S{s:03d}_001_{k:08d}.png" for k in (11, 12, 13)]
        assert clip.frames == tuple(root / emotion / name for name in names)
    fewer = read_ck_plus(root, contempt=False)
    assert len(fewer) == sum(ck_plus.CLASSES[clip.label] != "contempt" for clip in clips)
    pixels = np.asarray(Image.open(clips[4].frames[1]), np.float32) / 255
    task = tasks.make("ck_plus", root=str(root), fold=4)
    np.testing.assert_allclose(task.test[0]["x"][1, 0], pixels, atol=1e-6)


def test_ck_plus_48_damage(tmp_path):
    root = synthetic.write_ck_plus_48(tmp_path)
    path = root / "disgust" / "S002_001_00000012.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"S002_001_00000012\.png: the image is cut off"):
        read_ck_plus(root)
    assert len(read_ck_plus(root, skip_bad=True)) == 11
    path.write_bytes(whole)
    shutil.copy(path, root / "fear")
    with pytest.raises(DataError, match=r"S002/001 is disgust too, as S002_001_00000011\.png"):
        read_ck_plus(root)
    (root / "fear" / path.name).rename(root / "fear" / "me.png")
    with pytest.raises(DataError, match=r"me\.png: must be named S<3 digits>_<3>_<8>\.png"):
        read_ck_plus(root)
    (root / "fear" / "me.png").unlink()
    (root / "joy").mkdir()
    with pytest.raises(DataError, match="joy: must be named after one of anger, "):
        read_ck_plus(root)
    assert len(read_ck_plus(root, skip_bad=True)) == 12


def test_afew_aligned_faces(tmp_path):
    root = synthetic.write_afew_aligned(tmp_path, order=ORDER)
    clips = read_afew(root, order="kahou")
    assert len(clips) == 6  # the last video shows no face
    for k, clip in enumerate(clips):
        assert clip.name == f"{ORDER[k]}/{k:09d}"
        assert afew.ORDERS["kahou"][clip.label] == ORDER[k]
        assert [frame.name for frame in clip.frames] == [f"{k:09d}_{t:03d}.jpg" for t in range(3)]
    (root / "list.txt").write_text("Fear/000000002 Fear\n")
    (clip,) = read_afew(root, order="kahou", list_file=root / "list.txt")
    assert clip.frames == clips[2].frames
    faces = root / "AlignedFaces_LBPTOP_Points"
    faces.rename(root / "AlignedFaces_LBPTOP_Points_Val")
    assert len(read_afew(root, order="kahou")) == 6


def test_afew_aligned_faces_damage(tmp_path):
    root = synthetic.write_afew_aligned(tmp_path, order=ORDER)
    (root / "Fear" / "000000000.avi").touch()
    with pytest.raises(DataError, match=r"Fear.000000000\.avi: is there twice, also in Angry"):
        read_afew(root, order=ORDER)
    (root / "Fear" / "000000000.avi").unlink()
    (root / "Angry" / "000000000.avi").unlink()
    with pytest.raises(DataError, match=r"Faces.000000000: no emotion: none of .*000000000\.avi"):
        read_afew(root, order=ORDER)
    found = read_afew(root, order=ORDER, skip_bad=True)
    assert len(found) == 5 and len(found.skipped) == 1


@pytest.mark.parametrize("ratings", ["gold_standard", "individual"])
def test_recola(tmp_path, ratings):
    root = synthetic.write_recola(tmp_path)
    traces = read_recola(root, ratings=ratings)
    assert [trace.name for trace in traces] == ["train_1", "train_2"]
    for trace in traces:
        assert trace.values.shape == (9, 2) and trace.valid.all()
        np.testing.assert_allclose(np.diff(trace.times), 0.04)
        for k, what in enumerate(("valence", "arousal")):
            text = (root / "ratings_individual" / what / f"{trace.name}.csv").read_text()
            table = np.loadtxt(text.splitlines(), delimiter=";", skiprows=1)
            np.testing.assert_allclose(trace.values[:, k], table[:, 1:].mean(1), atol=1e-6)
    with pytest.raises(DataError, match=r"valence: has no files dev_\*"):
        read_recola(root, part="dev")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text.replace("@data", "data"), "has no line @data"),
        (lambda text: text.replace("frameTime", "time"), "must have attributes Instance_name, "),
        (lambda text: text.replace("train_1,0.08", "train_2,0.08"), "line 11: is named 'train_2'"),
        (lambda text: text.replace("_1,0.08", "_1,0.03"), "line 11: time stamps must grow"),
        (lambda text: text + "train_1,0.36\n", "line 18: must have 3 columns, got 2"),
        (lambda text: text + "train_1,0.36,1.5\n", "line 18: must be in -1..1"),
        (lambda text: text + "train_1,0.36,?\n", "line 18: must be a number"),
        (lambda text: text + "train_1,0.36,0\n", "its 10 time stamps are not the 9"),
        (lambda text: text[: text.index("train_1")], "has a header but no lines"),
        (lambda text: "", "the file is empty"),
    ],
)
def test_recola_damage(tmp_path, change, reason):
    root = synthetic.write_recola(tmp_path)
    path = root / "ratings_gold_standard" / "arousal" / "train_1.arff"
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=rf"arousal.train_1\.arff: .*{reason}"):
        read_recola(root)
    assert [trace.name for trace in read_recola(root, skip_bad=True)] == ["train_2"]
    path.unlink()
    with pytest.raises(DataError, match=r"standard.arousal.train_1\.arff: no such file, but its"):
        read_recola(root)


def test_recola_arff_may_be_written_otherwise(tmp_path):
    root = synthetic.write_recola(tmp_path, num_videos=1)
    whole = read_recola(root)[0].values
    changes = {"@attribute": "@ATTRIBUTE", "@data": "@DATA", "train_1,": "'train_1',", "\n": "\r\n"}
    for path in root.rglob("*.arff"):
        text = "% a comment\n" + path.read_text()
        for old, new in changes.items():
            text = text.replace(old, new)
        path.write_bytes(text.encode())
    np.testing.assert_array_equal(read_recola(root)[0].values, whole)


def mtl_lines(root: Path) -> list[list[str]]:
    text = (root / "MTL_Challenge" / "train_set.txt").read_text()
    return [line.split(",") for line in text.splitlines()[1:]]


def test_multi_task_file(tmp_path):
    root = synthetic.write_mtl(tmp_path)
    rows = [row for row in mtl_lines(root) if row[0].startswith("t1/")]
    listed = [1, 2, 6]  # frames 2, 3 and 7
    images = root / "cropped_aligned"
    va = read_aff_wild2(root, kind="VA+EXPR", mtl=True, images=images)[1]
    units = read_aff_wild2(root, kind="AU", mtl=True)[1]
    assert va.name == units.name == "t1" and len(va.values) == 7
    assert np.flatnonzero(va.valid).tolist() == np.flatnonzero(units.valid).tolist() == listed
    for row, k in zip(rows, listed, strict=True):
        np.testing.assert_allclose(va.values[k], [float(cell) for cell in row[1:3]], rtol=1e-6)
        assert va.labels[k] == int(row[3])
        assert units.values[k].tolist() == [float(cell) for cell in row[4:]]
        assert va.frames[k] == images / "t1" / f"{k + 1:05d}.jpg"
    assert (va.labels[[0, 3, 4, 5, 6]] == -1).all() and not va.values[[0, 3, 4, 5]].any()
    (root / "MTL_Challenge" / "train_set.txt").rename(root / "training_set_annotations_22.txt")
    with pytest.raises(
        DataError, match=r"MTL_Challenge: must have one file such as train_set\.txt"
    ):
        read_annotations(root, mtl=True)
    shutil.rmtree(root / "MTL_Challenge")
    assert len(read_annotations(root, mtl=True)) == 2


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("t0/00002.jpg,0,0,1" + ",0" * 12, r"t0/00002\.jpg is there twice"),
        ("t0/00009.jpg,0,0,1" + ",0" * 11, "must have 16 values, got 15"),
        ("t0/00009.jpg,0,2,1" + ",0" * 12, "must be in -1..1 or -5"),
        ("t0,0,0,1" + ",0" * 12, "must be an image <video>"),
        ("../t0/1.jpg,0,0,1" + ",0" * 12, "must be an image <video>"),
        ("t0/0.jpg,0,0,1" + ",0" * 12, "must be an image <video>"),
        ("t0/9999999.jpg,0,0,1" + ",0" * 12, "must be an image <video>"),
        ("t0/\u0663.jpg,0,0,1" + ",0" * 12, "must be an image <video>"),
    ],
)
def test_multi_task_file_damage(tmp_path, row, reason):
    root = synthetic.write_mtl(tmp_path, with_frames=False)
    path = root / "MTL_Challenge" / "train_set.txt"
    path.write_text(path.read_text() + row + "\n")
    with pytest.raises(DataError, match=rf"train_set\.txt: line 8: {reason}"):
        read_annotations(root, mtl=True)
    found = read_annotations(root, mtl=True, skip_bad=True)
    assert [len(annotation.values) for annotation in found] == [7, 7] and len(found.skipped) == 1


def test_multi_task_file_limits(tmp_path):
    root = synthetic.write_mtl(tmp_path, with_frames=False)
    path, units = root / "MTL_Challenge" / "train_set.txt", ",0" * 12
    many = [f"v{k}/1000000.jpg,0,0,1{units}" for k in range(9)]
    path.write_text("\n".join(["image,valence,arousal,expression,aus", *many]))
    with pytest.raises(DataError, match="its videos have 9000000 frames, more than 2097152"):
        read_annotations(root, mtl=True)
    path.write_text("image,valence,arousal\n" + many[0])
    with pytest.raises(DataError, match="line 1: must be image,valence,arousal,expression,aus"):
        read_annotations(root, mtl=True)
    path.write_text("image,valence,arousal,expression,aus\n")
    with pytest.raises(DataError, match="has a header but no frames"):
        read_annotations(root, mtl=True)
    for kind, row, reason in (
        ("EXPR", f"a/1.jpg,0,0,8{units}", re.escape("a whole number in 0..7 or -1, got 8")),
        ("AU", f"a/1.jpg,0,0,1{',2' * 12}", re.escape("a whole number in 0..1 or -1, got 2")),
    ):
        path.write_text(f"image,valence,arousal,expression,aus\n{row}\n")
        with pytest.raises(DataError, match=f"line 2: must be {reason}"):
            read_annotations(root, kind=kind, mtl=True)

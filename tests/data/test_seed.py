"""SEED and SEED-IV: what is read back, windows, splits, and every kind of damage."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat
from strnn_models.data import seed, splits, tasks
from strnn_models.data.de_features import differential_entropy
from strnn_models.data.mat5 import read_arrays
from strnn_models.data.records import DataError
from strnn_models.data.seed import Trial, front_back, read_seed, read_seed_iv
from strnn_models.data.synthetic import write_seed, write_seed_iv, write_seed_raw
from strnn_models.data.windows import Windows, standardise

SHORT = [10 + n for n in range(15)]


@pytest.fixture
def root(tmp_path) -> Path:
    return write_seed(tmp_path / "seed", lengths=SHORT)


def rewrite(path: Path, change) -> None:
    """Loads a .mat file, changes its variables and saves it again."""
    arrays = {k: v for k, v in loadmat(path).items() if not k.startswith("__")}
    change(arrays)
    savemat(path, arrays)


def first_file(root: Path) -> Path:
    return sorted(root.glob("1_*.mat"))[0]


def test_round_trip(root):
    trials = read_seed(root)
    assert not trials.skipped
    assert [t.session for t in trials] == [1] * 15 + [2] * 15 + [3] * 15
    assert [t.label for t in trials[:15]] == [label + 1 for label in seed.LABELS]
    for trial in trials:
        array = loadmat(trial.file)[f"de_LDS{trial.trial}"]
        assert trial.x.shape == (SHORT[trial.trial - 1], 62, 5)
        np.testing.assert_array_equal(trial.x, array.transpose(1, 0, 2).astype(np.float32))


def test_keys_not_positions(root):
    first = read_seed(root)[0]
    rewrite(first.file, lambda arrays: arrays.update(dict(sorted(arrays.items(), reverse=True))))
    np.testing.assert_array_equal(read_seed(root)[0].x, first.x)
    assert not np.array_equal(read_seed(root, feature="de_movingAve")[0].x, first.x)


def test_sessions_by_date(root):
    first, second, third = sorted(root.glob("1_*.mat"))
    first.rename(root / "1_20150101.mat")  # now the last
    files = [t.file for t in read_seed(root)[::15]]
    assert files == [second, third, root / "1_20150101.mat"]


def test_choice_of_subjects_and_sessions(tmp_path):
    root = write_seed(tmp_path, subjects=(2, 10), lengths=SHORT, features=("de_LDS",))
    assert [t.subject for t in read_seed(root)[::45]] == ["2", "10"]
    chosen = read_seed(root, subjects=[10], sessions=[2])
    assert {(t.subject, t.session) for t in chosen} == {("10", 2)}
    with pytest.raises(DataError, match="subject 3"):
        read_seed(root, subjects=[3])


def test_the_published_numbers_of_windows():
    trials = [
        Trial(np.zeros((length, 1, 1), np.float32), 0, "1", 1, n)
        for n, length in enumerate(seed.TRIAL_LENGTHS, start=1)
    ]
    front, back = front_back(trials)
    assert sum(seed.TRIAL_LENGTHS) == 3394
    assert len(Windows(trials, 9)) == 3274
    assert (len(Windows(front, 9)), len(Windows(back, 9))) == (1938, 1336)


@pytest.mark.parametrize(("length", "stride"), [(9, 1), (4, 3), (10, 10), (1, 1)])
def test_windows_never_cross_trials(length, stride):
    # The slices carry the number of their trial and of themselves.
    trials = []
    for n, slices in enumerate(SHORT):
        x = np.stack([np.full(slices, n), np.arange(slices)], axis=1).astype(np.float32)
        trials.append(Trial(x[:, None], n % 3, "1", 1, n))
    windows = Windows(trials, length, stride)
    assert len(windows) == sum((slices - length) // stride + 1 for slices in SHORT)
    for k in range(len(windows)):
        x = windows[k]["x"][:, 0]
        assert x.shape == (length, 2)
        assert len(x[:, 0].unique()) == 1
        assert (x[:, 1].diff() == 1).all()
        assert int(windows[k]["y"]) == int(x[0, 0]) % 3


def test_windows_name_a_short_trial():
    trial = Trial(np.zeros((3, 62, 5), np.float32), 0, "7", 2, 4)
    with pytest.raises(ValueError, match="subject 7, session 2, trial 4 has 3 slices"):
        Windows([trial], 9)


def test_standardise_learns_from_training_trials_alone(root):
    front, back = front_back(read_seed(root, sessions=[1]))
    a, b = standardise(front, back)
    joined = np.concatenate([t.x for t in a])
    np.testing.assert_allclose(joined.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(joined.std(0), 1, atol=1e-4)
    c, _ = standardise(front, back[:1])
    np.testing.assert_array_equal(a[0].x, c[0].x)
    assert len(b) == len(back)


def drop_key(arrays):
    del arrays["de_LDS3"]


def wrong_shape(arrays):
    arrays["de_LDS3"] = arrays["de_LDS3"][:61]


def not_finite(arrays):
    arrays["de_LDS3"][1, 2, 3] = np.nan


def not_numbers(arrays):
    arrays["de_LDS3"] = np.array([[["x"] * 5]], dtype=object)


def is_complex(arrays):
    arrays["de_LDS3"] = arrays["de_LDS3"] + 1j


def no_slices(arrays):
    arrays["de_LDS3"] = arrays["de_LDS3"][:, :0]


@pytest.mark.parametrize(
    "damage", [drop_key, wrong_shape, not_finite, not_numbers, is_complex, no_slices]
)
def test_damaged_trial(root, damage):
    rewrite(first_file(root), damage)
    with pytest.raises(DataError, match="de_LDS3") as caught:
        read_seed(root)
    assert caught.value.file == first_file(root)
    trials = read_seed(root, skip_bad=True)
    assert len(trials) == 44
    assert [(s.file, s.record) for s in trials.skipped] == [(first_file(root), "de_LDS3")]
    assert "44 records read, 1 skipped" in trials.summary()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_reads_what_scipy_writes(tmp_path, dtype, compressed):
    arrays = {
        "a": np.arange(24).reshape(2, 3, 4).astype(dtype),
        "a_long_name_of_an_array": np.array([[7]], dtype),
        "none": np.zeros((3, 0), dtype),
    }
    others = {"text": "x", "cell": np.array([1, "a"], dtype=object), "struct": {"a": 1}}
    savemat(tmp_path / "x.mat", others | arrays | {"z": 1j}, do_compression=compressed)
    found = read_arrays(tmp_path / "x.mat", re.compile("a.*|none|cell|z"))
    assert set(found) == {*arrays, "cell", "z"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == dtype
    for name in ("cell", "z"):
        assert isinstance(found[name], DataError) and "real numbers" in str(found[name])


def test_big_endian_and_small_integers_for_doubles(tmp_path):
    # What MATLAB does with an array of doubles that are small whole numbers.
    def element(kind, data):
        return struct.pack(">II", kind, len(data)) + data + b"\0" * (-len(data) % 8)

    parts = element(6, struct.pack(">II", 6, 0)) + element(5, struct.pack(">ii", 1, 3))
    parts += struct.pack(">HH4s", 1, 1, b"x\0\0\0") + struct.pack(">HH4s", 3, 2, b"\1\2\3\0")
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\1\0MI"
    (tmp_path / "x.mat").write_bytes(header + element(14, parts))
    np.testing.assert_array_equal(
        read_arrays(tmp_path / "x.mat", re.compile("x"))["x"], [[1, 2, 3]]
    )


@pytest.mark.parametrize("compressed", [False, True])
def test_no_damage_does_anything_but_raise(tmp_path, compressed):
    path = tmp_path / "x.mat"
    savemat(path, {"a": np.ones((2, 3)), "b": np.ones(4)}, do_compression=compressed)
    good = path.read_bytes()
    random = np.random.default_rng(0)
    for k in range(124, len(good)):
        for _ in range(3):
            damaged = bytearray(good)
            damaged[k] = random.integers(256)
            path.write_bytes(damaged if random.random() < 0.7 else damaged[:k])
            try:
                found = read_arrays(path, re.compile("[ab]"))
            except DataError as error:
                assert error.file == path
                continue
            assert all(np.ndim(x) == 2 for x in found.values() if not isinstance(x, DataError))


def cut_off(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def not_a_mat_file(path):
    path.write_bytes(b"<html>Please log in</html>" * 50)


def hdf5(path):
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n" * 64)


def renamed(path):
    path.rename(path.with_name("first session.mat"))


def impossible_date(path):
    path.rename(path.with_name("1_20149999.mat"))


def one_trial_too_many(path):
    rewrite(path, lambda arrays: arrays.update(de_LDS16=arrays["de_LDS1"]))


@pytest.mark.parametrize(
    "damage",
    [cut_off, emptied, not_a_mat_file, hdf5, renamed, impossible_date, one_trial_too_many],
)
def test_damaged_file(root, damage):
    before = set(root.glob("*.mat"))
    path = first_file(root)
    damage(path)
    named = (set(root.glob("*.mat")) - before) or {path}
    with pytest.raises(DataError) as caught:
        read_seed(root)
    assert caught.value.file in named
    trials = read_seed(root, skip_bad=True)
    assert len(trials) == 30
    assert [skip.file for skip in trials.skipped] == [caught.value.file]


@pytest.mark.parametrize(
    "labels", [seed.LABELS[::-1], (*seed.LABELS, 0), (2, *seed.LABELS[1:]), None]
)
def test_mislabelled(root, labels):
    path = root / "label.mat"
    path.unlink()
    if labels is not None:
        savemat(path, {"label": np.array([labels])})
    with pytest.raises(DataError, match=r"label\.mat"):
        read_seed(root)
    assert len(read_seed(root, skip_bad=True).skipped) == 1


def test_too_many_sessions(root):
    (root / "1_20160101.mat").write_bytes(first_file(root).read_bytes())
    with pytest.raises(DataError, match="subject 1: 4 files of it, but 3 sessions"):
        read_seed(root)


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        read_seed(tmp_path / "absent")
    with pytest.raises(ValueError, match="feature must be one of"):
        read_seed(tmp_path, feature="dasm_LDS")


def test_seed_iv(tmp_path):
    root = write_seed_iv(tmp_path, subjects=(1, 2))
    trials = read_seed_iv(root)
    assert len(trials) == 2 * 3 * 24
    for session in (1, 2, 3):
        found = [t.label for t in trials if t.session == session and t.subject == "2"]
        assert tuple(found) == seed.LABELS_IV[session - 1]
    (root / "2" / "1_20150201.mat").write_bytes(b"")
    with pytest.raises(DataError, match="1_20150201"):
        read_seed_iv(root)
    assert len(read_seed_iv(root, skip_bad=True)) == 5 * 24
    with pytest.raises(DataError, match="no such folder"):
        read_seed_iv(root / "1")


def test_raw_signals_become_band_features(tmp_path):
    root = write_seed_raw(tmp_path)
    trials = read_seed(root, feature="raw")
    assert [t.label for t in trials] == [label + 1 for label in seed.LABELS]
    signal = loadmat(trials[6].file)["djc_eeg7"]
    expected = differential_entropy(torch.from_numpy(signal), 200)
    assert trials[6].x.shape == (4, 62, 5)
    np.testing.assert_allclose(trials[6].x, expected, rtol=1e-5)
    task = tasks.make("seed", root=str(root), feature="raw", sample_length=3)
    assert len(task.train) == 9 * 2 and task.train[0]["x"].shape == (3, 62, 5)


def shorter(arrays):
    arrays["djc_eeg3"] = arrays["djc_eeg3"][:, :300]


def another_of_the_same_number(arrays):
    arrays["xyz_eeg3"] = arrays["djc_eeg3"]


def transposed(arrays):
    arrays["djc_eeg3"] = arrays["djc_eeg3"].T


def a_gap(arrays):
    arrays["djc_eeg3"][0, 5] = np.inf


def gone(arrays):
    del arrays["djc_eeg3"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (shorter, "djc_eeg3.*fewer than the 331"),
        (another_of_the_same_number, "eeg3: trial 3 of 15: and .*_eeg3 is there"),
        (transposed, r"djc_eeg3: must have shape \(electrodes, samples\)"),
        (a_gap, "djc_eeg3: 1 values are not finite"),
        (gone, "<initials>_eeg3: no such key"),
    ],
)
def test_damaged_raw_trial(tmp_path, damage, reason):
    root = write_seed_raw(tmp_path)
    rewrite(first_file(root), damage)
    with pytest.raises(DataError, match=reason):
        read_seed(root, feature="raw")
    assert len(read_seed(root, feature="raw", skip_bad=True).skipped) == 1


def grouped() -> Windows:
    trials = [Trial(np.zeros((12, 1, 1), np.float32), n % 3, str(n // 4), 1, n) for n in range(16)]
    return Windows(trials, 9)


@pytest.mark.parametrize("by", ["trial", "subject"])
def test_splits_keep_groups_whole(by):
    windows = grouped()
    train, test = splits.split(windows, by, seed=1)
    names = windows.groups[by]
    assert not set(names[train]) & set(names[test])
    assert sorted([*train, *test]) == list(range(len(windows)))
    again = splits.split(windows, by, seed=1)
    assert all((a == b).all() for a, b in zip(again, (train, test), strict=True))


def test_random_split_needs_a_flag_and_warns():
    windows = grouped()
    with pytest.raises(ValueError, match="leaks"):
        splits.split(windows, "random")
    with pytest.warns(splits.LeakageWarning, match="overlapping windows of the same trial"):
        train, test = splits.split(windows, "random", allow_leakage=True)
    assert len(train) == 48 and len(test) == 16
    alone = Windows(windows.trials, 12)  # a window a trial: nothing leaks
    splits.split(alone, "random")
    with pytest.raises(ValueError, match="by must be one of"):
        splits.split(windows, "window")


def test_leave_one_subject_out():
    windows = grouped()
    subject = windows.groups["subject"]
    for name, train, test in splits.leave_one_subject_out(windows):
        assert set(subject[test]) == {name}
        assert name not in subject[train]

"""Tasks from the pictures of scikit-image: what is in them, and that no picture is in two parts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from strnn_models.data import photographs, tasks
from strnn_models.data.records import DataError

skimage_data = pytest.importorskip("skimage.data")


@pytest.fixture
def kinds():
    """Bytes of each crop and of its mirror image -> whether it is a face, as documented."""
    crops = skimage_data.lfw_subset().astype(np.float32)  # the first 100 are faces
    views = ((n, view) for n, crop in enumerate(crops) for view in (crop, crop[:, ::-1]))
    return {np.ascontiguousarray(view).tobytes(): n < 100 for n, view in views}


def is_face(kinds, item) -> list[bool]:
    return [kinds[frame.numpy().tobytes()] for frame in item["x"].contiguous()]


def test_single_faces(kinds):
    task = tasks.make("faces")
    assert [len(part) for part in (task.train, task.valid, task.test)] == [120, 40, 40]
    for part in (task.train, task.valid, task.test):
        for k in range(len(part)):
            assert is_face(kinds, part[k]) == [bool(part[k]["y"])]


def test_sequences_show_what_their_class_says(kinds):
    task = tasks.make("face_sequences", length=5, num_train=40, num_test=8)
    for k in range(40):
        shown = is_face(kinds, task.train[k])
        changes = [a != b for a, b in itertools.pairwise(shown)]
        name = task.classes[int(task.train[k]["y"])]
        assert sum(changes) == (name in ("appears", "disappears"))
        assert shown[-1] == (name in ("appears", "stays"))


def test_spotting_says_where_the_face_is(kinds):
    task = tasks.make("face_spotting", length=4, num_train=40, num_test=8)
    for k in range(40):
        item = task.train[k]
        at = int(item["at"])
        assert is_face(kinds, item) == [t == at for t in range(4)]
        assert (at >= 0) == bool(item["y"])


@pytest.mark.parametrize("name", ["faces", "face_sequences", "face_spotting"])
def test_no_crop_is_in_two_parts(name):
    options = {} if name == "faces" else {"num_train": 60, "num_test": 60}
    task = tasks.make(name, **options)
    seen = [
        {
            min(frame.numpy().tobytes(), frame.flip(-1).numpy().tobytes())
            for k in range(len(part))
            for frame in part[k]["x"]
        }
        for part in (task.train, task.valid, task.test)
    ]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]


def test_the_camera_moves_as_the_traces_say():
    task = tasks.make("camera_pans", length=6, num_train=9, num_test=4)
    for k in range(9):  # pictures that stand still
        x, y, valid = (task.train[k][name] for name in ("x", "y", "valid"))
        assert valid.tolist() == [False] + [True] * 5 and y.abs().max() <= 1
        for t in range(1, 6):
            right, down = (3 * y[t]).round().int().tolist()
            moved = torch.roll(x[t, 0], (down, right), (0, 1))
            assert torch.equal(moved[3:-3, 3:-3], x[t - 1, 0, 3:-3, 3:-3])


def test_the_gif_is_a_film_to_test_on():
    film = photographs._film("no_time_for_that_tiny.gif")
    assert film.shape[0] == 24 and film.shape[2] == 96
    assert all((a != b).any() for a, b in itertools.pairwise(film))
    assert photographs._film("camera.png").shape == (1, 96, 96)


def test_same_seed_same_sequences():
    a, b, c = (tasks.make("face_spotting", seed=s, num_train=8, num_test=4) for s in (0, 0, 1))
    assert torch.equal(a.train[3]["x"], b.train[3]["x"])
    assert not torch.equal(a.train[3]["x"], c.train[3]["x"])


def test_a_file_that_is_missing_or_damaged_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install scikit-image"):
        tasks.make("faces")

    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(photographs, "find_spec", lambda name: Spec)
    with pytest.raises(DataError, match=r"lfw_subset\.npy: .* nothing is downloaded"):
        tasks.make("faces")
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "lfw_subset.npy", np.zeros((3, 25, 25)))
    with pytest.raises(DataError, match="must have shape"):
        tasks.make("faces")
    np.save(tmp_path / "data" / "lfw_subset.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match=r"lfw_subset\.npy: not a readable array"):
        tasks.make("faces")
    (tmp_path / "data" / "astronaut.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"astronaut\.png: not a readable image"):
        tasks.make("camera_pans")

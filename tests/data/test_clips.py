"""CK+ and AFEW: what is read back, and every kind of damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from strnn_models.data import afew, ck_plus
from strnn_models.data.afew import read_afew
from strnn_models.data.ck_plus import read_ck_plus
from strnn_models.data.frames import ClipDataset, load_frames, spread
from strnn_models.data.records import DataError
from strnn_models.data.synthetic import write_afew, write_ck_plus, write_frames
from strnn_models.data.tasks import collate

ORDER = afew.ORDERS["alphabetical"]


@pytest.fixture
def ck(tmp_path) -> Path:
    return write_ck_plus(tmp_path / "ck")


@pytest.fixture
def faces(tmp_path) -> Path:
    return write_afew(tmp_path / "afew", order=ORDER)


def label_file(ck: Path) -> Path:
    return ck / "Emotion" / "S003" / "001" / "S003_001_00000004_emotion.txt"


def frames_of(ck: Path) -> Path:
    return ck / "cohn-kanade-images" / "S003" / "001"


def test_ck_plus_round_trip(ck):
    clips = read_ck_plus(ck)
    assert len(clips) == 24 and not clips.skipped  # the third sequences have no label
    for clip in clips:
        s, q = int(clip.subject[1:]), int(clip.name[-3:])
        assert clip.label == (s + q) % 7
        assert [frame.stem[-2:] for frame in clip.frames] == ["01", "02", "03", "04"]
        assert clip.fold == (s - 1) % 10
    for a in clips:
        assert all(a.subject != b.subject for b in clips if b.fold != a.fold)


def test_ck_plus_other_folder_name_and_no_contempt(ck):
    (ck / "Emotion").rename(ck / "Emotion_labels")
    clips, fewer = read_ck_plus(ck), read_ck_plus(ck, contempt=False)
    contempt = ck_plus.CLASSES.index("contempt")
    assert len(fewer) == sum(clip.label != contempt for clip in clips)
    assert max(clip.label for clip in fewer) == 5


def text(content):
    return lambda ck: label_file(ck).write_text(content)


def second_label(ck):
    shutil.copy(label_file(ck), label_file(ck).with_name("S003_001_00000003_emotion.txt"))


def label_of_another(ck):
    label_file(ck).rename(label_file(ck).with_name("S004_001_00000004_emotion.txt"))


def no_frames(ck):
    shutil.rmtree(frames_of(ck))


def empty_folder(ck):
    no_frames(ck)
    frames_of(ck).mkdir()


def peak_missing(ck):
    (frames_of(ck) / "S003_001_00000004.png").unlink()


def frame_of_another(ck):
    (frames_of(ck) / "S003_001_00000002.png").rename(frames_of(ck) / "S009_001_00000002.png")


def cut_off_frame(ck):
    path = frames_of(ck) / "S003_001_00000002.png"
    path.write_bytes(path.read_bytes()[:-20])


def not_an_image(ck):
    (frames_of(ck) / "S003_001_00000002.png").write_text("no such image")


def postscript(ck):
    (frames_of(ck) / "S003_001_00000002.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n" * 9)


@pytest.mark.parametrize(
    "damage",
    [
        text(""),
        text("happy"),
        text("8"),
        text("0"),
        text("2.5"),
        text("nan"),
        text("1\n2"),
        second_label,
        label_of_another,
        no_frames,
        empty_folder,
        peak_missing,
        frame_of_another,
        cut_off_frame,
        not_an_image,
        postscript,
    ],
)
def test_ck_plus_damage(ck, damage):
    damage(ck)
    with pytest.raises(DataError) as caught:
        read_ck_plus(ck)
    assert "S003/001" in caught.value.file.as_posix()
    clips = read_ck_plus(ck, skip_bad=True)
    assert len(clips) == 23
    assert [skip.file for skip in clips.skipped] == [caught.value.file]


def test_ck_plus_missing_folders(tmp_path, ck):
    shutil.rmtree(ck / "Emotion")
    with pytest.raises(DataError, match="Emotion or Emotion_labels"):
        read_ck_plus(ck)
    with pytest.raises(DataError, match="no such folder"):
        read_ck_plus(tmp_path / "absent")


@pytest.mark.parametrize("with_list", [False, True])
def test_afew_round_trip(faces, with_list):
    for order in afew.ORDERS:
        list_file = faces / "list.txt" if with_list else None
        clips = read_afew(faces, order=order, list_file=list_file)
        assert len(clips) == 14
        for clip in clips:
            assert afew.ORDERS[order][clip.label] == clip.name.split("/")[0]
            assert [frame.name for frame in clip.frames] == ["00001.jpg", "00002.jpg", "00003.jpg"]


def test_afew_order_is_explicit(faces):
    with pytest.raises(TypeError, match="order"):
        read_afew(faces)
    with pytest.raises(ValueError, match="order must be one of"):
        read_afew(faces, order="any")
    with pytest.raises(ValueError, match="each of"):
        read_afew(faces, order=["Angry", "Happy"])


@pytest.mark.parametrize(
    "line",
    ["Angry", "Angry/000000000 Happy", "Joy/1 Joy", "Angry/9 Angry", "../x/y Angry", "a b c"],
)
def test_afew_damaged_list(faces, line):
    path = faces / "list.txt"
    path.write_text(line + "\n" + path.read_text())
    with pytest.raises(DataError, match=r"list\.txt: line 1"):
        read_afew(faces, order=ORDER, list_file=path)
    clips = read_afew(faces, order=ORDER, list_file=path, skip_bad=True)
    assert len(clips) == 14 and clips.skipped[0].record == "line 1"


def test_afew_repeated_line(faces):
    path = faces / "list.txt"
    path.write_text(path.read_text() + path.read_text().splitlines()[0])
    with pytest.raises(DataError, match=r"line 15: Angry/000000000 is there twice"):
        read_afew(faces, order=ORDER, list_file=path)


def test_afew_damaged_folders(faces):
    (faces / "Joy").mkdir()
    write_frames(faces / "Fear" / "x", ["a.jpg"])
    write_frames(faces / "Sad" / "x", ["1.jpg", "01.jpg"])
    (faces / "Happy" / "x").mkdir()
    path = faces / "Angry" / "000000000" / "00002.jpg"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError):
        read_afew(faces, order=ORDER)
    clips = read_afew(faces, order=ORDER, skip_bad=True)
    assert len(clips) == 13
    reasons = "\n".join(str(skip) for skip in clips.skipped)
    for reason in ("Joy: must be named", "a.jpg: the name", "1.jpg", "no image files", "cut off"):
        assert reason in reasons


def test_frames_are_loaded_and_checked_again(tmp_path):
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
    Image.fromarray(pixels).save(tmp_path / "1.png")
    x = load_frames([tmp_path / "1.png"], (8, 8))
    np.testing.assert_allclose(x[0, 0].numpy() * 255, pixels, atol=1e-4)
    assert load_frames([tmp_path / "1.png"] * 2, (4, 6), grey=False).shape == (2, 3, 4, 6)
    data = bytearray((tmp_path / "1.png").read_bytes())
    data[45] ^= 0xFF  # inside the pixels: only decoding finds it
    (tmp_path / "1.png").write_bytes(data)
    with pytest.raises(DataError, match=r"1\.png: not a readable image"):
        load_frames([tmp_path / "1.png"], (8, 8))


def test_clips_of_different_lengths_are_padded(ck):
    clips = read_ck_plus(ck)
    longer = clips[0].frames * 3
    clips[0] = type(clips[0])("x", "S001", longer, 0)
    data = ClipDataset(clips, 10, (6, 8))
    batch = collate([data[0], data[1]])
    assert batch["x"].shape == (2, 10, 1, 6, 8)
    assert batch["lengths"].tolist() == [10, 4]
    assert torch.equal(batch["x"][1, :4], data[1]["x"]) and not batch["x"][1, 4:].any()
    assert "lengths" not in collate([data[1], data[2]])


def test_spread():
    assert spread(3, 5) == [0, 1, 2]
    assert spread(11, 3) == [0, 5, 10]

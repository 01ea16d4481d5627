"""SEWA, AVEC and Aff-Wild2: what is read back, and every kind of damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from strnn_models.data import aff_wild2, sewa
from strnn_models.data.aff_wild2 import read_aff_wild2, read_annotations
from strnn_models.data.records import DataError
from strnn_models.data.sewa import read_avec, read_sewa
from strnn_models.data.synthetic import write_aff_wild2, write_avec, write_frames, write_sewa
from strnn_models.data.traces import TraceWindows


def replace_line(path: Path, n: int, line: str) -> None:
    lines = path.read_text().splitlines()
    lines[n - 1] = line
    path.write_text("\n".join(lines) + "\n")


def test_sewa_round_trip(tmp_path):
    traces = read_sewa(write_sewa(tmp_path))
    assert [trace.name for trace in traces] == ["SEW1100", "SEW1101"]
    for trace in traces:
        assert trace.values.shape == (20, 2) and trace.valid.all()
        for k, what in enumerate(("Valence", "Arousal")):
            table = np.loadtxt(tmp_path / f"{trace.name}_{what}_AV_Aligned.csv", delimiter=",")
            np.testing.assert_allclose(trace.values[:, k], table[:, 1:].mean(1), rtol=1e-6)
            np.testing.assert_allclose(trace.times, table[:, 0])


def test_sewa_header_is_allowed(tmp_path):
    write_sewa(tmp_path)
    path = tmp_path / "SEW1100_Valence_AV_Aligned.csv"
    path.write_text("time,A1,A2,A3\n" + path.read_text())
    assert len(read_sewa(tmp_path)[0].values) == 20


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0.4,0.1,0.2", "must have 4 columns, got 3"),
        ("0.4,0.1,0.2,", "must be a number, got ''"),
        ("0.4,0.1,0.2,x", "must be a number, got 'x'"),
        ("0.4,0.1,0.2,nan", "must be finite"),
        ("0.3,0.1,0.2,0.3", "time stamps must grow"),
    ],
)
def test_sewa_damaged_line(tmp_path, line, reason):
    path = write_sewa(tmp_path) / "SEW1101_Arousal_AV_Aligned.csv"
    replace_line(path, 5, line)
    with pytest.raises(DataError, match=rf"SEW1101_Arousal.*line 5: {reason}"):
        read_sewa(tmp_path)
    traces = read_sewa(tmp_path, skip_bad=True)
    assert [trace.name for trace in traces] == ["SEW1100"] and len(traces.skipped) == 1


def test_sewa_missing_truncated_empty(tmp_path):
    valence = write_sewa(tmp_path) / "SEW1100_Valence_AV_Aligned.csv"
    whole = valence.read_text()
    valence.write_text("\n".join(whole.splitlines()[:-4]))
    with pytest.raises(DataError, match="20 time stamps are not the 16"):
        read_sewa(tmp_path)
    valence.write_text("")
    with pytest.raises(DataError, match="the file is empty"):
        read_sewa(tmp_path)
    valence.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        read_sewa(tmp_path)
    valence.unlink()
    with pytest.raises(DataError, match=r"SEW1100_Valence.*no such file"):
        read_sewa(tmp_path)
    with pytest.raises(DataError, match="has no files"):
        read_sewa(tmp_path, annotation="A")


def test_avec_round_trip(tmp_path):
    root = write_avec(tmp_path)
    traces = read_avec(root, part="Train_DE")
    assert [trace.name for trace in traces] == ["Train_DE_01", "Train_DE_02"]
    lines = (root / "labels" / "Train_DE_02.csv").read_text().splitlines()[1:]
    for line, (valence, arousal) in zip(lines, traces[1].values, strict=True):
        assert float(line.split(";")[2]) == pytest.approx(arousal)
        assert float(line.split(";")[3]) == pytest.approx(valence)
    np.testing.assert_allclose(np.diff(traces[0].times), 0.1)


@pytest.mark.parametrize(
    ("n", "line", "reason"),
    [
        (1, "name,timestamp,arousal,valence,liking", "must be name;timestamp"),
        (4, "'Train_DE_01';0.2;0.1;0.2", "must have 5 columns, got 4"),
        (4, "'Train_DE_02';0.2;0.1;0.2;0.3", "is named"),
        (4, "'Train_DE_01';0.7;0.1;0.2;0.3", "time must be 0.2 s"),
        (4, "'Train_DE_01';0.2;1.5;0.2;0.3", "arousal and valence must be in"),
        (4, "'Train_DE_01';0.2;?;0.2;0.3", "must be a number"),
    ],
)
def test_avec_damage(tmp_path, n, line, reason):
    root = write_avec(tmp_path)
    replace_line(root / "labels" / "Train_DE_01.csv", n, line)
    with pytest.raises(DataError, match=rf"Train_DE_01\.csv: line {n}: {reason}"):
        read_avec(root)
    assert len(read_avec(root, skip_bad=True)) == 1


def test_sewa_frames(tmp_path):
    traces = read_avec(write_avec(tmp_path))
    for trace in traces:
        write_frames(tmp_path / "frames" / trace.name, [f"{k:05d}.jpg" for k in range(1, 21)])
    framed = sewa.with_frames(traces, tmp_path / "frames", fps=10)
    assert [frame.name for frame in framed[0].frames[:3]] == ["00001.jpg", "00002.jpg", "00003.jpg"]
    slower = sewa.with_frames(traces, tmp_path / "frames", fps=12)  # 0.1 s is 1.2 frames
    assert [frame.name for frame in slower[0].frames[:3]] == ["00001.jpg", "00002.jpg", "00003.jpg"]
    assert slower[0].frames[-1] is None and not slower[0].valid[-1]
    with pytest.raises(DataError, match="20 frames, but annotations up to frame"):
        sewa.with_frames(traces, tmp_path / "frames", fps=100)


def test_aff_wild2_round_trip(tmp_path):
    root = write_aff_wild2(tmp_path)
    for kind, width in (("VA", (12, 2)), ("EXPR", (12,)), ("AU", (12, 12))):
        for annotation in read_annotations(root, kind=kind):
            assert annotation.values.shape == width
            assert annotation.valid.tolist() == [t != 2 for t in range(12)]
    path = root / "VA_Set" / "Train_Set" / "t0.txt"
    table = np.loadtxt(path, delimiter=",", skiprows=1)
    table[2] = 0
    np.testing.assert_allclose(read_annotations(root)[0].values, table, rtol=1e-6)


def test_aff_wild2_newer_folder_and_eight_expressions(tmp_path):
    root = write_aff_wild2(tmp_path, with_frames=False)
    (root / "EXPR_Set").rename(root / "EXPR_Recognition_Challenge")
    path = root / "EXPR_Recognition_Challenge" / "Train_Set" / "t0.txt"
    replace_line(path, 1, ",".join(aff_wild2.EXPRESSIONS))
    replace_line(path, 2, "7")
    assert read_annotations(root, kind="EXPR")[0].values[0] == 7


@pytest.mark.parametrize(
    ("kind", "n", "line", "reason"),
    [
        ("VA", 1, "arousal,valence", "must be valence,arousal"),
        ("VA", 1, "0.1,0.2", "must be valence,arousal"),
        ("VA", 4, "0.1", "must have 2 values, got 1"),
        ("VA", 4, "0.1,", "must be a number"),
        ("VA", 4, "0.1,1.2", "must be in -1..1 or -5"),
        ("EXPR", 4, "7", "must be a whole number in 0..6 or -1"),
        ("EXPR", 4, "1.5", "must be a whole number"),
        ("EXPR", 1, "valence,arousal", "must be Neutral"),
        ("AU", 4, ",".join(["2"] * 12), "must be a whole number in 0..1 or -1"),
        ("AU", 4, ",".join(["0"] * 11), "must have 12 values"),
    ],
)
def test_aff_wild2_damage(tmp_path, kind, n, line, reason):
    root = write_aff_wild2(tmp_path, with_frames=False)
    replace_line(root / f"{kind}_Set" / "Train_Set" / "t1.txt", n, line)
    with pytest.raises(DataError, match=rf"t1\.txt: line {n}: {reason}"):
        read_annotations(root, kind=kind)
    assert len(read_annotations(root, kind=kind, skip_bad=True)) == 1


def test_aff_wild2_missing(tmp_path):
    root = write_aff_wild2(tmp_path, with_frames=False)
    with pytest.raises(ValueError, match="kind must be"):
        read_annotations(root, kind="LM")
    with pytest.raises(DataError, match="Test_Set: no such folder"):
        read_annotations(root, part="Test_Set")
    with pytest.raises(DataError, match="no folder of frames for t0"):
        read_aff_wild2(root, images=root / "cropped_aligned")
    (root / "VA_Set" / "Train_Set" / "t0.txt").write_text("valence,arousal\n")
    with pytest.raises(DataError, match=r"t0\.txt: has a header but no frames"):
        read_annotations(root)


def test_aff_wild2_frames(tmp_path):
    root = write_aff_wild2(tmp_path)
    images = root / "cropped_aligned"
    traces = read_aff_wild2(root, images=images)
    assert traces[0].valid.tolist() == [t not in (2, 4) for t in range(12)]
    assert traces[0].frames[4] is None and traces[0].frames[5].name == "00006.jpg"
    write_frames(images / "t0", ["00013.jpg"])
    with pytest.raises(DataError, match=r"00013\.jpg: no annotation"):
        read_aff_wild2(root, images=images)
    kept = read_aff_wild2(root, images=images, skip_bad=True)
    assert len(kept) == 2 and len(kept.skipped) == 1


def test_trace_windows_cover_each_video(tmp_path):
    traces = read_aff_wild2(write_aff_wild2(tmp_path), images=tmp_path / "cropped_aligned")
    windows = TraceWindows(traces, 5, 4, (6, 6))
    assert windows.starts == [(k, start) for k in range(2) for start in (0, 4, 7)]
    item = windows[0]
    assert item["x"].shape == (5, 3, 6, 6) and item["y"].shape == (5, 2)
    assert item["valid"].tolist() == [True, True, False, True, False]
    assert not item["x"][4].any() and item["x"][3].any()
    assert len(TraceWindows(traces, 40, 8, (6, 6))[0]["x"]) == 12

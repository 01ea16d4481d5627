"""strnn-eval: reports on runs of every model and kind of task."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from strnn_models import runs
from strnn_models.data import aff_wild2, tasks
from strnn_models.data.digits import Arrays
from strnn_models.data.records import DataError
from strnn_models.data.synthetic import (
    write_afew,
    write_aff_wild2,
    write_avec,
    write_ck_plus,
    write_frames,
    write_seed,
)
from strnn_models.evaluate import evaluate, main
from strnn_models.train import train
from strnn_models.training import pictures, zoo
from strnn_models.training.baselines import baselines
from strnn_models.training.config import Config, load
from strnn_models.training.looks import auc

import strnn_kernels as sk

SMALL = {"sp_hidden": 4, "sp_projection": 2, "tp_hidden": 4, "tp_projection": 2}


def run(tmp_path, task, options, model="strnn", model_options=None, **changes):
    cfg = Config(
        task=task,
        task_options=options,
        model=model,
        model_options=SMALL if model_options is None else model_options,
        out=str(tmp_path / "run"),
        epochs=1,
        **changes,
    )
    train(cfg)
    return tmp_path / "run"


def check_report(folder, *names):
    report = (folder / "report" / "report.md").read_text()
    assert json.loads((folder / "report" / "report.json").read_text())
    for name in names:
        assert f"({name}.png)" in report
        assert (folder / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    return report


def test_seed(tmp_path):
    root = write_seed(tmp_path / "seed", num_sessions=1, lengths=[12] * 15, features=["de_LDS"])
    folder = run(tmp_path, "seed", {"root": str(root), "valid_trials": 3})
    numbers = evaluate(folder, baseline=True)
    assert {"accuracy", "f1", "baseline (all steps) accuracy"} <= set(numbers)
    report = check_report(folder, "confusion", "learning", "space", "electrodes", "time")
    assert "SEED, de_LDS features" in report
    assert evaluate(folder, part="valid")["loss"] > 0


@pytest.mark.parametrize(
    ("model", "options", "names"),
    [
        ("strnn", SMALL | {"patch": 4}, ["space", "time"]),
        ("strnn", SMALL | {"widths": [4, 8]}, ["space", "time"]),
        ("cnn_irnn", {"widths": [4], "hidden_size": 8}, ["reading"]),
        ("categorical_dimensional", {"widths": [4], "hidden_size": 8, "fc_size": 8}, []),
        ("attention_pooling", {"widths": [4], "heads": 2}, ["attention"]),
    ],
)
def test_clips(tmp_path, model, options, names):
    root = write_ck_plus(tmp_path / "ck", num_subjects=10, sequences=(1,))
    task = {"root": str(root), "size": 16, "num_frames": 3}
    folder = run(tmp_path, "ck_plus", task, model, options)
    evaluate(folder)
    check_report(folder, "confusion", "learning", "saliency", *names)


@pytest.mark.parametrize(
    ("model", "annotation", "scores"),
    [
        ("cnn_lstm", "VA", ["ccc", "ccc_valence", "pcc_arousal", "mse_valence", "ccc_videos"]),
        ("inflated_cnn", "VA", ["ccc"]),
        ("categorical_dimensional", "VA", ["ccc"]),
        ("categorical_dimensional", "EXPR", ["accuracy", "f1"]),
        ("categorical_dimensional", "VA+EXPR", ["accuracy", "ccc", "category_distance"]),
        ("categorical_dimensional", "AU", ["f1", "f1_AU1", "f1_AU26"]),
        ("cnn_lstm", "AU", ["f1"]),
    ],
)
def test_aff_wild2(tmp_path, model, annotation, scores):
    root = write_aff_wild2(tmp_path / "aff", length=10)
    task = {"root": str(root), "images": str(root / "cropped_aligned"), "size": 8}
    task |= {"sample_length": 4, "stride": 3, "annotation": annotation}
    folder = run(tmp_path, "aff_wild2", task, model, {"widths": [4]})
    numbers = evaluate(folder, baseline=True)
    assert set(scores) <= set(numbers)
    pictures = {"confusion": "EXPR" in annotation, "traces": annotation != "EXPR"}
    pictures |= {"categories": "+" in annotation, "learning": True, "saliency": True}
    report = check_report(folder, *(name for name, drawn in pictures.items() if drawn))
    assert f"Aff-Wild2 {annotation}" in report and "linear model, each frame" in report


def test_postprocessing_is_chosen_on_the_validation_part(tmp_path):
    options = {"length": 8, "num_train": 60, "num_test": 10}
    folder = run(tmp_path, "digit_traces", options, "cnn_lstm", {"widths": [4]})
    plain, numbers = evaluate(folder), evaluate(folder, postprocess=True)
    assert plain["ccc"] == numbers["ccc"] != numbers["postprocessed ccc"]
    report = check_report(folder, "traces")
    assert "chosen on the validation part" in report and "mean of widths" in report
    folder = run(tmp_path / "other", "digits", {"num": 103})
    with pytest.raises(ValueError, match="post-processing is for traces"):
        evaluate(folder, postprocess=True)


def test_a_video_with_one_kind_of_annotation_trains_the_other_on_the_rest(tmp_path):
    root = write_aff_wild2(tmp_path / "aff", length=6)
    (root / "VA_Set" / "Train_Set" / "t0.txt").unlink()
    (root / "EXPR_Set" / "Train_Set" / "t1.txt").unlink()
    options = {"root": str(root), "images": str(root / "cropped_aligned"), "size": 8}
    options |= {"sample_length": 6, "stride": 6}
    task = tasks.make("aff_wild2", annotation="VA+EXPR", **options)
    (first,), (second,) = list(task.train), list(task.valid)
    assert not first["valid"].any() and first["label"].tolist().count(-1) == 2
    assert second["valid"].sum() == 4 and (second["label"] == -1).all()
    assert task.classes == aff_wild2.EXPRESSIONS[:7] and len(task.traces) == 2
    (root / "VA_Set" / "Train_Set" / "t0.txt").write_text("valence,arousal\n0.1,0.2\n")
    with pytest.raises(DataError, match=r"t0\.txt: must have as many frames, got 1 .* 6"):
        tasks.make("aff_wild2", annotation="VA+EXPR", **options)


def test_afew_and_sewa(tmp_path):
    for part in ("train_afew", "val_afew"):
        write_afew(tmp_path / "afew" / part, order=("Angry", "Happy"))
    task = tasks.make("afew", root=str(tmp_path / "afew"), order="kahou", size=8)
    assert (len(task.train), len(task.valid), len(task.test)) == (3, 1, 4)
    assert task.classes[6] == "Neutral"
    write_avec(tmp_path / "sewa", num_videos=3)
    for k in (1, 2, 3):
        write_frames(tmp_path / "frames" / f"Train_DE_{k:02d}", [f"{n}.jpg" for n in range(1, 21)])
    labels = tmp_path / "sewa" / "labels"
    moved = (labels / "Train_DE_03.csv").read_text().replace("Train_DE_03", "Devel_DE_01")
    (labels / "Devel_DE_01.csv").write_text(moved)
    (labels / "Train_DE_03.csv").unlink()
    (tmp_path / "frames" / "Train_DE_03").rename(tmp_path / "frames" / "Devel_DE_01")
    options = {"root": str(tmp_path / "sewa"), "images": str(tmp_path / "frames"), "size": 8}
    task = tasks.make("sewa", form="avec", fps=10, valid_size=0.5, **options)
    assert [len(part.traces) for part in (task.train, task.valid, task.test)] == [1, 1, 1]
    assert task.train[0]["x"].shape == (16, 3, 8, 8)


def test_simulated_eeg_knows_its_truth(tmp_path):
    pytest.importorskip("mne")
    options = {"num_trials": 15, "seconds": 10}
    task = tasks.make("simulated_eeg", **options)
    assert "not a recording" in task.about
    names = np.array(task.topology.names)
    left = names[np.argsort(-task.truth)[:5]]
    assert {"T7", "C5"} <= set(left)
    assert torch.equal(task.test[0]["x"], tasks.make("simulated_eeg", **options).test[0]["x"])
    folder = run(tmp_path, "simulated_eeg", options)
    numbers = evaluate(folder)
    assert 0 <= numbers["saliency: auc"] <= 1
    report = check_report(folder, "space", "electrodes", "time")
    assert "mne.viz.plot_topomap" in report


def test_digit_sequences_count():
    task = tasks.make("digit_sequences", num_train=30, num_test=12)
    assert task.classes == ("up", "down", "same") and task.train[0]["x"].shape == (5, 1, 8, 8)
    assert [int(task.test[k]["y"]) for k in range(3)] == [0, 1, 2]
    shown = [
        {row.numpy().tobytes() for k in range(len(part)) for row in part[k]["x"]}
        for part in (task.train, task.test)
    ]
    assert not shown[0] & shown[1]


def test_digit_spotting_shows_one_odd_digit():
    task = tasks.make("digit_spotting", length=4, num_train=20, num_test=10)
    data = load_digits()
    known = {
        image.astype(np.float32).tobytes(): digit
        for image, digit in zip(data.images / 16, data.target, strict=True)
    }
    for k in range(20):
        item = task.train[k]
        shown = [int(known[frame.numpy().tobytes()]) for frame in item["x"]]
        assert [d for d in shown if d % 2] == [int(task.classes[int(item["y"])])]
        assert shown[int(item["at"])] % 2


def test_digit_traces(tmp_path):
    task = tasks.make("digit_traces", length=6, num_train=20, num_test=5)
    y = task.train[3]["y"]
    assert task.kind == "traces" and y.shape == (6, 2) and y.abs().max() <= 1
    torch.testing.assert_close(y[1:, 1] * 3, y[:, 0].diff() * 4.5)
    options = {"length": 6, "num_train": 20, "num_test": 5}
    folder = run(tmp_path, "digit_traces", options, "cnn_lstm", {"widths": [4]})
    assert "ccc_digit" in evaluate(folder)


def test_the_map_of_categories_is_where_the_digits_are(tmp_path):
    options = {"length": 8, "num_train": 200, "num_test": 20, "predict": "both"}
    folder = run(tmp_path, "digit_traces", options, "categorical_dimensional", {"widths": [4]})
    numbers = evaluate(folder)
    assert numbers["category_distance"] > 0
    check_report(folder, "categories", "confusion", "traces")
    task = tasks.make("digit_traces", **options)
    y = torch.cat([item["y"] for item in task.test])
    label = torch.cat([item["label"] for item in task.test])
    torch.testing.assert_close(y[:, 0], label / 4.5 - 1)


def test_attention_is_held_against_the_frame_that_decides(tmp_path):
    pytest.importorskip("skimage")
    options = {"num_train": 40, "num_test": 12}
    folder = run(tmp_path, "face_spotting", options, "attention_pooling", {"widths": [4]})
    numbers = evaluate(folder)
    assert 0 <= numbers["frame_found"] <= 1
    assert "the frame that decides is known" in check_report(folder, "attention")


def test_baselines_solve_what_is_linear():
    """Classes by the mean of a clip, traces by the frame, by the one before: each view its own."""
    torch.manual_seed(0)
    x = torch.randn(60, 5, 3)
    part = Arrays(x=x, y=(x.mean((1, 2)) > 0).long())
    task = tasks.Task("t", "", part, None, part, 3, 5, classes=("a", "b"))
    scores = baselines(task, part)
    assert scores["mean over time"]["accuracy"] > 0.95
    before = torch.cat([x[:, :1], x[:, :-1]], 1)
    frames = {"valid": torch.ones(60, 5, dtype=torch.bool), "video": torch.arange(60)}
    part = Arrays(x=x, y=before[..., :2].contiguous(), **frames, start=torch.zeros(60).long())
    task = tasks.Task("t", "", part, None, part, 3, 5, kind="traces", traces=("v", "a"))
    scores = baselines(task, part)
    assert scores["each frame and the one before"]["ccc"] > 0.99 > 0.7 > scores["each frame"]["ccc"]


def test_grid_where_mne_does_not_help():
    topology = sk.Topology.grid(2, 3)
    figure, how = pictures.nodes(np.arange(12.0).reshape(2, 6), "ab", topology)
    assert how == "grid of cells" and len(figure.axes) == 2


def test_auc():
    truth = np.arange(62.0)
    assert auc(truth, truth) == 1 and auc(truth, -truth) == 0


def test_the_table_of_runs_is_what_its_commands_give(tmp_path, monkeypatch):
    pytest.importorskip("skimage")
    monkeypatch.setattr(runs, "RUNS", ["task=faces model_options.patch=5 epochs=2", "task=digits"])
    (row,) = runs.rows(tmp_path / "runs", ["task=faces", "patch=5"], seeds=2)
    tests = []
    for seed in (0, 1):
        settings = [*row[1].strip("`").split(), f"seed={seed}", "threads=1"]
        tests.append(train(load(None, [*settings, f"out={tmp_path / str(seed)}"]))["test"])
    assert tests[0]["loss"] != tests[1]["loss"]
    assert row[2] == runs.cell(tests, ["accuracy"])
    task = tasks.make("faces")
    simple = baselines(task, task.test)["all steps"]
    assert row[3].startswith(f"all steps: {runs.cell([simple], ['accuracy'])}")


def test_a_cell_of_the_table_is_mean_and_range_over_the_seeds():
    seeds = [{"a": 0.5, "|G|": 1.0, "b": 2.0}, {"a": 0.25, "|G|": 1.0}, {"a": 0.0, "|G|": 1.0001}]
    assert runs.cell(seeds, ["|G|", "a", "c"]) == r"\|G\| 1.000, a 0.250 (0.000 to 0.500)"
    assert runs.cell(seeds[:1], ["a", "b"]) == "a 0.500, b 2.000"
    assert runs.cell(seeds, ["c"]) == ""


def test_the_table_needs_a_seed(capsys):
    with pytest.raises(SystemExit):
        runs.main(["--seeds", "0"])
    assert "--seeds must be at least 1, got 0" in capsys.readouterr().err


def test_every_run_of_the_table_can_be_built():
    pytest.importorskip("skimage")
    for settings in runs.RUNS:
        cfg = load(None, settings.split())
        if cfg.task != "simulated_eeg":
            sizes = {} if cfg.task == "faces" else {"num_train": 10, "num_test": 10}
            sizes = {"num": 50} if cfg.task == "digits" else sizes
            task = tasks.make(cfg.task, **(cfg.task_options | sizes))
            assert "not emotion data" in task.about
            zoo.build(cfg.model, task, **cfg.model_options)


def test_command_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "config.yaml" in capsys.readouterr().err
    folder = run(tmp_path, "digits", {"num": 103})
    assert main([str(folder), "--out", str(tmp_path / "r"), "--baseline"]) == 0
    assert "accuracy" in capsys.readouterr().out and (tmp_path / "r" / "report.md").exists()
    (folder / "selected.safetensors").write_bytes(b"x")
    assert main([str(folder)]) == 2

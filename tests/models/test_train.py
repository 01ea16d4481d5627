"""strnn-train: settings, checkpoints, resuming after kill -9, several processes."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from strnn_models.data import tasks
from strnn_models.data.synthetic import write_seed
from strnn_models.layers.backbone import FrameCNN
from strnn_models.train import TrainingError, main, train
from strnn_models.training import checkpoint, config, objective, zoo
from strnn_models.training.config import Config, ConfigError, load

TINY = {
    "task": "digits",
    "task_options": {"num": 103},
    "model_options": {"sp_hidden": 6, "sp_projection": 2, "tp_hidden": 6, "tp_projection": 1},
    "lr": 3e-3,
}


def settings(out: Path, **changes) -> Config:
    return Config(out=str(out), **(TINY | changes))


def arguments(cfg: Config) -> list[str]:
    path = Path(cfg.out).with_suffix(".yaml")
    path.write_text(cfg.to_yaml())
    return [str(path)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(run)[1]


def rows(run: Path) -> list[dict]:
    history = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def test_learns_and_writes_everything(tmp_path):
    cfg = Config(out=str(tmp_path / "run"), task="digits", epochs=6, lr=3e-3)
    result = train(cfg)
    assert result["test"]["accuracy"] > 0.8
    history = rows(tmp_path / "run")
    assert len(history) == 6 and history[-1]["train_loss"] < history[0]["train_loss"] / 3
    with (tmp_path / "run" / "log.csv").open() as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == [1, 2, 3, 4, 5, 6]
    written = json.loads((tmp_path / "run" / "results.json").read_text())
    assert written["test"] == result["test"] and "not emotion data" in written["about"]
    assert load(tmp_path / "run" / "config.yaml") == cfg
    best = checkpoint.load_weights(tmp_path / "run" / "selected.safetensors")
    assert set(best) == set(weights(tmp_path / "run"))


def test_same_seed_same_run(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(settings(tmp_path / name, epochs=2, seed=seed))
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


def test_workers_change_nothing(tmp_path):
    for workers in (0, 1):
        train(settings(tmp_path / str(workers), epochs=1, workers=workers))
    a, b = (weights(tmp_path / name) for name in "01")
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_resume_after_kill_is_exact(tmp_path):
    # Dropout: the random state must come back too.
    changes = {
        "model": "attention_pooling",
        "model_options": {"widths": [4], "heads": 2, "attention_size": 4, "dropout": 0.3},
        "batch_size": 8,
    }
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    # More epochs than it will ever reach: no kill comes too late, however slow this process is.
    endless = arguments(settings(killed, epochs=1_000_000, **changes))
    command = [sys.executable, "-m", "strnn_models.train", *endless, "--quiet"]
    seen = 0
    for _ in range(2):
        process = subprocess.Popen(command)
        try:
            wait_for_epoch(process, killed, seen + 2)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        logged, seen = len(rows(killed)), checkpoint.load(killed)[0]
        assert seen - 1 <= logged <= seen  # the log is written after the checkpoint
    changes["epochs"] = seen + 2
    result = train(settings(killed, **changes))
    train(settings(whole, **changes))
    assert result["epochs"] == seen + 2
    a, b = weights(whole), weights(killed)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert rows(whole) == rows(killed)
    best = [(run / "selected.safetensors").read_bytes() for run in (whole, killed)]
    assert best[0] == best[1]
    left = [path.name for path in killed.iterdir() if path.name.startswith(("epoch-", "."))]
    assert sorted(left) == sorted(checkpoint.names(seen + 1) + checkpoint.names(seen + 2))


def wait_for_epoch(process: subprocess.Popen, run: Path, epoch: int) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        found = checkpoint.load(run) if run.exists() else None
        if found is not None and found[0] >= epoch:
            return
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    raise AssertionError("no checkpoint in time")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "model": "attention_pooling",
            "model_options": {"widths": [4], "heads": 2, "attention_size": 4},
        },
        {
            "task": "digit_traces",
            "task_options": {"num_train": 13, "num_test": 7, "length": 5, "predict": "both"},
            "model": "categorical_dimensional",
            "model_options": {"widths": [4], "hidden_size": 8, "fc_size": 0},
        },
    ],
    ids=["strnn", "attention_pooling", "both"],
)
def test_two_processes_train_as_one(tmp_path, changes, wanted):
    wanted(changes.get("model") != "attention_pooling")  # every model is in the test after this one
    # 61 (13) items in batches of 8: shares of unequal size, and a last batch of 5.
    changes = changes | {"epochs": 2, "batch_size": 8}
    one, two = (settings(tmp_path / name, **changes) for name in ("one", "two"))
    train(one)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "strnn_models.train", *arguments(two), "--quiet"]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    results = [json.loads((tmp_path / n / "results.json").read_text()) for n in ("one", "two")]
    assert results[0]["test"] == pytest.approx(results[1]["test"], rel=1e-4)


def test_fsdp2_trains_every_model_as_one_process(tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = Path(__file__).with_name("fsdp.py")
    done = subprocess.run(
        [sys.executable, *command, str(script)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("sparsity", ["proximal", "penalty", "none"])
def test_only_proximal_steps_make_zeros(tmp_path, sparsity):
    options = TINY["model_options"] | {"lambda1": 10.0, "lambda2": 0.0}
    cfg = settings(tmp_path / "run", epochs=4, sparsity=sparsity, model_options=options)
    row = train(cfg)["history"][-1]
    assert (row["zeros_spatial"] > 0.3) == (sparsity == "proximal")
    assert row["zeros_temporal"] == 0


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_options_train(tmp_path, amp, optimizer):
    cfg = settings(
        tmp_path / "run", epochs=2, amp=amp, optimizer=optimizer, schedule="cosine", lr=1e-2
    )
    history = train(cfg)["history"]
    assert history[1]["train_loss"] < history[0]["train_loss"]
    assert history[1]["lr"] == pytest.approx(0.005)


def test_early_stopping(tmp_path):
    cfg = settings(tmp_path / "run", epochs=50, patience=2, lr=0.0)
    result = train(cfg)
    assert result["epochs"] == 3 and result["best"]["epoch"] == 1
    assert train(cfg)["epochs"] == 3  # a finished run stays finished


def test_more_epochs_continue_other_settings_do_not(tmp_path):
    train(settings(tmp_path / "a", epochs=4))
    train(settings(tmp_path / "b", epochs=2))
    train(settings(tmp_path / "b", epochs=4))
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(a[key], b[key]) for key in a)
    with pytest.raises(ConfigError, match="other settings: seed, batch_size"):
        train(settings(tmp_path / "b", epochs=4, batch_size=7, seed=3))
    train(settings(tmp_path / "b", epochs=1, batch_size=7), restart=True)
    assert len(rows(tmp_path / "b")) == 1


def test_changed_data_are_noticed(tmp_path, monkeypatch):
    cfg = settings(tmp_path / "run", epochs=1)
    train(cfg)
    make = tasks.make
    monkeypatch.setattr(tasks, "make", lambda name, **_: make(name, num=90))
    with pytest.raises(checkpoint.CheckpointError, match="the task now has"):
        train(cfg)


def test_a_loss_that_is_not_finite_stops(tmp_path):
    cfg = settings(tmp_path / "run", epochs=20, lr=1e18, optimizer="sgd", clip_norm=0.0)
    with pytest.raises(TrainingError, match="not finite in epoch"):
        train(cfg)


def test_seed_without_and_with_validation(tmp_path):
    root = write_seed(tmp_path / "seed", num_sessions=1, lengths=[12] * 15, features=["de_LDS"])
    task = tasks.make("seed", root=str(root))
    assert (len(task.train), task.valid, len(task.test)) == (9 * 4, None, 6 * 4)
    task = tasks.make("seed", root=str(root), valid_trials=3)
    assert (len(task.train), len(task.valid), len(task.test)) == (6 * 4, 3 * 4, 6 * 4)
    options = {"root": str(root), "stride": 3}
    cfg = settings(tmp_path / "run", task="seed", task_options=options, epochs=2)
    result = train(cfg)
    assert result["best"] == {"epoch": 2} and 0 <= result["test"]["accuracy"] <= 1
    with pytest.raises(ValueError, match="leaks"):
        tasks.make("seed", root=str(root), by="random")
    with pytest.warns(UserWarning, match="inflated by leakage"):
        tasks.make("seed", root=str(root), by="random", allow_leakage=True)


def test_command_line(tmp_path, capsys):
    out = tmp_path / "run"
    code = main(["epochs=1", f"out={out}", "task_options.num=103", "model_options.sp_hidden=5"])
    assert code == 0
    printed = capsys.readouterr().out
    assert "not emotion data" in printed and "zeros_spatial" in printed and "test" in printed
    root = write_seed(tmp_path / "seed", num_sessions=2, lengths=[12] * 15, features=["de_LDS"])
    sorted(root.glob("1_*.mat"))[1].write_bytes(b"")
    seed = ["task=seed", f"task_options.root={root}", f"out={tmp_path / 's'}", "epochs=1"]
    assert main([*seed]) == 2
    assert "not a readable MATLAB file" in capsys.readouterr().err
    assert main([*seed, "--skip-bad"]) == 0
    assert "1 records skipped:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("learning_rate=1", "unknown setting 'learning_rate'"),
        ("epoch=3", "did you mean epochs?"),
        ("lr=fast", "lr must be float, got 'fast'"),
        ("epochs=1.5", "epochs must be int"),
        ("epochs=0", "epochs must be at least 1"),
        ("lr=-1", "lr must not be negative"),
        ("lr=1e300", "lr must not be negative or above 1e+30, got 1e+300"),
        (f"threads={2**62}", "threads must not be negative or above 1024"),
        ("amp=fp8", "amp must be one of off, bf16, fp16"),
        ("deterministic=1", "deterministic must be bool"),
        ("task_options=3", "task_options must be dict"),
        ("task_options=[", "not a YAML value"),
        ("lr.x=3", "'lr' has no settings inside"),
        ("=3", "must be key=value"),
        ("task=mnist", "task must be one of"),
        ("task=seed", "task seed needs task_options.root"),
        ("task_options.numm=3", "it has num"),
        ("task_options.num=few", "task digits: num must be a whole number or null, got 'few'"),
        ("task_options.num=1", "task digits: nothing is left for the train part"),
        ("model_options.sp_hidden=2.5", "sp_hidden must be a whole number, got 2.5"),
        ("model_options.widths=8", "widths must be a list of: a whole number or null, got 8"),
        ("model_options.sp_hidden=-2", "hidden_size must be a positive int, got -2"),
        ("model_options.widths=[-4]", "model strnn: "),
        ("seed=-1", "seed must be in 0..2**40"),
        ("task_options.seed=-1", "task digits: seed must be in 0..4.29497e+09, got -1"),
        ("device=gpu", "device must be auto, cpu, cuda or cuda:<n>, got 'gpu'"),
        ("device=cuda:99", "device cuda:99: "),
        ("model=cnn", "model must be one of"),
        ("model_options.hidden=3", "model strnn has no option 'hidden'"),
        ("model=cnn_lstm", "model cnn_lstm predicts traces or units, the task digits has classes"),
        ("model_options.activation=gelu", "activation"),
        ("absent.yaml", "absent.yaml"),
    ],
)
def test_bad_settings_are_explained(tmp_path, capsys, argument, reason):
    assert main([f"out={tmp_path / 'run'}", argument]) == 2
    message = capsys.readouterr().err
    assert message.startswith("strnn-train: ") and reason in message


def test_yaml_errors_name_file_and_line(tmp_path):
    path = tmp_path / "c.yaml"
    for text, reason in (
        ("epochs: 3\nlr: [1\n", r"c\.yaml: not YAML: line 3"),
        ("- 1\n", "must hold settings"),
        ("epochs: 3\nlrr: 1\n", r"c\.yaml: unknown setting 'lrr'; did you mean lr"),
        ("\x00", "not YAML"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=reason):
            load(path)
    path.write_text("lr: 1e-3\namp: off\nmodel_options: {lambda1: 1e-2}\n")
    cfg = load(path, ["lr=5e-4", "task_options.subjects=[1, 2]"])
    assert (cfg.lr, cfg.amp, cfg.model_options) == (5e-4, "off", {"lambda1": 1e-2})
    assert cfg.task_options == {"subjects": [1, 2]}
    path.write_text("")
    assert load(path) == Config()
    assert config.load(None, [f"out={tmp_path}"]).out == str(tmp_path)


def test_scores_against_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics")
    torch.manual_seed(0)
    task = tasks.make("digits", num=60)
    scores, labels = torch.randn(50, 10), torch.randint(10, (50,))
    ours = objective.score(task, {"predicted": scores, "y": labels})
    for name, average in (("accuracy", "micro"), ("f1", "macro")):
        kind = {"accuracy": "Accuracy", "f1": "F1Score"}[name]
        metric = getattr(torchmetrics, kind)(task="multiclass", num_classes=10, average=average)
        assert ours[name] == pytest.approx(float(metric(scores, labels)), abs=1e-6)


def test_windows_of_a_video_are_averaged():
    found = {
        "predicted": torch.tensor([[[1.0], [3.0]], [[5.0], [7.0]]]).expand(2, 2, 2),
        "y": torch.tensor([[[0.0], [1.0]], [[1.0], [2.0]]]).expand(2, 2, 2),
        "valid": torch.tensor([[True, True], [True, False]]),
        "video": torch.zeros(2, dtype=torch.int64),
        "start": torch.tensor([0, 1]),
        "lengths": torch.tensor([2, 2]),
    }
    (video,) = objective.join_windows(found)
    assert video["predicted"][:, 0].tolist() == [1, 4, 7]
    assert video["y"][:, 1].tolist() == [0, 1, 2]
    assert video["valid"].tolist() == [True, True, False]


def test_the_frame_cnn_of_kahou_can_be_chosen():
    task = tasks.make("digits", num=60)
    model = zoo.build("cnn_irnn", task, frame_cnn="kahou", hidden_size=6)
    assert model(task.test[0]["x"][None]).shape == (1, 10)
    assert model.encoder.feature_size == 32 * 2 * 2


@pytest.mark.parametrize(
    ("task", "options", "reason"),
    [
        ("digit_sequences", {"length": 0}, "length must be in 1..inf"),
        ("digit_spotting", {"num_test": 0}, "num_test must be in 1..inf"),
        ("face_sequences", {"length": 1}, "length must be at least 2"),
        ("camera_pans", {"size": 97}, "size must be at most 96"),
        ("sewa", {"root": "x", "images": "x", "fps": 0}, "fps must be in"),
        ("seed", {"root": "x", "test_size": 7.0}, r"test_size must be in 0\.\.1"),
        ("seed", {"root": "x", "valid_trials": 9}, r"valid_trials must be in 0\.\.8"),
        ("seed", {"root": "x", "subjects": 1}, "subjects must be a list"),
    ],
)
def test_options_of_tasks_are_in_range(task, options, reason):
    with pytest.raises(ValueError, match=reason):
        tasks.make(task, **options)


def test_weights_of_a_backbone_are_loaded(tmp_path):
    trained = FrameCNN(1, [4])
    path = tmp_path / "cnn.safetensors"
    path.write_bytes(checkpoint.pack(trained.state_dict()))
    task = tasks.make("digits", num=60)
    model = zoo.build("cnn_irnn", task, widths=[4], weights=str(path))
    for key, value in model.encoder.backbone.state_dict().items():
        assert torch.equal(value, trained.state_dict()[key])
    with pytest.raises(ValueError, match=r"cnn\.safetensors"):
        zoo.build("cnn_irnn", task, widths=[8], weights=str(path))


def test_a_model_of_ones_own(monkeypatch):
    monkeypatch.setattr(zoo, "_MODELS", dict(zoo._MODELS))
    task = tasks.make("digits", num=60)

    @zoo.register("linear")
    def linear(task, bias: bool = True):
        return torch.nn.Linear(task.channels, len(task.classes), bias=bias)

    assert zoo.build("linear", task, bias=False).bias is None
    with pytest.raises(ValueError, match="bias must be true or false"):
        zoo.build("linear", task, bias=1)


def test_every_model_has_its_options_listed():
    for name in zoo.names():
        with pytest.raises(ValueError, match="has no option 'nonsense'"):
            zoo.build(name, tasks.make("digits", num=60), nonsense=1)

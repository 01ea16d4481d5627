"""What a disk, a kill, a second run or a user's own files do to the folder of a run."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from strnn_models.common import weights
from strnn_models.evaluate import main as evaluate
from strnn_models.layers.backbone import FrameCNN, load_weights
from strnn_models.train import main
from strnn_models.training import checkpoint
from strnn_models.training.config import ConfigError, load
from strnn_models.training.folder import FolderError, hold, write_atomic

TINY = ["task_options.num=103", "lr=3e-3", "threads=1"]
TINY += [f"model_options.{name}=2" for name in ("sp_hidden", "sp_projection", "tp_hidden")]


def state(run: Path) -> tuple:
    """What a run has come to, without the seconds."""
    epoch, weights, rest = checkpoint.load(run)
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in rest["history"]]
    return epoch, {k: v.tolist() for k, v in weights.items()}, rows


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of three epochs."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main([*TINY, "epochs=3", f"out={folder}", "--quiet"]) == 0
    return folder


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_a_run_has_two_checkpoints_and_nothing_else(run):
    written = {*checkpoint.names(2), *checkpoint.names(3)}
    written |= {"checkpoint.json", "checkpoint-before.json", "selected.safetensors"}
    assert names_in(run) == written | {"config.yaml", "log.csv", "log.jsonl", "results.json"}


# Whose files these are.

OTHERS = (".env.template", ".bash_history.20250101", "epoch-notes.txt", ".log.csv.abcdefgh")
OTHERS += ("epoch-00001.pt.mine", "epoch-best.safetensors", ".epoch-00001.pt.x1y2z3w4", "mine.yaml")


def test_files_of_others_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "epoch-plots").mkdir()
    for name in (*OTHERS, "epoch-plots/.a.12345678"):
        (tmp_path / name).write_text(f"mine: {name}")
    before = contents(tmp_path)
    for options in ([], [], ["--restart"]):
        assert main([*TINY, "epochs=4", "out=.", "--quiet", *options]) == 0
        assert before.items() <= contents(tmp_path).items()


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "log.csv", "results.json", "checkpoint.json", checkpoint.names(2)[0]],
)
@pytest.mark.parametrize("options", [[], ["--restart"]])
def test_a_file_that_no_run_wrote_is_not_replaced(tmp_path, capsys, name, options):
    (tmp_path / name).write_text("mine")
    assert main([*TINY, f"out={tmp_path}", "--quiet", *options]) == 2
    assert name in capsys.readouterr().err
    assert contents(tmp_path) == {name: b"mine"}


@pytest.mark.parametrize("name", ["report.md", "report.json", "learning.png"])
def test_nor_is_one_that_no_report_wrote(run, tmp_path, capsys, name):
    (tmp_path / name).write_text("mine")
    assert evaluate([str(run), "--out", str(tmp_path)]) == 2
    assert name in capsys.readouterr().err
    assert contents(tmp_path) == {name: b"mine"}


def test_a_report_replaces_a_report(run, tmp_path):
    for _ in range(2):
        assert evaluate([str(run), "--out", str(tmp_path)]) == 0


def test_restart_drops_the_run_and_its_unfinished_epoch(copy):
    for name in checkpoint.names(4):
        (copy / name).write_text("of a run that was killed in it")
    assert main([*TINY, "epochs=1", "batch_size=7", f"out={copy}", "--quiet", "--restart"]) == 0
    epochs = {name for name in names_in(copy) if name.startswith(("epoch-", "checkpoint"))}
    assert epochs == {*checkpoint.names(1), "checkpoint.json"}


def test_a_restart_that_cannot_start_drops_nothing(copy, capsys):
    before = contents(copy)
    assert main([*TINY, "task=seed", f"out={copy}", "--restart"]) == 2
    assert main([*TINY, "model_options.nonsense=1", f"out={copy}", "--restart"]) == 2
    assert contents(copy) == before


@pytest.mark.parametrize(
    "settings",
    [
        ["task=seed", "task_options.root=/nowhere"],
        ["model_options.nonsense=1"],
        ["model=cnn_irnn", "model_options.weights=missing.pt"],
        ["lr=1e18", "optimizer=sgd", "clip_norm=0"],
        ["device=cuda:99"],
    ],
)
def test_a_failed_start_leaves_nothing(tmp_path, capsys, settings):
    settings = settings if settings[0].startswith("task") else [*TINY, *settings]
    (tmp_path / "here").mkdir()
    assert main([*settings, f"out={tmp_path / 'here'}", "--quiet"]) == 2
    assert main([*settings, f"out={tmp_path / 'a' / 'b' / 'run'}", "--quiet"]) == 2
    assert contents(tmp_path) == {"here": None}
    capsys.readouterr()


def test_no_report_no_folder(copy, tmp_path, capsys):
    out = tmp_path / "a" / "report"
    (copy / "log.jsonl").write_text("[")
    assert evaluate([str(copy), "--out", str(out)]) == 2
    assert "log.jsonl: damaged" in capsys.readouterr().err and not out.parent.exists()


# Two at once, kills, Ctrl-C.


@contextmanager
def running(out: Path, *settings: str) -> Iterator[subprocess.Popen]:
    """A run without an end that has done its first epochs, and its group, which end with the block.

    Ctrl-C reaches it also where the tests themselves run in the background, which ignores it.
    """
    command = [sys.executable, "-m", "strnn_models.train", *TINY, *settings]
    process = subprocess.Popen(
        [*command, "epochs=1000000", f"out={out}", "--quiet"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 600
        while not (out / "checkpoint-before.json").exists():
            assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
            time.sleep(0.01)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()


def test_a_second_run_names_the_first_and_a_killed_one_is_free(tmp_path, capsys):
    out = tmp_path / "run"
    with running(out, "workers=1") as process:
        assert main([*TINY, "epochs=1000000", f"out={out}", "--quiet"]) == 2
        message = capsys.readouterr().err
        assert f"{out} is in use by process {process.pid} on {socket.gethostname()}" in message
        process.kill()  # its worker lives on for a while
        process.wait()
        seen = checkpoint.load(out)[0]
        assert main([*TINY, f"epochs={seen + 1}", f"out={out}", "--quiet"]) == 0
    assert not [name for name in names_in(out) if name.startswith(".")]


def test_one_holder_at_a_time_also_in_one_process(tmp_path):
    def holder():
        return hold(tmp_path / "a" / "b", lambda: False, "mine".__eq__)

    with holder():
        with pytest.raises(FolderError, match=f"in use by process {os.getpid()} on "), holder():
            pass
        (tmp_path / "a" / "b" / ".strnn.part").write_text("")
    assert not names_in(tmp_path)
    with holder():
        pass


def test_a_folder_without_locks_says_so(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with hold(tmp_path, lambda: False, lambda name: False):
        assert "no lock (No locks available)" in capsys.readouterr().err


def test_several_processes_end_when_the_folder_is_in_use(tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "strnn_models.train", *TINY, f"out={tmp_path}", "--quiet"]
    with hold(tmp_path, lambda: False, lambda name: False):
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, timeout=600, check=False
        )
    assert done.returncode != 0
    assert f"in use by process {os.getpid()}" in done.stderr
    assert "DistBackendError" not in done.stderr and not names_in(tmp_path)


def test_interrupted_with_workers(tmp_path):
    with running(tmp_path / "run", "workers=2") as process:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
        said = process.communicate(timeout=600)[1]
        assert process.returncode == 130
    assert said == "strnn-train: interrupted; the same command goes on\n"
    seen = checkpoint.load(tmp_path / "run")[0]
    assert main([*TINY, f"epochs={seen + 1}", f"out={tmp_path / 'run'}", "--quiet"]) == 0


@pytest.mark.parametrize("call", range(8))
@pytest.mark.parametrize("function", ["replace", "fsync", "unlink"])
def test_a_crash_at_each_write(tmp_path, monkeypatch, function, call):
    def write(epoch: int) -> None:
        checkpoint.save(tmp_path, epoch, {"w": torch.full((2,), epoch)}, {"n": epoch})

    for epoch in (1, 2, 3):
        write(epoch)
    calls = []

    def crash(*args, **kwargs):
        calls.append(args)
        if len(calls) > call:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    original = getattr(os, function)
    monkeypatch.setattr(os, function, crash)
    try:
        write(4)
        wanted = 4
    except KeyboardInterrupt:
        wanted = 3
    monkeypatch.undo()
    (tmp_path / ".strnn.part").unlink(missing_ok=True)  # left where unlink itself was the crash
    epoch, w, rest = checkpoint.load(tmp_path)
    assert epoch in (wanted, 4) and rest["n"] == epoch and w["w"].tolist() == [epoch] * 2
    for again in (epoch + 1, epoch + 2):
        write(again)
        assert checkpoint.load(tmp_path)[0] == again
    left = {*checkpoint.names(epoch + 1), *checkpoint.names(epoch + 2)}
    assert names_in(tmp_path) == left | {checkpoint.POINTER, checkpoint.BEFORE}


# Damage.


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(data)


def brackets(path: Path) -> None:
    path.write_bytes(b"[" * 100_000)


def digits(path: Path) -> None:
    path.write_bytes(b'{"epoch": ' + b"9" * 5000 + b', "files": {}}\n')


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)))


def gone(path: Path) -> None:
    path.unlink()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    os.truncate(path, 1 << 40)


DAMAGES = (cut, empty, flip, brackets, digits, binary, gone, folder, fifo, device, sparse)


def one_line(capsys, name: str) -> str:
    said = capsys.readouterr().err
    assert name in said and said.count("\n") == 1 and len(said) < 1000
    return said


@pytest.mark.parametrize("name", ["checkpoint.json", *checkpoint.names(3)])
@pytest.mark.parametrize("damage", DAMAGES)
def test_training_goes_on_from_the_checkpoint_before(run, copy, capsys, damage, name):
    damage(copy / name)
    if damage in (folder, device):  # what is in the way is for its owner to remove
        shutil.move(copy / name, copy / "elsewhere")
    assert main([*TINY, "epochs=3", f"out={copy}", "--quiet"]) == 0
    said = one_line(capsys, name if (damage, name) != (flip, "checkpoint.json") else str(copy))
    assert "going on from the one before, of epoch 2" in said
    assert state(copy) == state(run) and not capsys.readouterr().err


@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("damage", DAMAGES)
def test_both_checkpoints_damaged(copy, capsys, damage, part):
    pointers = ("checkpoint-before.json", "checkpoint.json")
    names = [[*checkpoint.names(e), pointers[e - 2]][part] for e in (2, 3)]
    for name in names:
        damage(copy / name)
    if damage is gone and part == 2:
        assert checkpoint.load(copy) is None
        return
    before = names_in(copy)
    assert main([*TINY, "epochs=3", f"out={copy}", "--quiet"]) == 2
    # What is changed in a pointer may be the checksum of a file.
    one_line(capsys, names[1] if (damage, part) != (flip, 2) else str(copy))
    assert names_in(copy) == before


@pytest.mark.parametrize("name", ["config.yaml", "selected.safetensors", "log.jsonl"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_settings_weights_and_log(copy, capsys, damage, name):
    damage(copy / name)
    if damage is flip and name == "config.yaml":
        pytest.skip("a changed letter makes other settings")
    if damage in (gone, empty) and name == "log.jsonl":
        assert evaluate([str(copy)]) == (0 if damage is gone else 2)
        return
    assert evaluate([str(copy)]) == 2
    one_line(capsys, name)
    if name != "log.jsonl":  # training writes it anew
        assert main([*TINY, "epochs=3", f"out={copy}", "--quiet"]) == 2
        one_line(capsys, name)


def test_a_checkpoint_without_its_settings(copy, capsys):
    (copy / "config.yaml").unlink()
    assert main([*TINY, "optimizer=sgd", "epochs=4", f"out={copy}", "--quiet"]) == 2
    one_line(capsys, "config.yaml")


@pytest.mark.parametrize(
    "change",
    [
        lambda state: [],
        lambda state: {},
        lambda state: state | {"items": None},
        lambda state: state | {"history": ["a"]},
        lambda state: state | {"random": {"cpu": [torch.zeros(3)]}},
        lambda state: state | {"optimizer": torch.optim.SGD([torch.ones(1)], 1).state_dict()},
    ],
)
def test_a_state_of_another_kind(copy, capsys, change):
    epoch, weights, rest = checkpoint.load(copy)
    shutil.rmtree(copy)
    copy.mkdir()
    checkpoint.save(copy, epoch, weights, change(rest))
    (copy / "config.yaml").write_text(load(None, [*TINY, "epochs=3", "out=x"]).to_yaml())
    assert main([*TINY, "epochs=4", f"out={copy}", "--quiet"]) == 2
    one_line(capsys, "epoch-00003.pt")


def test_an_optimizer_of_another_kind(copy, capsys):
    text = (copy / "config.yaml").read_text().replace("optimizer: adam", "optimizer: sgd")
    (copy / "config.yaml").write_text(text)
    assert main([*TINY, "optimizer=sgd", "epochs=4", f"out={copy}", "--quiet"]) == 2
    assert "momentum" in one_line(capsys, "epoch-00003.pt")


def test_weights_of_another_model(copy, capsys):
    write_atomic(copy / "selected.safetensors", checkpoint.pack({"w": torch.ones(1)}))
    assert evaluate([str(copy)]) == 2
    one_line(capsys, "selected.safetensors")


# A full disk.


@pytest.mark.parametrize("limit", [0, 2000, 12_000])
def test_files_that_grow_too_large_are_named(copy, tmp_path, capsys, limit):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        fresh = main([*TINY, f"out={tmp_path / 'new' / 'run'}", "--quiet"])
        new = capsys.readouterr().err
        more = main([*TINY, "epochs=4", f"out={copy}", "--quiet"])
        old = capsys.readouterr().err
        report = evaluate([str(copy), "--out", str(tmp_path / "report")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (fresh, more, report) == (2, 2, 2)
    assert "File too large" in new and str(tmp_path / "new" / "run") in new
    assert "File too large" in old and str(copy) in old
    assert str(tmp_path / "report") in one_line(capsys, "File too large")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    assert main([*TINY, "epochs=4", f"out={copy}", "--quiet"]) == 0


@pytest.mark.parametrize("call", [0, 1, 2, 5, 8, 11])
def test_a_full_disk_names_the_file(copy, monkeypatch, capsys, call):
    calls = []

    def full(handle):
        calls.append(handle)
        if len(calls) == call + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(handle)

    original = os.fsync
    monkeypatch.setattr(os, "fsync", full)
    assert main([*TINY, "epochs=4", f"out={copy}", "--quiet"]) == 2
    assert "No space left" in one_line(capsys, f"{copy}{os.sep}")
    monkeypatch.undo()
    assert main([*TINY, "epochs=4", f"out={copy}", "--quiet"]) == 0
    assert not [name for name in names_in(copy) if name.startswith(".")]


# Settings and weights that are larger than they look.

NINES = "9" * 5000
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
TEXTS = {
    "aliases": BOMB,
    "an option of aliases": BOMB.replace("a9:", "task_options:\n  num:"),
    "itself": "task_options: &a {num: *a}",
    "merged": "a: &a {b: 1}\ntask_options: {<<: *a}",
    "brackets": "[" * 50_000,
    "braces": "{a: " * 12_000,
    "a map of maps": "\n".join(" " * n + "a:" for n in range(300)),
    "digits": f"lr: {NINES}",
    "many digits": "epochs: " + "9" * 60_000,
    "more than a float": f"lr: {'9' * 400}",
    "hexadecimal": f"seed: 0x{'f' * 5000}",
    "to the base of 60": "seed: " + ":".join(["59"] * 5000),
    "an option": f"task_options: {{num: {'9' * 400}}}",
    "a list": f"model_options: {{widths: [{'9' * 400}]}}",
    "a key": f"? {NINES}\n: 1",
    "a long key": f"{'x' * 50_000}: 1",
    "a long text": f"amp: {'x' * 50_000}",
    "a long list": f"lr: [{'1, ' * 20_000}]",
    "a long tag": f"lr: !{'x' * 50_000} 1",
    "no date": "lr: 2001-99-99",
    "no integer": "epochs: !!int ''",
    "no float": "lr: !!float ''",
    "no time": "lr: !!timestamp x",
    "no bool": "deterministic: !!bool x",
    "no map": "task_options: {[1]: 2}",
    "infinite": "lr: 1e999",
    "no number": "lr: .nan",
    "an infinite option": "model_options: {lambda1: -.inf}",
    "too long": "#" * 100_000,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_settings_that_are_larger_than_they_look(tmp_path, capsys, text):
    (tmp_path / "c.yaml").write_text(text + "\n")
    assert main([str(tmp_path / "c.yaml"), f"out={tmp_path / 'run'}"]) == 2
    one_line(capsys, "c.yaml")
    key, _, value = text.partition(":")
    with pytest.raises(ConfigError) as caught:
        load(None, [f"task_options.x={value}", f"{key}={value}"])
    assert len(str(caught.value)) < 1000
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", [fifo, folder, device, sparse, gone])
def test_settings_that_are_no_file(tmp_path, capsys, damage):
    (tmp_path / "c.yaml").write_text("lr: 1e-3\n")
    damage(tmp_path / "c.yaml")
    assert main([str(tmp_path / "c.yaml"), f"out={tmp_path / 'run'}"]) == 2
    one_line(capsys, "c.yaml")


def inflated(path: Path) -> None:
    """Weights as torch.save would write them, deflated: a thousandth of what they hold."""
    plain = path.with_suffix(".plain")
    torch.save({"w": torch.zeros(1 << 24)}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))


def overlapping(path: Path) -> None:
    """Many parts that are the same bytes of the file."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data/0", bytes(1 << 20))
        for number in range(1, 100):
            again = zipfile.ZipInfo(f"a/data/{number}")
            first = file.infolist()[0]
            again.file_size, again.compress_size, again.CRC = (1 << 20, 1 << 20, first.CRC)
            again.header_offset = first.header_offset
            file.filelist.append(again)


def asking(path: Path) -> None:
    """A pickle of 60 bytes that makes 2 GB."""
    size = (2_000_000_000).to_bytes(4, "little")
    path.write_bytes(b"\x80\x02cbuiltins\nbytearray\nJ" + size + b"\x85R.")


@pytest.mark.parametrize("kind", [inflated, overlapping, asking])
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_weights_that_are_larger_than_they_look(tmp_path, monkeypatch, kind, suffix):
    path = tmp_path / f"cnn{suffix}"
    kind(path)
    assert path.stat().st_size < 2_000_000

    def never(*_, **__):
        raise AssertionError("it was unpacked")

    monkeypatch.setattr(torch, "load", never)
    with pytest.raises(ValueError, match=rf"cnn{suffix} holds no .* (would become|asks for)"):
        load_weights(FrameCNN(1, [4]), path)


@pytest.mark.parametrize("damage", [cut, empty, brackets, binary, gone, folder, fifo, device])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_that_are_no_file(tmp_path, damage, suffix):
    path = tmp_path / f"cnn{suffix}"
    state = FrameCNN(1, [4]).state_dict()
    if suffix == ".pt":
        torch.save(state, path)
    else:
        path.write_bytes(checkpoint.pack(state))
    assert load_weights(FrameCNN(1, [4]), path) == []
    damage(path)
    with pytest.raises(ValueError, match=rf"cnn{suffix} holds no readable weights") as caught:
        load_weights(FrameCNN(1, [4]), path)
    assert len(str(caught.value)) < 1000


def test_weights_of_other_formats_of_torch_are_read(tmp_path):
    state = FrameCNN(1, [4]).state_dict()
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "new.pt")
    for name in ("old.pt", "new.pt"):
        assert load_weights(FrameCNN(1, [4]), tmp_path / name) == []
    assert weights.unpickle((tmp_path / "new.pt").read_bytes())["epoch"] == 3

"""No input file can execute code: payloads that would, in place of each kind of file read."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.io import savemat
from strnn_models.data import photographs, read_deap, read_seed_v, synthetic, tasks
from strnn_models.data.records import DataError
from strnn_models.evaluate import main as evaluate
from strnn_models.layers.backbone import FrameCNN, load_weights
from strnn_models.train import main as train
from strnn_models.training import checkpoint
from strnn_models.training.config import ConfigError, load

MARK = "executed"


class Evil:
    """Its pickle makes a folder when it is loaded."""

    def __reduce__(self):
        return os.mkdir, (MARK,)


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.array([Evil()], dtype=object))
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Evil()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def torch_zip(legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": Evil()}, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def matlab_cells() -> bytes:
    buffer = io.BytesIO()
    names = [f"de_LDS{n}" for n in range(1, 16)] + ["label"]
    savemat(buffer, {name: np.array([{"a": "system('x')"}], dtype=object) for name in names})
    return buffer.getvalue()


#: Files of a run that no command reads.
WRITTEN_ONLY = ("log.csv", "results.json")
YAML = b"out: !!python/object/apply:os.mkdir [executed]"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(executed) (w) file closefile\n"
PAYLOADS = {
    "pickle": lambda: pickle.dumps(Evil()),
    "npz": npz,
    "npy": npy,
    "torch": torch_zip,
    "torch, old": lambda: torch_zip(legacy=True),
    "matlab": matlab_cells,
    "yaml": lambda: YAML,
    "postscript": lambda: EPS,
}


@pytest.fixture(params=PAYLOADS)
def payload(request, tmp_path, monkeypatch) -> bytes:
    """A payload; afterwards nothing of it has run."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield PAYLOADS[request.param]()
    assert not Path(MARK).exists(), "the file was executed"


def test_the_payloads_would_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    openers = {
        "pickle": pickle.loads,
        "npz": lambda data: np.load(io.BytesIO(data), allow_pickle=True)["a"],
        "npy": lambda data: np.load(io.BytesIO(data), allow_pickle=True),
        "torch": lambda data: torch.load(io.BytesIO(data), weights_only=False),
        "torch, old": lambda data: torch.load(io.BytesIO(data), weights_only=False),
        "yaml": yaml.unsafe_load,
    }
    for name, unsafe in openers.items():
        unsafe(PAYLOADS[name]())
        assert Path(MARK).exists(), name
        Path(MARK).rmdir()


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory) -> dict[str, tuple[Path, dict]]:
    """Task -> its folder, with synthetic files, and its options."""
    root = tmp_path_factory.mktemp("data")
    frames = [f"{k}.jpg" for k in range(1, 13)]
    for name in ("SEW1100", "SEW1101", "SEW1102"):
        synthetic.write_frames(root / "video" / name, frames)
    for name in ("Train_DE_01", "Devel_DE_01"):
        synthetic.write_frames(root / "video" / name, frames)
    for part in ("train_afew", "val_afew"):
        synthetic.write_afew(root / "afew" / part, order=("Angry", "Happy"))
    synthetic.write_seed(root / "seed", num_sessions=2, lengths=[9] * 15, features=["de_LDS"])
    for path in (root / "afew").glob("*/list.txt"):
        path.unlink()  # not read unless named
    synthetic.write_aff_wild2(root / "aff_wild2")
    shutil.rmtree(root / "aff_wild2" / "AU_Set")
    size, video = {"size": 8}, {"size": 8, "sample_length": 4, "stride": 4}
    return {
        "seed": (root / "seed", {}),
        "seed_iv": (synthetic.write_seed_iv(root / "seed_iv"), {}),
        "seed_v": (synthetic.write_seed_v(root / "seed_v", subjects=(1, 2), length=9), {}),
        "seed_vii": (synthetic.write_seed_vii(root / "seed_vii", subjects=(1, 2), length=9), {}),
        "ck_plus": (synthetic.write_ck_plus(root / "ck_plus", num_subjects=10), size),
        "afew": (root / "afew", size | {"order": "kahou"}),
        "aff_wild2": (
            root / "aff_wild2",
            video
            | {"images": str(root / "aff_wild2" / "cropped_aligned"), "annotation": "VA+EXPR"},
        ),
        "sewa": (
            synthetic.write_sewa(root / "sewa", num_videos=3, length=12),
            video | {"images": str(root / "video"), "fps": 10, "test_size": 0.5},
        ),
    }


def load_all(task: tasks.Task) -> None:
    for part in (task.train, task.valid, task.test):
        for k in range(0 if part is None else len(part)):
            assert part[k]["x"].isfinite().all()


@pytest.mark.parametrize("skip_bad", [False, True])
def test_data_sets(payload, skip_bad, data_sets):
    for name, (folder, options) in data_sets.items():
        options = options | {"root": str(folder), "skip_bad": skip_bad}
        assert not tasks.make(name, **options).skipped
        first = {
            path.suffix: path
            for path in sorted(folder.rglob("*.*"), reverse=True)
            if path.is_file()
        }
        for path in first.values():
            good = path.read_bytes()
            path.write_bytes(payload)
            try:
                if skip_bad:
                    task = tasks.make(name, **options)
                    load_all(task)
                    assert task.skipped and all(path.name in str(skip) for skip in task.skipped)
                else:
                    with pytest.raises(DataError, match=path.stem):
                        load_all(tasks.make(name, **options))
            finally:
                path.write_bytes(good)


@pytest.mark.parametrize("skip_bad", [False, True])
def test_pickles_of_data_sets(payload, skip_bad, tmp_path):
    """DEAP's .dat, and what stands in the archives of SEED-V."""
    (tmp_path / "s01.dat").write_bytes(payload)
    np.savez(tmp_path / "1_123.npz", data=payload, label=payload)
    for read, name in ((read_deap, "s01.dat"), (read_seed_v, "1_123.npz")):
        root = tmp_path / name[:3]
        root.mkdir()
        (tmp_path / name).rename(root / name)
        if skip_bad:
            (skip,) = read(root, skip_bad=True).skipped
            assert name in str(skip)
        else:
            with pytest.raises(DataError, match=name):
                read(root)


def test_pictures(payload, tmp_path, monkeypatch):
    class Spec:
        origin = str(tmp_path / "skimage" / "__init__.py")

    (tmp_path / "skimage" / "data").mkdir(parents=True)
    for name in ("lfw_subset.npy", *photographs.PICTURES):
        (tmp_path / "skimage" / "data" / name).write_bytes(payload)
    monkeypatch.setattr(photographs, "find_spec", lambda name: Spec)
    for name in ("faces", "camera_pans"):
        with pytest.raises(DataError, match="not a readable"):
            tasks.make(name)


def test_weights(payload, tmp_path):
    for suffix in (".pt", ".pth", ".safetensors", ".bin"):
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(payload)
        with pytest.raises(ValueError, match="no readable weights"):
            load_weights(FrameCNN(1, [4]), path)
    with pytest.raises(checkpoint.CheckpointError, match="not a safetensors file"):
        checkpoint.load_weights(tmp_path / "weights.safetensors")


def test_settings(payload, tmp_path):
    (tmp_path / "c.yaml").write_bytes(payload)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match="not a YAML value"):
        load(None, [f"task_options.root={YAML[5:].decode()}"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    assert train([f"out={run}", "epochs=1", "task_options.num=60", "--quiet"]) == 0
    return run


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_every_file_of_a_run(payload, finished, tmp_path, capsys):
    """Also with checksums that fit: whoever can write a run can write those."""
    names = [path.name for path in finished.iterdir() if path.name not in WRITTEN_ONLY]
    assert len(names) == 6
    for name in names:
        run = shutil.copytree(finished, tmp_path / name)
        (run / name).write_bytes(payload)
        if name.startswith("epoch-"):
            pointer = json.loads((run / checkpoint.POINTER).read_text())
            pointer["files"][name] = hashlib.sha256(payload).hexdigest()
            (run / checkpoint.POINTER).write_text(json.dumps(pointer))
        is_report = name in ("selected.safetensors", "log.jsonl")
        code = (
            evaluate([str(run)]) if is_report else train([f"{run / 'config.yaml'}", f"out={run}"])
        )
        assert code == 2 and name in capsys.readouterr().err


def test_a_checkpoint_cannot_name_files_elsewhere(tmp_path):
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(checkpoint.pack({"w": torch.ones(1)}))
    run = tmp_path / "run"
    run.mkdir()
    digest = hashlib.sha256(outside.read_bytes()).hexdigest()
    files = {"../outside.safetensors": digest, "../outside.pt": digest}
    (run / checkpoint.POINTER).write_text(json.dumps({"epoch": 1, "files": files}))
    with pytest.raises(checkpoint.CheckpointError, match="outside"):
        checkpoint.load(run)

"""The benchmarks: wrong numbers are not timed, changes are judged against noise, the report."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import shutil
import subprocess
import tarfile
import time
from contextlib import contextmanager
from functools import partial

import pytest
import torch

import strnn_kernels as sk
from bench import __main__ as bench
from bench import compare, gpu_peers, gpu_report, gpu_run, measure, profile, report, roofline
from bench.contestants import Backend, Older, Runner
from strnn_kernels.testing import Case
from strnn_kernels.topology import Topology

CASE = Case("small", "spatial_rnn", lambda: Topology.grid(3, 4), B=3, C=2, H=5, K=2)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """One short run through the command line: a named case and one of an axis.

    T1 is then made twice as fast as its peer, whatever the machine: less than the report asks for.
    """
    path = tmp_path_factory.mktemp("bench") / "run.json"
    command = ["--cases", "T1", "B=1", "B=4", "--peers", "nn.RNN", "--seconds", "0.05"]
    before = torch.get_num_threads()
    try:
        assert bench.main([*command, "--json", str(path)]) == 0
    finally:
        torch.set_num_threads(before)
    found = json.loads(path.read_text())
    rows = {(r["case"], r["contestant"], r["mode"]): r for r in found["rows"]}
    for mode in measure.MODES:
        mine, theirs = (rows["T1", who, mode] for who in ("cpu", "nn.RNN"))
        for key in ("q1_ms", "median_ms", "q3_ms"):
            mine[key] = theirs[key] / 2
    return found


def test_rows(result):
    rows = {(r["case"], r["contestant"], r["mode"]): r for r in result["rows"]}
    assert rows["B=1", "nn.RNN", "inference"]["status"] == "absent: chains only"
    for who in ("cpu", "nn.RNN"):
        row = rows["T1", who, "training"]
        assert row["status"] == "ok" and row["q1_ms"] <= row["median_ms"] <= row["q3_ms"]
        assert 0 < row["share_of_fma_peak"] < 1.2


def test_report(result, tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    (results / "here.json").write_text(json.dumps(result))
    report.main(["--results", str(results), "--out", str(tmp_path / "REPORT.md")])
    page = (tmp_path / "REPORT.md").read_text()
    assert result["machine"]["cpu"] in page and "Where we lose" in page
    assert "| T1 " in page and "time grows" in page
    for picture in ("ratios", "memory", "B"):
        assert (tmp_path / "plots" / f"here-{picture}.png").stat().st_size > 1000
    with pytest.raises(SystemExit, match="no results yet"):
        report.main(["--results", str(tmp_path), "--out", str(tmp_path / "none.md")])


def test_compare(result):
    table, drift = compare.compare(result, result)
    assert drift == 0 and {line[-1] for line in table} == {"same"}
    slower = copy.deepcopy(result)
    for row in slower["rows"]:
        if row["status"] == "ok":
            # Everybody on a machine of half the speed, and ours another three times slower.
            factor = 2.0 if row["is_peer"] else 6.0
            row |= {name: row[name] * factor for name in ("median_ms", "q1_ms", "q3_ms")}
            row["q1_ms"], row["q3_ms"] = row["median_ms"] * 0.99, row["median_ms"] * 1.01
    for row in result["rows"]:
        if row["status"] == "ok":
            row["q1_ms"], row["q3_ms"] = row["median_ms"] * 0.99, row["median_ms"] * 1.01
    table, drift = compare.compare(result, slower)
    assert drift == pytest.approx(1.0)
    assert {(line[1], line[-1]) for line in table} == {
        ("cpu", "SLOWER"),
        ("module", "SLOWER"),
        ("nn.RNN", "same"),
    }


def test_wrong_numbers_are_not_timed():
    @dataclasses.dataclass(frozen=True)
    class Wrong(Backend):
        def prepare(self, case, inputs, dy):
            runner = super().prepare(case, inputs, dy)
            return dataclasses.replace(runner, output=lambda out: out * 1.01)

    peaks = roofline.Peaks(
        100.0, 90.0, "assumed", 1.0, {1: dict.fromkeys(roofline.COPY_BYTES, 9.0)}
    )
    rows = measure.measure_case(CASE, [Wrong("cpu")], threads=1, budget=0.01, peaks=peaks)
    assert len(rows) == 2 and all(r["status"].startswith("wrong: ") for r in rows)
    assert not any("median_ms" in r for r in rows)


GRID = dataclasses.replace(CASE, graph=partial(Topology.grid, 3, 4))
CHAIN = Case(
    "chain", "temporal_rnn", partial(Topology.chain, 5), B=3, C=2, H=5, has_lengths=True, cell="gru"
)


@pytest.mark.parametrize("case", [GRID, CHAIN], ids=str)
def test_an_older_build_is_checked_and_timed_in_its_own_process(case):
    older = Older(bench.ROOT)
    peaks = roofline.Peaks(
        100.0, 90.0, "assumed", 1.0, {1: dict.fromkeys(roofline.COPY_BYTES, 9.0)}
    )
    rows = measure.measure_case(case, [older], threads=1, budget=0.01, peaks=peaks)
    assert [r["status"] for r in rows] == ["ok", "ok"]
    assert all(r["is_peer"] and r["median_ms"] > 0 and r["peak_mb"] is None for r in rows)


def test_what_an_older_build_lacks_is_no_failure(tmp_path):
    (tmp_path / "strnn_kernels").mkdir()
    (tmp_path / "strnn_kernels/__init__.py").write_text(
        "def temporal_rnn(x, w_ih, w_hh, bias, *, activation, bidirectional): pass"
    )
    reason = Older(tmp_path).refusal(CHAIN)
    assert reason == "its temporal_rnn has no cell"
    with pytest.raises(EOFError):  # it ended, and said on standard error why
        Older(tmp_path / "nothing").refusal(CHAIN)


def test_work_of_a_chain():
    """Counted by hand: two steps, two directions, no recurrent product at the first of each."""
    case = Case("two", "temporal_rnn", lambda: Topology.chain(2), B=3, C=4, H=5)
    work = roofline.work(case, case.inputs(), "inference")
    assert work.flops == 3 * 2 * (2 * 2 * 4 * 5 + 2 * 5 * 5)
    assert work.held_bytes == 4 * 3 * 2 * 2 * 5
    assert work.num_bytes == work.held_bytes + 4 * (3 * 2 * 4 + 2 * 5 * 4 + 2 * 5 * 5 + 2 * 5)


def gpu_result(**about):
    peaks = {"copy_gbs": 4000.0, "gemm_float32_tflops": 50.0, "gemm_bfloat16_tflops": 700.0}
    machine = dict.fromkeys(
        ("gpu", "multiprocessors", "driver", "cuda", "cudnn", "torch", "triton", "commit"), "x"
    )
    work = {"flops": 7e9, "num_bytes": 8e6, "chain": 1}
    row = {
        "case": "a",
        "dtype": "bfloat16",
        "levels": 3,
        "work": dict.fromkeys(measure.MODES, work),
    }
    times = {"us": {"inference": 30.0}, "quartiles_us": {"inference": [29.0, 31.0]}}
    rows = [
        row | times | {"who": "cuda", "status": "ok", "is_graph": {"inference": True}},
        row | {"who": "nn.RNN", "status": "absent", "reason": "chains only"},
    ]
    return {"about": machine | {"is_rehearsal": False, "peaks": peaks} | about, "rows": rows}


def test_a_gpu_section():
    page = "\n".join(gpu_report.section(gpu_result(), "h200"))
    assert "30.0 (29.0 .. 31.0)" in page and "1.00x" in page
    assert "- a, nn.RNN: chains only" in page
    # 7 GFLOP at 700 TFLOP/s take 10 us, 8 MB at 4 TB/s 2 us.
    assert (
        gpu_report.floor_us(gpu_result()["rows"][0], "inference", gpu_result()["about"]["peaks"])
        == 10
    )


def test_a_rehearsal_is_no_measurement():
    with pytest.raises(SystemExit, match="rehearsed"):
        gpu_report.section(gpu_result(is_rehearsal=True), "h200")


def test_pairs_of_backends_are_rehearsed():
    rows = list(gpu_run.pairs(["cpu"], torch.device("cpu")))
    assert rows and all(row["status"] == "ok" for row in rows), rows


def test_small_cases_reach_every_kernel_of_an_h200():
    planner = pytest.importorskip("strnn_kernels._planner", reason="_planner was not compiled")
    found = set()
    for case in gpu_run.SMALL:
        if case.op == "sparse_projection":
            continue
        for is_backward in (False, True):
            graph = case.topology.reversed() if is_backward else case.topology
            program = graph.program("levels")
            plan = planner.plan_cuda_sweep(
                **{name: getattr(case, name) for name in ("B", "N", "D", "C", "H", "K")},
                groups=program.num_groups,
                slots=program.num_slots,
                dtype=str(case.dtype).removeprefix("torch."),
                is_backward=is_backward,
                cell=case.code,
                mean=case.mean,
                device=(90, 132, 227 * 1024, 228 * 1024),
            )
            found.add((is_backward, plan["family"], plan["cluster"]))
    # `enum class Family { kRow, kTensorCore, .. }` -> "row", "tensor_core", ..
    header = (profile.ROOT / "csrc" / "cuda" / "planner.h").read_text()
    names = re.search(r"enum class Family \{(.+?)\}", header)[1].split(",")
    families = {re.sub("(?<!^)([A-Z])", r"_\1", n.strip()[1:]).lower() for n in names}
    assert len(families) == 4
    wanted = {(name, 1) for name in families - {"cluster"}} | {("cluster", 8), ("cluster", 16)}
    assert found == {(way, *kernel) for way in (False, True) for kernel in wanted}


@pytest.mark.parametrize("is_lost", [False, True])
def test_whatever_a_backend_raises_is_a_row(is_lost, tmp_path, monkeypatch):
    """Compilers raise what derives from Exception alone; a lost device ends the run."""

    class CompilationError(Exception):
        pass

    def fail(**_):
        raise CompilationError("at 3:7")

    monkeypatch.setattr(gpu_run.sk, "spatial_rnn", fail)
    monkeypatch.setattr(gpu_run, "answers", lambda device: not is_lost)
    monkeypatch.setattr(gpu_run, "CONFORMANCE", (CASE, CASE, gpu_run.find("project-h1")))
    monkeypatch.setattr(gpu_run, "SMALL", ())
    assert gpu_run.main(["check", str(tmp_path), "--device", "cpu", "--backends", "cpu"]) == 1
    rows = json.loads((tmp_path / "check-cpu-0.json").read_text())["rows"]
    assert rows[0]["status"].startswith("wrong: CompilationError: at 3:7")
    wanted = [(CASE.name, False)] if is_lost else [(CASE.name, False), ("project-h1", True)]
    assert [(row["case"], row["status"] == "ok") for row in rows] == wanted
    assert ("nothing after this was run" in rows[0]["status"]) == is_lost


def test_a_working_device_answers():
    assert gpu_run.answers(torch.device("cpu"))


def test_a_small_case_of_each_kernel_is_right(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_run, "CONFORMANCE", ())
    assert gpu_run.main(["check", str(tmp_path), "--device", "cpu", "--backends", "cpu"]) == 0
    rows = json.loads((tmp_path / "check-cpu-0.json").read_text())["rows"]
    assert [row["case"] for row in rows] == [case.name for case in gpu_run.SMALL]


def test_a_backend_that_cannot_run_is_refused(capsys):
    name, reason = next(((n, r) for n, r in sk.backends().items() if r), (None, None))
    if name is None:
        pytest.skip("every backend can run here")
    assert gpu_run.main(["small", "--device", "cpu", "--backends", name]) == 1
    assert reason in capsys.readouterr().out


def test_a_time_limit_is_told_from_errors():
    """Also where the code inside turns the exception into one of its own."""
    with pytest.raises(TimeoutError, match=r"within 0\.01 s"), gpu_peers.within(0.01):
        try:
            time.sleep(10)
        except TimeoutError as error:
            raise RuntimeError("the compiler failed") from error
    with pytest.raises(RuntimeError, match="another"), gpu_peers.within(10):
        raise RuntimeError("another")


def test_what_is_timed_runs_inside_its_context():
    inside = []

    @contextmanager
    def around():
        inside.append(True)
        yield
        inside.pop()

    runner = Runner(lambda: list(inside), lambda: list(inside), None, None, around)
    calls = gpu_run.captured(runner, torch.device("cpu"))
    assert {mode: call() for mode, (call, _) in calls.items()} == {mode: [True] for mode in calls}


def gpu_run_script(out, tmp_path, python, gpu="exit 9"):
    """The script with stand-ins for Python and nvidia-smi, and the commands of a bare system."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, does in (("python", python), ("nvidia-smi", gpu)):
        (commands / name).write_text(f"#!/bin/sh\n{does}\n")
        (commands / name).chmod(0o755)
    for name in ("awk", "bash", "cat", "dirname", "git", "grep", "gzip", "mkdir", "mktemp", "mv",
                 "rm", "tail", "tar", "timeout", "tr", "xargs"):  # fmt: skip
        (commands / name).symlink_to(shutil.which(name))
    paths = {"PATH": str(commands), "PYTHON": "python", "CUDA_HOME": str(tmp_path)}
    device = "cpu" if gpu == "exit 9" else "cuda"
    done = subprocess.run(
        [shutil.which("bash"), str(profile.ROOT / "bench" / "gpu_run.sh"), str(out)],
        env={**os.environ, "BUILD": "0", "SHARDS": "2", "DEVICE": device, **paths},
        capture_output=True,
        text=True,
        timeout=600,
    )
    summary = json.loads((out / "summary.json").read_text()) if done.returncode != 2 else {}
    return done, {name: row["status"] for name, row in summary.items() if isinstance(row, dict)}


@pytest.mark.parametrize(
    ("python", "code", "check", "timing"),
    [
        ("exit 0", 0, "ok", "ok"),
        ('case "$*" in *check*) exit 3;; esac', 1, "failed, exit 1", "ok"),
        ('case "$*" in *time*) echo 1 >"$4"/times.json; exit 9;; esac', 1, "ok", "failed, exit 9"),
    ],
)
def test_the_gpu_script_goes_on_and_keeps_what_there_is(python, code, check, timing, tmp_path):
    out = tmp_path / "out"
    done, found = gpu_run_script(out, tmp_path, python)
    assert done.returncode == code, done.stdout + done.stderr
    absent = {"micro": "absent", "profile": "absent"}  # neither nvcc nor ncu
    assert found == {"info": "ok", "check": check, "time": timing} | absent
    times = {"times.json"} if "times" in python else set()
    assert {path.name for path in out.iterdir()} == {"summary.json", "results.tgz"} | times
    with tarfile.open(out / "results.tgz") as archive:
        assert {"logs/check.log", *(f"./{name}" for name in times)} <= set(archive.getnames())


@pytest.mark.parametrize(
    ("collects", "status"),
    [
        ("echo tests/a.py::test_a; echo 'tests/a.py::test_b[x y]'", "ok"),
        ("echo tests/a.py::test_a; exit 2", "failed, exit 1"),  # an error in another file
        ("echo no tests collected", "failed, exit 1"),
    ],
)
def test_the_gpu_script_runs_the_tests_that_are_collected(collects, status, tmp_path):
    seen = tmp_path / "seen"
    does = f"""case "$*" in
*collect-only*) {collects};;
*pytest*-v*) for last in "$@"; do :; done; echo "$last" >>{seen};;
esac"""
    _, found = gpu_run_script(tmp_path / "out", tmp_path, does, gpu="echo 9.0")
    assert found["unit_tests"] == status and found["sanitize"] == "absent"
    ran = sorted(seen.read_text().splitlines()) if seen.exists() else []
    assert ran == (["tests/a.py::test_a", "tests/a.py::test_b[x y]"] if status == "ok" else [])


def test_the_gpu_script_stops_without_an_architecture(tmp_path):
    done, _ = gpu_run_script(tmp_path / "out", tmp_path, "exit 0", gpu="echo no devices; exit 6")
    assert done.returncode == 2
    assert "such as 9.0; got: no devices" in done.stderr


def test_profile_names_parts():
    stack = [
        "strnn::cpu::avx512::store(float*, float __vector(16))",
        "void strnn::cpu::avx512::SweepForwardKernel<float>::finish<(lambda)#1>(long) const",
    ]
    names = [profile.short_name(line) for line in stack]
    assert names == ["store", "finish"] and profile.part_of(names) == "activation, stores"
    assert profile.part_of(["memcpy"]) == profile.OTHER
    sources = "".join(file.read_text() for file in (profile.ROOT / "csrc" / "cpu").glob("*.h"))
    for functions in profile.PARTS.values():
        for name in functions:
            assert re.search(rf"\b{name}\(", sources), f"csrc/cpu has no function {name}"


def test_profile_page(result, tmp_path):
    row = {
        "case": "T1",
        "mode": "inference",
        "kernel_ms": 2.0,
        "parts_ms": dict.fromkeys((*profile.PARTS, profile.OTHER), 0.0) | {"products": 1.5},
        "products_share_of_peak": 0.8,
        "loop": {"instructions": 65, "FMA": 28},
    }
    found = {"machine": result["machine"], "commit": "x", "fma_gflops": 100.0, "profile": [row]}
    (tmp_path / "sampled.json").write_text(json.dumps(found))
    report.main(["--results", str(tmp_path), "--out", str(tmp_path / "REPORT.md")])
    page = (tmp_path / "REPORT.md").read_text()
    assert "75%" in page and "65 instructions, 28 FMA" in page
    (tmp_path / "here.json").write_text(json.dumps(result))
    report.main(["--results", str(tmp_path), "--out", str(tmp_path / "REPORT.md")])
    page = (tmp_path / "REPORT.md").read_text()
    assert "products take 75% of the time, at 80% of the FMA peak; then come" in page

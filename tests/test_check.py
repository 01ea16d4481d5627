"""`python -m strnn_kernels.check`: what is right, wrong, not taken and not there."""

import os
from dataclasses import replace

import pytest
import torch

import strnn_kernels as sk
from strnn_kernels import check, testing

CASES = (testing.find("diamond"), testing.find("project-h1"))
needs_cpu = pytest.mark.skipif(
    sk.backends()["cpu"] is not None, reason="backend cpu was not compiled"
)


def row(**changes):
    return replace(check.Row("cpu", None, torch.float32), **changes)


@needs_cpu
def test_counts_what_is_right():
    found = row()
    check.check([found], CASES)
    assert found.counts == {"right": 2} and not found.reports


@needs_cpu
def test_names_what_is_wrong(monkeypatch):
    results = testing.Case.results
    monkeypatch.setattr(
        testing.Case, "results",
        lambda self, module, *a, **k: {
            n: v * (1.1 if module is check.sk else 1)
            for n, v in results(self, module, *a, **k).items()
        },
    )  # fmt: skip
    found = row()
    check.check([found], CASES[:1])
    assert found.counts == {"wrong": 1}
    assert "cpu float32, diamond: AssertionError" in found.reports[0]


def test_a_case_that_a_family_does_not_take_is_not_wrong(monkeypatch):
    def refuse(*_, **__):
        assert os.environ["STRNN_CUDA_FAMILY"] == "cluster"
        raise RuntimeError(f"strnn_cuda: {check.NOT_TAKEN} a sweep with H = 1")

    expected = testing.Expected.of(CASES[0], CASES[0].inputs())
    monkeypatch.setattr(testing.Case, "results", refuse)
    found = row(family="cluster")
    found.run(CASES[0], expected, CASES[0].inputs())
    assert found.counts == {"not taken": 1}
    assert "STRNN_CUDA_FAMILY" not in os.environ


def test_what_there_is_no_time_for_is_said():
    found = row()
    check.check([found], CASES, seconds=-1)
    assert found.counts == {"not reached": 2}


def test_a_backend_that_cannot_run_is_named_with_its_reason(capsys, monkeypatch):
    monkeypatch.setattr(check.sk, "backends", lambda: {"cuda": "no GPU", "reference": None})
    assert check.main() == 1  # nothing was checked
    text = capsys.readouterr().out
    assert "cannot run here: no GPU" in text and "0 right" in text.splitlines()[-1]

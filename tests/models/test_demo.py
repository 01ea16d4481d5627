"""The rule of the demo's clips, and a quick run from end to end."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from strnn_models import demo


def test_the_label_of_a_clip_is_the_digit_after_its_only_zero():
    digits = demo.read_digits("cpu")
    clips, labels, shown = demo.make_clips(digits, 300, torch.Generator().manual_seed(0))
    assert clips.shape == (300, demo.MOMENTS, 1, 8, 8)
    assert torch.equal((shown == 0).sum(1), torch.ones(300, dtype=torch.long))
    moment = (shown == 0).int().argmax(1)
    assert moment.unique().tolist() == list(range(demo.FIRST, demo.LAST + 1))
    assert torch.equal(labels + 1, shown[torch.arange(300), moment + 1])
    images = {tuple(image.flatten().tolist()): n for n, image in enumerate(digits.images)}
    for clip, names in zip(clips[:20], shown[:20], strict=True):
        found = [images[tuple(image.flatten().tolist())] for image in clip]
        assert torch.equal(digits.labels[found], names)


def test_a_quick_run_reports_and_draws(tmp_path, capsys):
    demo.main(["--quick", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    report = json.loads((tmp_path / "demo.json").read_text())
    single = report["single_digits"]
    scores = f"STRNN {single['score']:.3f}, logistic regression {single['linear']:.3f}"
    for words in ("the digit right after it", "held-out score", scores):
        assert words in said
    assert "emotion" not in said.lower()
    # Which of a few images fall on the other side is decided by the rounding of the BLAS.
    assert single["linear"] == pytest.approx(0.928, abs=5e-3)
    assert len(report["clips"]["history"]) == demo.QUICK.epochs
    assert sum(map(sum, single["confusion"])) == 1797
    assert report["training_step_seconds"]["loss_difference"] < 1e-4
    names = {path.name for path in tmp_path.glob("*.png")}
    assert names == {"learning_curve.png", "confusion.png", "projections.png", "training_step.png"}

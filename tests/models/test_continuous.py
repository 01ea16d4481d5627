"""CNN-LSTM and inflated CNN against their twins, windows, post-processing and scores."""

from __future__ import annotations

import math

import pytest
import torch
from strnn_models.layers.backbone import FrameCNN
from strnn_models.layers.losses import ccc
from strnn_models.layers.postprocess import (
    PostProcessing,
    fit_postprocessing,
    overlap_average,
    predict_video,
    score_videos,
    shift,
    sliding_windows,
    smooth,
)
from strnn_models.reference import continuous as twin
from strnn_models.systems.continuous import CNNLSTM, InflatedCNN, inflate, inflate_weight
from torch import nn

import strnn_kernels as sk

LENGTHS = torch.tensor([5, 1, 3])


def clips(T=5):
    return torch.randn(3, T, 2, 6, 4, dtype=torch.float64)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("cell", ["lstm", "elman"])
def test_the_cnn_lstm_is_its_twin(small_cnn, same_gradients, lengths, cell):
    net = CNNLSTM(backbone=small_cnn, cell=cell, hidden_size=4, num_layers=2).double()
    x = clips()
    same_gradients(net, lambda x: net(x, lengths), lambda x: twin.cnn_lstm(net, x, lengths), x)


@pytest.mark.parametrize("lengths", [None, torch.tensor([5, 0, 3])])
@pytest.mark.parametrize("mode", ["mean", "center"])
@pytest.mark.parametrize("time_padding", ["replicate", "zeros"])
def test_the_inflated_cnn_is_its_twin(small_cnn, same_gradients, lengths, mode, time_padding):
    net = InflatedCNN(backbone=small_cnn, mode=mode, time_padding=time_padding).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))  # leave the point where all taps are the same
    same_gradients(
        net,
        lambda x: net(x, lengths),
        lambda x: twin.inflated_cnn(net, x, lengths),
        clips(),
    )


def two_dimensional_networks():
    trained = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2),
        nn.BatchNorm2d(4, eps=0.1),
        nn.Dropout2d(0.2),
        nn.ReLU(),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        nn.Sequential(nn.Conv2d(4, 5, 1, bias=False), nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
        nn.Conv2d(5, 6, (1, 3), dilation=2, padding=2),
        nn.AdaptiveAvgPool2d((2, 1)),
    )
    trained(10 * torch.randn(20, 2, 16, 12) + 3)  # gives the batch norm statistics of its own
    yield "layers", trained
    for norm in ("group", "batch", "none"):
        yield norm, FrameCNN(2, (4, 6), norm=norm)


@pytest.mark.parametrize("mode", ["mean", "center"])
@pytest.mark.parametrize("time", [1, 3, 5])
@pytest.mark.parametrize("name", ["layers", "group", "batch", "none"])
def test_a_still_video_gives_the_2d_output(mode, time, name):
    flat = dict(two_dimensional_networks())[name].double().eval()
    deep = inflate(flat, time, mode=mode)
    assert not deep.training
    frame = torch.randn(2, 2, 16, 12, dtype=torch.float64)
    still = frame[:, :, None].expand(-1, -1, 4, -1, -1)
    torch.testing.assert_close(deep(still), flat(frame)[:, :, None].expand(-1, -1, 4, -1, -1))


def test_zero_padding_keeps_the_fixed_point_only_inside():
    flat = FrameCNN(2, (4, 6), convs=1, norm="none").double()
    deep = inflate(flat, 3, time_padding="zeros")
    frame = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    maps = deep(frame[:, :, None].expand(-1, -1, 7, -1, -1))
    torch.testing.assert_close(maps[:, :, 2:5], flat(frame)[:, :, None].expand(-1, -1, 3, -1, -1))
    assert not torch.allclose(maps[:, :, 0], flat(frame))


def test_inflating_leaves_the_original_alone(small_cnn):
    before = {k: v.clone() for k, v in small_cnn.state_dict().items()}
    net = InflatedCNN(backbone=small_cnn)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    torch.testing.assert_close(dict(small_cnn.state_dict()), before)
    assert isinstance(small_cnn[0], nn.Conv2d)


def test_inflated_weights():
    weight = torch.randn(4, 3, 2, 2)
    mean, centre = (inflate_weight(weight, 3, mode=mode) for mode in ("mean", "center"))
    torch.testing.assert_close(mean, weight[:, :, None].expand(-1, -1, 3, -1, -1) / 3)
    assert centre[:, :, 1].equal(weight)
    assert not centre[:, :, [0, 2]].any()


def test_the_mean_sees_movement_and_the_centre_does_not_yet(small_cnn):
    moving = clips()
    stopped = moving.clone()
    stopped[:, 3:] = 0
    for mode, same in (("mean", False), ("center", True)):
        flat = FrameCNN(2, (4,), convs=1, norm="none")
        net = InflatedCNN(backbone=flat, mode=mode).double()
        assert torch.allclose(net(moving)[:, 2], net(stopped)[:, 2]) == same


@pytest.mark.parametrize("kind", ["lstm", "gru", "inflated"])
def test_gradients_of_the_input_in_eval_mode(small_cnn, kind):
    net = (
        InflatedCNN(backbone=small_cnn)
        if kind == "inflated"
        else CNNLSTM(backbone=small_cnn, cell=kind)
    )
    net = net.double().eval()
    x = clips().requires_grad_()
    net(x, LENGTHS)[:, 0].sum().backward()
    assert x.grad[:, 0].flatten(1).any(1).all()
    assert not x.grad[1, 1:].any()


def test_windows_cover_the_video_and_end_with_it():
    assert sliding_windows(10, 4, 0.5) == [0, 2, 4, 6]
    assert sliding_windows(11, 4, 0.5) == [0, 2, 4, 6, 7]
    assert sliding_windows(10, 4, 0.0) == [0, 4, 6]
    assert sliding_windows(3, 4, 0.5) == [0]
    for T in range(1, 30):
        for overlap in (0, 0.2, 0.5, 0.8, 0.99):
            starts = sliding_windows(T, 7, overlap)
            assert {t for s in starts for t in range(s, min(s + 7, T))} == set(range(T))
            assert starts == sorted(set(starts))


def test_overlaps_are_averaged():
    values = torch.tensor([[1.0, 1, 1], [4, 4, 4]])[..., None]
    wanted = torch.tensor([1, 1, 2.5, 4, 4])[:, None]
    torch.testing.assert_close(overlap_average(values, [0, 2], 5), wanted)
    with pytest.raises(sk.ArgumentError, match="do not cover 7 frames"):
        overlap_average(values, [0, 2], 7)
    with pytest.raises(sk.ArgumentError, match="do not cover"):
        overlap_average(values, [0], 3)


def test_a_video_is_read_window_by_window(small_cnn):
    video = clips(11)[0]
    net = CNNLSTM(backbone=small_cnn, hidden_size=4).double().eval()
    found = predict_video(net, video, window=4, overlap=0.5, batch_size=2)
    total, count = torch.zeros(11, 2).double(), torch.zeros(11, 1)
    for start in (0, 2, 4, 6, 7):
        total[start : start + 4] += net(video[None, start : start + 4])[0]
        count[start : start + 4] += 1
    torch.testing.assert_close(found, (total / count).detach())
    torch.testing.assert_close(predict_video(net, video, window=64), net(video[None])[0].detach())
    # What is known of each frame alone does not depend on the windows.
    known = predict_video(lambda x: x.mean((3, 4)), video, window=3, overlap=0.8)
    torch.testing.assert_close(known, video.mean((2, 3)))


def test_filters():
    x = torch.tensor([0.0, 0, 9, 0, 0, 3])
    torch.testing.assert_close(smooth(x, 3), torch.tensor([0.0, 3, 3, 3, 1, 2]))
    torch.testing.assert_close(smooth(x, 3, "median"), torch.tensor([0.0, 0, 0, 0, 0, 3]))
    assert smooth(x, 1).equal(x)
    assert shift(x, 2).equal(torch.tensor([0.0, 0, 0, 0, 9, 0]))
    assert shift(x, -2).equal(torch.tensor([9.0, 0, 0, 3, 3, 3]))
    with pytest.raises(sk.ArgumentError, match="odd"):
        smooth(x, 4)
    with pytest.raises(sk.ArgumentError, match="mean, median"):
        smooth(x, 3, "max")


def walk(T, V=2):
    return smooth(torch.randn(T, V, dtype=torch.float64).cumsum(0) / 5, 9)


def test_postprocessing_undoes_what_was_done():
    goals = [walk(150), walk(120)]
    spoilt = [
        torch.stack([0.4 * shift(g[:, 0], -6) - 1, 2 * shift(g[:, 1], 3) + 0.5], 1) for g in goals
    ]
    noisy = [s + 0.2 * torch.randn_like(s) for s in spoilt]
    fitted = fit_postprocessing(noisy, goals, widths=(3, 9), delays=(-3, 0, 3, 6))
    assert fitted.delays == (6, -3)
    assert min(fitted.widths) > 1
    before, after = score_videos(noisy, goals), score_videos([fitted(s) for s in noisy], goals)
    assert (after.pooled.ccc > 0.9).all()
    assert (after.pooled.ccc > before.pooled.ccc + 0.05).all()
    exact = PostProcessing((1, 1), (-1.0, 0.5), (2.5, 0.5), (0.0, 0.0), (6, -3))
    torch.testing.assert_close(exact(spoilt[0])[6:-6], goals[0][6:-6])


def test_perfect_traces_are_left_alone():
    goals = [walk(60), walk(50)]
    fitted = fit_postprocessing(goals, goals, delays=(2,))
    assert fitted.widths == (1, 1)
    assert fitted.delays == (0, 0)
    torch.testing.assert_close(fitted(goals[0]), goals[0])


def test_masked_frames_do_not_count():
    goals, traces = [walk(60), walk(40)], [walk(60), walk(40)]
    masks = [torch.rand(60) < 0.5, torch.rand(40, 2) < 0.5]
    spoilt = [
        torch.where(m if m.ndim == 2 else m[:, None], g, torch.nan)
        for m, g in zip(masks, goals, strict=True)
    ]
    wanted = fit_postprocessing(traces, goals, masks)
    assert fit_postprocessing(traces, spoilt, masks) == wanted
    torch.testing.assert_close(
        score_videos(traces, spoilt, masks), score_videos(traces, goals, masks)
    )


def test_scores_per_video_and_pooled():
    goals = [walk(60), walk(40) + 5]
    traces = [g.mean(0) + 0.01 * torch.randn_like(g) for g in goals]  # knows videos, not moments
    scores = score_videos(traces, goals)
    for v, (p, g) in enumerate(zip(traces, goals, strict=True)):
        torch.testing.assert_close(
            scores.videos[v].ccc, ccc(p[None], g[None], convention="sample")[0]
        )
    torch.testing.assert_close(scores.mean.ccc, (scores.videos[0].ccc + scores.videos[1].ccc) / 2)
    torch.testing.assert_close(
        scores.pooled.mse, ((torch.cat(traces) - torch.cat(goals)) ** 2).mean(0)
    )
    both = torch.stack([torch.cat(traces)[:, 0], torch.cat(goals)[:, 0]])
    torch.testing.assert_close(scores.pooled.pcc[0], torch.corrcoef(both)[0, 1])
    assert (scores.pooled.ccc > 0.8).all()
    assert (scores.mean.ccc.abs() < 0.2).all()


def test_scores_of_traces_that_do_not_move():
    moves, still = torch.tensor([0.0, 1, 0]), torch.ones(3)
    pairs = {
        "moves, still": (0.0, math.nan, 2 / 3),
        "still, still": (math.nan, math.nan, 0.0),
        "still, moves": (0.0, math.nan, 2 / 3),
        "moves, hardly": (0.0, -0.5, 1 / 3),
    }
    traces = {"moves": moves, "still": still, "hardly": torch.tensor([1e-9, 0, 0])}
    for pair, wanted in pairs.items():
        p, t = (traces[name][:, None] for name in pair.split(", "))
        found = score_videos([p], [t]).pooled
        for value, number in zip(found, wanted, strict=True):
            assert value.item() == pytest.approx(number, abs=1e-6, nan_ok=True)
    nothing = score_videos([moves[:, None]], [moves[:, None]], [torch.zeros(3, dtype=torch.bool)])
    assert all(value.isnan().all() for value in nothing.pooled)


def test_wrong_arguments_are_refused(small_cnn):
    net = InflatedCNN(backbone=small_cnn)
    with pytest.raises(sk.ArgumentError, match=r"\(B, T, C, rows, cols\)"):
        net(torch.randn(3, 2, 8, 8))
    with pytest.raises(sk.ArgumentError, match=r"0\.\.2"):
        net(torch.randn(1, 2, 2, 8, 8), torch.tensor([3]))
    with pytest.raises(sk.ArgumentError, match="Linear has no 3-D form"):
        inflate(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(3, 4)))
    with pytest.raises(sk.ArgumentError, match="InstanceNorm2d has no"):
        inflate(nn.InstanceNorm2d(3))
    with pytest.raises(sk.ArgumentError, match="time odd"):
        inflate(nn.Conv2d(1, 2, 3, padding=1), 2)
    with pytest.raises(sk.ArgumentError, match="padding='same'"):
        inflate(nn.Conv2d(1, 2, 3, padding="same"))
    with pytest.raises(sk.ArgumentError, match="mean, center"):
        inflate_weight(torch.zeros(1, 1, 3, 3), 3, mode="copy")
    with pytest.raises(sk.ArgumentError, match="replicate, zeros"):
        inflate(small_cnn, time_padding="reflect")
    with pytest.raises(sk.ArgumentError, match="pass feature_size="):
        InflatedCNN(backbone=nn.Sequential(nn.Conv2d(1, 2, 3)))
    with pytest.raises(sk.ArgumentError, match="overlap in"):
        sliding_windows(5, 2, 1.0)
    with pytest.raises(sk.ArgumentError, match=r"\(T, V\)"):
        PostProcessing((1,), (0.0,), (1.0,), (0.0,), (0,))(torch.zeros(3, 2))
    with pytest.raises(sk.ArgumentError, match="score_videos"):
        score_videos([torch.zeros(3, 2)], [torch.zeros(4, 2)])
    with pytest.raises(sk.ArgumentError, match="two frames that count"):
        fit_postprocessing([torch.zeros(3, 2)], [torch.zeros(3, 2)], [torch.zeros(3) > 0])

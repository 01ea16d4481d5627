"""A frame CNN and an IRNN over its features; `fusion` joins them with other modalities.

Ebrahimi Kahou, Michalski, Konda, Memisevic, Pal, "Recurrent Neural Networks for Emotion Recognition
in Video", ICMI 2015, doi 10.1145/2818346.2830596. "Code" below is the authors' published code.
"""

from __future__ import annotations

import torch
from strnn_models.layers.backbone import FrameEncoder, one_of, valid
from torch import Tensor, nn

import strnn_kernels as sk


class KahouCNN(nn.Sequential):
    """The frame CNN of the code, up to the features that its RNN reads.

    Crops of grey 48 x 48 faces, (frames, 1, 44, 44), give (frames, 32, 11, 11), before the ReLU:
    3872 features. Its bias comes after the pooling, which is the same as before it.

    Args:
        in_channels: 1, grey.
        dropout: after the first stage; 0.25 (code; there it scales at test time, here in training).

    Source: the layer "bias1" in CNN/emoti_convnet_flip.py of the code.
    """

    def __init__(self, in_channels: int = 1, *, dropout: float = 0.25) -> None:
        super().__init__(
            nn.Conv2d(in_channels, 32, 9, padding=4),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(32, 32, 5, padding=2),
            nn.MaxPool2d(2),
        )
        self.in_channels, self.out_channels, self.stride = in_channels, 32, 4
        self.feature_size = 32 * 11 * 11
        _zero_biases(self)


class KahouFrameClassifier(nn.Module):
    """The whole frame CNN of the code, as it is trained on single faces before the RNN is.

    Args:
        num_classes: 7 (code: Angry, Disgust, Fear, Happy, Sad, Surprise, Neutral).
        in_channels: 1, grey.
        dropout: after each stage; 0.25 (code).

    The code trains it by SGD, rate 0.001, momentum 0.9, batches of 128, on what `crop_and_flip`
    makes of single faces.
    """

    def __init__(
        self, num_classes: int = 7, in_channels: int = 1, *, dropout: float = 0.25
    ) -> None:
        super().__init__()
        self.features = KahouCNN(in_channels, dropout=dropout)
        self.classifier = nn.Sequential(
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(64 * 5 * 5, num_classes),
        )
        _zero_biases(self.classifier)

    def forward(self, frames: Tensor) -> Tensor:
        """Class scores (frames, num_classes) of (frames, C, 44, 44)."""
        if frames.ndim != 4 or frames.shape[2:] != (44, 44):
            raise sk.ArgumentError(
                "KahouFrameClassifier: frames must have shape (frames, C, rows, cols) = "
                f"(.., {self.features.in_channels}, 44, 44), got {tuple(frames.shape)}"
            )
        return self.classifier(self.features(frames))


class CNNIRNN(nn.Module):
    """Classes of clips: features of frames, h[t] = relu(W_in x[t] + W h[t-1]), o[t] = V h[t] + c.

    Args:
        num_classes: 7 (code).
        hidden_size: H; 200 (code).
        backbone: frames to maps or vectors; None: the compact `FrameCNN`. The code's is
            `KahouCNN()`, with pool="flatten".
        pool: "mean" or "flatten", see `FrameEncoder`.
        feature_size: F, see `FrameEncoder`.
        window: frames joined into one input x[t]; 1 (code).
        readout: what a clip is classified by: "last", the last valid frame (code, in training), or
            "mean", the mean of the probabilities of the valid frames (a helper in the code).
        recurrent_scale: W starts as this times the identity; 1 (code; Le et al., arXiv 1504.00941).
        input_std: W_in starts normal with this deviation; 0.001 (code).
        dropout: of the input of the RNN; 0 (code).

    Raises:
        ArgumentError: an option is unknown.

    There is no hidden bias (code). The code trains by SGD, rate 0.005, batches of 64, clipping the
    gradient's norm to 1; its loss is that of the last frame divided by the length of the longest
    clip, here it is not divided. Its clipping of probabilities to [1e-6, 1 - 1e-6] is left out: it
    stops the gradient.
    """

    def __init__(
        self,
        num_classes: int = 7,
        hidden_size: int = 200,
        *,
        backbone: nn.Module | None = None,
        pool: str = "mean",
        feature_size: int | None = None,
        window: int = 1,
        readout: str = "last",
        recurrent_scale: float = 1.0,
        input_std: float = 1e-3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        one_of("CNNIRNN", "readout", readout, ("last", "mean"))
        if window < 1:
            raise sk.ArgumentError(f"CNNIRNN: window must be at least 1, got {window}")
        self.window, self.readout = window, readout
        self.encoder = FrameEncoder(backbone, pool=pool, feature_size=feature_size)
        self.dropout = nn.Dropout(dropout)
        self.rnn = sk.TemporalRNN(
            window * self.encoder.feature_size,
            hidden_size,
            activation="relu",
            bias=False,
            bidirectional=False,
        )
        self.output = nn.Linear(hidden_size, num_classes)
        weights = dict(self.rnn.named_parameters())
        nn.init.normal_(weights["weight_ih_l0"], std=input_std)
        with torch.no_grad():
            weights["weight_hh_l0"].copy_(recurrent_scale * torch.eye(hidden_size))
        nn.init.uniform_(self.output.weight, -0.01, 0.01)  # the code's start
        nn.init.zeros_(self.output.bias)

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, *, readout: str | None = None
    ) -> Tensor:
        """Log-probabilities of the classes, (B, num_classes).

        Args:
            x: clips (B, T, C, rows, cols), or stored features (B, T, F).
            lengths: int (B,), the valid frames of each clip; None: all.
            readout: "last", "mean" or "vote" (the share of valid frames that a class wins, which
                has no gradient); None: the constructor's.

        Raises:
            ArgumentError: a shape does not fit, or T is less than the window.
        """
        scores, lengths = self.frame_scores(x, lengths)
        return clip_log_probs(scores, lengths, self.readout if readout is None else readout)

    def frame_scores(
        self, x: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Scores o of each step, (B, T - window + 1, num_classes), and how many steps are valid."""
        features = self.encoder(x, lengths)
        W, T = self.window, features.shape[1]
        if W > T:
            raise sk.ArgumentError(
                f"CNNIRNN: x must have at least window = {W} frames, got T = {T}"
            )
        if W > 1:
            features = features.unfold(1, W, 1).mT.flatten(2)
            lengths = None if lengths is None else (lengths - W + 1).clamp(min=0)
        states, _ = self.rnn(self.dropout(features), lengths=lengths)
        return self.output(states), lengths


def clip_log_probs(scores: Tensor, lengths: Tensor | None, readout: str) -> Tensor:
    """Log-probabilities of clips (B, K), float32 at least, from scores of their frames (B, T, K).

    Args:
        scores: of the frames.
        lengths: int (B,), valid frames; a clip without any is classified by its first.
        readout: "last", "mean" or "vote", see `CNNIRNN`; a tie of votes stays a tie.

    Raises:
        ArgumentError: readout is unknown, or a shape does not fit.
    """
    one_of("clip_log_probs", "readout", readout, ("last", "mean", "vote"))
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    B, T, K = scores.shape
    if lengths is None:
        lengths = torch.full((B,), T, device=scores.device)
    lengths = torch.as_tensor(lengths).clamp(min=1)
    inside = valid("clip_log_probs", lengths, scores)
    log_probs = scores.log_softmax(2)
    if readout == "last":
        return log_probs[torch.arange(B, device=scores.device), lengths.to(scores.device) - 1]
    if readout == "vote":
        wins = nn.functional.one_hot(scores.argmax(2), K) * inside[..., None]
        return (wins.sum(1) / inside.sum(1, keepdim=True)).to(scores).log()
    log_probs = log_probs.masked_fill(~inside[..., None], -torch.inf)
    return log_probs.logsumexp(1) - inside.sum(1, keepdim=True).log()


def crop_and_flip(frames: Tensor, size: int = 44, *, training: bool) -> Tensor:
    """Square crops of faces: in training one random window for all, and half of them mirrored.

    Args:
        frames: (frames, C, rows, cols).
        size: rows and cols of the crop; 44 of 48 (code).
        training: otherwise the window in the centre, nothing mirrored.

    Raises:
        ArgumentError: the frames are smaller than the crop.
    """
    rows, cols = frames.shape[-2:]
    if min(rows, cols) < size:
        raise sk.ArgumentError(
            f"crop_and_flip: frames must have at least {size} rows and cols, got {rows} and {cols}"
        )
    spare = (rows - size, cols - size)
    top, left = (int(torch.randint(n + 1, ())) if training else n // 2 for n in spare)
    frames = frames[..., top : top + size, left : left + size]
    if not training:
        return frames
    mirrored = torch.rand(len(frames), 1, 1, 1, device=frames.device) < 0.5
    return torch.where(mirrored, frames.flip(-1), frames)


def _zero_biases(module: nn.Module) -> None:
    # torch.nn's own start of the weights, uniform in +-1 / sqrt(inputs), is the code's already.
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)

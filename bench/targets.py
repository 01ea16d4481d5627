"""What the rows must show: ratios to peers, and shares of one core's FMA peak."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """Two bars for a ratio: `least` must hold, `goal` is what tuning aims at."""

    least: float
    goal: float

    def __str__(self) -> str:
        return f"{self.least:g}, goal {self.goal:g}"


RATIO = {
    ("S1", "wavefront", "inference"): Target(8, 12),
    ("S1", "wavefront", "training"): Target(10, 16),
    ("S1", "cell loop", "inference"): Target(200, 320),
    ("S1", "cell loop", "training"): Target(200, 300),
    ("S2", "wavefront", "inference"): Target(2.5, 3.4),
    ("S2", "wavefront", "training"): Target(6, 11),
    ("S3", "wavefront", "inference"): Target(2, 2.8),
    ("S3", "wavefront", "training"): Target(3, 4.5),
    ("T1", "nn.RNN", "inference"): Target(6, 9),
    ("T1", "nn.RNN", "training"): Target(10, 16),
    ("T2", "nn.RNN", "inference"): Target(1.8, 2.5),
    ("T2", "nn.RNN", "training"): Target(1.8, 2.3),
    ("T3", "nn.RNN", "inference"): Target(1.6, 2.1),
    ("T3", "nn.RNN", "training"): Target(2.5, 3.6),
    ("T4", "nn.RNN", "inference"): Target(4, 4),
    ("T4", "nn.RNN", "training"): Target(4, 4),
    # Whole modules; in inference against the better of the two peers, so against both.
    ("T5", "nn.RNN", "inference"): Target(1.2, 2),
    ("T5", "onnx runtime", "inference"): Target(1.2, 2),
    ("G1", "nn.GRU", "inference"): Target(2.3, 3),
    ("G1", "onnx runtime", "inference"): Target(2.3, 3),
    ("G1", "nn.GRU", "training"): Target(4, 4),
    ("G2", "nn.GRU", "inference"): Target(1.6, 1.8),
    ("G2", "onnx runtime", "inference"): Target(1.6, 1.8),
    ("G2", "nn.GRU", "training"): Target(3.2, 3.2),
    ("G3", "nn.GRU", "inference"): Target(1.35, 1.5),
    ("G3", "onnx runtime", "inference"): Target(1.35, 1.5),
    ("G3", "nn.GRU", "training"): Target(3, 3),
    ("G4", "nn.GRU", "inference"): Target(1.5, 1.5),
    ("G4", "nn.GRU", "training"): Target(3, 3),
    ("G5", "nn.GRU", "inference"): Target(1.3, 2),
    ("G5", "onnx runtime", "inference"): Target(1.3, 2),
    ("L1", "nn.LSTM", "inference"): Target(1.7, 2.2),
    ("L1", "onnx runtime", "inference"): Target(1.7, 2.2),
    ("L1", "nn.LSTM", "training"): Target(1.8, 1.8),
    ("L2", "nn.LSTM", "inference"): Target(1.15, 1.3),
    ("L2", "onnx runtime", "inference"): Target(1.15, 1.3),
    ("L2", "nn.LSTM", "training"): Target(1.15, 1.4),
    ("L3", "nn.LSTM", "inference"): Target(1.05, 1.15),
    ("L3", "onnx runtime", "inference"): Target(1.05, 1.15),
    ("L3", "nn.LSTM", "training"): Target(1.3, 1.3),
    ("L4", "nn.LSTM", "inference"): Target(1.5, 1.5),
    ("L4", "nn.LSTM", "training"): Target(3, 3),
    ("L5", "nn.LSTM", "inference"): Target(1.15, 1.6),
    ("L5", "onnx runtime", "inference"): Target(1.15, 1.6),
}
SHARE_OF_PEAK = {
    ("S1", "inference"): 0.50,
    ("S1", "training"): 0.45,
    ("S2", "inference"): 0.50,
    ("S2", "training"): 0.58,
    ("S3", "inference"): 0.65,
    ("S3", "training"): 0.73,
    ("T1", "inference"): 0.40,
    ("T1", "training"): 0.40,
    ("T2", "inference"): 0.60,
    ("T2", "training"): 0.60,
    ("T3", "inference"): 0.75,
    ("T3", "training"): 0.75,
}

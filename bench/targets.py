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

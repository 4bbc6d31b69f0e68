"""How much each part of the benchmark measures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Sizes of one run of the benchmark.

    Attributes
    ----------
    rows, large_rows : pictures of the random feature databases
    queries : queries at once
    clusters : of k-means
    photos : pictures of an extraction
    backbone, side : the network, and the side of its input in px
    batch, metric_batch : pictures a training step for cross entropy and for the metric loss
    epochs : of the training
    steps : training steps of one timing
    batches : batches of one timing of the network alone
    evaluated : queries and gallery pictures of an evaluation
    rounds : interleaved runs whose median counts
    """

    rows: int = 139_709
    large_rows: int = 10_000_000
    queries: int = 1000
    clusters: int = 50
    photos: int = 4096
    backbone: str = "resnet50"
    side: int = 224
    batch: int = 16
    metric_batch: int = 16
    epochs: int = 10
    steps: int = 20
    batches: int = 48
    evaluated: tuple[int, int] = (14_218, 12_612)
    rounds: int = 7


CPU = Sizes()
GPU = Sizes(photos=40_960, batch=64, steps=100, batches=100)
TINY = Sizes(
    rows=2000, large_rows=3000, queries=20, clusters=4, photos=96, backbone="resnet18", side=128,
    batch=4, metric_batch=8, steps=2, batches=2, evaluated=(30, 40), rounds=1,
)  # fmt: skip

"""Training on CUDA, by fake tensors: everything a step and a validation use lies on the device.

Seen to fail with the palette's table on the CPU (`Palette()` without `to_device` in `Trainer`),
with `TrainingLoss` not moved (Proxy-Anchor's proxies), with the labels not moved in `predict`, and
with `torch.zeros(())` as the metric loss of a step without one.
"""

import itertools
from pathlib import Path

import pytest
import torch

from config import Config
from net import Architecture, initial_net
from network.distributed import Distributed
from pictures.splits import read_splits
from tests.fake_cuda import pictures
from training.loop import Trainer
from training.validation import loss_and_accuracy, retrieval_score

TINY = {"CATEGORIES": 20, "IMG_SIZE": 40, "CROP_SIZE": 32, "NUM_WORKERS": 0}
TINY |= {"TRAIN_BATCH_SIZE": 6, "TRIPLET_BATCH_SIZE": 8, "ENABLE_INSHOP_DATASET": True}


def trainer_on(device: torch.device, base: Path, amp: torch.dtype | None, **settings) -> Trainer:
    config = Config(DATASET_BASE=base, **TINY, **settings)
    splits = read_splits(base, 20, True, config.VAL_SHARE)
    names = splits.validation.category_names
    network = Architecture("resnet18", 32, names, 40, 32, config.POOLING, config.NORMALIZE)
    net = initial_net(network, "none").to(device)
    return Trainer(config, splits, net, device, amp, Distributed())


def labels(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int64)


@pytest.mark.parametrize(
    ("recipe", "metric", "amp"),
    [
        *itertools.product(
            ("modern", "original"),
            ("proxy_anchor", "batch_hard", "triplet", "none"),
            (torch.bfloat16,),
        ),
        ("modern", "proxy_anchor", torch.float16),
        ("original", "triplet", torch.float16),
        ("modern", "proxy_anchor", None),
    ],
)
def test_a_step(
    fake_cuda: torch.device, drawn: Path, recipe: str, metric: str, amp: torch.dtype | None
) -> None:
    """Both recipes with every metric loss; original: sampled triplets instead of `triplet`."""
    loss = {"TRIPLET_WEIGHT": 0} if metric == "none" else {"METRIC_LOSS": metric}
    trainer = trainer_on(fake_cuda, drawn, amp, RECIPE=recipe, FREEZE_PARAM="false", **loss)
    assert trainer.scaler.is_enabled() == (amp == torch.float16)
    assert bool(trainer.optimizer.param_groups[0].get("fused")) == (recipe == "modern")
    trainer.net.train()
    count = trainer.batches.size(0)
    losses = trainer.step(pictures(count, 32), labels(count), labels(count), count)
    assert {value.device for value in losses.values()} == {fake_cuda}
    unused = {name for name, value in trainer.net.named_parameters() if value.grad is None}
    of_items_alone = {"fc.weight", "fc.bias"} if (recipe, metric) == ("modern", "none") else set()
    assert unused == of_items_alone
    grads = [value.grad for value in trainer.net.parameters() if value.grad is not None]
    assert {grad.device for grad in grads} == {fake_cuda}


@pytest.mark.parametrize("weight", [0.0, 4.0])
@pytest.mark.parametrize("by_item", [False, True])
def test_a_validation(fake_cuda: torch.device, drawn: Path, weight: float, by_item: bool) -> None:
    trainer = trainer_on(fake_cuda, drawn, torch.bfloat16)
    batch = (pictures(5, 32), labels(5), labels(5))
    predictions = trainer._predict([batch, batch])
    assert predictions.embedding.shape == (10, 32)
    assert {rows.device for rows in predictions} == {fake_cuda}
    loss_and_accuracy(predictions, Distributed())
    score, queries = retrieval_score(predictions, 10, weight, by_item, Distributed())
    assert queries == 10
    assert 0 <= score <= 1

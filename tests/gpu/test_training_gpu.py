"""Training on a CUDA device: the scripts one after another, fp16, resume, nccl."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import feature_extractor
import kmeans
import train
from net import read_checkpoint
from tests.conftest import ROOT, run
from training.loop import Trainer

TINY = "--backbone resnet18 --pretrained none --img-size 72 --crop-size 64 --inter-dim 32".split()
TINY += "--train-batch-size 16 --triplet-batch-size 8 --test-interval 3 --dump-interval 2".split()
TINY += "--log-interval 1 --num-workers 2 --enable-inshop-dataset true".split()


@pytest.fixture
def base(drawn: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "data", copy_function=os.link))


def trained(base: Path, *flags: str, epoch: int = 1) -> dict[str, torch.Tensor]:
    """The weights of an epoch, 0 before the first, after training on the GPU."""
    train.main(["--dataset-base", str(base), "--device", "cuda", *TINY, *flags])
    return read_checkpoint(base / f"models/model_{epoch}_final.pth.tar")["state_dict"]


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def test_the_scripts_one_after_another(base: Path) -> None:
    """One epoch; then features, clusters and a query on CUDA are those of the CPU."""
    trained(base, "--epoch", "1")
    found = {}
    for device in ("cuda", "cpu"):
        flags = ["--dataset-base", str(base), "--device", device]
        extract = [*flags, "--num-workers", "2", "--color-top-n", "4"]
        feature_extractor.main([*extract, "--enable-inshop-dataset", "true"])
        found[device] = [np.load(base / f"{name}.npy") for name in ("all_feat", "all_palette_feat")]
        kmeans.main(["--dataset-base", str(base), "--n-clusters", "4"])
        query = base / (base / "all_feat.list").read_text().splitlines()[0]
        answer = run("retrieval.py", query, *flags, "--json", "--with-own").stdout
        assert query.name in answer
    for on_cuda, on_cpu in zip(*found.values(), strict=True):
        assert cosines(on_cuda, on_cpu).min() > 0.99


@pytest.mark.parametrize("recipe", ["modern", "original"])
def test_one_epoch_in_float32_is_that_of_the_cpu(base: Path, recipe: str) -> None:
    """All weights change in the same direction, and the frozen backbone not at all.

    AdamW makes a step of the full size of the smallest gradient, whose sign is that of a rounding
    error: noise of 1e-3 in the pictures leaves cosines of 0.998 of the changes on a CPU, but
    single weights differ as much as they change.
    """
    flags = ["--amp", "off", "--recipe", recipe, "--freeze-param", "true"]
    weights = {}
    for device in ("cuda", "cpu"):
        shutil.rmtree(base / "models", ignore_errors=True)
        for epoch in (0, 1):
            last = ["--epoch", str(epoch), "--device", device]
            weights[device, epoch] = trained(base, *flags, *last, epoch=epoch)
    for key, start in weights["cpu", 0].items():
        assert torch.equal(weights["cuda", 0][key], start)
        own, other = (weights[device, 1][key] - start for device in ("cuda", "cpu"))
        if key.startswith("backbone."):
            assert not own.any()
            assert not other.any()
        else:
            assert other.any()
            assert torch.cosine_similarity(own.flatten(), other.flatten(), dim=0) > 0.99


def test_fp16_with_a_scaled_loss(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scales = []
    save = Trainer._save

    def record(trainer: Trainer, finished: bool = False) -> None:
        scales.append(trainer.scaler.get_scale())
        save(trainer, finished)

    monkeypatch.setattr(Trainer, "_save", record)
    weights = trained(base, "--epoch", "1", "--amp", "fp16")
    assert scales
    assert all(scale > 1 for scale in scales)
    assert all(bool(weight.isfinite().all()) for weight in weights.values())


class StoppedError(Exception):
    """Instead of a kill."""


@pytest.mark.parametrize("cards", [1, 4])
def test_a_stopped_run_continues(base: Path, monkeypatch: pytest.MonkeyPatch, cards: int) -> None:
    """Also one of an earlier version, whose file has the random states of four cards."""
    save = Trainer._save

    def stop(trainer: Trainer, finished: bool = False) -> None:
        save(trainer, finished)
        raise StoppedError

    monkeypatch.setattr(Trainer, "_save", stop)
    with pytest.raises(StoppedError):
        trained(base, "--epoch", "2")
    monkeypatch.undo()
    point = base / "models/checkpoint.pth.tar"
    content = torch.load(point, weights_only=True)
    content["cuda_rng"] *= cards
    torch.save(content, point)
    trained(base, "--epoch", "2", "--resume")
    assert read_checkpoint(point)["finished"]


def test_one_process_with_nccl(base: Path) -> None:
    """DistributedDataParallel, collectives and synchronised batch norms, by torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += ["1", str(ROOT / "train.py"), "--dataset-base", str(base), "--device", "cuda"]
    subprocess.run([*command, *TINY, "--epoch", "2"], check=True, timeout=300)
    assert (base / "models/model_2_final.pth.tar").exists()


def test_too_large_a_batch_names_the_setting(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: object) -> None:
        torch.empty(1 << 50, device="cuda")

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(train.UserError, match="TRAIN_BATCH_SIZE or TRIPLET_BATCH_SIZE"):
        trained(base, "--epoch", "1")

"""Training: the freeze, what a run writes, and that a kill costs nothing."""

import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import data
import train
from net import load_net, read_checkpoint
from tests.conftest import Run, run
from training.loop import Trainer
from utils import UserError

SMALL = "--backbone efficientnet_b0 --pretrained none --img-size 40 --crop-size 32".split()
SMALL += "--train-batch-size 8 --triplet-batch-size 4 --test-interval 4 --log-interval 1".split()
SMALL += "--recipe original --lr 0.01 --momentum 0.9 --amp off".split()


@pytest.fixture
def base(drawn: Path, tmp_path: Path) -> Path:
    """A data set of its own for each test; the pictures are linked."""
    copy = tmp_path / "data"
    shutil.copytree(drawn, copy, copy_function=os.link)
    return copy


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path)["state_dict"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], prefix: str = "") -> bool:
    return all(torch.equal(a[key], b[key]) for key in a if key.startswith(prefix))


@pytest.mark.parametrize("recipe", ["original", "modern"])
def test_a_killed_run_ends_with_the_same_weights(base: Path, tmp_path: Path, recipe: str) -> None:
    """Guards the seeds of each sample, the generator's state and the optimizer's in checkpoints.

    EfficientNet's stochastic depth draws from the global generator in every step.
    """
    other = tmp_path / "killed"
    shutil.copytree(base, other, copy_function=os.link)
    flags = [*SMALL, "--epoch", "2", "--enable-inshop-dataset", "--dump-interval", "3"]
    flags += ["--recipe", recipe]
    run("train.py", "--dataset-base", base, *flags, "--num-workers", 0)

    killed = Run(tmp_path / "log", "train.py", "--dataset-base", other, *flags, "--num-workers", 2)
    point = other / "models" / "checkpoint.pth.tar"
    deadline = time.monotonic() + 120
    while not point.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.kill()
    progress = read_checkpoint(point)["progress"]
    assert progress["epoch"] == 1
    assert progress["step"] > 0

    refused = run("train.py", "--dataset-base", other, *flags, check=2)
    assert "--resume" in refused.stderr
    changed = run("train.py", "--dataset-base", other, *flags, "--lr", 0.1, "--resume", check=2)
    assert "LR=0.01" in changed.stderr
    resumed = run("train.py", "--dataset-base", other, *flags, "--resume", "--num-workers", 1)
    assert f"resumed: epoch 1, step {progress['step']}" in resumed.stdout

    for name in ("model_1_final.pth.tar", "model_2_final.pth.tar", "model_best.pth.tar"):
        mine, undisturbed = other / "models" / name, base / "models" / name
        assert same(weights(mine), weights(undisturbed)), name
        assert mine.read_bytes() == undisturbed.read_bytes(), name


@pytest.mark.parametrize(("cosine", "rate"), [("false", "0.002"), ("true", "0.005")])
def test_both_triplet_losses_fall_and_the_curves_are_there(
    shared: Path, tmp_path: Path, cosine: str, rate: str, capsys: pytest.CaptureFixture
) -> None:
    """The heads alone, on real photos and weights: enough to see whether the loss leads down."""
    base = tmp_path / "men"
    photos = str(shared / "inshop-men" / "img" / "MEN")
    data.main(["import", photos, "--item-level", "--dataset-base", str(base)])
    weights = str(shared / "weights" / "mobilenet_v2-imagenet-features.pth")
    flags = ["--backbone", "mobilenet_v2", "--pretrained", weights, "--freeze-param", "true"]
    flags += ["--recipe", "original"]
    flags += "--img-size 72 --crop-size 64 --epoch 4 --momentum 0.9 --train-batch-size 16".split()
    flags += "--triplet-batch-size 16 --num-workers 0 --log-interval 1".split()
    flags += ["--enable-triplet-with-cosine", cosine, "--lr", rate]
    train.main(["--dataset-base", str(base), "--enable-inshop-dataset", *flags])
    assert "best: epoch" in capsys.readouterr().out
    (folder,) = (base / "models" / "tensorboard").iterdir()
    curves = EventAccumulator(str(folder)).Reload()
    names = {"train/loss", "train/cross entropy", "train/metric", "train/accuracy"}
    names |= {"learning rate", "validation/cross entropy", "validation/accuracy"}
    assert names <= set(curves.Tags()["scalars"])
    triplet = [point.value for point in curves.Scalars("train/metric")]
    quarter = len(triplet) // 4
    assert sum(triplet[-quarter:]) < 0.9 * sum(triplet[:quarter])


def test_freeze_param(base: Path, capsys: pytest.CaptureFixture) -> None:
    """true keeps the backbone as it was, batch norms included; auto unfreezes it in the run."""
    models = base / "models"
    flags = ["--dataset-base", str(base), *SMALL, "--num-workers", "0"]
    train.main([*flags, "--epoch", "0"])
    start = weights(models / "model_0_final.pth.tar")
    train.main([*flags, "--epoch", "1", "--freeze-param", "true"])
    frozen = weights(models / "model_1_final.pth.tar")
    assert same(start, frozen, "backbone.")
    assert not same(start, frozen, "fc")
    capsys.readouterr()
    train.main([*flags, "--epoch", "2", "--freeze-param", "auto"])
    assert "the backbone is trained from here on" in capsys.readouterr().out
    assert same(start, weights(models / "model_1_final.pth.tar"), "backbone.")
    assert not same(start, weights(models / "model_2_final.pth.tar"), "backbone.")


def test_the_best_epoch_retrieves_best_on_the_validation_split(base: Path) -> None:
    flags = ["--dataset-base", str(base), *SMALL, "--num-workers", "0", "--freeze-param", "false"]
    train.main([*flags, "--epoch", "3"])
    models = base / "models"
    results = [
        read_checkpoint(models / f"model_{epoch}_final.pth.tar")["validation"]
        for epoch in (1, 2, 3)
    ]
    for result in results:
        assert result["score"] == result["category"]  # no items here
    best = max(results, key=lambda result: (result["score"], -result["loss"]))
    name = f"model_{best['epoch']}_final.pth.tar"
    assert (models / "model_best.pth.tar").read_bytes() == (models / name).read_bytes()
    net = load_net(models / "model_best.pth.tar")
    assert not net.training
    assert net.architecture.categories[16] == "Tank"
    assert net.architecture.crop_size == 32


def test_the_untrained_network_takes_no_best_mark_from_a_trained_one(base: Path) -> None:
    flags = ["--dataset-base", str(base), *SMALL, "--num-workers", "0"]
    best = base / "models" / "model_best.pth.tar"
    train.main([*flags, "--epoch", "0"])
    untrained = best.read_bytes()
    train.main([*flags, "--epoch", "1"])
    trained = best.read_bytes()
    assert trained != untrained
    train.main([*flags, "--epoch", "0"])
    assert best.read_bytes() == trained
    best.write_bytes(untrained)  # whatever has happened to it, a resumed run marks it again
    train.main([*flags, "--epoch", "1", "--resume"])
    assert best.read_bytes() == trained


def test_untrained_network_of_real_weights_without_fc(base: Path, shared: Path) -> None:
    """--inter-dim 0 gives the pooled conv map of the given weights itself."""
    file = shared / "weights" / "mobilenet_v2-imagenet-features.pth"
    flags = ["--backbone", "mobilenet_v2", "--pretrained", str(file), "--crop-size", "64"]
    flags += ["--epoch", "0", "--inter-dim", "0", "--pooling", "avg"]
    x = torch.randn(2, 3, 64, 64)
    for recipe in ("original", "modern"):
        train.main(["--dataset-base", str(base), *flags, "--recipe", recipe])
        net = load_net(base / "models" / "model_best.pth.tar")
        _, embedding, conv_map = net(x)
        assert embedding.shape == (2, 1280)
        pooled = conv_map.mean((2, 3))
        expected = pooled if recipe == "original" else 10 * pooled / pooled.norm(dim=1)[:, None]
        torch.testing.assert_close(embedding, expected)
    given = torch.load(file, weights_only=True)
    assert torch.equal(net.backbone[0][0].weight, given["features.0.0.weight"])


def test_a_loss_that_is_no_number_stops_the_run(base: Path) -> None:
    flags = ["--dataset-base", str(base), *SMALL, "--lr", "1e30", "--num-workers", "0"]
    with pytest.raises(UserError, match=r"the loss is (nan|inf|-inf) .* lower LR"):
        train.main([*flags, "--freeze-param", "false"])


def test_resume_never_takes_up_the_run_before(base: Path, capsys: pytest.CaptureFixture) -> None:
    """One that ended, if the last one was stopped before it wrote anything."""
    flags = ["--dataset-base", str(base), *SMALL, "--epoch", "1", "--num-workers", "0"]
    train.main(flags)
    with pytest.raises(UserError, match="the loss is"):
        train.main([*flags, "--lr", "1e30", "--freeze-param", "false"])
    capsys.readouterr()
    train.main([*flags, "--lr", "0.02", "--resume"])
    assert "epoch 1/1: validation loss" in capsys.readouterr().out


def test_an_unreadable_picture_is_named_in_one_line(base: Path) -> None:
    """Also from a process that reads pictures: its error arrives with a traceback inside."""
    for picture in (base / "img").rglob("*.jpg"):
        content = picture.read_bytes()
        picture.unlink()
        picture.write_bytes(content[: len(content) // 2])
    stopped = run("train.py", "--dataset-base", base, *SMALL, "--num-workers", 1, check=2)
    last = stopped.stderr.strip().splitlines()[-1]
    assert last.startswith("train.py: ")
    assert "img_0000000" in last
    assert "cannot be read as a picture" in last
    assert "Traceback" not in stopped.stderr


def test_a_run_goes_on_past_a_damaged_picture_and_without_it(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """It is named; after its file is deleted, --resume says that pictures are gone and continues.

    Another category is no small change: one line says which.
    """
    for name in ("dress", "hat"):
        (tmp_path / name).mkdir()
        for photo in sorted((shared / "photos" / "train" / name).iterdir())[:12]:
            shutil.copyfile(photo, tmp_path / name / photo.name)
    damaged = sorted((tmp_path / "dress").iterdir())[5]
    damaged.write_bytes(damaged.read_bytes()[:2000])
    flags = ["--dataset-base", str(tmp_path), *SMALL, "--num-workers", "0"]
    flags += ["--freeze-param", "false", "--test-batch-size", "4"]
    train.main([*flags, "--epoch", "1"])
    err = capsys.readouterr().err
    assert err.count(f"{damaged.name}: cannot be read as a picture") == 1
    assert "pictures left out, as they cannot be read: 1\n" in err
    damaged.unlink()
    train.main([*flags, "--epoch", "2", "--resume"])
    out = capsys.readouterr().out
    assert "pictures came or went" in out
    assert "epoch 2/2" in out
    with pytest.raises(UserError, match=r"has VAL_SHARE=0\.1"):  # else it trains on its validation
        train.main([*flags, "--epoch", "3", "--val-share", "0.3", "--resume"])
    (tmp_path / "hat").rename(tmp_path / "cap")
    with pytest.raises(UserError, match="has other categories; undo that"):
        train.main([*flags, "--epoch", "3", "--resume"])
    (tmp_path / "cap").rename(tmp_path / "hat")
    point = tmp_path / "models" / "checkpoint.pth.tar"
    content = torch.load(point)
    assert content["identity"].pop("VAL_SHARE") == 0.1  # as versions before did not write it
    torch.save(content, point)
    train.main([*flags, "--epoch", "2", "--resume"])


def test_the_rate_falls_to_0_though_pictures_came(
    few_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a cosine over the steps that there are now; by those before it stayed at a third."""
    base = Path(shutil.copytree(few_photos, tmp_path / "data"))
    flags = ["--dataset-base", str(base), *SMALL, "--num-workers", "0", "--optimizer", "adamw"]
    flags += ["--freeze-param", "false", "--epoch", "3", "--test-batch-size", "4"]
    epoch = Trainer._epoch

    def stopped(trainer: Trainer) -> None:
        if trainer.progress.epoch == 2:
            raise KeyboardInterrupt
        epoch(trainer)

    monkeypatch.setattr(Trainer, "_epoch", stopped)
    with pytest.raises(KeyboardInterrupt):
        train.main(flags)
    monkeypatch.undo()
    for photo in [file for file in base.rglob("*.jpg") if file.parent.name == "hat"]:
        for number in range(4):
            shutil.copyfile(photo, photo.with_name(f"{number} {photo.name}"))
    train.main([*flags, "--resume"])
    curves = EventAccumulator(str(next((base / "models" / "tensorboard").iterdir()))).Reload()
    rates = [point.value for point in curves.Scalars("learning rate")]
    assert rates[-1] < 0.1 * max(rates)

"""Train the embedding network: cross entropy on categories plus triplet margin loss.

Writes model_1_final.pth.tar ... below DATASET_BASE/models, one an epoch, the best of them by
validation as model_best.pth.tar, and the curves for TensorBoard (models/tensorboard).
"""

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import Subset

from annotations import Pictures, read_inshop
from collection import merge, read_labelled
from config import parse_args
from data import PictureDataset, TrainBatches, eval_transform, make_loader, train_transform
from net import Network, amp_type, initial_net, pick_device, save_checkpoint
from trainer import BEST, RESUME_POINT, Progress, Trainer, mark_best
from utils import UserError, run_script

# A resumed run has to have the same values of these, or it would be another run.
IDENTITY = (
    "CATEGORIES", "CROP_TO_BBOX", "ENABLE_INSHOP_DATASET", "INSHOP_DATASET_PERCENT", "IMG_SIZE",
    "CROP_SIZE", "BACKBONE", "PRETRAINED", "INTER_DIM", "TRAIN_BATCH_SIZE", "TRIPLET_BATCH_SIZE",
    "TEST_BATCH_SIZE", "TEST_BATCH_COUNT", "TEST_INTERVAL", "LR", "MOMENTUM", "TRIPLET_WEIGHT",
    "ENABLE_TRIPLET_WITH_COSINE", "FREEZE_PARAM", "AMP", "SEED",
)  # fmt: skip


def read_parts(
    base: Path, categories: int, inshop: bool, val_share: float
) -> tuple[Pictures, int, Pictures]:
    """Read what is trained and validated on.

    Parameters
    ----------
    base, categories, val_share : as for `collection.read_labelled`
    inshop : add the in-shop training pictures, for triplets of items

    Returns
    -------
    The training pictures, those with a category for cross entropy first; how many those are; and
    the validation pictures.

    Raises
    ------
    UserError : a part is empty, or a list is missing or malformed
    """
    labelled = read_labelled(base, categories, val_share)
    train, held = labelled.in_partition("train"), labelled.in_partition("val")
    for name, part in (("train", train), ("val", held)):
        if not len(part):
            raise UserError(f"{base}: no picture in its {name} part; see `python data.py check`")
    pictures = merge(train, read_inshop(base).in_partition("train")) if inshop else train
    return pictures, len(train), held


def _digest(train: Pictures, held: Pictures) -> str:
    """A hash of the pictures trained and validated on, and of their labels."""
    digest = hashlib.sha256()
    for part in (train, held):
        digest.update("\n".join([*part.paths, *part.category_names, *part.items]).encode())
        digest.update(part.categories.tobytes() + part.boxes.tobytes())
    return digest.hexdigest()[:16]


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last resume point; where there is none, from the beginning",
    )


def main(argv: Sequence[str] | None = None) -> None:
    uses = ("data set", "network", "training", "machine")
    config, args = parse_args(argv, __doc__ or "", uses, _arguments)
    base, models = config.DATASET_BASE, config.DATASET_BASE / "models"
    device = pick_device(config.DEVICE)
    amp = amp_type(device, config.AMP)
    pin = device.type == "cuda"

    train, labelled, held = read_parts(
        base, config.CATEGORIES, config.ENABLE_INSHOP_DATASET, config.VAL_SHARE
    )
    torch.manual_seed(config.SEED)
    network = Network(
        config.BACKBONE,
        config.INTER_DIM,
        held.category_names,
        config.IMG_SIZE,
        config.CROP_SIZE,
    )
    net = initial_net(network, config.PRETRAINED).to(device, memory_format=torch.channels_last)
    if config.EPOCH == 0:
        path = models / "model_0_final.pth.tar"
        save_checkpoint(path, net, network)
        print(f"{path}: the untrained network")
        if not (models / RESUME_POINT).exists():  # nor is there a trained one to mark
            mark_best(path)
            print(f"{models / BEST}: the same")
        return

    batches = TrainBatches(
        train,
        labelled,
        config.TRAIN_BATCH_SIZE,
        config.TRIPLET_BATCH_SIZE if config.TRIPLET_WEIGHT else 0,
        config.INSHOP_DATASET_PERCENT if config.ENABLE_INSHOP_DATASET else 0.0,
        config.SEED,
    )
    pictures = PictureDataset(
        base, train, train_transform(config.IMG_SIZE, config.CROP_SIZE), config.CROP_TO_BBOX
    )
    validation = PictureDataset(
        base, held, eval_transform(config.IMG_SIZE, config.CROP_SIZE), config.CROP_TO_BBOX
    )
    few = min(len(held), config.TEST_BATCH_COUNT * config.TEST_BATCH_SIZE)
    rows = torch.linspace(0, len(held) - 1, few).round().int().tolist()
    workers, test_batch = config.NUM_WORKERS, config.TEST_BATCH_SIZE
    identity = {name: getattr(config, name) for name in IDENTITY}
    identity["data set"] = _digest(train, held)
    if config.FREEZE_PARAM == "auto":  # half of the epochs is its last moment to let go
        identity["EPOCH"] = config.EPOCH
    trainer = Trainer(
        models=models,
        net=net,
        network=network,
        optimizer=torch.optim.SGD(net.parameters(), lr=config.LR, momentum=config.MOMENTUM),
        loader=make_loader(pictures, workers, pin, batch_sampler=batches),
        batches=batches,
        part_loader=make_loader(Subset(validation, rows), workers, pin, batch_size=test_batch),
        val_loader=make_loader(validation, workers, pin, batch_size=test_batch),
        device=device,
        amp=amp,
        triplet_weight=config.TRIPLET_WEIGHT,
        cosine=config.ENABLE_TRIPLET_WITH_COSINE,
        unfreeze=config.FREEZE_PARAM == "auto",
        identity=identity,
        progress=Progress(frozen=config.FREEZE_PARAM != "false"),
    )
    if trainer.resume_point.exists():
        if args.resume:
            trainer.resume()
            print(f"resumed: epoch {trainer.progress.epoch}, step {trainer.progress.step}")
        else:
            trainer.refuse_to_overwrite()
    print(
        f"{len(train):,} pictures to train on ({labelled:,} with a category), {len(held):,} to"
        f" validate on; {config.BACKBONE} on {device}, {amp or torch.float32}"
    )
    trainer.run(config.EPOCH, config.LOG_INTERVAL, config.TEST_INTERVAL, config.DUMP_INTERVAL)
    best = trainer.progress.best
    print(
        f"best: epoch {best['epoch']}, validation accuracy {best['accuracy']:.2%}: {models / BEST}"
    )


if __name__ == "__main__":
    run_script(main)

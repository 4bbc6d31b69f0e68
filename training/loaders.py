"""What a run reads: crops of the training pictures, and the validation pictures as a query is."""

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from config import Config
from data import DETAIL, PictureDataset, eval_transform, make_loader, train_transform
from net import EmbeddingNet, conv_map_of
from network.distributed import Distributed, per_process
from pictures.samplers import TrainBatches
from pictures.splits import Splits
from training.boxes import side_and_channels
from utils import UserError, evenly_spaced

VALIDATION_BATCHES = 30  # of a validation between epochs; each epoch ends with a full one
MAX_SCORED = 5000  # pictures of a retrieval score, which sorts the distances of all pairs


def build_loaders(
    config: Config,
    splits: Splits,
    batches: TrainBatches,
    net: EmbeddingNet,
    device: torch.device,
    distributed: Distributed,
) -> tuple[DataLoader, DataLoader, dict[str, tuple[DataLoader, int]]]:
    """The loaders of this process: see `loader`, `quick_loader` and `validation` of `Trainer`."""
    network, workers = net.architecture, per_process(config.NUM_WORKERS)
    seen = eval_transform(**network.transform)
    side = train_side(config, net, device)
    shown = train_transform(side, network.interpolation, network.resize == "padded")
    base, crop = config.DATASET_BASE, config.CROP_TO_BBOX
    how = DETAIL * network.img_size, config.TRUNCATED == "accept", True
    train_set = PictureDataset(base, splits.train, shown, crop, *how, splits.labelled)
    pictures = PictureDataset(base, splits.validation, seen, crop, *how)
    items = PictureDataset(base, splits.validation_items, seen, crop, *how)

    def load(dataset: PictureDataset, rows: np.ndarray) -> DataLoader:
        if len(rows) < distributed.world_size:
            raise UserError(
                f"{len(rows)} validation pictures for {distributed.world_size} processes;"
                " start fewer"
            )
        own = Subset(dataset, rows[distributed.shard(len(rows))].tolist())
        return make_loader(own, workers, device, batch_size=config.TEST_BATCH_SIZE)

    loader = make_loader(train_set, workers, device, batch_sampler=batches, persistent=True)
    quick = evenly_spaced(len(pictures), VALIDATION_BATCHES * config.TEST_BATCH_SIZE)
    scored = evenly_spaced(len(pictures), MAX_SCORED)
    rows = np.concatenate([scored, np.setdiff1d(np.arange(len(pictures)), scored)])
    validation = {"category": (load(pictures, rows), len(scored))}
    if len(items):
        scored = evenly_spaced(len(items), MAX_SCORED)
        validation["item"] = load(items, scored), len(scored)
    return loader, load(pictures, quick), validation


def train_side(config: Config, net: EmbeddingNet, device: torch.device) -> int:
    """Side in px of the training crops.

    Garments look larger in random crops than in the middle of a picture; smaller crops make up for
    that (Touvron et al., Fixing the Train-Test Resolution Discrepancy, NeurIPS 2019). A backbone
    that takes one size only gets that.
    """
    crop_size = net.architecture.crop_size
    if config.TRAIN_SIZE or config.RECIPE == "original":
        return config.TRAIN_SIZE or crop_size
    sides = round(crop_size * 6 / 7), crop_size
    return side_and_channels(conv_map_of(net.eval(), device), *sides)[0]

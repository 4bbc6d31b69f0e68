"""Send every picture of the data set through the network: the feature database.

Writes all_feat.npy (all_feat_2.npy ... of further models), all_color_feat.npy,
all_palette_feat.npy, all_category.npy, all_item.npy, all_classifier.npz, all_feat.list and
all_feat.json below DATASET_BASE. A run that was stopped goes on where it was; exit status 1 says
that pictures were skipped.
"""

if __name__ == "__main__":
    import interrupt

    interrupt.catch()

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from annotations import Pictures
from codes import open_codes
from collection import read_collection
from color import PALETTE_BINS, color_features
from command_line import parse_args
from data import DETAIL, PictureDataset, eval_transform, make_loader
from device import amp_type, pick_device
from index import COLOR, DEEP, PALETTE, deep_file, open_database, plain_file, signals_of
from inference import CPU_BATCH, faster, in_order, keeps_embeddings, one_core_each, streams_of
from lock import locked
from net import FeatureNet, Network, extract_features, find_model, held_out_of, load_net
from stamps import stamp_of
from store import PartialFeatures, remove_partial, write_database
from utils import PictureError, UserError, progress_bar, run_script, sha256_of

SAVE_SECONDS = 10.0  # of work that a kill may cost
INFINITE = "the network's features of it are infinite or NaN; try --amp off, or another model"


class Readable(Dataset[tuple[Tensor, str]]):
    """A dataset whose unreadable pictures become zeros and a reason instead of an error.

    Parameters
    ----------
    dataset : the pictures
    crop_size : side in px of their tensors
    """

    def __init__(self, dataset: PictureDataset, crop_size: int) -> None:
        self.dataset = dataset
        self.crop_size = crop_size

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[Tensor, str]:
        try:
            return self.dataset[row][0], ""
        except PictureError as error:
            return torch.zeros(self.crop_size, self.crop_size, 3, dtype=torch.uint8), str(error)


def _key(facts: dict[str, Any], pictures: Pictures) -> str:
    """A hash of all that the features depend on."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update("\n".join(pictures.paths).encode(errors="surrogateescape"))
    digest.update(pictures.boxes.tobytes())
    return digest.hexdigest()


def _harmless(
    nets: Sequence[FeatureNet],
    datasets: Sequence[Readable],
    device: torch.device,
    amp: torch.dtype,
) -> bool:
    """Whether the networks give the same embeddings of a few of the pictures in 16 bits."""
    rows = np.unique(np.linspace(0, len(datasets[0]) - 1, CPU_BATCH).astype(int)).tolist()
    batches = (torch.stack([dataset[row][0] for row in rows]) for dataset in datasets)
    return all(
        keeps_embeddings(net, images, device, amp)
        for net, images in zip(nets, batches, strict=True)
    )


def extract(
    net: FeatureNet,
    dataset: Readable,
    partial: PartialFeatures,
    device: torch.device,
    amp: torch.dtype | None,
    workers: int,
    batch_size: int,
) -> float:
    """Send the pictures that are not yet done through a network; returns the seconds it took."""
    rest = Subset(dataset, range(partial.done, len(dataset)))
    if not len(rest):
        return 0.0
    streams = streams_of(device)
    batch_size = min(batch_size, CPU_BATCH) if device.type == "cpu" else batch_size

    def features(batch: tuple[Tensor, tuple[str, ...]]) -> tuple[list[np.ndarray], tuple[str, ...]]:
        return extract_features(fast, batch[0], device, amp), batch[1]

    bar = progress_bar(len(dataset), "extracting", "picture", partial.done)
    with one_core_each(streams), bar:
        fast = faster(net, len(dataset), batch_size, dataset.crop_size, device, amp)
        loader = make_loader(rest, workers, device.type == "cuda", batch_size=batch_size)
        start = saved = time.perf_counter()
        for found, errors in in_order(features, loader, streams):
            sound = np.all([np.isfinite(feature).all(axis=1) for feature in found], axis=0)
            paths = dataset.dataset.pictures.paths[partial.done :]
            named = zip(errors, sound, paths, strict=False)
            errors = [e or ("" if ok else f"{path!a}: {INFINITE}") for e, ok, path in named]
            partial.append(found, errors)
            bar.update(len(errors))
            if time.perf_counter() - saved > SAVE_SECONDS:
                partial.save()
                saved = time.perf_counter()
        partial.save()
        return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> int:
    uses = ("data set", "feature database", "network", "machine")
    config, _ = parse_args(argv, __doc__ or "", uses)
    base = config.DATASET_BASE
    device = pick_device(config.DEVICE)
    amp = amp_type(device, config.AMP)
    pictures = read_collection(
        base, config.CATEGORIES, config.ENABLE_INSHOP_DATASET, config.VAL_SHARE
    )
    bare = Network(
        config.BACKBONE,
        config.INTER_DIM,
        pictures.category_names,
        config.IMG_SIZE,
        config.CROP_SIZE,
    )
    settings = {
        "COLOR_TOP_N": config.COLOR_TOP_N,
        "PALETTE": config.PALETTE,
        "FLIP": config.FLIP,
        "CROP_TO_BBOX": config.CROP_TO_BBOX,
        "EXTRACT_BATCH_SIZE": config.EXTRACT_BATCH_SIZE,
        "DEVICE": device.type,
    }
    names = config.MODELS or (config.DUMPED_MODEL,)
    models = [find_model(base, name) for name in names]
    stamps = [stamp_of(model) for model in models]
    loaded = [load_net(model, bare) for model in models]
    records = [
        {
            "file": name,
            "sha256": sha256_of(model),
            "network": asdict(network),
            "held_out": held_out_of(model),
        }
        for name, model, (_, network) in zip(names, models, loaded, strict=True)
    ]
    if stamps != [stamp_of(model) for model in models]:
        raise UserError(f"{', '.join(names)}: replaced while it was read; run this again")
    nets, datasets = [], []
    for number, (net, network) in enumerate(loaded):
        colors = [] if number else color_features(settings)
        features = FeatureNet(net, colors, config.FLIP, plain=True).eval()
        nets.append(features.to(device, memory_format=torch.channels_last))
        transform = eval_transform(network.img_size, network.crop_size)
        least = DETAIL * network.img_size
        dataset = PictureDataset(base, pictures, transform, config.CROP_TO_BBOX, least)
        datasets.append(Readable(dataset, network.crop_size))
    if config.AMP == "auto" and amp and not _harmless(nets, datasets, device, amp):
        print("float32, as 16 bits would change these embeddings by more than rounding")
        amp = None
    settings["AMP"] = str(amp or torch.float32).removeprefix("torch.")

    widths = []  # of each model's matrices
    for number, features in enumerate(nets):
        dim = features.net.fc2.in_features
        widths.append({deep_file(number): dim})
        if not number:
            widths[0] |= {COLOR: 3 * config.COLOR_TOP_N}
            widths[0] |= {PALETTE: PALETTE_BINS**3} if config.PALETTE else {}
        if config.FLIP:
            widths[number][plain_file(number)] = dim

    with locked(base, "an extraction"):
        partials: list[PartialFeatures] = []
        seconds, fresh = 0.0, 0
        for number, (features, dataset) in enumerate(zip(nets, datasets, strict=True)):
            partial = PartialFeatures(
                base / f".extract_{number + 1}",
                _key({**settings, **records[number]}, pictures),
                len(pictures),
                widths[number],
            )
            partials.append(partial)
            resumed = f", going on from {partial.done:,}" if partial.done else ""
            print(f"{len(pictures):,} pictures, {models[number]} on {device}{resumed}", flush=True)
            fresh += len(pictures) - partial.done
            workers, batch_size = config.NUM_WORKERS, config.EXTRACT_BATCH_SIZE
            seconds += extract(features, dataset, partial, device, amp, workers, batch_size)
        errors: dict[int, str] = {}  # what one model could not read is left out of all
        for partial in partials:
            errors |= partial.errors
        if len(errors) < len(pictures):
            facts = {"models": records, "settings": settings}
            weight, bias = (tensor.cpu().numpy() for tensor in loaded[0][0].classifier())
            write_database(base, pictures, partials, sorted(errors), (weight, bias), facts)
        for folder in base.glob(".extract_*"):  # also of models that are no longer extracted
            remove_partial(folder)
        if len(errors) == len(pictures):
            raise UserError(f"{base}: no picture can be read: {errors[0]}")
        database = open_database(base)
        # So that no query has to make them.
        open_codes(database, signals_of(database, **config.distance | {"model_weights": ()}))

    speed = fresh / seconds if seconds else 0.0
    count = len(pictures) - len(errors)
    print(f"{count:,} pictures in {base / DEEP}: {seconds:.1f} s, {speed:.1f} pictures/s")
    if not errors:
        return 0
    print(f"{len(errors):,} pictures were skipped:", file=sys.stderr)
    for _, reason in sorted(errors.items()):
        print(f"  {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    run_script(main)

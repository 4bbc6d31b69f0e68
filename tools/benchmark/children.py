"""What the benchmark runs in processes of its own; see `timing.run_child`.

Every function returns what JSON can hold. Modules that a process does not need are not imported.
"""

import runpy
import sys
import time
from collections import deque
from collections.abc import Iterable
from contextlib import redirect_stdout
from itertools import islice, repeat
from pathlib import Path
from statistics import median
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from torch import nn

from config import Config
from data import make_loader
from features.extraction import LoadedModel, Readable, dataset_of, load_models
from features.inference import CPU_BATCH
from net import extract_features
from network.device import amp_type, autocast, pick_device
from pictures.collection import read_collection
from tools.benchmark.timing import ROOT, synchronize
from training.loop import Trainer


def _models(base: str, device: str) -> tuple[LoadedModel, Readable]:
    """The network of an extraction, and the pictures as it takes them."""
    config = Config(DATASET_BASE=Path(base))
    pictures = read_collection(config.DATASET_BASE, config.CATEGORIES, False, config.VAL_SHARE)
    model = load_models(config, pictures.category_names, pick_device(device))[0]
    return model, dataset_of(config.DATASET_BASE, pictures, config.model_dump(), [model])


def extraction_parts(base: str, device: str, amp: str, batches: int) -> dict[str, float]:
    """The two halves of an extraction, each without the other.

    Parameters
    ----------
    base : DATASET_BASE
    device, amp : the settings DEVICE and AMP
    batches : of the network's timing

    Returns
    -------
    "loader" : pictures/s that the loader gives while nothing takes them
    "workers" : its processes
    "network" : pictures/s of the network that extracts, on random pictures on the device
    """
    config, where = Config(), pick_device(device)
    _, pictures = _models(base, "cpu")
    size, side = config.EXTRACT_BATCH_SIZE, pictures.sides[0]
    loader = make_loader(pictures, config.NUM_WORKERS, where, batch_size=size)
    reading = iter(loader)
    waiting = len(next(reading)[1])  # the processes have started
    start = time.perf_counter()
    decoded = sum(len(reasons) for _, reasons, _ in reading)
    decoding = decoded / (time.perf_counter() - start) if decoded else float(waiting)

    model, _ = _models(base, device)
    dtype = amp_type(where, amp)
    images = torch.randint(256, (size, side, side, 3), dtype=torch.uint8)
    x = images.to(where)
    with torch.inference_mode(), autocast(where, dtype):
        for count in (2, batches):  # the first ones warm up
            synchronize()
            start = time.perf_counter()
            for _ in range(count):
                model.net(x)
            synchronize()
    network = batches * size / (time.perf_counter() - start)
    return {"loader": decoding, "workers": config.NUM_WORKERS, "network": network}


def eager(base: str, amp: str) -> int:
    """Extract the same features with the network as PyTorch runs it; returns how many."""
    model, pictures = _models(base, "cpu")
    config, device = Config(), pick_device("cpu")
    loader = make_loader(pictures, config.NUM_WORKERS, device, batch_size=config.EXTRACT_BATCH_SIZE)
    dtype = amp_type(device, amp)
    found = [extract_features(model.net, images[0], device, dtype) for images, *_ in loader]
    for number, parts in enumerate(zip(*found, strict=True)):
        np.save(Path(base) / f"eager_{number}.npy", np.concatenate(parts))
    return len(pictures)


def openvino_rate(base: str, amp: str, batches: int) -> float:
    """Pictures/s of the network alone in OpenVINO, one stream or one a thread: the faster."""
    import openvino as ov

    model, pictures = _models(base, "cpu")
    net, side = model.net.net, pictures.sides[0]
    x = torch.rand(CPU_BATCH, 3, side, side)
    alone = nn.Sequential(net.backbone, net.pool, net.norm, net.fc).eval()
    converted = ov.convert_model(torch.export.export(alone, (x,)))
    threads, rates = torch.get_num_threads(), []
    precision = {"bf16": "bf16", "off": "f32"}[amp]
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
    for streams in {1, threads}:
        compiled = ov.Core().compile_model(converted, "CPU", settings | {"NUM_STREAMS": streams})
        queue = ov.AsyncInferQueue(compiled, streams)
        for request in queue:
            request.set_input_tensor(ov.Tensor(x.numpy().copy()))
        for count in (2 * streams, batches):  # the first ones warm up
            start = time.perf_counter()
            for _ in range(count):
                queue.start_async()
            queue.wait_all()
        rates.append(batches * CPU_BATCH / (time.perf_counter() - start))
    return max(rates)


def training_rates(base: str, steps: int, rounds: int, flags: list[str]) -> list[float]:
    """Run train.py up to its loop, then time steps instead of training.

    Parameters
    ----------
    base : DATASET_BASE
    steps : of one timing
    rounds : timings of each kind, interleaved
    flags : of train.py

    Returns
    -------
    Median steps/s with the script's own loader, and with random pictures on the device.
    """
    rates: list[tuple[float, float]] = []

    def run(trainer: Trainer, *_: Any) -> None:
        trainer.net.train()
        rates.extend(_step_rates(trainer, epoch, steps) for epoch in range(1, rounds + 1))
        trainer.progress.best = {"epoch": 0, "score": 0.0}

    sys.argv = ["train.py", f"--dataset-base={base}", *flags]
    with mock.patch.object(Trainer, "run", run), redirect_stdout(sys.stderr):
        try:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
    return [median(column) for column in zip(*rates, strict=True)]


def _step_rates(trainer: Trainer, epoch: int, steps: int) -> tuple[float, float]:
    """Steps/s with pictures from disk, then with random ones."""
    loader, sizes = trainer.loader, trainer.batches
    sizes.enter(epoch)
    # Batches that are read ahead; they may neither be ready when the timing starts nor end in it.
    ahead = min(2 * loader.num_workers + 1, (sizes.steps() - steps) // 2)
    keys = list(islice(iter(loader.batch_sampler or ()), steps + 2 * ahead))
    real = make_loader(
        loader.dataset, loader.num_workers, trainer.device, batch_sampler=cast(Any, keys)
    )
    batches = ((*batch, sizes.size(step)) for step, batch in enumerate(real))
    _rate(trainer, islice(batches, ahead))
    read = _rate(trainer, islice(batches, steps))
    *tensors, size = deque(batches, 1).pop()  # to the end: nothing is read during what follows
    images, *labels = (tensor.to(trainer.device) for tensor in tensors)
    random = (torch.randint_like(images, 256), *labels, size)
    _rate(trainer, repeat(random, 2))
    return read, _rate(trainer, repeat(random, steps))


def _rate(trainer: Trainer, batches: Iterable[Any]) -> float:
    """Steps/s of some batches."""
    synchronize()
    start, count = time.perf_counter(), 0
    for batch in batches:
        trainer.step(*batch)
        count += 1
    synchronize()
    return count / (time.perf_counter() - start)

"""Speed of what runs the network, against its peers: a query, extraction, training, a GPU.

Every function draws its own pictures below a folder and returns rows of the table. Times are
medians of runs that take turns; each run is a process of its own, all with as many threads.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import nn

from config import ENV_PREFIX, Config
from data import DETAIL, PictureDataset, eval_transform, make_loader
from features.database import INFO
from features.extraction import Readable
from features.inference import CPU_BATCH, WORTH, faster
from net import FeatureNet, Network, extract_features, initial_net, load_net, save_checkpoint
from network.color import ColorFeature, Palette
from network.device import amp_type, autocast, network_input, pick_device
from pictures.collection import read_collection
from tools.benchmark.table import Row, compare
from utils import UserError

ROOT = Path(__file__).parent.parent.parent
MODEL = "model_best.pth.tar"
DRAWN = 64  # pictures that those of an extraction are copies of
SIZE = (256, 341)  # of these, in px
PLAIN = ("--pretrained=none", "--backbone=resnet50")

# One picture's embedding by torch and torchvision alone, as short as a script can be.
PLAIN_QUERY = """
import sys
import torch
from PIL import Image
from torch import nn
from torchvision import models, transforms

state = torch.load(sys.argv[1], map_location="cpu", weights_only=True)["state_dict"]
dim, channels = state["fc.weight"].shape
net = nn.ModuleDict({
    "backbone": nn.Sequential(*list(models.resnet50().children())[:-2]),
    "norm": nn.LayerNorm(channels), "fc": nn.Linear(channels, dim),
    "fc2": nn.Linear(dim, len(state["fc2.weight"]), bias=False),
})
net.load_state_dict(state)
net.eval()
transform = transforms.Compose([
    transforms.Resize(224), transforms.CenterCrop(224), transforms.ToTensor(),
    transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
])
with torch.inference_mode():
    conv_map = net.backbone(transform(Image.open(sys.argv[2]).convert("RGB"))[None])
    embedding = net.fc(net.norm(conv_map.mean((2, 3)) + conv_map.amax((2, 3))))
    print(nn.functional.normalize(embedding).shape)
"""


def cold_start(folder: Path, rounds: int = 5) -> list[Row]:
    """A query as a whole process, against a script that does no more than embed the picture."""
    base = _draw(folder.resolve() / "cold", items=25, views=2)
    _script("train.py", base, *PLAIN, "--epoch=0")
    _script("feature_extractor.py", base, "--device=cpu")
    picture, model = next(base.glob("img/*/*.jpg")), base / "models" / MODEL
    pairs = []
    for _ in range(rounds + 1):  # the first warms the disk's cache
        ours, _ = _script("retrieval.py", base, "--device=cpu", "--engine=exact", str(picture))
        pairs.append((ours, _python(base, "-c", PLAIN_QUERY, str(model), str(picture))[0]))
    ours, peer = (median(column) for column in zip(*pairs[1:], strict=True))
    shown = f"{ours:.2f} s", f"plain torch script: {peer:.2f} s"
    return [compare("query from a cold start, ResNet50", *shown, ours / peer, "<= 1.3")]


def extraction(folder: Path, count: int = 4096, rounds: int = 3) -> list[Row]:
    """Extraction of `count` pictures on the CPU, against OpenVINO and PyTorch as it is.

    The steady rate is the script's own, without its start and compilation, which starts anew in
    each round. OpenVINO has the network alone, PyTorch the same pictures from the same files.
    """
    base = folder.resolve() / "extraction"
    make_photos(base, count)
    runs = []
    for _ in range(rounds):
        shutil.rmtree(base / "inductor", ignore_errors=True)
        whole, output = _script("feature_extractor.py", base, "--device=cpu")
        openvino, eager = _child(base, "openvino_rate")[1], _child(base, "eager")[0]
        runs.append((whole / count, 1 / _rate(output), 1 / openvino, eager / count))
    whole, steady, openvino, eager = (1000 * median(column) for column in zip(*runs, strict=True))
    name = f"extraction of {count:,} pictures, ResNet50, CPU"
    return [
        compare(f"{name}: {part}", f"{a:.2f} ms each", f"{peer}: {b:.2f} ms each", a / b, target)
        for part, a, peer, b, target in (
            ("whole script", whole, "PyTorch eager, whole script", eager, "<= 1.0"),
            ("whole script", whole, "OpenVINO, network alone", openvino, "<= 1.25"),
            ("steady rate", steady, "OpenVINO, network alone", openvino, "<= 1.25"),
        )
    ]


def training(
    folder: Path, backbone: str = "resnet50", batch: int = 16, steps: int = 20, rounds: int = 3
) -> list[Row]:
    """Training steps on pictures read from disk, against the same on random ones in memory."""
    views = -(-(steps + 20) * batch // 100)  # 100 of the items are trained on
    base = _draw(folder.resolve() / "training", items=140, views=views)
    read, memory = _child(base, "training_rates", backbone, batch, steps, rounds)[1]
    what = f"training, {backbone}, {batch} + 16 pictures a step"
    peer = f"random pictures in memory: {memory:.2f} steps/s"
    return [compare(what, f"{read:.2f} steps/s", peer, read / memory, ">= 0.95")]


def gpu(folder: Path, count: int = 16384, rounds: int = 3) -> list[Row]:
    """Extraction and exact search on a GPU, against the network alone and a copy in its memory."""
    if not torch.cuda.is_available():
        return [compare("GPU", "skipped: no GPU here", "", None, "")]
    base = folder.resolve() / "gpu"
    make_photos(base, count)
    workers = f"--num-workers={len(os.sched_getaffinity(0))}"
    runs = []
    for _ in range(rounds):
        output = _script("feature_extractor.py", base, "--device=cuda", workers)[1]
        runs.append((_rate(output), _child(base, "gpu_rate")[1]))
    ours, peer = (median(column) for column in zip(*runs, strict=True))
    name = torch.cuda.get_device_name()
    search = compare(f"exact search, {name}", "not on the GPU", "memory copy", None, "<= 1.5")
    shown = f"{ours:,.0f} pictures/s", f"network alone: {peer:,.0f} pictures/s"
    what = f"extraction of {count:,} pictures, ResNet50, {name}"
    return [compare(what, *shown, ours / peer, ">= 0.9"), search | {"held": False}]


def make_photos(base: Path, count: int) -> None:
    """Write a folder of `count` JPEG pictures, and a random network whose batch norms matter."""
    drawn = _draw(base.with_name("drawn"), items=DRAWN, views=1)
    sources = [Image.open(path).resize(SIZE) for path in sorted(drawn.glob("img/*/*.jpg"))]
    shutil.rmtree(base, ignore_errors=True)
    (base / "img").mkdir(parents=True)
    for number in range(count):
        path = base / "img" / f"{number:06}.jpg"
        if number < DRAWN:
            sources[number].save(path, quality=90)
        else:
            shutil.copyfile(path.with_name(f"{number % DRAWN:06}.jpg"), path)

    torch.manual_seed(0)
    network = Network("resnet50", 512, ["all"], 224, 224, "avgmax", True)
    net = initial_net(network, "none").train()
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            # A branch that adds little, as in a trained network: else 16 bits are too few.
            scale = 0.05 if name.endswith(".bn3") else 1.0
            nn.init.uniform_(module.weight, 0.5 * scale, 1.5 * scale)
            nn.init.normal_(module.bias, std=0.1 * scale)
            module.momentum = None  # the statistics become those of the pictures
    images = torch.stack([eval_transform(224, 224)(source) for source in sources[:32]])
    with torch.no_grad():
        net(network_input(images, torch.device("cpu")))
    save_checkpoint(base / "models" / MODEL, net, network, held_out=None)


# What the processes of their own do; each prints one line of JSON at its end.


def eager(base: str) -> None:
    """Extract the same features as the script did before, by the network as PyTorch runs it."""
    folder, config, device = Path(base), Config(), pick_device("cpu")
    kind = json.loads((folder / INFO).read_text("utf-8"))["settings"]["AMP"]
    amp = None if kind == "float32" else getattr(torch, kind)
    net, network = load_net(folder / "models" / MODEL)
    features = FeatureNet(net, [ColorFeature(config.COLOR_TOP_N), Palette()], False).eval()
    features = features.to(device, memory_format=torch.channels_last)
    pictures = read_collection(folder, config.CATEGORIES, False, config.VAL_SHARE)
    size, side = network.img_size, network.crop_size
    dataset = PictureDataset(folder, pictures, eval_transform(size, side), False, DETAIL * size)
    loader = make_loader(
        Readable(dataset, side), config.NUM_WORKERS, device, batch_size=config.EXTRACT_BATCH_SIZE
    )
    found = [extract_features(features, images, device, amp) for images, *_ in loader]
    for number, parts in enumerate(zip(*found, strict=True)):
        np.save(folder / f"eager_{number}.npy", np.concatenate(parts))
    print(json.dumps(len(pictures)))


def openvino_rate(base: str, batches: int = 48) -> None:
    """Pictures/s of the network alone in OpenVINO: one stream or one a thread, what is faster."""
    import openvino as ov

    x = torch.rand(CPU_BATCH, 3, 224, 224)
    converted = Path(base) / "openvino.xml"
    if not converted.exists():
        net, _ = load_net(Path(base) / "models" / MODEL)
        alone = nn.Sequential(net.backbone, net.pool, net.norm, net.fc).eval()
        ov.save_model(ov.convert_model(torch.export.export(alone, (x,))), converted, False)
    threads, rates = torch.get_num_threads(), []
    precision = "bf16" if amp_type(pick_device("cpu"), "auto") else "f32"
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
    for streams in {1, threads}:
        compiled = ov.Core().compile_model(converted, "CPU", settings | {"NUM_STREAMS": streams})
        queue = ov.AsyncInferQueue(compiled, streams)
        for request in queue:
            request.set_input_tensor(ov.Tensor(x.numpy().copy()))
        for warm_up in (True, False):
            start = time.perf_counter()
            for _ in range(2 * streams if warm_up else batches):
                queue.start_async()
            queue.wait_all()
        rates.append(batches * CPU_BATCH / (time.perf_counter() - start))
    print(json.dumps(max(rates)))


def training_rates(base: str, backbone: str, batch: int, steps: int, rounds: int) -> None:
    """Steps/s of train.py's own trainer with its loader, and on random pictures in memory."""
    import train
    from training.loop import Trainer

    rates: list[tuple[float, float]] = []

    class Timed(Trainer):
        def run(self, *intervals: int) -> None:
            self.net.train()
            ahead = 2 * self.loader.num_workers  # batches that are read before they are wanted
            for number in range(rounds):
                self.batches.enter(number + 1)
                batches = iter(self.loader)
                for _ in range(ahead + 1):
                    pixels, *labels = next(batches)
                    self._step(pixels, *labels)
                read = self.rate(batches)
                deque(batches, 0)  # so that nothing is read while the others are timed
                pixels = torch.randint(256, pixels.shape, dtype=torch.uint8)
                rates.append((read, self.rate(repeat((pixels, *labels)))))
            self.progress.best = {"epoch": 0, "score": 0.0}

        def rate(self, batches: Any) -> float:
            start = time.perf_counter()
            for _ in range(steps):
                losses = self._step(*next(batches))
            losses["loss"].item()  # waits for a GPU
            return steps / (time.perf_counter() - start)

    sizes = [f"--train-batch-size={batch}", "--triplet-batch-size=16", "--freeze-param=false"]
    with mock.patch.object(train, "Trainer", Timed):
        train.main([f"--dataset-base={base}", *PLAIN, f"--backbone={backbone}", *sizes])
    print(json.dumps([median(column) for column in zip(*rates, strict=True)]))


def gpu_rate(base: str, batches: int = 100) -> None:
    """Pictures/s of the compiled network alone, on pictures that are on the GPU already."""
    device, batch = pick_device("cuda"), Config().EXTRACT_BATCH_SIZE
    amp = amp_type(device, "auto")
    net = FeatureNet(load_net(Path(base) / "models" / MODEL)[0], [], False).eval()
    net = net.to(device, memory_format=torch.channels_last)
    fast = faster(net, WORTH, batch, 224, device, amp)
    x = network_input(torch.randint(256, (batch, 224, 224, 3), dtype=torch.uint8), device)
    with torch.inference_mode(), autocast(device, amp):
        for warm_up in (True, False):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(10 if warm_up else batches):
                fast(x)
            torch.cuda.synchronize()
    print(json.dumps(batches * batch / (time.perf_counter() - start)))


def _draw(base: Path, items: int, views: int) -> Path:
    from tools.synthetic.collection import make_collection  # which the peers' processes do not need

    make_collection(base, items, views, inshop_items=0, seed=0)
    return base


def _rate(output: str) -> float:
    return float(re.search(r"([\d.]+) pictures/s", output)[1])


def _script(name: str, base: Path, *arguments: str) -> tuple[float, str]:
    """Run a script of the project; its seconds and what it printed."""
    return _python(base, str(ROOT / name), f"--dataset-base={base}", *arguments)


def _child(base: Path, function: str, *arguments: Any) -> tuple[float, Any]:
    """Run a function of this file in a process of its own; its seconds and what it gives."""
    call = f"{function}(*{(str(base), *arguments)!r})"
    seconds, output = _python(base, "-c", f"import tools.benchmark.network as b; b.{call}")
    return seconds, json.loads(output.splitlines()[-1])


def _python(base: Path, *arguments: str) -> tuple[float, str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)}
    environment |= {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(base / "inductor")
    environment["CI"] = "1"  # keeps OpenVINO's converter from reporting its use to its vendor
    command, start = [sys.executable, *arguments], time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=base)  # noqa: S603
    seconds = time.perf_counter() - start
    if done.returncode:
        said = done.stderr.strip().splitlines() or [""]
        raise UserError(f"{arguments[0]}: exit status {done.returncode}: {said[-1]}")
    return seconds, done.stdout

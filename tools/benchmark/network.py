"""What runs the network, beside other libraries: a query, extraction, training.

Every function returns rows of the table. Each run is a process of its own, all with as many
threads; the runs of a round are interleaved.
"""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch

from features.database import INFO
from network.device import amp_type, pick_device
from tools.benchmark.inputs import make_photos
from tools.benchmark.rows import Row, compare, compare_rates
from tools.benchmark.sizes import Sizes
from tools.benchmark.timing import run_child, run_project, run_python

MODEL = "model_best.pth.tar"

# One picture's embedding by torch and torchvision alone, as short as a script can be.
PLAIN_QUERY = """
import sys
import torch
from PIL import Image
from torch import nn
from torchvision import models, transforms

checkpoint = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
state, side = checkpoint["state_dict"], checkpoint["network"]["crop_size"]
dim, channels = state["fc.weight"].shape
backbone = models.get_model(checkpoint["network"]["backbone"])
net = nn.ModuleDict({
    "backbone": nn.Sequential(*list(backbone.children())[:-2]),
    "norm": nn.LayerNorm(channels), "fc": nn.Linear(channels, dim),
    "fc2": nn.Linear(channels, len(state["fc2.weight"]), bias=False),
})
net.load_state_dict(state)
net.eval()
transform = transforms.Compose([
    transforms.Resize(side), transforms.CenterCrop(side), transforms.ToTensor(),
    transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
])
with torch.inference_mode():
    conv_map = net.backbone(transform(Image.open(sys.argv[2]).convert("RGB"))[None])
    pooled = net.norm(conv_map.mean((2, 3)) + conv_map.amax((2, 3)))
    unit = nn.functional.normalize
    roots = (10 * unit(pooled) @ unit(net.fc2.weight).T).softmax(1).sqrt()
    print(torch.cat([roots, unit(net.fc(pooled))], 1).shape)
"""


def photos(folder: Path, sizes: Sizes) -> Path:
    """A folder of pictures with an untrained network; made where it is not there."""
    base = folder.resolve() / f"photos_{sizes.photos}_{sizes.backbone}"
    if not (base / "models" / MODEL).exists():
        make_photos(base, sizes.photos, sizes.backbone, sizes.side)
    return base


def amp_name(device: str) -> str:
    """The AMP setting that names the arithmetic AMP=auto stands for on a device.

    Given by name, it is used whatever it does to the embeddings of an untrained network.
    """
    dtype = amp_type(pick_device(device), "auto")
    return {None: "off", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def cold_start(folder: Path, sizes: Sizes) -> Iterator[Row]:
    """A query as a whole process, beside a script that only embeds the picture."""
    base = photos(folder, sizes)
    if not (base / INFO).exists():
        run_project("feature_extractor.py", base, "--device=cpu", f"--amp={amp_name('cpu')}")
    picture, model = min(base.glob("kind_0/*.jpg")), base / "models" / MODEL
    pairs = []
    for _ in range(sizes.rounds + 1):
        here, _ = run_project("retrieval.py", base, "--device=cpu", "--engine=exact", str(picture))
        pairs.append((here, run_python(base, "-c", PLAIN_QUERY, str(model), str(picture))[0]))
    here, peer = (median(column) for column in zip(*pairs[1:], strict=True))  # [0] warms up
    shown = f"{here:.2f} s", f"plain torch script: {peer:.2f} s"
    what = f"query from a cold start, {sizes.backbone}"
    yield compare(what, *shown, here / peer, "<= 1.3")


def extraction(folder: Path, sizes: Sizes) -> Iterator[Row]:
    """Extraction on the CPU, beside PyTorch in a plain loop and beside OpenVINO.

    PyTorch has the same pictures from the same files, OpenVINO the network alone. The steady rate
    is the script's own, without its start.
    """
    base, amp = photos(folder, sizes), amp_name("cpu")
    runs = []
    for _ in range(min(3, sizes.rounds)):
        whole, output = run_project("feature_extractor.py", base, "--device=cpu", f"--amp={amp}")
        eager, _ = run_child(base, "eager", amp)
        openvino = float("nan")
        if find_spec("openvino"):
            openvino = 1 / run_child(base, "openvino_rate", amp, sizes.batches)[1]
        runs.append(
            (whole / sizes.photos, 1 / printed_rate(output), eager / sizes.photos, openvino)
        )
    whole, steady, eager, openvino = (1000 * median(column) for column in zip(*runs, strict=True))
    name = f"extraction of {sizes.photos:,} pictures, {sizes.backbone}, CPU"
    rows = [("whole script", whole, "PyTorch eager, whole script", eager, "<= 1")]
    if openvino == openvino:
        rows += [
            ("whole script", whole, "OpenVINO, network alone", openvino, "<= 1.25"),
            ("steady rate", steady, "OpenVINO, network alone", openvino, "<= 1.25"),
        ]
    for part, a, peer, b, target in rows:
        shown = f"{a:.2f} ms each", f"{peer}: {b:.2f} ms each"
        yield compare(f"{name}: {part}", *shown, a / b, target)


def training(folder: Path, sizes: Sizes, device: str = "cpu") -> Iterator[Row]:
    """Training steps on pictures from disk, beside the same steps on random ones."""
    flags = [
        f"--train-batch-size={sizes.batch}", f"--triplet-batch-size={sizes.metric_batch}",
        f"--backbone={sizes.backbone}", f"--img-size={sizes.side}", f"--crop-size={sizes.side}",
        "--pretrained=none", "--freeze-param=false", f"--device={device}",
        f"--epoch={sizes.epochs}",
    ]  # fmt: skip
    base, rounds = photos(folder, sizes), min(3, sizes.rounds)
    _, (here, peer) = run_child(base, "training_rates", sizes.steps, rounds, flags)
    what = f"training, {sizes.backbone}, {sizes.batch} + {sizes.metric_batch} pictures a step"
    random = "random pictures on the device"
    yield compare_rates(what, "steps", here, random, peer, ">= 0.95")


def printed_rate(output: str) -> float:
    """Pictures/s that feature_extractor.py prints at its end."""
    rates = re.findall(r"([\d.]+) pictures/s", output)
    return float(rates[-1])

"""The embedding network, the colour feature, and the checkpoints they come from."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import WeightsError, build_backbone, load_fitting, require_loaded
from utils import UserError, atomic_write


@dataclass(frozen=True)
class Network:
    """What has to be known to build a network and to feed it; stored in every checkpoint.

    Attributes
    ----------
    backbone : a torchvision classification model, or timm/NAME
    inter_dim : length of the embedding; 0 for the pooled conv map itself
    categories : names of the categories, in the order of the logits
    img_size : short side in px that pictures are scaled to
    crop_size : side in px of the square cut from their middle, the input
    """

    backbone: str
    inter_dim: int
    categories: list[str]
    img_size: int
    crop_size: int


class EmbeddingNet(nn.Module):
    """Backbone, global average pooling, `fc` to the embedding, `fc2` to the category logits.

    The keys of its state dict are those of the 2018 project: `backbone.*`, `fc.*`, `fc2.*`.

    Parameters
    ----------
    backbone : N x 3 x H x W -> conv map N x C x h x w
    channels : C
    inter_dim : length D of the embedding; 0 takes the pooled conv map itself, D = C
    categories : number K of logits
    """

    def __init__(self, backbone: nn.Module, channels: int, inter_dim: int, categories: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.fc = nn.Linear(channels, inter_dim) if inter_dim else nn.Identity()
        self.fc2 = nn.Linear(inter_dim or channels, categories)
        self.frozen = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embed normalised pictures.

        Parameters
        ----------
        x : N x 3 x H x W

        Returns
        -------
        Category logits N x K, embedding N x D, both float32, and the conv map N x C x h x w.
        """
        conv_map = self.backbone(x)
        # 16 bits are enough for the convolutions; embeddings rounded to them would tie.
        with torch.autocast(x.device.type, enabled=False):
            embedding = self.fc(conv_map.float().mean((2, 3)))
            return self.fc2(embedding), embedding, conv_map

    def freeze_backbone(self, frozen: bool) -> None:
        """Stop or start the training of the backbone; frozen, its batch norms keep still too."""
        self.frozen = frozen
        self.backbone.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> "EmbeddingNet":
        """As of any module, but a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self


class ColorFeature(nn.Module):
    """Colours of the cells of the picture to which the network responds most.

    Parameters
    ----------
    top_n : number of cells T
    """

    def __init__(self, top_n: int) -> None:
        super().__init__()
        self.top_n = top_n

    def forward(self, x: Tensor, conv_map: Tensor) -> Tensor:
        """Describe the colours of pictures.

        Parameters
        ----------
        x : the network's input, N x 3 x H x W
        conv_map : N x C x h x w, its response

        Returns
        -------
        N x 3T, float32: R of the T cells with the strongest mean response, strongest first (of
        equal ones the first in reading order), then G, then B.

        Raises
        ------
        UserError : the conv map has fewer than T cells
        """
        cells = conv_map.shape[-2] * conv_map.shape[-1]
        if cells < self.top_n:
            raise UserError(
                f"COLOR_TOP_N is {self.top_n}, but the conv map has {cells} cells;"
                " lower it, or raise CROP_SIZE"
            )
        response = conv_map.float().mean(1).flatten(1)
        strongest = response.argsort(dim=1, descending=True, stable=True)[:, : self.top_n]
        colors = F.adaptive_avg_pool2d(x.float(), conv_map.shape[-2:]).flatten(2)
        return colors.gather(2, strongest[:, None].expand(-1, 3, -1)).flatten(1)


class FeatureNet(nn.Module):
    """Both features of a picture in one pass.

    Parameters
    ----------
    net : the embedding network
    color_top_n : number of cells T of the colour feature
    """

    def __init__(self, net: EmbeddingNet, color_top_n: int) -> None:
        super().__init__()
        self.net = net
        self.color = ColorFeature(color_top_n)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """N x 3 x H x W -> embedding N x D and colour feature N x 3T, float32."""
        _, embedding, conv_map = self.net(x)
        return embedding, self.color(x, conv_map)


def initial_net(network: Network, pretrained: str) -> EmbeddingNet:
    """Build a network for training to start from.

    Parameters
    ----------
    network : what to build
    pretrained : `imagenet`, `none`, or a file: backbone weights in torchvision's or timm's names,
        with or without the classifier, or a checkpoint of this project or of the 2018 one

    Raises
    ------
    UserError : an unknown backbone, weights that cannot be had, or that are another backbone's
    """
    from_file = pretrained not in {"imagenet", "none"}
    state = read_weights(Path(pretrained))[0] if from_file else None
    checkpoint = state is not None and any(key.startswith("backbone.") for key in state)
    try:
        backbone = build_backbone(
            network.backbone, pretrained == "imagenet", None if checkpoint else state
        )
        net = EmbeddingNet(
            backbone,
            _channels(backbone, network.backbone, network.crop_size),
            network.inter_dim,
            len(network.categories),
        )
        if network.inter_dim:
            # Orthonormal rows keep the distances of the pretrained features best.
            nn.init.orthogonal_(net.fc.weight)
            nn.init.zeros_(net.fc.bias)
        if checkpoint:
            require_loaded(
                backbone, load_fitting(net, state or {}, network.backbone), network.backbone
            )
    except WeightsError as error:
        raise UserError(f"PRETRAINED {pretrained}: {error}") from None
    return net


@torch.inference_mode()
def _channels(backbone: nn.Module, name: str, crop_size: int) -> int:
    """Channels of the conv map, by asking the backbone.

    Raises
    ------
    UserError : it makes no conv map of such an input
    """
    try:
        shape = backbone.eval()(torch.zeros(1, 3, crop_size, crop_size)).shape
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"BACKBONE {name} cannot take CROP_SIZE={crop_size}: {reason}; try 224, or another"
            " backbone"
        ) from None
    if len(shape) != 4:
        raise UserError(f"BACKBONE {name} has no conv map; use another one")
    return shape[1]


def save_checkpoint(path: Path, net: EmbeddingNet, network: Network, **facts: Any) -> None:
    """Write a checkpoint: the weights, what is needed to build the network, and plain facts."""
    # Without channels_last strides and device, so that the file hangs on the values alone.
    state = {
        key: value.cpu().clone(memory_format=torch.contiguous_format)
        for key, value in net.state_dict().items()
    }
    content = {"network": asdict(network), "state_dict": state, **facts}
    # Given a path, torch.save would write its name into the file: equal weights, unequal hash.
    with atomic_write(path) as part, open(part, "wb") as file:
        torch.save(content, file)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read the content of a checkpoint without running any code from it.

    Raises
    ------
    UserError : no such file, or no checkpoint
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the damaged archive leads to
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path}: no checkpoint that can be read safely: {reason}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: no checkpoint, but a {type(content).__name__}")
    return content


def read_weights(path: Path) -> tuple[dict[str, Tensor], Network | None]:
    """Read the weights of a checkpoint.

    Returns
    -------
    The state dict, and the network it says it belongs to: None for a bare state dict, as the 2018
    project and torchvision write them.

    Raises
    ------
    UserError : no such file, or no checkpoint
    """
    content = read_checkpoint(path)
    record = content.get("network")
    state = content.get("state_dict", content)
    tensors = isinstance(state, dict) and all(isinstance(v, Tensor) for v in state.values())
    if not state or not tensors:
        raise UserError(f"{path}: holds no state dict")
    state = {str(key).removeprefix("module."): value for key, value in state.items()}
    if record is None:
        return state, None
    try:
        network = Network(**{field.name: record[field.name] for field in fields(Network)})
    except (KeyError, TypeError):
        raise UserError(f"{path}: written by another version; train again") from None
    return state, network


def find_model(base: Path, name: str) -> Path:
    """The file that a DUMPED_MODEL setting means.

    Raises
    ------
    UserError : there is none
    """
    for path in (Path(name), base / "models" / name):
        if path.is_file():
            return path
    raise UserError(
        f"DUMPED_MODEL {name}: no such file, nor {base / 'models' / name};"
        f" run: python train.py --dataset-base {base}"
    )


def load_net(path: Path, bare: Network | None = None) -> tuple[EmbeddingNet, Network]:
    """Build the network of a checkpoint and load its weights.

    Parameters
    ----------
    path : a checkpoint of this project, or a bare state dict in the layout of the 2018 one
    bare : what a bare state dict belongs to; its dimensions are taken from the weights

    Returns
    -------
    The network in evaluation mode, and what it is.

    Raises
    ------
    UserError : the file cannot be read, or is of another network
    """
    state, network = read_weights(path)
    dim = network.inter_dim if network else 1  # whatever it is, a bare one has an fc
    for key in ("fc.weight", "fc2.weight") if dim else ("fc2.weight",):
        if key not in state:
            raise UserError(f"{path}: holds no {key}: not a checkpoint of an embedding network")
    if network is None:
        if bare is None:
            raise UserError(f"{path}: a bare state dict does not say which network it belongs to")
        logits = len(state["fc2.weight"])
        numbered = [f"category {number + 1}" for number in range(logits)]
        names = bare.categories[:logits] if len(bare.categories) >= logits else numbered
        network = replace(bare, inter_dim=len(state["fc.weight"]), categories=names)
    channels = state["fc.weight" if network.inter_dim else "fc2.weight"].shape[1]
    logits = len(state["fc2.weight"])
    net = EmbeddingNet(build_backbone(network.backbone), channels, network.inter_dim, logits)
    try:
        require_loaded(net, load_fitting(net, state, network.backbone), network.backbone)
    except WeightsError as error:
        raise UserError(f"{path}: {error}") from None
    return net.eval(), network


def pick_device(name: str) -> torch.device:
    """The device of a DEVICE setting.

    Raises
    ------
    UserError : this machine has no such device
    """
    if name == "auto":
        cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    device = torch.device(name)
    cards = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= cards:
        raise UserError(f"DEVICE {name}: this machine has {cards} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("DEVICE mps: not on this machine")
    return device


def amp_type(device: torch.device, amp: str) -> torch.dtype | None:
    """The 16-bit type that an AMP setting means on a device; None for plain float32."""
    if amp == "auto":
        if device.type == "cuda":
            amp = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        else:
            amp = "bf16" if device.type == "cpu" and _cpu_has_bf16() else "off"
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]


def _cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself; emulated, it is slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Run the forward pass in the 16-bit type, or as it is where that is None."""
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


@torch.inference_mode()
def extract_features(
    net: FeatureNet, images: Tensor, device: torch.device, dtype: torch.dtype | None
) -> tuple[np.ndarray, np.ndarray]:
    """Features of one batch of pictures.

    Parameters
    ----------
    net : on `device`, in evaluation mode
    images : B x 3 x H x W
    device, dtype : where and in which 16-bit type (None: float32) the network runs

    Returns
    -------
    Deep features B x D and colour features B x 3T, float32.
    """
    images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
    with autocast(device, dtype):
        deep, color = net(images)
    return deep.cpu().numpy(), color.cpu().numpy()

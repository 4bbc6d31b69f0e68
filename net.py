"""The embedding network and the checkpoints it comes from."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, nn
from typing_extensions import NotRequired, TypedDict

from network.architecture import Architecture, parse_architecture
from network.backbones import build_backbone, load_weights
from network.checkpoint import read_checkpoint, weights_of, write_checkpoint
from network.device import autocast, copy_to
from network.image_text import PREFIX
from network.layers import AveragePooling, CosineClassifier, GeM, Normalize
from utils import UserError, command

Network = Callable[[Tensor], list[Tensor]]  # pictures N x H x W x 3, uint8 -> features N x D each
LENGTH = 10.0  # of a normalised embedding: its distances then compare with those of 2018


class SplitRecord(TypedDict):
    """Which pictures a training did not see, see `pictures.splits.Splits`; `held_out` in files."""

    inshop: bool
    val_share: Annotated[float, Field(gt=0, lt=1)]
    categories: NotRequired[int]  # CATEGORIES; before, those of the network
    digest: str


_SPLIT = TypeAdapter(SplitRecord | str | None)


class EmbeddingNet(nn.Module):
    """Backbone, global pooling, `fc` to the embedding, `fc2` to the category logits.

    The keys of its state dict are those of the 2018 project: `backbone.*`, `fc.*`, `fc2.*`.
    Normalised, it also has `norm.*`, a LayerNorm after the pooling. `fc2`, a cosine classifier,
    then compares what comes out of it, and the embedding, of length `LENGTH`, has two equally long
    parts (with `inter_dim` 0 the second alone):

    - the square roots of the K category probabilities. Their Euclidean distance is Hellinger's:
      about 0 for two pictures of one category, so it does not disturb the order of items there.
    - D - K numbers of `fc`, for what tells single items apart.

    Parameters
    ----------
    backbone : N x 3 x H x W -> conv map N x C x h x w; with POOLING=model, also pooled N x P
    channels : C or P, what the embedding is made of
    architecture : what to build

    Attributes
    ----------
    normalize : pictures as loaders give them, N x H x W x 3, uint8 -> the input of `forward`
    architecture : as given
    dim, category_dims : D, the length of the embedding, and see `Architecture`
    """

    def __init__(self, backbone: nn.Module, channels: int, architecture: Architecture) -> None:
        super().__init__()
        self.dim = dim = architecture.inter_dim or channels
        categories, pooling = len(architecture.categories), architecture.pooling
        self.architecture = architecture
        self.normalised, self.category_dims = architecture.normalised, architecture.category_dims
        self.normalize = Normalize(architecture.mean, architecture.std)
        self.backbone = backbone
        self.pool = GeM() if pooling == "gem" else AveragePooling(pooling == "avgmax")
        self.own_pool = pooling == "model"
        if self.category_dims >= dim:
            raise UserError(f"INTER_DIM={dim} has no room beside {categories} categories; raise it")
        self.norm = nn.LayerNorm(channels) if self.category_dims else nn.Identity()
        item_dims = dim - self.category_dims
        self.fc = nn.Linear(channels, item_dims) if architecture.inter_dim else nn.Identity()
        classifier = CosineClassifier if self.normalised else nn.Linear
        self.fc2 = classifier(channels if self.category_dims else dim, categories)
        self.frozen = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embed pictures N x 3 x H x W, float32, as `normalize` gives them.

        Category logits N x K and embedding N x D, both float32, and the conv map N x C x h x w.
        """
        found = self.backbone(x)
        conv_map, pooled = found if self.own_pool else (found, None)
        # 16 bits are enough for the convolutions; embeddings rounded to them would tie.
        with torch.autocast(x.device.type, enabled=False):
            pooled = self.pool(conv_map.float()) if pooled is None else pooled.float()
            pooled = self.norm(pooled)
            embedding = self.fc(pooled)
            if self.category_dims:
                logits = self.fc2(LENGTH * F.normalize(pooled))
                parts = logits.softmax(1).sqrt(), F.normalize(embedding)
                return logits, LENGTH / math.sqrt(2) * torch.cat(parts, 1), conv_map
            if self.normalised:
                embedding = LENGTH * F.normalize(embedding)
            return self.fc2(embedding), embedding, conv_map

    def classifier(self) -> tuple[Tensor, Tensor]:
        """Weight K x D and bias K: embedding @ weight.T + bias orders categories as logits do."""
        if self.category_dims:
            weight = torch.eye(self.category_dims, self.dim, device=self.fc2.weight.device)
            return weight, self.fc2.weight.new_zeros(self.category_dims)
        weight = F.normalize(self.fc2.weight) if self.normalised else self.fc2.weight
        bias = weight.new_zeros(len(weight)) if self.fc2.bias is None else self.fc2.bias
        return weight.detach(), bias.detach()

    def freeze_backbone(self, frozen: bool) -> None:
        """Stop or start the training of the backbone, with the statistics of its batch norms."""
        self.frozen = frozen
        self.backbone.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> "EmbeddingNet":
        """As of any module, but a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self


class FeatureNet(nn.Module):
    """All features of pictures in one pass.

    Parameters
    ----------
    net : the embedding network
    colors : modules (input, conv map) -> colour feature N x C
    flip : the embedding is the mean of those of the picture and of its mirror image
    """

    def __init__(self, net: EmbeddingNet, colors: Sequence[nn.Module], flip: bool) -> None:
        super().__init__()
        self.net = net
        self.colors = nn.ModuleList(colors)
        self.flip = flip

    def forward(self, images: Tensor) -> list[Tensor]:
        """N x H x W x 3, uint8 -> embedding N x D, then each colour feature N x C, float32."""
        x = self.net.normalize(images)
        _, embedding, conv_map = self.net(x)
        seen = self.net.normalize.for_colors(x)
        colors = [color(seen, conv_map) for color in self.colors]
        if self.flip:
            embedding = (embedding + self.net(x.flip(3))[1]) / 2
            if self.net.normalised:
                embedding = LENGTH * F.normalize(embedding)
        return [embedding, *colors]


def conv_map_of(
    net: EmbeddingNet, device: torch.device, dtype: torch.dtype | None = None
) -> Callable[[Tensor], Tensor]:
    """A function of pictures N x H x W x 3, uint8, that gives their conv map, without gradient."""

    @torch.inference_mode()
    def conv_map(images: Tensor) -> Tensor:
        with autocast(device, dtype):
            return net(net.normalize(copy_to(device, images)))[2].float()

    return conv_map


def initial_net(architecture: Architecture, pretrained: str) -> EmbeddingNet:
    """Build a network for training to start from.

    Parameters
    ----------
    architecture : what to build
    pretrained : `imagenet` (the library's own weights), `none`, a tag of open_clip/NAME, or a file:
        backbone weights in the library's names, with or without the classifier, or a checkpoint of
        this project or of the 2018 one
    """
    name, state = architecture.backbone, {}
    of_open_clip = name.startswith(PREFIX)
    if pretrained not in {"imagenet", "none"} and (not of_open_clip or Path(pretrained).is_file()):
        state = weights_of(read_checkpoint(Path(pretrained)), Path(pretrained))
        if not all(bool(value.isfinite().all()) for value in state.values()):
            raise UserError(f"PRETRAINED {pretrained}: holds NaN or infinity")
    is_checkpoint = any(key.startswith("backbone.") for key in state)
    source, weights = ("none", None) if is_checkpoint else (pretrained, state)
    backbone = build_backbone(architecture, source, weights)
    channels = _channels(backbone, name, architecture.crop_size)
    net = EmbeddingNet(backbone, channels, architecture)
    if isinstance(net.fc, nn.Linear):
        # Orthonormal rows keep the distances of the pretrained features best.
        nn.init.orthogonal_(net.fc.weight)
        nn.init.zeros_(net.fc.bias)
    if is_checkpoint:
        refused = f"PRETRAINED {pretrained}: not the weights of a {name}"
        load_weights(net, state, refused, may_lack=("fc.", "fc2.", "norm.", "pool."))
    return net


@torch.inference_mode()
def _channels(backbone: nn.Module, name: str, crop_size: int) -> int:
    """Channels of what a backbone pools; a `UserError` where it makes no map of that size."""
    try:
        found = backbone.eval()(torch.zeros(1, 3, crop_size, crop_size))
        return found[-1].shape[-1] if isinstance(found, tuple) else found.shape[1]
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"BACKBONE {name} makes no conv map with CROP_SIZE={crop_size}: {reason}; try 224, or"
            " another backbone"
        ) from None


def save_checkpoint(path: Path, net: EmbeddingNet, **facts: Any) -> None:
    """Write a checkpoint: the weights, what is needed to build the network, and plain facts."""
    # Without channels_last strides and device: equal values make equal files.
    state = {
        key: value.cpu().clone(memory_format=torch.contiguous_format)
        for key, value in net.state_dict().items()
    }
    write_checkpoint(path, {"network": asdict(net.architecture), "state_dict": state, **facts})


def read_split(path: Path) -> SplitRecord | str | None:
    """The split that a checkpoint was trained with; None: untrained; "unknown": not recorded."""
    try:
        return _SPLIT.validate_python(read_checkpoint(path).get("held_out", "unknown"))
    except ValidationError:
        raise UserError(f"{path}: its held_out is damaged; train again") from None


def model_places(base: Path, name: str) -> tuple[Path, Path]:
    """The files that the name of a model may mean, in the order they are tried."""
    return Path(name), base / "models" / name


def find_model(base: Path, name: str) -> Path:
    """The file that a DUMPED_MODEL setting means; a `UserError` where there is none."""
    places = model_places(base, name)
    for path in places:
        if path.is_file():
            return path
    raise UserError(
        f"DUMPED_MODEL {name}: no such file, nor {places[1]}; run: {command('train.py', base)}"
    )


def load_net(path: Path, default: Architecture | None = None) -> EmbeddingNet:
    """Build the network of a checkpoint and load its weights, in evaluation mode.

    Parameters
    ----------
    path : a checkpoint of this project, or a bare state dict in the layout of the 2018 one
    default : the architecture of a bare state dict; its dimensions are taken from the weights
    """
    content = read_checkpoint(path)
    state, record = weights_of(content, path), content.get("network")
    first = "fc.weight" if "fc.weight" in state else "fc2.weight"
    for key in (first, "fc2.weight"):
        if key not in state or state[key].ndim != 2:
            raise UserError(f"{path}: holds no matrix {key}: not a checkpoint of this project")
    if record is not None:
        architecture = parse_architecture(record, path)
    elif default:
        architecture = _architecture_of_2018(state, default)
    else:
        raise UserError(f"{path}: a bare state dict does not say which network it belongs to")
    # Else a wrong number would take all memory before it is found.
    if architecture.inter_dim not in (0, len(state[first]) + architecture.category_dims):
        raise UserError(f"{path}: its {first} is not of INTER_DIM={architecture.inter_dim}")
    channels = state[first].shape[1]
    net = EmbeddingNet(build_backbone(architecture), channels, architecture)
    load_weights(net, state, f"{path}: not the weights of a {architecture.backbone}")
    return net.eval()


def _architecture_of_2018(state: dict[str, Tensor], default: Architecture) -> Architecture:
    """The architecture of a bare state dict: `default`, with the dimensions of the weights."""
    dim, logits = len(state.get("fc.weight", [])), len(state["fc2.weight"])
    names = [f"category {number + 1}" for number in range(logits)]
    if len(default.categories) >= logits:
        names = default.categories[:logits]
    return replace(default, inter_dim=dim, categories=names, pooling="avg", normalised=False)


@torch.inference_mode()
def start_features(
    net: Callable[[Tensor], list[Tensor]],
    images: Tensor,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Callable[[], list[np.ndarray]]:
    """Begin with `extract_features`, on a GPU without waiting: a function waits for the result."""
    with autocast(device, dtype):
        features = [feature.float() for feature in net(copy_to(device, images))]
    widths = [feature.shape[1] for feature in features]
    on_cuda = device.type == "cuda"
    # One copy from a GPU, to pinned memory, as PyTorch makes it: the one way it does not wait.
    joined = torch.cat(features, 1).to("cpu", non_blocking=on_cuda)
    done = torch.cuda.Event() if on_cuda else None
    if done:
        done.record(torch.cuda.current_stream(device))

    def result() -> list[np.ndarray]:
        if done:
            done.synchronize()
        return [np.ascontiguousarray(part.numpy()) for part in joined.split(widths, 1)]

    return result


def extract_features(
    net: Callable[[Tensor], list[Tensor]],
    images: Tensor,
    device: torch.device,
    dtype: torch.dtype | None,
) -> list[np.ndarray]:
    """The features of one batch of pictures, float32.

    Parameters
    ----------
    net : a `FeatureNet`, also compiled; on `device`, in evaluation mode
    images : B x H x W x 3, uint8
    device, dtype : where and in which 16-bit type (None: float32) the network runs
    """
    return start_features(net, images, device, dtype)()

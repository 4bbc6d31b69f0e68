"""The embedding network and the checkpoints it comes from."""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, nn
from typing_extensions import TypedDict

from config import MOST_PIXELS
from network.backbones import WeightsError, build_backbone, load_fitting, require_loaded
from network.device import autocast, network_input
from utils import UserError, atomic_write, shown

Side = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
LENGTH = 10.0  # of a normalised embedding: its distances then compare with those of 2018


class HeldOut(TypedDict):
    """What was held out of a training, see `pictures.splits.Splits`."""

    inshop: bool
    val_share: Annotated[float, Field(gt=0, lt=1)]
    digest: str


@dataclass(frozen=True)
class Network:
    """What has to be known to build a network and to feed it; stored in every checkpoint.

    Attributes
    ----------
    backbone : a torchvision classification model, or timm/NAME
    inter_dim : length D of the embedding; 0 for the pooled conv map itself
    categories : names of the categories, in the order of the logits
    img_size : short side in px that pictures are scaled to
    crop_size : side in px of the square cut from their middle, the input
    pooling : avg, avgmax (their sum) or gem
    normalised : the embedding lies on a sphere, see `EmbeddingNet`
    """

    backbone: str
    inter_dim: Annotated[int, Field(ge=0)]
    categories: list[str]
    img_size: Side
    crop_size: Side
    pooling: Literal["avg", "avgmax", "gem"] = "avg"
    normalised: bool = False


_NETWORK = TypeAdapter(Network)
_HELD_OUT = TypeAdapter(HeldOut | str | None)


def network_of(record: Any, where: Path, again: str = "train again") -> Network:
    """The network that a file's record describes; what it says beyond that is left out.

    `again` is what to do where it cannot be.

    Raises
    ------
    UserError : a field is missing, or is not what it can be
    """
    names = {field.name for field in fields(Network)}
    known = {k: v for k, v in record.items() if k in names} if isinstance(record, dict) else record
    try:
        return _NETWORK.validate_python(known)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "network"
        raise UserError(
            f"{where}: written by another version ({place}: {first['msg']}); {again}"
        ) from None


class GeM(nn.Module):
    """Generalised mean of each channel, its power trained (Radenovic et al., TPAMI 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(3.0))

    def forward(self, conv_map: Tensor) -> Tensor:
        """N x C x h x w -> N x C."""
        return conv_map.clamp(min=1e-6).pow(self.p).mean((2, 3)).pow(1 / self.p)


class Average(nn.Module):
    """Mean of each channel, plus its maximum where `with_maximum`."""

    def __init__(self, with_maximum: bool) -> None:
        super().__init__()
        self.with_maximum = with_maximum

    def forward(self, conv_map: Tensor) -> Tensor:
        """N x C x h x w -> N x C."""
        mean = conv_map.mean((2, 3))
        return mean + conv_map.amax((2, 3)) if self.with_maximum else mean


class CosineClassifier(nn.Linear):
    """Logits that hang on the angle alone: the rows of the weight count by their direction.

    With an embedding of length `LENGTH` this is the normalised softmax of temperature 1 / LENGTH
    (Zhai and Wu, Classification is a Strong Baseline for Deep Metric Learning, BMVC 2019).
    """

    def __init__(self, dim: int, categories: int) -> None:
        super().__init__(dim, categories, bias=False)

    def forward(self, embedding: Tensor) -> Tensor:
        """N x D -> N x K."""
        return F.linear(embedding, F.normalize(self.weight))


class EmbeddingNet(nn.Module):
    """Backbone, global pooling, `fc` to the embedding, `fc2` to the category logits.

    The keys of its state dict are those of the 2018 project: `backbone.*`, `fc.*`, `fc2.*`.
    Normalised, it also has `norm.*`, a LayerNorm before `fc`; the embedding is scaled to length
    `LENGTH`, and `fc2` compares directions.

    Parameters
    ----------
    backbone : N x 3 x H x W -> conv map N x C x h x w
    channels : C
    network : what to build
    """

    def __init__(self, backbone: nn.Module, channels: int, network: Network) -> None:
        super().__init__()
        dim, categories = network.inter_dim or channels, len(network.categories)
        self.backbone = backbone
        self.pool = GeM() if network.pooling == "gem" else Average(network.pooling == "avgmax")
        self.normalised = network.normalised
        before = network.normalised and network.inter_dim
        self.norm = nn.LayerNorm(channels) if before else nn.Identity()
        self.fc = nn.Linear(channels, dim) if network.inter_dim else nn.Identity()
        classifier = CosineClassifier if network.normalised else nn.Linear
        self.fc2 = classifier(dim, categories)
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
            embedding = self.fc(self.norm(self.pool(conv_map.float())))
            if self.normalised:
                embedding = LENGTH * F.normalize(embedding)
            return self.fc2(embedding), embedding, conv_map

    def classifier(self) -> tuple[Tensor, Tensor]:
        """Weight K x D and bias K, with which logits are embedding @ weight.T + bias."""
        weight = F.normalize(self.fc2.weight) if self.normalised else self.fc2.weight
        bias = weight.new_zeros(len(weight)) if self.fc2.bias is None else self.fc2.bias
        return weight.detach(), bias.detach()

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


class FeatureNet(nn.Module):
    """All features of a picture in one pass.

    Parameters
    ----------
    net : the embedding network
    colors : modules that make features of the input and the conv map
    flip : the embedding is that of the picture and its mirror image together
    plain : with `flip`, the embedding of the picture alone is the last of the features
    """

    def __init__(
        self, net: EmbeddingNet, colors: Sequence[nn.Module], flip: bool, plain: bool = False
    ) -> None:
        super().__init__()
        self.net = net
        self.colors = nn.ModuleList(colors)
        self.flip = flip
        self.plain = plain

    def forward(self, x: Tensor) -> list[Tensor]:
        """N x 3 x H x W -> embedding N x D, then each colour feature N x C, float32."""
        _, embedding, conv_map = self.net(x)
        colors = [color(x, conv_map) for color in self.colors]
        if not self.flip:
            return [embedding, *colors]
        both = (embedding + self.net(x.flip(3))[1]) / 2
        if self.net.normalised:
            both = LENGTH * F.normalize(both)
        return [both, *colors, embedding] if self.plain else [both, *colors]


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
    if state and not all(bool(value.isfinite().all()) for value in state.values()):
        raise UserError(f"PRETRAINED {pretrained}: holds NaN or infinity")
    checkpoint = state is not None and any(key.startswith("backbone.") for key in state)
    try:
        backbone = build_backbone(
            network.backbone, pretrained == "imagenet", None if checkpoint else state
        )
        channels = _channels(backbone, network.backbone, network.crop_size)
        net = EmbeddingNet(backbone, channels, network)
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
    # Given a file, it would not say that the disk is full.
    written = io.BytesIO()
    torch.save(content, written)
    with atomic_write(path) as part:
        part.write_bytes(written.getvalue())


def _refuse_bomb(path: Path) -> None:
    """Raise a ValueError where an archive says that it holds more bytes than the file has."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            told = sum(member.file_size for member in archive.infolist())
        if told > path.stat().st_size:
            raise ValueError("compressed, as no checkpoint is")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read the content of a checkpoint without running any code from it.

    Raises
    ------
    UserError : no such file, or no checkpoint
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        _refuse_bomb(path)
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
    size = path.stat().st_size
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path}: holds no state dict")
    for key, value in state.items():
        if not _is_plain(value, size):
            raise UserError(f"{path}: {shown(str(key))} is no plain tensor; no state dict")
    state = {str(key).removeprefix("module."): value for key, value in state.items()}
    return state, None if record is None else network_of(record, path)


def _is_plain(value: Any, size: int) -> bool:
    """Whether it is a tensor whose values lie in a file of so many bytes, all of them."""
    return (
        isinstance(value, Tensor)
        and (value.layout, value.device.type) == (torch.strided, "cpu")
        and not (value.is_quantized or value.is_complex())
        and value.nbytes <= size  # strides of 0 make a huge tensor of one value
    )


def held_out_of(path: Path) -> dict[str, Any] | str | None:
    """What a checkpoint says was held out of its training, as `train.py` wrote it.

    Returns
    -------
    "inshop", "val_share" and "digest"; None: it is untrained; "unknown": the file does not say.

    Raises
    ------
    UserError : no such file, or no checkpoint
    """
    try:
        return _HELD_OUT.validate_python(read_checkpoint(path).get("held_out", "unknown"))
    except ValidationError:
        raise UserError(f"{path}: its held_out is damaged; train again") from None


def model_places(base: Path, name: str) -> tuple[Path, Path]:
    """The files that a name of a model may mean, the first one first."""
    return Path(name), base / "models" / name


def find_model(base: Path, name: str) -> Path:
    """The file that a DUMPED_MODEL setting means.

    Raises
    ------
    UserError : there is none
    """
    places = model_places(base, name)
    for path in places:
        if path.is_file():
            return path
    raise UserError(
        f"DUMPED_MODEL {name}: no such file, nor {places[1]};"
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
        if state[key].ndim != 2:
            raise UserError(f"{path}: {key} is no matrix: not a checkpoint of an embedding network")
    logits, width = state["fc2.weight"].shape
    if network is None:
        if bare is None:
            raise UserError(f"{path}: a bare state dict does not say which network it belongs to")
        numbered = [f"category {number + 1}" for number in range(logits)]
        names = bare.categories[:logits] if len(bare.categories) >= logits else numbered
        network = replace(
            bare,
            inter_dim=len(state["fc.weight"]),
            categories=names,
            pooling="avg",
            normalised=False,
        )
    if dim and {len(state["fc.weight"]), width} != {network.inter_dim}:
        raise UserError(f"{path}: fc and fc2 are not of {network.inter_dim} values")
    if logits != len(network.categories):
        raise UserError(f"{path}: {logits} logits for {len(network.categories)} categories")
    channels = state["fc.weight" if network.inter_dim else "fc2.weight"].shape[1]
    net = EmbeddingNet(build_backbone(network.backbone), channels, network)
    try:
        require_loaded(net, load_fitting(net, state, network.backbone), network.backbone)
    except WeightsError as error:
        raise UserError(f"{path}: {error}") from None
    return net.eval(), network


@torch.inference_mode()
def extract_features(
    net: nn.Module, images: Tensor, device: torch.device, dtype: torch.dtype | None
) -> list[np.ndarray]:
    """Features of one batch of pictures.

    Parameters
    ----------
    net : a `FeatureNet`, or what `inference.faster` makes of it; on `device`, in evaluation mode
    images : B x H x W x 3, uint8
    device, dtype : where and in which 16-bit type (None: float32) the network runs

    Returns
    -------
    What the network gives, float32.
    """
    with autocast(device, dtype):
        return [feature.float().cpu().numpy() for feature in net(network_input(images, device))]

"""Classification models of torchvision and timm -> backbones that end in their last conv map."""

import pickle  # for its error alone
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn

from network.layers import MEAN, STD, channel_values
from utils import UserError

# Names of classifiers and auxiliary classifiers: no part of a backbone.
HEADS = ("fc.", "classifier.", "head", "aux", "AuxLogits.")


class WeightsError(Exception):
    """Weights that are not those of the network they are loaded into."""


def build_backbone(
    name: str, imagenet: bool = False, weights: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Build a backbone: N x 3 x H x W -> N x C x h x w.

    A ResNet's state dict gets the keys 0, 1, 4 ... 7 for conv1, bn1, layer1 ... layer4, as in the
    2018 project. A vision transformer's patch tokens are laid out as a map.

    Parameters
    ----------
    name : a torchvision classification model, or timm/NAME
    imagenet : load the library's ImageNet weights (downloaded by it on first use)
    weights : a state dict in the library's own names, with or without the classifier

    Raises
    ------
    UserError : no such model, or its ImageNet weights cannot be had
    WeightsError : `weights` are another model's
    """
    if name.startswith("timm/"):
        model = _timm_model(name.removeprefix("timm/"), imagenet)
        cut = _TimmFeatures
    else:
        model = _torchvision_model(name, imagenet)
        cut = _torchvision_conv_map
    loaded = load_fitting(model, weights, name) if weights is not None else None
    backbone = cut(model)
    if loaded is not None:
        require_loaded(backbone, loaded, name)
    return backbone


def load_fitting(module: nn.Module, weights: Mapping[str, Tensor], name: str) -> set[int]:
    """Load the tensors that fit by name and shape.

    Returns
    -------
    The `id` of each of the module's tensors that got its value: names change when the module
    becomes a part of another one, the tensors stay.

    Raises
    ------
    WeightsError : a tensor has no namesake and is of no classifier: the weights of a deeper model
    """
    own = module.state_dict(keep_vars=True)
    strange = [key for key in weights if key not in own and not key.startswith(HEADS)]
    if strange:
        raise WeightsError(
            f"not the weights of a {name}: it has no {strange[0]}"
            + (f", nor {len(strange) - 1} others of them" if len(strange) > 1 else "")
        )
    fitting = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    with torch.no_grad():
        for key, value in fitting.items():
            own[key].copy_(value)
    return {id(own[key]) for key in fitting}


def require_loaded(module: nn.Module, loaded: set[int], name: str) -> None:
    """Raise a `WeightsError` unless every tensor of a module is among the `loaded`."""
    own = module.state_dict(keep_vars=True)
    # Written since PyTorch 0.4.1 only, and used by no batch norm with a momentum.
    wanted = {k: v for k, v in own.items() if not k.endswith("num_batches_tracked")}
    missing = [key for key, tensor in wanted.items() if id(tensor) not in loaded]
    if missing:
        raise WeightsError(
            f"not the weights of a {name}: {len(missing)} of {len(wanted)} tensors are missing or"
            f" of another shape, {missing[0]} among them"
        )


class _VitFeatures(nn.Module):
    """torchvision's vision transformer up to its last patch tokens, as a conv map."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit
        vit.heads = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        patches = self.vit._process_input(x)
        start = self.vit.class_token.expand(len(x), -1, -1)
        return _tokens_to_map(self.vit.encoder(torch.cat([start, patches], 1)), leading=1)


def _tokens_to_map(tokens: Tensor, leading: int) -> Tensor:
    """N x tokens x C -> N x C x h x w: leading tokens that are no patch dropped, h = w."""
    patches = tokens[:, leading:].transpose(1, 2)
    side = round(patches.shape[2] ** 0.5)
    return patches.unflatten(2, (side, side))


class _TimmFeatures(nn.Module):
    """A timm model up to its last features, as a conv map."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        features = self.model.forward_features(x)
        if features.dim() == 3:
            return _tokens_to_map(features, getattr(self.model, "num_prefix_tokens", 0))
        if getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            return features.permute(0, 3, 1, 2)
        return features


class _HalfNormalised(nn.Module):
    """ImageNet's normalisation -> mean and deviation 0.5, which GoogLeNet and Inception expect."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", channel_values(MEAN), persistent=False)
        self.register_buffer("std", channel_values(STD), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.std + self.mean - 0.5) / 0.5


def _torchvision_conv_map(model: nn.Module) -> nn.Module:
    """Cut the pooling and the classifier off."""
    if hasattr(model, "class_token"):  # ViT
        return _VitFeatures(model)
    if hasattr(model, "permute"):  # Swin
        return nn.Sequential(model.features, model.norm, model.permute)
    if hasattr(model, "features"):  # VGG, MobileNet, EfficientNet, ConvNeXt, DenseNet ...
        dense = type(model).__name__ == "DenseNet"  # its forward ends in a ReLU
        return nn.Sequential(model.features, nn.ReLU()) if dense else model.features
    if hasattr(model, "layers"):  # MNASNet
        return model.layers
    parts: list[nn.Module] = [_HalfNormalised()] if hasattr(model, "transform_input") else []
    for name, child in model.named_children():  # ResNet, RegNet, ShuffleNet, Inception, MaxVit ...
        if name in {"avgpool", "fc", "classifier"}:
            break
        if not name.lower().startswith("aux"):
            parts += child if isinstance(child, nn.ModuleList) else [child]
    return nn.Sequential(*parts)


def _torchvision_model(name: str, imagenet: bool) -> nn.Module:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise _unknown(name)
    if not imagenet:
        # Without it these two print a warning.
        options = {"init_weights": True} if name in {"googlenet", "inception_v3"} else {}
        return models.get_model(name, weights=None, **options)
    # The first weights of each model, not the newest: those the literature's figures start from.
    weights = next(iter(models.get_model_weights(name)))
    place = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    try:
        # First so that no code in the file is run; torchvision's own loading would run it.
        weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
        return models.get_model(name, weights=weights)
    except (URLError, OSError) as error:
        raise UserError(
            f"PRETRAINED imagenet: {weights.url} cannot be downloaded ({error}); get it elsewhere"
            f" and put it at {place}, or set PRETRAINED to the file, or to none"
        ) from None
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        raise UserError(f"PRETRAINED imagenet: {place} is damaged; delete it") from None


def _timm_model(name: str, imagenet: bool) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise UserError(f"BACKBONE timm/{name}: timm is missing; run: pip install timm") from None
    if not timm.is_model(name):
        raise _unknown(f"timm/{name}")
    try:
        return timm.create_model(name, pretrained=imagenet, num_classes=0)
    except Exception as error:  # the hub's client raises many types when it is out of reach
        if not imagenet:
            raise
        raise UserError(
            f"PRETRAINED imagenet: the weights of timm/{name} cannot be downloaded: {error}; set"
            " PRETRAINED to a file with them, or to none"
        ) from None


def _unknown(name: str) -> UserError:
    return UserError(
        f"BACKBONE {name!r}: not a torchvision classification model or timm/NAME; for instance"
        " resnet50, mobilenet_v2, convnext_tiny"
    )

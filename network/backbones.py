"""Classification models of torchvision and timm -> backbones that end in their last conv map."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils import UserError, needs_package

HEADS = ("fc.", "classifier.", "head")  # how the names of classifiers begin


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
    of_timm = name.startswith("timm/")
    model = (_timm_model if of_timm else _torchvision_model)(name, imagenet)
    if weights is not None:
        load_weights(model, weights, name, may_lack=HEADS)
    return _TimmFeatures(model) if of_timm else _torchvision_conv_map(model)


def load_weights(
    module: nn.Module, weights: Mapping[str, Tensor], name: str, may_lack: tuple[str, ...] = ()
) -> None:
    """Load weights by name.

    Parameters
    ----------
    module : of the backbone `name`
    weights : a state dict
    may_lack : how the names of tensors begin that may be missing, superfluous or of another shape

    Raises
    ------
    WeightsError : another tensor is missing, superfluous or of another shape
    """
    own = module.state_dict()
    fitting = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    # Written since PyTorch 0.4.1 only, and used by no batch norm with a momentum.
    wrong = [
        key
        for key in {**own, **weights}
        if key not in fitting and not key.startswith(may_lack) and "num_batches_tracked" not in key
    ]
    if wrong:
        raise WeightsError(
            f"not the weights of a {name}: {len(wrong)} tensors are missing, of another shape or of"
            f" no use, {wrong[0]} among them"
        )
    for key, value in fitting.items():
        own[key].copy_(value)


class _VitFeatures(nn.Module):
    """torchvision's vision transformer up to its last patch tokens, as a conv map."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.vit: Any = vit
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
        self.model: Any = model

    def forward(self, x: Tensor) -> Tensor:
        features = self.model.forward_features(x)
        if features.dim() == 3:
            return _tokens_to_map(features, getattr(self.model, "num_prefix_tokens", 0))
        if getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            return features.permute(0, 3, 1, 2)
        return features


def _torchvision_conv_map(model: Any) -> nn.Module:
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
    parts: list[nn.Module] = []
    for name, child in model.named_children():  # ResNet, RegNet, ShuffleNet, MaxVit
        if name in {"avgpool", "fc", "classifier"}:
            break
        parts += child if isinstance(child, nn.ModuleList) else [child]
    return nn.Sequential(*parts)


def _torchvision_model(name: str, imagenet: bool) -> nn.Module:
    from torchvision import models

    # These two expect another normalisation of their input, and have auxiliary classifiers.
    if name not in models.list_models(module=models, exclude=("googlenet", "inception_v3")):
        raise _unknown(name)
    if not imagenet:
        return models.get_model(name, weights=None)
    # The first weights of each model, not the newest: those the literature's figures start from.
    weights = next(iter(models.get_model_weights(name)))
    place = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    try:
        # First so that no code in the file is run; torchvision's own loading would run it.
        weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
        return models.get_model(name, weights=weights)
    except Exception as error:  # of many types
        reason = str(error).split("\n")[0]
        raise UserError(
            f"PRETRAINED imagenet: {weights.url} cannot be downloaded to {place}, or is damaged"
            f" there ({reason}); get it elsewhere, or set PRETRAINED to the file, or to none"
        ) from None


def _timm_model(name: str, imagenet: bool) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise needs_package(error, f"BACKBONE {name}", "pip install timm") from None
    own_name = name.removeprefix("timm/")
    if not timm.is_model(own_name):
        raise _unknown(name)
    try:
        return timm.create_model(own_name, pretrained=imagenet, num_classes=0)
    except Exception as error:  # the hub's client raises many types when it is out of reach
        raise UserError(
            f"PRETRAINED imagenet: the weights of {name} cannot be downloaded: {error}; set"
            " PRETRAINED to a file with them, or to none"
        ) from None


def _unknown(name: str) -> UserError:
    return UserError(
        f"BACKBONE {name!r}: not a torchvision classification model or timm/NAME; for instance"
        " resnet50, mobilenet_v2, convnext_tiny"
    )

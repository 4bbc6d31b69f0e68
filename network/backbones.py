"""Models of torchvision, timm and open_clip -> backbones that end in their last conv map."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from network.architecture import Architecture, import_timm, unknown_model
from network.image_text import PREFIX, build_image_text, find_weights
from utils import UserError

HEADS = ("fc.", "classifier.", "head")  # how the names of classifiers begin


def build_backbone(
    architecture: Architecture,
    pretrained: str = "none",
    weights: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Build a backbone: N x 3 x H x W -> N x C x h x w.

    With POOLING=model it gives a pair, the map and the model's own pooled output N x D: what its
    classifier gets, or the image's place in the space of an image-text model.

    A ResNet's state dict gets the keys 0, 1, 4 ... 7 for conv1, bn1, layer1 ... layer4, as in the
    2018 project. A vision transformer's patch tokens are laid out as a map.

    Parameters
    ----------
    architecture : what to build
    pretrained : imagenet loads the library's weights (downloaded by it on first use); of open_clip
        also a tag or a file
    weights : a state dict in the library's own names, with or without the classifier; a `UserError`
        where it is another model's
    """
    name, pooled = architecture.backbone, architecture.pooling == "model"
    if architecture.open_clip:
        file = None if pretrained == "none" else find_weights(name, pretrained)
        size = architecture.crop_size
        return _ImageTextFeatures(
            build_image_text(name, architecture.open_clip, size, file), pooled
        )
    build = _timm_model if name.startswith("timm/") else _torchvision_model
    model: Any = build(name, pretrained == "imagenet")
    if name.startswith("timm/"):
        module: nn.Module = _TimmFeatures(model, pooled)
    elif hasattr(model, "class_token"):
        module = _VitFeatures(model, pooled)
    else:
        module = _torchvision_conv_map(model)
        if pooled:
            module = _WithHead(module, _torchvision_head(model))
    if weights:
        own = model.state_dict()
        used = {k: v for k, v in weights.items() if k in own or not k.startswith(HEADS)}
        source = f"PRETRAINED {pretrained}: not the weights of a {name}"
        load_weights(model, used, source, () if pooled else HEADS)
    return module


def load_weights(
    module: nn.Module, weights: Mapping[str, Tensor], refused: str, may_lack: tuple[str, ...] = ()
) -> None:
    """Load a state dict by name.

    A `UserError` that begins by `refused` where a tensor is missing, superfluous or of another
    shape, unless its name begins by one of `may_lack`.
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
        raise UserError(
            f"{refused}: {len(wrong)} tensors are missing, of another shape or of no use,"
            f" {wrong[0]} among them"
        )
    for key, value in fitting.items():
        own[key].copy_(value)


class _VitFeatures(nn.Module):
    """torchvision's vision transformer up to its last patch tokens, as a conv map."""

    def __init__(self, vit: Any, pooled: bool) -> None:
        super().__init__()
        self.vit, self.pooled = vit, pooled
        vit.heads = nn.Identity()

    def forward(self, x: Tensor) -> Any:
        patches = self.vit._process_input(x)
        start = self.vit.class_token.expand(len(x), -1, -1)
        tokens = self.vit.encoder(torch.cat([start, patches], 1))
        conv_map = _tokens_to_map(tokens, leading=1)
        return (conv_map, tokens[:, 0]) if self.pooled else conv_map


def _tokens_to_map(tokens: Tensor, leading: int) -> Tensor:
    """N x tokens x C -> N x C x h x w: leading tokens that are no patch dropped, h = w."""
    patches = tokens[:, leading:].transpose(1, 2)
    side = round(patches.shape[2] ** 0.5)
    return patches.unflatten(2, (side, side))


class _TimmFeatures(nn.Module):
    """A timm model up to its last features, as a conv map."""

    def __init__(self, model: nn.Module, pooled: bool) -> None:
        super().__init__()
        self.model: Any = model
        self.pooled = pooled

    def forward(self, x: Tensor) -> Any:
        features = self.model.forward_features(x)
        conv_map = features
        if features.dim() == 3:
            conv_map = _tokens_to_map(features, getattr(self.model, "num_prefix_tokens", 0))
        elif getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            conv_map = features.permute(0, 3, 1, 2)
        if not self.pooled:
            return conv_map
        return conv_map, self.model.forward_head(features, pre_logits=True)


class _ImageTextFeatures(nn.Module):
    """A model of open_clip up to the last features of its image tower, as a conv map."""

    def __init__(self, model: nn.Module, pooled: bool) -> None:
        super().__init__()
        self.model: Any = model
        self.pooled = pooled
        self.requires_grad_()

    def requires_grad_(self, requires_grad: bool = True) -> "_ImageTextFeatures":
        """As of any module, but the text tower is never trained."""
        super().requires_grad_(False)
        self.model.visual.requires_grad_(requires_grad)
        return self

    def forward(self, x: Tensor) -> Any:
        visual = self.model.visual
        # The norm of an attention pool comes after it, and may be of another width.
        norm = getattr(visual, "attn_pool", None) is None
        found = visual.forward_intermediates(x, indices=1, normalize_intermediates=norm)
        conv_map = found["image_intermediates"][-1]
        return (conv_map, found["image_features"]) if self.pooled else conv_map


class _WithHead(nn.Module):
    """A conv map, and what a model makes of it before its last layer."""

    def __init__(self, conv_map: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.conv_map, self.head = conv_map, head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        conv_map = self.conv_map(x)
        return conv_map, self.head(conv_map)


# Of open_clip's own vision transformer, in the form of timm's `group_matcher`.
LAYERS = {
    "stem": r"^(?:conv1|class_embedding|positional_embedding|ln_pre)",
    "blocks": [(r"^transformer\.resblocks\.(\d+)", None)],
}


def _library_model(backbone: nn.Module) -> Any:
    """The image model of timm or open_clip within a backbone; None of torchvision's."""
    model = getattr(backbone, "model", None)
    visual = getattr(model, "visual", model)
    return getattr(visual, "trunk", visual)


def layer_depths(backbone: nn.Module) -> dict[Tensor, int]:
    """The depth of the layer that each parameter of a transformer belongs to, from 0.

    Of timm and open_clip only; empty for other backbones. What comes after the blocks may be left
    out.
    """
    model = _library_model(backbone)
    if hasattr(model, "patch_embed"):
        matcher = model.group_matcher()
    elif hasattr(model, "class_embedding"):
        matcher = LAYERS
    else:
        return {}
    from timm.models import group_parameters

    depths = group_parameters(model, matcher, reverse=True)
    return {model.get_parameter(name): depth for name, depth in depths.items()}


def checkpoint_gradients(backbone: nn.Module, name: str) -> None:
    """Have a backbone keep few activations for the backward pass, and compute the others again."""
    model = _library_model(backbone)
    try:
        model.set_grad_checkpointing(True)
        able = not hasattr(model, "attnpool")  # open_clip's ResNet ignores it
    except (AttributeError, AssertionError):
        able = False
    if not able:
        raise UserError(
            f"GRAD_CHECKPOINTING: {name} has none; take a transformer of timm/ or {PREFIX}, or set"
            " TRAIN_BATCH_SIZE lower"
        )


def _torchvision_conv_map(model: Any) -> nn.Module:
    """Cut the pooling and the classifier off."""
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


def _torchvision_head(model: Any) -> nn.Module:
    """The pooling, and the layers of the classifier before the last, which is removed."""
    head = getattr(model, "classifier", None)
    layers = [*head] if isinstance(head, nn.Sequential) and isinstance(head[-1], nn.Linear) else []
    model.fc = model.head = nn.Identity()
    model.classifier = nn.Sequential(*layers[:-1])  # so that weights are loaded into them
    pool = getattr(model, "avgpool", None) or nn.AdaptiveAvgPool2d(1)
    # Of VGG they take vectors; of ConvNeXt a map, which they make one of.
    flat = [] if any(isinstance(layer, nn.Flatten) for layer in layers) else [nn.Flatten()]
    return nn.Sequential(pool, *flat, *layers[:-1])


def _torchvision_model(name: str, imagenet: bool) -> nn.Module:
    from torchvision import models

    # These two expect another normalisation of their input, and have auxiliary classifiers.
    if name not in models.list_models(module=models, exclude=("googlenet", "inception_v3")):
        raise unknown_model(name)
    if not imagenet:
        return models.get_model(name, weights=None)
    # The first weights of each model, not the newest: those the literature's figures start from.
    weights = next(iter(models.get_model_weights(name)))
    try:
        # First so that no code in the file is run; torchvision's own loading would run it.
        weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
        return models.get_model(name, weights=weights)
    except Exception as error:  # of many types
        place = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
        what = f"{weights.url} cannot be downloaded to {place}, or is damaged there"
        raise _not_downloaded(what, error) from None


def _timm_model(name: str, imagenet: bool) -> nn.Module:
    timm, own_name = import_timm(name), name.removeprefix("timm/")
    how: dict[str, Any] = {"pretrained": imagenet, "num_classes": 0}
    try:
        try:
            return timm.create_model(own_name, **how, dynamic_img_size=True)  # of transformers
        except TypeError:
            return timm.create_model(own_name, **how)
    except Exception as error:  # the hub's client raises many types when it is out of reach
        if not imagenet:
            raise
        raise _not_downloaded(f"model.safetensors of {name} cannot be downloaded", error) from None


def _not_downloaded(what: str, error: Exception) -> UserError:
    reason = str(error).strip().split("\n")[0]
    return UserError(
        f"PRETRAINED imagenet: {what} ({reason}); get it elsewhere, and set PRETRAINED to the file,"
        " or to none"
    )

"""What has to be known to build a network and to feed it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from config import MAX_PIXELS, Config
from network.image_text import INSTALL, PREFIX, read_config
from network.layers import MEAN, STD
from utils import UserError, needs_package

Side = Annotated[int, Field(ge=1, le=MAX_PIXELS)]
_Mean = Annotated[float, Field(allow_inf_nan=False)]
_Deviation = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Byte = Annotated[int, Field(ge=0, le=255)]
Resize = Literal["padded", "shortest", "squash", "longest"]
OF_TIMM: dict[str, Resize] = {"center": "shortest", "squash": "squash", "border": "longest"}


@dataclass(frozen=True)
class Architecture:
    """What has to be known to build a network and to feed it; "network" in a checkpoint.

    Attributes
    ----------
    backbone : a torchvision classification model, timm/NAME or open_clip/NAME
    inter_dim : length D of the embedding; 0 for the pooled features themselves
    categories : names of the categories, in the order of the logits
    img_size : short side in px that pictures are scaled to
    crop_size : side in px of the square cut from their middle, the input
    pooling : avg, avgmax (their sum), gem, or model: the backbone's own pooled output
    normalised : the embedding lies on a sphere, see `EmbeddingNet`
    mean, std : of R, G and B, from 0 to 1, which the input is normalised by
    interpolation, resize, fill : see `data.eval_transform`
    open_clip : of such a model the configuration, see `image_text.read_config`
    """

    backbone: str
    inter_dim: Annotated[int, Field(ge=0)]
    categories: list[str]
    img_size: Side
    crop_size: Side
    pooling: Literal["avg", "avgmax", "gem", "model"] = "avg"
    normalised: bool = False
    mean: tuple[_Mean, _Mean, _Mean] = MEAN
    std: tuple[_Deviation, _Deviation, _Deviation] = STD
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    resize: Resize = "padded"
    fill: tuple[_Byte, _Byte, _Byte] = (124, 116, 104)  # the mean of ImageNet
    open_clip: dict[str, Any] | None = None

    @property
    def category_dims(self) -> int:
        """Columns at the beginning of the embedding that are the category's part."""
        return len(self.categories) if self.normalised and self.inter_dim else 0

    @property
    def has_words(self) -> bool:
        """Whether embeddings lie in one space with those of words."""
        return bool(self.open_clip) and self.pooling == "model" and not self.inter_dim

    @property
    def transform(self) -> dict[str, Any]:
        """The arguments of `data.eval_transform`."""
        names = ("img_size", "crop_size", "interpolation", "resize", "fill")
        return {name: getattr(self, name) for name in names}


_ARCHITECTURE = TypeAdapter(Architecture)


def parse_architecture(record: Any, source: Path | str) -> Architecture:
    """Check the record of a checkpoint or model, `source`; unknown fields are ignored."""
    try:
        return _ARCHITECTURE.validate_python(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "network"
        raise UserError(
            f"{source}: no network that this version can build ({place}: {first['msg']}); train"
            " again, or take another model"
        ) from None


def new_architecture(config: Config, categories: list[str]) -> Architecture:
    """The architecture that the settings describe.

    A model of timm or open_clip is fed as its library feeds it, but for sizes that are set, and
    POOLING=auto takes its own pooled output. A `UserError` where there is no such model, or its
    configuration cannot be had.
    """
    name, size, crop = config.BACKBONE, config.IMG_SIZE, config.CROP_SIZE
    fed: dict[str, Any] = {}
    if name.startswith(("timm/", PREFIX)):
        of_timm = name.startswith("timm/")
        fed = _timm_input(name) if of_timm else _open_clip_input(name, config.PRETRAINED)
        given, side, share = config.model_fields_set, fed.pop("side"), fed.pop("share")
        if not isinstance(side, int):
            raise UserError(f"BACKBONE {name}: its configuration has the image size {side!r}")
        if "CROP_SIZE" not in given:
            crop = min(side, size) if "IMG_SIZE" in given else side
        if "IMG_SIZE" not in given:
            size = math.floor(crop / share)
    pooling = config.POOLING
    if pooling == "auto":
        pooling = "model" if fed else "avgmax"
    record = {"backbone": name, "inter_dim": config.INTER_DIM, "categories": categories}
    record |= {"img_size": size, "crop_size": crop, "pooling": pooling}
    return parse_architecture({**record, "normalised": config.NORMALIZE, **fed}, name)


def import_timm(name: str) -> Any:
    """timm, which has a model `name`."""
    try:
        import timm
    except ImportError as error:
        raise needs_package(error, f"BACKBONE {name}", INSTALL) from None
    if not timm.is_model(name.removeprefix("timm/")):
        raise unknown_model(name)
    return timm


def unknown_model(name: str) -> UserError:
    """The error of a BACKBONE that no library has."""
    return UserError(
        f"BACKBONE {name!r}: not a torchvision classification model, timm/NAME or {PREFIX}NAME;"
        " for instance resnet50, mobilenet_v2, convnext_tiny"
    )


def _timm_input(name: str) -> dict[str, Any]:
    """How timm feeds a model: fields of an `Architecture`, its side in px, the share of it seen."""
    timm = import_timm(name)
    try:
        facts = timm.models.get_pretrained_cfg(name.removeprefix("timm/"))
    except RuntimeError as error:  # no such tag
        raise UserError(f"BACKBONE {name}: {error}") from None
    facts = timm.data.resolve_data_config(pretrained_cfg=facts.to_dict() if facts else {})
    return {
        "mean": facts["mean"],
        "std": facts["std"],
        "interpolation": facts["interpolation"],
        "resize": OF_TIMM[facts["crop_mode"]],
        "fill": tuple(round(255 * value) for value in facts["mean"]),
        "side": min(facts["input_size"][1:]),
        "share": facts["crop_pct"],
    }


def _open_clip_input(name: str, pretrained: str) -> dict[str, Any]:
    """How open_clip feeds a model, as `_timm_input`."""
    config = read_config(name, pretrained)
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    facts = merge_preprocess_dict(PreprocessCfg(), config["preprocess_cfg"])
    side = config["model_cfg"]["vision_cfg"].get("image_size", facts["size"])
    return {
        "mean": facts["mean"],
        "std": facts["std"],
        "interpolation": "bilinear" if facts["interpolation"] == "bilinear" else "bicubic",
        "resize": facts["resize_mode"],
        "fill": (facts["fill_color"],) * 3,
        "side": min(side) if isinstance(side, list | tuple) else side,
        "share": 1.0,
        "open_clip": config,
    }

"""What has to be known to build a network and to feed it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from config import MAX_PIXELS, Config
from network.backbones import import_timm
from network.image_text import PREFIX, read_config
from network.layers import MEAN, STD
from utils import UserError

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


def parse_architecture(
    record: Any, path: Path, problem: str = "written by another version ({}); train again"
) -> Architecture:
    """Check the architecture that a checkpoint records; unknown fields are ignored."""
    try:
        return _ARCHITECTURE.validate_python(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "network"
        cause = problem.format(f"{place}: {first['msg']}")
        raise UserError(f"{path}: {cause}") from None


def new_architecture(config: Config, categories: list[str]) -> Architecture:
    """The architecture that the settings describe.

    A model of timm or open_clip is fed as its library feeds it, but for sizes that are set, and
    POOLING=auto takes its own pooled output.

    Raises
    ------
    UserError : no such model, or its configuration cannot be had
    """
    name = config.BACKBONE
    of_torchvision = not name.startswith(("timm/", PREFIX))
    pooling = config.POOLING
    if pooling == "auto":
        pooling = "avgmax" if of_torchvision else "model"
    fed = _open_clip_input if name.startswith(PREFIX) else _timm_input
    facts = {} if of_torchvision else fed(name, config.PRETRAINED)
    size, crop = config.IMG_SIZE, config.CROP_SIZE
    if share := facts.pop("share", None):
        given = config.model_fields_set & {"IMG_SIZE", "CROP_SIZE"}
        crop = facts.pop("crop_size")
        if "CROP_SIZE" in given:
            crop = config.CROP_SIZE
        elif "IMG_SIZE" in given:
            crop = min(crop, config.IMG_SIZE)
        if not isinstance(crop, int):
            raise UserError(f"BACKBONE {name}: its configuration has the image size {crop!r}")
        size = config.IMG_SIZE if "IMG_SIZE" in given else math.floor(crop / share)
    record = dict(facts, img_size=size, crop_size=crop, pooling=pooling)
    record |= {"backbone": name, "inter_dim": config.INTER_DIM, "categories": categories}
    problem = "cannot be fed as its configuration has it ({}); take another model"
    return parse_architecture(record | {"normalised": config.NORMALIZE}, Path(name), problem)


def _timm_input(name: str, _: str) -> dict[str, Any]:
    """How timm feeds a model: fields of an `Architecture`, and the share of img_size seen."""
    timm = import_timm(name)
    facts = timm.models.get_pretrained_cfg(name.removeprefix("timm/"))
    facts = timm.data.resolve_data_config(pretrained_cfg=facts.to_dict() if facts else {})
    side, mean = min(facts["input_size"][1:]), facts["mean"]
    return {
        "mean": mean,
        "std": facts["std"],
        "interpolation": facts["interpolation"],
        "resize": OF_TIMM[facts["crop_mode"]],
        "fill": tuple(round(255 * value) for value in mean),
        "crop_size": side,
        "share": facts["crop_pct"],
    }


def _open_clip_input(name: str, pretrained: str) -> dict[str, Any]:
    """How open_clip feeds a model, as `_timm_input`."""
    config = read_config(name, pretrained)
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    given = config["preprocess_cfg"]
    facts = merge_preprocess_dict(PreprocessCfg(), given if isinstance(given, dict) else {})
    side = config["model_cfg"]["vision_cfg"].get("image_size", facts["size"])
    side = min(side, default=0) if isinstance(side, list | tuple) else side
    return {
        "mean": facts["mean"],
        "std": facts["std"],
        "interpolation": "bilinear" if facts["interpolation"] == "bilinear" else "bicubic",
        "resize": facts["resize_mode"],
        "fill": (facts["fill_color"],) * 3,
        "crop_size": side,
        "share": 1.0,
        "open_clip": config,
    }

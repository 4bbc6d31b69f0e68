"""Every setting of the project: its name, type, meaning, unit and default.

Change a default here, or override it for one run, the strongest first:

    python train.py --epoch 3        a flag (lower case, hyphens)
    FASHION_EPOCH=3                  an environment variable
    FASHION_EPOCH=3                  a line in the file .env of the working folder
"""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

from dotenv import dotenv_values
from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

# The metrics of scipy.spatial.distance.cdist that every supported SciPy knows.
METRICS = (
    "braycurtis", "canberra", "chebyshev", "cityblock", "correlation", "cosine", "dice",
    "euclidean", "hamming", "jaccard", "jensenshannon", "mahalanobis", "minkowski",
    "rogerstanimoto", "russellrao", "seuclidean", "sokalsneath", "sqeuclidean", "yule",
)  # fmt: skip

GROUPS = ("data set", "network", "training", "feature database", "ranking", "machine")
ENV_PREFIX = "FASHION_"
ENV_OF_TESTS = "FASHION_TEST_DATA"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _setting(group: str, meaning: str, default: Any, **limits: Any) -> Any:
    if isinstance(default, float):
        limits.setdefault("allow_inf_nan", False)
    return Field(default, description=meaning, json_schema_extra={"group": group}, **limits)


class Config(BaseSettings):
    """The settings of one run. Frozen: made once in a script's `main`, then passed on by value."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_file=".env", frozen=True, extra="ignore"
    )

    # --- data set
    DATASET_BASE: Path = _setting(
        "data set",
        "folder of the data set: DeepFashion's files, or a plain folder of photos",
        Path("data/deepfashion"),
    )
    CATEGORIES: int = _setting(
        "data set",
        "keep categories 1 to N of the lists (20: DeepFashion's upper-body part, 50: all)",
        20,
        ge=1,
    )
    CROP_TO_BBOX: bool = _setting(
        "data set", "crop pictures that have a bounding box to it, in training and database", True
    )
    ENABLE_INSHOP_DATASET: bool = _setting(
        "data set", "also use the in-shop part (items in several views) below in_shop/", False
    )
    INSHOP_DATASET_PERCENT: float = _setting(
        "data set", "share of triplets drawn from in-shop items, 0 to 1", 0.8, ge=0, le=1
    )
    VAL_SHARE: float = _setting(
        "data set",
        "share of a photo folder held out for validation where it has no split of its own",
        0.1,
        gt=0,
        lt=1,
    )
    IMG_SIZE: int = _setting(
        "data set",
        "short side in px that pictures are scaled to (a checkpoint's own goes first)",
        256,
        ge=16,
    )
    CROP_SIZE: int = _setting(
        "data set",
        "side in px of the input cut from the scaled picture (a checkpoint's own goes first)",
        224,
        ge=16,
    )

    # --- network
    BACKBONE: str = _setting(
        "network", "a torchvision classification model, or timm/NAME", "resnet50"
    )
    PRETRAINED: str = _setting(
        "network",
        "weights training starts from: imagenet (torchvision's), a file (backbone weights or a"
        " checkpoint of this project), or none",
        "imagenet",
    )
    INTER_DIM: int = _setting(
        "network", "length of the embedding; 0: the pooled conv map itself", 512, ge=0
    )

    # --- training
    EPOCH: int = _setting(
        "training", "passes over the training part; 0 writes the untrained network", 10, ge=0
    )
    TRAIN_BATCH_SIZE: int = _setting("training", "pictures a step for cross entropy", 32, ge=1)
    TRIPLET_BATCH_SIZE: int = _setting("training", "triplets a step", 32, ge=1)
    TEST_BATCH_SIZE: int = _setting("training", "pictures a step of validation", 32, ge=1)
    TEST_BATCH_COUNT: int = _setting(
        "training", "batches of a validation between epochs; each epoch ends with a full one", 30,
        ge=1,
    )  # fmt: skip
    LR: float = _setting("training", "learning rate of SGD", 0.001, gt=0)
    MOMENTUM: float = _setting("training", "momentum of SGD", 0.5, ge=0, lt=1)
    TRIPLET_WEIGHT: float = _setting(
        "training", "weight of the triplet loss beside cross entropy; 0 switches it off", 2.0, ge=0
    )
    ENABLE_TRIPLET_WITH_COSINE: bool = _setting(
        "training", "triplet loss on cosine instead of Euclidean distance", False
    )
    FREEZE_PARAM: Literal["auto", "true", "false"] = _setting(
        "training",
        "backbone frozen: auto (until loss and accuracy are stable), true or false (throughout)",
        "auto",
    )
    LOG_INTERVAL: int = _setting("training", "steps between points of the loss curves", 10, ge=1)
    TEST_INTERVAL: int = _setting("training", "steps between validations", 100, ge=1)
    DUMP_INTERVAL: int = _setting("training", "steps between resume points", 500, ge=1)

    # --- feature database
    DUMPED_MODEL: str = _setting(
        "feature database",
        "the trained network: a file, or a name below DATASET_BASE/models",
        "model_best.pth.tar",
    )
    EXTRACT_BATCH_SIZE: int = _setting(
        "feature database", "pictures a step of extraction", 128, ge=1
    )
    COLOR_TOP_N: int = _setting(
        "feature database", "cells of the conv map that the colour feature describes", 10, ge=1
    )

    # --- ranking
    DISTANCE_METRIC: Annotated[tuple[str, str], NoDecode] = _setting(
        "ranking",
        "metrics of deep and colour feature, any two of scipy's cdist, as deep,colour",
        ("euclidean", "euclidean"),
    )
    COLOR_WEIGHT: float = _setting("ranking", "weight of the colour distance", 0.1, ge=0)
    N_CLUSTERS: int = _setting("ranking", "clusters that kmeans.py makes", 50, ge=1)
    NPROBE: int = _setting("ranking", "clusters that a k-means query searches", 8, ge=1)

    # --- machine
    DEVICE: str = _setting(
        "machine",
        "auto (cuda, else mps, else cpu), cpu, cuda, cuda:N or mps",
        "auto",
    )
    AMP: Literal["auto", "off", "bf16", "fp16"] = _setting(
        "machine", "16-bit arithmetic: auto uses it where the device is faster with it", "auto"
    )
    NUM_WORKERS: int = _setting(
        "machine", "processes that read pictures; 0 reads in the main one", min(4, _cores()), ge=0
    )
    SEED: int = _setting("machine", "seed of everything random", 0, ge=0, lt=2**63)

    @field_validator("DISTANCE_METRIC", mode="before")
    @classmethod
    def _split_metrics(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        metrics = tuple(part.strip() for part in value.split(","))
        if len(metrics) != 2:
            raise ValueError("two metrics are wanted, as in euclidean,cosine")
        return metrics

    @field_validator("DISTANCE_METRIC")
    @classmethod
    def _known_metrics(cls, value: tuple[str, str]) -> tuple[str, str]:
        for metric in value:
            if metric not in METRICS:
                near = difflib.get_close_matches(metric, METRICS, 1)
                hint = f" (did you mean {near[0]}?)" if near else ""
                raise ValueError(f"{metric!r} is not one of {', '.join(METRICS)}{hint}")
        return value

    @field_validator("CROP_SIZE")
    @classmethod
    def _not_beyond_the_picture(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("IMG_SIZE", value):
            raise ValueError(f"must not be greater than IMG_SIZE, which is {info.data['IMG_SIZE']}")
        return value

    @field_validator("DEVICE")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
            raise ValueError("must be auto, cpu, cuda, cuda:N or mps")
        return value


class _Parser(argparse.ArgumentParser):
    """argparse, but an error is one line instead of the usage of some forty settings."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see --help)", file=sys.stderr)
        raise SystemExit(2)


def _metavar(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return "|".join(get_args(field.annotation))
    names = {bool: "true|false", int: "N", float: "X", str: "NAME", Path: "FOLDER"}
    return names.get(field.annotation, "A,B")


def _flag(name: str) -> str:
    return "--" + name.lower().replace("_", "-")


def _group_of(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra["group"]) if isinstance(extra, dict) else ""


def _add_settings(parser: argparse.ArgumentParser, uses: Sequence[str]) -> None:
    """One flag for each setting: the groups the script uses first, the others below them."""
    rest = [group for group in GROUPS if group not in uses]
    for group in [*uses, *rest]:
        title = f"settings: {group}" + ("" if group in uses else " (not used by this script)")
        section = parser.add_argument_group(title)
        for name, field in Config.model_fields.items():
            if _group_of(field) != group:
                continue
            default = field.default
            shown = ",".join(default) if isinstance(default, tuple) else default
            meaning = f"{field.description} (default: {shown})".replace("%", "%%")
            section.add_argument(
                _flag(name),
                dest=name,
                default=argparse.SUPPRESS,
                metavar=_metavar(field),
                help=meaning,
            )


def _bare_flags(argv: Sequence[str]) -> list[str]:
    """Give a switch without a value the value true: argparse would take the next argument."""
    switches = {_flag(name) for name, f in Config.model_fields.items() if f.annotation is bool}
    values = {"true", "false", "1", "0", "yes", "no", "on", "off"}
    following = [*argv[1:], ""]
    return [
        f"{word}=true" if word in switches and after.lower() not in values else word
        for word, after in zip(argv, following, strict=False)
    ]


def _unknown_variable() -> str | None:
    """Name the first FASHION_ variable that is no setting, so that no misspelling is ignored."""
    known = {ENV_PREFIX + name for name in Config.model_fields} | {ENV_OF_TESTS}
    for name in [*os.environ, *dotenv_values(".env")]:
        if name.upper().startswith(ENV_PREFIX) and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            return f"{name}: no such setting (environment or .env){hint}"
    return None


def _problem(error: ValidationError) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0])
    said = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{name} ({_flag(name)}): {first['input']!r} is not allowed: {said}"


def parse_args(
    argv: Sequence[str] | None,
    description: str,
    uses: Sequence[str],
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
) -> tuple[Config, argparse.Namespace]:
    """Read a script's command line, the environment and .env.

    Parameters
    ----------
    argv : the arguments, without the program; None takes `sys.argv[1:]`
    description : what the script does, for `--help`
    uses : groups of settings (of `GROUPS`) that the script reads, shown first by `--help`
    add_arguments : called with the parser to add what belongs to this script alone

    Returns
    -------
    The settings, and the script's own arguments.

    Raises
    ------
    SystemExit : status 2 after one line on standard error that names the setting, the value and
        what is allowed; status 0 after `--help`
    """
    parser = _Parser(
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if add_arguments:
        add_arguments(parser)
    parser.usage = parser.format_usage().removeprefix("usage: ").strip() + " [--SETTING VALUE ...]"
    _add_settings(parser, uses)
    arguments = parser.parse_args(_bare_flags(sys.argv[1:] if argv is None else argv))
    given = {k: v for k, v in vars(arguments).items() if k in Config.model_fields}
    for name in given:
        delattr(arguments, name)
    try:
        unknown = _unknown_variable()
    except UnicodeDecodeError as error:
        parser.error(f".env: not UTF-8 text: {error}")
    if unknown:
        parser.error(unknown)
    try:
        return Config(**given), arguments
    except ValidationError as error:
        parser.error(_problem(error))

"""Every setting of the project: its name, type, meaning, unit and default.

Change a default here, or override it for one run, the strongest first:

    python train.py --epoch 3        a flag (lower case, hyphens)
    FASHION_EPOCH=3                  an environment variable
    FASHION_EPOCH=3                  a line in the file .env of the working folder
"""

import os
import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

# Of scipy.spatial.distance.cdist: those that every supported SciPy has.
Metric = Literal[
    "braycurtis", "canberra", "chebyshev", "cityblock", "correlation", "cosine", "dice",
    "euclidean", "hamming", "jaccard", "jensenshannon", "mahalanobis", "minkowski",
    "rogerstanimoto", "russellrao", "seuclidean", "sokalsneath", "sqeuclidean", "yule",
]  # fmt: skip
METRICS: tuple[str, ...] = get_args(Metric)
MAX_PIXELS = 4096  # of a side of the network's input, which has to fit into the memory
ENV_PREFIX = "FASHION_"
ENV_FILE, ENV_CODING = ".env", "utf-8-sig"  # Windows editors write a byte-order mark
ENV_OF_TESTS = "FASHION_TEST_DATA"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _setting(group: str, meaning: str, default: Any, **limits: Any) -> Any:
    return Field(default, title=group, description=meaning, **limits)


GROUPS = (  # a setting's `title` is its group
    "data set", "network", "training", "feature database", "ranking", "milvus", "machine", "server",
)  # fmt: skip
_data, _network, _training, _database, _ranking, _milvus, _machine, _server = (
    partial(_setting, group) for group in GROUPS
)

# What RECIPE=original gives the settings that are not set themselves: training as in 2018.
ORIGINAL: dict[str, Any] = {
    "IMG_SIZE": 256,
    "POOLING": "avg",
    "NORMALIZE": False,
    "TRAIN_BATCH_SIZE": 32,
    "TRIPLET_BATCH_SIZE": 32,
    "PER_CLASS": 0,
    "LABEL_SMOOTHING": 0.0,
    "METRIC_LOSS": "triplet",
    "TRIPLET_WEIGHT": 2.0,
    "OPTIMIZER": "sgd",
    "LR": 0.001,
    "FREEZE_PARAM": "auto",
    "PALETTE": False,
}

# Settings that are used together: a script that uses one uses all of them.
DISTANCE = ("DISTANCE_METRIC", "MODEL_WEIGHTS", "COLOR_WEIGHT", "PALETTE_WEIGHT")
WORDS = ("TEXT_PROMPT", "TEXT_WEIGHT")
MILVUS = ("MILVUS_URI", "MILVUS_TOKEN", "MILVUS_COLLECTION", "MILVUS_TIMEOUT")
SERVER = ("HOST", "PORT", "PUBLIC_URL", "TOKEN", "USER", "PASSWORD", "MAX_UPLOAD")


def _split(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",") if part.strip())


_Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
_Weight = Annotated[float, Field(ge=0)]
_Weights = Annotated[tuple[_Weight, ...], NoDecode, BeforeValidator(_split)]
_Metrics = Annotated[tuple[Metric, ...], NoDecode, BeforeValidator(_split)]


class Config(BaseSettings):
    """The settings of one run. Frozen: made once in a script's `main`, then passed on by value."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_file=ENV_FILE,
        env_file_encoding=ENV_CODING,
        frozen=True,
        allow_inf_nan=False,
        extra="ignore",
    )

    # --- data set
    DATASET_BASE: Path = _data(
        "folder of the data set: DeepFashion's files, or a plain folder of photos",
        Path("data/deepfashion"),
    )
    CATEGORIES: int = _data(
        "of DeepFashion's categories use 1 to N (20: its upper-body part, 50: all)", 20, ge=1
    )
    ALLOWED_ROOTS: _Names = _data(
        "folders outside the data set where links to pictures may lead: X,Y,... (recorded in it)",
        (),
    )
    TRUNCATED: Literal["refuse", "accept"] = _data(
        "picture files whose end is missing: refuse, or accept them and let Pillow fill the rest",
        "refuse",
    )
    CROP_TO_BBOX: bool = _data(
        "crop pictures that have a bounding box to it, in training and in the database", True
    )
    ENABLE_INSHOP_DATASET: bool = _data(
        "also use the items (in several views) below in_shop/ and consumer_to_shop/", False
    )
    INSHOP_DATASET_PERCENT: float = _data(
        "above 0: the metric loss is by item; with PER_CLASS=0 the share of its triplets that is",
        0.8,
        ge=0,
        le=1,
    )
    VAL_SHARE: float = _data(
        "share of the items, and of photos without a split, for validation", 0.1, gt=0, lt=1
    )
    IMG_SIZE: int = _data(
        "px of a scaled picture's short side (a checkpoint has its own); of timm/ and open_clip/"
        " models, unless set, as their library feeds them",
        224,
        ge=16,
        le=MAX_PIXELS,
    )
    CROP_SIZE: int = _data(
        "px of a side of the square cut from it (as IMG_SIZE)", 224, ge=16, le=MAX_PIXELS
    )
    TRAIN_SIZE: int = _data(
        "px of training crops; 0: 6/7 of CROP_SIZE (original: CROP_SIZE)", 0, ge=0, le=MAX_PIXELS
    )

    # --- network
    BACKBONE: str = _network(
        "a torchvision classification model, timm/NAME, or open_clip/ and NAME, hf-hub:ORG/NAME or"
        " local-dir:FOLDER",
        "resnet50",
    )
    PRETRAINED: str = _network(
        "weights to start training from: imagenet (the library's own), a tag of open_clip/NAME, a"
        " file (backbone weights or a checkpoint of this project), or none",
        "imagenet",
    )
    INTER_DIM: int = _network("length of the embedding; 0: the pooled features", 512, ge=0)
    POOLING: Literal["auto", "avg", "avgmax", "gem", "model"] = _network(
        "of the conv map: average, average + maximum, generalised mean, or the model's own pooled"
        " output; auto: avgmax of torchvision's, else model",
        "auto",
    )
    NORMALIZE: bool = _network(
        "embeddings of length 10, of a part for the category and a part for the item", True
    )

    # --- training
    RECIPE: Literal["modern", "original"] = _training(
        "original (2018) changes the defaults of " + ", ".join(ORIGINAL), "modern"
    )
    EPOCH: int = _training("epochs of training; 0 writes the untrained network", 10, ge=0)
    TRAIN_BATCH_SIZE: int = _training("pictures a step for cross entropy", 64, ge=1)
    TRIPLET_BATCH_SIZE: int = _training(
        "pictures a step for the metric loss beside them; triplets if PER_CLASS is 0", 16, ge=1
    )
    PER_CLASS: int = _training(
        "pictures of an item (or category) in a metric loss's batch; 0: random triplets", 4, ge=0
    )
    TEST_BATCH_SIZE: int = _training("pictures a step of validation", 32, ge=1)
    LABEL_SMOOTHING: float = _training(
        "label smoothing of cross entropy, from 0 to below 1", 0.1, ge=0, lt=1
    )
    METRIC_LOSS: Literal["proxy_anchor", "batch_hard", "triplet"] = _training(
        "beside cross entropy: Proxy-Anchor, triplets of the hardest pictures, or all triplets",
        "proxy_anchor",
    )
    TRIPLET_WEIGHT: float = _training(
        "weight of the metric loss beside cross entropy; 0, or modern without items: none",
        0.02,
        ge=0,
    )
    ENABLE_TRIPLET_WITH_COSINE: bool = _training(
        "triplet loss on cosine instead of Euclidean distance", False
    )
    OPTIMIZER: Literal["adamw", "sgd"] = _training(
        "adamw (with warm-up, cosine decay and clipped gradients) or sgd (constant rate)", "adamw"
    )
    LR: float = _training("learning rate; with adamw, 100 times that for the proxies", 0.0003, gt=0)
    BACKBONE_LR: float = _training(
        "learning rate of the backbone with adamw, as a factor of LR", 1.0, gt=0
    )
    LAYER_DECAY: float = _training(
        "factor of that rate from each layer of a transformer of timm/ or open_clip/ to the one"
        " before it, with adamw",
        0.7,
        gt=0,
        le=1,
    )
    MOMENTUM: float = _training("momentum of SGD", 0.5, ge=0, lt=1)
    FREEZE_PARAM: Literal["auto", "true", "false"] = _training(
        "backbone frozen: until loss and accuracy are stable (auto), true: always, false: never",
        "false",
    )
    GRAD_CHECKPOINTING: bool = _training(
        "less memory, a third more time: activations of timm/ and open_clip/ transformers are"
        " computed twice",
        False,
    )
    LOG_INTERVAL: int = _training("steps between points of the loss curves", 10, ge=1)
    TEST_INTERVAL: int = _training("steps between validations", 100, ge=1)
    DUMP_INTERVAL: int = _training("steps between resume points", 500, ge=1)

    # --- feature database
    DUMPED_MODEL: str = _database(
        "the trained network: a file, or a name below DATASET_BASE/models", "model_best.pth.tar"
    )
    MODELS: _Names = _database(
        "several trained networks, fused, instead of DUMPED_MODEL: A,B,...; the colour features"
        " use the first one's conv map",
        (),
    )
    FLIP: bool = _database("embed every picture together with its mirror image", False)
    EXTRACT_BATCH_SIZE: int = _database("pictures a step of extraction", 128, ge=1)
    COLOR_TOP_N: int = _database(
        "cells of the conv map that the colour feature describes", 10, ge=1
    )
    PALETTE: bool = _database("add a second colour signal, the palette (512-d)", True)

    # --- ranking
    DISTANCE_METRIC: _Metrics = _ranking(
        "metrics of deep and colour features, any two of scipy's cdist, as deep,colour",
        ("euclidean", "euclidean"),
        min_length=2,
        max_length=2,
    )
    MODEL_WEIGHTS: _Weights = _ranking(
        "weights of the deep distances of MODELS: X,Y,...; none: 1 each", ()
    )
    COLOR_WEIGHT: float = _ranking("weight of the colour distance", 0.1, ge=0)
    PALETTE_WEIGHT: float = _ranking("weight of the palette's distance", 5.0, ge=0)
    TEXT_PROMPT: str = _ranking(
        "what the words of a query become, in place of {}; CLIP's are often 'a photo of a {}'",
        "{}",
        pattern=r"\{\}",
    )
    TEXT_WEIGHT: float = _ranking(
        "share of the words in a query of pictures and words, 0 to 1", 0.5, ge=0, le=1
    )
    N_CLUSTERS: int = _ranking(
        "clusters that kmeans.py makes; 0: the square root of the number of pictures", 0, ge=0
    )
    NPROBE: int = _ranking(
        "clusters that a k-means query searches; 0: as many as TARGET_RECALL needs", 0, ge=0
    )
    TARGET_RECALL: float = _ranking(
        "lowest recall@10 of k-means and Milvus queries, from above 0 to 1", 0.99, gt=0, le=1
    )

    # --- milvus
    MILVUS_URI: str = _milvus(
        "where Milvus is: a server's URL as http://HOST:19530, or a file NAME.db of Milvus Lite;"
        " none: DATASET_BASE/models/milvus.db",
        "",
    )
    MILVUS_TOKEN: str = _milvus("USER:PASSWORD or API key of the server", "")
    MILVUS_COLLECTION: str = _milvus(
        "alias of the collection, a different one for each data set; none: fashion_FOLDER, by the"
        " name of the folder DATASET_BASE",
        "",
        pattern="^([A-Za-z_][A-Za-z0-9_]{0,199})?$",
    )
    MILVUS_TIMEOUT: float = _milvus(
        "seconds to wait for a server; longer for writing, indexing and loading", 20.0, gt=0
    )

    # --- machine
    DEVICE: str = _machine(
        "auto (cuda, else mps, else cpu), cpu, cuda, cuda:N or mps",
        "auto",
        pattern=r"^(auto|cpu|cuda|cuda:\d+|mps)$",
    )
    AMP: Literal["auto", "off", "bf16", "fp16"] = _machine(
        "16-bit arithmetic: auto uses it where it is faster and leaves embeddings as they are",
        "auto",
    )
    NUM_WORKERS: int = _machine(
        "processes of a machine that read pictures; 0 reads in the main one", _cores(), ge=0
    )
    SEED: int = _machine("seed of everything random", 0, ge=0, lt=2**63)

    # --- server
    HOST: str = _server(
        "address that the page is served at; 0.0.0.0 for every network", "127.0.0.1"
    )
    PORT: int = _server("port of the page; 0 takes a free one", 8000, ge=0, le=65535)
    PUBLIC_URL: str = _server(
        "address of the page behind a proxy, as https://shop.example/search/; none: no proxy",
        "",
        pattern=r"^(https?://[^\s?#@/:][^\s?#@]*)?$",
    )
    TOKEN: str = _server("token that requests must send; none: no token is needed", "")
    USER: str = _server("user name that requests must send, with PASSWORD", "")
    PASSWORD: str = _server("password of USER, set together with it", "")
    MAX_UPLOAD: int = _server("largest size in MB of the pictures of one query", 20, ge=1)

    @property
    def distance(self) -> dict[str, Any]:
        """The settings that rank, as the arguments of `search.signals.signals_of`."""
        return {
            "metrics": self.DISTANCE_METRIC,
            "model_weights": self.MODEL_WEIGHTS,
            "color_weight": self.COLOR_WEIGHT,
            "palette_weight": self.PALETTE_WEIGHT,
        }

    @property
    def inshop_share(self) -> float:
        """Share of the metric loss's pictures that are drawn by item."""
        return self.INSHOP_DATASET_PERCENT if self.ENABLE_INSHOP_DATASET else 0.0

    @property
    def metric_weight(self) -> float:
        """Of the metric loss, which an embedding with a part for categories has by item only."""
        two_parts = self.NORMALIZE and self.INTER_DIM > 0
        return self.TRIPLET_WEIGHT if self.inshop_share or not two_parts else 0.0

    @property
    def milvus(self) -> dict[str, Any]:
        """Where Milvus is and how it is queried, as the arguments of `Client`."""
        folder = re.sub("[^A-Za-z0-9_]", "_", self.DATASET_BASE.resolve().name)[:200]
        return {
            "uri": self.MILVUS_URI or str(self.DATASET_BASE / "models" / "milvus.db"),
            "token": self.MILVUS_TOKEN,
            "alias": self.MILVUS_COLLECTION or f"fashion_{folder}",
            "timeout": self.MILVUS_TIMEOUT,
        }

    @model_validator(mode="before")
    @classmethod
    def _apply_recipe(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {**ORIGINAL, **values} if values.get("RECIPE") == "original" else values

    @field_validator("CROP_SIZE")
    @classmethod
    def _not_above_img_size(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("IMG_SIZE", value):
            raise ValueError(f"must not be greater than IMG_SIZE, which is {info.data['IMG_SIZE']}")
        return value


def flag_of(name: str) -> str:
    """The command-line flag of a setting: EXTRACT_BATCH_SIZE -> --extract-batch-size."""
    return "--" + name.lower().replace("_", "-")


def default_text(name: str) -> str:
    """A setting's default as a user would write it, with that of the original recipe."""
    if name == "NUM_WORKERS":
        return "the CPU cores"
    texts = []
    for default in (Config.model_fields[name].default, ORIGINAL.get(name)):
        text = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        texts.append(text or "none")
    return f"{texts[0]}; original: {texts[1]}" if name in ORIGINAL else texts[0]

"""all_feat.json, checked: whoever reads the feature database finds what is written here."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from net import HeldOut
from utils import parsed_json

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Fields(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True, extra="allow")


class Network(_Fields):
    """What has to be known to ask with it; `net.network_of` reads the rest."""

    categories: list[str]


class Model(_Fields):
    """One of the models that made the features; `held_out` is None of an untrained one."""

    file: str
    sha256: Sha256
    network: Network
    held_out: NotRequired[HeldOut | str | None]


class Settings(_Fields):
    """The settings that made the features, as far as a query depends on them."""

    AMP: Annotated[str, Field(pattern=r"^(float32|float16|bfloat16)$")]
    COLOR_TOP_N: Annotated[int, Field(ge=1)]
    CROP_TO_BBOX: bool
    FLIP: bool
    PALETTE: bool


class Description(_Fields):
    """The feature database: pictures, models, settings, and the SHA-256 of each file."""

    pictures: Annotated[int, Field(ge=1)]
    category_names: list[str]
    models: Annotated[list[Model], Field(min_length=1)]
    settings: Settings
    sha256: dict[str, Sha256]
    sha256_others: dict[str, Sha256]


_ADAPTER = TypeAdapter(Description)


def read_description(content: bytes) -> dict[str, Any]:
    """The fields of the content of all_feat.json, see `Description`.

    Raises
    ------
    ValueError : a field is missing or of another type; one line
    """
    try:
        return dict(_ADAPTER.validate_python(parsed_json(content)))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place + ': ' if place else ''}{first['msg']}") from None

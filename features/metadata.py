"""The metadata of a feature database, all_feat.json: written and read as `Metadata`."""

import json
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from net import Architecture, SplitRecord

_Architecture = Annotated[Architecture, BeforeValidator(TypeAdapter(Architecture).validate_python)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """Strict: a wrong type is an error, not converted. Keys of other versions are ignored."""

    model_config = ConfigDict(strict=True, frozen=True)


class ModelRecord(Record):
    """One of the models that made the features.

    Attributes
    ----------
    file : as the setting DUMPED_MODEL or MODELS named it
    sha256 : of that file
    network : its architecture
    held_out : the split that it was trained with; None: it is untrained; "unknown": its checkpoint
        does not say
    """

    file: str
    sha256: Sha256
    network: _Architecture
    held_out: SplitRecord | str | None = "unknown"


class FeatureSettings(Record):
    """The settings that the features depend on, and the arithmetic of the networks (AMP)."""

    COLOR_TOP_N: Annotated[int, Field(ge=1)]
    PALETTE: bool
    FLIP: bool
    CROP_TO_BBOX: bool
    TRANSFORM: int = 1  # `data.TRANSFORM` when they were made
    EXTRACT_BATCH_SIZE: int | None = None
    DEVICE: str | None = None
    AMP: Literal["float32", "float16", "bfloat16"]


class Metadata(Record):
    """What made a feature database, and the SHA-256 of each of its files.

    Attributes
    ----------
    models : at least one, in the order of the deep features
    settings : of the extraction
    pictures : their number
    skipped : paths of the pictures that could not be read
    category_names : names of the categories
    sha256 : of the files of features, by their names
    sha256_others : of the other files
    follows : the SHA-256 of the deep features before the last update; "": not updated
    came : the number of pictures that this update added or changed
    """

    models: Annotated[list[ModelRecord], Field(min_length=1)]
    settings: FeatureSettings
    pictures: Annotated[int, Field(ge=1)]
    skipped: list[str] = []
    category_names: list[str]
    sha256: dict[str, Sha256]
    sha256_others: dict[str, Sha256]
    follows: str = ""
    came: int = 0

    @property
    def checksums(self) -> dict[str, str]:
        """The SHA-256 of every file but all_feat.json, by its name."""
        return self.sha256 | self.sha256_others

    def to_json(self) -> bytes:
        """The content of all_feat.json."""
        return json.dumps(self.model_dump(), indent=1).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Metadata":
        """Parse the content of all_feat.json.

        Raises
        ------
        ValueError : a field is missing or of another type; one line
        """
        try:
            # Not by model_validate_json: names that are not UTF-8 have surrogates.
            return cls.model_validate(json.loads(content))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"{place + ': ' if place else ''}{first['msg']}") from None
        except RecursionError:
            raise ValueError("nested too deeply") from None

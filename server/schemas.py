"""What goes in and out of the JSON interface."""

from typing import Annotated, Any, Literal

from fastapi import UploadFile
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Json,
    StringConstraints,
    WithJsonSchema,
)

MAX_PICTURES = 16  # of one query


def _integer(value: Any) -> Any:
    """JSON's 1.0 is an integer, too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(_integer)]
Id = Annotated[str, Field(pattern="^[0-9a-f]{16}$", description="of a picture, from its path")]
Likes = Annotated[list[Id], Field(max_length=100)]
# JSON has no tuples.
Box = Annotated[tuple[Integer, Integer, Integer, Integer], Field(strict=False)]
Name = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Text = Annotated[str, StringConstraints(strip_whitespace=True, max_length=500)]
Color = Annotated[str, Field(pattern="^#[0-9a-fA-F]{6}$")]


class SearchOptions(BaseModel):
    """What to search by, and how; uploaded pictures, `query` and `pictures` make one query."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    query: Name | None = Field(default=None, description="`query` of an earlier answer")
    pictures: Annotated[list[Id], Field(max_length=MAX_PICTURES, description="to search by")] = []
    like: Likes = Field(default=[], description="find more like these pictures")
    unlike: Likes = Field(default=[], description="find less like these pictures")
    text: Text = Field(
        default="",
        description="words, alone or with the pictures; they are searched exactly, by their model"
        " alone: balance, colours and engine do not count",
    )
    color: Color | None = Field(default=None, description="instead of the pictures' own")
    box: Box | Literal["auto"] | None = Field(
        default=None,
        description="cut the uploads to x1 y1 x2 y2, in px; auto: each to the garment in it",
    )
    balance: float = Field(
        default=0.5, ge=0, le=1, description="0: the network alone, 1: colour, 0.5: the settings"
    )
    other_color: bool = Field(default=False, description="same cut, different colours first")
    engine: Literal["exact", "kmeans", "milvus"] = "exact"
    count: Integer = Field(default=20, ge=1, le=200, description="number of answers")
    category: str | None = Field(default=None, max_length=200, description="search only this one")
    per_item: bool = Field(default=False, description="the nearest picture of each item only")
    collapse_duplicates: bool = Field(default=False, description="one answer for each content")
    min_probability: float = Field(default=0, ge=0, le=1, description="only answers this sure")


Options = Annotated[Json[SearchOptions], WithJsonSchema(SearchOptions.model_json_schema())]


class SearchForm(BaseModel):
    """A search, as multipart/form-data."""

    model_config = ConfigDict(extra="forbid")

    file: Annotated[
        list[UploadFile], Field(max_length=MAX_PICTURES, description="pictures of one garment")
    ] = []
    options: Options = SearchOptions()


class Picture(BaseModel):
    """A picture of the collection."""

    id: str = Field(description="a hash of its path, which an update does not change")
    path: str = Field(description="relative to DATASET_BASE")
    category: str = Field(description="empty where unknown")
    item: str = Field(description="id of the garment, empty where unknown")
    image: str = Field(description="relative to the page; add &size= for another size")


class Found(Picture):
    """An answer."""

    rank: int
    copies: int = Field(description="pictures of the same content; 1 unless they are collapsed")
    duplicate_of: int | None = Field(description="rank of its near-duplicate; 0: the query")
    distance: float | None = Field(description="smaller is nearer; null: not defined")
    probability: float | None = Field(description="that it shows the same; null: not known")
    parts: dict[str, float | None] = Field(description="of each signal, before its weight")


class SearchAnswer(BaseModel):
    """The answers to a query, nearest first."""

    query: str | None = Field(description="to search by the uploaded pictures again")
    garments: list[Box] = Field(
        default=[], description="of box auto: the boxes found in the first upload, surest first"
    )
    answers: list[Found]
    same: Literal["item", "category"] | None = Field(description="what probabilities are of")
    present: float | None = Field(description="probability that the item is in the collection")
    left_out: list[str] = Field(description="paths of pictures that are the uploaded ones")
    engine: str
    searched: str = Field(description="which part of the collection the engine has compared")
    recall: float | None = Field(description="expected recall@10; null: not measured")
    category: str = Field(description="the only one searched; empty: all were searched")
    weights: dict[str, float] = Field(description="of the signals")
    seconds: dict[str, float] = Field(description="of each step")
    collection: str = Field(description="version of the collection")


class EngineState(BaseModel):
    """Whether an engine can be used."""

    name: str
    ready: bool
    searched: str = ""
    recall: float | None = None
    reason: str = Field(default="", description="why it is not ready, and what to do")


class CollectionState(BaseModel):
    """The collection, and how it is searched."""

    name: str
    version: str
    pictures: int
    items: int = Field(description="number of garments with an id")
    categories: dict[str, int] = Field(description="number of pictures of each")
    words: bool = Field(description="whether a model knows words, to search by `text`")
    engines: list[EngineState]
    cut: bool = Field(description="its pictures are cut to boxes, and box auto is possible")


class ExplainOptions(BaseModel):
    """A search, and the answer of it to explain."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    search: SearchOptions
    answer: Id


class Cell(BaseModel):
    """A cell of the network's last feature map, with its mean colour as #rrggbb."""

    row: int
    column: int
    color: str


class View(BaseModel):
    """A picture as the network gets it, with the rows and columns of its last feature map."""

    image: str = Field(description="data: address of a JPEG picture")
    rows: int
    columns: int
    cells: list[Cell] = Field(description="of the colour feature, strongest first")


class Explanation(BaseModel):
    """What the network sees in a query and in its answer."""

    query: View | None = Field(description="null where no picture was searched by")
    answer: View
    similar: list[list[float]] = Field(
        description="cosine of cells: a row for each of the query, a column for each of the answer"
    )


class Cluster(BaseModel):
    """One of the clusters that a k-means query chooses from."""

    number: int
    size: int
    category: str = Field(description="the most frequent one")
    share: float = Field(description="of its pictures that are of that category")
    typical: list[Picture] = Field(description="nearest to its centroid")


class Point(Picture):
    """A picture's place on the map."""

    x: float
    y: float


class CollectionMap(BaseModel):
    """The collection in two dimensions."""

    state: Literal["pca", "tsne"] = Field(description="pca until t-SNE has finished")
    points: list[Point] = Field(description="evenly spaced rows of a large collection; 0 to 1")
    clusters: list[Cluster]
    missing: str = Field(description="why there are no clusters, and what to do")


class Health(BaseModel):
    """The server answers."""

    status: Literal["ok"] = "ok"
    pictures: int
    collection: str
    device: str


class Problem(BaseModel):
    """An error, as RFC 9457 describes it."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str

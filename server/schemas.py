"""What goes in and out of the JSON interface."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MOST_ANSWERS = 200
MOST_PICTURES = 16  # of one query


def _whole(value: Any) -> Any:
    """JSON's 1.0 is an integer, too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
Id = Annotated[
    int, Field(ge=0, lt=2**53, description="number of a picture of the collection"), WHOLE
]


class SearchOptions(BaseModel):
    """What to search by, and how; uploaded pictures, `query` and `pictures` make one query."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    query: Annotated[
        str | None,
        Field(
            pattern="^[0-9a-f]{32}$",
            description="an earlier answer's `query`: its uploaded pictures, without uploading them"
            " again; forgotten after half an hour",
        ),
    ] = None
    pictures: Annotated[
        list[Id],
        Field(max_length=MOST_PICTURES, description="pictures of the collection to search by"),
    ] = []
    like: Annotated[
        list[Id], Field(max_length=100, description="answers of which there should be more")
    ] = []
    unlike: Annotated[
        list[Id], Field(max_length=100, description="answers of which there should be less")
    ] = []
    color: Annotated[
        str | None,
        Field(
            pattern="^#[0-9a-fA-F]{6}$",
            description="colour to search by, as #rrggbb; beside pictures it takes the place of"
            " theirs",
        ),
    ] = None
    box: Annotated[
        list[Annotated[int, WHOLE]] | None,
        Field(
            min_length=4,
            max_length=4,
            description="cut the uploaded pictures to x1 y1 x2 y2 first, in px of the upright"
            " picture",
        ),
    ] = None
    balance: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="0 ranks by the network's features alone, 1 by colour alone, 0.5 by the"
            " weights of the server's settings",
        ),
    ] = 0.5
    other_color: Annotated[
        bool,
        Field(description="same cut, other colour: far in colour is near, in the same category"),
    ] = False
    engine: Literal["exact", "kmeans", "milvus"] = "exact"
    count: Annotated[int, Field(ge=1, le=MOST_ANSWERS, description="number of answers"), WHOLE] = 20
    category: Annotated[
        str | None, Field(max_length=200, description="search this category only")
    ] = None
    per_item: Annotated[bool, Field(description="the nearest picture of each item only")] = False


class Item(BaseModel):
    """A picture of the collection."""

    id: int
    path: Annotated[str, Field(description="where it lies, relative to DATASET_BASE")]
    category: Annotated[str, Field(description="empty where unknown")]
    item: Annotated[str, Field(description="id of the garment, empty where unknown")]
    image: Annotated[str, Field(description="its address; add &size= for another size")]


class Found(Item):
    """An answer."""

    rank: int
    distance: Annotated[float | None, Field(description="smaller is nearer; null: it has none")]
    parts: Annotated[
        dict[str, float | None],
        Field(description="value of each signal that counts, before its weight"),
    ]


class SearchAnswer(BaseModel):
    """The answers to a query, nearest first."""

    query: Annotated[
        str | None, Field(description="to search by the uploaded pictures again, see the options")
    ]
    answers: list[Found]
    engine: str
    searched: Annotated[str, Field(description="what the engine has looked at, in words")]
    recall: Annotated[
        float | None, Field(description="expected recall@10; null: not measured for this search")
    ]
    category: Annotated[
        str, Field(description="that was searched alone, empty where all of them were")
    ]
    weights: Annotated[dict[str, float], Field(description="of the signals")]
    seconds: Annotated[dict[str, float], Field(description="of each step")]
    collection: Annotated[str, Field(description="version of the collection")]


class EngineState(BaseModel):
    """Whether an engine can be asked."""

    name: str
    ready: bool
    searched: str
    recall: float | None
    reason: Annotated[str, Field(description="why it cannot, and what to do")]


class CollectionState(BaseModel):
    """What there is to search in."""

    name: str
    version: str
    pictures: int
    items: Annotated[int, Field(description="garments that are known by an id")]
    categories: Annotated[dict[str, int], Field(description="number of pictures of each")]
    engines: list[EngineState]
    weights: dict[str, float]
    distance: str


class ExplainOptions(BaseModel):
    """The answer to explain: of the same search, and one of its answers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    search: SearchOptions
    answer: Id


class Cell(BaseModel):
    """A cell of the grid that the network sees a picture as."""

    row: int
    column: int
    color: Annotated[str, Field(description="its mean colour, #rrggbb")]


class Shade(BaseModel):
    """A colour of the palette."""

    color: str
    share: float


class View(BaseModel):
    """A picture as the network sees it."""

    image: Annotated[str, Field(description="data: address of a JPEG picture")]
    rows: int
    columns: int
    cells: Annotated[list[Cell], Field(description="of the colour feature, strongest first")]
    shades: Annotated[list[Shade], Field(description="greatest parts of the palette")]


class Part(BaseModel):
    """What one signal adds to the distance."""

    signal: str
    metric: str
    value: float | None
    weight: float


class Explanation(BaseModel):
    """Why an answer is where it is."""

    parts: list[Part]
    distance: float | None
    query: Annotated[View | None, Field(description="null where no picture was searched by")]
    answer: View
    similar: Annotated[
        list[list[float]],
        Field(
            description="cosine similarity of the conv map's cells, -1 to 1: a row for each cell of"
            " the query, a column for each of the answer, in reading order"
        ),
    ]


class Cluster(BaseModel):
    """One of the clusters that a k-means query chooses from."""

    number: int
    size: int
    category: Annotated[str, Field(description="the most frequent one")]
    share: Annotated[float, Field(description="of its pictures that are of that category")]
    typical: Annotated[list[Item], Field(description="nearest to its centroid")]


class Point(BaseModel):
    """A picture's place on the map."""

    id: int
    x: float
    y: float
    category: str
    image: str


class CollectionMap(BaseModel):
    """The collection in two dimensions."""

    state: Annotated[
        Literal["pca", "tsne"], Field(description="pca until the better t-SNE is made; ask again")
    ]
    points: Annotated[list[Point], Field(description="evenly spread where there are many; 0 to 1")]
    clusters: list[Cluster]
    missing: Annotated[str, Field(description="why there are no clusters, and what to do")]


class Health(BaseModel):
    """That the server answers."""

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

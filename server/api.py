"""The JSON interface and the page's files, as one application."""

import asyncio
import io
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, FastAPI, Form, HTTPException, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import Field
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp

from config import Config
from network.garments import Box
from search.query import Cut, Query, Stopwatch
from server import schemas
from server.batcher import Batcher
from server.explain import explain as explain_answer
from server.explain import images_of, see, thumbnail
from server.guard import Guard, problem
from server.live import Collection, LiveCollection
from server.map import Maps
from server.prometheus import Metrics
from server.query_features import extract
from server.ranking import search as search_collection
from utils import AwayError, UserError

PAGE = Path(__file__).parent / "page"

Responses = dict[int | str, dict[str, Any]]
PROBLEM = {"application/problem+json": {"schema": schemas.Problem.model_json_schema()}}
IMAGE: Responses = {200: {"content": {"image/jpeg": {}}}}


class Service:
    """What the requests share."""

    def __init__(self, live: LiveCollection) -> None:
        self.live = live
        self.metrics = Metrics(lambda: len(live.collection))
        self.maps = Maps()
        self.network = Batcher(self.metrics.batch.observe)
        # Pictures are read and collections ranked by as many threads: decoded, pictures are large.
        self.run = partial(run_sync, limiter=CapacityLimiter(os.cpu_count() or 1))


async def _service(request: Request) -> Service:
    return request.app.state.service


Serving = Annotated[Service, Depends(_service)]
ERRORS: Responses = {
    "4XX": {"description": "The request cannot be answered", "content": PROBLEM},
    "503": {"description": "Too many requests, or Milvus is away", "content": PROBLEM},
}
router = APIRouter(prefix="/api", responses=ERRORS)


async def _require_multipart(request: Request) -> None:
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(415, "send multipart/form-data with `file` and `options`")


@router.post("/search", dependencies=[Depends(_require_multipart)])
async def search(
    form: Annotated[schemas.SearchForm, Form(media_type="multipart/form-data")], service: Serving
) -> schemas.SearchAnswer:
    """Find the most similar pictures, nearest first."""
    collection, options, watch = service.live.collection, form.options, Stopwatch()
    garments: list[Box] = []
    if form.file:
        with watch.step("reading"):
            queries = [
                await service.run(_read, collection, file, options.box) for file in form.file
            ]
        with watch.step("network"):
            extracting = (service.network.run(extract, collection, query) for query in queries)
            features = await asyncio.gather(*extracting)
        options = options.model_copy(update={"query": collection.keep(features, queries)})
        garments = list(queries[0].garments)
    answer = await service.run(search_collection, collection, options, watch)
    return answer.model_copy(update={"garments": garments})


def _read(collection: Collection, file: UploadFile, box: Cut | None) -> Query:
    """An uploaded picture as the networks take it; here, as few uploads at once are in memory."""
    return collection.read(io.BytesIO(file.file.read()), box)


@router.post("/explain")
async def explain(body: schemas.ExplainOptions, service: Serving) -> schemas.Explanation:
    """What the network sees in a query and in one of its answers."""
    collection = service.live.collection
    images = await service.run(images_of, collection, body.search, body.answer)
    maps = await asyncio.gather(*(service.network.run(see, collection, one) for one in images))
    return await service.run(explain_answer, collection, images, maps)


@router.get("/collection")
async def collection_state(service: Serving) -> schemas.CollectionState:
    """The collection, and which engines are ready."""
    return await service.run(service.live.collection.state)


@router.get("/map")
def collection_map(service: Serving) -> schemas.CollectionMap:
    """The clusters with their typical pictures, and the pictures in two dimensions."""
    return service.maps.get(service.live.collection)


@router.get("/items/{id}")
async def picture(id: schemas.Id, service: Serving) -> schemas.Picture:
    """A picture of the collection."""
    collection = service.live.collection
    return collection.picture(collection.row(id))


@router.get("/image/{id}", response_class=Response, responses=IMAGE)
async def image(
    id: schemas.Id,
    service: Serving,
    size: Annotated[int, Field(ge=16, le=2048, description="long side in px")] = 384,
    v: Annotated[str, Field(description="version of the collection, to cache it by")] = "",
) -> Response:
    """The picture itself, as JPEG, scaled down."""
    collection = service.live.collection
    data = await service.run(thumbnail, collection, id, size)
    cache = {"Cache-Control": "private, max-age=86400, immutable"}
    return Response(data, media_type="image/jpeg", headers=cache if v == collection.version else {})


@router.get("/health")
async def health(service: Serving) -> schemas.Health:
    """The server answers, and what it searches."""
    now = service.live.collection
    return schemas.Health(pictures=len(now), collection=now.version, device=str(now.device))


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(service: Serving) -> Response:
    """Counts and times for Prometheus."""
    return Response(generate_latest(service.metrics), media_type=CONTENT_TYPE_LATEST)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    watching = asyncio.create_task(app.state.service.live.watch())
    yield
    watching.cancel()


def build_app(config: Config, live: LiveCollection) -> ASGIApp:
    """The application, which serves the collection `live` by the settings."""
    about = {"title": "deep-fashion-retrieval", "version": "1", "redoc_url": None}
    app = FastAPIOffline(**about, redirect_slashes=False, lifespan=_lifespan)
    app.state.service = Service(live)
    app.include_router(router)
    _add_error_handlers(app, live)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=PAGE))
    return Guard(app, config, app.state.service.metrics.observe)


def _add_error_handlers(app: FastAPI, live: LiveCollection) -> None:
    """Answer every error with problem details, without the path of the collection."""

    async def answer(request: Request, error: Any) -> Response:
        if isinstance(error, UserError):
            status = 503 if isinstance(error, AwayError) else 409
            error = HTTPException(status, live.collection.hide(str(error)))
        elif isinstance(error, RequestValidationError):
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"][1:])  # without "body" or "query"
            error = HTTPException(422, f"{place or 'body'}: {first['msg']}")
        elif not isinstance(error, StarletteHTTPException):
            error = HTTPException(500, "a fault of the server; its log has more")
        return problem(error, request.url.path)

    for kind in (UserError, RequestValidationError, StarletteHTTPException, Exception):
        app.add_exception_handler(kind, answer)

"""The JSON interface and the page's files, as one application."""

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Form, HTTPException, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException as StarletteHTTPException

from config import Config
from server.collection import LiveCollection
from server.guard import Guard, problem
from server.query import require_pictures
from server.schemas import (
    CollectionMap,
    CollectionState,
    ExplainOptions,
    Explanation,
    Health,
    Item,
    Problem,
    SearchAnswer,
    SearchForm,
    SearchOptions,
)
from server.service import Service
from utils import AwayError, UserError

PAGE = Path(__file__).parent / "page"

Responses = dict[int | str, dict[str, Any]]
PROBLEM = {"application/problem+json": {"schema": Problem.model_json_schema()}}
IMAGE: Responses = {
    200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}
}
TEXT: Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
ENCODING = {"file": {"contentType": "image/*"}, "options": {"contentType": "application/json"}}
SEARCH_BODY = {"requestBody": {"content": {"multipart/form-data": {"encoding": ENCODING}}}}


async def _service(request: Request) -> Service:
    return request.app.state.service


Serving = Annotated[Service, Depends(_service)]
Id = Annotated[int, PathParameter(ge=0, lt=2**53)]
ERRORS: Responses = {
    "4XX": {"description": "The request cannot be answered", "content": PROBLEM},
    "503": {"description": "Too many requests, or Milvus is away", "content": PROBLEM},
}
router = APIRouter(prefix="/api", responses=ERRORS)


async def _require_multipart(request: Request) -> None:
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(415, "send multipart/form-data with `file` and `options`")


@router.post("/search", dependencies=[Depends(_require_multipart)], openapi_extra=SEARCH_BODY)
async def search(
    form: Annotated[SearchForm, Form(media_type="multipart/form-data")], service: Serving
) -> SearchAnswer:
    """Find the most similar pictures, nearest first."""
    return await service.search(form.file, form.options)


@router.post("/explain")
async def explain(body: ExplainOptions, service: Serving) -> Explanation:
    """Why an answer has its rank."""
    return await service.explain(body.search, body.answer)


@router.get("/collection")
async def collection_state(service: Serving) -> CollectionState:
    """The collection, and which engines are ready."""
    return await service.rank(service.live.current().state)


@router.get("/map")
async def collection_map(service: Serving) -> CollectionMap:
    """The clusters with their typical pictures, and the pictures in two dimensions."""
    return await service.map()


@router.get("/items/{id}")
async def item(id: Id, service: Serving) -> Item:
    """A picture of the collection."""
    collection = service.live.current()
    require_pictures(collection, SearchOptions(), id)
    return collection.item(id)


@router.get("/image/{id}", response_class=Response, responses=IMAGE)
async def image(
    id: Id,
    service: Serving,
    size: Annotated[int, Query(ge=16, le=2048, description="long side in px")] = 384,
    v: Annotated[str | None, Query(description="version of the collection")] = None,
) -> Response:
    """The picture itself, as JPEG, scaled down."""
    data = await service.image(id, size, v)
    cache = "private, max-age=86400, immutable" if v else "no-cache"
    return Response(data, media_type="image/jpeg", headers={"Cache-Control": cache})


@router.get("/health")
async def health(service: Serving) -> Health:
    """The server answers, and what it searches."""
    now = service.live.current()
    return Health(pictures=len(now), collection=now.version, device=str(now.device))


@router.get("/metrics", response_class=Response, responses=TEXT)
async def metrics(service: Serving) -> Response:
    """Counts and times for Prometheus."""
    text = service.metrics.text(len(service.live.current()))
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def _first_error(errors: Any) -> str:
    """The first error of a validation in words; its place without "body", "path" or "query"."""
    place = ".".join(str(part) for part in errors[0]["loc"][1:])
    return f"{place or 'body'}: {errors[0]['msg'].removeprefix('Value error, ')}"


def build_app(config: Config, live: LiveCollection) -> FastAPI:
    """The application, which serves the collection `live` by the settings."""
    app = FastAPIOffline(
        title="deep-fashion-retrieval",
        summary="Finds the garments of a collection that are most similar to a picture.",
        version="1",
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    app.state.service = Service(live)
    app.add_middleware(Guard, config=config, observe=app.state.service.metrics.observe)
    app.include_router(router)
    _add_error_handlers(app, live)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/page", StaticFiles(directory=PAGE))
    return app


def _add_error_handlers(app: FastAPI, live: LiveCollection) -> None:
    """Answer every error with problem details, without the path of the collection."""

    @app.exception_handler(UserError)
    async def user_error(request: Request, error: UserError) -> Response:
        status = 503 if isinstance(error, AwayError) else 409
        detail = live.collection.hide(str(error))
        return problem(HTTPException(status, detail), request.url.path)

    @app.exception_handler(StarletteHTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return problem(error, request.url.path)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return problem(HTTPException(422, _first_error(error.errors())), request.url.path)

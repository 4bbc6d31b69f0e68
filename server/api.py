"""The JSON interface and the page's files, as one application."""

from pathlib import Path
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import FastAPI, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from config import Config
from server.batcher import BusyError
from server.collection import Living
from server.explain import explain
from server.guard import Guard, as_problem
from server.schemas import (
    MOST_PICTURES,
    CollectionMap,
    CollectionState,
    ExplainOptions,
    Explanation,
    Health,
    Item,
    Problem,
    SearchAnswer,
    SearchOptions,
)
from server.search import QueryError, UnknownError, require_pictures
from server.service import SIDES, Metrics, Service
from utils import AwayError, UserError

PAGE = Path(__file__).parent / "page"

STATUS: dict[type[UserError], int] = {
    UnknownError: 404,
    QueryError: 422,
    BusyError: 503,
    AwayError: 503,
    UserError: 409,
}
TOLD = {
    400: "the body is no text",
    401: "authentication is switched on, and the request does not show what it has to",
    403: "the request comes from a page of another host, or names another server",
    404: "no such picture or category, or the earlier query is forgotten",
    405: "another method",
    408: "the request was not sent in time",
    409: "understood, but cannot be answered: a file is no picture, a box leaves nothing of it, or"
    " the engine has not what it needs; the detail says which, and what to do",
    413: "more bytes than MAX_UPLOAD",
    415: "not multipart/form-data",
    422: "not as described here; the detail says what is wrong",
    503: "too much at once, or the engine's server is away; Retry-After says when to ask again",
}


def _responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": TOLD[status], "content": content} for status in statuses}


SEARCH_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "file": {
                        "type": "array",
                        "items": {"type": "string", "format": "binary"},
                        "maxItems": MOST_PICTURES,
                        "description": "pictures of one garment, of any common format",
                    },
                    "options": {"$ref": "#/components/schemas/SearchOptions"},
                },
            },
            "encoding": {
                "file": {"contentType": "image/*"},
                "options": {"contentType": "application/json"},
            },
        }
    },
}


async def _form(request: Request) -> FormData:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise HTTPException(415, "send multipart/form-data with `file` and `options`")
    try:
        return await request.form(max_files=MOST_PICTURES, max_fields=4)
    except ClientDisconnect:  # nobody is there to read it
        raise HTTPException(400, "the request was broken off") from None
    except HTTPException as error:
        if error.status_code != 400:
            raise
        raise HTTPException(422, f"no sound multipart/form-data: {error.detail}") from None


def _options(form: FormData) -> SearchOptions:
    unknown = set(form.keys()) - {"file", "options"}
    if unknown:
        raise QueryError(f"unknown fields: {', '.join(sorted(unknown))[:200]}")
    texts = form.getlist("options")
    if len(texts) > 1 or any(not isinstance(text, str) for text in texts):
        raise QueryError("options: one field of JSON text is wanted")
    try:
        return SearchOptions.model_validate_json(str(texts[0]) if texts else "{}")
    except ValidationError as error:
        raise QueryError(_told(error.errors())) from None


def _told(errors: Any) -> str:
    """The first error of a validation, in words."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place or 'options'}: {first['msg']}"


def build_app(config: Config, living: Living) -> FastAPI:
    """The application.

    Parameters
    ----------
    config : the settings
    living : the collection
    """
    metrics = Metrics()
    service = Service(living, metrics)

    app = FastAPIOffline(
        title="deep-fashion-retrieval",
        summary="Finds the garments of a collection that are most similar to a picture.",
        version="1",
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    app.add_middleware(
        Guard,
        host=config.HOST,
        token=config.TOKEN,
        user=config.USER,
        password=config.PASSWORD,
        most_bytes=config.MAX_UPLOAD * 1_000_000,
        observe=metrics.observe,
    )
    _add_errors(app, living)
    guarded = _responses(401, 403, 405)

    @app.post(
        "/api/search",
        responses=guarded | _responses(404, 408, 409, 413, 415, 422, 503),
        openapi_extra={"requestBody": SEARCH_BODY},
    )
    async def search_by(request: Request) -> SearchAnswer:
        """Find the most similar pictures, nearest first."""
        form = await _form(request)
        try:
            files = form.getlist("file")
            if not all(isinstance(file, UploadFile) for file in files):
                raise QueryError("file: a picture with a file name is wanted, not text")
            return await service.search(files, _options(form))  # type: ignore[arg-type]
        finally:
            await form.close()

    @app.post("/api/explain", responses=guarded | _responses(400, 404, 408, 409, 413, 422, 503))
    async def explain_answer(body: ExplainOptions) -> Explanation:
        """Why an answer is where it is."""
        collection = living.now()
        require_pictures(collection, body.search, body.answer)
        arguments = (collection, service.memory, body.search, body.answer)
        return await run_sync(explain, *arguments, limiter=service.ranking)

    @app.get("/api/collection", responses=guarded)
    async def collection_state() -> CollectionState:
        """What there is to search in, and which engines are ready."""
        return await run_sync(living.now().state, limiter=service.ranking)

    @app.get("/api/map", responses=guarded)
    async def collection_map() -> CollectionMap:
        """Clusters with their typical pictures, and the pictures in two dimensions."""
        return await run_sync(service.maps.of, living.now(), limiter=service.ranking)

    @app.get("/api/items/{id}", responses=guarded | _responses(404, 422))
    async def item(id: Annotated[int, InPath(ge=0, lt=2**53)]) -> Item:
        """A picture of the collection."""
        collection = living.now()
        require_pictures(collection, SearchOptions(), id)
        return collection.item(id)

    @app.get(
        "/api/image/{id}",
        response_class=Response,
        responses=guarded
        | _responses(404, 422)
        | {200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}},
    )
    async def image(
        id: Annotated[int, InPath(ge=0, lt=2**53)],
        size: Annotated[int, Query(ge=16, le=SIDES[-1], description="long side in px")] = 384,
        v: Annotated[str | None, Query(description="version of the collection")] = None,
    ) -> Response:
        """The picture itself, as JPEG, scaled down."""
        return await service.image(id, size, v)

    @app.get("/api/health", responses=guarded)
    async def health() -> Health:
        """That the server answers, and what it searches."""
        now = living.now()
        return Health(pictures=len(now), collection=now.version, device=str(now.device))

    @app.get(
        "/api/metrics",
        response_class=Response,
        responses=guarded | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def prometheus() -> Response:
        """Counts and times for Prometheus."""
        metrics.pictures.set(len(living.now()))
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/page", StaticFiles(directory=PAGE))
    _add_schemas(app)
    return app


def _add_errors(app: FastAPI, living: Living) -> None:
    """Tell every error as a problem, without where the collection lies on this machine."""

    @app.exception_handler(UserError)
    async def told(request: Request, error: UserError) -> JSONResponse:
        status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
        return as_problem(request, status, living.collection.hide(str(error)))

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        answer = as_problem(request, error.status_code, error.detail)
        answer.headers.update(error.headers or {})
        if error.status_code == 405:  # Starlette's static files may not tell
            answer.headers.setdefault("Allow", "GET, HEAD")
        return answer

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> JSONResponse:
        return as_problem(request, 422, _told(error.errors()))


def _add_schemas(app: FastAPI) -> None:
    """Describe errors, too; FastAPI knows the models of answers alone."""

    def describe() -> dict[str, Any]:
        if not app.openapi_schema:
            schema = get_openapi(
                title=app.title, version=app.version, summary=app.summary, routes=app.routes
            )
            schemas = schema["components"]["schemas"]
            schemas["Problem"] = Problem.model_json_schema()
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]

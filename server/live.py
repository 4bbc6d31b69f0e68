"""The collection that the server searches, opened again when an extraction replaces its files."""

import asyncio
import gc
import hashlib
import secrets
import threading
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from anyio.to_thread import run_sync
from cachetools import TTLCache
from fastapi import HTTPException

from config import Config
from features.database import INFO
from search import Searcher
from search.engines import ENGINES
from search.milvus import RECORD
from search.query import Query
from search.words import image_text_model
from server.schemas import CollectionState, EngineState, Picture
from utils import UserError, command, print_once, sha256_of

CHECK_SECONDS = 5.0  # between checks whether the files were replaced
UPLOAD_SECONDS = 1800.0  # that the uploaded pictures of a query are kept
MAX_UPLOADS = 256

Features = list[np.ndarray]  # of each signal 1 x D


class Uploaded(NamedTuple):
    """The uploaded pictures of a query; `image` is the first as the first network takes it."""

    features: list[Features]
    image: torch.Tensor
    files: list[tuple[int, str]]


class Collection(Searcher):
    """An opened collection; `version` changes with its files.

    A picture's id is a hash of its path: no other picture gets it when the collection is updated.
    """

    def __init__(self, config: Config) -> None:
        base = config.DATASET_BASE.absolute()  # as messages name it, see `hide`
        super().__init__(base, config.model_copy(update={"DATASET_BASE": base}))
        paths = (path.encode() for path in self.database.paths)
        ids = b"".join(hashlib.blake2b(path, digest_size=8).digest() for path in paths)
        self.ids = np.frombuffer(ids, "<u8")
        checksums = repr(sorted(self.database.metadata.checksums.items())).encode()
        self.version = hashlib.sha256(checksums).hexdigest()[:12]
        self._uploads: TTLCache[str, Uploaded] = TTLCache(MAX_UPLOADS, UPLOAD_SECONDS)
        self._uploading = threading.Lock()

    def keep(self, features: list[Features], queries: list[Query]) -> str:
        """Keep the uploaded pictures of a query; returns its name, which cannot be guessed."""
        name = secrets.token_hex(16)
        files = [file for query in queries for file in query.files]
        with self._uploading:
            self._uploads[name] = Uploaded(features, queries[0].images[0], files)
        return name

    def uploaded(self, name: str) -> Uploaded:
        """The pictures of an earlier query; 404 where they are not kept any more."""
        with self._uploading:
            uploaded = self._uploads.get(name)
        if uploaded is None:
            raise HTTPException(404, "this query is not kept any more; send its pictures again")
        return uploaded

    def row(self, picture: str) -> int:
        """The row of a picture by its id; 404 where the collection does not have it."""
        rows = np.flatnonzero(self.ids == int(picture, 16))
        if not len(rows):
            raise HTTPException(404, f"no picture {picture} in the collection")
        return int(rows[0])

    def picture(self, row: int) -> Picture:
        """The description of a picture."""
        number = f"{self.ids[row]:016x}"
        return Picture(
            id=number,
            path=self.database.paths[row],
            category=self.database.category(row),
            item=str(self.database.items[row]),
            image=f"api/image/{number}?v={self.version}",
        )

    @cached_property
    def counts(self) -> tuple[dict[str, int], int]:
        """Number of pictures of each category, and of items."""
        numbers, counts = np.unique(self.database.categories, return_counts=True)
        pairs = zip(numbers.tolist(), counts.tolist(), strict=True)
        categories = {self.database.category_names[i]: count for i, count in pairs if i >= 0}
        return categories, int(np.count_nonzero(np.unique(self.database.items) != ""))

    @cached_property
    def cut(self) -> bool:
        """Whether its pictures are cut to boxes, and its model finds those of others."""
        try:
            return self.database.metadata.settings.CROP_TO_BBOX and bool(self.finder)
        except UserError:
            return False

    def state(self) -> CollectionState:
        """The description of the collection and its engines, which it opens."""
        categories, items = self.counts
        return CollectionState(
            name=self.base.resolve().name,
            version=self.version,
            pictures=len(self),
            items=items,
            categories=categories,
            words=image_text_model(self.database) >= 0,
            engines=[self._engine_state(name) for name in ENGINES],
            cut=self.cut,
        )

    def _engine_state(self, name: str) -> EngineState:
        try:
            if name == "milvus":  # without connecting to its server, which may be away
                if not (self.base / RECORD).exists():
                    raise UserError(f"not pushed; run: {command('milvus_push.py', self.base)}")
                return EngineState(name=name, ready=True)
            engine = self.engine(name)
        except UserError as error:
            return EngineState(name=name, ready=False, reason=self.hide(str(error)))
        return EngineState(name=name, ready=True, searched=engine.searched, recall=engine.recall)

    def hide(self, message: str) -> str:
        """A message without the place of the collection on this machine."""
        return message.replace(str(self.base), "DATASET_BASE")


class LiveCollection:
    """`collection` is the current one, of which requests keep what they have begun with."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.checksum = _checksum(config.DATASET_BASE)
        self.collection = Collection(config)
        self.has_older = False

    async def watch(self) -> None:
        """Look again and again whether the files were replaced, until this is cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            await run_sync(self.refresh, abandon_on_cancel=True)

    def refresh(self) -> None:
        """Open the collection again if its files were replaced, and swap it when it is whole."""
        checksum = _checksum(self.config.DATASET_BASE)
        if checksum in (None, self.checksum):
            if self.has_older:  # whose last request has ended by now
                gc.collect()
                self.has_older = False
            return
        try:
            fresh = Collection(self.config)
            fresh.state()
            self.collection, self.checksum, self.has_older = fresh, checksum, True
        except Exception as error:  # unfinished, no memory for two: requests go on with the old one
            print_once(f"the older collection stays: {str(error) or type(error).__name__}")


def _checksum(base: Path) -> str | None:
    """SHA-256 of what describes the files; its stamp would change by a backup's links, too."""
    try:
        return sha256_of(base / INFO)
    except OSError:
        return None

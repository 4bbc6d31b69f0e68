"""The collection that the server searches, opened again when an extraction replaces its files."""

import hashlib
import threading
import time
from collections import Counter
from pathlib import Path

from config import Config
from features.database import INFO
from search import Searcher
from search.engines import ENGINES
from search.milvus import RECORD
from server.schemas import CollectionState, EngineState, Item
from utils import FileStamp, UserError, command, file_stamp

CHECK_SECONDS = 1.0  # between checks whether the files were replaced


class Collection(Searcher):
    """An opened collection; `version` changes with its features."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.DATASET_BASE, config)
        checksums = repr(sorted(self.database.metadata.sha256.items())).encode()
        self.version = hashlib.sha256(checksums).hexdigest()[:12]

    def item(self, row: int) -> Item:
        """The description of a picture."""
        return Item(
            id=row,
            path=self.database.paths[row],
            category=self.database.category(row),
            item=str(self.database.items[row]),
            image=f"/api/image/{row}?v={self.version}",
        )

    def state(self) -> CollectionState:
        """The description of the collection and its engines."""
        names, counts = self.database.category_names, Counter(self.database.categories.tolist())
        return CollectionState(
            name=self.base.resolve().name,
            version=self.version,
            pictures=len(self),
            items=len(set(self.database.items.tolist()) - {""}),
            categories={names[i]: count for i, count in sorted(counts.items()) if i >= 0},
            engines=[self._engine_state(name) for name in ENGINES],
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

    def hide(self, text: str) -> str:
        """A message without the path of the collection on this machine."""
        return text.replace(str(self.base), "DATASET_BASE")


class LiveCollection:
    """The current collection: opened again when its files are replaced."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.lock = threading.Lock()
        self.stamp = _stamp(config.DATASET_BASE)
        self.checked = time.monotonic()
        self.collection = Collection(config)

    def current(self) -> Collection:
        """The collection, whose files are checked once a second.

        The older one is not closed: requests may still use it.
        """
        if time.monotonic() - self.checked < CHECK_SECONDS or not self.lock.acquire(blocking=False):
            return self.collection
        try:
            self.checked = time.monotonic()
            stamp = _stamp(self.config.DATASET_BASE)
            if stamp and stamp != self.stamp:
                self.collection, self.stamp = Collection(self.config), stamp
        except UserError as error:  # an extraction that has not finished, or has failed
            print(f"the older collection stays: {error}", flush=True)
        finally:
            self.lock.release()
        return self.collection


def _stamp(base: Path) -> FileStamp | None:
    try:
        return file_stamp(base / INFO)
    except OSError:
        return None

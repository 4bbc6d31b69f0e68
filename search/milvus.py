"""The Milvus engine: Milvus finds candidates by each signal, the true distance ranks them here."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, FiniteFloat, PositiveInt

from features.database import FeatureDatabase
from search.engine import Answer, Engine, ExactEngine
from search.milvus_client import LONG, ROWS, Client, connect, is_file
from search.signals import Signal
from utils import UserError, command

RECORD = "models/milvus.json"  # what the last push measured, below DATASET_BASE
SCHEMA_VERSION = 4  # of a collection's fields; another version is another collection
METRICS = {"euclidean": "L2", "cosine": "COSINE"}
K = 10  # answers that the recall is measured of
CANDIDATES = 512  # of a signal, where no push has measured the number
MAX_CANDIDATES = 16_384  # that Milvus returns


class PushRecord(BaseModel):
    """What a push measured: with which distance, of how many candidates."""

    collection: str
    distance: str
    candidates: PositiveInt
    recall: FiniteFloat


def read_record(base: Path, collection: str) -> PushRecord | None:
    """What the push of a collection measured; None where the last push was of another one."""
    try:
        record = PushRecord.model_validate_json((base / RECORD).read_bytes())
    except (OSError, ValueError):
        return None
    return record if record.collection == collection else None


class MilvusEngine:
    """Ranks the pictures that are near by one signal or another, as Milvus finds them.

    Parameters
    ----------
    database : of the pictures
    signals : the terms of the distance
    client : has their features
    name : of the collection
    candidates : of each signal, for `K` answers; in proportion for more
    exact : answers where Milvus cannot: more candidates than it returns or than there are
        pictures, rows that are no category

    Raises
    ------
    UserError : the collection does not have a signal, or not by its metric
    """

    def __init__(
        self,
        database: FeatureDatabase,
        signals: Sequence[Signal],
        client: Client,
        name: str,
        candidates: int,
        exact: Engine,
    ) -> None:
        self.database = database
        self.client = client
        self.name = name
        self.candidates = candidates
        self.exact = exact
        self.ranking = ExactEngine(signals)
        self.fields = {i: s.name for i, s in enumerate(signals) if s.weight}
        known = client.call("list_indexes", name)
        for i, field in self.fields.items():
            index = client.call("describe_index", name, index_name=field) if field in known else {}
            if index.get("metric_type") != METRICS.get(signals[i].metric, ""):
                raise UserError(
                    f"{client.shown}: {name} has no {field} by {signals[i].metric}; with this"
                    f" distance, run: {command('milvus_push.py', database.base)}"
                )

    def search(
        self, queries: Sequence[np.ndarray], k: int, rows: np.ndarray | None = None
    ) -> list[Answer]:
        """See `Engine.search`; a picture that is near by no single signal is missed.

        Raises
        ------
        AwayError : the server is away, or slow
        """
        count = len(self.database.paths) if rows is None else len(rows)
        limit = math.ceil(self.candidates * max(k / K, 1.0))
        condition = "" if rows is None else self._filter(rows)
        if limit >= min(count, MAX_CANDIDATES + 1) or condition is None:
            return self.exact.search(queries, k, rows)
        answers = []
        for i in range(len(queries[0])):
            query = [features[i : i + 1] for features in queries]
            found = [
                self.client.call(
                    "search",
                    self.name,
                    list(query[number].astype(np.float32)),
                    filter=condition,
                    limit=limit,
                    anns_field=field,
                    output_fields=["row"],  # not all, which Milvus Lite would send
                )[0].ids
                for number, field in self.fields.items()
            ]
            near = np.unique(np.concatenate(found).astype(np.int64))
            too_few = len(near) < min(k, count)
            engine, chosen = (self.exact, rows) if too_few else (self.ranking, near)
            answers += engine.search(query, k, chosen)
        return answers

    def _filter(self, rows: np.ndarray) -> str | None:
        """The condition that holds for some rows alone, where they are a category."""
        number = int(self.database.categories[rows[0]])
        own = np.flatnonzero(self.database.categories == number)
        if number < 0 or not np.array_equal(rows, own):
            return None
        name = self.database.category_names[number]
        return f"category == {json.dumps(name, ensure_ascii=False)}"


def collection_name(alias: str, database: FeatureDatabase, signals: Sequence[Signal] | None) -> str:
    """Name of the collection that holds exactly these features; its begin, without signals."""
    checksums = sorted(database.metadata.checksums.items())
    parts: list[object] = [[SCHEMA_VERSION, checksums, database.category_names]]
    if signals is not None:
        parts.append([(signal.name, signal.metric) for signal in signals])
    hashes = [hashlib.sha256(json.dumps(part).encode()).hexdigest()[:12] for part in parts]
    return "_".join([alias, *hashes])


def open_milvus(
    database: FeatureDatabase, signals: Sequence[Signal], settings: Mapping[str, Any], exact: Engine
) -> tuple[MilvusEngine, PushRecord | None]:
    """The engine of a feature database that was pushed, and what the push measured.

    `settings` are the arguments of `Client`, the others those of `MilvusEngine`.

    Raises
    ------
    UserError : it was not pushed, or other features were; a metric that Milvus does not have
    AwayError : the server is away, or slow
    """
    advice = f"run: {command('milvus_push.py', database.base)}"
    if is_file(settings["uri"]) and not Path(settings["uri"]).exists():
        raise UserError(f"{settings['uri']}: no such file; {advice}")
    client = connect(**settings)
    name = client.collection()
    if not name.startswith(f"{collection_name(client.alias, database, None)}_"):
        fault = "other features were pushed, or not all of these" if name else "nothing was pushed"
        raise UserError(f"{client.shown}: {client.alias}: {fault}; {advice}")
    client.call("load_collection", name, times=LONG + len(database.paths) / ROWS)
    record = read_record(database.base, name)
    candidates = record.candidates if record else CANDIDATES
    return MilvusEngine(database, signals, client, name, candidates, exact), record

"""The feature database -> Milvus: one collection, changed by the difference, behind an alias.

The alias names the collection only while that holds exactly the features of the database, so no
engine ever searches a part of them.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.database import FeatureDatabase, open_database
from search.engine import Engine
from search.exact import exact_engine
from search.milvus import (
    MAX_CANDIDATES,
    RECORD,
    K,
    Keys,
    MilvusEngine,
    PushRecord,
    is_of,
    ivf_lists,
    milvus_metric,
    read_record,
)
from search.milvus_client import Client, Place, import_client
from search.recall import nearest_others, recall_of
from search.signals import Signal, describe_distance, signals_of
from utils import AwayError, UserError, atomic_write, evenly_spaced, progress_bar

REQUEST_BYTES = 4 << 20  # of features sent at once; Milvus takes 64 MB
MAX_TEXT = 65_535  # bytes of a path, a category or an item: the most that Milvus takes
BATCH = 8192  # pictures deleted, or hashed, at once
QUERIES = 100  # that the recall is measured with
MIN_CANDIDATES = 64
PAUSE = 1.0  # s between looks at the progress of an index


def push(base: Path, distance: Mapping[str, Any], place: Place, target_recall: float) -> None:
    """Make Milvus hold the feature database of a data set.

    The newest collection is changed, or a new one is made where less than half of it can stay; the
    old one is dropped once the new one is whole.

    Parameters
    ----------
    base : DATASET_BASE
    distance : the arguments of `signals_of`
    place : of Milvus
    target_recall : recall@10 that the number of candidates is chosen for

    Raises
    ------
    UserError : no feature database; a metric or an index that Milvus does not have
    AwayError : the server is away, or slow; nothing is lost, another push continues
    """
    database = open_database(base)
    signals = signals_of(database, **distance)
    start = time.perf_counter()
    client, alias, family = Client(place), place.alias(database), place.family(base)
    content = Content(database, signals, Keys(database.paths), row_versions(database, signals))
    others = [name for name in client.call("list_collections") if is_of(name, family)]
    name, stored = choose_collection(client, others, family, content)
    sent, deleted = send(client, name, content, stored, alias)
    for other in others:
        if other != name:
            drop_aliases(client, other)
            client.call("drop_collection", other, long=True)
            print(f"dropped {other}, of older features")
    seconds = time.perf_counter() - start

    exact = exact_engine(database, signals)
    engine = MilvusEngine(database, signals, client, alias, MIN_CANDIDATES, exact)
    recall = measure(engine, exact, target_recall)
    shown = describe_distance(signals)
    record = PushRecord(
        at=place.shown, collection=alias, distance=shown,
        candidates=engine.candidates, recall=recall,
    )  # fmt: skip
    with atomic_write(base / RECORD) as part:
        part.write_text(json.dumps(record, indent=1), "utf-8")
    print(f"{place.shown}: {name}, {place.index}, alias {alias}")
    count = len(database.paths)
    print(f"{count:,} pictures, {sent:,} of them sent, {deleted:,} dropped: {seconds:.1f} s")
    print(f"distance: {shown}")
    print(f"recall@10 {recall:.3f} with {engine.candidates:,} candidates of each signal")


@dataclass(frozen=True)
class Content:
    """What a collection is to hold.

    Attributes
    ----------
    database : N pictures
    signals : their features
    keys : their primary keys
    versions : N, int64; a hash of all that Milvus stores of each
    """

    database: FeatureDatabase
    signals: Sequence[Signal]
    keys: Keys
    versions: np.ndarray

    def same(self, stored: np.ndarray) -> np.ndarray:
        """Rows that need not be sent, by the keys and versions of a collection: n x 2."""
        keys, versions = stored[np.isin(stored[:, 0], self.keys.of_rows)].T
        rows = self.keys.rows(keys)
        return rows[self.versions[rows] == versions]

    def records(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """Some rows as Milvus takes them."""
        features = {signal.name: np.asarray(signal.features[rows]) for signal in self.signals}
        return [
            {
                "key": int(self.keys.of_rows[row]),
                "version": int(self.versions[row]),
                **{name: values[i] for name, values in features.items()},
                "path": self.database.paths[row],
                "category": self.database.category(row),
                "item": str(self.database.items[row]),
            }
            for i, row in enumerate(rows.tolist())
        ]


def row_versions(database: FeatureDatabase, signals: Sequence[Signal]) -> np.ndarray:
    """A hash of all that Milvus stores of each picture: N, int64."""
    versions = np.empty(len(database.categories), np.int64)
    for row in range(len(versions)):
        labels = f"{database.category(row)}\n{database.items[row]}\n".encode()
        digest = hashlib.blake2b(labels, digest_size=8)
        for signal in signals:
            digest.update(signal.features[row].tobytes())
        versions[row] = int.from_bytes(digest.digest(), "little", signed=True)
    return versions


def choose_collection(
    client: Client, collections: Sequence[str], family: str, content: Content
) -> tuple[str, np.ndarray]:
    """Name of the collection to fill, loaded, and what it has, see `Client.stored`."""
    widths = {signal.name: signal.features.shape[1] for signal in content.signals}
    last = max((int(name.rpartition("_v")[2]) for name in collections), default=0)
    name = f"{family}_v{last}"
    if last:
        fields = client.call("describe_collection", name)["fields"]
        dims = {field["name"]: field.get("params", {}).get("dim") for field in fields}
        if {field: int(dim) for field, dim in dims.items() if dim} == widths:
            make_collection(client, name, content.signals, len(content.versions))
            stored = client.stored(name)
            if 2 * len(content.same(stored)) >= len(stored):
                return name, stored
    name = f"{family}_v{last + 1}"
    make_collection(client, name, content.signals, len(content.versions))
    return name, client.stored(name)


def make_collection(client: Client, name: str, signals: Sequence[Signal], count: int) -> None:
    """Make a collection, or replace the indexes of an existing one, by the settings; load it."""
    pymilvus, kind = import_client(client.place), client.place.index
    metrics = {signal.name: milvus_metric(signal) for signal in signals}
    if client.is_lite and kind == "DISKANN":  # it would say so only to a search
        raise UserError(f"MILVUS_INDEX {kind}: Milvus Lite has no such index")
    if not client.call("has_collection", name):
        schema = pymilvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", pymilvus.DataType.INT64, is_primary=True)
        schema.add_field("version", pymilvus.DataType.INT64)
        for signal in signals:
            dim = signal.features.shape[1]
            schema.add_field(signal.name, pymilvus.DataType.FLOAT_VECTOR, dim=dim)
        for column in ("path", "category", "item"):
            schema.add_field(column, pymilvus.DataType.VARCHAR, max_length=MAX_TEXT)
        client.call("create_collection", name, schema=schema, long=True)
    params = {"nlist": ivf_lists(count)} if kind.startswith("IVF") else {}
    params |= {"M": 32, "efConstruction": 200} if kind == "HNSW" else {}
    missing = pymilvus.MilvusClient.prepare_index_params()
    for field, metric in metrics.items():
        if index := client.call("describe_index", name, index_name=field):
            if (index["index_type"], index["metric_type"]) == (kind, metric):
                continue
            client.call("release_collection", name, long=True)
            client.call("drop_index", name, index_name=field, long=True)
        missing.add_index(field, kind, field, metric_type=metric, params=params)
    if missing:
        client.call("create_index", name, missing, long=True)
    client.call("load_collection", name, long=True)


def send(
    client: Client, name: str, content: Content, stored: np.ndarray, alias: str
) -> tuple[int, int]:
    """Send what is new or changed, delete what is gone, then let the alias name the collection.

    Returns the number of pictures sent, and deleted.
    """
    count = len(content.versions)
    gone = np.setdiff1d(stored[:, 0], content.keys.of_rows)
    rest = np.setdiff1d(np.arange(count), content.same(stored))
    if not len(rest) and not len(gone) and client.call("list_aliases", name)["aliases"] == [alias]:
        return 0, 0
    drop_aliases(client, name)  # nobody is to search it meanwhile
    for start in range(0, len(gone), BATCH):
        client.call("delete", name, ids=gone[start : start + BATCH].tolist(), long=True)
    batch = max(1, REQUEST_BYTES // sum(4 * s.features.shape[1] for s in content.signals))
    with progress_bar(count, "push", "picture", count - len(rest)) as bar:
        for start in range(0, len(rest), batch):
            rows = rest[start : start + batch]
            # An upsert: what is sent twice must be there once.
            client.call("upsert", name, content.records(rows), long=True)
            bar.update(len(rows))
    client.call("flush", name, long=True)
    for signal in content.signals:  # a server builds its indexes in the background
        while index := client.call("describe_index", name, index_name=signal.name):
            if not int(index.get("pending_index_rows") or 0):
                break
            time.sleep(PAUSE)
    if (found := client.count(name)) != count:
        raise AwayError(
            f"{client.place.shown}: {name} holds {found:,} of {count:,} pictures; run it again"
        )
    known = client.call("has_collection", alias)
    client.call("alter_alias" if known else "create_alias", name, alias, long=True)
    return len(rest), len(gone)


def drop_aliases(client: Client, name: str) -> None:
    """Drop all aliases of a collection."""
    for alias in client.call("list_aliases", name)["aliases"]:
        client.call("drop_alias", alias, long=True)


def measure(engine: MilvusEngine, exact: Engine, target: float) -> float:
    """Set the fewest candidates that reach a recall@10, and return that recall.

    It is measured with pictures of the collection, each omitted from its own answer.
    """
    count = len(engine.database.paths)
    rows = evenly_spaced(count, QUERIES)
    queries = [signal.features[rows] for signal in engine.signals]
    truth = nearest_others(exact, engine.signals, rows, K)
    while True:
        recall = recall_of([answer.rows for answer in engine.search(queries, K + 1)], truth)
        if recall >= target or engine.candidates >= min(count, MAX_CANDIDATES // 4):
            return recall
        engine.candidates *= 2


def push_update(
    database: FeatureDatabase, distance: Mapping[str, Any], place: Place, target_recall: float
) -> None:
    """Push an update of a feature database that was pushed before; else do nothing.

    Raises
    ------
    UserError, AwayError : see `push`
    """
    record, alias = read_record(database.base), place.alias(database)
    if record is None or record["collection"] == alias:
        return
    family = record["collection"].rpartition("_")[0]
    if (record["at"], family) != (place.shown, place.family(database.base)):
        print(
            f"{database.base / RECORD}: the last push was to {record['collection']} at"
            f" {record['at']}, which the settings MILVUS_... do not name; it was not updated"
        )
        return
    push(database.base, distance, place, target_recall)

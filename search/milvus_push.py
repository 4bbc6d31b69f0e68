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


def push(
    base: Path,
    distance: Mapping[str, Any],
    place: Place,
    target_recall: float,
    measured: PushRecord | None = None,
) -> None:
    """Make Milvus hold the feature database of a data set.

    The collection that holds most of it already is changed; a new one is made where less than half
    can stay, and the old one is dropped once the new one is whole.

    Parameters
    ----------
    base : DATASET_BASE
    distance : the arguments of `signals_of`
    place : of Milvus
    target_recall : recall@10 that the number of candidates is chosen for
    measured : record of the push before a small update, which stays valid; None to measure now

    Raises
    ------
    UserError : no feature database; a metric or an index that Milvus does not have
    AwayError : the server is away, or slow; nothing is lost, another push continues
    """
    database = open_database(base)
    signals = signals_of(database, **distance)
    for signal in signals:
        milvus_metric(signal)
    start = time.perf_counter()
    client, alias, family = Client(place), place.alias(database), place.family(base)
    content = Content(database, signals, Keys(database), row_versions(database, signals))
    others = [name for name in client.call("list_collections") if is_of(name, family)]
    name, is_new = choose_collection(client, others, family, content)
    make_collection(client, name, signals, len(content.versions))
    sent, dropped = send(client, name, content, alias)
    wait_for_indexes(client, name, signals)
    for other in others:
        if other != name:
            drop_aliases(client, other, "")
            client.call("drop_collection", other, long=True)
            print(f"dropped {other}, of older features")
    seconds = time.perf_counter() - start

    shown = describe_distance(signals)
    valid = measured and (measured["index"], measured["distance"]) == (place.index, shown)
    if measured and valid and not is_new:
        candidates, recall = measured["candidates"], measured["recall"]
    else:
        exact = exact_engine(database, signals)
        engine = MilvusEngine(signals, client, alias, MIN_CANDIDATES, content.keys, exact, database)
        candidates, recall = measure(engine, exact, target_recall)
    record = PushRecord(
        at=place.shown, collection=alias, index=place.index, distance=shown,
        candidates=candidates, recall=recall,
    )  # fmt: skip
    with atomic_write(base / RECORD) as part:
        part.write_text(json.dumps(record, indent=1), "utf-8")
    count = len(content.versions)
    print(f"{place.shown}: {name}, {place.index}, alias {alias}")
    print(f"{count:,} pictures, {sent:,} of them sent, {dropped:,} dropped: {seconds:.1f} s")
    print(f"distance: {shown}")
    print(f"recall@10 {recall:.3f} with {candidates:,} candidates of each signal")


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

    def compare(self, client: Client, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The keys of all that a loaded collection holds, and the rows that need not be sent."""
        stored, versions = client.columns(name, ("key", "version"))
        known = np.isin(stored, self.keys.of_rows)
        rows = self.keys.rows(stored[known])
        return stored, rows[self.versions[rows] == versions[known]]

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
) -> tuple[str, bool]:
    """The collection that holds most already, and False; or the name of a new one, and True."""
    widths = {signal.name: signal.features.shape[1] for signal in content.signals}
    counts = {}
    for name in collections:
        fields = client.call("describe_collection", name)["fields"]
        dims = {field["name"]: field.get("params", {}).get("dim") for field in fields}
        same_fields = {field: int(dim) for field, dim in dims.items() if dim} == widths
        if same_fields and set(client.call("list_indexes", name)) == set(widths):
            client.call("load_collection", name, long=True)
            stored, same = content.compare(client, name)
            if 2 * len(same) >= len(stored):
                counts[name] = len(same)
    if counts:
        return max(counts, key=lambda name: counts[name]), False
    last = max((int(name.rpartition("_v")[2]) for name in collections), default=0)
    return f"{family}_v{last + 1}", True


def make_collection(client: Client, name: str, signals: Sequence[Signal], count: int) -> None:
    """Make a collection, or replace the indexes of an existing one, by the settings.

    Raises
    ------
    UserError : Milvus has no such index
    AwayError : the server is away, or slow
    """
    pymilvus, kind = import_client(client.place), client.place.index
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
    for signal in signals:
        metric, current = milvus_metric(signal), _index_of(client, name, signal.name)
        if current == (kind, metric):
            continue
        if current:
            client.call("release_collection", name, long=True)
            client.call("drop_index", name, index_name=signal.name, long=True)
        missing.add_index(signal.name, kind, signal.name, metric_type=metric, params=params)
    if missing:
        try:
            client.call("create_index", name, missing, long=True)
        except AwayError:
            raise
        except UserError as error:
            raise UserError(f"MILVUS_INDEX {kind}: {error}") from None
    client.call("load_collection", name, long=True)


def _index_of(client: Client, name: str, field: str) -> tuple[str, str] | None:
    """Type and metric of a field's index; None where it has none."""
    if field not in client.call("list_indexes", name):
        return None
    index = client.call("describe_index", name, index_name=field)
    return index["index_type"], index["metric_type"]


def send(client: Client, name: str, content: Content, alias: str) -> tuple[int, int]:
    """Send what is new or changed, delete what is gone, then let the alias name the collection.

    Returns
    -------
    Pictures sent, and deleted.

    Raises
    ------
    AwayError : the server is away, or slow, or holds another number of pictures in the end
    """
    count = len(content.versions)
    stored, same = content.compare(client, name)
    gone = np.setdiff1d(stored, content.keys.of_rows)
    rest = np.setdiff1d(np.arange(count), same)
    if len(rest) or len(gone):
        drop_aliases(client, name, "")  # nobody is to search it meanwhile
    for start in range(0, len(gone), BATCH):
        client.call("delete", name, ids=gone[start : start + BATCH].tolist(), long=True)
    row_bytes = sum(4 * signal.features.shape[1] for signal in content.signals)
    batch = max(1, REQUEST_BYTES // row_bytes)
    with progress_bar(count, "push", "picture", count - len(rest)) as bar:
        for start in range(0, len(rest), batch):
            rows = rest[start : start + batch]
            # An upsert: what is sent twice must be there once.
            client.call("upsert", name, content.records(rows), long=True)
            bar.update(len(rows))
    client.call("flush", name, long=True)
    found = client.count(name)
    if found != count:
        raise AwayError(
            f"{client.place.shown}: {name} holds {found:,} of {count:,} pictures; run it again"
        )
    if not client.call("has_collection", alias):
        client.call("create_alias", name, alias, long=True)
    elif client.call("describe_alias", alias)["collection_name"] != name:
        client.call("alter_alias", name, alias, long=True)
    drop_aliases(client, name, alias)
    return len(rest), len(gone)


def drop_aliases(client: Client, name: str, kept: str) -> None:
    """Drop all aliases of a collection but one."""
    for alias in client.call("list_aliases", name)["aliases"]:
        if alias != kept:
            client.call("drop_alias", alias, long=True)


def wait_for_indexes(client: Client, name: str, signals: Sequence[Signal]) -> None:
    """Wait until a server has built its indexes, which it does in the background."""
    for signal in signals:
        with progress_bar(1, f"index {signal.name}", "index", shown=not client.is_lite):
            while (index := client.call("describe_index", name, index_name=signal.name)) and int(
                index.get("pending_index_rows") or 0
            ):
                time.sleep(PAUSE)


def measure(engine: MilvusEngine, exact: Engine, target: float) -> tuple[int, float]:
    """The fewest candidates that reach a recall@10, and that recall.

    It is measured with pictures of the collection, each omitted from its own answer.
    """
    count = len(engine.signals[0].features)
    rows = evenly_spaced(count, QUERIES)
    queries = [signal.features[rows] for signal in engine.signals]
    truth = nearest_others(exact, engine.signals, rows, K)
    engine.candidates = MIN_CANDIDATES
    while True:
        recall = recall_of([answer.rows for answer in engine.search(queries, K + 1)], truth)
        if recall >= target or engine.candidates >= min(count, MAX_CANDIDATES // 4):
            return engine.candidates, recall
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
    push(database.base, distance, place, target_recall, record)

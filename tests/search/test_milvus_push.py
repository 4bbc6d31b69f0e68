"""What a push sends to a Milvus that holds something already: the difference."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from features.database import FeatureDatabase, open_database
from search import milvus_push
from search.engine import ExactEngine
from search.milvus import Keys
from search.milvus_client import Client, Place
from search.milvus_push import row_versions
from search.signals import Signal, signals_of
from tests.conftest import replace_features
from tests.features.test_incremental import change
from tests.search.test_milvus import WAITS, assert_same, opened, push, settings
from tests.test_feature_extractor import extract
from utils import UserError

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")


def counts(said: str) -> list[int]:
    """Pictures there are, sent, and dropped, as the last push tells."""
    form = r"(\d+) pictures, (\d+) of them sent, (\d+) dropped"
    return [int(number) for number in re.findall(form, said)[-1]]


@pytest.fixture
def pushed(few_photos: Path, tmp_path: Path, uri: str, request) -> Path:
    """Photos with their database, which a server has, too, in a collection of the test's own."""
    base = Path(shutil.copytree(few_photos, tmp_path / request.node.name))
    assert extract(base) == 0
    push(base, *flags(uri))
    return base


def flags(uri: str) -> tuple[str, ...]:
    return ("--milvus-uri", uri, "--milvus-index", "FLAT")


def held(base: Path, uri: str) -> dict[str, dict]:
    """What the collection of a data set's features holds, by path."""
    place = Place(**settings(base, uri).milvus)
    server, fields = Client(place), ["path", "category", "item", "deep", "color", "palette"]
    name = place.alias(open_database(base))
    records = server.call("query", name, filter='path != ""', output_fields=fields)
    (collection,) = [
        c for c in server.call("list_collections") if c.startswith(f"{place.family(base)}_v")
    ]
    assert server.call("list_aliases", collection)["aliases"] == [name]
    return {record["path"]: record for record in records}


def assert_holds_the_database(base: Path, uri: str) -> None:
    """Every picture once, with its features, and found by them."""
    found = held(base, uri)
    database = open_database(base)
    assert sorted(found) == sorted(database.paths)
    for row, path in enumerate(database.paths):
        record = found[path]
        assert record["category"] == database.category(row)
        for field, matrix in zip(
            ("deep", "color", "palette"),
            (database.deep[0], database.color, database.palette),
            strict=True,
        ):
            np.testing.assert_array_equal(np.float32(record[field]), matrix[row])
    database, signals, engine = opened(settings(base, uri))
    engine.candidates = len(database.categories) - 1
    queries = [signal.features[:] for signal in signals]
    assert_same(engine.search(queries, 3), ExactEngine(signals).search(queries, 3))


def test_an_update_sends_the_difference(pushed: Path, uri: str, capsys) -> None:
    """`--update` does it: the new, the changed and the moved go, the dropped and the old leave."""
    change(pushed)
    capsys.readouterr()
    assert extract(pushed, "--update", *WAITS, *flags(uri)) == 0
    assert counts(capsys.readouterr().out) == [24, 3, 2]
    assert_holds_the_database(pushed, uri)
    assert extract(pushed, "--update", *WAITS, *flags(uri)) == 0
    assert "of them sent" not in capsys.readouterr().out


def test_an_update_does_not_push_to_another_place(pushed: Path, uri: str, capsys) -> None:
    """Settings that name another server, or another collection, than the last push had."""
    change(pushed)
    record = (pushed / "models/milvus.json").read_text()
    capsys.readouterr()
    assert extract(pushed, "--update", *WAITS) == 0
    assert "the last push was to test_an_update_does_not_push_to_another_place_" in (
        said := capsys.readouterr().out
    )
    assert f"at {uri}, which the settings MILVUS_... do not name" in said
    assert not (pushed / "models/milvus.db").exists()
    assert extract(pushed, "--update", *WAITS, *flags(uri), "--milvus-collection", "x") == 0
    assert "do not name" in capsys.readouterr().out
    assert (pushed / "models/milvus.json").read_text() == record


def test_a_server_that_is_away_in_an_update(pushed: Path, uri: str, capsys) -> None:
    """The files are updated; status 3; the next update, of nothing, lets Milvus catch up."""
    change(pushed)
    record = pushed / "models/milvus.json"
    away = "http://127.0.0.1:1"
    record.write_text(record.read_text().replace(uri, away))
    where = ("--milvus-uri", away, "--milvus-timeout", "1", "--milvus-index", "FLAT")
    assert extract(pushed, "--update", *where) == 3
    record.write_text(record.read_text().replace(away, uri))
    assert "nothing is lost" in capsys.readouterr().err
    assert "dress/000 new.jpg" in open_database(pushed).paths
    with pytest.raises(UserError, match="other features"):
        opened(settings(pushed, uri))
    assert extract(pushed, "--update", *WAITS, *flags(uri)) == 0
    assert_holds_the_database(pushed, uri)


@pytest.mark.parametrize("step", ["drop_alias", "delete", "upsert", "flush", "create_alias"])
def test_a_push_that_is_cut_off_midway(
    pushed: Path,
    uri: str,
    step: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
) -> None:
    """After each step the collection is refused, until another push has done the rest."""
    change(pushed)
    assert extract(pushed) == 0
    call = Client.call

    def cut_off(server: Client, method: str, *args, **options) -> object:
        done = call(server, method, *args, **options)
        if method == step:
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Client, "call", cut_off)
        config = settings(pushed, uri, MILVUS_INDEX="FLAT")
        place = Place(**config.milvus)
        with pytest.raises(KeyboardInterrupt):
            milvus_push.push(pushed, config.distance, place, config.TARGET_RECALL)
    if step != "create_alias":
        with pytest.raises(UserError, match="other features"):
            opened(settings(pushed, uri))
    capsys.readouterr()
    push(pushed, *flags(uri))
    assert counts(capsys.readouterr().out)[1] == (3 if step in ("drop_alias", "delete") else 0)
    assert_holds_the_database(pushed, uri)


def test_another_collection_where_less_than_half_stays(
    pushed: Path,
    uri: str,
    rng: np.random.Generator,
    capsys,
) -> None:
    """The older one is left as it is until the new one is whole."""
    deep = open_database(pushed).deep[0]
    replace_features(pushed, "all_feat.npy", rng.normal(size=deep.shape).astype(np.float32))
    capsys.readouterr()
    push(pushed, *flags(uri))
    said = capsys.readouterr().out
    assert counts(said) == [24, 24, 0]
    assert "dropped test_another" in said
    assert_holds_the_database(pushed, uri)


def read(base: Path) -> tuple[FeatureDatabase, list[Signal]]:
    database = open_database(base)
    return database, signals_of(database, **settings(base, "").distance)


def test_versions_change_with_what_milvus_stores(pushed: Path) -> None:
    """Features, category and item; one float more or less is another version."""
    database, signals = read(pushed)
    before = row_versions(database, signals)
    assert len(np.unique(before)) == len(before)
    color = database.color.copy()
    color[3, -1] = np.nextafter(color[3, -1], np.float32(9))
    replace_features(pushed, "all_color_feat.npy", color)
    after = row_versions(*read(pushed))
    assert np.flatnonzero(after != before).tolist() == [3]


def test_keys_lead_to_rows_and_back(pushed: Path) -> None:
    """Against a dictionary; keys that no row has are left out."""
    keys = Keys(open_database(pushed).paths)
    row_of = {int(key): row for row, key in enumerate(keys.of_rows)}
    assert len(row_of) == 24
    wanted = [*list(row_of)[::-1], 1, 2**63 - 1, -(2**63)]
    assert keys.rows(np.array(wanted)).tolist() == [row_of[n] for n in wanted if n in row_of]

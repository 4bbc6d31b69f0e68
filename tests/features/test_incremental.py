"""A living collection: an update extracts what is new or changed, and keeps the rest."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import feature_extractor
import kmeans
from features import incremental
from features.database import CONTENT, DEEP, INFO, open_database
from search.clusters import CLUSTERS, open_clusters
from tests.conftest import BY_CTRL_C, ROOT, Killed
from tests.test_feature_extractor import FLAGS, extract
from utils import UserError


def by_path(base: Path) -> dict[str, bytes]:
    """The features of each picture of a database."""
    database = open_database(base)
    matrices = (*database.deep, database.color, database.palette)
    return {
        path: b"".join(matrix[row].tobytes() for matrix in matrices)
        for row, path in enumerate(database.paths)
    }


def counts(said: str) -> list[int]:
    """Pictures kept, extracted, dropped, by the last line of an update."""
    return [int(n) for n in re.search(r"(\d+) kept, (\d+) extracted, (\d+) dropped", said).groups()]


@pytest.fixture(scope="module")
def extracted(few_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos and their database."""
    made = Path(shutil.copytree(few_photos, tmp_path_factory.mktemp("extracted") / "data"))
    assert extract(made) == 0
    return made


@pytest.fixture
def living(extracted: Path, tmp_path: Path) -> Path:
    """A copy for one test; `copy2` leaves the times of the last writing, not of the change."""
    return Path(shutil.copytree(extracted, tmp_path / "living"))


def change(base: Path) -> tuple[str, str, str, str]:
    """One picture more, one of other content, one gone, and one that is moved."""
    dresses, hats = sorted((base / "dress").iterdir()), sorted((base / "hat").iterdir())
    new = base / "dress" / "000 new.jpg"
    shutil.copyfile(hats[0], new)
    with open(new, "ab") as file:
        file.write(b"so that it is another one")
    shutil.copyfile(hats[1], dresses[1])
    with open(dresses[1], "ab") as file:
        file.write(b"this one, too")
    dresses[2].unlink()
    moved = dresses[3].rename(base / "hat" / "zzz.jpg")
    names = (new, dresses[1], dresses[2], moved)
    return tuple(str(path.relative_to(base)) for path in names)


def test_an_update_gives_what_an_extraction_would(living: Path, tmp_path: Path, capsys) -> None:
    """Rows are kept by content, whatever the pictures are called now.

    Against a whole extraction of the same pictures: features that were kept are the same to the
    byte, those of other batches to rounding.
    """
    before = by_path(living)
    new, changed, gone, moved = change(living)
    whole = Path(shutil.copytree(living, tmp_path / "whole"))
    assert extract(whole) == 0
    capsys.readouterr()
    assert extract(living, "--update") == 0
    assert counts(capsys.readouterr().out) == [22, 2, 2]
    after, database = by_path(living), open_database(living)
    assert gone in before
    assert gone not in after
    assert sorted(after) == sorted(
        {*before, new, moved}
        - {gone, "dress/" + Path(moved).name}
        - {path for path in before if not (living / path).exists()}
    )
    old_name = next(path for path in before if path not in after and path != gone)
    assert after[moved] == before[old_name]
    assert all(after[path] == before[path] for path in after if path in before and path != changed)
    assert after[changed] != before[changed]
    other = open_database(whole)
    assert list(database.paths) == list(other.paths)
    for name in ("categories", "items", "content"):
        assert np.array_equal(getattr(database, name), getattr(other, name))
    np.testing.assert_allclose(database.deep[0], other.deep[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(database.palette, other.palette, atol=1e-6)
    assert extract(living, "--update") == 0
    assert counts(capsys.readouterr().out) == [24, 0, 0]


def test_a_picture_that_was_only_touched_is_not_extracted(living: Path, capsys) -> None:
    """By the SHA-256, where the stamp differs; and the same database is not written again."""
    before = (living / INFO).stat().st_mtime_ns
    for path in living.glob("*/*.jpg"):
        os.utime(path)
    assert extract(living, "--update") == 0
    assert counts(capsys.readouterr().out) == [24, 0, 0]
    assert (living / INFO).stat().st_mtime_ns == before


def test_what_was_not_touched_is_not_read(
    living: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the stamps: without them each update would read the whole collection."""
    assert extract(living, "--update") == 0  # the copies have stamps of their own
    read = []
    digest_of = incremental.digest_of

    def noted(base: Path, path: str, *more: object) -> bytes:
        read.append(path)
        return digest_of(base, path, *more)

    monkeypatch.setattr(incremental, "digest_of", noted)
    touched = next((living / "hat").iterdir())
    os.utime(touched)
    assert extract(living, "--update") == 0
    assert read == [str(touched.relative_to(living))]
    (living / incremental.STAMPS_FILE).write_bytes(b"damaged")
    assert extract(living, "--update") == 0
    assert len(read) == 25


def test_another_box_is_another_picture(tmp_path: Path) -> None:
    """The features are those of what the box cuts out."""
    (tmp_path / "a.jpg").write_bytes(b"x")
    boxes = np.array([[0, 0, 5, 5], [0, 0, 5, 6]], np.int32)
    cut = [incremental.digest_of(tmp_path, "a.jpg", box, True) for box in boxes]
    whole = [incremental.digest_of(tmp_path, "a.jpg", box, False) for box in boxes]
    assert len({*cut, *whole}) == 3
    assert whole[0] == whole[1]


@pytest.mark.parametrize("path", ["none.jpg", "pipe.jpg", "../a.jpg", "folder.jpg"])
def test_what_is_no_picture_of_the_collection_has_no_content(path: str, tmp_path: Path) -> None:
    """Opening a pipe would wait for its writer."""
    base = tmp_path / "data"
    base.mkdir()
    (tmp_path / "a.jpg").write_bytes(b"x")
    (base / "folder.jpg").mkdir()
    os.mkfifo(base / "pipe.jpg")
    assert incremental.digest_of(base, path, np.zeros(4, np.int32), False) == b""


def test_an_unreadable_picture_is_tried_again(living: Path, capsys) -> None:
    """The database stays as it is meanwhile."""
    broken = sorted((living / "dress").iterdir())[0]
    whole = broken.read_bytes()
    broken.write_bytes(b"no picture")
    assert extract(living, "--update") == 1
    assert counts(capsys.readouterr().out) == [23, 1, 1]
    written = (living / INFO).stat().st_mtime_ns
    assert extract(living, "--update") == 1
    assert (living / INFO).stat().st_mtime_ns == written
    broken.write_bytes(whole)
    capsys.readouterr()
    assert extract(living, "--update") == 0
    assert counts(capsys.readouterr().out) == [23, 1, 0]


def _other_model(base: Path) -> None:
    path = base / "models/model_best.pth.tar"
    content = torch.load(path, weights_only=True)
    content["state_dict"]["fc.bias"] += 1
    torch.save(content, path)


def _older(base: Path) -> None:
    """A database of a version that did not write the contents."""
    import json

    info = json.loads((base / INFO).read_text())
    del info["sha256_others"][CONTENT]
    (base / INFO).write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("before", "flags", "reason"),
    [
        (_other_model, (), "another model"),
        (lambda base: None, ("--color-top-n", "2"), "other settings"),
        (_older, (), "older version"),
        (lambda base: (base / INFO).unlink(), (), ""),
    ],
)
def test_features_of_another_kind_are_all_extracted_again(
    living: Path, capsys, before, flags: tuple, reason: str
) -> None:
    """For each reason of `database_to_update`."""
    before(living)
    assert extract(living, "--update", *flags) == 0
    said = capsys.readouterr().out
    assert "24 pictures, " in said
    assert "kept" not in said
    assert reason in said


def test_the_clusters_follow(living: Path, capsys) -> None:
    """Labels by the nearest centroid, recall measured again, a message when many came later."""
    kmeans.main(["--dataset-base", str(living), "--n-clusters", "3"])
    before = open_clusters(open_database(living))
    change(living)
    capsys.readouterr()
    assert extract(living, "--update") == 0
    said = capsys.readouterr().out
    assert "follows the update" in said
    assert "came after" not in said
    database = open_database(living)
    after = open_clusters(database)
    distances = np.linalg.norm(database.deep[0][:, None] - after.centroids, axis=2)
    assert np.array_equal(after.labels, distances.argmin(1))
    assert np.array_equal(after.centroids, before.centroids)
    assert after.assigned == 2
    assert after.recall[-1] == 1
    for number, path in enumerate(sorted((living / "shoes").iterdir())[:4]):
        path.write_bytes(path.read_bytes() + bytes([number]))
    assert extract(living, "--update") == 0
    assert "6 of 24 pictures came after the clusters were made" in capsys.readouterr().out


def test_clusters_of_other_features_stay(living: Path) -> None:
    """They are of other features, by the SHA-256."""
    kmeans.main(["--dataset-base", str(living), "--n-clusters", "3"])
    stale = (living / CLUSTERS).read_bytes()
    change(living)
    assert extract(living) == 0  # a whole extraction: nothing follows from before
    assert extract(living, "--update") == 0
    assert (living / CLUSTERS).read_bytes() == stale
    with pytest.raises(UserError, match="clusters of other features"):
        open_clusters(open_database(living))


def test_an_update_killed_anywhere_ends_as_if_it_had_not(
    living: Path, tmp_path: Path, calls: dict[str, int]
) -> None:
    """Guards `finish_writing`, and the order: database, then stamps, then clusters.

    It is cut off at calls that change the folder, with nothing tidied up.
    """
    kmeans.main(["--dataset-base", str(living), "--n-clusters", "3"])
    change(living)
    undisturbed = Path(shutil.copytree(living, tmp_path / "undisturbed"))
    assert extract(undisturbed, "--update") == 0
    kept = [DEEP, CONTENT, "all_feat.list", INFO, CLUSTERS]
    wanted = {name: (undisturbed / name).read_bytes() for name in kept}
    gone = 0
    for steps in range(0, 400, 12):
        again = Path(shutil.copytree(living, tmp_path / "killed"))
        calls["left"] = steps
        try:
            feature_extractor.main(["--dataset-base", str(again), *FLAGS, "--update"])
            killed = False
        except (Killed, UserError):
            killed = True
        gone += not (again / INFO).exists()
        calls["left"] = 99_999
        assert extract(again, "--update") == 0
        found = {name: (again / name).read_bytes() for name in kept}
        assert [name for name in kept if found[name] != wanted[name]] == [], steps
        shutil.rmtree(again)
        if not killed:
            break
    assert not killed
    assert gone > 1


@pytest.fixture
def watching(living: Path, tmp_path: Path):
    """`--watch` in a process of its own, and what it has said."""
    log = tmp_path / "log"
    command = [*BY_CTRL_C, sys.executable, ROOT / "feature_extractor.py", "--dataset-base", living]
    with open(log, "w") as file:
        process = subprocess.Popen([*command, *FLAGS, "--watch"], stdout=file, stderr=file)
    yield process, log
    process.kill()
    process.wait()


def wait_for(log: Path, updates: int) -> None:
    end = time.monotonic() + 120
    while log.read_text().count(" dropped\n") < updates:
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)


def test_watching_sees_pictures_come_and_go(living: Path, watching) -> None:
    """Each change is seen; what the update itself writes is not."""
    process, log = watching
    wait_for(log, 1)
    change(living)
    wait_for(log, 2)
    (living / "dress" / "000 new.jpg").unlink()
    (living / "list.txt").write_text("of no interest, but who knows")
    wait_for(log, 3)
    time.sleep(5)  # nothing is seen of what it wrote
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == -signal.SIGINT
    said = log.read_text()
    found = [list(map(int, row)) for row in re.findall(r"(\d+) kept, (\d+) ext.*, (\d+) d", said)]
    assert found == [[24, 0, 0], [22, 2, 2], [23, 0, 1]]
    assert "Traceback" not in said
    assert "dress/000 new.jpg" not in open_database(living).paths

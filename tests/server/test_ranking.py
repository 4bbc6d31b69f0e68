"""POST /api/search of a real server: its answers are those of the scripts."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import cdist

import retrieval
from features.database import unit_rows
from search.query import mean_features
from server.live import Collection
from server.query_features import LIKE_WEIGHT, UNLIKE_WEIGHT, color_features
from tests.server.web_base import RECALL, Server, paths_of, png_of, post, query_file

pytest_plugins = ("tests.server.web_base",)
Search = Callable[..., dict]


@pytest.fixture
def photo(served: Path, tmp_path: Path) -> Path:
    """A picture that lies elsewhere, so that no box of the lists is known for it."""
    file = tmp_path / "photo.jpg"
    file.write_bytes(query_file(served).read_bytes())
    return file


def bomb() -> bytes:
    """A PNG of 20,000 x 20,000 black pixels in 49 kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(20_000 * 2501))
    parts = (b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def by_retrieval(*arguments: object) -> list[dict]:
    """The answers of retrieval.py."""
    with redirect_stdout(io.StringIO()) as out:
        retrieval.main([*map(str, arguments)])
    return json.loads(out.getvalue())


def same_as_script(answers: list[dict], results: list[dict]) -> None:
    """Answers of the interface against those of `retrieval.py --json`."""
    assert [one["path"] for one in answers] == [one["path"] for one in results]
    for one, other in zip(answers, results, strict=True):
        assert (one["rank"], one["category"], one["item"]) == tuple(
            other[key] for key in ("rank", "category", "item")
        )
        assert one["distance"] == pytest.approx(other["distance"], abs=1e-4)
        for signal, value in one["parts"].items():
            assert value == pytest.approx(other[signal], abs=1e-4)


def test_the_answers_are_those_of_the_script(search: Search, served: Path, photo: Path) -> None:
    """Both engines, then those of a category and of items; a box equals cropping beforehand."""
    flags = ("--dataset-base", served, "--device", "cpu", *RECALL, "--top-n", "15", "--json")
    by_script = {one["engine"]: one for one in by_retrieval(photo, *flags)}
    for engine in ("exact", "kmeans"):
        answer = search(photo, engine=engine, count=15)
        assert answer["engine"] == engine
        same_as_script(answer["answers"], by_script[engine]["results"])
    assert answer["searched"] in [f"{n} of 6 clusters" for n in range(1, 6)]
    assert 0.9 <= answer["recall"] < 1
    narrow = ("--category", "Blouse", "--per-item", "--engine", "exact", "--bbox", 30, 20, 190, 200)
    (found,) = by_retrieval(photo, *flags, *narrow)
    options = {"category": "Blouse", "per_item": True, "count": 15}
    answer = search(photo, box=[30, 20, 190, 200], **options)
    same_as_script(answer["answers"], found["results"])
    assert answer["category"] == "Blouse"
    cropped = io.BytesIO()
    Image.open(photo).crop((30, 20, 190, 200)).save(cropped, "PNG")
    again = search(cropped.getvalue(), **options)
    distances = {one["path"]: one["distance"] for one in answer["answers"]}
    for one in again["answers"]:
        if one["path"] not in answer["left_out"]:
            assert one["distance"] == distances[one["path"]]


def test_a_picture_of_the_collection_finds_its_neighbours_without_itself(
    search: Search, collection: Collection
) -> None:
    answer = search(pictures=[7], count=200)
    assert [one["rank"] for one in answer["answers"]] == list(range(1, 201))
    assert 7 not in {one["row"] for one in answer["answers"]}
    assert answer["query"] is None
    assert "network" not in answer["seconds"]
    by_hand = sum(weighted_distances(collection, [7]).values())
    for one in answer["answers"]:
        assert one["distance"] == pytest.approx(by_hand[one["row"]], abs=1e-4)
    assert paths_of(answer)[0] == collection.database.paths[np.argsort(by_hand)[1]]


def weighted_distances(collection: Collection, rows: list[int]) -> dict[str, np.ndarray]:
    """Of each signal its part of the distance of all pictures to some pictures as one query."""
    parts = {}
    for signal in collection.signals:
        (query,) = mean_features([np.asarray(signal.features[rows])])
        parts[signal.name] = signal.weight * cdist(query, signal.features, signal.metric)[0]
    return parts


def test_the_slider_ranks_again_without_the_network(
    search: Search, collection: Collection, photo: Path
) -> None:
    """Guards that a `query` needs no picture and no extraction; the ends are one kind alone."""
    first = search(photo, count=30)
    assert "network" in first["seconds"]
    again = search(query=first["query"], count=30)
    assert again["answers"] == first["answers"]
    assert list(again["seconds"]) == ["ranking"]
    row = 30
    parts = weighted_distances(collection, [row])
    kinds = {0: parts["deep"], 1: parts["color"] + parts["palette"]}
    for balance, by_hand in kinds.items():
        found = search(pictures=[row], balance=balance, count=30)["answers"]
        order = [i for i in np.argsort(by_hand, kind="stable") if i != row][:30]
        assert [one["distance"] for one in found] == pytest.approx(by_hand[order], abs=1e-4)
        assert [one["row"] for one in found][:5] == order[:5]
        assert set(found[0]["parts"]) == ({"color", "palette"} if balance else {"deep"})


def test_more_and_less_like_move_the_query_by_rocchio(
    search: Search, collection: Collection
) -> None:
    queries, liked, unliked = [3], [20, 21], [40]
    found = search(pictures=queries, like=liked, unlike=unliked, count=20)["answers"]
    assert not {one["row"] for one in found} & {*queries, *liked, *unliked}
    total = np.zeros(len(collection))
    for signal in collection.signals:
        features = np.asarray(signal.features, np.float64)
        moved = features[queries].mean(0) + LIKE_WEIGHT * features[liked].mean(0)
        moved = moved - UNLIKE_WEIGHT * features[unliked].mean(0)
        lengths = np.linalg.norm(features[queries + liked + unliked], axis=1)
        if signal.name == "color":  # raw values, of no common length
            moved /= 1 + LIKE_WEIGHT - UNLIKE_WEIGHT
        else:
            moved = lengths[0] * unit_rows(moved[None])[0]
        total += signal.weight * cdist(moved[None], features, signal.metric)[0]
    for one in found:
        assert one["distance"] == pytest.approx(total[one["row"]], abs=1e-3)
    assert found[0]["distance"] <= np.delete(total, queries + liked + unliked).min() + 1e-3


def test_likes_alone_are_searched_by(search: Search) -> None:
    liked, queries = (search(**{key: [5]}, count=5) for key in ("like", "pictures"))
    assert liked["answers"] == queries["answers"]


def test_same_cut_other_colour_stays_in_the_category_and_goes_far_in_colour(search: Search) -> None:
    for row in (0, 50):
        plain = search(pictures=[row], count=5)
        other = search(pictures=[row], other_color=True, count=5)
        assert {one["category"] for one in other["answers"]} == {other["category"]} != {""}
        near, far = (
            np.mean([one["parts"]["palette"] for one in found["answers"]])
            for found in (plain, other)
        )
        assert far > near + 0.1
    plain, other = (search(color="#ff0000", other_color=other, count=5) for other in (False, True))
    assert plain["answers"] == other["answers"]  # a colour has no cut


@pytest.mark.parametrize(
    "options",
    [
        {"pictures": [7]}, {"pictures": [7, 30]}, {"like": [7], "unlike": [9]},
        {"pictures": [7], "balance": 0.8}, {"pictures": [7], "balance": 0.0},
        {"pictures": [7], "color": "#b3202c"}, {"color": "#b3202c"},
        {"pictures": [7], "category": "Blouse"}, {"pictures": [7], "engine": "kmeans"},
    ],
)  # fmt: skip
def test_the_weighted_parts_add_up_to_the_distance(search: Search, options: dict) -> None:
    answer = search(**options)
    for one in answer["answers"]:
        total = sum(answer["weights"][signal] * value for signal, value in one["parts"].items())
        assert total == pytest.approx(one["distance"], abs=1e-4)


def test_a_colour_beside_a_picture_takes_the_place_of_its_colour(
    search: Search, collection: Collection
) -> None:
    found = search(pictures=[9], color="#b3202c", count=10)["answers"]
    parts = weighted_distances(collection, [9])
    colors = color_features(collection.signals, "#b3202c")
    for signal in collection.signals:
        if signal.name in colors:
            distances = cdist(colors[signal.name], signal.features, signal.metric)[0]
            parts[signal.name] = signal.weight * distances
    total = sum(parts.values())
    for one in found:
        assert one["distance"] == pytest.approx(total[one["row"]], abs=1e-3)


def test_one_answer_per_item_and_of_one_category(search: Search) -> None:
    every = search(pictures=[200], count=100)["answers"]
    items = search(pictures=[200], count=30, per_item=True)["answers"]
    named = [one["item"] for one in items if one["item"]]
    assert len(named) == len(set(named)) > 5
    seen: set[str] = set()
    first = []
    for one in every:
        if not one["item"] or one["item"] not in seen:
            first.append(one["row"])
        seen.add(one["item"])
    assert [one["row"] for one in items][:20] == first[:20]
    assert items[0]["row"] == every[0]["row"] == 201  # another picture of the query's own item
    only = search(pictures=[200], count=200, category="blouse")
    assert {one["category"] for one in only["answers"]} == {"Blouse"}


def test_several_files_are_one_query(search: Search, served: Path, collection: Collection) -> None:
    """As `retrieval.py --together` joins them."""
    rows = [1, 12, 40]
    files = [served / collection.database.paths[row] for row in rows]
    answer = search(*files, count=10)
    flags = ("--dataset-base", served, "--device", "cpu", "--top-n", "10", "--together", "--json")
    copies = []
    for i, file in enumerate(files):
        copies.append(Path(f"copy_{i}.jpg").absolute())
        copies[-1].write_bytes(file.read_bytes())
    (found,) = by_retrieval(*copies, *flags, "--engine", "exact")
    same_as_script(answer["answers"], found["results"])
    joined = search(pictures=rows, count=10)["answers"]
    total = sum(weighted_distances(collection, rows).values())
    for one in joined:
        assert one["distance"] == pytest.approx(total[one["row"]], abs=1e-3)


def test_two_uploads_have_two_names_and_each_keeps_its_own(search: Search, served: Path) -> None:
    files = sorted((served / "img").glob("*/*.jpg"))[:2]
    one, other = (search(file, count=5) for file in files)
    assert one["query"] != other["query"]
    assert one["answers"] != other["answers"]
    for first in (one, other):
        assert search(query=first["query"], count=5)["answers"] == first["answers"]


@pytest.mark.parametrize(
    ("status", "options", "message"),
    [
        (404, {"query": "0" * 32}, "send its pictures again"),
        (404, {"pictures": ["0" * 16]}, "no picture 0000000000000000"),
        (404, {"like": ["f" * 16]}, "no picture ffffffffffffffff"),
        (404, {"pictures": [1], "category": "Kimono"}, "there are Anorak, Blazer"),
        (409, {"pictures": [1], "engine": "milvus"}, "run: python milvus_push.py"),
        (422, {"pictures": [-1]}, "pictures.0"),
        (422, {"pictures": ["7"]}, "pictures.0"),
        (422, {"pictures": [1], "count": 0}, "count"),
        (422, {"pictures": [1], "count": 201}, "count"),
        (422, {"pictures": [1], "balance": 1.1}, "balance"),
        (422, {"pictures": [1], "balance": "0.5"}, "balance"),
        (422, {"pictures": [1], "engine": "milvus7"}, "engine"),
        (422, {"pictures": [1], "color": "red"}, "color"),
        (422, {"pictures": [1], "box": [1, 2, 3]}, "box"),
        (422, {"pictures": [1], "top_n": 5}, "top_n"),
        (422, {"pictures": [1] * 17}, "pictures"),
    ],
)
def test_impossible_searches_are_explained(
    search: Search, served: Path, status: int, options: dict, message: str
) -> None:
    problem = search(status=status, **options)
    assert message in problem["detail"]
    assert problem["status"] == status
    assert str(served.parent) not in problem["detail"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no picture", "cannot be read as a picture"),
        (b"", "cannot be read as a picture"),
        (b"\xff\xd8\xff\xe0", "cannot be read as a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "EPS"),
        (png_of("red")[:90], "cannot be read as a picture"),
    ],
)
def test_a_file_that_is_no_picture_is_refused(search: Search, content: bytes, message: str) -> None:
    problem = search(content, status=409)
    assert message in problem["detail"]
    assert problem["detail"].startswith("the picture: ")


def test_a_box_outside_the_picture_is_refused(search: Search) -> None:
    assert "leaves nothing" in search(png_of("red"), box=[500, 0, 600, 90], status=409)["detail"]


def test_an_uploaded_picture_of_the_collection_is_left_out(search: Search, served: Path) -> None:
    """And named, each time."""
    file = query_file(served)
    answer = search(file, count=5)
    (path,) = answer["left_out"]
    assert (served / path).read_bytes() == file.read_bytes()
    assert path not in paths_of(answer)
    assert search(query=answer["query"], count=5)["left_out"] == [path]


def test_a_bomb_is_refused_before_it_is_decoded(search: Search, server: Server) -> None:
    """Guards the memory: decoded, its pixels would take 400 MB, as RGB 1.2 GB."""
    before = peak_memory(server)
    problem = search(bomb(), status=409)
    assert "million pixels" in problem["detail"]
    assert peak_memory(server) - before < 100e6


def peak_memory(server: Server) -> int:
    """The peak memory of the server, in bytes."""
    status = Path(f"/proc/{server.process.pid}/status")
    if not status.exists():
        pytest.skip("peak memory is read from /proc")
    return next(
        1024 * int(line.split()[1]) for line in status.read_text().splitlines()
        if line.startswith("VmHWM")
    )  # fmt: skip


def test_seventeen_files_are_too_many(client: httpx.Client) -> None:
    response = post(client, *[png_of("red", 20)] * 17)
    assert response.status_code == 422
    assert "16" in response.json()["detail"]


def test_uploads_leave_no_file_behind(
    search: Search, client: httpx.Client, server: Server, served: Path
) -> None:
    """Large ones too, which are spooled to a nameless file while they are read."""
    before = {path for path in served.rglob("*")}
    noise = np.random.default_rng(0).integers(0, 255, (1000, 1000, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, "PNG")
    assert len(data.getvalue()) > 2e6
    form = [("file", ("../../my photo.png", data.getvalue()))]
    assert client.post("/api/search", files=form).status_code == 200
    search(b"no picture", status=409)
    left = {path for path in served.rglob("*")} - before
    assert not left
    assert list((server.folder / "tmp").rglob("*")) == []
    assert {path.name for path in server.folder.iterdir()} == {"out", "err", "tmp"}
    assert not list(Path.cwd().iterdir())


def test_browsing_without_a_query_shows_pictures_evenly_spread(search: Search) -> None:
    answer = search(count=10)
    rows = [one["row"] for one in answer["answers"]]
    assert rows[0] == 0
    assert rows[-1] == 262
    assert len(rows) == 10
    assert answer["query"] is None
    assert {one["category"] for one in search(category="Blouse")["answers"]} == {"Blouse"}

"""Queries against a small database of real photos in DeepFashion's layout, boxes included."""

import json
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from struct import pack

import numpy as np
import pytest
from PIL import Image, ImageOps

import feature_extractor
import kmeans
import retrieval
import train
from utils import run_script

ROOT = Path(__file__).parent.parent
MACHINE = ("--amp", "off", "--device", "cpu", "--num-workers", "0")
NAMES = {"dress": "Dress", "hat": "Sun Hat", "shirt": "Shirt"}
KEYS = ["rank", "path", "distance", "probability", "deep", "color", "palette", "category", "item",
        "copies", "duplicate_of"]  # fmt: skip
BOX = (40, 30, 190, 200)  # of every third picture


def write_list(path: Path, columns: str, rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([str(len(rows)), columns, *rows]) + "\n")


@pytest.fixture(scope="module")
def base(shared: Path, tmp_path_factory) -> Path:
    """18 labelled pictures, a third with a box, and 6 in-shop ones; an untrained ResNet18."""
    base = tmp_path_factory.mktemp("retrieval")
    labels, parts, boxes, inshop = [], [], [], []
    for number, name in enumerate(NAMES, start=1):
        for i, photo in enumerate(sorted((shared / "photos/train" / name).iterdir())[:6]):
            path = f"img/Some_{name.title()}/img_{i:08}.jpg"
            (base / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(photo, base / path)
            labels.append(f"{path}   {number}")
            parts.append(f"{path}   {'val' if i == 5 else 'train'}")
            if i % 3 == 0:
                boxes.append(f"{path}   {' '.join(f'{side:03}' for side in BOX)}")
    photos = sorted((shared / "inshop-men/img").rglob("*.jpg"))
    for item, view in enumerate(photos[:6]):
        path = f"img/MEN/Polos/id_{item // 2:08}/01_{item % 2 + 1}_front.jpg"
        (base / "in_shop" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(view, base / "in_shop" / path)
        inshop.append(f"{path}   id_{item // 2:08}   {('query', 'gallery')[item % 2]}")
    cloth = [f"{name}   1" for name in NAMES.values()]
    write_list(base / "Anno/list_category_cloth.txt", "category_name category_type", cloth)
    write_list(base / "Anno/list_category_img.txt", "image_name category_label", labels)
    write_list(base / "Anno/list_bbox.txt", "image_name x_1 y_1 x_2 y_2", boxes)
    write_list(base / "Eval/list_eval_partition.txt", "image_name evaluation_status", parts)
    write_list(base / "in_shop/list_eval_partition.txt", "image_name item_id status", inshop)
    data = ("--dataset-base", str(base))
    train.main([*data, "--epoch", "0", "--backbone", "resnet18", "--pretrained", "none",
                "--img-size", "72", "--crop-size", "64", "--inter-dim", "32"])  # fmt: skip
    flags = ("--color-top-n", "3", "--enable-inshop-dataset")
    assert feature_extractor.main([*data, *MACHINE, *flags]) == 0
    kmeans.main([*data, "--n-clusters", "4"])
    return base


@pytest.fixture
def run(base: Path, capsys):
    """Run the script as from the command line; its exit status, output and errors."""

    def call(*argv: object, at: Path = base) -> tuple[int, str, str]:
        capsys.readouterr()
        flags = ["--dataset-base", str(at), "--device", "cpu"]
        with pytest.raises(SystemExit) as left:
            run_script(lambda: retrieval.main([*map(str, argv), *flags]))
        return left.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def answers(run):
    """The JSON answer to some queries, their own pictures included; all that is printed."""

    def call(*argv: object, at: Path | None = None) -> list[dict]:
        status, out, err = run(*argv, "--json", "--with-own", **({"at": at} if at else {}))
        assert status == 0, err
        return json.loads(out)

    return call


def rows_of(base: Path) -> list[str]:
    return (base / "all_feat.list").read_text().splitlines()


def test_every_picture_of_the_collection_finds_itself_first(base: Path, answers) -> None:
    """With and without a box, labelled and in-shop; the paths are those of the list."""
    paths = rows_of(base)
    assert len(paths) == 24
    found = answers(*paths, "--engine", "exact", "--top-n", "2")
    assert [one["query"] for one in found] == paths
    for one in found:
        first, second = one["results"]
        assert first["path"] == one["query"]
        assert first["distance"] < 1e-3 < second["distance"]


@pytest.mark.parametrize(
    "name", ["img/Some_Hat/img_00000003.jpg", "in_shop/img/MEN/Polos/id_00000001/01_2_front.jpg"]
)
def test_a_query_may_be_named_in_every_way(base: Path, answers, monkeypatch, name: str) -> None:
    ways = [(ROOT, name), (ROOT, base / name), (base, name), (base / "img", f"../{name}")]
    if name.startswith("in_shop/"):
        ways.append((ROOT, name.removeprefix("in_shop/")))
    for folder, way in ways:
        monkeypatch.chdir(folder)
        first = answers(way, "--engine", "exact")[0]["results"][0]
        assert first["path"] == name
        assert first["distance"] < 1e-3


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "tiff", "PNG"])
def test_other_formats_of_the_same_pixels_give_the_same_answer(
    base: Path, answers, tmp_path: Path, suffix: str
) -> None:
    name = "img/Some_Dress/img_00000001.jpg"  # without a box
    picture = ImageOps.exif_transpose(Image.open(base / name))
    lossless = {"lossless": True} if suffix == "webp" else {}
    picture.save(tmp_path / f"query.{suffix}", **lossless)
    found = answers(tmp_path / f"query.{suffix}", name, "--engine", "exact", "--top-n", "24")
    assert found[0]["results"][0]["path"] == name
    for one, other in zip(found[0]["results"], found[1]["results"], strict=True):
        assert one["path"] == other["path"]
        assert one["distance"] == pytest.approx(other["distance"], abs=1e-4)


def test_json_says_what_the_schema_says_and_distances_add_up(base: Path, answers) -> None:
    queries = ["img/Some_Hat/img_00000002.jpg", "img/Some_Shirt/img_00000000.jpg"]
    found = answers(
        *queries, "--top-n", "7", "--color-weight", "0.6", "--palette-weight", "2", "--nprobe", "4"
    )
    pairs = [(one["query"], one["engine"]) for one in found]
    assert pairs == [(query, engine) for query in queries for engine in ("exact", "kmeans")]
    deep = np.load(base / "all_feat.npy").astype(float)
    color = np.load(base / "all_color_feat.npy").astype(float)
    palette = np.load(base / "all_palette_feat.npy").astype(float)
    for one in found:
        assert list(one) == ["query", "engine", "present", "results", "left_out", "seconds"]
        own = rows_of(base).index(one["query"])
        assert [result["rank"] for result in one["results"]] == list(range(1, 8))
        for result in one["results"]:
            assert list(result) == KEYS
            row = rows_of(base).index(result["path"])
            for part, features in (("deep", deep), ("color", color), ("palette", palette)):
                expected = np.sqrt(((features[row] - features[own]) ** 2).sum())
                assert result[part] == pytest.approx(expected, abs=1e-3)
            total = result["deep"] + 0.6 * result["color"] + 2 * result["palette"]
            assert result["distance"] == pytest.approx(total, rel=1e-9)
        distances = [result["distance"] for result in one["results"]]
        assert distances == sorted(distances)
        assert all(seconds >= 0 for seconds in one["seconds"].values())
        assert any(one["engine"][0] == step[0] for step in one["seconds"])
    assert found[0]["results"] == found[1]["results"]  # all four clusters searched


def test_a_category_narrows_the_answers(base: Path, answers, run) -> None:
    for one in answers("img/Some_Dress/img_00000000.jpg", "--category", "sun hat", "--top-n", 24):
        assert {result["category"] for result in one["results"]} <= {"Sun Hat"}
        if one["engine"] == "exact":
            paths = {result["path"] for result in one["results"]}
            assert paths == {path for path in rows_of(base) if "Some_Hat" in path}
    status, out, err = run("img/Some_Dress/img_00000000.jpg", "--category", "Kimono")
    assert (status, out) == (2, "")
    assert "there are Dress, Polos, Shirt, Sun Hat" in err


def test_a_box_is_the_same_as_cropping_the_file_first(base: Path, answers, tmp_path: Path) -> None:
    name = "img/Some_Shirt/img_00000001.jpg"
    Image.open(base / name).crop((20, 40, 150, 160)).save(tmp_path / "cropped.png")
    box = ("--bbox", 20, 40, 150, 160)
    one = answers(name, *box, "--engine", "exact")[0]["results"]
    assert one == answers(tmp_path / "cropped.png", "--engine", "exact")[0]["results"]
    assert one != answers(name, "--engine", "exact")[0]["results"]


def test_the_querys_own_picture_is_left_out_and_named(base: Path, run, tmp_path: Path) -> None:
    """By its path with and without a box, as a copy elsewhere, and as one of two views."""
    boxed, other = "img/Some_Hat/img_00000003.jpg", "img/Some_Hat/img_00000004.jpg"
    shutil.copyfile(base / boxed, tmp_path / "copy.jpg")
    for argv, own in (
        ((boxed,), [boxed]),
        ((boxed, "--bbox", 9, 9, 99, 99), [boxed]),
        ((tmp_path / "copy.jpg",), [boxed]),
        ((boxed, other, "--together"), [boxed, other]),
    ):
        status, out, _ = run(*argv, "--top-n", 24, "--engine", "exact", "--json")
        (one,) = json.loads(out)
        assert (status, sorted(one["left_out"])) == (0, own)
        assert {r["path"] for r in one["results"]} == set(rows_of(base)) - set(own)
    _, out, _ = run(boxed, "--top-n", 3, "--collapse-duplicates")
    assert out.count(f"left out, as the query itself: {boxed}") == 2  # for each engine
    table = [row.split() for row in out.splitlines() if row.split()[:1] in (["1"], ["2"], ["3"])]
    assert len(table) == 6
    assert boxed not in {row[-1] for row in table}


def test_the_table_says_what_json_says_and_the_time_of_each_step(run, answers) -> None:
    query = ("img/Some_Hat/img_00000004.jpg", "--top-n", "3")
    status, out, _ = run(*query, "--with-own")
    assert status == 0
    for one in answers(*query):
        for result in one["results"]:
            line = [f"{result[key]:.5f}" for key in ("distance", "deep", "color", "palette")]
            assert any(
                row.split()[:5] == [str(result["rank"]), *line] and result["path"] in row
                for row in out.splitlines()
            )
    for step in ("loading model", "loading features", "extracting", "exact query", "k-means query"):
        assert f"s  {step}\n" in out


@pytest.fixture
def unclustered(base: Path, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    (copy / "models" / "kmeans.m").unlink()
    return copy


def test_missing_clusters_are_an_error_only_where_they_are_named(run, unclustered) -> None:
    name = "img/Some_Hat/img_00000004.jpg"
    status, out, err = run(name, "--engine", "kmeans", at=unclustered)
    assert (status, out) == (2, "")
    assert "run: python kmeans.py" in err
    status, out, err = run(name, "--json", at=unclustered)
    assert status == 0
    assert [one["engine"] for one in json.loads(out)] == ["exact"]
    assert "kmeans.py" in err


def other_model(base: Path) -> None:
    """Another untrained network in place of model_best.pth.tar."""
    train.main(["--dataset-base", str(base), "--epoch", "0", "--backbone", "resnet18",
                "--pretrained", "none", "--crop-size", "64", "--seed", "1"])  # fmt: skip


@pytest.mark.parametrize("flags", [(), ("--models", "model_best.pth.tar,gone.pth")])
def test_another_model_than_that_of_the_database_is_refused(run, unclustered: Path, flags) -> None:
    other_model(unclustered)
    query = ("img/Some_Hat/img_00000004.jpg", "--engine", "exact")
    status, out, err = run(*query, *flags, at=unclustered)
    assert (status, out) == (2, "")
    assert "made by model_best.pth.tar, now missing or changed" in err
    assert "run: python feature_extractor.py" in err
    assert ("gone.pth" in err) == bool(flags)
    assert err.count("\n") == 1


def test_a_model_that_was_moved_is_taken_where_the_settings_say(
    base: Path, run, answers, unclustered: Path
) -> None:
    query = ("img/Some_Hat/img_00000004.jpg", "--engine", "exact", "--with-own")
    (unclustered / "models/model_best.pth.tar").rename(unclustered / "models/moved.pth")
    other_model(unclustered)
    assert run(*query, at=unclustered)[0] == 2
    status, out, err = run(*query, "--json", "--dumped-model", "moved.pth", at=unclustered)
    assert (status, err) == (0, "")
    assert json.loads(out)[0]["results"] == answers(*query)[0]["results"]


def test_features_of_an_earlier_version_are_refused(base: Path, tmp_path: Path, run) -> None:
    """A query's palette of today against theirs would give wrong answers without a word."""
    shutil.copytree(base, tmp_path / "old")
    record = json.loads((tmp_path / "old/all_feat.json").read_text())
    record["settings"]["TRANSFORM"] -= 1
    (tmp_path / "old/all_feat.json").write_text(json.dumps(record))
    code, out, err = run("img/Some_Hat/img_00000004.jpg", at=tmp_path / "old")
    assert (code, out) == (2, "")
    assert "feature_extractor.py" in err
    assert "--update" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("flags", [(), ("--dumped-model", "gone.pth")])
def test_the_models_that_all_feat_json_names_are_taken_and_named(
    run, unclustered: Path, flags
) -> None:
    """Of one name that is not the settings', then of two; one of them changed, none is taken."""
    shutil.copyfile(unclustered / "models/model_best.pth.tar", unclustered / "models/mine.pth")
    other_model(unclustered)
    extract = ("--dataset-base", str(unclustered), *MACHINE, "--enable-inshop-dataset")
    query = ("img/Some_Hat/img_00000004.jpg", "--engine", "exact", "--json", "--with-own", *flags)
    for files in ("mine.pth", "mine.pth,model_best.pth.tar"):
        assert feature_extractor.main([*extract, "--color-top-n", "3", "--models", files]) == 0
        status, out, err = run(*query, at=unclustered)
        assert status == 0
        first, second = json.loads(out)[0]["results"][:2]
        assert first["path"] == query[0]
        assert first["distance"] < 1e-3 < second["distance"]
        assert ("deep_2" in first) == ("," in files)
        named = flags[1] if flags else "model_best.pth.tar"
        assert f"{files.replace(',', ', ')}, which made the feature database, not {named}\n" in err
    (unclustered / "models/mine.pth").write_bytes(b"")
    status, out, err = run(*query, at=unclustered)
    assert (status, out) == (2, "")
    assert f"made by mine.pth, model_best.pth.tar, now missing or changed, and {named}" in err


def _huge(path: Path) -> None:
    """A PNG of 20,000 x 20,000 black pixels in 49 kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))

    header = pack(">IIBBBBB", 20000, 20000, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(20000 * 2501))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)
                     + chunk(b"IEND", b""))  # fmt: skip


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "no such file"),
        (lambda path: path.write_text("no picture"), "cannot be read as a picture"),
        (lambda path: path.write_bytes(b""), "cannot be read as a picture"),
        (lambda path: path.write_bytes(b"\xff\xd8\xff\xe0"), "cannot be read as a picture"),
        (_huge, "million pixels"),
    ],
)
def test_a_query_that_is_no_picture_is_one_line(run, tmp_path: Path, write, said: str) -> None:
    write(tmp_path / "query.png")
    status, out, err = run("img/Some_Hat/img_00000004.jpg", tmp_path / "query.png")
    assert (status, out) == (2, "")
    assert "query.png" in err
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--bbox", "5", "5", "5", "90"), "5 5 5 90"),
        (("--bbox", "9000", "0", "9100", "90"), "9000 0 9100 90"),
        (("--top-n", "0"), "'0'"),
        (("--engine", "milvus7"), "milvus7"),
        (("--output", "results.xyz"), "results.xyz"),
        (("--output", "results"), "results"),
        (("--output", "results.psd"), "results.psd"),  # Pillow reads, but cannot write it
        (("--distance-metric", "euclidian,cosine"), "euclidean"),
        (("--dataset-base", "nowhere"), "feature_extractor.py"),
    ],
)
def test_bad_flags_are_one_line_and_status_2(base: Path, capsys, flags, said: str) -> None:
    name = str(base / "img/Some_Hat/img_00000004.jpg")
    with pytest.raises(SystemExit) as left:
        run_script(lambda: retrieval.main([name, "--dataset-base", str(base), *flags]))
    assert left.value.code == 2
    out, err = capsys.readouterr()
    assert said in err
    assert err.count("\n") == 1
    assert out == ""


def test_output_is_a_picture_of_query_and_answers(run, tmp_path: Path) -> None:
    target = tmp_path / "new" / "results.jpg"
    query = ("img/Some_Hat/img_00000004.jpg", "--top-n", "4", "--output", target)
    status, out, err = run(*query, "--json")
    assert status == 0
    assert len(json.loads(out)) == 2
    assert str(target) in err
    with Image.open(target) as picture:
        assert picture.format == "JPEG"
        assert 5 * 100 < picture.width < 5 * 300  # the query and four answers
        assert 2 * 150 < picture.height < 2 * 400  # two engines
        assert np.asarray(picture).std() > 20
    assert run(*query[:-1], target.with_suffix(".png"))[0] == 0
    assert Image.open(target.with_suffix(".png")).format == "PNG"


def test_show_without_a_display_says_what_to_do_instead(run, monkeypatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    status, out, err = run("img/Some_Hat/img_00000004.jpg", "--show")
    assert status == 0
    assert "exact" in out
    assert "no display" in err
    assert "--output" in err


def test_from_the_shell_errors_are_a_line_and_no_traceback(base: Path) -> None:
    command = [sys.executable, ROOT / "retrieval.py", "gone.jpg", "--dataset-base", base]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("retrieval.py: gone.jpg: no such file")
    assert ended.stderr.count("\n") == 1

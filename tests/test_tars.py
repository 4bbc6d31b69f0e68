"""Pictures in tar files, as WebDataset's own writer makes them."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_changes import by_path, counts
from test_feature_extractor import extract

import data
import retrieval
import tars
from annotations import attribute_list
from changes import look
from collection import find_pictures, picture_file, read_collection, read_folder
from index import open_database
from tars import members_of, open_photo, parts_of, read_photo, split
from utils import MissingPictureError, PictureError, UserError


def write_shards(folder: Path, photos: Path, labels: bool = False) -> dict[str, bytes]:
    """The photos of category folders in two shards; their content by path.

    With labels, what the paths in the shards tell is wrong.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted(photos.glob("*/*.jpg"))
    content = {}
    for number, own in enumerate((files[::2], files[1::2])):
        name = f"photos-{number:03d}.tar"
        with webdataset.TarWriter(str(folder / name)) as shard:
            for i, path in enumerate(own):
                category = path.parent.name
                key = f"{'wrong' if labels else category}/{path.stem}"
                told = {}
                if labels:
                    told = {"json": {"item": f"{category} {i // 2}"}, "cls": category.encode()}
                shard.write({"__key__": key, "jpg": path.read_bytes(), **told})
                content[f"{name}/{key}.jpg"] = path.read_bytes()
    return content


@pytest.fixture
def shards(few_photos: Path, tmp_path: Path) -> Path:
    """The few photos in shards, with their model."""
    base = tmp_path / "shards"
    write_shards(base, few_photos)
    shutil.copytree(few_photos / "models", base / "models")
    return base


def test_members_are_what_webdataset_reads(few_photos: Path, tmp_path: Path) -> None:
    """Guards `_scan`: the same names, bytes and labels as by its own reader."""
    content = write_shards(tmp_path, few_photos, labels=True)
    assert find_pictures(tmp_path) == sorted(content)
    for tar in sorted(tmp_path.glob("*.tar")):
        members = members_of(tar)
        samples = {
            each["__key__"]: each
            for each in webdataset.WebDataset(str(tar), shardshuffle=False, empty_check=False)
        }
        assert [f"{key}.jpg" for key in sorted(samples)] == members.names
        for row, name in enumerate(members.names):
            sample = samples[name.removesuffix(".jpg")]
            with open_photo(tar / name, tmp_path) as file:
                assert file.read() == sample["jpg"]
            assert members.categories[row] == sample["cls"].decode()
            assert members.items[row] == json.loads(sample["json"])["item"]


def test_features_are_those_of_the_same_files(
    shards: Path, few_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole way: extraction by the folders in the shards, a query from a shard, an update."""
    folder = Path(shutil.copytree(few_photos, tmp_path / "folder"))
    assert extract(folder) == extract(shards) == 0
    plain, packed = by_path(folder), by_path(shards)
    assert {path.split("/", 1)[1]: features for path, features in packed.items()} == plain
    assert read_folder(shards, 0.1).category_names == ["dress", "hat", "shoes"]

    path = open_database(shards).paths[5]
    for name in (path, str(shards / path)):
        capsys.readouterr()
        retrieval.main([name, "--dataset-base", str(shards), "--engine", "exact", "--json"])
        best = json.loads(capsys.readouterr().out)[0]["results"][0]
        assert (best["path"], best["distance"]) == (path, pytest.approx(0, abs=1e-3))

    first = shards / "photos-000.tar"
    with tarfile.open(first, "a") as archive:  # one more, and the stamps of all are others
        extra = Image.effect_noise((90, 90), 60).convert("RGB")
        buffer = io.BytesIO()
        extra.save(buffer, "PNG")
        member = tarfile.TarInfo("hat/new.png")
        member.size = buffer.tell()
        buffer.seek(0)
        archive.addfile(member, buffer)
    (shards / "photos-001.tar").rename(shards / "renamed.tar")
    assert extract(shards, "--update") == 0
    assert counts(capsys.readouterr().out) == [24, 1, 0]
    assert "photos-000.tar/hat/new.png" in open_database(shards).paths


def test_what_was_found_is_kept_until_the_file_changes(shards: Path, monkeypatch) -> None:
    """Guards the stamp, and what is damaged of it; a folder without the right to write will do."""
    tar, kept = shards / "photos-000.tar", shards / tars.KEPT
    scans = []
    scan = tars._scan
    monkeypatch.setattr(tars, "_scan", lambda tar: scans.append(tar) or scan(tar))

    def names() -> list[str]:
        tars._members_of.cache_clear()
        return members_of(tar, kept).names

    before = names()
    assert names() == before
    assert len(scans) == 1
    (file,) = kept.iterdir()
    file.write_bytes(file.read_bytes()[:-40])
    assert names() == before
    assert len(scans) == 2
    with tarfile.open(tar, "a") as archive:
        archive.addfile(tarfile.TarInfo("z.jpg"), io.BytesIO())
    assert names() == [*before, "z.jpg"]
    shutil.rmtree(kept)
    kept.write_text("no folder")
    assert names() == [*before, "z.jpg"]


def test_labels_go_before_folders(few_photos: Path, tmp_path: Path) -> None:
    """Of a plain folder, and of an import, which finds items to measure with."""
    photos = tmp_path / "photos"
    content = write_shards(photos, few_photos, labels=True)
    pictures = read_folder(photos, 0.1)
    of = {path: Image.open(io.BytesIO(data)).size for path, data in content.items()}
    assert pictures.category_names == ["dress", "hat", "shoes"]
    category_of = {path.stem: path.parent.name for path in few_photos.glob("*/*.jpg")}
    for row, path in enumerate(pictures.paths):
        category = category_of[Path(path).stem]
        assert pictures.category_names[pictures.categories[row]] == category
        assert pictures.items[row].startswith(category)
    base = tmp_path / "data"
    data.main(["import", str(photos), "--dataset-base", str(base), "--val-share", "0.3"])
    table = read_collection(base, 50, True, 0.1)
    assert attribute_list(base) is not None
    assert len(table) == 24
    assert table.category_names == ["dress", "hat", "shoes"]
    assert len(set(table.items.tolist())) == len(set(pictures.items.tolist()))
    for path in table.paths:
        assert read_photo(base / path, base).size == of[path.removeprefix("img/")]
    data.main(["check", "--dataset-base", str(base), "--num-workers", "1"])


def test_paths_lead_into_tar_files(tmp_path: Path) -> None:
    """Into files alone, below folders of any name, the base's own included; by either case."""
    base = tmp_path / "base.tar"
    for place in ("a/x.tar", "İİ/X.TAR", "folder.tar/y.tar", "0.tar"):
        (base / place).parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(base / place, "w") as archive:
            add(archive, "b/1.jpg", b"one")
    (base / "folder.tar" / "2.jpg").write_bytes(b"two")
    (base / "a.tar.jpg").write_bytes(b"three")
    wanted = {
        "a/x.tar/b/1.jpg": ["a", "b", "1.jpg"],
        "İİ/X.TAR/b/1.jpg": ["İİ", "b", "1.jpg"],
        "folder.tar/y.tar/b/1.jpg": ["folder.tar", "b", "1.jpg"],
        "0.tar/b/1.jpg": ["b", "1.jpg"],
        "folder.tar/2.jpg": ["folder.tar", "2.jpg"],
        "a.tar.jpg": ["a.tar.jpg"],
    }
    assert sorted(find_pictures(base)) == sorted(wanted)
    for path, parts in wanted.items():
        assert parts_of(base, path) == parts
        with open_photo(base / path, base) as file:
            assert file.read() == (b"one" if "b/" in path else b"two" if "2" in path else b"three")
        assert look(base, path, np.zeros(4, np.int32), crop=False).any()
    assert split(base / "a/x.tar/b/1.jpg") == (str(base / "a/x.tar"), "b/1.jpg")
    assert split(base / "none.tar/b/1.jpg") is None


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", kind: bytes = b"0") -> None:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(content), kind, "/etc/passwd"
    archive.addfile(member, io.BytesIO(content))


def test_only_pictures_are_members(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No links, no devices, nothing hidden, nothing above; the last of equal names, as tar does."""
    tar = tmp_path / "odd.tar"
    with tarfile.open(tar, "w") as archive:
        add(archive, "./a/1.jpg", b"first")
        add(archive, "a/1.jpg", b"second")
        add(archive, "/b/2.PNG", b"from the root")
        add(archive, "n" * 300 + ".jpg", b"a long name")
        add(archive, "größe 1.webp", b"no ASCII")
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            add(archive, f"of kind {kind.decode()}.jpg", kind=kind)
        for name in ("../c.jpg", "a/.hidden.jpg", ".thumbs/d.jpg", "text.txt", "two\nlines.jpg"):
            add(archive, name, b"no")
    names = members_of(tar).names
    assert names == ["a/1.jpg", "b/2.PNG", "größe 1.webp", "n" * 300 + ".jpg"]
    assert "two\\nlines.jpg': left out for its name" in capsys.readouterr().err
    with open_photo(tar / "a/1.jpg", tmp_path) as file:
        assert file.read() == b"second"
    for name in ("of kind 2.jpg", "../c.jpg", "a/1.jp", "none.jpg"):
        with pytest.raises(MissingPictureError):
            open_photo(tar / name, tmp_path)


def test_what_is_called_a_tar_file_and_is_none(
    shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """PyTorch's checkpoints are passed over; broken links and pipes are named."""
    (shards / "mine").mkdir()
    shutil.copyfile(shards / "models/model_best.pth.tar", shards / "mine/model_best.PTH.tar")
    (shards / "mine" / "gone.tar").symlink_to("nowhere")
    os.mkfifo(shards / "mine" / "pipe.tar")
    assert len(find_pictures(shards)) == 24
    said = capsys.readouterr().err
    assert f"{shards}/mine/gone.tar: left out, as it is no file" in said
    assert f"{shards}/mine/pipe.tar: left out, as it is no file" in said


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"category": None, "item": None}, ("", "")),
        ({"category": ["a"], "item": {"a": 1}}, ("", "")),
        ({"category": True, "item": 17}, ("", "17")),
        ({"category": "\ud800", "item": "x" * 256}, ("", "")),
        ({"category": " Tank\n  top ", "item": "Größe"}, ("Tank top", "Größe")),
        ([1], ("", "")),
    ],
)
def test_labels_are_words(told: object, words: tuple[str, str], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        add(archive, "1.jpg", b"one")
        add(archive, "1.json", json.dumps(told).encode())
    members = members_of(tmp_path / "x.tar")
    assert (*members.categories, *members.items) == words


def test_a_tar_file_that_is_a_link_stays_in_the_collection(shards: Path, tmp_path: Path) -> None:
    """As a picture that is one: to a folder of the collection, never out of it."""
    first, second = shards / "photos-000.tar", shards / "photos-001.tar"
    name = members_of(first).names[0]
    (shards / "inside.tar").symlink_to(first)
    second.rename(tmp_path / "outside.tar")
    second.symlink_to(tmp_path / "outside.tar")
    assert picture_file(shards, f"inside.tar/{name}") == shards / "inside.tar" / name
    other = members_of(second).names[0]
    with pytest.raises(PictureError, match=r"photos-001\.tar: is a link out of .*shards; put"):
        picture_file(shards, f"photos-001.tar/{other}")


def test_damaged_tar_files_are_named(shards: Path) -> None:
    """Cut off anywhere, with a header that is wrong, compressed, or empty: one line."""
    tar = shards / "photos-000.tar"
    whole = tar.read_bytes()
    member = members_of(tar).places[members_of(tar).places[:, 0].argsort()][3]
    header = int(member[0]) - tarfile.BLOCKSIZE
    wrong = {
        "cut off in a picture": whole[: int(member[0]) + 99],
        "cut off in a header": whole[: header + 99],
        "a header": whole[: header + 20] + b"\xff" * 200 + whole[header + 220 :],
        "no tar": b"x" * 5000,
        "empty": b"",
    }
    for content in wrong.values():
        tar.write_bytes(content)
        with pytest.raises(UserError, match=r"photos-000\.tar: cannot be read as a tar file") as e:
            read_folder(shards, 0.1)
        assert "\n" not in str(e.value)
    tar.unlink()
    with tarfile.open(tar, "w:gz") as archive:
        add(archive, "a.jpg", b"no")
    with pytest.raises(UserError, match="not compressed"):
        read_folder(shards, 0.1)


def test_a_tar_file_that_is_cut_off_after_it_was_listed(shards: Path) -> None:
    """Pictures that are no longer there are skipped and named; the others are extracted."""
    tars._members_of.cache_clear()
    tar = shards / "photos-000.tar"
    members = members_of(tar, shards / tars.KEPT)
    os.truncate(tar, int(members.places[:, 0].max()) + 10)
    last = str(members.names[members.places[:, 0].argmax()])
    (file,) = (shards / tars.KEPT).iterdir()
    found = dict(np.load(file))
    now = os.stat(tar)
    found["stamp"] = np.array([now.st_size, now.st_ino, now.st_ctime_ns])
    np.savez(file.open("wb"), **found)
    tars._members_of.cache_clear()
    with pytest.raises(PictureError, match="the tar file ends in it"):
        read_photo(tar / last, shards)
    assert extract(shards) == 1
    assert open_database(shards).info["skipped"] == [f"photos-000.tar/{last}"]


def header(name: bytes, size: bytes, kind: bytes, extra: bytes = b"") -> bytes:
    """A header of 512 bytes with a right checksum, whatever is in it."""
    block = bytearray(512)
    block[:100] = name[:100].ljust(100, b"\0")
    block[100:124] = b"0000644\0" + b"0000000\0" * 2
    block[124:136] = size[:12].ljust(12, b"\0")
    block[136:148] = b"00000000000\0"
    block[156:157] = kind
    block[257:265] = b"ustar  \0"
    block[345:495] = extra[:150].ljust(150, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(*pairs: tuple[str, str]) -> bytes:
    """A PAX header, which tells of the next member."""
    content = b""
    for key, value in pairs:
        line = f" {key}={value}\n".encode()
        length = len(line) + 1
        while len(line) + len(str(length)) != length:
            length += 1
        content += str(length).encode() + line
    blocks = -(-len(content) // 512) * 512
    return header(b"pax", b"%011o" % len(content), b"x") + content.ljust(blocks, b"\0")


ONE = header(b"a.jpg", b"%011o" % 3, b"0") + b"one".ljust(512, b"\0")
BEYOND = b"\x80" + b"\0" * 3 + (2**62).to_bytes(8, "big")
SPARSE = [("major", "1"), ("minor", "0"), ("name", "s.jpg"), ("realsize", "99")]
HOSTILE = {
    "headers before headers": pax(("a", "b")) * 3000 + ONE,
    "a sparse header that is cut off": header(b"s.jpg", b"%011o" % 0, b"S", b"\0" * 137 + b"\1"),
    "a size past every file": header(b"b.jpg", BEYOND, b"0"),
    "a size below 0": ONE + pax(("size", "-1536")) + ONE,
    "a size of -1": pax(("size", "-1")) + ONE,
    "a header of gigabytes": header(b"pax", b"%011o" % (3 << 30), b"x") + ONE,
    "a long name of gigabytes": header(b"pax", b"%011o" % (3 << 30), b"L") + ONE,
    "two tar files": ONE + bytes(1024) + ONE + bytes(1024),
    "sparse by PAX": pax(*((f"GNU.sparse.{key}", value) for key, value in SPARSE)) + ONE,
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_tar_files_are_named(content: bytes, tmp_path: Path) -> None:
    """Neither another error, nor memory, nor a loop without an end."""
    (tmp_path / "x.tar").write_bytes(content)
    if content.startswith(b"pax") and len(content) < 2048:
        os.truncate(tmp_path / "x.tar", 4 << 30)
    with pytest.raises(UserError, match=r"x\.tar: cannot be read as a tar file") as error:
        members_of(tmp_path / "x.tar")
    assert "\n" not in str(error.value)


NAMES = st.binary(max_size=20).map(lambda name: name + b".jpg")
NUMBERS = st.binary(max_size=12) | st.integers(-(2**70), 2**70).map(lambda n: b"%o" % n)
KINDS = st.sampled_from([bytes([kind]) for kind in b"0xgLKS51\0"])
KEYS = st.sampled_from(["size", "path", "GNU.sparse.map", "GNU.sparse.size", "hdrcharset"])
BLOCKS = (
    st.builds(header, NAMES, NUMBERS, KINDS, st.binary(max_size=150))
    | st.builds(lambda *pair: pax(pair), KEYS, st.text(max_size=8) | st.integers().map(str))
    | st.binary(min_size=512, max_size=512)
    | st.sampled_from([ONE, bytes(512)])
)


@settings(max_examples=300, deadline=None)
@given(blocks=st.lists(BLOCKS, max_size=8))
def test_whatever_a_tar_file_holds_is_an_error_or_pictures(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[bytes]
) -> None:
    """Headers with right checksums and anything in them, of listing and of reading."""
    tar = tmp_path_factory.mktemp("spoilt") / "x.tar"
    tar.write_bytes(b"".join(blocks))
    said = ""
    try:
        for name in members_of(tar).names:
            read_photo(tar / name, tar.parent)
    except UserError as error:
        said = str(error)
    assert "\n" not in said

"""Wrong files, by the scripts themselves: refused by name with what mends it, and no code runs.

The faults are laid with the SHA-256 that belongs to them, as who makes a file to do harm would do.
"""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
import feature_extractor
import kmeans
import retrieval
import train
from net import read_checkpoint
from search import clusters
from tests.conftest import rehash, run
from utils import UserError, run_script

EXTRACT, CLUSTER = "run: python feature_extractor.py", "run: python kmeans.py"
MACHINE = ("--amp", "off", "--device", "cpu", "--num-workers", "0")
MODEL = "models/model_0_final.pth.tar"
SCRIPTS = {s.__name__: s.main for s in (evaluate, feature_extractor, kmeans, retrieval, train)}
Damage = Callable[[Path], object]


class Malicious:
    """What a pickle runs when it is loaded; np.save and torch.save pack it."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("marker",)


@pytest.fixture(scope="module")
def made(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn collection with a database and clusters, made by the scripts."""
    base = tmp_path_factory.mktemp("made") / "data"
    shutil.copytree(drawn, base, copy_function=os.link)
    data = ("--dataset-base", str(base))
    train.main([*data, "--epoch", "0", "--backbone", "efficientnet_b0", "--pretrained", "none",
                "--img-size", "40", "--crop-size", "32", "--inter-dim", "32"])  # fmt: skip
    flags = ("--color-top-n", "1", "--enable-inshop-dataset", "--flip")
    assert feature_extractor.main([*data, *MACHINE, *flags]) == 0
    kmeans.main([*data, "--n-clusters", "4"])
    return base


@pytest.fixture
def base(made: Path, tmp_path: Path) -> Path:
    """A copy of it; the pictures are linked."""
    copy = tmp_path / "data"
    photos = shutil.ignore_patterns("img", "in_shop", "Anno", "Eval")
    shutil.copytree(made, copy, ignore=photos)
    for name in ("img", "in_shop", "Anno", "Eval"):
        (copy / name).symlink_to(made / name)
    return copy


@pytest.fixture
def refused(base: Path, capsys: pytest.CaptureFixture[str]):
    """Run a script as from the command line: one line that names a file and what to do."""

    def ask(script: str, file: str, said: str, *flags: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            run_script(lambda: SCRIPTS[script](["--dataset-base", str(base), *map(str, flags)]))
        err = capsys.readouterr().err
        assert left.value.code == 2, err
        assert err.count("\n") == 1, err
        assert f"{base / file}: " in err
        assert said in err
        assert not Path("marker").exists()
        return err

    return ask


def query(base: Path) -> tuple[str, ...]:
    """Arguments of retrieval.py."""
    return (str(min((base / "img").rglob("*.jpg"))), "--device", "cpu", "--top-n", "2")


def array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    """Change an array; all_feat.json names the new one."""

    def damage(base: Path) -> None:
        np.save(base / name, change(np.load(base / name)), allow_pickle=True)
        rehash(base, name)

    return damage


def cut(name: str, share: float) -> Damage:
    """A file without its end."""
    return lambda base: os.truncate(base / name, int(share * (base / name).stat().st_size))


def archive(name: str, **arrays: object) -> Damage:
    """Change some arrays of an .npz; None takes one away."""

    def damage(base: Path) -> None:
        with np.load(base / name) as file:
            content = {**file, **arrays}
        content = {key: value for key, value in content.items() if value is not None}
        with open(base / name, "wb") as file:
            np.savez(file, **content)

    return damage


def directory(name: str) -> Damage:
    def damage(base: Path) -> None:
        (base / name).unlink()
        (base / name).mkdir()

    return damage


PICKLE = pickle.dumps(Malicious())


@pytest.mark.parametrize("script", ["evaluate", "kmeans", "retrieval"])
def test_every_script_refuses_features_of_other_numbers(base: Path, refused, script) -> None:
    """Other faults of a database are in test_database.py."""
    array("all_palette_feat.npy", lambda x: x.astype(np.float64))(base)
    flags = query(base) if script == "retrieval" else ()
    refused(script, "all_palette_feat.npy", f"not <f4 of 2; {EXTRACT}", *flags)


KMEANS: dict[str, Damage] = {
    **{f"cut at {share}": cut("models/kmeans.m", share) for share in (0, 0.01, 0.5, 0.99)},
    "a pickle": lambda base: (base / "models/kmeans.m").write_bytes(PICKLE),
    "objects": archive("models/kmeans.m", labels=np.array([Malicious()])),
    "a folder": directory("models/kmeans.m"),
}


def change(**changes: Callable[[np.ndarray], object]) -> Damage:
    """Change arrays of kmeans.m."""

    def damage(base: Path) -> None:
        with np.load(base / "models/kmeans.m") as file:
            arrays = {name: made(file[name]) for name, made in changes.items()}
        archive("models/kmeans.m", **arrays)(base)

    return damage


KMEANS |= {
    "labels too high": change(labels=lambda x: x + 1),
    "labels below 0": change(labels=lambda x: x - 1),
    "fewer labels": change(labels=lambda x: x[1:]),
    "labels of halves": change(labels=lambda x: x + 0.5),
    "no labels": change(labels=lambda x: None),
    "a shorter recall": change(recall=lambda x: x[1:]),
    "an older one, without recall": change(recall=lambda x: None),
    "a recall of NaN": change(recall=lambda x: x * np.nan),
    "centroids of another width": change(centroids=lambda x: x[:, 1:]),
    "centroids of NaN": change(centroids=lambda x: x * np.nan),
    "no centroid": change(centroids=lambda x: x[:0], recall=lambda x: x[:0]),
    "of other features": change(features=lambda x: "0" * 64),
    "a distance that is a number": change(distance=lambda x: 1.0),
}


@pytest.mark.parametrize("damage", KMEANS.values(), ids=KMEANS)
def test_wrong_clusters_are_named(base: Path, refused, damage: Damage) -> None:
    """Guards clusters.open_clusters, and arrays.read_archive below it."""
    damage(base)
    refused("evaluate", clusters.CLUSTERS, f"{CLUSTER} --dataset-base {base}", "--engine", "kmeans")


def test_damaged_quantised_features_are_made_again(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are no more than a copy."""

    def results() -> list[dict]:
        capsys.readouterr()
        retrieval.main(["--dataset-base", str(base), *query(base), "--engine", "exact", "--json"])
        return json.loads(capsys.readouterr().out)[0]["results"]

    before = results()
    for place in (*base.glob("all_*.codes.npy"), *base.glob("all_*.bounds.npy")):
        place.write_bytes(PICKLE if "bounds" in place.name else place.read_bytes()[:200])
    assert results() == before
    assert not Path("marker").exists()


def saved(change: Callable[[dict], object]) -> Callable[[Path], object]:
    """Change a checkpoint's content."""

    def damage(path: Path) -> None:
        content = read_checkpoint(path)
        change(content)
        torch.save(content, path)

    return damage


def without_storage(name: str, shape: tuple[int, ...]) -> Callable[[dict], object]:
    """A weight that claims to be huge: one value, seen again and again."""
    return lambda content: content["state_dict"].update({name: torch.zeros(()).expand(shape)})


CHECKPOINTS: dict[str, Callable[[Path], object]] = {
    **{f"cut at {share}": lambda path, s=share: os.truncate(path, int(s * path.stat().st_size))
       for share in (0, 0.01, 0.5, 0.99)},
    "a pickle": lambda path: path.write_bytes(PICKLE),
    "a pickle in torch's archive": lambda path: torch.save({"state_dict": Malicious()}, path),
    "a pickle in its old format": lambda path: torch.save(
        {"state_dict": Malicious()}, path, _use_new_zipfile_serialization=False),
    "a huge weight": saved(without_storage("fc.weight", (10**9, 10**6))),
    "a weight of one dimension": saved(without_storage("fc.weight", (32,))),
    "a scalar": saved(without_storage("fc2.weight", ())),
    "a weight that is a string": saved(lambda c: c["state_dict"].update({"fc.weight": "x"})),
    "a longer embedding": saved(lambda c: c["network"].update(inter_dim=10**9)),
    "an embedding of words": saved(lambda c: c["network"].update(inter_dim="many")),
    "categories by number": saved(lambda c: c["network"].update(categories=5)),
    "pictures beyond memory": saved(lambda c: c["network"].update(img_size=10**7)),
    "no such pooling": saved(lambda c: c["network"].update(pooling="max")),
    "a network that is a list": saved(lambda c: c.update(network=[1])),
    "an older one without sizes": saved(lambda c: c["network"].pop("img_size")),
    "a split that is a tensor": saved(lambda c: c.update(held_out=torch.zeros(3))),
}  # fmt: skip


@pytest.mark.parametrize("damage", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_wrong_checkpoints_are_named(base: Path, refused, damage) -> None:
    """Guards network.checkpoint, network.architecture and net.load_net."""
    damage(base / MODEL)
    flags = ("--dumped-model", base / MODEL, *MACHINE)
    refused("feature_extractor", MODEL, "", *flags)


@pytest.mark.parametrize("kind", ["a pickle", "cut at 0.5"])
def test_wrong_weights_to_start_from_are_named(base: Path, refused, kind: str) -> None:
    """Guards net.initial_net: no loader of its own."""
    CHECKPOINTS[kind](base / MODEL)
    refused("train", MODEL, "", "--pretrained", base / MODEL, "--backbone", "efficientnet_b0")


def test_weights_of_nan_are_no_start(base: Path, refused) -> None:
    """Guards net.initial_net: training would blame the learning rate."""
    saved(lambda c: c["state_dict"]["fc.bias"].fill_(torch.nan))(base / MODEL)
    with pytest.raises(UserError, match=r"PRETRAINED .*model_0_final.pth.tar: holds NaN"):
        train.main(["--dataset-base", str(base), "--pretrained", str(base / MODEL)])


RESUME: dict[str, Callable[[Path], object]] = {
    "a pickle": lambda path: path.write_bytes(PICKLE),
    "cut": lambda path: os.truncate(path, 5000),
    "a checkpoint that is none": lambda path: torch.save({"progress": {}}, path),
    "progress of words": saved(lambda c: c.update(progress={"epoch": "one"})),
    "an identity that is a number": saved(lambda c: c.update(identity=1)),
    "weights of another network": saved(lambda c: c["state_dict"].pop("fc.weight")),
    "an optimizer of nothing": saved(lambda c: c.update(optimizer={})),
    "a generator of words": saved(lambda c: c.update(rng="x")),
}


@pytest.fixture(scope="module")
def stopped(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A resume point, and the flags of its run."""
    base = tmp_path_factory.mktemp("stopped") / "data"
    shutil.copytree(made, base, ignore=shutil.ignore_patterns("all_*", "*.m", "*.tar"),
                    copy_function=os.link)  # fmt: skip
    flags = "--backbone efficientnet_b0 --pretrained none --img-size 40 --crop-size 32".split()
    flags += "--recipe original --epoch 1 --amp off --num-workers 0".split()
    train.main(["--dataset-base", str(base), *flags])
    return base / "models/checkpoint.pth.tar", flags


@pytest.mark.parametrize("damage", RESUME.values(), ids=RESUME)
def test_wrong_resume_points_are_named(base: Path, refused, stopped, damage) -> None:
    point, flags = stopped
    shutil.copyfile(point, base / "models/checkpoint.pth.tar")
    damage(base / "models/checkpoint.pth.tar")
    refused("train", "models/checkpoint.pth.tar", "", *flags, "--resume")


def test_a_process_says_one_line_and_leaves_with_2(base: Path) -> None:
    """As a user sees it: no warning of a library, no traceback. Guards utils.run_script."""
    array("all_item.npy", lambda x: np.array([Malicious()] * len(x)))(base)
    done = run("retrieval.py", "--dataset-base", base, *query(base), check=2)
    assert done.stderr.startswith(f"retrieval.py: {base / 'all_item.npy'}: ")
    assert done.stderr.count("\n") == 1
    assert not Path("marker").exists()

"""What each part of the training recipe gives: trains and measures it part by part.

    python -m tools.ablation --photos photos --items inshop/img/MEN --dataset-base data/ablation

The photos give the categories: train/ is trained on, validation/ is measured. The items are the
in-shop part: run r measures every third product group, from the r-th on, and trains on the others,
with its own seed; with --items-apart every third item of each group. Figures are stored below
DATASET_BASE by their settings and pictures, so the same command continues where it was stopped.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from config import ENV_PREFIX, Config
from pictures.folder import find_pictures
from utils import UserError, atomic_write, parse_args, run_script

ROOT = Path(__file__).parent.parent
FOLDS = 3

# As many pictures a step in every row: 64 for cross entropy, 15 or 16 for the metric loss.
ORIGINAL = ("--recipe=original", "--train-batch-size=64", "--triplet-batch-size=5")
BALANCED = (*ORIGINAL[:2], "--triplet-batch-size=16", "--per-class=4")
OPTIMIZER = (*BALANCED, "--optimizer=adamw", "--lr=0.0003", "--freeze-param=false")
LOSS = (
    *OPTIMIZER,
    "--metric-loss=proxy_anchor",
    "--triplet-weight=0.02",
    "--label-smoothing=0.1",
)
RECIPES: dict[str, tuple[str, ...]] = {
    "untrained": ("--epoch=0", "--inter-dim=0", "--pooling=avg"),
    "original (2018)": ORIGINAL,
    "+ item-balanced batches": BALANCED,
    "+ AdamW, warm-up, decay": OPTIMIZER,
    "+ Proxy-Anchor loss, smoothed labels": LOSS,
    "modern: + pooling, two parts": (),
    "modern, backbone frozen": ("--freeze-param=true",),
    "modern, LR 0.001": ("--lr=0.001",),
    "modern, no loss of items": ("--triplet-weight=0",),
}
# What ranks: the embedding alone, and the default distance.
SIGNALS: dict[str, tuple[str, ...]] = {
    ", deep alone": ("--color-weight=0", "--palette-weight=0"),
    "": (),
}
ITEMS = "recall@1", "recall@10"
METRICS = {"category": ("p@1", "map"), "inshop": ITEMS, "phone": ITEMS[:1]}
SHARED = ("BACKBONE", "PRETRAINED", "EPOCH", "IMG_SIZE", "CROP_SIZE", "AMP", "DEVICE")

GALLERY = ("--gallery", r"_main\.")

Figures = dict[str, float]  # by protocol and metric, as in "inshop recall@1"


class Sources(NamedTuple):
    """The folders of pictures, see `_arguments`."""

    photos: Path
    items: Path
    phone: Path | None
    items_apart: bool


def _run(script: str, base: Path, *flags: str) -> str:
    """Run a script of the project with only these settings; returns its standard output.

    Raises
    ------
    UserError : it failed
    """
    command = [sys.executable, str(ROOT / script), *flags, "--dataset-base", str(base)]
    base.mkdir(parents=True, exist_ok=True)
    # Neither the environment nor a .env of the working folder may change what a row means.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)}
    done = subprocess.run(  # noqa: S603
        command, stdout=subprocess.PIPE, text=True, check=False, env=environment, cwd=base
    )
    if done.returncode:
        raise UserError(f"{' '.join(command)}: exit status {done.returncode}")
    return done.stdout


def split_items(items: Path, folder: Path, fold: int, apart: bool) -> tuple[Path, Path]:
    """Folders with links to the product groups to train on, and to those to measure.

    Every third group is measured, from the `fold`-th on; with `apart` every third item.
    """
    places = sorted(path for path in items.glob("*/*" if apart else "*") if path.is_dir())
    if len(places) < FOLDS:
        kind = "items" if apart else "product groups"
        raise UserError(f"--items {items}: {len(places)} {kind}; {FOLDS} or more needed")
    for i, place in enumerate(places):
        part = "measured" if i % FOLDS == fold else "trained"
        link = folder / part / place.relative_to(items)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(place.resolve(), target_is_directory=True)
    return folder / "trained", folder / "measured"


def _measure(bases: dict[str, Path], weights: Sequence[str]) -> Figures:
    """The figures of each protocol on its data set."""
    figures = {}
    for protocol, base in bases.items():
        of_items = "inshop" if protocol == "phone" else protocol
        out = _run("evaluate.py", base, "--protocol", of_items, "--json", *weights)
        record = json.loads(out)
        for metric in METRICS[protocol]:
            figures[f"{protocol} {metric}"] = record[metric]["value"]
    return figures


def phone_queries(measured: Path, phone: Path, folder: Path) -> Path:
    """A folder with the gallery pictures of studio items, and with phone pictures of them.

    Parameters
    ----------
    measured : GROUP/ITEM/COLOUR_VIEW.jpg, the view main is the gallery
    phone : ITEM/COLOUR_VIEW.jpg, also of other items
    folder : to make
    """
    for item in sorted(measured.glob("*/*")):
        place = folder / item.parent.name / item.name
        place.mkdir(parents=True, exist_ok=True)
        for path in item.glob("*_main.*"):
            shutil.copyfile(path, place / path.name)
        for path in (phone / item.name).glob("*"):
            shutil.copyfile(path, place / f"phone_{path.name}")
    return folder


def train_and_measure(
    sources: Sources, folder: Path, run: int, recipe: Sequence[str], shared: Sequence[str]
) -> dict[str, Figures]:
    """Train once, and measure with each set of signals.

    Parameters
    ----------
    sources : the folders of pictures
    folder : of this run of this recipe
    run : its number; gives the seed and the product groups to measure
    recipe : its flags of train.py; empty for the default recipe
    shared : the flags that all recipes have

    Returns
    -------
    The figures by the names of `SIGNALS`.
    """
    trained, measured = split_items(sources.items, folder, run % FOLDS, sources.items_apart)
    base = folder / "base"
    by_item = ("--in-shop", "--item-level")
    _run("data.py", base, "import", str(sources.photos))
    _run("data.py", base, "import", str(trained), *by_item)
    bases = {"category": folder / "photos", "inshop": folder / "items"}
    test = sources.photos / "validation"
    _run("data.py", bases["category"], "import", str(test), "--test")
    tested = {"inshop": measured}
    if sources.phone:
        bases["phone"] = folder / "phone"
        tested["phone"] = phone_queries(measured, sources.phone, folder / "queries")
    for name, place in tested.items():
        _run("data.py", bases[name], "import", str(place), *by_item, "--test", *GALLERY)
    data = ("--enable-inshop-dataset", f"--seed={run}", "--resume")
    _run("train.py", base, *data, *shared, *recipe)
    name = "model_0_final.pth.tar" if "--epoch=0" in recipe else "model_best.pth.tar"
    palette = f"--palette={'false' if '--recipe=original' in recipe else 'true'}"
    for place in bases.values():
        _run("feature_extractor.py", place, palette, "--dumped-model", str(base / "models" / name))
    return {name: _measure(bases, weights) for name, weights in SIGNALS.items()}


def print_table(results: dict[str, list[Figures]]) -> None:
    """Mean and standard deviation over the runs of every row, as Markdown."""
    columns = list(next(iter(results.values()))[0]) if results else []
    print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for row, runs in results.items():
        values = 100 * np.array([[figures[name] for name in columns] for figures in runs])
        spreads = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(columns))
        pairs = zip(values.mean(axis=0), spreads, strict=True)
        print(f"| {row} | {' | '.join(f'{mean:.1f} ± {spread:.1f}' for mean, spread in pairs)} |")


def _shared_flags(config: Config) -> list[str]:
    values = {name: getattr(config, name) for name in SHARED}
    if Path(config.PRETRAINED).is_file():
        values["PRETRAINED"] = Path(config.PRETRAINED).resolve()
    return [f"--{name.lower().replace('_', '-')}={value}" for name, value in values.items()]


def _key(sources: Sources, recipe: Sequence[str], shared: Sequence[str]) -> str:
    """A hash of the flags and the pictures of a training."""
    folders = [folder for folder in sources[:3] if folder]
    paths = [path for folder in folders for path in find_pictures(folder)]
    text = json.dumps([*map(str, folders), sources.items_apart, *paths, *recipe, *shared])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--photos", type=Path, required=True, help="photos by category: train/, validation/"
    )
    parser.add_argument(
        "--items", type=Path, required=True, help="GROUP/ITEM/COLOUR_VIEW.jpg; view main: gallery"
    )
    parser.add_argument(
        "--phone", type=Path, help="ITEM/COLOUR_VIEW.jpg of the same items: more queries"
    )
    parser.add_argument(
        "--items-apart",
        action="store_true",
        help="measure items of groups that are trained on, as DeepFashion's protocol does",
    )
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="of each row (default: 3)")
    rows = ", ".join(f"{number} {name}" for number, name in enumerate(RECIPES))
    parser.add_argument(
        "--rows", type=int, nargs="+", metavar="N", help=f"only these rows of the table: {rows}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    config, args = parse_args(argv, __doc__ or "", ("DATASET_BASE", *SHARED), _arguments)
    phone = args.phone.resolve() if args.phone else None
    sources = Sources(args.photos.resolve(), args.items.resolve(), phone, args.items_apart)
    shared = _shared_flags(config)
    results: dict[str, list[Figures]] = {}
    for number, (row, recipe) in enumerate(RECIPES.items()):
        if args.rows is not None and number not in args.rows:
            continue
        key = _key(sources, recipe, shared)
        for run in range(args.runs):
            folder = config.DATASET_BASE.resolve() / f"row{number}_run{run}_{key}"
            path = folder / "figures.json"
            if not path.is_file():
                figures = train_and_measure(sources, folder, run, recipe, shared)
                with atomic_write(path) as part:
                    part.write_text(json.dumps(figures), "utf-8")
            for name, found in json.loads(path.read_text("utf-8")).items():
                results.setdefault(f"{row}{name}", []).append(found)
            print(f"{row}: run {run + 1} of {args.runs} is done", file=sys.stderr)
    print_table(results)


if __name__ == "__main__":
    run_script(main)

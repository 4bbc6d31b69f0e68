"""Settle the recipe: what each part of it gives, by training it part by part.

    python -m tools.ablation --photos photos --items inshop/img/MEN --dataset-base data/ablation

Photos give the categories (train/ is trained on, validation/ measured), items the in-shop part.
Every run has a seed of its own, and holds out whole product groups: run r measures the items of
every third group from the r-th on, and trains on the others. What is done is kept below
DATASET_BASE, by its settings and pictures: the same command again goes on.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from config import ENV_PREFIX, Config
from pictures.folder import find_pictures
from utils import UserError, atomic_write, parse_args, parsed_json, run_script

ROOT = Path(__file__).parent.parent
FOLDS = 3

# As many pictures a step in every row: 64 for cross entropy, 15 or 16 for the metric loss.
ORIGINAL = ("--recipe=original", "--train-batch-size=64", "--triplet-batch-size=5")
BALANCED = (*ORIGINAL[:2], "--triplet-batch-size=16", "--per-class=4")
OPTIMIZER = (*BALANCED, "--optimizer=adamw", "--freeze-param=first")
LOSS = (
    *OPTIMIZER,
    "--metric-loss=proxy_anchor",
    "--triplet-weight=0.02",
    "--label-smoothing=0.1",
)
TRAININGS: dict[str, tuple[str, ...]] = {
    "original recipe (2018)": ORIGINAL,
    "+ item-balanced batches": BALANCED,
    "+ AdamW, warm-up, decay": OPTIMIZER,
    "+ Proxy-Anchor loss, smoothed labels": LOSS,
    "+ pooling, LayerNorm, sphere (modern)": (),
}
# Of the last training: weights of both models (trained, untrained) and of the palette.
SIGNALS: dict[str, tuple[str, ...]] = {
    "": ("--model-weights=1,0", "--palette-weight=0"),
    "+ palette": ("--model-weights=1,0", "--palette-weight=4"),
    "+ untrained network": ("--model-weights=1,0.5", "--palette-weight=4"),
}
COLUMNS = (
    ("category", "p@1"),
    ("category", "map"),
    ("inshop", "recall@1"),
    ("inshop", "recall@10"),
    ("inshop", "map@r"),
)
Figures = dict[str, dict[str, float]]
SHARED = ("BACKBONE", "PRETRAINED", "EPOCH", "IMG_SIZE", "CROP_SIZE", "AMP", "DEVICE")
_FIGURES = TypeAdapter(dict[str, Figures])


def _run(script: str, base: Path, *flags: str) -> str:
    """Run a script of the project with these settings alone; what it prints.

    Raises
    ------
    UserError : it failed
    """
    command = [sys.executable, str(ROOT / script), *flags, "--dataset-base", str(base)]
    base.mkdir(parents=True, exist_ok=True)
    # Neither the environment nor a .env of the working folder is to change what a row means.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)}
    done = subprocess.run(  # noqa: S603
        command, stdout=subprocess.PIPE, text=True, check=False, env=environment, cwd=base
    )
    if done.returncode:
        raise UserError(f"{' '.join(command)}: exit status {done.returncode}")
    return done.stdout


def _divide(items: Path, folder: Path, fold: int) -> tuple[Path, Path]:
    """Folders with links to the product groups that are trained on, and to those measured."""
    groups = sorted(path for path in items.iterdir() if path.is_dir())
    if len(groups) < FOLDS:
        raise UserError(
            f"--items {items}: {len(groups)} product groups; {FOLDS} or more are wanted"
        )
    for i, group in enumerate(groups):
        part = folder / ("measured" if i % FOLDS == fold else "trained")
        part.mkdir(parents=True, exist_ok=True)
        link = part / group.name
        if not link.is_symlink():
            link.symlink_to(group.resolve(), target_is_directory=True)
    return folder / "trained", folder / "measured"


def _measure(places: dict[str, Path], weights: Sequence[str]) -> Figures:
    """The figures of each protocol in its data set."""
    result = {}
    for protocol, place in places.items():
        out = _run("evaluate.py", place, "--protocol", protocol, "--json", *weights)
        names = [name for part, name in COLUMNS if part == protocol]
        record = json.loads(out)
        result[protocol] = {name: record[name]["value"] for name in names}
    return result


def train_and_measure(
    photos: Path, items: Path, folder: Path, run: int, recipe: Sequence[str], shared: Sequence[str]
) -> dict[str, Figures]:
    """Train once, and measure with each set of signals that the recipe has.

    Parameters
    ----------
    photos, items : the folders of pictures
    folder : of this run of this row
    run : its number: the seed, and with it the fold
    recipe : the flags of train.py that make the row
    shared : the flags that all rows have

    Returns
    -------
    For each of `SIGNALS` (the first one alone, where the recipe is not the last) the figures.
    """
    trained, measured = _divide(items, folder, run % FOLDS)
    base = folder / "base"
    places = {"category": folder / "photos", "inshop": folder / "items"}
    of_items = ("--in-shop", "--item-level")
    _run("data.py", base, "import", str(photos))
    _run("data.py", base, "import", str(trained), *of_items)
    _run("data.py", places["category"], "import", str(photos / "validation"), "--test")
    gallery = ("--gallery", r"_main\.")
    _run("data.py", places["inshop"], "import", str(measured), *of_items, "--test", *gallery)
    data = ("--enable-inshop-dataset",)
    _run("train.py", base, *data, *shared, *recipe, f"--seed={run}", "--resume")
    models = [str(base / "models/model_best.pth.tar")]
    if not recipe:
        untrained = folder / "untrained"
        _run("data.py", untrained, "import", str(photos))
        _run("train.py", untrained, *shared, "--epoch=0", "--inter-dim=0", "--pooling=avg")
        models.append(str(untrained / "models/model_0_final.pth.tar"))
    palette = f"--palette={'false' if recipe else 'true'}"
    for place in places.values():
        _run("feature_extractor.py", place, palette, "--models", ",".join(models))
    if recipe:
        return {"": _measure(places, ())}
    return {name: _measure(places, weights) for name, weights in SIGNALS.items()}


def print_table(results: dict[str, list[Figures]]) -> None:
    """Mean and spread (standard deviation of the runs) of every row, as Markdown."""
    heads = [f"{part} {name}" for part, name in COLUMNS]
    print(f"| | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for row, runs in results.items():
        cells = []
        for part, name in COLUMNS:
            values = 100 * np.array([figures[part][name] for figures in runs])
            spread = values.std(ddof=1) if len(values) > 1 else 0.0
            cells.append(f"{values.mean():.1f} ± {spread:.1f}")
        print(f"| {row} | {' | '.join(cells)} |")


def _shared_flags(config: Config) -> list[str]:
    """The settings that all rows have alike, as flags."""
    values = {name: getattr(config, name) for name in SHARED}
    if Path(config.PRETRAINED).is_file():
        values["PRETRAINED"] = Path(config.PRETRAINED).resolve()
    return [f"--{name.lower().replace('_', '-')}={value}" for name, value in values.items()]


def _key(photos: Path, items: Path, recipe: Sequence[str], shared: Sequence[str]) -> str:
    """A hash of what a training depends on."""
    listed = [path for folder in (photos, items) for path in find_pictures(folder)]
    text = json.dumps([str(photos), str(items), *listed, *recipe, *shared])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _kept(path: Path) -> dict[str, Figures]:
    """The figures that a training left behind."""
    try:
        kept = _FIGURES.validate_python(parsed_json(path.read_bytes()))
        _ = [figures[part][name] for figures in kept.values() for part, name in COLUMNS]
        return kept
    except (ValueError, KeyError):
        raise UserError(f"{path}: damaged; delete it to train again") from None


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--photos", type=Path, required=True, help="photos by category: train/, validation/"
    )
    parser.add_argument(
        "--items", type=Path, required=True, help="GROUP/ITEM/COLOUR_VIEW.jpg; view main: gallery"
    )
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="of each row (default: 3)")


def main(argv: Sequence[str] | None = None) -> None:
    config, args = parse_args(argv, __doc__ or "", ("DATASET_BASE", *SHARED), _arguments)
    photos, items, shared = args.photos.resolve(), args.items.resolve(), _shared_flags(config)
    results: dict[str, list[Figures]] = {}
    for number, (row, recipe) in enumerate(TRAININGS.items()):
        key = _key(photos, items, recipe, shared)
        for run in range(args.runs):
            folder = config.DATASET_BASE.resolve() / f"row{number}_run{run}_{key}"
            path = folder / "figures.json"
            if not path.is_file():
                figures = train_and_measure(photos, items, folder, run, recipe, shared)
                with atomic_write(path) as part:
                    part.write_text(json.dumps(figures), "utf-8")
            for name, figures in _kept(path).items():
                results.setdefault(name or row, []).append(figures)
            print(f"{row}: run {run + 1} of {args.runs} is done", file=sys.stderr)
    print_table(results)


if __name__ == "__main__":
    run_script(main)

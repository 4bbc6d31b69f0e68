"""What each part of the training recipe gives: trains and measures it part by part.

    python -m tools.ablation --photos photos --items inshop/img/MEN --dataset-base data/ablation

The photos give the categories: train/ is trained on, validation/ is measured. The items are the
in-shop part: run r measures every third product group, from the r-th on, and trains on the others,
with its own seed. Figures are stored below DATASET_BASE by their settings and pictures, so the same
command continues where it was stopped.
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

from config import ENV_PREFIX, Config
from pictures.folder import find_pictures
from utils import UserError, atomic_write, parse_args, run_script

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
RECIPES: dict[str, tuple[str, ...]] = {
    "original recipe (2018)": ORIGINAL,
    "+ item-balanced batches": BALANCED,
    "+ AdamW, warm-up, decay": OPTIMIZER,
    "+ Proxy-Anchor loss, smoothed labels": LOSS,
    "+ pooling, LayerNorm, sphere (modern)": (),
}
# Of the last recipe: weights of both models (trained, untrained) and of the palette.
SIGNALS: dict[str, tuple[str, ...]] = {
    "": ("--model-weights=1,0", "--palette-weight=0"),
    "+ palette": ("--model-weights=1,0", "--palette-weight=4"),
    "+ untrained network": ("--model-weights=1,0.5", "--palette-weight=4"),
}
METRICS = {"category": ("p@1", "map"), "inshop": ("recall@1", "recall@10", "map@r")}
COLUMNS = [f"{protocol} {metric}" for protocol, names in METRICS.items() for metric in names]
SHARED = ("BACKBONE", "PRETRAINED", "EPOCH", "IMG_SIZE", "CROP_SIZE", "AMP", "DEVICE")

Figures = dict[str, float]  # by the names of `COLUMNS`


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


def split_groups(items: Path, folder: Path, fold: int) -> tuple[Path, Path]:
    """Folders with links to the product groups to train on, and to those to measure."""
    groups = sorted(path for path in items.iterdir() if path.is_dir())
    if len(groups) < FOLDS:
        raise UserError(f"--items {items}: {len(groups)} product groups; {FOLDS} or more needed")
    for i, group in enumerate(groups):
        part = folder / ("measured" if i % FOLDS == fold else "trained")
        part.mkdir(parents=True, exist_ok=True)
        link = part / group.name
        if not link.is_symlink():
            link.symlink_to(group.resolve(), target_is_directory=True)
    return folder / "trained", folder / "measured"


def _measure(bases: dict[str, Path], weights: Sequence[str]) -> Figures:
    """The figures of each protocol on its data set."""
    figures = {}
    for protocol, base in bases.items():
        out = _run("evaluate.py", base, "--protocol", protocol, "--json", *weights)
        record = json.loads(out)
        for metric in METRICS[protocol]:
            figures[f"{protocol} {metric}"] = record[metric]["value"]
    return figures


def train_and_measure(
    photos: Path, items: Path, folder: Path, run: int, recipe: Sequence[str], shared: Sequence[str]
) -> dict[str, Figures]:
    """Train once, and measure with each set of signals.

    Parameters
    ----------
    photos, items : the folders of pictures
    folder : of this run of this recipe
    run : its number; gives the seed and the product groups to measure
    recipe : its flags of train.py; empty for the last recipe
    shared : the flags that all recipes have

    Returns
    -------
    The figures by the names of `SIGNALS`; only the first one unless the recipe is the last.
    """
    trained, measured = split_groups(items, folder, run % FOLDS)
    base = folder / "base"
    bases = {"category": folder / "photos", "inshop": folder / "items"}
    by_item = ("--in-shop", "--item-level")
    _run("data.py", base, "import", str(photos))
    _run("data.py", base, "import", str(trained), *by_item)
    _run("data.py", bases["category"], "import", str(photos / "validation"), "--test")
    gallery = ("--gallery", r"_main\.")
    _run("data.py", bases["inshop"], "import", str(measured), *by_item, "--test", *gallery)
    data = ("--enable-inshop-dataset",)
    _run("train.py", base, *data, *shared, *recipe, f"--seed={run}", "--resume")
    models = [str(base / "models/model_best.pth.tar")]
    if not recipe:
        untrained = folder / "untrained"
        _run("data.py", untrained, "import", str(photos))
        _run("train.py", untrained, *shared, "--epoch=0", "--inter-dim=0", "--pooling=avg")
        models.append(str(untrained / "models/model_0_final.pth.tar"))
    palette = f"--palette={'false' if recipe else 'true'}"
    for place in bases.values():
        _run("feature_extractor.py", place, palette, "--models", ",".join(models))
    if recipe:
        return {"": _measure(bases, ())}
    return {name: _measure(bases, weights) for name, weights in SIGNALS.items()}


def print_table(results: dict[str, list[Figures]]) -> None:
    """Mean and standard deviation over the runs of every row, as Markdown."""
    print(f"| | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for row, runs in results.items():
        values = 100 * np.array([[figures[name] for name in COLUMNS] for figures in runs])
        spreads = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(COLUMNS))
        pairs = zip(values.mean(axis=0), spreads, strict=True)
        print(f"| {row} | {' | '.join(f'{mean:.1f} ± {spread:.1f}' for mean, spread in pairs)} |")


def _shared_flags(config: Config) -> list[str]:
    values = {name: getattr(config, name) for name in SHARED}
    if Path(config.PRETRAINED).is_file():
        values["PRETRAINED"] = Path(config.PRETRAINED).resolve()
    return [f"--{name.lower().replace('_', '-')}={value}" for name, value in values.items()]


def _key(photos: Path, items: Path, recipe: Sequence[str], shared: Sequence[str]) -> str:
    """A hash of the flags and the pictures of a training."""
    paths = [path for folder in (photos, items) for path in find_pictures(folder)]
    text = json.dumps([str(photos), str(items), *paths, *recipe, *shared])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


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
    for number, (row, recipe) in enumerate(RECIPES.items()):
        key = _key(photos, items, recipe, shared)
        for run in range(args.runs):
            folder = config.DATASET_BASE.resolve() / f"row{number}_run{run}_{key}"
            path = folder / "figures.json"
            if not path.is_file():
                figures = train_and_measure(photos, items, folder, run, recipe, shared)
                with atomic_write(path) as part:
                    part.write_text(json.dumps(figures), "utf-8")
            for name, found in json.loads(path.read_text("utf-8")).items():
                results.setdefault(name or row, []).append(found)
            print(f"{row}: run {run + 1} of {args.runs} is done", file=sys.stderr)
    print_table(results)


if __name__ == "__main__":
    run_script(main)

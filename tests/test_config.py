"""config.py: where a setting comes from, what is refused and how, and what --help says."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from config import ORIGINAL, Config
from tests.conftest import ROOT
from utils import parse_args

# The names that users of such repositories know, with the defaults that DESIGN.md promises.
KNOWN = {
    "DATASET_BASE": "data/deepfashion", "DUMPED_MODEL": "",
    "DISTANCE_METRIC": "euclidean,euclidean", "COLOR_WEIGHT": "0.1", "COLOR_TOP_N": "10",
    "ENABLE_INSHOP_DATASET": "False", "INSHOP_DATASET_PERCENT": "",
    "FREEZE_PARAM": "false; original: auto", "TRIPLET_WEIGHT": "0.02; original: 2.0",
    "ENABLE_TRIPLET_WITH_COSINE": "False", "INTER_DIM": "512", "CATEGORIES": "20",
    "N_CLUSTERS": "0", "IMG_SIZE": "224; original: 256", "CROP_SIZE": "224",
    "TRAIN_BATCH_SIZE": "", "TEST_BATCH_SIZE": "", "TRIPLET_BATCH_SIZE": "",
    "EXTRACT_BATCH_SIZE": "", "NUM_WORKERS": "",
    "LR": "", "MOMENTUM": "", "EPOCH": "", "LOG_INTERVAL": "", "DUMP_INTERVAL": "",
    "TEST_INTERVAL": "", "DEVICE": "auto", "BACKBONE": "resnet50", "PRETRAINED": "imagenet",
    "AMP": "auto", "SEED": "0",
}  # fmt: skip


def parse(*argv: str) -> Config:
    return parse_args(argv, "a script", tuple(Config.model_fields))[0]


@pytest.mark.parametrize(
    ("flag", "variable", "dotenv", "expected"),
    [
        ("3", "4", "5", 3),
        (None, "4", "5", 4),
        (None, None, "5", 5),
        (None, None, None, 10),
        ("3", None, "5", 3),
        ("3", "4", None, 3),
    ],
)
def test_flag_beats_environment_beats_dotenv_beats_default(
    monkeypatch: pytest.MonkeyPatch,
    flag: str | None,
    variable: str | None,
    dotenv: str | None,
    expected: int,
) -> None:
    if variable:
        monkeypatch.setenv("FASHION_EPOCH", variable)
    if dotenv:
        Path(".env").write_text(f"EDITOR=vi\nFASHION_EPOCH={dotenv}\nFASHION_SEED=7\n")
    config = parse(*(["--epoch", flag] if flag else []))
    seed = 7 if dotenv else 0  # each setting has its own source
    assert config.model_dump(include={"EPOCH", "SEED"}) == {"EPOCH": expected, "SEED": seed}


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--train-batch-size", "8"], "TRAIN_BATCH_SIZE", 8),
        (["--lr=1e-4"], "LR", 0.0001),
        (["--dataset-base", "my photos/a"], "DATASET_BASE", Path("my photos/a")),
        (["--device", "cuda:1"], "DEVICE", "cuda:1"),
        (["--enable-inshop-dataset"], "ENABLE_INSHOP_DATASET", True),
        (["--enable-inshop-dataset", "true"], "ENABLE_INSHOP_DATASET", True),
        (["--crop-to-bbox"], "CROP_TO_BBOX", True),
        (["--crop-to-bbox", "false"], "CROP_TO_BBOX", False),
        (["--crop-to-bbox=no"], "CROP_TO_BBOX", False),
        (["--distance-metric", "cosine,cityblock"], "DISTANCE_METRIC", ("cosine", "cityblock")),
        (["--distance-metric", " cosine , dice"], "DISTANCE_METRIC", ("cosine", "dice")),
        ([], "DISTANCE_METRIC", ("euclidean", "euclidean")),
    ],
)
def test_flag_becomes_a_typed_value(argv: list[str], name: str, value: object) -> None:
    found = getattr(parse(*argv), name)
    assert found == value
    assert type(found) is type(value) or isinstance(value, Path)


def test_metrics_are_read_from_the_environment_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASHION_DISTANCE_METRIC", "cosine,correlation")
    assert parse().DISTANCE_METRIC == ("cosine", "correlation")


def test_settings_are_frozen_and_leave_a_scripts_own_arguments_apart() -> None:
    config, own = parse_args(
        ["photo.jpg", "--epoch", "2"], "", ("EPOCH",), lambda parser: parser.add_argument("picture")
    )
    assert vars(own) == {"picture": "photo.jpg"}
    with pytest.raises(ValidationError, match="frozen"):
        config.EPOCH = 3
    assert config.EPOCH == 2


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--epoch", "-1"], ["EPOCH", "--epoch", "'-1'", "greater than or equal to 0"]),
        (["--epoch", "3.5"], ["EPOCH", "'3.5'", "integer"]),
        (["--train-batch-size", "0"], ["TRAIN_BATCH_SIZE", "'0'", "1"]),
        (["--lr", "0"], ["LR", "'0'", "greater than 0"]),
        (["--lr", "nan"], ["LR", "'nan'"]),
        (["--lr", "inf"], ["LR", "'inf'"]),
        (["--color-weight", "inf"], ["COLOR_WEIGHT", "'inf'"]),
        (["--seed", "99999999999999999999999"], ["SEED", "'99999999999999999999999'"]),
        (["--momentum", "1"], ["MOMENTUM", "'1'", "less than 1"]),
        (["--inshop-dataset-percent", "80"], ["INSHOP_DATASET_PERCENT", "'80'", "1"]),
        (["--crop-to-bbox=maybe"], ["CROP_TO_BBOX", "'maybe'", "boolean"]),
        (["--amp", "fp8"], ["AMP", "'fp8'", "auto", "off", "bf16", "fp16"]),
        (["--device", "gpu"], ["DEVICE", "'gpu'", "cpu, cuda, cuda:N or mps"]),
        (["--recipe", "2018"], ["RECIPE", "'2018'", "modern", "original"]),
        (["--model-weights", "1,x"], ["MODEL_WEIGHTS", "'x'", "number"]),
        (["--model-weights", "1,-2"], ["MODEL_WEIGHTS", "'-2'", "equal to 0"]),
        (["--model-weights", "inf"], ["MODEL_WEIGHTS", "'inf'", "finite"]),
        (["--distance-metric", "cosine"], ["DISTANCE_METRIC", "'cosine'", "at least 2"]),
        (["--distance-metric", "cosine,cosin"], ["DISTANCE_METRIC", "'cosin'", "dice"]),
        (["--epohc", "3"], ["--epohc"]),
        (["--epo", "3"], ["--epo"]),
        (["--epoch"], ["--epoch", "expected one argument"]),
        (["stray.jpg"], ["stray.jpg"]),
    ],
)
def test_bad_value_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], argv: list[str], said: list[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        parse(*argv)
    out, error = capsys.readouterr()
    assert leaving.value.code == 2
    assert (out, error.count("\n")) == ("", 1)
    assert [part for part in said if part not in error] == []


@pytest.mark.parametrize("place", ["environment", ".env"])
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("FASHION_EPOHC=3", ["FASHION_EPOHC", "no such setting"]),
        ("FASHION_EPOCH=many", ["EPOCH", "'many'", "integer"]),
    ],
)
def test_bad_variable_is_refused_as_a_bad_flag_is(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
    line: str,
    said: list[str],
) -> None:
    if place == ".env":
        Path(".env").write_text(line + "\n")
    else:
        monkeypatch.setenv(*line.split("="))
    with pytest.raises(SystemExit) as leaving:
        parse()
    error = capsys.readouterr().err
    assert (leaving.value.code, error.count("\n")) == (2, 1)
    assert [part for part in said if part not in error] == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("A=1\n\n  FASHION_EPOCH\n", "FASHION_EPOCH: no such setting, or no value"),
        (b"FASHION_EPOCH=\xe9\n", ".env: cannot be read as UTF-8 text: "),
        ("FASHION_EPOCH=3\0\n", "EPOCH (--epoch): '3\\x00' is not allowed"),
        ("\ufeffFASHION_EPOCH=many", "EPOCH (--epoch): 'many' is not allowed"),
        ("=====\nPATH\nFASHION_SEED=x\n", "SEED (--seed): 'x' is not allowed"),
    ],
)
def test_a_spoilt_env_file_is_named(
    content: str | bytes, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines that are for others are passed over; a byte-order mark hides no setting."""
    Path(".env").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit) as leaving:
        parse()
    assert leaving.value.code == 2
    assert said in capsys.readouterr().err


def test_the_original_recipe_changes_defaults_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """2018's values, but what is set anywhere stays as it is set."""
    modern, original = parse(), parse("--recipe", "original")
    assert (original.LR, original.OPTIMIZER, original.TRIPLET_WEIGHT) == (0.001, "sgd", 2.0)
    assert (original.PER_CLASS, original.NORMALIZE, original.PALETTE) == (0, False, False)
    assert (modern.OPTIMIZER, modern.NORMALIZE, modern.PALETTE) == ("adamw", True, True)
    changed = {name for name in ORIGINAL if getattr(modern, name) != getattr(original, name)}
    untouched = set(Config.model_fields) - set(ORIGINAL) - {"RECIPE"}
    assert {"POOLING", "METRIC_LOSS", "FREEZE_PARAM"} <= changed
    assert all(getattr(modern, name) == getattr(original, name) for name in untouched)
    Path(".env").write_text("FASHION_RECIPE=original\nFASHION_LR=0.5\n")
    monkeypatch.setenv("FASHION_TRIPLET_WEIGHT", "0.25")
    mixed = parse("--pooling", "gem")
    assert (mixed.LR, mixed.TRIPLET_WEIGHT, mixed.POOLING) == (0.5, 0.25, "gem")
    assert (mixed.OPTIMIZER, mixed.FREEZE_PARAM) == ("sgd", "auto")


def test_lists_are_split_at_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (parse().MODELS, parse().MODEL_WEIGHTS) == ((), ())
    config = parse("--models", "a.pth, b.pth", "--model-weights", "1,0.5")
    assert (config.MODELS, config.MODEL_WEIGHTS) == (("a.pth", "b.pth"), (1.0, 0.5))
    monkeypatch.setenv("FASHION_MODELS", "c.pth")
    assert parse().MODELS == ("c.pth",)


def run(script: str, *argv: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "1000"}  # nothing is wrapped
    command = [sys.executable, str(ROOT / script), *argv]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_help_has_the_settings_that_are_used_with_meaning_and_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # nothing is wrapped

    def entries(uses: tuple[str, ...]) -> dict[str, str]:
        with pytest.raises(SystemExit) as leaving:
            parse_args(["--help"], "a script", uses)
        assert leaving.value.code == 0
        parts = re.split(r"\n  (?=--)", capsys.readouterr().out)[1:]
        return {text.split()[0]: " ".join(text.split()) for text in parts}

    assert set(entries(("EPOCH", "DEVICE"))) == {"--epoch", "--device"}
    assert set(KNOWN) <= set(Config.model_fields)
    found = entries(tuple(Config.model_fields))
    for name in Config.model_fields:
        entry = found["--" + name.lower().replace("_", "-")]
        meaning, default = entry.split("(default: ")
        assert len(meaning.split()) > 3, entry
        assert default.startswith(KNOWN.get(name, "")), entry


SCRIPTS = {
    path.stem: ast.parse(path.read_text())
    for path in ROOT.glob("*.py")
    if path.stem not in ("config", "utils", "net")
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_names_every_setting_that_it_reads(script: str) -> None:
    """Read in its own file, as `config.EPOCH`: it is in the script's USES."""
    module = importlib.import_module(script)
    read = {
        node.attr
        for node in ast.walk(SCRIPTS[script])
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "config"
        and node.attr in Config.model_fields
    }
    assert read <= set(module.USES) <= set(Config.model_fields)


def test_a_flag_of_a_setting_that_is_not_used_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/kmeans.py"])
    with pytest.raises(SystemExit) as leaving:
        parse_args(["--epoch", "3"], "", ("DATASET_BASE",))
    out, error = capsys.readouterr()
    assert (leaving.value.code, out) == (2, "")
    assert error == "kmeans.py: unrecognized arguments: --epoch 3 (see --help)\n"


def test_a_variable_of_a_setting_that_is_not_used_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FASHION_EPOCH", "3")
    Path(".env").write_text("FASHION_SEED=7\n")
    assert parse_args([], "", ("DATASET_BASE",))[0].EPOCH == 3


def test_script_with_a_bad_setting_says_so_without_a_traceback() -> None:
    result = run("data.py", "check", "--categories", "x")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("data.py: CATEGORIES (--categories): 'x' is not allowed")
    assert result.stderr.count("\n") == 1

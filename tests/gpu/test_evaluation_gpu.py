"""The figures of evaluate.py on a GPU are those of a CPU."""

import json
from pathlib import Path

import pytest

import evaluate


def test_figures_are_those_of_a_cpu(measured: Path, cuda, capsys: pytest.CaptureFixture) -> None:
    def figures(device: object) -> dict:
        evaluate.main(["--dataset-base", str(measured), "--json", "--device", str(device)])
        return json.loads(capsys.readouterr().out)

    assert figures(cuda) == figures("cpu")

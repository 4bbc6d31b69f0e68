"""The requirements: bounded on both sides, and neither more nor fewer than what is imported."""

import ast
import re
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

FILES = {path.name: path for path in sorted(ROOT.glob("requirements*.txt"))}
FOLDERS = ("pictures", "network", "features", "search", "evaluation", "training", "server", "tools")
SCRIPTS = [
    *sorted(ROOT.glob("*.py")),
    *(p for f in FOLDERS for p in sorted((ROOT / f).rglob("*.py"))),
]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
# What a folder or a module needs at its start beside requirements.txt.
EXTRAS = {
    "server": "requirements-web.txt",
    "tools/benchmark": "requirements-benchmark.txt",
    "features/watch.py": "requirements-watch.txt",
    "search/milvus": "requirements-milvus.txt",
    "tools/synthetic": "requirements-demo.txt",
}
LINE = re.compile(r"([a-z][a-z0-9-]*)>=(\d+(?:\.\d+)*),<(\d+(?:\.\d+)*)")
COMMANDS = {
    "pytest-xdist",
    "schemathesis",
    "import-linter",
}  # packages that a test runs and does not import
# Packages that are imported by another name than their own.
PACKAGES = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "dotenv": "python-dotenv",
    "pillow_jxl": "pillow-jxl-plugin",
    "faiss": "faiss-cpu",
    "open_clip": "open-clip-torch",
    "sklearn": "scikit-learn",
}


def requirements(path: Path) -> list[str]:
    """The lines of a requirements file that name a package."""
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("-r ")]


def packages(*names: str) -> set[str]:
    """The packages that requirements files name, without those of files they include."""
    return {line.split(">")[0] for name in names for line in requirements(FILES[name])}


def imported(nodes: list[ast.stmt] | ast.AST) -> set[str]:
    """The packages, neither Python's own nor this project's, that some statements import."""
    names = set()
    for node in nodes if isinstance(nodes, list) else ast.walk(nodes):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    tops = {name.split(".")[0] for name in names}
    own = {path.stem for path in ROOT.glob("*.py")} | {*FOLDERS, "tests"}
    return {PACKAGES.get(n, n.replace("_", "-")) for n in tops - sys.stdlib_module_names - own}


def tree(path: Path) -> ast.Module:
    """A parsed script."""
    return ast.parse(path.read_text())


def all_imported() -> set[str]:
    """The packages that any script or test imports, at its start or later."""
    return set().union(*(imported(tree(path)) for path in [*SCRIPTS, *TESTS]))


@pytest.mark.parametrize("name", FILES)
def test_every_requirement_has_a_lower_and_an_upper_bound(name: str) -> None:
    lines = requirements(FILES[name])
    assert lines
    for line in lines:
        match = LINE.fullmatch(line.split(";")[0].strip())
        assert match, f"{name}: {line}: want PACKAGE>=OLDEST,<NEXT_MAJOR"
        lower, upper = (tuple(map(int, text.split("."))) for text in match.groups()[1:])
        assert lower < upper, f"{name}: {line}"


def test_no_package_is_bounded_twice() -> None:
    named = [line.split(">")[0] for path in FILES.values() for line in requirements(path)]
    assert len(named) == len(set(named))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_script_starts_with_its_requirements_alone(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    extras = {file for begin, file in EXTRAS.items() if name.startswith(begin)}
    files = {"requirements.txt", *extras}
    assert imported(tree(path).body) <= packages(*files)


def test_whatever_is_imported_is_required() -> None:
    assert all_imported() <= packages(*FILES)


def test_whatever_is_required_is_imported_or_run_by_make() -> None:
    commands = re.findall(r"(?:-m |bin/)([a-z_-]+)", (ROOT / "Makefile").read_text())
    used = all_imported() | COMMANDS | {name.replace("_", "-") for name in commands}
    assert packages(*FILES) <= used

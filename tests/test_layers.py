"""The layers of the modules at the top: import-linter sees packages only."""

import ast

import pytest

from tests.conftest import ROOT

FOLDERS = ("pictures", "network", "features", "search", "evaluation", "training", "server", "tools")
ALLOWED = {
    "utils": {"config"},
    "config": set(),
    "data": {"utils", "config", "pictures", "network"},
    "net": {"utils", "config", "pictures", "network"},
}
SCRIPTS = {path.stem for path in ROOT.glob("*.py")} - set(ALLOWED)


@pytest.mark.parametrize("module", sorted(path.stem for path in ROOT.glob("*.py")))
def test_a_module_at_the_top_imports_what_stands_below_it(module: str) -> None:
    """Also imports within functions; a script may import every folder, and no other script."""
    allowed = ALLOWED.get(module, {*ALLOWED, *FOLDERS})
    own = {*ALLOWED, *FOLDERS, *SCRIPTS}
    found = set()
    for node in ast.walk(ast.parse((ROOT / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    assert found & own <= allowed
    assert "tests" not in found

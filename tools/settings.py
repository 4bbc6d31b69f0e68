"""Write docs/settings.md, the list of all settings, from config.py.

python -m tools.settings
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from config import ENV_PREFIX, GROUPS, Config, default_text, flag_of
from utils import atomic_write, run_script

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"
HEAD = f"""# Settings

Made by `make settings` from `config.py`; edit the texts there.

Change a default in `config.py`, or override it for one run, the strongest first:

1. a flag of the script: `python train.py --epoch 3`. Each script has the flags of the settings that
   it uses, see `--help`, and refuses the others;
2. an environment variable: `{ENV_PREFIX}EPOCH=3`;
3. a line in the file `.env` of the working folder: `{ENV_PREFIX}EPOCH=3`.

`original:` is the default with `RECIPE=original`. A list is written `A,B`; a switch without a value
(`--flip`) is true.
"""


def settings_page() -> str:
    """The text of docs/settings.md: a table for each group of settings."""
    parts = [HEAD]
    for group in GROUPS:
        rows = [
            f"| `{name}` | `{flag_of(name)}` | {default_text(name)} | {field.description} |"
            for name, field in Config.model_fields.items()
            if field.title == group
        ]
        head = "| setting | flag | default | meaning |\n|---|---|---|---|"
        parts.append("\n".join([f"## {group.capitalize()}", "", head, *rows, ""]))
    return "\n".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    with atomic_write(PAGE) as part:
        part.write_text(settings_page(), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    run_script(main)

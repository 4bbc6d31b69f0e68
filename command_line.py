"""The command line of every script: one flag for each setting, and the script's own arguments."""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NoReturn, get_args, get_origin

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from config import ENV_CODING, ENV_FILE, ENV_OF_TESTS, ENV_PREFIX, GROUPS, ORIGINAL, Config
from utils import one_line


class _Parser(argparse.ArgumentParser):
    """argparse, but an error is one line instead of the usage of some forty settings."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {one_line(message)} (see --help)", file=sys.stderr)
        raise SystemExit(2)


def _metavar(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return "|".join(get_args(field.annotation))
    names = {bool: "true|false", int: "N", float: "X", str: "NAME", Path: "FOLDER"}
    return names.get(field.annotation, "A,B")


def shown_default(name: str) -> str:
    """A setting's default as a user would write it, with that of the original recipe."""
    texts = []
    for default in (Config.model_fields[name].default, ORIGINAL.get(name)):
        text = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        texts.append(text or "none")
    return f"{texts[0]}; original: {texts[1]}" if name in ORIGINAL else texts[0]


def _flag(name: str) -> str:
    return "--" + name.lower().replace("_", "-")


def _group_of(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra["group"]) if isinstance(extra, dict) else ""


def _add_settings(parser: argparse.ArgumentParser, uses: Sequence[str]) -> None:
    """One flag for each setting: the groups the script uses first, the others below them."""
    rest = [group for group in GROUPS if group not in uses]
    for group in [*uses, *rest]:
        title = f"settings: {group}" + ("" if group in uses else " (not used by this script)")
        section = parser.add_argument_group(title)
        for name, field in Config.model_fields.items():
            if _group_of(field) != group:
                continue
            meaning = f"{field.description} (default: {shown_default(name)})".replace("%", "%%")
            section.add_argument(
                _flag(name),
                dest=name,
                default=argparse.SUPPRESS,
                metavar=_metavar(field),
                help=meaning,
            )


def _bare_flags(argv: Sequence[str]) -> list[str]:
    """Give a switch without a value the value true: argparse would take the next argument."""
    switches = {_flag(name) for name, f in Config.model_fields.items() if f.annotation is bool}
    values = {"true", "false", "1", "0", "yes", "no", "on", "off"}
    following = [*argv[1:], ""]
    return [
        f"{word}=true" if word in switches and after.lower() not in values else word
        for word, after in zip(argv, following, strict=False)
    ]


def _spoilt_line() -> str | None:
    """Name the first line of .env that is meant for us and gives no value."""
    if not Path(ENV_FILE).is_file():
        return None
    with open(ENV_FILE, encoding=ENV_CODING) as file:
        for line in parse_stream(file):
            text = line.original.string.strip()
            ours = text.removeprefix("export").strip().upper().startswith(ENV_PREFIX)
            if ours and line.value is None:
                begin = line.original.string.partition(text)[0]
                place = line.original.line + begin.count("\n")
                return f"{ENV_FILE}:{place}: {text.splitlines()[0]!r} is not of the form NAME=VALUE"
    return None


def _unknown_variable() -> str | None:
    """Name the first FASHION_ variable that is no setting, so that no misspelling is ignored."""
    known = {ENV_PREFIX + name for name in Config.model_fields} | {ENV_OF_TESTS}
    for name in [*os.environ, *dotenv_values(ENV_FILE, encoding=ENV_CODING)]:
        if name.upper().startswith(ENV_PREFIX) and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            return f"{name}: no such setting (environment or .env){hint}"
    return None


def _problem(error: ValidationError) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0])
    said = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{name} ({_flag(name)}): {first['input']!r} is not allowed: {said}"


def parse_args(
    argv: Sequence[str] | None,
    description: str,
    uses: Sequence[str],
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
) -> tuple[Config, argparse.Namespace]:
    """Read a script's command line, the environment and .env.

    Parameters
    ----------
    argv : the arguments, without the program; None takes `sys.argv[1:]`
    description : what the script does, for `--help`
    uses : groups of settings (of `GROUPS`) that the script reads, shown first by `--help`
    add_arguments : called with the parser to add what belongs to this script alone

    Returns
    -------
    The settings, and the script's own arguments.

    Raises
    ------
    SystemExit : status 2 after one line on standard error that names the setting, the value and
        what is allowed; status 0 after `--help`
    """
    parser = _Parser(
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if add_arguments:
        add_arguments(parser)
    parser.usage = parser.format_usage().removeprefix("usage: ").strip() + " [--SETTING VALUE ...]"
    _add_settings(parser, uses)
    arguments = parser.parse_args(_bare_flags(sys.argv[1:] if argv is None else argv))
    given = {k: v for k, v in vars(arguments).items() if k in Config.model_fields}
    for name in given:
        delattr(arguments, name)
    try:
        fault = _spoilt_line() or _unknown_variable()
    except UnicodeDecodeError as error:
        parser.error(f"{ENV_FILE}: not UTF-8 text: {error}")
    except OSError as error:
        parser.error(f"{ENV_FILE}: cannot be read: {error.strerror}")
    if fault:
        parser.error(fault)
    try:
        return Config(**given), arguments
    except ValidationError as error:
        parser.error(_problem(error))

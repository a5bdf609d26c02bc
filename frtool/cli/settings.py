"""Defaults from outside: `--config FILE`, FRTOOL_ variables, the user's configuration file, the former before the
latter. Flags beat them all.

[search]                    # options of a command, by their long names; in a `--config` file also without a section
tokens = 8192
option = {c_puct = 1.5}     # or ["c_puct=1.5"]

[aliases]                   # short names for --model
small = "~/models/small.gguf"
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

from frtool.errors import UsageError

FILE_VARIABLE = "FRTOOL_CONFIG"
PREFIX = "FRTOOL_"
# Read elsewhere, or of no use as a default.
RESERVED = {FILE_VARIABLE, "FRTOOL_NO_PROGRESS", "FRTOOL_PHOTOGRAPHS"}
_ALIASES = "aliases"
_MOST_BYTES = 1 << 20


@dataclass(slots=True)
class Settings:
    """Defaults by command and parameter; `origins` names the variable or the file that each comes from."""

    path: Path
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)
    origins: dict[tuple[str, str], str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    """Variables that begin like ours and mean nothing."""


def settings_path() -> Path:
    """The configuration file: FRTOOL_CONFIG, else `config.toml` in the platform's folder for it."""
    named = os.environ.get(FILE_VARIABLE)
    return Path(named).expanduser() if named else Path(typer.get_app_dir("frtool")) / "config.toml"


def read_settings(commands: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the file, where there is one, and the variables. `commands` are Typer's, by name.

    Raises UsageError for a file that is damaged or names what does not exist.
    """
    settings = Settings(settings_path())
    for section, content in _read(settings.path).items():
        _read_section(settings, section, content, commands)
    _variables(settings, commands["search"], environ)
    return settings


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Put the file's values before the other defaults of this command. Raises UsageError."""
    if path is None or context.parent is None:
        return path
    command = str(context.info_name)
    commands = context.parent.command.commands  # type: ignore[attr-defined]
    file = Settings(path)
    try:
        content = _parse(path)
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {error.strerror}") from None
    sections = {name: value for name, value in content.items() if name in (*commands, _ALIASES)}
    loose = {name: value for name, value in content.items() if name not in sections}
    for section, values in [*sections.items(), (command, loose)]:
        _read_section(file, section, values, commands)
    context.default_map = {**(context.default_map or {}), **file.defaults.get(command, {})}
    settings = context.find_root().obj
    if isinstance(settings, Settings):
        settings.defaults.setdefault(command, {}).update(file.defaults.get(command, {}))
        settings.origins |= file.origins
        settings.aliases |= file.aliases
    return path


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.toml",
        help="Options by their long names; flags win.",
        callback=_read_config,
        is_eager=True,
    ),
]


def origin(settings: Settings, error: Any) -> str | None:
    """Where the value that Typer complains of comes from, if not from the command line."""
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    if context is None or parameter is None or context.info_name not in settings.defaults:
        return None
    source = context.get_parameter_source(parameter.name)
    if source is None or source.name != "DEFAULT_MAP":
        return None
    return settings.origins.get((context.info_name, parameter.name))


def expand_alias(context: typer.Context, name: str) -> str:
    """The model behind a short name; any other name stays."""
    settings = context.find_root().obj
    return settings.aliases.get(name, name) if isinstance(settings, Settings) else name


def _read_section(settings: Settings, section: str, content: Any, commands: Mapping[str, Any]) -> None:
    if not isinstance(content, dict):
        raise _wrong(settings.path, f"`{section}` stands outside of a section", "begin with [search] or [aliases]")
    if section == _ALIASES:
        settings.aliases = _aliases(settings.path, content)
    else:
        _defaults(settings, section, content, commands)


def _read(path: Path) -> dict[str, Any]:
    """What the user's own file says, nothing where there is none."""
    try:
        return _parse(path)
    except FileNotFoundError:
        if os.environ.get(FILE_VARIABLE):
            raise UsageError(f"{FILE_VARIABLE} names {path}, which does not exist") from None
        return {}
    except OSError as error:
        if isinstance(error, NotADirectoryError):
            return {}
        raise UsageError(f"the configuration {path} cannot be read: {error.strerror}") from None


def _parse(path: Path) -> dict[str, Any]:
    """The content of a TOML file. Raises OSError, and UsageError for what is none."""
    import tomllib

    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise _wrong(path, f"it is longer than {_MOST_BYTES:,} bytes")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise _wrong(path, "it is not UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _wrong(path, str(error)[:200]) from None


def _defaults(settings: Settings, section: str, content: dict[str, Any], commands: Mapping[str, Any]) -> None:
    if section not in commands or section == "bench":
        raise _wrong(settings.path, f"there is no section [{section}]", _like(section, [*commands, _ALIASES]))
    options = _options(commands[section])
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in options:
            raise _wrong(settings.path, f"[{section}] has no option `{key}`", _like(name, options))
        _set(settings, section, options[name], _text(settings.path, section, key, value), str(settings.path))


def _variables(settings: Settings, search: Any, environ: Mapping[str, str]) -> None:
    options = _options(search)
    for variable in sorted(environ):
        name = variable.removeprefix(PREFIX).lower()
        if not variable.startswith(PREFIX) or variable in RESERVED or not environ[variable]:
            continue
        if name in options:
            _set(settings, "search", options[name], environ[variable], variable)
        else:
            settings.unknown.append(variable)


def _set(settings: Settings, command: str, option: Any, value: str | list[str], source: str) -> None:
    if option.multiple and isinstance(value, str):
        value = value.split()
    settings.defaults.setdefault(command, {})[option.name] = value
    settings.origins[command, option.name] = source


def _options(command: Any) -> dict[str, Any]:
    """The options of a command by the names of their long flags."""
    return {
        flag.removeprefix("--").replace("-", "_"): parameter
        for parameter in command.params
        if parameter.param_type_name == "option" and not parameter.is_eager
        for flag in parameter.opts
        if flag.startswith("--")
    }


def _text(path: Path, section: str, key: str, value: Any) -> str | list[str]:
    """The value as it would stand on a command line, so that the same checks apply."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    if isinstance(value, dict) and key == "option":
        return [f"{name}={_text(path, section, name, item)}" for name, item in _flat(value).items()]
    raise _wrong(path, f"[{section}] `{key}` is a {type(value).__name__}", "give a number, a text or true or false")


def _flat(table: dict[str, Any]) -> dict[str, Any]:
    """The values of a table by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        inner = _flat(value) if isinstance(value, dict) else {"": value}
        flat |= {f"{name}.{below}" if below else name: item for below, item in inner.items()}
    return flat


def _aliases(path: Path, content: dict[str, Any]) -> dict[str, str]:
    for name, model in content.items():
        if not isinstance(model, str) or not model:
            raise _wrong(path, f"the alias `{name}` is no text", 'write it as `name = "directory, file or id"`')
        if name == "embedded":
            raise _wrong(path, "`embedded` is the name of the embedded model", "choose another alias")
    return content


def _wrong(path: Path, what: str, hint: str | None = None) -> UsageError:
    return UsageError(f"the configuration {path}: {what}", hint=hint)


def _like(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    close = get_close_matches(name, known, 1)
    return f"did you mean `{close[0]}`?" if close else "known are " + ", ".join(known)

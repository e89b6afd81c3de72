"""Settings from a TOML file: read, checked once against a `Section`, and every fault told in one error."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from common.errors import ConfigError
from common.sections import Section

S = TypeVar("S", bound=Section)


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of the TOML file at `path`; ConfigError where it is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}. Mend that line.") from error
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text. Name a TOML file.") from error


def validate(kind: type[S], tree: Mapping[str, Any], source: str) -> S:
    """Return `tree` as a `kind`; a ConfigError tells every fault by key, rule and remedy."""
    try:
        return kind.model_validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        faults = [_explain(kind, dict(fault)) for fault in error.errors()]
        raise ConfigError("\n".join(f"{source}: {fault}" for fault in faults)) from None


def _explain(kind: type[Section], fault: dict[str, Any]) -> str:
    """Return one of pydantic's faults as `key: rule, remedy`."""
    path = [str(part) for part in fault["loc"]]
    key = ".".join(path) or "configuration"
    if fault["type"] == "extra_forbidden":
        known = _known_keys(kind, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = f"known here: {', '.join(known)}." if known else "leave it out."
        return f"{key} is not a known key; {f'did you mean {near[0]}?' if near else hint}"
    rule = fault["msg"].removeprefix("Value error, ").replace("Input should", "must")
    given = fault.get("input")
    shown = (
        f" (it is {json.dumps(given, default=str)})" if isinstance(given, str | int | float | bool) else ""
    )
    return f"{key} {rule}{shown}."


def _known_keys(kind: type[Section], path: list[str]) -> list[str]:
    """Return the keys that the table at `path` below `kind` takes."""
    section: type[Section] = kind
    for part in path:
        field = next((f for f in section.model_fields.values() if f.alias == part), None)
        below = field.annotation if field else None
        if not (isinstance(below, type) and issubclass(below, Section)):
            return []
        section = below
    return [field.alias or name for name, field in section.model_fields.items()]

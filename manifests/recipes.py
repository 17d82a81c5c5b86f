"""Recipes as TOML files: presets and resolved recipes of curation and of training, read into frozen dataclasses.

TOML has no null: "none" stands for None where an option allows it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
import types
import typing
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from manifests.storage import Place, place, read_bytes

AnyRecipe = TypeVar("AnyRecipe")


def load_recipe(cls: type[AnyRecipe], presets: Path, name_or_path: str, version: int) -> AnyRecipe:
    """The preset of that name in the folder `presets`, or the recipe in that TOML file.

    Raises:
        ValueError: neither exists, the TOML is broken or of another version, or it has a key that no option has or a
            value that its option does not take.
    """
    path: Place = presets / f"{name_or_path}.toml"
    if "://" in name_or_path or not path.is_file():
        path = place(name_or_path)
    if not path.is_file():
        names = ", ".join(preset_names(presets))
        raise ValueError(f"no recipe {name_or_path!r}: expected one of {names}, or the path of a TOML file")
    try:
        values = tomllib.loads(read_bytes(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    found = values.pop("recipe_version", version)
    values.pop("hash", None)
    if found != version:
        raise ValueError(
            f"{path} is for recipe version {found}, this program has version {version}: use the checkout that"
            " wrote it, or another output folder"
        )
    return from_values(cls, values, str(path))


def preset_names(presets: Path) -> list[str]:
    """Names of the presets in a folder."""
    return sorted(path.stem for path in presets.glob("*.toml"))


def named_on(arguments: list[str], option: str) -> str | None:
    """What follows an option on a command line: which recipe, before it is known what other options there are.

    Of an option that is given twice the last counts, as for the parser.
    """
    found = None
    for argument, following in pairwise([*arguments, None]):
        if argument == option:
            found = following
        elif argument.startswith(f"{option}="):
            found = argument.split("=", 1)[1]
    return found


def from_values(cls: type[AnyRecipe], values: Any, where: str) -> AnyRecipe:
    """A dataclass from nested dictionaries. ValueError names the key that is unknown or has a wrong value."""
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if not isinstance(values, dict):
        raise ValueError(f"{where} is {values!r}, expected a section with keys of {', '.join(known)}")
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; valid keys are {', '.join(known)}")
    hints = typing.get_type_hints(cls)
    arguments = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            arguments[name] = from_values(hints[name], value, f"{where}: [{name}]")  # type: ignore[arg-type]
        else:
            arguments[name] = _checked(value, hints[name], f"{where}: {name}")
    try:
        return cls(**arguments)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _checked(value: Any, hint: Any, where: str) -> Any:
    """`value` when it fits the annotation."""
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value in ("none", None) and type(None) in options:
            return None
        return _checked(value, next(o for o in options if o is not type(None)), where)
    if origin is Literal:
        fits = value in options
    elif origin is tuple:
        fits, value = isinstance(value, (list, tuple)), tuple(value) if isinstance(value, list) else value
    elif hint is float:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        value = float(value) if fits else value
    else:
        fits = isinstance(value, origin or hint) and (hint is bool or not isinstance(value, bool))
    if not fits:
        expected = f"one of {', '.join(map(str, options))}" if origin is Literal else getattr(hint, "__name__", hint)
        raise ValueError(f"{where} is {value!r}, expected {expected}")
    return value


def to_toml(recipe: Any, version: int, recipe_hash: str) -> str:
    """A resolved recipe as TOML: its version and hash, its own fields, then a section for each dataclass in it."""
    lines = [f"recipe_version = {version}", f'hash = "{recipe_hash}"']
    sections: list[str] = []
    for item in dataclasses.fields(recipe):
        value = getattr(recipe, item.name)
        if dataclasses.is_dataclass(value):
            sections.append(f"\n[{item.name}]")
            sections += [f"{f.name} = {_toml_value(getattr(value, f.name))}" for f in dataclasses.fields(value)]
        else:
            lines.append(f"{item.name} = {_toml_value(value)}")
    return "\n".join(lines + sections) + "\n"


def _toml_value(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml_value(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


def require_positive(options: Any, *names: str) -> None:
    """ValueError unless the named fields are more than 0."""
    for name in names:
        if getattr(options, name) <= 0:
            raise ValueError(f"{name} is {getattr(options, name)}, expected more than 0")


def require_not_negative(options: Any, *names: str) -> None:
    """ValueError unless the named fields are None, or 0 or more."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 0:
            raise ValueError(f"{name} is {value}, expected 0 or more")


def require_between(low: float, high: float, options: Any, *names: str) -> None:
    """ValueError unless the named fields are None, or from `low` to `high`."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise ValueError(f"{name} is {value}, expected {low:g} to {high:g}")


def require_no_negative(options: Any) -> None:
    """ValueError where any number among the fields (None is none) is less than 0."""
    values = {item.name: getattr(options, item.name) for item in dataclasses.fields(options)}
    require_not_negative(options, *(name for name, value in values.items() if isinstance(value, (int, float))))


def require_finite(options: Any, section: str = "") -> None:
    """ValueError where a number of a recipe, in any of its sections, is infinite or not a number."""
    for item in dataclasses.fields(options):
        name, value = f"{section}{item.name}", getattr(options, item.name)
        if dataclasses.is_dataclass(value):
            require_finite(value, f"{name}.")
            continue
        for number in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{name} is {number}, expected a finite number{_or_none(type(options), item.name)}")


def _or_none(cls: type, name: str) -> str:
    """What to write in place of an infinite limit, where an option can be switched off."""
    is_optional = type(None) in typing.get_args(typing.get_type_hints(cls)[name])
    return ' or "none", which sets no limit' if is_optional else ""

"""Creates a step from its configuration. Checks every value, and names the key of every mistake."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_pipeline.cleaning.step import Bounds, PackageNotInstalled, SettingError, Step
from data_pipeline.config_text import written
from data_pipeline.errors import DataError

EXTRA = "pretrain[clean]"


def build_step(given: object, known: Mapping[str, type[Step]], where: str) -> Step:
    """The step for a mapping such as {step: length, max_chars: 9}.

    A mistake raises a DataError, in which `where` names the step.
    """
    if not isinstance(given, Mapping):
        raise DataError(f"{where}={written(given)}: must be a mapping such as {{step: pii, phone: mask}}")
    if "step" not in given:
        raise DataError(f"{where}: the key `step` is missing", f"set it to one of {_listed(known)}")
    name = given["step"]
    if not isinstance(name, str) or name not in known:
        raise DataError(f"{where}.step={written(name)}: is not a step", _nearest(name, known))
    kind = known[name]
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    settings = {key: value for key, value in given.items() if key != "step"}
    for key, value in settings.items():
        if key not in fields:
            raise DataError(f"{where}.{key}={written(value)}: is not a setting of step {name}", _nearest(key, fields))
    for key, field in fields.items():
        if key not in settings and field.default is field.default_factory is dataclasses.MISSING:
            raise DataError(f"{where}.{key}: step {name} needs a value for it")
    try:
        return kind(**{key: _checked(value, hints[key], key) for key, value in settings.items()})
    except SettingError as error:
        raise DataError(f"{where}.{error.field}={written(error.value)}: {error.rule}") from None
    except PackageNotInstalled as error:
        package = error.args[0]
        raise DataError(
            f"{where}: step {name} needs the {package} package, which is not installed", f"pip install '{EXTRA}'"
        ) from None


def _listed(names: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, names)))


def _nearest(name: object, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"choose from {_listed(names)}" if names else "it has no settings"


def _checked(value: object, hint: Any, key: str) -> Any:
    """The value converted to the annotated type. Raises SettingError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _checked(value, arguments[0], key)
    if origin is typing.Annotated:
        number = _checked(value, arguments[0], key)
        if not _within(number, arguments[1]):
            raise SettingError(key, value, f"must be at least {_limits(arguments[1])}")
        return number
    if origin is typing.Literal:
        # YAML reads an unquoted `off` as false.
        value = "off" if value is False and "off" in arguments else value
        if value not in arguments:
            raise SettingError(key, value, "must be " + ", ".join(map(str, arguments[:-1])) + f" or {arguments[-1]}")
        return value
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise SettingError(key, value, "must be a list such as [a, b]")
        return tuple(_checked(item, arguments[0], f"{key}[{number}]") for number, item in enumerate(value))
    if origin is Mapping:
        return _checked_table(value, arguments[1], key)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        quoted = " (YAML reads a bare no, yes, on, off as a truth value: quote it)" if value in (True, False) else ""
        raise SettingError(key, value, f"must be {_WORDS[hint]}{quoted if hint is str else ''}")
    return value


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _checked_table(value: object, hint: Any, key: str) -> dict[int, Any]:
    """Keys may be strings, because JSON has no other keys."""
    if not isinstance(value, Mapping):
        raise SettingError(key, value, "must be a mapping such as {5: 0.15}")
    for n in value:
        if not (type(n) is int or (isinstance(n, str) and n.isdecimal())):
            raise SettingError(f"{key}.{n}", value[n], "the key must be a whole number")
    return {int(n): _checked(item, hint, f"{key}.{n}") for n, item in value.items()}


def _within(number: float, bounds: Bounds) -> bool:
    return number >= bounds.low and (bounds.high is None or number <= bounds.high)


def _limits(bounds: Bounds) -> str:
    return f"{bounds.low:g}" if bounds.high is None else f"{bounds.low:g} and at most {bounds.high:g}"

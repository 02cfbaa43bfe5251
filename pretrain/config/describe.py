"""The keys of the configuration and their meaning, read from the records: what `explain`, `--describe` and help print.

A field's meaning is the text below it in the source, its type the annotation, its choices the values of a Literal.
"""

import ast
import dataclasses
import functools
import inspect
import keyword
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from pretrain.config.config_dirs import ConfigDirs

CONF_DIR = Path(__file__).resolve().parents[2] / "conf"
SHIPPED = ConfigDirs(CONF_DIR)


@dataclass(frozen=True)
class Key:
    """One key, or a section of keys."""

    name: str
    """Dotted, as on the command line."""
    hint: Any
    """Its type annotation. For a section, its dataclass."""
    meaning: str
    has_default: bool = False
    """Whether the dataclass of its section has a default for it."""

    @property
    def is_section(self) -> bool:
        return dataclasses.is_dataclass(self.hint)

    @property
    def takes(self) -> str:
        """The kinds of values that it allows, in words."""
        return noun(self.hint)


@dataclass(frozen=True)
class Option:
    """One file of a group in conf/."""

    name: str
    meaning: str
    """The comment at its top."""


@functools.cache
def keys_of(record: type, prefix: str = "") -> Sequence[Key]:
    """All keys of a record, each section before its own."""
    return tuple(_keys_of(record, prefix))


def _keys_of(record: type, prefix: str) -> Iterator[Key]:
    meanings, hints = field_texts(record), typing.get_type_hints(record)
    for field in dataclasses.fields(record):
        name, hint = prefix + yaml_key(field.name), hints[field.name]
        has_default = any(given is not dataclasses.MISSING for given in (field.default, field.default_factory))
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield Key(name, hint, meanings.get(field.name) or plain_docstring(hint), has_default)
            yield from keys_of(hint, f"{name}.")
        else:
            yield Key(name, hint, meanings.get(field.name, ""), has_default)


def record_keys(record: type) -> Iterator[str]:
    """Dotted keys of a record, those of its sections themselves included."""
    return (key.name for key in keys_of(record))


def record_types(record: type) -> Iterator[type]:
    """The record and those of its sections."""
    yield record
    for key in keys_of(record):
        if key.is_section:
            yield key.hint


@functools.cache
def field_texts(record: type) -> Mapping[str, str]:
    """The text below each field of a dataclass, on one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(record))).body
    assert isinstance(tree, ast.ClassDef)
    texts: dict[str, str] = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            match below:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    texts[field.target.id] = " ".join(text.split())
    return texts


def plain_docstring(record: type) -> str:
    return " ".join((record.__doc__ or "").split())


def record_key(key: str) -> str:
    """The field of a key: a word that Python reserves, such as `async`, has a line at its end there."""
    return f"{key}_" if keyword.iskeyword(key) else key


def yaml_key(field: str) -> str:
    return field[:-1] if keyword.iskeyword(field[:-1]) and field.endswith("_") else field


def without_null(hint: Any) -> tuple[Any, bool]:
    """The hint, and whether null is another value of it."""
    if not is_union(hint):
        return hint, False
    others = [part for part in typing.get_args(hint) if part is not type(None)]
    return functools.reduce(lambda one, other: one | other, others), len(others) < len(typing.get_args(hint))


def is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (types.UnionType, typing.Union)


def takes_text(hint: Any) -> bool:
    """Whether this type accepts arbitrary strings."""
    hint, _ = without_null(hint)
    return hint is str or (is_union(hint) and str in typing.get_args(hint))


def holds_text(record: type, key: str) -> bool:
    """Whether this key accepts arbitrary strings, or is a list or mapping whose values are arbitrary strings."""
    hints = {known.name: known.hint for known in keys_of(record)}
    hint, _ = without_null(hints.get(key, hints.get(key.rpartition(".")[0], Any)))
    if typing.get_origin(hint) in (tuple, dict):
        hint = [part for part in typing.get_args(hint) if part is not ...][-1]
    return takes_text(hint)


def choices(hint: Any) -> tuple[Any, ...]:
    """The values that a Literal allows; none for other kinds."""
    hint, _ = without_null(hint)
    return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()


def words_of(hint: Any) -> tuple[str, ...]:
    """The words that a value of this type may be: those of a Literal, also within a union."""
    hint, _ = without_null(hint)
    parts = typing.get_args(hint) if is_union(hint) else (hint,)
    return tuple(str(word) for part in parts for word in choices(part))


def is_number(hint: Any) -> bool:
    """Whether a value of this type may be a number."""
    hint, _ = without_null(hint)
    return any(part in (int, float) for part in (typing.get_args(hint) if is_union(hint) else (hint,)))


def noun(hint: Any) -> str:
    """The kinds of values that this type allows, as in `must be ...`."""
    hint, nullable = without_null(hint)
    words = _noun(hint)
    return f"{words}, or null" if nullable else words


_SIMPLE = {str: "text", int: "an integer", float: "a number", bool: "true or false", Any: "any value"}
_EXAMPLES = {str: "[a,b]", int: "[1,2]", float: "[0.5,1]"}


def _noun(hint: Any) -> str:
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin is Literal:
        return either([str(value) for value in arguments])
    if is_union(hint):
        return " or ".join(_noun(part) for part in arguments)
    if origin is tuple:
        return f"a list such as {_EXAMPLES.get(arguments[0]) or _list_example(arguments[0])}"
    if origin is dict:
        return f"a mapping such as {{name: {'1' if arguments[1] is float else 'value'}}}"
    if dataclasses.is_dataclass(hint):
        names = [yaml_key(field.name) for field in dataclasses.fields(hint)]
        return f"a mapping with the keys {', '.join(names)}"
    return _SIMPLE[hint]


def _list_example(item: Any) -> str:
    if typing.get_origin(item) is Literal:
        return f"[{','.join(map(str, typing.get_args(item)))}]"
    if dataclasses.is_dataclass(item):
        return f"[{{{', '.join(f'{yaml_key(field.name)}: ...' for field in dataclasses.fields(item))}}}]"
    return "[{name: value}]"


def either(words: Sequence[str]) -> str:
    """`1, 2 or 4`."""
    return ", ".join(words[:-1]) + f" or {words[-1]}" if len(words) > 1 else words[0]


def groups_of(root: str, conf_dir: Path = CONF_DIR) -> dict[str, str | None]:
    """The groups that a file of conf/ names, such as `model`, each with its option by default."""
    entries = yaml.safe_load((conf_dir / f"{root}.yaml").read_text(encoding="utf-8"))["defaults"]
    return {group: option for entry in entries if isinstance(entry, dict) for group, option in entry.items()}


def options_of(group: str, dirs: ConfigDirs = SHIPPED) -> list[Option]:
    """The options of a group, by name."""
    return [Option(path.stem, _comment_at_top(path)) for path in dirs.files(group)]


def _comment_at_top(path: Path) -> str:
    """The comment at the top of a file, without lines that show a command or instruct Hydra."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#") or line.startswith("#  "):
            break
        if "@package" not in line:
            lines.append(line.lstrip("# "))
    return " ".join(lines)

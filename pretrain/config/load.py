"""YAML values joined to the frozen records: Hydra composes, pydantic checks, everything wrong is told at once.

Hydra, OmegaConf and pydantic are known to this file only.
"""

import dataclasses
import difflib
import itertools
import json
import keyword
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, TypeAdapter, ValidationError

from pretrain.config.errors import ConfigError, Problem
from pretrain.config.public import without_secrets
from pretrain.config.run import AUTO, GenerateConfig, RunConfig

Record = TypeVar("Record")

CONF_DIR = Path(__file__).resolve().parents[2] / "conf"


def load_run_config(overrides: Sequence[str], conf_dir: Path = CONF_DIR) -> RunConfig:
    """The configuration of `prepare` and `train` from conf/pretrain.yaml and Hydra overrides.

    Raises ConfigError, with every fault, for unknown keys, wrong types and missing values.
    """
    _refuse_torn(overrides)
    return _to_record(_compose("pretrain", overrides, conf_dir, RunConfig), RunConfig)


def load_generate_config(overrides: Sequence[str], conf_dir: Path = CONF_DIR) -> GenerateConfig:
    """The configuration of `generate`; `prompt=` and `checkpoint=` are taken as they stand, without Hydra's grammar."""
    # A prompt is text, often code: brackets, commas and quotes in it must not be parsed. `checkpoint` is also a group
    # of conf/, for `train`, and Hydra would look for a file in it.
    plain: dict[str, Any] = {}
    others: list[str] = []
    _refuse_torn(overrides)
    for override in overrides:
        key, separator, value = override.partition("=")
        if separator and key in ("prompt", "checkpoint"):
            plain[key] = value
        else:
            others.append(override)
    record = _to_record(_compose("generate", others, conf_dir, GenerateConfig), GenerateConfig)
    return dataclasses.replace(record, **plain)


def read_run_config(path: Path) -> RunConfig:
    """The resolved configuration that a run wrote into its folder."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError([f"{path}: no such file; is {path.parent} the folder of a run?"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError([f"{path}: not readable as YAML: {' '.join(str(error).split())}"]) from None
    return _to_record(values, RunConfig, where=f"{path}: ")


def run_config_of(values: object, where: str) -> RunConfig:
    """The configuration that a record of a run holds; `where` it stands is told with what is wrong in it."""
    return _to_record(values, RunConfig, where=f"{where}: ")


def with_overrides(config: RunConfig, overrides: Sequence[str], may_change: tuple[str, ...]) -> RunConfig:
    """The configuration of a run with a few keys set anew, which begin as in `may_change`.

    Raises ConfigError, with every fault, for others and for wrong values.
    """
    mistakes: list[Problem | str] = [*_unreadable(overrides)]
    if mistakes:
        raise ConfigError(mistakes)
    values = dataclasses.asdict(config)
    known = set(record_keys(RunConfig))
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element()
        if key not in known or not key.startswith(may_change):
            settable = ", ".join(name + "*" if name.endswith(".") else name for name in may_change)
            mistakes.append(f"{override.input_line}: here only {settable} can be set; all else is the run's")
            continue
        *sections, name = key.split(".")
        place = values
        for section in sections:
            place = place[section]
        place[name] = override.value()
    if mistakes:
        raise ConfigError(mistakes)
    return _to_record(values, RunConfig)


def sweep_members(overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """The overrides of every combination of what is swept, as in key=a,b or key=range(1,4); the last varies fastest.

    Raises ConfigError where nothing is swept, a key more than once, or without end.
    """
    mistakes: list[Problem | str] = [*_unreadable(overrides)]
    options: list[list[str]] = []
    swept, keys = [], []
    for override in [] if mistakes else OverridesParser.create().parse_overrides(list(overrides)):
        key, given = override.get_key_element(), [str(override.input_line)]
        keys.append(key)
        if override.is_sweep_override():
            swept.append(key)
            try:
                given = [f"{key}={value}" for value in override.sweep_string_iterator()]
            except HydraException:
                mistakes.append(f"{override.input_line}: cannot be counted out; give values, as in {key}=A,B")
        options.append(given)
    mistakes += [f"{key}: is given more than once" for key in dict.fromkeys(swept) if keys.count(key) > 1]
    if not mistakes and not swept:
        mistakes.append("nothing is swept: give values with commas, as in optim.lr=1e-4,3e-4, or leave out -m")
    if mistakes:
        raise ConfigError(mistakes)
    return list(itertools.product(*options))


def to_yaml(config: RunConfig | GenerateConfig) -> str:
    """The configuration as YAML that `read_run_config` takes back, unchanged but for secrets, which are left out."""
    values = without_secrets(json.loads(json.dumps(dataclasses.asdict(config))))
    if isinstance(config, RunConfig) and config.train.micro_batch_size == AUTO:
        values["train"]["micro_batch_size"] = "auto"
    return yaml.safe_dump(_renamed(values, _yaml_key), sort_keys=False, allow_unicode=True)


def _record_key(key: str) -> str:
    """A word that Python reserves, such as `async`, has a line at its end in the record."""
    return f"{key}_" if keyword.iskeyword(key) else key


def _yaml_key(key: str) -> str:
    return key[:-1] if keyword.iskeyword(key[:-1]) and key.endswith("_") else key


def _renamed(values: Any, rule: Callable[[str], str]) -> Any:
    if isinstance(values, Mapping):
        return {rule(str(key)): _renamed(value, rule) for key, value in values.items()}
    return values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping from dotted keys to leaves."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _compose(root: str, overrides: Sequence[str], conf_dir: Path, record: type) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir), version_base=None):
            tree = compose(root, overrides=list(overrides))
            values = OmegaConf.to_container(tree, resolve=True, throw_on_missing=False)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: null for a group
        mistakes: list[Problem | str] = [*_unreadable(overrides), *_unknown_keys(overrides, conf_dir, record)]
        raise ConfigError(mistakes or [_hydra_message(error)]) from None
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _refuse_torn(overrides: Sequence[str]) -> None:
    """A file's name may be of any bytes, the text of a configuration not."""
    if torn := [override for override in overrides if not is_text(override)]:
        raise ConfigError([f"{override!a}: is not UTF-8 text" for override in torn])


def _hydra_message(error: Exception) -> str:
    """Hydra's own words without its search path and pointers to its manual."""
    text = str(error).split("\nConfig search path")[0].split("\nSee https")[0]
    return re.sub(r"\s*\n\s*", " ", text).strip()


def _unreadable(overrides: Sequence[str]) -> Iterator[str]:
    """Overrides that Hydra's grammar refuses: its own messages don't say which, and letters beyond English surprise."""
    parser = OverridesParser.create()
    for override in overrides:
        try:
            parser.parse_override(override)
        except HydraException:
            example = """'data.inputs=["Bücher (1).txt"]'"""
            yield f"{override}: not readable as key=value; quote text with special characters twice, as in {example}"


def _unknown_keys(overrides: Sequence[str], conf_dir: Path, record: type) -> Iterator[Problem]:
    known = set(record_keys(record))
    groups = {path.name for path in conf_dir.iterdir() if path.is_dir()}
    for override in overrides:
        name, separator, value = override.partition("=")
        key = name.lstrip("+~").split("@")[0]
        if key in groups and value == "null":
            options = sorted(path.stem for path in (conf_dir / key).glob("*.yaml"))
            yield Problem(key, None, "a group takes the name of one of its files", "choose " + ", ".join(options))
        elif separator and key not in known and key not in groups:
            near = difflib.get_close_matches(key, known | groups, n=1, cutoff=0.5)
            yield Problem(key, value, "there is no such key", f"did you mean {near[0]}?" if near else _SHOW)


_SHOW = "`pretrain show-config` lists all keys"


def _sections(record: type) -> Iterator[tuple[str, type | None]]:
    """The fields of a record, each with its own record where it is a section."""
    hints = typing.get_type_hints(record)
    for field in dataclasses.fields(record):
        hint = hints[field.name]
        yield field.name, hint if dataclasses.is_dataclass(hint) else None  # type: ignore[misc]


def record_keys(record: type, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a record, those of its sections themselves included."""
    for name, section in _sections(record):
        yield prefix + _yaml_key(name)
        if section is not None:
            yield from record_keys(section, f"{prefix}{name}.")


def _record_types(record: type) -> Iterator[type]:
    yield record
    for _, section in _sections(record):
        if section is not None:
            yield from _record_types(section)


def _to_record(values: object, record: type[Record], where: str = "") -> Record:
    for section in _record_types(record):
        section.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    adapter = TypeAdapter(record)
    if not isinstance(values, Mapping):
        raise ConfigError([f"{where}holds no keys with values"])
    if unusable := list(_unusable(values, where)):
        raise ConfigError(unusable)
    if record is RunConfig:
        values = _with_numbers_for_auto(values)
    try:
        # default=str: dates, which YAML knows and JSON does not.
        return _validated(adapter, json.loads(json.dumps(_renamed(values, _record_key), default=str)))
    except ValidationError as error:
        known = list(record_keys(record))
        raise ConfigError([_problem(fault, known, where) for fault in error.errors()]) from None


def _unusable(values: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """Values that are not there, or that no JSON text can hold."""
    for key, value in flatten(values).items():
        if value == "???":
            yield Problem(where + key, value, "a value must be given", f"add {key}=...")
        elif not is_text(json.dumps(value, ensure_ascii=False, default=str)):
            yield Problem(where + key, value, "is not UTF-8 text")


def is_text(text: str) -> bool:
    """Whether it has a form in UTF-8: a byte of the command line that is none arrives as half of a surrogate pair."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _validated(adapter: TypeAdapter[Record], values: Any) -> Record:
    """By strict JSON: "8" is no integer and 0.5 no step count, while 9e9 is one, and a list may become a tuple.

    Writes integers for such numbers into `values`.
    """
    try:
        return adapter.validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        written = [fault for fault in error.errors() if fault["type"] == "int_type" and _is_whole(fault["input"])]
        if not written:
            raise
    for fault in written:
        *sections, name = fault["loc"]
        place = values
        for section in sections:
            place = place[section]
        place[name] = int(fault["input"])
    return _validated(adapter, values)


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()


def _with_numbers_for_auto(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A number is calculated with everywhere: its word is known here only."""
    train = values.get("train")
    if isinstance(train, Mapping) and train.get("micro_batch_size") == "auto":
        return {**values, "train": {**train, "micro_batch_size": AUTO}}
    return values


def _problem(fault: Any, known: Sequence[str], where: str) -> Problem:
    key = ".".join(_yaml_key(str(part)) for part in fault["loc"])
    if fault["type"] == "unexpected_keyword_argument":
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        return Problem(
            where + key, fault["input"], "there is no such key", f"did you mean {near[0]}?" if near else _SHOW
        )
    if fault["type"] == "missing":
        return Problem(where + key, "missing", "a value must be given")
    rule = str(fault["msg"]).removeprefix("Input should be ").replace("a valid array", "a list such as [a,b]")
    return Problem(where + key, fault["input"], f"must be {rule}")

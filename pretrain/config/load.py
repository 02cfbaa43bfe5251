"""Loading of configurations: Hydra composes the files and overrides, and records.py checks the values."""

import dataclasses
import functools
import itertools
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from data_pipeline.config_text import written
from data_pipeline.storage.urls import redact_url
from pretrain.config.commands import EvaluateConfig, ExportConfig, GenerateConfig, ImportConfig
from pretrain.config.config_dirs import OPTION, ConfigDirs
from pretrain.config.describe import CONF_DIR, record_keys, yaml_key
from pretrain.config.errors import MISSING, ConfigError, Problem
from pretrain.config.overrides import Known, for_hydra, known_of, parse, typed_values
from pretrain.config.records import flatten, is_text, one_for_each_key, to_record, with_renamed_keys
from pretrain.config.redact import without_secrets
from pretrain.config.refusals import refusal
from pretrain.config.run import RunConfig
from pretrain.config.search_path import PACKAGE_LINE, check_folders, split_overrides
from pretrain.config.unused import without_effect

Record = TypeVar("Record")

log = logging.getLogger(__name__)


def load_run_config(overrides: Sequence[str], conf_dir: Path = CONF_DIR) -> RunConfig:
    """The configuration of `prepare` and `train` from conf/pretrain.yaml and Hydra overrides.

    Logs overrides that have no effect.

    Raises ConfigError, with every fault, for unknown keys, wrong types and missing values.
    """
    _refuse_torn(overrides)
    dirs, words = _dirs_of(overrides, conf_dir)
    config = _loaded("pretrain", RunConfig, words, dirs)
    for key, reason in without_effect(config, typed := typed_values(words)):
        log.warning("%s=%s has no effect: %s", key, written(typed[key]), reason)
    return config


def load_generate_config(overrides: Sequence[str], conf_dir: Path = CONF_DIR) -> GenerateConfig:
    """The configuration of `generate`; see `load_command_config`."""
    return load_command_config("generate", GenerateConfig, overrides, conf_dir)


def load_export_config(overrides: Sequence[str], conf_dir: Path = CONF_DIR) -> ExportConfig:
    """The configuration of `export`; see `load_command_config`."""
    return load_command_config("export", ExportConfig, overrides, conf_dir)


def load_import_config(overrides: Sequence[str], conf_dir: Path = CONF_DIR) -> ImportConfig:
    """The configuration of `import`; see `load_command_config`."""
    return load_command_config("import", ImportConfig, overrides, conf_dir)


def load_evaluate_config(overrides: Sequence[str], conf_dir: Path = CONF_DIR) -> EvaluateConfig:
    """The configuration of `evaluate`; see `load_command_config`."""
    return load_command_config("evaluate", EvaluateConfig, overrides, conf_dir)


def load_command_config(
    command: str, kind: type[Record], overrides: Sequence[str], conf_dir: Path = CONF_DIR
) -> Record:
    """The configuration of a command; `prompt=` and `checkpoint=` are taken literally, without Hydra's grammar."""
    # A prompt is text, often code: brackets, commas and quotes in it must not be parsed. `checkpoint` is also a group
    # of conf/, for `train`, and Hydra would look for a file in it.
    plain: dict[str, Any] = {}
    others: list[str] = []
    literal = {"prompt", "checkpoint"} & {field.name for field in dataclasses.fields(cast(Any, kind))}
    _refuse_torn(overrides)
    dirs, words = _dirs_of(overrides, conf_dir)
    for override in words:
        key, separator, value = override.partition("=")
        if separator and key in literal:
            plain[key] = value
        else:
            others.append(override)
    record: Any = _loaded(command, kind, others, dirs)
    changed: Record = dataclasses.replace(record, **plain)
    return changed


def read_run_config(path: Path) -> RunConfig:
    """The resolved configuration that a run wrote into its folder."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            [Problem(str(path), MISSING, "no such file", f"is {path.parent} the folder of a run?")]
        ) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError([f"{path}: not valid YAML: {' '.join(str(error).split())}"]) from None
    return to_record(values, RunConfig, where=f"{path}: ")


def run_config_of(values: object, where: str) -> RunConfig:
    """The configuration that a record of a run holds; `where` is its place, for messages."""
    return to_record(values, RunConfig, where=f"{where}: ")


def with_overrides(config: RunConfig, overrides: Sequence[str], may_change: tuple[str, ...]) -> RunConfig:
    """The configuration of a run with a few keys changed. `may_change`: beginnings of their names.

    Raises ConfigError, with every fault, for other keys and for wrong values.
    """
    mistakes: list[Problem | str] = []
    values = dataclasses.asdict(config)
    known = set(record_keys(RunConfig))
    for override in parse(overrides):
        key = override.get_key_element()
        if key not in known or not key.startswith(may_change):
            settable = ", ".join(name + "*" if name.endswith(".") else name for name in may_change)
            word = redact_url(str(override.input_line))
            mistakes.append(f"{word}: here only {settable} can be set; all else is the run's")
            continue
        *sections, name = key.split(".")
        place = values
        for section in sections:
            place = place[section]
        place[name] = override.value()
    if mistakes:
        raise ConfigError(mistakes)
    return to_record(values, RunConfig, typed=typed_values(overrides))


def sweep_members(overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """The overrides of every combination of what is swept, as in key=a,b or key=range(1,4); the last varies fastest.

    Raises ConfigError where nothing is swept, a key more than once, or without end.
    """
    mistakes: list[Problem | str] = []
    options: list[list[str]] = []
    swept, keys = [], []
    for override in parse(overrides):
        key, given = override.get_key_element(), [str(override.input_line)]
        keys.append(key)
        if override.is_sweep_override():
            swept.append(key)
            try:
                given = [f"{key}={value}" for value in override.sweep_string_iterator()]
            except _HYDRA_REFUSES:
                mistakes.append(f"{redact_url(given[0])}: cannot be counted out (hint: give values, as in {key}=A,B)")
        options.append(given)
    mistakes += [f"{key}: is given more than once" for key in dict.fromkeys(swept) if keys.count(key) > 1]
    if not mistakes and not swept:
        mistakes.append("nothing is swept: give values with commas, as in optim.lr=1e-4,3e-4, or leave out -m")
    if mistakes:
        raise ConfigError(mistakes)
    return list(itertools.product(*options))


def default_values(root: str, conf_dir: Path = CONF_DIR) -> dict[str, Any]:
    """The values of conf/ROOT.yaml without overrides, with interpolations such as ${model.name} unresolved."""
    values: dict[str, Any] = _composed(root, [], ConfigDirs(conf_dir), resolve=False)
    return values


def to_yaml(config: RunConfig | GenerateConfig | ExportConfig) -> str:
    """The configuration as YAML, which `read_run_config` reads back. Only secrets are left out."""
    values = without_secrets(json.loads(json.dumps(dataclasses.asdict(config))))
    return yaml.safe_dump(with_renamed_keys(values, yaml_key), sort_keys=False, allow_unicode=True)


def _dirs_of(overrides: Sequence[str], conf_dir: Path) -> tuple[ConfigDirs, list[str]]:
    """The folders to compose from, and the overrides without those that name folders."""
    own, words = split_overrides(overrides)
    dirs = ConfigDirs(conf_dir, own)
    check_folders(dirs)
    return dirs, words


def _loaded(root: str, record: type[Record], overrides: Sequence[str], dirs: ConfigDirs) -> Record:
    """The record that conf/ROOT.yaml and the overrides give; raises ConfigError with every fault of both."""
    known = known_of(record, root, dirs)
    defaults = functools.partial(default_values, root, dirs.shipped)
    words, problems = for_hydra(overrides, known, lambda key: flatten(defaults()).get(key) is None)
    try:
        loaded = to_record(_compose(root, words, known), record, typed=typed_values(words))
    except ConfigError as error:
        found = [_with_package_hint(problem, known) for problem in error.problems]
        raise ConfigError(one_for_each_key([*problems, *found])) from None
    if problems:
        raise ConfigError(problems)
    return loaded


def _compose(root: str, words: Sequence[str], known: Known) -> dict[str, Any]:
    try:
        values = _composed(root, words, known.dirs)
    except yaml.YAMLError as error:
        raise ConfigError([f"a file of {OPTION} is not valid YAML: {' '.join(str(error).split())}"]) from None
    except _HYDRA_REFUSES as error:
        raise ConfigError([_refused(root, words, error, known)]) from None
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


_HYDRA_REFUSES = (HydraException, OmegaConfBaseException, ValueError)


def _composed(root: str, words: Sequence[str], dirs: ConfigDirs, *, resolve: bool = True) -> Any:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(dirs.shipped), version_base=None):
        composed = compose(root, overrides=[*dirs.hydra_words(), *words])
        return OmegaConf.to_container(composed, resolve=resolve, throw_on_missing=False)


def _refused(root: str, words: Sequence[str], error: Exception, known: Known) -> Problem | str:
    """A readable message for an interpolation or a value that Hydra refuses."""
    typed = typed_values(words)
    key = getattr(error, "full_key", None)
    if isinstance(error, InterpolationResolutionError) and key:
        remedy = "refer to a key by its dotted name, as in ${run.name}"
        return Problem(key, typed.get(key, MISSING), f"cannot be resolved: {_hydra_message(error)}", remedy)
    for word in words:
        try:
            _composed(root, [word], known.dirs)
        except _HYDRA_REFUSES:
            key = next(iter(typed_values([word])), word)
            if key in known.keys:
                return refusal(known.keys[key].hint, key, typed[key])
            return f"{redact_url(word)}: {_hydra_message(error)}"
    return _hydra_message(error)


def _with_package_hint(problem: Problem | str, known: Known) -> Problem | str:
    """A file of the user's own group sets keys below the group's name, unless its first line says otherwise."""
    section = problem.key.partition(".")[0] if isinstance(problem, Problem) else ""
    if section and section not in known.keys and section in {name.partition("/")[0] for name in known.all_groups}:
        rule = f"there is no such section; your file in {section}/ must begin with the line `{PACKAGE_LINE}`"
        return Problem(section, MISSING, rule)
    return problem


def _refuse_torn(overrides: Sequence[str]) -> None:
    """A file name may contain any bytes, but a configuration must be text."""
    if torn := [override for override in overrides if not is_text(override)]:
        raise ConfigError([f"{redact_url(override)!a}: is not UTF-8 text" for override in torn])


def _hydra_message(error: Exception) -> str:
    """Hydra's own message, but without passwords, class names, links to its manual, and its search path."""
    text = str(error).split("\nConfig search path")[0].split("\nSee https")[0].split("\n    full_key")[0]
    text = re.sub(r"^\w+ raised while resolving interpolation: ", "", text)
    return redact_url(re.sub(r"\s*\n\s*", " ", text).strip().strip('"'))

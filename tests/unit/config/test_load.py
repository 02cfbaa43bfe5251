"""Every option composes, and every mistake in an override names its key."""

import dataclasses
import functools
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.cli import main
from pretrain.config.checks import check_prepare, check_run
from pretrain.config.cluster import ClusterConfig
from pretrain.config.describe import groups_of
from pretrain.config.errors import ConfigError
from pretrain.config.load import CONF_DIR, load_generate_config, load_run_config, read_run_config, to_yaml
from pretrain.config.run import ProfileConfig, RunConfig

OPTIONS = sorted(
    (path.parent.name, path.stem) for path in CONF_DIR.glob("*/*.yaml") if path.parent.name in groups_of("pretrain")
)


@functools.cache
def with_option(group: str, option: str) -> RunConfig:
    return load_run_config([f"{group}={option}"])


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_is_legal(group: str, option: str) -> None:
    config = with_option(group, option)
    check_prepare(config)
    if group != "parallel":  # those are for larger worlds and models: tests/unit/commands/test_presets.py
        check_run(config, world_size=1)


@pytest.mark.parametrize(
    ("group", "option"), [(group, option) for group, option in OPTIONS if group not in ("experiment", "generate")]
)
def test_every_option_is_taken(group: str, option: str) -> None:
    # An option that only repeats defaults would be a name without a meaning: it must hold what its file says.
    values = yaml.safe_load((CONF_DIR / group / f"{option}.yaml").read_text())
    values.pop("defaults", None)
    section = yaml.safe_load(to_yaml(with_option(group, option)))[group]
    for key, value in values.items():
        if isinstance(value, dict):  # a part of a section
            assert section[key] | value == section[key], key
        elif not (isinstance(value, str) and "${" in value):
            assert section[key] == _number(value), key


def _number(value: object) -> object:
    """YAML 1.1 takes 3e-4 for text; Hydra does not."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"\d+e-?\d+", value) else value


def test_show_config_prints_what_a_run_would_read_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    overrides = ["model=tiny_llama", "optim.lr=1e-3", "data.inputs=[a.txt,b.jsonl]", 'run.name="täst (1)"']
    with pytest.raises(SystemExit) as exit_:
        main(["show-config", *overrides])
    assert exit_.value.code == 0
    path = tmp_path / "config.yaml"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    assert read_run_config(path) == load_run_config(overrides)


def test_an_integer_may_have_a_point_or_an_exponent() -> None:
    later = "data.mixture_later=[{after_tokens: 9e9, weights: {web: 1}}]"
    config = load_run_config([later, "train.max_steps=null", "train.max_tokens=1e10", "profile.steps=[10.0,12]"])
    (phase,) = config.data.mixture_later
    assert config.profile.steps is not None
    numbers = (phase.after_tokens, config.train.max_tokens, *config.profile.steps)
    assert numbers == (9 * 10**9, 10**10, 10, 12) and all(type(number) is int for number in numbers)


# In text that is left readable PyYAML reads one control character, "next line", back as a space.
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x85"), max_size=10)


@settings(max_examples=10, deadline=None)
@given(
    lr=st.floats(1e-12, 10),
    seed=st.integers(-(2**53), 2**53),
    name=TEXT,
    inputs=st.lists(TEXT),
    groups=st.none() | st.integers(1, 8),
)
def test_yaml_round_trip_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, lr: float, seed: int, name: str, inputs: list[str], groups: int | None
) -> None:
    config = load_run_config([])
    config = dataclasses.replace(
        config,
        optim=dataclasses.replace(config.optim, lr=lr),
        run=dataclasses.replace(config.run, seed=seed, name=name),
        data=dataclasses.replace(config.data, inputs=tuple(inputs)),
        model=dataclasses.replace(config.model, num_query_groups=groups),
    )
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert read_run_config(path) == config


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_config(["optim.lr=fast", "engine.zero_stage=7", "+model.hiden_size=3", "train.max_steps=1.5"])
    keys = ["model.hiden_size", "engine.zero_stage", "train.max_steps", "optim.lr"]
    assert sorted(problem.key for problem in caught.value.problems) == sorted(keys)
    assert all(f"\n  {key}=" in str(caught.value) for key in keys)


def test_all_unknown_keys_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_config(["optim.lrr=1", "model.layers=2"])
    assert [problem.key for problem in caught.value.problems] == ["optim.lrr", "model.layers"]


def test_missing_values_are_reported_with_a_hint() -> None:
    with pytest.raises(ConfigError, match=r"^run=\?\?\?: a value must be given\n  hint: add run=\.\.\.$"):
        load_generate_config([])


@pytest.mark.parametrize(
    "content",
    [
        "optim: {lr: fast}",
        "[1, 2]",
        "just text",
        "a: [",
        "\x00",
        "",
        "model: {}\nextra: 1",
        "run: {name: 2020-01-01}",
        "[" * 5000,
    ],
)
def test_a_broken_config_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_run_config(path)
    assert str(path) in str(caught.value)


def test_a_config_file_that_cannot_be_there_or_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/config.yaml: no such file\n  hint: is .*file the folder of a run\?$"):
        read_run_config(tmp_path / "file" / "config.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory$"):
        read_run_config(tmp_path)


def test_a_missing_config_file_asks_for_the_folder_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file\n  hint: is .* the folder of a run"):
        read_run_config(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    "prompt", ["def main(", "a=b,c", "[1, 2", "'quoted\"", "${x}", "", "  two\nlines ", "x: {y}", "ünï", "???"]
)
def test_a_prompt_is_taken_literally(prompt: str) -> None:
    config = load_generate_config(["run=runs/x", f"prompt={prompt}", "temperature=0.5"])
    assert (config.prompt, config.run, config.temperature) == (prompt, "runs/x", 0.5)


def test_a_value_that_is_not_utf8_is_refused_by_its_key(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text('data: {inputs: ["a\\udcff"]}')
    with pytest.raises(ConfigError, match=r'config.yaml: data\.inputs=\["a\\udcff"\]: is not UTF-8 text$'):
        read_run_config(path)


def test_a_checkpoint_is_taken_by_its_name() -> None:
    assert load_generate_config(["run=x", "checkpoint=step-00000500"]).checkpoint == "step-00000500"


@pytest.mark.parametrize("load", [load_run_config, load_generate_config])
def test_bytes_that_are_not_utf8_are_refused(load: Callable[[list[str]], object]) -> None:
    torn = os.fsdecode(b"prompt=\xff")
    with pytest.raises(ConfigError) as caught:
        load([torn, "run=x"])
    assert str(caught.value) == "'prompt=\\udcff': is not UTF-8 text"


def test_optional_sections_default_to_their_files_in_conf() -> None:
    """`cluster` and `profile` may be left out. Then their records have the defaults of the files in conf/."""
    config = load_run_config([])
    assert config.cluster == ClusterConfig() and config.profile == ProfileConfig()

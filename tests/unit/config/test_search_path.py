"""`--config-dir`: files of the user's own are composed like the shipped ones, wherever overrides are used."""

import shlex
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from launch.ssh import hosts
from pretrain.commands.arguments import absolute_config_dirs
from pretrain.commands.next_steps import after_prepare
from pretrain.commands.table import parse
from pretrain.config.config_dirs import CONFIG_DIRS_KEY, as_override
from pretrain.config.load import load_generate_config, load_run_config
from pretrain.config.search_path import as_arguments, split_overrides
from pretrain.run.sweep import as_shown, words_of_members

FILES = {
    "model/mine.yaml": "# My small model.\ndefaults: [tiny]\nname: mine\nnum_layers: 3\n",
    "cluster/site.yaml": "defaults: [default]\npartition: fast\n",
    "experiment/first.yaml": "# @package _global_\ndefaults:\n  - override /model: mine\n  - override /cluster: site\n",
    "recipes/small.yaml": "# @package _global_\ntrain:\n  max_steps: 7\n",
    "recipes/bare.yaml": "max_steps: 7\n",
    "recipes/typo.yaml": "# @package _global_\ntrain:\n  max_step: 7\n",
    "recipes/torn.yaml": "train: {max_steps: [1\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "my conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "my conf"


def overrides(folder: Path, *given: str) -> list[str]:
    return list(parse("train", ["--config-dir", str(folder), *given]).overrides)


def test_own_model_cluster_and_experiment_are_found(folder: Path) -> None:
    config = load_run_config(overrides(folder, "experiment=first"))
    assert (config.model.name, config.model.num_layers, config.cluster.partition) == ("mine", 3, "fast")
    assert load_run_config(overrides(folder, "model=mine")).model == config.model
    assert load_run_config(overrides(folder)) == load_run_config([])


def test_own_groups_are_appended_with_a_plus_sign(folder: Path) -> None:
    assert load_run_config(overrides(folder, "+recipes=small")).train.max_steps == 7
    assert load_run_config(overrides(folder, "+recipes@train=bare")).train.max_steps == 7
    assert load_generate_config([*overrides(folder), "run=x"]) == load_generate_config(["run=x"])


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        ("model=min", ("model=min", "did you mean mine?")),
        ("recipes=small", ("recipes=small", "one +", "+recipes=small")),
        ("++recipes=small", ("recipes=small", "one +", "+recipes=small")),
        ("~recipes", ("recipes", "+recipes=")),
        ("+recipes=smal", ("recipes=smal", "did you mean small?")),
        ("+recipe=small", ("recipe=small", "did you mean recipes?")),
        ("+recipes=small,bare", ("recipes=small,bare", "sweep")),
        ("+recipes=bare", ("recipes", "# @package _global_")),
        ("+recipes=typo", ("train.max_step=7", "did you mean train.max_steps?")),
        ("+recipes=torn", ("recipes/torn.yaml", "not valid YAML")),
    ],
)
def test_a_mistake_in_own_files_names_the_remedy(folder: Path, given: str, facts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as raised:
        load_run_config(overrides(folder, given))
    assert all(fact in str(raised.value) for fact in facts)


@pytest.mark.parametrize("given", ["model=mine", "+recipes=small"])
def test_without_the_folder_the_option_is_suggested(given: str) -> None:
    with pytest.raises(UserError, match="--config-dir DIR"):
        load_run_config([given])


def test_folders_without_groups_and_names_taken_are_refused(folder: Path) -> None:
    for wrong, fact in ((folder / "none", "no such folder"), (folder / "model", "has no folder of a group")):
        with pytest.raises(UserError, match=fact):
            load_run_config(overrides(wrong))
    (folder / "model/tiny.yaml").write_text("num_layers: 3\n")
    with pytest.raises(UserError, match="model=tiny is"):
        load_run_config(overrides(folder))
    with pytest.raises(UserError, match="must be a folder on a disk"):
        load_run_config([f"{CONFIG_DIRS_KEY}=[pkg://somewhere]"])


@pytest.mark.parametrize("name", ["my conf", 'a,"b" \\c', "ends\\", "[x]=é'$"])
def test_a_config_dir_may_have_any_name(tmp_path: Path, name: str) -> None:
    word = as_override([tmp_path / name, tmp_path])
    assert split_overrides([word, "a=b"]) == ((tmp_path / name, tmp_path), ["a=b"])


def test_folders_are_absolute_in_overrides(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    expected = ["model=mine", as_override([folder])]
    assert overrides(Path("my conf"), "model=mine") == expected
    assert parse("submit", ["model=mine", f'{CONFIG_DIRS_KEY}=["my conf"]']).overrides == expected


def test_hosts_get_the_folder(folder: Path) -> None:
    given = hosts._parser().parse_args(["--hostfile", "h", "--config-dir", str(folder), "--", "model=mine"])
    absolute_config_dirs(given)
    assert given.overrides == ["model=mine", as_override([folder])]


def test_people_see_the_option_not_the_override(folder: Path) -> None:
    given = overrides(folder, "model=mine")
    assert as_arguments(given) == ["--config-dir", str(folder), "model=mine"]
    assert as_shown(given) == f"--config-dir {folder} model=mine"
    config = load_run_config([*given, "data.path=none"])
    assert f"pretrain train --config-dir {shlex.quote(str(folder))} model=mine" in after_prepare(config.data, given)


def test_members_of_a_sweep_get_the_folder(folder: Path) -> None:
    members = words_of_members("s", overrides(folder, "model=mine,tiny", "+recipes=small"))
    models = [load_run_config(each).model.name for each in members.values()]
    assert models == ["mine", "tiny"] and load_run_config(members[0]).train.max_steps == 7

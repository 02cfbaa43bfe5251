"""Old names of keys, values and files are refused with their new names."""

from pathlib import Path

import pytest
import yaml

from pretrain.config.describe import CONF_DIR, record_keys
from pretrain.config.errors import ConfigError
from pretrain.config.load import load_run_config, read_run_config, to_yaml
from pretrain.config.renamed import RENAMED
from pretrain.config.run import RunConfig

KEYS = {old: new for old, new in RENAMED.items() if "=" not in old}


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_name_is_refused_with_the_new_one(old: str, new: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_config([old if "=" in old else f"{old}=1"])
    assert old in str(caught.value) and new in str(caught.value)


@pytest.mark.parametrize(("old", "new"), KEYS.items())
def test_a_file_with_an_old_key_is_refused_with_the_new_one(old: str, new: str, tmp_path: Path) -> None:
    values = yaml.safe_load(to_yaml(load_run_config([])))
    *sections, name = old.split(".")
    place = values
    for section in sections:
        place = place[section]
    place[name] = place.pop(new.rpartition(".")[2])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError) as caught:
        read_run_config(path)
    assert str(path) in str(caught.value) and old in str(caught.value) and new in str(caught.value)


def test_new_names_exist_and_old_names_do_not() -> None:
    keys = set(record_keys(RunConfig))
    files = {f"{path.parent.name}={path.stem}" for path in CONF_DIR.glob("*/*.yaml")}
    assert not keys & set(RENAMED) and not files & set(RENAMED)
    assert set(KEYS.values()) <= keys

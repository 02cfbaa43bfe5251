"""Descriptions of keys: every key has one, and what `explain`, `--describe` and help print is the records' own."""

import pytest

from pretrain.cli import main
from pretrain.commands.explain import book_of_keys
from pretrain.commands.table import COMMANDS
from pretrain.config.commands import COMMAND_RECORDS
from pretrain.config.describe import CONF_DIR, choices, groups_of, keys_of, options_of
from pretrain.config.load import load_run_config, read_run_config
from pretrain.config.run import RunConfig

BOOK = book_of_keys()


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


@pytest.mark.parametrize("record", [RunConfig, *COMMAND_RECORDS.values()])
def test_every_key_has_a_meaning_and_a_type(record) -> None:
    assert all(key.meaning and (key.is_section or key.takes) for key in keys_of(record))


def test_explain_shows_type_default_and_choices_of_every_key(capsys) -> None:
    text = said(capsys, "explain", *BOOK.keys)
    for name, key in BOOK.keys.items():
        assert f"{name}\n" in text
        if not key.is_section:
            (about,) = [part for part in text.split("\n\n") if part.startswith(f"{name}\n")][:1]
            assert f"type:    {key.takes}" in about and f"default: {BOOK.default(name)}" in about
            assert not choices(key.hint) or f"choices: {', '.join(map(str, choices(key.hint)))}" in about


def test_a_key_is_explained_by_its_field_note(capsys) -> None:
    assert said(capsys, "explain", "optim.lr") == (
        "optim.lr\n    Peak learning rate.\n    type:    a number\n    default: 0.0003   (optim=adamw)\n"
    )
    assert "default: must be given" in said(capsys, "explain", "generate.run")
    assert "cluster.environment.NAME=value" in said(capsys, "explain", "cluster.environment.ANY")


def test_explain_lists_sections_and_the_keys_and_files_of_one(capsys) -> None:
    lines = said(capsys, "explain").splitlines()
    sections = {key.name for key in BOOK.keys.values() if key.is_section and "." not in key.name}
    assert {line.split()[0] for line in lines if line} >= sections | set(BOOK.groups) | COMMAND_RECORDS.keys()
    text = said(capsys, "explain", "model")
    assert all(f"      {option.name} " in text for option in options_of("model"))
    own = [key for key in BOOK.keys.values() if key.name.startswith("model.") and key.name.count(".") == 1]
    assert all(f"\n{key.name}{':' if key.is_section else chr(10)}" in text for key in own)


@pytest.mark.parametrize(
    ("wrong", "meant"), [("optim.lrr", "optim.lr"), ("top_k", "generate.top_k"), ("modle", "model"), ("lr", "optim.lr")]
)
def test_a_wrong_key_is_answered_by_the_nearest(capsys, wrong: str, meant: str) -> None:
    assert said(capsys, "explain", wrong, code=2) == (
        f"pretrain: error: {wrong}: unknown key\n  hint: did you mean {meant}?\n"
    )


def test_a_described_configuration_reads_back_the_same(capsys, tmp_path) -> None:
    overrides = ["model=tiny_llama", "optim.lr=1e-3", "cluster=gpu_8x80gb", "data.mixture={a: 1}"]
    text = said(capsys, "show-config", "--describe", *overrides)
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert read_run_config(path) == load_run_config(overrides)
    assert "  # Peak learning rate.\n  # a number; default: 0.0003   (optim=adamw)\n  lr: 0.001\n" in text
    assert text.count("; default: ") == sum(not key.is_section for key in keys_of(RunConfig))


@pytest.mark.parametrize("command", COMMAND_RECORDS)
def test_the_help_of_a_command_lists_its_keys(command, capsys) -> None:
    text = said(capsys, command, "--help")
    names = [key.name for key in keys_of(COMMAND_RECORDS[command]) if "." not in key.name]
    assert all(f"\n  {name}" in text for name in names) and "(default: " in text


def test_the_default_option_of_every_config_group_exists() -> None:
    for root in ("pretrain", *COMMAND_RECORDS):
        for group, option in groups_of(root).items():
            assert option is None or option in [found.name for found in options_of(group)]


def test_without_arguments_every_command_has_a_line(capsys) -> None:
    lines = said(capsys, code=2).splitlines()
    for name, summary in COMMANDS.items():
        assert any(line.split() == [name, *summary.split()] for line in lines), name


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["trian"], "trian: unknown command\n  hint: did you mean train?"),
        (["data", "verfy"], "verfy: unknown command\n  hint: did you mean verify?"),
        (["xyz"], "xyz: unknown command\n  hint: choose from prepare, data, train"),
        (["train", "--optim.lr=3"], "--optim.lr=3: a key has no dashes before it\n  hint: write optim.lr=3"),
        (["train", "--gpus"], "unrecognized arguments: --gpus\n  hint: `pretrain train --help` lists the options"),
    ],
)
def test_a_wrong_command_is_answered_by_what_was_meant(capsys, words: list[str], hint: str) -> None:
    assert hint in said(capsys, *words, code=2)


def test_every_file_of_conf_begins_with_what_it_is() -> None:
    paths = sorted(CONF_DIR.rglob("*.yaml"))
    assert len(paths) > 50
    assert [path.name for path in paths if not path.read_text(encoding="utf-8").startswith("#")] == []

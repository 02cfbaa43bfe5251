"""`generate` checks its settings before any work."""

from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.checkpoint.trained_model import without_training
from pretrain.config.engine import OffloadConfig
from pretrain.config.errors import ConfigError
from pretrain.config.load import load_generate_config, load_run_config
from pretrain.generation.generate import check, lost_beginning, place_for, read_prompts


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("temperature=nan", "temperature=nan: is not a finite number\n  hint: the largest is about 1.8e308"),
        ("temperature=inf", "temperature=inf: is not a finite number\n  hint: the largest is about 1.8e308"),
        ("temperature=-1", "temperature=-1.0: must be 0 or a finite number above it"),
        (f"seed={2**63}", f"seed={2**63}: must be from {-(2**62)} to {2**62}"),
        ("prompt=a\udcffb", "'prompt=a\\udcffb': is not UTF-8 text"),
        ("batch_size=0", "batch_size=0: must be at least 1"),
        ("logprobs=2", "logprobs=2: needs format=json"),
        ("stop=['']", "stop=['']: an empty text would end every continuation"),
        ("parallel.tp=0", "parallel.tp=0: must be greater than 0"),
        ("parallel.pp=-1", "parallel.pp=-1: must be greater than 0"),
    ],
)
def test_a_setting_out_of_range_is_named_by_its_key(override: str, words: str) -> None:
    check(load_generate_config(["run=x"]))
    with pytest.raises(ConfigError) as caught:
        check(load_generate_config(["run=x", override]))
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": 3}\n', 'a.jsonl:2: must be an object with a text, as in {"prompt"'),
        ("a.jsonl", '{"prompt": "x"}\n\n{\n', "a.jsonl:3: is not valid JSON"),
        ("a.jsonl", '{"prompt": "\\ud800"}\n', "a.jsonl:1: has half of a surrogate pair"),
        ("a.txt", "", "has no prompt"),
        ("a.txt", b"\xff", "is not UTF-8 text"),
    ],
)
def test_a_wrong_file_of_prompts_is_named_with_its_line(name, content, words, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        read_prompts(path)
    assert words in str(caught.value)


def test_prompts_are_lines_or_records(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo words\n")
    (tmp_path / "a.jsonl").write_text('{"prompt": "one\\nline", "more": 1}\n\n{"prompt": ""}\n')
    assert read_prompts(tmp_path / "a.txt") == ["one", "two words"]
    assert read_prompts(tmp_path / "a.jsonl") == ["one\nline", ""]


QUOTES = "''"


def test_the_output_file_is_checked_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    assert place_for(None) is None
    assert place_for(str(tmp_path / "new" / "text")) == tmp_path / "new" / "text" and (tmp_path / "new").is_dir()
    assert place_for(str(tmp_path / "link")) == tmp_path / "file"
    for wrong in (str(tmp_path), "", "/dev/null", str(tmp_path / "file" / "text"), "/proc/no/text"):
        with pytest.raises(ConfigError, match=f"^output={wrong or QUOTES}: .*\n  hint: give the path of a file$"):
            place_for(wrong)


def test_generation_turns_offloading_off() -> None:
    nowhere = OffloadConfig(optimizer="nvme", params="nvme", nvme_path="/a/disk/of/the/cluster")
    trained = load_run_config(["engine.zero_stage=3"])
    trained = replace(trained, engine=replace(trained.engine, offload=nowhere))
    config = load_generate_config(["run=x"])
    used = without_training(trained, config.parallel, config.device, world_size=1)
    assert (used.engine.offload.optimizer, used.engine.offload.params) == ("none", "none")


@pytest.mark.parametrize(
    ("prompt", "new", "words"),
    [
        (
            65,
            1,
            "the prompt has 65 tokens and the model sees 64 tokens at once (model.seq_length): its first 1 are not",
        ),
        (
            2000,
            1,
            "the prompt has 2,000 tokens and the model sees 64 tokens at once (model.seq_length): its first 1,936",
        ),
        (
            64,
            2,
            "the model sees 64 tokens at once (model.seq_length): after 0 new tokens it sees only the last 32",
        ),
        (
            60,
            6,
            "the model sees 64 tokens at once (model.seq_length): after 4 new tokens it sees only the last 32",
        ),
    ],
)
def test_the_lost_beginning_of_a_long_prompt_is_counted(prompt: int, new: int, words: str) -> None:
    assert lost_beginning(prompt, new, 64).startswith(words)


@pytest.mark.parametrize(("prompt", "new"), [(1, 1), (64, 1), (60, 5)])
def test_of_a_prompt_that_fits_nothing_is_said(prompt: int, new: int) -> None:
    assert lost_beginning(prompt, new, 64) == ""

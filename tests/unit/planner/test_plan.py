"""The output of `pretrain plan` and `pretrain train --check`, which do not import torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.cli import main

SMALL = ("model=tiny", "model.num_layers=8", "train.global_batch_size=32", "train.micro_batch_size=1")


class Said:
    """How the command ended, and what it wrote."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        self.code = exit_.value.code
        self.out, self.err = capsys.readouterr()


def row(text: str, first: str) -> list[str]:
    """The words of the only line that begins with `first`."""
    (line,) = [line for line in text.splitlines() if line.split()[:1] == [first]]
    return line.split()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return tmp_path


def test_a_plan_shows_layout_derived_numbers_and_stages(capsys) -> None:
    said = Said(capsys, "plan", *SMALL, "--ranks", "16", "engine=zero3_bf16", "parallel.tp=2", "parallel.pp=4")
    assert said.code == 0 and not said.err
    assert said.out.startswith("tiny on 16 ranks: tp 2, pp 4, vp 1, data-parallel size 2, ZeRO-3 bf16\n")
    assert "a step: 32 samples = 1 micro x 16 accumulated x 2 data-parallel" in said.out
    assert "pipeline bubble: 15.8% of a step" in said.out
    assert "engine.param_gather: per_micro_batch (auto, device memory unknown: give --gpu-memory)" in said.out
    assert "vocabulary of 8,192 (tokenizer.vocab_size; data/files is not prepared)" in said.out
    first_table = said.out.split("\n\n")[1].splitlines()
    assert [line.split()[:4] for line in first_table[1:]] == [
        ["0", "2", "0-1", "embedding"],
        ["1", "2", "2-3", "-"],
        ["2", "2", "4-5", "-"],
        ["3", "2", "6-7", "head"],
    ]
    heads = [line.split() for line in said.out.splitlines() if line.split()[:1] == ["stage"]]
    assert "activations" in heads[1] and {"forward", "backward", "peak"} <= set(heads[2])


def test_a_plan_reports_whether_it_fits_and_chooses_param_gather_to_fit(capsys) -> None:
    large = ("plan", "model=gpt3_13b", "engine=zero3_bf16", "train.global_batch_size=64", "--ranks", "64")
    roomy = Said(capsys, *large, "train.micro_batch_size=1", "--gpu-memory", "192")
    assert "engine.param_gather: per_step (auto)\n" in roomy.out and "\nfits: " in roomy.out
    tight = Said(capsys, *large, "--gpu-memory", "16", "train.micro_batch_size=1")
    assert "engine.param_gather: per_micro_batch (auto)\n" in tight.out
    assert row(tight.out, "does")[:2] == ["does", "not"] and tight.code == 0
    assert float(row(tight.out, "does")[3]) < float(row(roomy.out, "fits:")[1])


def test_a_small_model_is_shown_in_smaller_units(capsys) -> None:
    small, large = Said(capsys, "plan", *SMALL), Said(capsys, "plan", "model=gpt3_6.7b")
    assert "\nMiB on each rank" in small.out and "\nGiB on each rank" in large.out


def test_interleaved_stages_name_all_their_layers(capsys) -> None:
    said = Said(capsys, "plan", *SMALL, "--ranks=2", "parallel.pp=2", "parallel.vp=2")
    assert "0-1, 4-5" in said.out and "2-3, 6-7" in said.out


def test_the_middle_of_a_long_pipeline_is_left_out(capsys) -> None:
    said = Said(capsys, "plan", "model=mt_nlg_530b", "parallel=mt_nlg_530b", "--ranks", "280")
    numbers = [line.split()[0] for line in said.out.splitlines() if "-" in line and line.split()[1:2] == ["3"]]
    assert numbers == [str(number) for number in (*range(8), *range(27, 35))]


@pytest.mark.parametrize("command", [("plan",), ("train", "--check")])
def test_an_illegal_layout_is_refused_with_all_faults_and_hints(command, capsys) -> None:
    said = Said(capsys, *command, *SMALL, "--ranks", "8", "parallel.tp=3", "optim.lr=-1")
    assert said.code == 2 and not said.out
    for words in (
        "optim.lr=-1.0: must be greater than 0",
        "parallel.tp=3: must divide model.num_heads=4",
        "tp * pp = 3 must divide the number of ranks, which is 8",
        "nearest legal layouts on 8 ranks:\n      parallel.tp=4 parallel.pp=1 parallel.vp=1   (data-parallel size 2)\n",
    ):
        assert words in said.err


def test_check_starts_nothing(elsewhere: Path, capsys) -> None:
    said = Said(capsys, "train", "--check", *SMALL, "parallel.pp=2", "--ranks", "4")
    assert said.code == 0
    assert said.out == "legal: tiny on 4 ranks: tp 1, pp 2, vp 1, data-parallel size 2, ZeRO-1 fp32\n"
    assert not list(elsewhere.iterdir())


def test_the_number_of_ranks_defaults_to_world_size(monkeypatch, capsys) -> None:
    assert "on 1 rank:" in Said(capsys, "train", "--check", *SMALL).out
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert "on 4 ranks:" in Said(capsys, "train", "--check", *SMALL).out
    assert "on 2 ranks:" in Said(capsys, "train", "--check", "--ranks", "2", *SMALL).out
    monkeypatch.setenv("WORLD_SIZE", "many")
    said = Said(capsys, "plan", *SMALL)
    assert said.code == 2 and "WORLD_SIZE=many" in said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plan", "--ranks", "0"), "'0' is not a number above 0"),
        (("plan", "--gpu-memory", "lots"), "'lots' is not a number above 0"),
        (("plan", "--gpu-memory", "nan"), "'nan' is not a number above 0"),
        (("plan", "--rank-count", "2"), "unrecognized arguments: --rank-count"),
        (("show-config", "--ranks", "2"), "unrecognized arguments: --ranks"),
        (("train", "--ranks", "2"), "--ranks only works with --check"),
    ],
)
def test_a_wrong_option_is_refused(arguments, words, capsys) -> None:
    said = Said(capsys, *arguments)
    assert said.code == 2 and words in said.err


def test_options_and_overrides_mix_in_any_order(capsys) -> None:
    orders = [
        ("--ranks", "4", *SMALL, "parallel.tp=2"),
        (*SMALL, "--ranks", "4", "parallel.tp=2"),
        (*SMALL, "parallel.tp=2", "--ranks", "4"),
    ]
    said = [Said(capsys, "plan", *order) for order in orders]
    assert {one.code for one in said} == {0} and len({one.out for one in said}) == 1


def test_planning_needs_no_torch() -> None:
    # A login node may have none, or take a minute to load it.
    code = (
        "import sys; sys.modules['torch'] = None; from pretrain.cli import main; "
        "main(['plan', 'model=gpt3_175b', 'parallel=gpt3_175b', 'engine=zero3_bf16', '--ranks', '96'])"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_auto_micro_batch_size_needs_the_gpu_memory(capsys) -> None:
    asked = ("plan", "model=gpt3_1.3b", "engine=zero1_bf16", "train.micro_batch_size=auto")
    said = Said(capsys, *asked, "train.global_batch_size=32", "--gpu-memory", "80")
    assert said.code == 0 and "fits:" in said.out and "32 samples = 0 micro" not in said.out
    said = Said(capsys, *asked)
    assert said.code == 2 and "train.micro_batch_size=auto" in said.err and "--gpu-memory" in said.err


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.num_layers=100000000", "model.num_layers=100000000: must be at most 10000"),
        ("model.num_heads=1000000007", "model.num_heads=1000000007: must be at most 16777216"),
        (f"model.hidden_size={10**400}", f"model.hidden_size={10**400}: must be at most 16777216"),
        ("train.global_batch_size=1000000000000007", "train.global_batch_size=1000000000000007: must be at most"),
        ("parallel.pp=1000000007", "parallel.pp=1000000007: must be at most 16777216"),
        ("tokenizer.vocab_size=0", "tokenizer.vocab_size=0: must be from 1 to 16777216"),
        (f"run.seed={2**63}", f"run.seed={2**63}: must be from"),
    ],
)
def test_what_cannot_be_counted_out_is_refused_at_once(capsys, override: str, words: str) -> None:
    said = Said(capsys, "plan", "model=tiny", override)
    assert said.code == 2 and said.err.startswith(f"pretrain: error: {words}") and not said.out


def test_too_many_ranks_are_refused_and_any_memory_is_allowed(capsys) -> None:
    said = Said(capsys, "plan", "model=tiny", "--ranks", str(10**18 + 9), "parallel.tp=3")
    assert said.code == 2 and f"number of ranks={10**18 + 9}: must be at most 16777216" in said.err
    assert Said(capsys, "plan", "model=tiny", "--gpu-memory", "1e308").code == 0


def test_a_known_machine_adds_the_time_of_a_step(capsys) -> None:
    large = ("model=gpt3_1.3b", "engine=zero1_bf16", "train.global_batch_size=512", "train.micro_batch_size=2")
    words = ("plan", *large, "--ranks", "64", "train.max_steps=null", "train.max_tokens=26000000000")
    said = Said(capsys, *words, "--hardware", "h100", "--price", "2.5")
    assert said.code == 0 and not said.err
    for text in (
        "a step on h100: ",
        "matrix products",
        "stragglers",
        "limited by ",
        "tokens/s on each GPU; MFU ",
        "6N",
    ):
        assert text in said.out
    assert "26,000,000,000 tokens: " in said.out and " GPU-hours, cost " in said.out
    assert "numbers of the machine: " in said.out and " guessed" in said.out
    # The machine's memory decides what fits, unless another is given.
    assert "of 79.1 GiB" in said.out
    assert Said(capsys, *words, "cluster.hardware=h100", "--price", "2.5").out == said.out


def test_a_plan_in_json_has_memory_and_time(capsys) -> None:
    said = Said(capsys, "plan", *SMALL, "--ranks", "4", "--hardware", "cpu", "--json")
    made = json.loads(said.out)
    assert made["ranks"] == made["layout"]["dp"] == 4 and made["memory"][0]["peak"] > 0 and made["fits"] is None
    assert made["time"]["seconds_step"] == pytest.approx(sum(made["time"]["seconds_by_part"].values()))
    assert {"mfu_6n", "mfu_6n_6lhs", "mfu_6n_12lhs", "days", "device_hours", "limit"} <= set(made["time"])
    assert json.loads(Said(capsys, "plan", *SMALL, "--json").out)["time"] is None


def test_an_unknown_machine_is_named_in_the_hint(capsys) -> None:
    assert "not predicted, because the machine is not known" in Said(capsys, "plan", *SMALL).out
    wrong = Said(capsys, "plan", *SMALL, "--hardware", "h10")
    assert wrong.code == 2 and "is not a known machine" in wrong.err and "did you mean h100" in wrong.err
    assert "add --hardware NAME" in Said(capsys, "plan", *SMALL, "--price", "2").err

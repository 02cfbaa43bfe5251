"""Text from a trained model."""

import json
import shutil

import pytest

from tests.support.runs import user_error

PROMPT = 'def f(x=[1, "a"], y={}): # naïve 日本 🙂 ${x} $y \\'


def test_run_prompt_and_seed_determine_the_text(shared, finished_run, place, dataset):
    wanted = [f"run={finished_run}", f"prompt={PROMPT}", "max_new_tokens=12", "seed=3"]
    first = shared.generate(*wanted, "output=out/text.txt")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith(PROMPT) and len(first.stdout) > len(PROMPT) + 1
    assert (shared.folder / "out/text.txt").read_text(encoding="utf-8") == first.stdout
    alone = shutil.copytree(finished_run, place.run_dir("alone"))
    config = alone / "config.yaml"
    config.write_text(config.read_text().replace(str(dataset), str(place.folder / "gone")))
    assert place.generate("run=runs/alone", *wanted[1:]).stdout == first.stdout, "without its data"


def test_temperature_0_ignores_the_seed(shared, finished_run):
    done = shared.generate(
        f"run={finished_run}", "prompt=the", "max_new_tokens=8", "temperature=0", "num_samples=3", "seed=99"
    )
    assert done.returncode == 0, done.stderr
    texts = done.stdout.removesuffix("\n").split("\n" + "-" * 40 + "\n")
    assert len(texts) == 3 and len(set(texts)) == 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["run=runs/nowhere"], "runs/nowhere/config.yaml: no such file\n  hint: is runs/nowhere the folder of a run?"),
        ([], "run=???: a value must be given\n  hint: add run=..."),
        (["run=runs/x", "top_p=0"], "top_p=0.0: must be above 0 and at most 1, or null"),
        (["run=runs/x", "output=."], "output=.: exists and is not a file\n  hint: give the path of a file"),
        (["run=runs/x", "output=/dev/null/x"], "output=/dev/null/x: cannot be created: File exists"),
        (["run=runs/x", "promt=hello"], "promt=hello: unknown key\n  hint: did you mean prompt?"),
    ],
)
def test_generate_refuses_what_it_cannot_use(place, overrides, words):
    assert words in user_error(place.generate(*overrides))


def test_a_checkpoint_that_is_not_there_is_named(shared, finished_run, place):
    message = user_error(shared.generate(f"run={finished_run}", "checkpoint=step-00000099"))
    assert "checkpoint=step-00000099: no such checkpoint in" in message
    assert "there are step-00000008, step-00000012, step-00000016" in message
    place.run_dir("new").mkdir(parents=True)
    shutil.copy(finished_run / "config.yaml", place.run_dir("new"))
    message = user_error(place.generate("run=runs/new"))
    assert message == "runs/new/checkpoints: no whole checkpoint yet\n  hint: train first, or wait for the first save"


def test_prompts_of_a_file_are_continued_together(shared, finished_run, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "the"}\n{"prompt": "a long prompt of several words"}\n')
    words = (f"run={finished_run}", "max_new_tokens=6", "format=json")
    done = shared.generate(*words, f"prompts={path}", "num_samples=2", "seed=3", "logprobs=1")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["prompt"] for record in records] == ["the", "the", *["a long prompt of several words"] * 2]
    assert [record["seed"] for record in records] == [3, 4, 5, 6]
    alone = shared.generate(*words, "prompt=a long prompt of several words", "seed=6")
    assert json.loads(alone.stdout)["tokens"] == records[3]["tokens"]
    assert len(records[0]["logprobs"]) == len(records[0]["tokens"])


def test_a_stream_is_the_text(shared, finished_run):
    words = (f"run={finished_run}", "prompt=the", "max_new_tokens=40", "seed=5")
    assert shared.generate(*words, "stream=true").stdout == shared.generate(*words).stdout


def test_ranks_write_the_text_of_one_process(shared, finished_run):
    words = (f"run={finished_run}", "prompt=the", "max_new_tokens=8", "temperature=0", "num_samples=2")
    alone = shared.generate(*words)
    split = shared.generate(*words, "parallel.tp=2", num_ranks=2)
    assert split.returncode == 0, split.stderr
    assert split.stdout == alone.stdout

"""`pretrain evaluate` scores the checkpoints of a run on tasks."""

import json
from typing import Any

import pytest

from tests.support.corpus import make_texts
from tests.support.ranks import run_ranks
from tests.support.runs import user_error, validation_records

QUESTIONS = [
    {"context": "the", "choices": [" old man", " zq", " xx"], "answer": 0},
    {"context": " ", "choices": ["a", "\u65e5"], "answer": 0},
    {"context": "word " * 60, "choices": ["one", "two"], "answer": 1},
]


@pytest.fixture
def tasks(tmp_path):
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in QUESTIONS))
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "the old man and the sea " * 9}) + "\n")
    return f"tasks=['{tmp_path}/questions.jsonl','{tmp_path}/texts.jsonl']"


def test_all_checkpoints_have_all_figures(shared, plain_run, tasks):
    (plain_run / "evaluation.json").unlink(missing_ok=True)  # it keeps the results of other tests
    done = shared.command("evaluate", f"run={plain_run}", tasks, "checkpoint=all", "device=cpu")
    assert done.returncode == 0, done.stderr
    results = json.loads((plain_run / "evaluation.json").read_text())
    assert [(each["checkpoint"][-2:], each["task"]) for each in results] == [
        (step, task) for step in ("08", "12", "16") for task in ("questions", "texts")
    ]
    assert len(done.stdout.splitlines()) == 1 + 3 * (4 + 1)
    assert (plain_run / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert "NaN" not in (plain_run / "evaluation.json").read_text()
    texts = [each["figures"]["bits_per_byte"][0] for each in results if each["task"] == "texts"]
    assert texts[0] > texts[-1] > 0  # it learned


def test_ranks_find_the_figures_of_one_process(shared, plain_run, tasks):
    def figures(*words, **options):
        (plain_run / "evaluation.json").unlink(missing_ok=True)
        done = shared.command("evaluate", f"run={plain_run}", tasks, "device=cpu", *words, **options)
        assert done.returncode == 0, done.stderr
        results = json.loads((plain_run / "evaluation.json").read_text())
        return [value for each in results for value, _ in each["figures"].values()]

    assert figures("parallel.tp=2", num_ranks=2) == pytest.approx(figures("batch_size=2"), abs=1e-5)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["run=runs/x"], "tasks=[]: names no file"),
        (["run=runs/x", "tasks=[a]", "batch_size=0"], "batch_size=0: must be at least 1"),
        (["run=runs/x", "tasks=[a.jsonl]"], "tasks=a.jsonl: cannot be read: No such file or directory"),
    ],
)
def test_evaluate_refuses_what_it_cannot_use(place, overrides, words):
    assert words in user_error(place.command("evaluate", *overrides))


def test_a_checkpoint_that_a_live_run_deletes_is_left_out(plain_run, tasks):
    for results in run_ranks(evaluated_with_a_gone_one, 2, str(plain_run), tasks, joined=False):
        assert {result.checkpoint for result in results} == {"step-00000016"}


def evaluated_with_a_gone_one(run: str, tasks: str) -> Any:
    from pretrain.config.load import load_evaluate_config
    from pretrain.evaluation import evaluate_run as module

    module._checkpoints = lambda run, wanted: ["step-00000001", "step-00000016"]  # the first was there at the start
    return module.evaluate_run(load_evaluate_config([f"run={run}", tasks, "device=cpu", "parallel.tp=2"]))


def test_items_of_the_training_text_are_named(shared, plain_run, tmp_path):
    seen, new = (
        make_texts(12),
        "zebra xylophone quartz jumps over violet foxes beside nine dwarves under moonlight",
    )
    lines = [{"text": new}, *({"text": text} for text in seen)]
    (tmp_path / "known.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = (f"tasks=['{tmp_path}/known.jsonl']", "contamination=true", "device=cpu")
    done = shared.command("evaluate", f"run={plain_run}", *words)
    assert done.returncode == 0, done.stderr
    results = json.loads((plain_run / "evaluation.json").read_text())
    (named,) = [each["contaminated"] for each in results if each["task"] == "known"]
    places = [int(item.split(": ")[0].rpartition(":")[2]) for item in named]
    assert places == sorted(places) and len(places) >= 6  # the others are held out
    assert 1 not in places
    assert f"known: {len(places)} of 13 items are in the training text" in done.stderr


def test_validations_score_tasks_and_domains(place, tasks, tmp_path):
    (tmp_path / "sea.txt").write_text("the old man and the sea\n" * 30)
    (tmp_path / "noise.txt").write_text("zq xx 99 kk\n" * 30)
    words = (
        *("model=tiny_llama", "model.num_query_groups=1", "train.max_steps=8", f"evaluation.{tasks}"),
        *(f"evaluation.domains.{name}={tmp_path}/{name}.txt" for name in ("sea", "noise")),
    )
    done = place.train("with-tasks", *words)
    assert done.returncode == 0, done.stderr
    (found,) = validation_records(place.run_dir("with-tasks")).values()
    assert 0 < found["task/texts/bits_per_byte"] < 20
    assert 0 <= found["task/questions/accuracy"] <= 1
    assert found["task/questions/bits_per_byte_error"] > 0
    assert found["seconds_tasks"] > 0 and found["seconds_domains"] > 0
    assert 0 < found["domain/sea/bits_per_byte"] < found["domain/noise/bits_per_byte"]
    assert "tasks at step 8: questions accuracy" in done.stderr
    place.command("evaluate", "run=runs/with-tasks", tasks, "device=cpu")
    results = json.loads((place.run_dir("with-tasks") / "evaluation.json").read_text())
    assert results[1]["figures"]["bits_per_byte"][0] == pytest.approx(found["task/texts/bits_per_byte"], abs=1e-5)


def test_a_choice_longer_than_the_context_is_refused(place, plain_run, tmp_path):
    line = {"context": "a", "choices": ["b", "word " * 80], "answer": 0}
    (tmp_path / "long.jsonl").write_text(json.dumps(line) + "\n")
    message = user_error(
        place.command("evaluate", f"run={plain_run}", f"tasks=['{tmp_path}/long.jsonl']", "device=cpu")
    )
    assert "long.jsonl:1: a choice has" in message and "the model sees 32 at once" in message


def test_a_wrong_task_is_refused_before_training(place, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"context": "a"}\n')
    message = user_error(place.train("x", f"evaluation.tasks=['{tmp_path}/bad.jsonl']"))
    assert "bad.jsonl:1: must be" in message
    assert not place.run_dir("x").exists()

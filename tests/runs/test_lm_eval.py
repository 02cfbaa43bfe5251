"""lm-evaluation-harness finds the same figures with a run as with its export in transformers."""

import dataclasses
import functools
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from pretrain.config.load import read_run_config
from pretrain.run.tokenizer import tokenizer_of
from tests.support.ranks import run_ranks

# Not imported here: it changes the environment of processes that are started later.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs the extra `eval`")

CHOICES = """
task: local_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choices.jsonl}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
TEXTS = """
task: local_texts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/texts.jsonl}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}, {{metric: word_perplexity}}]
"""
GROUP = """
group: local_group
task: [local_choices, local_texts]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""
GENERATED = """
task: local_answers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/answers.jsonl}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["a"], max_gen_toks: 8, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Task files, and an environment without a network or caches of others."""
    for name, value in {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)
    words = ["the", "old", "man", "went", "to", "see", "a", "house", "by", "the", "sea", "and"]
    lines = [
        {"context": " ".join(words[: 2 + i % 7]), "choices": [" " + words[i % 11], " a house"], "answer": i % 2}
        for i in range(40)
    ]
    (tmp_path / "choices.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    texts = [{"text": " ".join(words * n)} for n in (1, 9)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in texts))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/choices.yaml").write_text(CHOICES.format(folder=tmp_path))
    (tmp_path / "tasks/texts.yaml").write_text(TEXTS.format(folder=tmp_path))
    (tmp_path / "tasks/group.yaml").write_text(GROUP)
    answers = [{"context": " ".join(words[:n]), "answer": "the"} for n in range(1, 9)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))
    (tmp_path / "tasks/answers.yaml").write_text(GENERATED.format(folder=tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def export(shared, plain_run, tmp_path_factory):
    pytest.importorskip("transformers", reason="needs the extra `export`")
    folder = tmp_path_factory.mktemp("exported") / "hf"
    done = shared.command("export", f"run={plain_run}", f"into={folder}", "check=false")
    assert done.returncode == 0, done.stderr
    return folder


def hf_model(export):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(export), device="cpu", dtype="float32", batch_size=4)


def test_a_run_has_the_figures_of_its_export(shared, plain_run, folder, export):
    names = ("local_choices", "local_texts", "local_answers")
    words = (f"tasks=[{','.join(f'lm_eval:{name}' for name in names)}]", f"lm_eval_path={folder}/tasks", "device=cpu")
    done = shared.command("evaluate", f"run={plain_run}", *words, "parallel.tp=2", num_ranks=2)
    assert done.returncode == 0, done.stderr
    ours = {each["task"]: each for each in json.loads((plain_run / "evaluation.json").read_text())}

    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=f"{folder}/tasks", include_defaults=False)
    theirs = simple_evaluate(hf_model(export), tasks=list(names), task_manager=manager, bootstrap_iters=0)["results"]
    for name in names:
        figures = ours[f"lm_eval:{name}"]["figures"]
        assert figures
        if name == "local_choices":
            assert all(error > 0 for _, error in figures.values())
        for figure, (value, _) in figures.items():
            assert value == pytest.approx(theirs[name][f"{figure},none"], rel=1e-5), (name, figure)
    assert ours["lm_eval:local_choices"]["items"] == 40


WORDS = ["the", "old", "man", "went", "to", "see", "a", "house", "by", "the", "sea", "and"]
PAIRS = [(" ".join(WORDS[: 1 + i % 9]) + " " * (i % 2), " " * (1 - i % 2) + WORDS[i % 11]) for i in range(60)]
PAIRS += [("word " * 60, "end"), ("", " the old man"), ("x", " \u65e5 zq")]
ROLLING = [" ".join(WORDS * n) for n in (1, 3, 9)]
PROMPTS = [
    (" ".join(WORDS[:n]), {"until": ["a", "zz"], "max_gen_toks": 12, "do_sample": False}) for n in (1, 3, 5, 8, 12)
]


def answers_of(model):
    """Log-probabilities, those of texts, and greedy text of one model."""
    from lm_eval.api.instance import Instance

    def asked(kind, arguments):
        return [Instance(request_type=kind, doc={}, arguments=each, idx=i) for i, each in enumerate(arguments)]

    return (
        model.loglikelihood(asked("loglikelihood", PAIRS), disable_tqdm=True),
        model.loglikelihood_rolling(asked("loglikelihood_rolling", [(text,) for text in ROLLING]), disable_tqdm=True),
        model.generate_until(asked("generate_until", PROMPTS), disable_tqdm=True),
    )


def answers_of_run(run: str, tp: int, pp: int, world_size: int) -> Any:
    from pretrain.checkpoint.trained_model import find_fitting_checkpoint, trained_engine, without_training
    from pretrain.evaluation.lm_eval_model import RunModel

    folder = Path(run)
    trained = read_run_config(folder / "config.yaml")
    tokenizer = tokenizer_of(folder, trained.data)
    used = without_training(trained, dataclasses.replace(trained.parallel, tp=tp, pp=pp), "cpu", world_size)
    find = functools.partial(find_fitting_checkpoint, folder, "latest", trained, tokenizer)
    with trained_engine(folder, used, tokenizer, find, seed=0) as model:
        return answers_of(RunModel(model, tokenizer, seq_length=used.model.seq_length, batch_size=4))


@pytest.mark.parametrize(("tp", "pp", "world_size"), [(1, 1, 1), (2, 1, 2), (1, 2, 2), (1, 1, 2)])
def test_single_answers_are_those_of_the_export(plain_run, export, hf_answers, tp, pp, world_size):
    scores, texts, generated = hf_answers
    for own in run_ranks(answers_of_run, world_size, str(plain_run), tp, pp, world_size, joined=False):
        for (value, greedy), (expected, expected_greedy) in zip(own[0], scores, strict=True):
            assert value == pytest.approx(expected, abs=1e-4)
            assert greedy == expected_greedy
        assert own[1] == pytest.approx(texts, abs=1e-4)
        assert own[2] == generated


@pytest.fixture(scope="module")
def hf_answers(export):
    return answers_of(hf_model(export))


def test_a_group_has_its_mean_and_its_tasks(shared, plain_run, folder):
    words = ("tasks=[lm_eval:local_group]", f"lm_eval_path={folder}/tasks", "device=cpu")
    done = shared.command("evaluate", f"run={plain_run}", *words)
    assert done.returncode == 0, done.stderr
    ours = {each["task"]: each for each in json.loads((plain_run / "evaluation.json").read_text())}
    group, choices = ours["lm_eval:local_group"], ours["lm_eval:local_choices"]
    assert group["figures"]["acc"][0] == choices["figures"]["acc"][0]
    assert (group["items"], choices["items"]) == (42, 40)
    assert "lm_eval:local_texts" in ours


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("nothing", ["the harness has no such task", "there are local_answers, local_broken, local_choices"]),
        ("local_broken", ["the harness cannot load it"]),
    ],
)
def test_a_task_that_cannot_run_is_refused_before_any_work(shared, folder, task, words):
    (folder / "tasks/broken.yaml").write_text(TEXTS.replace("local_texts", "local_broken").format(folder="/nowhere"))
    # The run does not exist: the tasks are looked at first.
    options = (f"tasks=[lm_eval:{task}]", f"lm_eval_path={folder}/tasks", "device=cpu")
    done = shared.command("evaluate", "run=runs/nowhere", *options)
    assert done.returncode == 2
    assert f"tasks=lm_eval:{task}: " in done.stderr
    assert all(each in done.stderr for each in words), done.stderr

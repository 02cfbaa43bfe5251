"""lm-evaluation-harness finds the same figures with a run as with its export in transformers."""

import importlib.util
import json

import pytest

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
    return tmp_path


def test_a_run_has_the_figures_of_its_export(shared, plain_run, folder):
    pytest.importorskip("transformers", reason="needs the extra `export`")
    names = ("local_choices", "local_texts")
    words = (f"tasks=[{','.join(f'lm_eval:{name}' for name in names)}]", f"lm_eval_path={folder}/tasks", "device=cpu")
    done = shared.command("evaluate", f"run={plain_run}", *words)
    assert done.returncode == 0, done.stderr
    ours = {each["task"]: each for each in json.loads((plain_run / "evaluation.json").read_text())}
    done = shared.command("export", f"run={plain_run}", f"into={folder}/export", "check=false")
    assert done.returncode == 0, done.stderr

    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=f"{folder}/export", device="cpu", dtype="float32", batch_size=4)
    manager = TaskManager(include_path=f"{folder}/tasks", include_defaults=False)
    theirs = simple_evaluate(model, tasks=list(names), task_manager=manager, bootstrap_iters=0)["results"]
    for name in names:
        figures = ours[f"lm_eval:{name}"]["figures"]
        assert figures
        if name == "local_choices":
            assert all(error > 0 for _, error in figures.values())
        for figure, (value, _) in figures.items():
            assert value == pytest.approx(theirs[name][f"{figure},none"], rel=1e-5), (name, figure)
    assert ours["lm_eval:local_choices"]["items"] == 40


def test_an_unknown_task_is_named_with_those_there_are(shared, plain_run, folder):
    words = ("tasks=[lm_eval:nothing]", f"lm_eval_path={folder}/tasks", "device=cpu")
    done = shared.command("evaluate", f"run={plain_run}", *words)
    assert done.returncode == 2
    assert "tasks=lm_eval:nothing: the harness has no such task" in done.stderr
    assert "local_choices, local_texts" in done.stderr

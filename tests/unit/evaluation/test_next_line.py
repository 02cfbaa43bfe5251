"""The task made from held-out text: places, choices, and what it needs."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from pretrain.evaluation.next_line import CHOICES, next_line_task, write_task
from pretrain.evaluation.tasks import read_task

EOD = 0


class Letters:
    """A tokenizer of single characters."""

    eod_id = EOD

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def split(*texts: str) -> Any:
    rows = [[ord(character) if character != "|" else EOD for character in text] for text in texts]
    return SimpleNamespace(num_samples=len(rows), read=lambda numbers: np.array([rows[numbers[0]]]))


def sample(number: int, indent: str = "    ") -> str:
    lines = ["cut", *(f"{indent}line {number} of sample {i}" for i in range(6)), "cut of"]
    return "\n".join(lines)


def made(*texts: str, number: int = 8) -> Any:
    return next_line_task({"a": split(*texts)}, Letters(), number)  # type: ignore[arg-type]


def test_the_right_choice_is_the_next_line():
    task = made(*map(sample, range(6)))
    assert len(task.questions) == 6
    for question in task.questions:
        number = question.choices[question.answer].split()[1]
        assert question.choices[question.answer] == f"    line {number} of sample 5\n"
        assert question.context == "".join(f"    line {number} of sample {i}\n" for i in range(5))
        assert len(set(question.choices)) == CHOICES
    assert len({question.answer for question in task.questions}) > 1


def test_the_wrong_choices_have_the_same_indentation():
    task = made(*map(sample, range(6)), *(sample(number, "\t") for number in range(6, 11)), number=11)
    for question in task.questions:
        starts = {choice[0] for choice in question.choices}
        assert len(starts) == 1


def test_the_wrong_choices_are_about_as_long():
    long = [sample(number).replace("line", "a much longer line") for number in range(6, 12)]
    for question in made(*map(sample, range(6)), *long, number=12).questions:
        assert len({"longer" in choice for choice in question.choices}) == 1


def test_a_question_stays_within_a_document():
    texts = [sample(number) for number in range(5)]
    (question,) = [
        each
        for each in made(*texts, "x\nother lines\nof another\ndocument|" + sample(7)).questions
        if "line 7" in each.context
    ]
    assert "other" not in question.context


def test_the_task_is_equal_for_every_run():
    texts = list(map(sample, range(6)))
    assert made(*texts) == made(*texts)
    assert made(*texts).digest != made(*texts, number=5).digest


def test_text_without_lines_gives_no_task(caplog):
    assert made("one long line " * 20, "short\n" * 30) is None
    assert "evaluation.next_lines=8: there is no such task, because the validation split has too few" in caplog.text


def test_the_written_file_is_the_same_task(tmp_path):
    task = made(*map(sample, range(6)))
    write_task(tmp_path, task)
    read = read_task(tmp_path / "next_line.jsonl")
    assert (read.questions, read.name, read.digest) == (task.questions, task.name, task.digest)

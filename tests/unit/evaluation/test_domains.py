"""Texts of domains: their beginning, and what cannot be read."""

import json

import pytest

from data_pipeline.errors import UserError
from pretrain.config.load import load_run_config
from pretrain.evaluation.domains import read_domains

DATA = load_run_config([]).data


def test_a_domain_is_the_beginning_of_its_file(tmp_path):
    lines = [{"text": "naïve"}, {"text": "b" * 20}, {"text": "c"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "b.txt").write_text("plain text")
    domains = {"news": f"{tmp_path}/a.jsonl", "code": f"{tmp_path}/b.txt"}
    news, code = read_domains(domains, DATA, 10)
    assert (news.name, news.texts) == ("news", ("naïve", "b" * 4))
    assert (code.name, code.texts) == ("code", ("plain text",))
    assert read_domains(domains, DATA, 3)[0].texts == ("na",)


@pytest.mark.parametrize(("content", "words"), [(None, "nowhere"), ("", "evaluation.domains.news")])
def test_a_domain_without_text_is_refused(tmp_path, content, words):
    path = tmp_path / "nowhere.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=words):
        read_domains({"news": str(path)}, DATA, 10)

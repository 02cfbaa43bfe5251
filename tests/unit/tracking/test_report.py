import json
import math
import re
import threading

import numpy as np
import pytest

from pretrain.tracking.curves import smooth
from pretrain.tracking.metrics_file import JsonlSink
from pretrain.tracking.provenance import write_description
from pretrain.tracking.report import write_report

CURVES = ["loss.png", "learning_rate.png", "gradient_norm.png", "speed.png"]


def train_values(step):
    return {
        "loss": 2 + 6 * math.exp(-step / 100),
        "grad_norm": 1.0,
        "lr": 3e-4,
        "tokens": step * 4096,
        "tokens_per_second": 20000.0,
        "mfu_6n_6lhs": 0.4,
        "seconds_step": 0.2,
        "seconds_data": 0.01,
        "seconds_forward_backward": 0.15,
        "seconds_optimizer": 0.02,
        "batch_hash": "0123456789abcdef",
    }


def make_run(run_dir, num_records, name="a run"):
    sink = JsonlSink(run_dir, 0)
    for step in range(10, 10 * num_records + 1, 10):
        sink.log("train", step, train_values(step))
    if num_records:
        validation = {"loss": 2.3456, "perplexity": 10.44, "bits_per_byte": 0.8765, "samples": 256, "seconds": 2.0}
        sink.log("validation", 10 * num_records, validation)
    sink.close("finished")
    (run_dir / "config.yaml").write_text(json.dumps({"run": {"name": name}}))  # JSON is YAML
    description = {
        "parameters": {"total": 1478912},
        "corpus": {"name": "stdlib", "digest": "ab" * 32},
        "tokenizer": {"fingerprint": "cd" * 16},
        "environment": {"git": None, "versions": {"torch": "2.13.0"}},
    }
    write_description(run_dir, description)


def is_png(content):
    return content.startswith(b"\x89PNG\r\n") and content.endswith(b"IEND\xaeB`\x82")


@pytest.mark.parametrize("num_records", [0, 1, 200])
def test_curves_are_drawn_from_any_number_of_records(tmp_path, num_records):
    make_run(tmp_path, num_records)
    write_report(tmp_path)
    assert all(is_png((tmp_path / name).read_bytes()) for name in CURVES)
    assert not list(tmp_path.glob(".*"))


def test_the_page_tells_what_was_run_and_how_it_went(tmp_path):
    make_run(tmp_path, 3)
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    for text in ("1.48M", "2.3456", "10.44", "0.8765", "stdlib", "ab" * 32, "cd" * 16, "2.13.0", "1,478,912", "123k"):
        assert text in page, text
    assert page.count("data:image/png;base64,") == len(CURVES)
    assert not re.search(r'(src|href)="(?!data:)', page), "the page must not need other files"


def test_a_hostile_run_name_is_only_text(tmp_path):
    hostile = "</title><script>alert('x')</script>{{ 7 * 7 }}"
    make_run(tmp_path, 1, name=hostile)
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page and "{{ 7 * 7 }}" in page


def test_a_folder_with_nothing_in_it_gets_a_report(tmp_path):
    write_report(tmp_path)
    assert tmp_path.name in (tmp_path / "report.html").read_text()


def test_a_diverged_run_gets_a_report(tmp_path):
    sink = JsonlSink(tmp_path, 0)
    for step in range(1, 60):
        sink.log("train", step, train_values(step) | {"loss": math.nan if step > 40 else 3.0, "grad_norm": math.inf})
    sink.log("validation", 59, {"loss": math.nan, "perplexity": math.inf})
    write_report(tmp_path)
    assert "nan" in (tmp_path / "report.html").read_text()


def test_two_threads_draw_what_one_draws(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
        make_run(folder, 50)
    write_report(folders[0])
    threads = [threading.Thread(target=write_report, args=(folder,)) for folder in folders[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in CURVES:
        assert len({(folder / name).read_bytes() for folder in folders}) == 1


def test_smoothing_keeps_a_constant_and_leaves_out_what_is_not_finite():
    values = np.full(50, 3.0)
    values[[10, 20]] = np.nan, np.inf
    assert smooth(values, 7) == pytest.approx(np.full(50, 3.0))
    assert np.isnan(smooth(np.full(3, np.nan), 5)).all()


def test_smoothing_is_the_mean_of_the_window():
    values = np.arange(20.0) ** 2
    assert smooth(values, 5)[10] == pytest.approx(values[8:13].mean())
    assert smooth(values, 5)[0] == values[0]

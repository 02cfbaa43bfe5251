import json
import math
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser

import numpy as np
import pytest

from pretrain.run.outcome import read_outcome, record_end, record_start
from pretrain.tracking import report
from pretrain.tracking.curves import draw_curves
from pretrain.tracking.metrics_file import JsonlSink
from pretrain.tracking.provenance import write_description
from pretrain.tracking.report import write_report
from pretrain.tracking.series import range_to_show, smooth, validation_curves
from tests.support.outcomes import end_of

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
    run_dir.mkdir(exist_ok=True)
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


class Page(HTMLParser):
    """The addresses that a browser would load for a page, the scripts that it would run, and the text."""

    def __init__(self, path):
        super().__init__()
        self.addresses, self.scripts, self.text, self._is_script = [], [], "", False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        self._is_script = tag == "script"
        if self._is_script:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._is_script = False

    def handle_data(self, data):
        if self._is_script:
            self.scripts[-1] += data
        else:
            self.text += data


def report_of(run_dir):
    write_report(run_dir)
    return Page(run_dir / "report.html")


def test_the_page_shows_the_run_and_its_results(tmp_path):
    make_run(tmp_path, 3)
    page = report_of(tmp_path)
    for text in ("1.48M", "6.4449", "2.3456", "10.44", "0.8765", "stdlib", "ab" * 32, "2.13.0", "1,478,912", "123k"):
        assert text in page.text, text
    assert "training loss" in page.text
    assert [address for address in page.addresses if not address.startswith("data:")] == []


def test_texts_of_users_are_only_text(tmp_path):
    make_run(tmp_path, 1, name="a run")
    scripts = len(report_of(tmp_path).scripts)
    hostile = "</title></script><script>alert('x')</script>{{ 7 * 7 }}"
    make_run(tmp_path, 1, name=hostile)
    (tmp_path / "sample.txt").write_text(hostile)
    record_start(tmp_path, 0)
    record_end(tmp_path, end_of("failed", hostile))
    page = report_of(tmp_path)
    assert page.text.count(hostile) >= 4 and len(page.scripts) == scripts
    assert not any("alert('x')" in script for script in page.scripts)


def test_the_head_says_the_state_the_times_and_the_reason(tmp_path):
    make_run(tmp_path, 2)
    assert "started" not in report_of(tmp_path).text, "an older run has no outcome"
    record_start(tmp_path, 0)
    text = report_of(tmp_path).text
    assert "training" in text and "last record" in text and "ended" not in text
    record_end(tmp_path, end_of("stopped", "asked to stop by SIGTERM"))
    text = report_of(tmp_path).text
    assert "stopped" in text and "asked to stop by SIGTERM" in text and "from start to end" in text


def test_a_resume_keeps_the_first_start(tmp_path):
    record_start(tmp_path, 0)
    first = read_outcome(tmp_path)
    record_end(tmp_path, end_of("stopped", ""))
    record_start(tmp_path, 10)
    now = read_outcome(tmp_path)
    assert now.started == first.started and now.resumed >= first.resumed
    assert (now.state, now.ended) == ("training", None)


def test_only_the_page_of_a_live_run_loads_itself_again(tmp_path):
    make_run(tmp_path, 2)
    record_start(tmp_path, 0)
    write_report(tmp_path)
    refresh = '<meta http-equiv="refresh"'
    assert refresh in (tmp_path / "report.html").read_text()
    record_end(tmp_path, end_of("finished", ""))
    write_report(tmp_path)
    assert refresh not in (tmp_path / "report.html").read_text()


def test_the_size_of_the_page_is_bounded(tmp_path):
    for number in (2000, 6000):
        make_run(tmp_path / str(number), number)
        write_report(tmp_path / str(number))
    small, large = ((tmp_path / name / "report.html").stat().st_size for name in ("2000", "6000"))
    assert large < 1.1 * small and large < 2.5e6


def test_the_images_bear_the_name_of_the_run():
    records = [{"kind": "train", "step": 1, "time": 0.0, "loss": 3.0}]
    one, other = (draw_curves(name, records) for name in ("one $x$", "other"))
    assert all(one[name] != other[name] for name in CURVES)
    assert one == draw_curves("one $x$", records)


def test_the_start_of_a_curve_is_shown_and_a_rare_spike_is_not():
    values = np.concatenate([[10.8], np.linspace(8.0, 3.0, 2000), [500.0], np.full(500, 3.0)])
    low, high = range_to_show(values, np.array([2.9]))
    assert low < 2.9 and 10.8 < high < 12.0
    assert range_to_show(np.array([np.nan, np.inf])) is None


def test_each_validation_size_has_its_own_curve():
    sizes = [256, 256, 4096]
    records = [
        {"kind": "validation", "step": step, "loss": float(step), "samples": size} for step, size in enumerate(sizes)
    ]
    main, final = validation_curves(records)
    assert (main.label, main.loss.tolist()) == ("validation", [0.0, 1.0])
    assert (final.label, final.loss.tolist()) == ("validation on 4,096 samples", [2.0])


def test_the_report_is_written_in_a_small_share_of_the_time(tmp_path, monkeypatch):
    clock, writes = [0.0], []

    def write(run_dir):
        writes.append(clock[0])
        clock[0] += 2.0

    monkeypatch.setattr(report, "write_report", write)
    sink = report.ReportSink(tmp_path, now=lambda: clock[0])
    for step in range(1000):
        clock[0] += 1.0
        sink.log("validation" if step % 10 == 0 else "train", step, {})
    assert writes[0] == 1.0 and 4 <= len(writes) <= 6
    sink.close("finished")
    assert writes[-1] > 1000.0


def test_nothing_that_draws_is_loaded_before_a_report_is_written():
    program = "import sys, pretrain.tracking.sinks; print([m for m in ('bokeh', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on PATH")
def test_a_browser_draws_the_curves_without_a_network(tmp_path):
    make_run(tmp_path, 30, name="</script>$$x$$")
    write_report(tmp_path)
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", f"file://{tmp_path}/report.html"]
    done = subprocess.run(["chromium", *options], capture_output=True, text=True, timeout=200, check=True)
    assert "Uncaught" not in done.stderr and "ERR_" not in done.stderr, done.stderr
    assert 'class="bk-Column"' in done.stdout


def test_an_empty_folder_gets_a_report_without_warning(tmp_path, caplog):
    write_report(tmp_path)
    assert caplog.records == [] and "no records yet" in (tmp_path / "report.html").read_text()
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


def test_smoothing_keeps_constants_and_skips_nan():
    values = np.full(50, 3.0)
    values[[10, 20]] = np.nan, np.inf
    assert smooth(values, 7) == pytest.approx(np.full(50, 3.0))
    assert np.isnan(smooth(np.full(3, np.nan), 5)).all()


def test_smoothing_is_the_mean_of_the_window():
    values = np.arange(20.0) ** 2
    assert smooth(values, 5)[10] == pytest.approx(values[8:13].mean())
    assert smooth(values, 5)[0] == values[0]

"""Records of machines: presets, files, and the refusal of bad ones."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain.config.errors import ConfigError
from pretrain.planner.time.hardware import (
    FOLDER,
    hardware_of_device,
    load_hardware,
    preset_names,
    read_hardware,
    write_hardware,
)


@pytest.mark.parametrize("name", preset_names())
def test_a_written_record_is_read_back_equal(name: str, tmp_path: Path) -> None:
    hardware = load_hardware(name)
    write_hardware(hardware, tmp_path / "mine.yaml", "A machine.\nMeasured today.")
    assert read_hardware(tmp_path / "mine.yaml") == hardware == load_hardware(str(tmp_path / "mine.yaml"))
    assert hardware.name == name


def test_every_number_has_an_origin() -> None:
    for name in preset_names():
        origins = load_hardware(name).origins()
        assert "measured" not in origins and "guess" in origins  # nothing shipped was measured by this project


def _with(tmp_path: Path, **changes: Any) -> Path:
    values = yaml.safe_load((FOLDER / "h100.yaml").read_text()) | changes
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value != "missing"}))
    return path


def quantity(value: Any, origin: str = "published", source: str = "a paper") -> dict[str, Any]:
    return {"value": value, "origin": origin, "source": source}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sms": "missing"}, "sms"),
        ({"sms": quantity(-1)}, "sms.value=-1.0: must be greater than 0"),
        ({"sms": quantity(0)}, "must be greater than 0"),
        ({"launch_us": quantity(-0.5)}, "launch_us.value=-0.5: must not be negative"),
        ({"sms": quantity(float("nan"))}, "is not a finite number"),
        ({"sms": quantity("many")}, "must be a number"),
        ({"sms": quantity(108, origin="heard")}, "must be published, measured or guess"),
        ({"sms": quantity(108, source=" ")}, "must say where the number comes from"),
        ({"sustained_share": quantity(1.5)}, "must be at most 1"),
        ({"cores": 3}, "cores=3: unknown key"),
        ({"attention": [{"kernel": "fa2"}]}, "attention"),
        ({"device_names": ["("]}, "is not a valid regular expression"),
    ],
)
def test_a_bad_record_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = _with(tmp_path, **changes)
    with pytest.raises(ConfigError) as caught:
        read_hardware(path)
    assert words in str(caught.value) and str(path) in str(caught.value)


def test_all_faults_of_a_record_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_hardware(_with(tmp_path, sms=quantity(-1), memory_gib=quantity(0)))
    assert len(caught.value.problems) == 2


def test_a_bad_product_and_a_bad_curve_are_refused(tmp_path: Path) -> None:
    table = {"precision": "bf16", "origin": "measured", "source": "here"}
    curve = {"kernel": "fa2", "direction": "forward", "head_dim": 128, "origin": "measured", "source": "here"}
    path = _with(
        tmp_path,
        products=[table | {"products": [{"m": 0, "k": 8, "n": 8, "tflops": 1.0}]}],
        attention=[curve | {"tflops": {"long": 3.0}}, curve | {"tflops": {}}, curve | {"tflops": {"512": -1.0}}],
    )
    with pytest.raises(ConfigError) as caught:
        read_hardware(path)
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize("text", ["", "- 1\n", "name: [", "a: \x00"])
def test_a_file_that_is_not_a_record_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        read_hardware(path)


def test_an_unknown_machine_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean h100"):
        load_hardware("h10")
    with pytest.raises(ConfigError, match="there is no such file"):
        load_hardware("/nowhere/mine.yaml")


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100_40"),
        ("NVIDIA A100-SXM4-80GB", "a100_80"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla T4", None),
    ],
)
def test_a_gpu_is_recognized_by_its_name(device: str, name: str | None) -> None:
    found = hardware_of_device(device)
    assert (found and found.name) == name

"""The output of nvidia-smi, and the findings that rule a node out."""

import os
from pathlib import Path

import pytest

from launch.nodes.gpus import given_gpus, gpu_faults, look_at_gpus, parse_gpus

A, B, C = (f"GPU-{letter * 8}-1111-2222-3333-444444444444" for letter in "abc")
GOOD = f"""\
0, {A}, NVIDIA H100 80GB HBM3, 31, 4, 81559, 0
1, {B}, NVIDIA H100 80GB HBM3, 29, 4, 81559, 0
"""
GOOD_ROWS = f"{A}, 0, 0\n{B}, 0, 0\n"
SICK = f"""\
0, {A}, NVIDIA A100-SXM4-80GB, 34, 71240, 81920, 0
1, {B}, NVIDIA A100-SXM4-80GB, 93, 4, 81920, 3
2, {C}, NVIDIA A100-SXM4-80GB, 30, 4, 81920, 0
"""
SICK_ROWS = f"{A}, 1, 0\n{B}, 0, 0\n{C}, 0, 1\n"
SICK_PROCESSES = f"{A}, 4711, 71230, /usr/bin/python3\n"
CONSUMER = f"0, {A}, NVIDIA GeForce RTX 4090, 35, 12, 24564, [N/A]\n"
CONSUMER_ROWS = f"{A}, [N/A], [N/A]\n"


def faults(gpus: str, rows: str = "", processes: str = "", wanted: int = 1) -> list[str]:
    return list(gpu_faults(parse_gpus(gpus, rows, processes), wanted))


def test_good_gpus_and_cards_without_ecc_have_no_faults() -> None:
    assert faults(GOOD, GOOD_ROWS, wanted=2) == []
    assert faults(CONSUMER, CONSUMER_ROWS) == []
    (card,) = parse_gpus(CONSUMER, CONSUMER_ROWS, "")
    assert card.ecc_errors is None and card.celsius == 35 and not card.rows_pending


def test_every_fault_names_its_gpu_and_what_to_do() -> None:
    reported = faults(SICK, SICK_ROWS, SICK_PROCESSES, wanted=4)
    expected = [
        "3 of 4 GPUs answer (seen: 0, 1, 2; hint: ",
        f"GPU 0 (NVIDIA A100-SXM4-80GB, {A}): memory rows wait to be remapped (hint: reset",
        f"GPU 0 (NVIDIA A100-SXM4-80GB, {A}): 71240 MiB are used by process 4711 (/usr/bin/python3, 71230 MiB) (hint",
        f"GPU 1 (NVIDIA A100-SXM4-80GB, {B}): 3 uncorrected memory errors (hint: reset",
        f"GPU 1 (NVIDIA A100-SXM4-80GB, {B}): 93 degrees Celsius",
        f"GPU 2 (NVIDIA A100-SXM4-80GB, {C}): memory rows could not be remapped (hint: have the GPU replaced)",
    ]
    assert [line[: len(start)] for line, start in zip(reported, expected, strict=True)] == expected


def test_a_program_may_have_commas_in_its_name() -> None:
    gpu, _, _ = parse_gpus(SICK, "", f"{A}, 4711, 71230, ray::Worker(a, b)\n")
    assert gpu.processes == ("process 4711 (ray::Worker(a, b), 71230 MiB)",)


@pytest.mark.parametrize(
    ("visible", "indices"),
    [(None, [0, 1, 2]), ("1,2", [1, 2]), (f"{B}", [1]), ("GPU-cccc", [2]), ("", []), ("7", [])],
)
def test_only_the_gpus_of_this_job_are_judged(visible: str | None, indices: list[int]) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    gpus = parse_gpus(SICK, SICK_ROWS, "")
    assert [gpu.index for gpu in given_gpus(gpus, environment)] == indices


def install(folder: Path, script: str) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_driver_that_fails_or_is_missing_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no nvidia-smi" in look_at_gpus(2)[0]
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    install(tmp_path, "echo 'Unable to determine the device handle for GPU0: Unknown Error'; exit 15")
    assert "Unable to determine the device handle for GPU0" in look_at_gpus(2)[0]
    install(tmp_path, "echo 'No devices were found'")
    assert "nvidia-smi failed: unexpected answer 'No devices were found'" in look_at_gpus(2)[0]


def test_old_drivers_that_know_no_remapped_rows_are_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    install(tmp_path, f"case $1 in --query-gpu=*) echo '{GOOD.splitlines()[0]}';; *) echo no; exit 2;; esac")
    assert look_at_gpus(1) == []
    assert "1 of 2 GPUs answer" in look_at_gpus(2)[0]

"""The effect of a signal depends on the state of the run."""

import os
import pty
import signal
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tests.support.pestering import run_pestered
from tests.support.runs import environment

BEGINNING = """
import os, signal, sys
from pretrain.run.stop_signals import stop_on_signals

def send(number):
    os.kill(os.getpid(), number)

"""


def run_script(script: str, pestered_by: signal.Signals | None = None) -> tuple[int, str]:
    return run_pestered([sys.executable, "-c", BEGINNING + dedent(script)], pestered_by)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_stop_signals_do_not_kill_a_finished_run_that_exits(
    number: signal.Signals,
) -> None:
    script = """
    with stop_on_signals() as stop_requested:
        pass
    print("trained", flush=True)
    """
    assert run_script(script, pestered_by=number) == (0, "trained\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_a_run_asks_for_a_stop(number: signal.Signals) -> None:
    script = f"""
    with stop_on_signals() as stop_requested:
        send({number.value})
        print(stop_requested())
    """
    assert run_script(script) == (0, "True\n")


def test_under_nohup_a_closed_terminal_does_not_stop_a_run() -> None:
    script = """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_on_signals() as stop_requested:
        send(signal.SIGHUP)
        print(stop_requested())
    """
    assert run_script(script) == (0, "False\n")


def test_a_closed_terminal_stops_a_run_with_its_exit_code(tmp_path: Path) -> None:
    script = f"""
    import time
    from pathlib import Path
    with stop_on_signals() as stop_requested:
        print("up", flush=True)
        while not stop_requested():
            time.sleep(0.01)
        print("to a terminal that is gone", flush=True)
    Path({str(tmp_path / "saved")!r}).touch()
    sys.exit(75)
    """
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, [sys.executable, "-c", BEGINNING + dedent(script)], environment())
    assert b"up" in os.read(terminal, 100)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 75
    assert (tmp_path / "saved").exists()


def test_a_second_keyboard_interrupt_ends_a_run_at_once() -> None:
    script = """
    with stop_on_signals():
        send(signal.SIGINT)
        send(signal.SIGINT)
        print("continues")
    """
    assert run_script(script) == (-signal.SIGINT, "")


def test_a_signal_ends_a_failed_run_like_any_process() -> None:
    script = """
    try:
        with stop_on_signals():
            raise ValueError
    except ValueError:
        send(signal.SIGTERM)
    """
    assert run_script(script) == (-signal.SIGTERM, "")

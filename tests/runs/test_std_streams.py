"""The command works with closed streams, and reports files that the system refuses in one line."""

import subprocess
import sys

import pytest

from pretrain.exit_codes import ExitCode
from tests.support.runs import environment, program_command

SHUT = [">&-", "2>&-", "<&-", ">&- 2>&- <&-"]


def shell(redirection: str, *words: str) -> "subprocess.CompletedProcess[str]":
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", *words]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)


@pytest.mark.parametrize("redirection", SHUT)
def test_closed_streams_change_no_outcome(tmp_path, redirection):
    done = shell(redirection, *program_command(), "show-config")
    assert (done.returncode, done.stderr) == (0, "") and ("optim:" in done.stdout) == (">&-" not in redirection.split())
    done = shell(redirection, *program_command(), "status", str(tmp_path / "nowhere"))
    assert done.returncode == ExitCode.MISTAKE and "Traceback" not in done.stderr


@pytest.mark.parametrize("redirection", SHUT)
def test_no_file_gets_the_number_of_a_closed_stream(tmp_path, redirection):
    program = (
        "import os, sys\nfrom pretrain.std_streams import open_closed_streams\nopen_closed_streams()\n"
        "print('to nothing'); print('to nothing', file=sys.stderr); sys.stdin.read()\n"
        f"sys.exit(os.open({str(tmp_path / 'file')!r}, os.O_CREAT))"
    )
    assert shell(redirection + (" </dev/null" * ("<" not in redirection)), sys.executable, "-c", program).returncode > 2


def test_a_refused_file_is_reported_in_one_line(tmp_path):
    done = shell(">/dev/full", *program_command(), "show-config")
    assert done.returncode == ExitCode.REFUSED
    assert done.stderr.splitlines()[0].endswith("failed: [Errno 28] No space left on device")
    assert done.stderr.count("\n") == 1
    name = "x" * 300
    done = shell("", *program_command(), "checkpoint", "list", name)
    assert done.returncode == ExitCode.REFUSED and done.stderr.count("\n") == 1
    assert f"File name too long: '{name}" in done.stderr

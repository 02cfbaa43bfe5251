"""The reason of a failure as the last thing that torchrun prints.

torchrun (torch 2.13) ends with its own traceback and a table of failed ranks, about 35 lines; a message that a rank
printed before is easily overlooked. The table shows what a rank writes into TORCHELASTIC_ERROR_FILE.
"""

import json
import os
import time
from pathlib import Path

_FILE = "TORCHELASTIC_ERROR_FILE"
_LAUNCHERS = ("torchrun", "torch.distributed.run", "torch.distributed.launch")


def leave_reason(text: str) -> bool:
    """Have torchrun print the text at its end; returns whether it will. False without torchrun."""
    path = os.environ.get(_FILE)
    if not path or not _is_child_of_launcher():
        return False
    # `py_callstack` is what the table prints, under the label "traceback".
    reason = {"message": text, "extraInfo": {"py_callstack": text, "timestamp": str(int(time.time()))}}
    try:
        Path(path).write_text(json.dumps({"message": reason}), encoding="utf-8")
    except OSError:
        return False
    return True


def _is_child_of_launcher() -> bool:
    """Programs that a rank starts inherit the variable too, but torchrun does not print their text."""
    try:
        command = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return False
    return any(Path(argument).name in _LAUNCHERS for argument in command.split("\0"))

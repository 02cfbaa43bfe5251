"""The file of a record: whether it can be written, before anything is measured."""

from pathlib import Path

from data_pipeline.storage.atomic_write import partial_of
from pretrain.config.errors import ConfigError, RunError
from pretrain.planner.time.hardware import read_hardware

OPTION = "--record"
ENDINGS = (".yaml", ".yml")


def check_destination(path: Path) -> None:
    """Raises RunError if the file cannot be written, or is something else than a record of a machine.

    An older record is replaced.
    """
    if path.suffix not in ENDINGS:
        raise RunError(f"{OPTION} {path}: must end in .yaml", f"as in {OPTION} {path.with_suffix('.yaml')}")
    if path.is_dir():
        raise RunError(f"{OPTION} {path}: is a folder", f"give a file in it, as in {path / 'machine.yaml'}")
    if not path.parent.is_dir():
        raise RunError(f"{OPTION} {path}: there is no folder {path.parent}", f"make it: mkdir -p {path.parent}")
    trial = partial_of(path)
    try:
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise RunError(f"{OPTION} {path}: cannot be written ({error.strerror})", "choose another folder") from None
    if path.exists():
        try:
            read_hardware(path)
        except ConfigError as error:
            why = error.one_line.partition(" (")[0]
            raise RunError(
                f"{OPTION} {path}: exists and is not a record of a machine that this version reads, so it is not "
                f"replaced: {why}",
                "choose another name, or remove the file",
            ) from None

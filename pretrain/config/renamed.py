"""Names that the configuration used before. A refusal of an old name gives the new one."""

from pretrain.config.errors import Problem

RENAMED = {
    "engine.gather": "engine.param_gather",
    "engine.meeting_minutes": "engine.init_timeout_minutes",
}
"""Old name -> new name: a key, a value of a key (`KEY=VALUE`), or a file of a config group (`GROUP=FILE`)."""


def renamed_key(key: str, value: object, where: str = "") -> Problem | None:
    """The refusal of a key that has another name now. `where`: the file that holds it."""
    new = RENAMED.get(key)
    return None if new is None else Problem(where + key, value, f"was renamed to {new}", f"write {new}=...")


def renamed_value(key: str, value: object) -> str | None:
    """A hint for a value, or a file of a config group, that has another name now."""
    new = RENAMED.get(f"{key}={value}")
    return None if new is None else f"it was renamed: write {new}"

"""A JSON parser like `json.loads`, except that an extreme value of one key does not make the line unreadable.

Python rejects integers of more than 4,300 digits and values nested some hundred levels deep. A line rejected for that
reason is parsed again without these limits: integers become floats, and values nested inside the top-level value are
checked but left empty.
"""

import json
import re
from typing import Any

_NO_STRING = r'[^\s\[\]{}",:]+'
_TOKEN = re.compile(
    rf"""[ \t\n\r]*+(?:(?P<open>[\[{{])|(?P<close>[\]}}])|(?P<comma>,)|(?P<colon>:)
    |(?P<string>"[^"\\]*+(?:\\.[^"\\]*+)*+")|(?P<atom>{_NO_STRING}))""",
    re.VERBOSE | re.DOTALL,
)
_SPACE = re.compile(r"[ \t\n\r]*")
_CLOSING = {"[": "]", "{": "}"}


def parse_json(text: str) -> Any:
    """The parsed value. Nested containers may be empty although they were not. Raises ValueError for invalid JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError):
        return _loads(_flat(text))


def kind_of(value: Any) -> str:
    """The JSON name of a value's type."""
    if value is None:
        return "null"
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "true or false"}
    return kinds.get(type(value), "a number")


def _loads(text: str) -> Any:
    return json.loads(text, parse_int=float)


def _flat(text: str) -> str:
    """The same JSON text, with everything nested inside the top-level value checked and removed."""
    kept: list[str] = []
    opened: list[str] = []
    position, wanted = 0, "value"
    while wanted != "end of line":
        match = _TOKEN.match(text, position)
        kind = match.lastgroup if match else None
        token = match[kind] if match and kind else ""
        depth = len(opened)
        if kind == "string" and "key" in wanted:
            wanted = "colon"
        elif kind == "colon" and wanted == "colon":
            wanted = "value"
        elif kind == "comma" and "comma" in wanted:
            wanted = "key" if opened[-1] == "{" else "value"
        elif kind == "open" and "value" in wanted:
            opened.append(token)
            wanted = "key or end" if token == "{" else "value or end"
        elif kind == "close" and "end" in wanted and _CLOSING[opened[-1]] == token:
            opened.pop()
            wanted = "comma or end" if opened else "end of line"
        elif kind in ("string", "atom") and "value" in wanted:
            wanted = "comma or end" if opened else "end of line"
        else:
            raise json.JSONDecodeError(f"Expecting {wanted}", text, position)
        assert match is not None
        position = match.end()
        if min(depth, len(opened)) <= 1:  # the top-level value, and the brackets of those inside
            kept.append(token)
        elif kind in ("string", "atom"):
            _loads(token)
    position = _SPACE.match(text, position).end()  # type: ignore[union-attr]  # it always fits
    if position < len(text):
        raise json.JSONDecodeError("Extra data", text, position)
    return "".join(kept)

"""Finds keys and tokens that grant access."""

import re

from data_pipeline.cleaning.personal import ENDS, UNJOINED, Spans, apart, begins

_BODY = r"(?:[\w\s+/=\\:,.()@\"']|-(?!----))"


def _marked(mark: str) -> str:
    """A lookbehind over a key's first characters, so that `re` quickly skips to the next candidate."""
    return mark + begins("-", mark)


# A literal that the text must contain, and the pattern that is tried only then. Most texts contain none of them.
_KEYS = tuple(
    (mark, re.compile(pattern))
    for mark, pattern in (
        # The body is base64, with headers or as a string in code. A key cut off at the end of the document counts too.
        (
            "PRIVATE KEY",
            rf"-----BEGIN (?:[A-Z0-9]{{1,16}} ){{0,4}}PRIVATE KEY(?: BLOCK)?-----{_BODY}{{64,}}+"
            r"(?:-----END [A-Z0-9 ]{1,64}-----|\Z)",
        ),
        *((mark, rf"{_marked(mark)}[0-9A-Z]{{16}}{ENDS}") for mark in ("AKIA", "ASIA")),
        *((mark, rf"{_marked(mark)}[A-Za-z0-9]{{36,255}}{ENDS}") for mark in ("ghp_", "gho_", "ghu_", "ghs_", "ghr_")),
        ("github_pat_", rf"{_marked('github_pat_')}\w{{22,255}}(?!\w)"),
        ("glpat-", rf"{_marked('glpat-')}[\w-]{{20,255}}(?![\w-])"),
        ("hf_", rf"{_marked('hf_')}[A-Za-z0-9]{{34}}{ENDS}"),
        ("sk-", rf"{_marked('sk-')}(?=[\w-]{{0,200}}\d)(?:[a-z]{{1,8}}\d{{0,2}}-){{0,2}}[\w-]{{32,255}}(?![\w-])"),
        ("_live_", rf"{_marked('[sr]k_live_')}[A-Za-z0-9]{{16,255}}{ENDS}"),
        ("xox", rf"{_marked('xox[abeoprs]-')}[\w-]{{10,255}}(?![\w-])"),
        ("AIza", rf"{_marked('AIza')}[\w-]{{35}}{UNJOINED}"),
        ("eyJ", rf"{_marked('eyJ')}[\w-]{{8,}}+\.eyJ[\w-]{{8,}}+\.[\w-]{{8,}}+"),
    )
)


def secret_keys(text: str) -> Spans:
    """Private key blocks, JSON web tokens, and keys of services with a recognizable format."""
    return apart([match.span() for mark, key in _KEYS if mark in text for match in key.finditer(text)])

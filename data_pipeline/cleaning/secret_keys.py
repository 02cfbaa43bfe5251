"""Where keys and tokens that open something stand in a text."""

import re

from data_pipeline.cleaning.personal import Spans, apart

_NO_WORD = r"(?<![\w-])"
_BODY = r"(?:[\w\s+/=\\:,.()@\"']|-(?!----))"

# A mark that the text must hold, and the pattern that is tried only then: most texts hold none of the marks.
_KEYS = tuple(
    (mark, re.compile(pattern))
    for mark, pattern in (
        # The body is base64, with headers or as a string in code; cut at the end of the document it is a key as well.
        (
            "PRIVATE KEY",
            rf"-----BEGIN (?:[A-Z0-9]{{1,16}} ){{0,4}}PRIVATE KEY(?: BLOCK)?-----{_BODY}{{64,}}+"
            r"(?:-----END [A-Z0-9 ]{1,64}-----|\Z)",
        ),
        ("AKIA", _NO_WORD + r"AKIA[0-9A-Z]{16}(?!\w)"),
        ("ASIA", _NO_WORD + r"ASIA[0-9A-Z]{16}(?!\w)"),
        *((mark, _NO_WORD + mark + r"[A-Za-z0-9]{36,255}(?!\w)") for mark in ("ghp_", "gho_", "ghu_", "ghs_", "ghr_")),
        ("github_pat_", _NO_WORD + r"github_pat_\w{22,255}(?!\w)"),
        ("glpat-", _NO_WORD + r"glpat-[\w-]{20,255}(?![\w-])"),
        ("hf_", _NO_WORD + r"hf_[A-Za-z0-9]{34}(?!\w)"),
        ("sk-", _NO_WORD + r"sk-(?=[\w-]{0,200}\d)(?:[a-z]{1,8}\d{0,2}-){0,2}[\w-]{32,255}(?![\w-])"),
        ("_live_", _NO_WORD + r"[sr]k_live_[A-Za-z0-9]{16,255}(?!\w)"),
        ("xox", _NO_WORD + r"xox[abeoprs]-[\w-]{10,255}(?![\w-])"),
        ("AIza", _NO_WORD + r"AIza[\w-]{35}(?![\w-])"),
        ("eyJ", _NO_WORD + r"eyJ[\w-]{8,}+\.eyJ[\w-]{8,}+\.[\w-]{8,}+"),
    )
)


def secret_keys(text: str) -> Spans:
    """Private key blocks, JSON web tokens, and keys of services whose writing gives them away."""
    return apart([match.span() for mark, key in _KEYS if mark in text for match in key.finditer(text)])

"""Masks personal data and secrets, or drops documents that contain them."""

from collections.abc import Callable
from dataclasses import dataclass

from data_pipeline.cleaning.page import Page
from data_pipeline.cleaning.personal import Spans, cards, emails, ip_addresses, phones
from data_pipeline.cleaning.secret_keys import secret_keys
from data_pipeline.cleaning.step import Edit, PiiAction, Rule, Step

# Order matters: a card number could also match as a telephone number.
_FINDERS: tuple[tuple[str, Callable[[str], Spans]], ...] = (
    ("key", secret_keys),
    ("email", emails),
    ("card", cards),
    ("ip", ip_addresses),
    ("phone", phones),
)


@dataclass(frozen=True, kw_only=True)
class Pii(Step):
    """Each kind is ignored (off), replaced by a placeholder such as <email> (mask), or drops the document (drop)."""

    email: PiiAction = "mask"
    ip: PiiAction = "mask"
    """Public addresses only."""
    phone: PiiAction = "off"
    card: PiiAction = "mask"
    key: PiiAction = "mask"
    """Private keys, access tokens."""

    name = "pii"
    version = 2
    rules = tuple(
        rule
        for kind, says in (
            ("email", "e-mail address"),
            ("ip", "public IPv4 or IPv6 address"),
            ("phone", "telephone number"),
            ("card", "payment card number (Luhn)"),
            ("key", "private key, access token"),
        )
        for rule in (Rule(kind, f"{says}: drop", kind), Rule(kind, f"{says}: mask", kind, changes=True))
    )

    def apply(self, page: Page) -> str | Edit | None:
        text = page.text
        for kind, find in _FINDERS:
            if getattr(self, kind) == "drop" and find(text):
                return kind
        changes: dict[str, int] = {}
        for kind, find in _FINDERS:
            if getattr(self, kind) == "mask" and (spans := find(text)):
                text = _masked(text, spans, f"<{kind}>")
                changes[kind] = len(spans)
        return Edit(text, changes) if changes else None


def _masked(text: str, spans: Spans, placeholder: str) -> str:
    parts, done = [], 0
    for begin, end in spans:
        parts += [text[done:begin], placeholder]
        done = end
    return "".join([*parts, text[done:]])

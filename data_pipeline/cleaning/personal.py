"""Where personal data stand in a text: e-mail and IP addresses, telephone and card numbers.

Each finder returns the spans in order, none overlapping. All quantifiers are bounded or possessive and no match can
begin within a run that another attempt has scanned, so that the time is linear in the text, whatever it holds.
"""

import functools
import ipaddress
import re

Spans = list[tuple[int, int]]

_HOST = re.compile(r"@(?:[^\W_][\w-]{0,62}\.){1,8}[^\W\d_]{2,24}(?![\w@-])")
_MAILBOX_MARKS = frozenset("._+-%'~")
_MAILBOX_CHARS = 64


def emails(text: str) -> Spans:
    """Of any script; the domain must end in letters. The mailbox is read backwards from the @ sign."""
    spans: Spans = []
    for host in _HOST.finditer(text):
        at = begin = host.start()
        least = max(spans[-1][1] if spans else 0, at - _MAILBOX_CHARS)
        while begin > least and (text[begin - 1].isalnum() or text[begin - 1] in _MAILBOX_MARKS):
            begin -= 1
        while begin < at and text[begin] in _MAILBOX_MARKS:
            begin += 1
        if begin < at:
            spans.append((begin, host.end()))
    return spans


_IP = re.compile(
    r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)"
    r"|(?<![\w:.])[23][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])"
)
_VERSION_BEFORE = re.compile(
    r"(?:\b(?:v|ver|version|release|rev|revision|build)[.:]?\s{0,2}|[^\W\d_]-|[=<>~]=\s?)$", re.I
)
VERSION_PART = 32
"""Four numbers below this are taken for a version: so are 2 in 10,000 of all addresses."""


def ip_addresses(text: str) -> Spans:
    """IPv4 and IPv6, only public ones: the others name no person. Versions such as 3.11.7.1 are left alone."""
    return [match.span() for match in _IP.finditer(text) if _is_address(match.group(), text, match.start())]


def _is_address(written: str, text: str, begin: int) -> bool:
    if ":" not in written:
        if all(int(part) < VERSION_PART for part in written.split(".")):
            return False
        if _VERSION_BEFORE.search(text[max(0, begin - 12) : begin]):
            return False
    return _is_public(written)


@functools.lru_cache(1 << 12)
def _is_public(written: str) -> bool:
    try:
        return ipaddress.ip_address(written).is_global
    except ValueError:
        return False


_PHONE = re.compile(
    r"(?<![\w+])\+\d(?:[ .()/-]{0,2}\d){7,14}(?![\w-])"
    r"|(?<![\w.+/-])(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])[2-9]\d\d[ .-]\d{4}(?![\w-]|\.\d)"
)


def phones(text: str) -> Spans:
    """Numbers with a country code (+49 30 1234567), and North American ones in their usual writing."""
    return [match.span() for match in _PHONE.finditer(text)]


_CARD = re.compile(
    r"(?<![\w.+-])(?:[2-6]\d{12,18}|[2-6]\d{3}([ -])\d{4}\1\d{4}\1\d{1,7}|3[47]\d\d([ -])\d{6}\2\d{5})(?![\w-]|\.\d)"
)


def cards(text: str) -> Spans:
    """Payment cards: an issuer's prefix and length, and the check digit (Luhn)."""
    return [match.span() for match in _CARD.finditer(text) if is_card(re.sub("[ -]", "", match.group()))]


def is_card(digits: str) -> bool:
    return _has_issuer(digits) and _luhn(digits)


def _has_issuer(digits: str) -> bool:
    two, three, four, length = int(digits[:2]), int(digits[:3]), int(digits[:4]), len(digits)
    if digits[0] == "4":
        return length in (13, 16, 19)
    if 51 <= two <= 55 or 2221 <= four <= 2720:
        return length == 16
    if two in (34, 37):
        return length == 15
    if two in (36, 38, 39) or 300 <= three <= 305:
        return 14 <= length <= 19
    return 16 <= length <= 19 and (two in (62, 65) or four == 6011 or 644 <= three <= 649 or 3528 <= four <= 3589)


def _luhn(digits: str) -> bool:
    values = [int(digit) for digit in reversed(digits)]
    return (sum(values[::2]) + sum(sum(divmod(2 * value, 10)) for value in values[1::2])) % 10 == 0

"""Finds personal data in a text: e-mail and IP addresses, telephone and card numbers.

Each finder returns its spans in order and without overlap. All quantifiers are bounded or possessive, and no match can
begin within a run that another attempt has scanned, so the time is linear in the length of any text.
"""

import functools
import ipaddress
import re

Spans = list[tuple[int, int]]

ENDS = r"(?!_*+[^\W_])"
"""The word must end here; Markdown's _ may follow."""
UNJOINED = r"(?!_*+-?[^\W_])"
"""The word must end here, and a hyphen may not join another word to it. A dash may follow."""

_HOST = re.compile(rf"@(?:[^\W_][\w-]{{0,62}}\.){{1,8}}[^\W\d_]{{2,24}}(?!@){UNJOINED}")
_MAILBOX_MARKS = frozenset("._+-%'~")
_MAILBOX_CHARS = 64


def begins(joined: str, begin: str = ".") -> str:
    """A lookbehind from after `begin`: no word, and none of `joined`, may end before it. Markdown's _ or __ may."""
    emphasis = "".join(rf"|(?<={mark}{begin})(?<![\w{joined}]{mark}{begin})" for mark in ("_", "__"))
    return rf"(?:(?<![\w{joined}]{begin}){emphasis})"


def apart(spans: Spans) -> Spans:
    """The spans in order, without those that begin within an earlier one."""
    kept: Spans = []
    for begin, end in sorted(spans):
        if not kept or begin >= kept[-1][1]:
            kept.append((begin, end))
    return kept


def emails(text: str) -> Spans:
    """E-mail addresses in any script. The domain must end in letters. The mailbox is read backwards from the @ sign."""
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


# Each pattern begins with a character it consumes and looks back from there, so that `re` quickly skips to the next
# candidate.
_IPV4 = re.compile(rf"[0-9]{begins('.')}[0-9]{{0,2}}\.(?:[0-9]{{1,3}}\.){{2}}[0-9]{{1,3}}{ENDS}(?!\.\d)", re.DOTALL)
_IPV6 = re.compile(rf"[23]{begins(':.')}[0-9A-Fa-f]{{3}}(?::[0-9A-Fa-f]{{0,4}}){{2,7}}{ENDS}(?!:)", re.DOTALL)
_VERSION_BEFORE = re.compile(
    r"(?:\b(?:v|ver|version|release|rev|revision|build)[.:]?\s{0,2}|[^\W\d_]-|[=<>~]=\s?)$", re.I
)
VERSION_PART = 32
"""Four numbers below this are taken for a version. So are 2 in 10,000 of all addresses."""


def ip_addresses(text: str) -> Spans:
    """Public IPv4 and IPv6 addresses; others do not identify a person. Versions such as 3.11.7.1 are left alone."""
    v4 = [match.span() for match in _IPV4.finditer(text) if _is_address(text, *match.span())]
    v6 = [match.span() for match in _IPV6.finditer(text) if _is_public(match.group())]
    return sorted(v4 + v6)


def _is_address(text: str, begin: int, end: int) -> bool:
    written = text[begin:end]
    if all(int(part) < VERSION_PART for part in written.split(".")):
        return False
    return not _VERSION_BEFORE.search(text[max(0, begin - 12) : begin]) and _is_public(written)


@functools.lru_cache(1 << 12)
def _is_public(written: str) -> bool:
    try:
        return ipaddress.ip_address(written).is_global
    except ValueError:
        return False


_DASH_BEFORE = r"(?<=--.)"
_NUMBER_ENDS = rf"{UNJOINED}(?!\.\d)"
_PHONE_ABROAD = re.compile(rf"\+{begins('+')}[1-9](?:[ ()/-]{{0,2}}[0-9]){{7,14}}{_NUMBER_ENDS}", re.DOTALL)
_PHONE_NANP = re.compile(
    rf"[1-9(](?:{begins('.+/-')}|{_DASH_BEFORE})"
    r"(?:(?<=1)[ .-](?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[ .-])"
    r"|(?<=\()[2-9][0-9]{2}\) ?|(?<=[2-9])[0-9]{2}[ .-])[2-9][0-9]{2}[.-][0-9]{4}"
    rf"{_NUMBER_ENDS}",
    re.DOTALL,
)


def phones(text: str) -> Spans:
    """Numbers with a country code (+49 30 1234567), and North American numbers as usually written."""
    spans = [match.span() for pattern in (_PHONE_ABROAD, _PHONE_NANP) for match in pattern.finditer(text)]
    return apart(spans)


_CARD = re.compile(
    rf"[2-6](?:{begins('.+-')}|{_DASH_BEFORE})"
    r"(?:[0-9]{12,18}|[0-9]{3}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{1,7}|[47][0-9]{2}([ -])[0-9]{6}\2[0-9]{5})"
    rf"{_NUMBER_ENDS}",
    re.DOTALL,
)


def cards(text: str) -> Spans:
    """Payment cards, by issuer prefix, length and check digit (Luhn)."""
    return [match.span() for match in _CARD.finditer(text) if is_card(match.group().replace(" ", "").replace("-", ""))]


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


_DOUBLED = {str(digit): sum(divmod(2 * digit, 10)) for digit in range(10)}


def _luhn(digits: str) -> bool:
    return (sum(map(int, digits[::-2])) + sum(map(_DOUBLED.__getitem__, digits[-2::-2]))) % 10 == 0

"""Documents for cleaning.json: real text, scripts of the world, oddities, and families that cross each threshold."""

import ast
import itertools
import pydoc_data.topics
import random
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

SENTENCES = {
    "de": "Das Haus am Ende der Straße steht seit Jahren leer. Niemand weiß, wem es gehört, und keiner fragt danach!",
    "fr": "L'été dernier, nous avons marché jusqu'à la mer. Qu'est-ce que tu en penses ? C'était « magnifique ».",
    "es": "¿Dónde está la biblioteca? Los libros que buscas están en el segundo piso, junto a la ventana.",
    "ru": "Поезд пришёл вовремя, но на платформе никого не было. Где же они? Мы ждали до самого вечера.",
    "el": "Το καλοκαίρι πηγαίνουμε στο νησί. Η θάλασσα είναι ήσυχη και ο ήλιος λάμπει όλη μέρα.",
    "ar": "وصل القطار في موعده، لكن لم يكن أحد على الرصيف. هل تعرف أين ذهبوا؟ انتظرنا حتى المساء.",
    "he": "הרכבת הגיעה בזמן, אבל לא היה איש ברציף. איפה כולם? חיכינו עד הערב.",
    "hi": "ट्रेन समय पर आई, लेकिन प्लेटफ़ॉर्म पर कोई नहीं था। वे कहाँ गए? हमने शाम तक इंतज़ार किया।",
    "zh": "火车准时到达，但站台上没有人。他们去哪儿了？我们一直等到晚上！",
    "ja": "電車は時間通りに着いたが、ホームには誰もいなかった。みんなどこへ行ったのだろう？「夕方まで待った」。",
    "ko": "기차는 제시간에 도착했지만 승강장에는 아무도 없었다. 모두 어디로 갔을까? 우리는 저녁까지 기다렸다.",
    "th": "รถไฟมาถึงตรงเวลา แต่ไม่มีใครอยู่บนชานชาลา พวกเขาไปไหนกันหมด เรารอจนถึงเย็น",
}


def word(number: int) -> str:
    """Words that are all different, mostly five to seven letters."""
    syllables = ("ba", "ce", "di", "fo", "gu", "la", "me", "ni", "so", "tu")
    return "".join(syllables[int(digit)] for digit in f"{number * 37 % 1000:03}") + "rstvxy"[number % 6 :][: number % 3]


def words(count: int, start: int = 0) -> list[str]:
    return [word(number) for number in range(start, start + count)]


def prose(count: int, start: int = 0) -> str:
    """Sentences in lines, with stop words."""
    lines = [
        f"The {' '.join(words(7, start + 9 * line))} and that {word(start + 9 * line + 8)}." for line in range(count)
    ]
    return "\n".join(lines)


def with_grams(n: int, kinds: int, copies: int, size: int) -> str:
    """Some sequences of n words, each so often, among `size` different words and a few stop words."""
    parts = iter([*words(size), "the", "of", "and"])
    gap = max(1, size // (kinds * copies + 1))
    out: list[str] = []
    for number in range(kinds * copies):
        out += [*itertools.islice(parts, gap), *words(n, 500 + n * (number % kinds))]
    return " ".join([*out, *parts])


def joined(*parts: str | list[str], by: str = "\n") -> str:
    return by.join(piece for part in parts for piece in ([part] if isinstance(part, str) else part))


def changed(count: int, lines: int, change: Callable[[str], str]) -> str:
    """Prose of which the first `count` lines are changed."""
    return joined([change(line) if i < count else line for i, line in enumerate(prose(lines).split("\n"))])


def unended(count: int) -> str:
    return joined([line if i < count else line[:-1] for i, line in enumerate(prose(30).split("\n"))])


Family = Callable[[int], str]
FAMILIES: dict[str, tuple[str, Family, range]] = {
    "few words": ("gopher_quality", lambda k: joined("the of", words(k), by=" "), range(40, 56)),
    "many words": ("gopher_quality", lambda k: joined("the of", words(k), by=" "), range(54, 64)),
    "short words": ("gopher_quality", lambda k: joined("the of", words(60 - k), ["a"] * k, by=" "), range(20, 58)),
    "long words": ("gopher_quality", lambda k: joined("the of", words(60), "lengthening" * k, by=" "), range(10, 50)),
    "hashes": ("gopher_quality", lambda k: prose(6) + " #" * k, range(4, 14)),
    "ellipses": ("gopher_quality", lambda k: prose(6) + " more..." * k, range(4, 14)),
    "one-sign ellipses": ("gopher_quality", lambda k: prose(6) + " more…" * k, range(4, 14)),
    "bullets": ("gopher_quality", lambda k: changed(k, 20, lambda line: " - " + line), range(15, 21)),
    "other bullets": ("gopher_quality", lambda k: changed(k, 20, lambda line: "•" + line), range(15, 21)),
    "ellipsis lines": ("gopher_quality", lambda k: changed(k, 20, lambda line: line + ".. "), range(3, 9)),
    "alpha words": ("gopher_quality", lambda k: prose(6) + " 1234" * k, range(4, 24)),
    "stop words": ("gopher_quality", lambda k: joined(words(60), ["the", "with", "have"][:k], by=" "), range(0, 4)),
    "paragraphs": ("gopher_repetition", lambda k: joined(words(10), [word(1)] * k, by="\n\n"), range(1, 8)),
    "paragraph chars": (
        "gopher_repetition",
        lambda k: joined(words(12), prose(2), ["x" * k] * 4, by="\n\n\n"),
        range(4, 30),
    ),
    "lines": ("gopher_repetition", lambda k: joined(words(10), [word(1)] * k), range(1, 8)),
    "line chars": ("gopher_repetition", lambda k: joined(words(12), prose(2), ["x" * k] * 4), range(4, 30)),
    **{f"top {n}-gram": ("gopher_repetition", lambda k, n=n: with_grams(n, 1, k, 60), range(2, 14)) for n in (2, 3, 4)},
    **{
        f"{n}-grams": ("gopher_repetition", lambda k, n=n: with_grams(n, 3, 2, k), range(22 * n, 9 * n, -1))
        for n in range(5, 11)
    },
    "sentences": ("c4", lambda k: prose(k), range(2, 8)),
    "line words": ("c4", lambda k: joined(prose(6), " ".join(words(k)) + "."), range(1, 5)),
    "long word": ("c4", lambda k: joined(prose(6), f"This one is {'x' * k}."), range(36, 44)),
    "punctuated lines": ("fineweb", unended, range(1, 7)),
    "short lines": ("fineweb", lambda k: joined(prose(8), [f"{w} is short." for w in words(k, 300)]), range(12, 24)),
    "thirty": ("fineweb", lambda k: joined(prose(3), [w.ljust(k, "x") + "." for w in words(7, 300)]), range(26, 33)),
    "repeated line": ("fineweb", lambda k: joined(prose(8), ["y" * k + "."] * 2), range(1, 12)),
    "newlines": ("fineweb", lambda k: prose(8) + "\n" * k, range(5, 40)),
}

PROSE = prose(6)
ODD = (
    *("", "\n", "\n\n\n", " ", "\t \n", "...", "…", ".", "a", "{", "\x00", "\u2028", "\ufeff", "🙂🙂🙂", "a\r\nb\r\n"),
    *("{}" * 30, "no space " * 40, "nospace" * 60, "the and\n" * 30, "# " * 60),
    joined(["the same words here."] * 12, by="\n\n"),
    *(
        joined(PROSE, line)
        for line in (
            "Lorem Ipsum is here now.",
            "Lorem Ipsum is here now",
            "Please enable JavaScript to see this.",
            "Please enable java[2]script to see this.",
            "We use cookies on this site.",
            "Read our Privacy Policy, please.",
            "A line with { in it.",
            "A line with { in it",
            "A line of javascript with { in it.",
            "A privacy policy with { in it.",
            "It is so.[1][edit]",
            "[1] [edit] [citation needed].",
            "This line trails off...",
            'He said "so be it"',
            "and she said 'never'",
        )
    ),
    *(
        PROSE.replace(old, new)
        for old, new in (("\n", "\r\n"), ("\n", "\u2028"), (".", "。"), (".", " ."), (" ", "\u00a0"))
    ),
    f"  {PROSE}  \n\n",
    # Sequences that are equal only when written without spaces.
    joined(["ab c"] * 3, words(40), ["a bc"] * 3, by=" "),
    joined(words(60), "x yz w v u", words(9, 80), ["xy z w v u"] * 4, by=" "),
)


def library_documents() -> Iterator[tuple[str, str]]:
    """Prose and sources of the running Python's standard library."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    chance = random.Random(7)
    docstrings, sources = [], []
    for path in sorted(folder.glob("*.py")) + sorted(folder.glob("[a-z]*/*.py")):
        if path.parts[-2] in ("site-packages", "test", "lib2to3", "idlelib"):
            continue
        source = path.read_text(encoding="utf-8", errors="ignore")
        try:
            tree = ast.parse(source)
        except SyntaxError:
            continue
        texts = [
            ast.get_docstring(node) or ""
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        ]
        docstrings += [text for text in texts if 400 < len(text) < 1500]
        if len(source) > 3000:
            sources.append(source[1000:1800])
    topics = [text[:900] for text in pydoc_data.topics.topics.values() if len(text) > 500]
    yield from (("docstring", text) for text in chance.sample(docstrings, 28))
    yield from (("source", text) for text in chance.sample(sources, 12))
    yield from (("manual", text) for text in chance.sample(topics, 18))


def random_document(chance: random.Random) -> str:
    """Build a text from few different pieces: sequences and lines repeat, also with other word borders."""
    syllables, marks = ("a", "b", "ab", "ba", "bab"), ("x.y", "...", "#", "-", "12", "Mr.", "don't")
    common = ("the", "of", "and", "to", "that")
    pieces = chance.choice((syllables, (*common, *marks), (*common, *marks, *words(chance.randint(20, 400)))))
    ends = chance.choice(((" ",), (" ", " ", "\n"), (" ", ". ", ".\n", ".\n\n"), (" ",) * 8 + (".\n",)))
    return "".join(chance.choice(pieces) + chance.choice(ends) for _ in range(chance.randint(1, 400)))

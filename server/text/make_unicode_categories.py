"""Writes unicode_categories.inc: the general category of every code point.

The categories are those of the regex engine inside the Hugging Face `tokenizers` package, asked
class by class, so that pre-tokenisation here and there agree on which Unicode version is meant.

    .venv/bin/python server/text/make_unicode_categories.py
"""

import pathlib
import sys

from tokenizers import Regex, pre_tokenizers

# The order of enum Category in unicode_categories.h.
CATEGORIES = (
    "Cn Cc Cf Co Cs Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp"
).split()
LIMIT = 0x110000
CODE_POINTS = [c for c in range(LIMIT) if not 0xD800 <= c <= 0xDFFF]
TEXT = "".join(map(chr, CODE_POINTS))


def members(name):
    """Indices into TEXT of the characters in a category."""
    split = pre_tokenizers.Split(Regex(r"\p{%s}" % name), "removed")
    at = 0
    for _, (begin, end) in split.pre_tokenize_str(TEXT):
        yield from range(at, begin)
        at = end
    yield from range(at, len(TEXT))


def runs():
    """(length, category index) pairs that cover all code points in order."""
    table = bytearray(LIMIT)
    for c in range(0xD800, 0xE000):
        table[c] = CATEGORIES.index("Cs")
    for index, name in enumerate(CATEGORIES):
        if name in ("Cn", "Cs"):
            continue
        for at in members(name):
            assert table[CODE_POINTS[at]] == 0, (name, hex(CODE_POINTS[at]))
            table[CODE_POINTS[at]] = index
    begin = 0
    for c in range(1, LIMIT + 1):
        if c == LIMIT or table[c] != table[begin]:
            yield c - begin, table[begin]
            begin = c


def main():
    words = ["%d," % (length * 32 + category) for length, category in runs()]
    lines = ["// Made by make_unicode_categories.py: runs of code points, length * 32 + category."]
    for word in words:
        if len(lines) == 1 or len(lines[-1]) + 1 + len(word) > 100:
            lines.append(word)
        else:
            lines[-1] += " " + word
    path = pathlib.Path(__file__).with_name("unicode_categories.inc")
    path.write_text("\n".join(lines) + "\n")
    print("%s: %d runs" % (path.name, len(words)))


if __name__ == "__main__":
    sys.exit(main())

"""Strings to tokenize: real text and code, random Unicode, and what tokenizers trip over."""

import unicodedata

# The letters of DeepSeek-V2's second pre-tokenizer stage.
V2_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-"
    "ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-"
    "ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)

SNIPPETS = [
    "The quick brown fox jumps over the lazy dog.", "it's ok'll we've they'RE I'd 'S x'Tm don't",
    "def f(x):\n    return x**2 + 3.14159\n\n\tif x != 0x7F:\r\n\t\tpass  # done\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * c[i]; }  // sum\n",
    "SELECT name, COUNT(*) FROM t WHERE id >= 10 GROUP BY 1;", "{\"key\": [1, 2.5e-3, null, true]}",
    "https://example.org/a/b?c=d&e=%20f#g", "你好，世界。今天天气很好！", "深度求索2024年12月发布",
    "こんにちは世界カタカナひらがな", "한국어 문장입니다.", "Привет, мир! Ёлка", "Ελληνικά κείμενο",
    "مرحبا بالعالم", "שלום עולם", "नमस्ते दुनिया", "สวัสดีชาวโลก", "Äpfel naïve façade Ångström",
    "1234567890", "3.14159", "12,345,678.90", "٣٤٥", "Ⅷ½²", "①②③", "𝟘𝟙𝟚", "x²+y³",
    "🎉👩‍👩‍👧‍👦🇩🇪👍🏽", "e\u0301a\u0308\u0323", "\u200b\u200d\ufeff", "a\u00a0b\u3000c\u2028d\u0085e",
    "   ", "\n\n\n", " \n \n", "\t\t", "\r\n", "  leading", "trailing  ", "$^*()[]{}|\\/~`@#",
    "「引号」『二』、。！？", "‘q’ “qq” … — –", "ｆｕｌｌｗｉｄｔｈ１２３！～", "\x00\x01\x1b\x7f", "\ufffd\ufffe",
    "<|im_start|>user", "<|im_end|", "<think", "</think>>", "<｜User｜", "｜>", "▁of▁", "<|EOT|>",
]
SPACES = [
    " ", "  ", "\n", "\t", "\r", "\u00a0", "\u2003", "\u3000", "\u0085", "\u180e", "\x1c", "\v",
]
BLOCKS = [
    (0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x600, 0x97F), (0xE00, 0xE7F),
    (0x1000, 0x10FF), (0x1E00, 0x206F), (0x20A0, 0x2BFF), (0x3000, 0x30FF), (0x3400, 0x9FFF),
    (0xAC00, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x1FFFF), (0x20000, 0x2FFFF), (0, 0x10FFFF),
]


def training_text(root):
    """This repository's headers and documents, and the snippets."""
    for path in source_files(root):
        yield path.read_text(encoding="utf-8", errors="ignore")
    for snippet in SNIPPETS * 20:
        yield snippet


def source_files(root):
    folders = ("common", "server", "kernels", "worker", "docs")
    suffixes = (".h", ".cc", ".md")
    return sorted(p for f in folders for p in (root / f).rglob("*") if p.suffix in suffixes)


def random_char(rng):
    low, high = rng.choice(BLOCKS)
    c = rng.randint(low, high)
    return " " if 0xD800 <= c <= 0xDFFF else chr(c)


def run_of_one(rng):
    return rng.choice([random_char(rng), rng.choice("a 1.-\n中あé")]) * rng.choice([2, 3, 7, 50, 300])


def number(rng):
    digits = "".join(rng.choice("0123456789") for _ in range(rng.randint(1, 12)))
    return rng.choice(["", "-", "$", " "]) + digits + rng.choice(["", ".", ",", "e5", "th"])


def source_part(rng, sources):
    text = rng.choice(sources)
    at = rng.randrange(max(1, len(text)))
    return text[at : at + rng.randint(1, 300)]


def damaged(rng, text):
    """One character replaced, dropped or doubled."""
    at = rng.randrange(len(text))
    return text[:at] + rng.choice(["", random_char(rng), text[at] * 2]) + text[at + 1 :]


def part(rng, control, sources):
    kind = rng.randrange(10)
    if kind <= 1:
        return rng.choice(SNIPPETS)
    if kind == 2:
        return "".join(random_char(rng) for _ in range(rng.randint(1, 12)))
    if kind == 3:
        return rng.choice(SPACES) * rng.randint(1, 4)
    if kind == 4:
        return rng.choice(control)
    if kind == 5:
        return damaged(rng, rng.choice(control))
    if kind == 6:
        return number(rng)
    if kind == 7:
        return run_of_one(rng)
    if kind == 8:
        return unicodedata.normalize(rng.choice(["NFD", "NFKD"]), rng.choice(SNIPPETS))
    return source_part(rng, sources)


def many_code_points(rng):
    """Every code point of the first two planes and a sample of the others, in random order."""
    points = [*range(0xD800), *range(0xE000, 0x20000),
              *(rng.randrange(0x20000, 0x110000) for _ in range(20000))]
    rng.shuffle(points)
    return [chr(p) for p in points]


def strings(rng, count, control, root):
    """`count` strings; the first hold every common code point."""
    sources = [p.read_text(encoding="utf-8", errors="ignore") for p in source_files(root)]
    texts = ["", *SNIPPETS, *control[:50]]
    points = many_code_points(rng)
    between = ["", "a", " ", "1", "\u0301"]
    for at in range(0, len(points), 150):
        texts.append(rng.choice(between).join(points[at : at + 150]))
    while len(texts) < count:
        texts.append("".join(part(rng, control, sources) for _ in range(rng.randint(1, 8))))
    return texts

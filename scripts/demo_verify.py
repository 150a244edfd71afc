"""Answers one question with the demo model through the numpy reference, in float32."""

import json
import re
import sys

import numpy as np

from reference import safetensors_file
from reference.model import SINGLE, Model
from reference.model_config import ModelConfig

_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
_QUESTION = "What is the capital of France?"
_ANSWER = "Paris"
_MAX_TOKENS = 32


class AsciiTokenizer:
    """Byte-level BPE of plain ASCII text: enough for the question, slow and obvious."""

    def __init__(self, directory):
        tokenizer = json.loads((directory / "tokenizer.json").read_text())
        self._vocab = tokenizer["model"]["vocab"]
        self._ranks = {tuple(m.split(" ")): i for i, m in enumerate(tokenizer["model"]["merges"])}
        self._texts = {i: token for token, i in self._vocab.items()}

    def encode(self, text):
        ids = []
        pieces = re.findall(r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+|\s+", text)
        for piece in pieces:
            parts = list(piece.replace(" ", "Ġ").replace("\n", "Ċ"))
            while len(parts) > 1:
                pairs = list(zip(parts, parts[1:]))
                best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
                if best not in self._ranks:
                    break
                at = pairs.index(best)
                parts[at:at + 2] = ["".join(best)]
            ids += [self._vocab[part] for part in parts]
        return ids

    def decode(self, ids):
        return "".join(self._texts[i] for i in ids).replace("Ġ", " ").replace("Ċ", "\n")

    def chat(self, question):
        ids = []
        for role, text in (("system", _SYSTEM), ("user", question)):
            ids += [1, *self.encode(f"{role}\n{text}"), 2, *self.encode("\n")]
        return [*ids, 1, *self.encode("assistant\n")]


def run(directory):
    """Exit status: 0 when the greedy answer has the capital."""
    hf = json.loads((directory / "config.json").read_text())
    tokenizer = AsciiTokenizer(directory)
    model = Model(ModelConfig.from_hugging_face(hf), safetensors_file.read_checkpoint(directory),
                  SINGLE)
    sequence = model.sequence(tokenizer.chat(_QUESTION))
    answer = []
    while len(answer) < _MAX_TOKENS:
        token = int(model.logprobs(model.forward([sequence])[0][-1:]).argmax())
        if token == hf["eos_token_id"]:
            break
        answer.append(token)
        sequence.tokens = np.array([token])
    text = tokenizer.decode(answer)
    print(f"{_QUESTION}\n{text}")
    if _ANSWER in text:
        return 0
    print(f"make_demo_model: the answer lacks {_ANSWER}", file=sys.stderr)
    return 1

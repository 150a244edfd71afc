"""The demo model through 1, 2 and 4 ranks, and on a GPU where there is one: greedy texts are equal, or
part where two tokens tie."""

import os
import sys
import unittest

from deployment import Deployment, finish

MODEL = os.environ["HADAL_DEMO_MODEL"]
TOKENS = 64
GAP = 0.05  # of the logits; equals that of the log-probabilities
QUESTIONS = [
    "What is the capital of France?",
    "Name three colours.",
    "Why is the sky blue?",
    "Write a haiku about the sea.",
    "What is 12 times 11?",
    "Explain gravity to a child.",
    "Who wrote Romeo and Juliet?",
    "List five animals that live in water.",
    "Translate 'good morning' into Spanish.",
    "How do I boil an egg?",
    "What is a prime number?",
    "Write a short story about a dragon.",
    "What does a doctor do?",
    "Give me a recipe for pancakes.",
    "How many days has a leap year?",
    "Write a Python function that adds two numbers.",
    "What is the largest planet of the solar system?",
    "Describe the taste of a lemon.",
    "Why do leaves fall in autumn?",
    "Tell me a joke.",
]


CPU = ("--threads", "1", "--kv-blocks", "1024")
CUDA = ("--backend", "cuda", "--kv-blocks", "1024")


def deployments():
    """By name: ranks, and their flags. The first is what the others are compared with."""
    found = {f"{ranks} on cpu": (ranks, CPU) for ranks in (1, 2, 4)}
    if os.path.exists("/dev/nvidia0"):
        found |= {f"{ranks} on cuda": (ranks, CUDA) for ranks in (1, 2)}
    else:
        print("on cuda: skipped: no CUDA device", file=sys.stderr, flush=True)
    return found


def ask_all(ranks, flags):
    """The answers of a deployment, all asked at once."""
    with Deployment(MODEL, ranks=ranks, worker_flags=flags).start_workers() as hadal:
        clients = [hadal.start("--json", "--chat", question, "--temperature", "0", "--ignore-eos",
                               "--max-tokens", str(TOKENS), "--logprobs", "2")
                   for question in QUESTIONS]
        return [finish(client, timeout=280) for client in clients]


def parting(one, other):
    """The first position at which two answers have different tokens."""
    pairs = zip(one["token_ids"], other["token_ids"])
    return next((i for i, (a, b) in enumerate(pairs) if a != b), None)


def gap(answer, position):
    first, second = answer["top_logprobs"][position]
    return first["logprob"] - second["logprob"]


class DemoModelTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.answers = {name: ask_all(*how) for name, how in deployments().items()}

    def test_the_capital_of_france(self):
        for name, answers in self.answers.items():
            with self.subTest(ranks=name):
                self.assertIn("Paris", answers[0]["text"].split(".")[0])

    def test_answers_are_whole(self):
        for answers in self.answers.values():
            for answer in answers:
                self.assertEqual(len(answer["token_ids"]), TOKENS)

    def test_ranks_agree_or_part_at_a_tie(self):
        first, *others = self.answers
        for name in others:
            parted = []
            for question, one, many in zip(QUESTIONS, self.answers[first], self.answers[name]):
                position = parting(one, many)
                if position is None:
                    self.assertEqual(one["text"], many["text"])
                    continue
                parted.append(f"token {position}, gap {gap(one, position):.4f}: {question}")
                with self.subTest(ranks=name, question=question, position=position):
                    self.assertLess(gap(one, position), GAP)
            print(f"{first} and {name}: {len(parted)} of {len(QUESTIONS)} answers part",
                  *parted, sep="\n  ", file=sys.stderr, flush=True)


if __name__ == "__main__":
    if not os.path.exists(os.path.join(MODEL, "config.json")):
        sys.exit(f"skipped: no demo model in {MODEL}")
    unittest.main(verbosity=2)

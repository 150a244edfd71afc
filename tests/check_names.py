#!/usr/bin/env python3
"""Refuses two types of one name in one namespace, in headers or in the open part of source files.

A program may hold one of them only. The compiler sees one at a time; of a function template that takes both
the linker keeps one, and calls it for both."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("client", "common", "kernels", "server", "tests", "tools", "worker")
SUFFIXES = {".h", ".cuh", ".inc", ".cc", ".cu"}
OPEN = re.compile(r"^(?:inline )?namespace ([\w:]*) ?\{")
CLOSE = re.compile(r"^\}  // namespace")
TYPE = re.compile(r"^(?:struct|class|enum class|union) (?:alignas\(\w+\) )?(\w+)\b(?!.*;\s*(?://.*)?$)")


def types_of(text):
    """(namespace, name) of the types that a file defines at the left margin."""
    scopes = []
    for line in text.splitlines():
        if match := OPEN.match(line):
            scopes.append(match[1])
        elif CLOSE.match(line) and scopes:
            scopes.pop()
        elif (match := TYPE.match(line)) and "" not in scopes:
            yield "::".join(scopes), match[1]


def main():
    places = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SUFFIXES:
                for found in types_of(path.read_text()):
                    places.setdefault(found, []).append(path.relative_to(ROOT).as_posix())
    twice = {found: paths for found, paths in places.items() if len(paths) > 1}
    for (namespace, name), paths in sorted(twice.items()):
        print(f"{namespace}::{name} is defined in {', '.join(paths)}: give one another name, or a namespace")
    print(f"{len(places)} types, {len(twice)} of a name that another one has")
    sys.exit(1 if twice or not places else 0)


if __name__ == "__main__":
    main()

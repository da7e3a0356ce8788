"""What the house checkers share: the folders of the project, and how a checker ends."""

import pathlib
import sys

CODE = {".h", ".cpp", ".cu", ".cuh"}
ROOMS = ["include", "kernels", "src", "tests", "benchmarks", "examples"]


def files(root, folders=ROOMS, suffixes=CODE):
    """Files below `folders` with one of `suffixes`, sorted; recorded data is no source."""
    found = []
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and path.suffix in suffixes and "golden" not in path.parts:
                found.append(path)
    return found


def finish(violations):
    """Prints one line a violation; the exit code says whether there was one."""
    for line in violations:
        print(line)
    sys.exit(1 if violations else 0)


def root_argument():
    return pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()

"""Code in README.md is code of the examples, which the tests build and run.

Every C++ and CMake block is preceded by a line `<!-- examples/... -->` and stands in that file line by line (it may be
indented there); every example is shown.
"""

import re
import textwrap

import rules

BLOCK = re.compile(r"(?:<!-- (\S+) -->\n)?```(cpp|cmake)\n(.*?)```", re.DOTALL)


def shown(block, source):
    """Whether the block's lines stand in the source in a row, up to common indentation."""
    wanted = textwrap.dedent(block).rstrip().splitlines()
    lines = source.splitlines()
    for start in range(len(lines) - len(wanted) + 1):
        if textwrap.dedent("\n".join(lines[start : start + len(wanted)])).rstrip().splitlines() == wanted:
            return True
    return False


def violations(root):
    found, named = [], set()
    for name, _, block in BLOCK.findall((root / "README.md").read_text()):
        first = block.strip().splitlines()[0]
        if not name:
            found.append(f"README.md: a block names no file: {first}")
        elif not (root / name).is_file():
            found.append(f"README.md: there is no {name}")
        else:
            named.add(name.split("/")[1])
            if not shown(block, (root / name).read_text()):
                found.append(f"README.md: differs from {name}: {first}")
    for folder in sorted((root / "examples").iterdir()):
        if folder.is_dir() and folder.name not in named:
            found.append(f"README.md: does not show examples/{folder.name}")
    return found


if __name__ == "__main__":
    rules.finish(violations(rules.root_argument()))

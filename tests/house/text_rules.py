"""Rules on the text of every source: length, ASCII, unfinished work, words of the workplace, library manners."""

import re

import rules

MAX_LINES = 500
MAX_KERNEL_LINES = 600  # one CUDA kernel
# Written in pieces, so that this file does not break its own rule.
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b|[Nn]ot (yet )?imple" + "mented")
WORKPLACE = re.compile(r"/(work|root|home|farm|tmp)/|bash_" + r"jobs|\.\./" + r"shared|sub" + r"agent|\bissue \d")
SKIP = re.compile("GTEST_" + "SKIP")
HARDWARE = re.compile(r"CUDA|GPU|AVX|instruction|processor", re.IGNORECASE)
# The library never prints, exits or asserts; the program lowbit may.
MANNERS = re.compile(r"std::(cout|cerr|clog|abort|exit|terminate)\b|(?<![\w:.>])(printf|puts|exit|abort|assert)\(")
MANNERED = ["include", "kernels", "src"]


def violations(root):
    found = []
    scripts = [p for p in [root / "dev", root / ".ci/run", root / "CMakeLists.txt"] if p.exists()]
    pages = [p for p in sorted(root.glob("*.md")) + sorted((root / "docs").glob("*.md"))]
    code = rules.files(root, suffixes=rules.CODE | {".py", ".cmake", ".in", ".txt", ".sh"}, folders=rules.ROOMS + ["cmake"])
    for path in code + scripts + pages:
        name = path.relative_to(root)
        data = path.read_bytes()
        lines = data.decode("utf-8", "replace").splitlines()
        limit = MAX_KERNEL_LINES if path.suffix == ".cu" else MAX_LINES
        if len(lines) > limit:
            found.append(f"{name}: {len(lines)} lines, at most {limit}")
        if re.search(r"util|misc|helper", path.stem):
            found.append(f"{name}: named after nothing; name the thing it does")
        # Tests of text hold text, and pages may too.
        if path in code and name.parts[0] != "tests" and not data.isascii():
            found.append(f"{name}: not ASCII")
        mannered = name.parts[0] in MANNERED and name.parts[:2] != ("src", "cli") and path.suffix in rules.CODE
        for number, line in enumerate(lines, 1):
            where = f"{name}:{number}"
            if UNFINISHED.search(line):
                found.append(f"{where}: unfinished: {line.strip()}")
            if WORKPLACE.search(line) and path.name != "text_rules.py":
                found.append(f"{where}: speaks of the workplace: {line.strip()}")
            if SKIP.search(line) and not HARDWARE.search(line):
                found.append(f"{where}: a test may be skipped for missing hardware only: {line.strip()}")
            if mannered and MANNERS.search(line.split("//")[0]):
                found.append(f"{where}: the library never prints, exits or asserts: {line.strip()}")
    return found


if __name__ == "__main__":
    rules.finish(violations(rules.root_argument()))

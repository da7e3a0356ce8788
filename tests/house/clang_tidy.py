"""clang_tidy.py BUILD JOBS FILE...: clang-tidy on files of a build that g++ made.

clang cannot read g++'s precompiled headers, so the commands are rewritten to include the same header as text. Files that
the build does not compile (other devices) are left out.
"""

import concurrent.futures
import json
import pathlib
import re
import subprocess
import sys

PCH = re.compile(r"-Winvalid-pch|-include (\S+cmake_pch\.hxx)")


def main():
    build, jobs, wanted = pathlib.Path(sys.argv[1]).resolve(), int(sys.argv[2]), sys.argv[3:]
    wanted = {str(pathlib.Path(name).resolve()) for name in wanted}
    folder = build / "clang-tidy"
    folder.mkdir(exist_ok=True)

    def plain(match):
        if match[1] is None:
            return ""
        copy = folder / (match[1].strip("/").replace("/", "_"))
        copy.write_text(pathlib.Path(match[1]).read_text())
        return f"-include {copy}"

    commands = [c for c in json.loads((build / "compile_commands.json").read_text()) if c["file"] in wanted]
    for command in commands:
        command["command"] = PCH.sub(plain, command["command"]) + " -Wno-unknown-warning-option"
    (folder / "compile_commands.json").write_text(json.dumps(commands))

    def check(name):
        run = ["clang-tidy-14", "--quiet", "-p", str(folder), name]
        return subprocess.run(run, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    failed, names = 0, sorted({c["file"] for c in commands})
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for number, (name, result) in enumerate(zip(names, pool.map(check, names)), 1):
            print(f"[{number}/{len(names)}] {name}", flush=True)
            if result.returncode:
                failed += 1
                print(result.stdout)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

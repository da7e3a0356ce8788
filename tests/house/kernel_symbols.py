"""kernel_symbols.py ARCHIVE NM: what the kernels call from outside.

An allow-list, so that everything else is a violation without being named: no torch, no exception, no allocation, no
lock, no stdio, no environment, no synchronization, no device setting. Memory and mathematics are left, and launches.
"""

import re
import subprocess
import sys

import rules

ALLOWED = re.compile(
    r"mem(cpy|move|set|cmp)|_GLOBAL_OFFSET_TABLE_|__stack_chk_fail"
    r"|__cpu_model|__cpu_features2|__cpu_indicator_init"  # __builtin_cpu_supports
    r"|(exp|exp2|log|log2|pow|sqrt|fma|rint|nearbyint|round|lrint|ldexp|frexp|floor|ceil|trunc|fabs|erf|erfc|cbrt|sin|cos)f?"
    r"|__cuda(RegisterFatBinary|RegisterFatBinaryEnd|UnregisterFatBinary|RegisterFunction|RegisterVar|PushCallConfiguration"
    r"|PopCallConfiguration|InitModule)"
    r"|__cuda(GetKernel|LaunchKernel)"
    r"|cuda(LaunchKernel|LaunchKernelExC|GetLastError|PeekAtLastError|FuncSetAttribute|GetDriverEntryPoint\w*)"
    # Zeros enqueued on the stream; which device is current, never another one; the text of an error.
    r"|cuda(MemsetAsync|GetDevice|DeviceGetAttribute|GetErrorString)"
    r"|__cxa_guard_(acquire|release)"  # of the driver's function for tensor maps, which is looked up once
    r"|atexit|__dso_handle|__gxx_personality_v0"  # registration of device code
)


def violations(listing):
    """`listing`: output of nm -A on the archive."""
    defined, undefined = set(), {}
    for line in listing.splitlines():
        match = re.match(r"(.*?):\s*([0-9a-f]*)\s+(\S)\s+(\S+)$", line)
        if not match:
            continue
        where, _, kind, symbol = match.groups()
        if kind in "Uvw":
            undefined.setdefault(symbol, where)
        else:
            defined.add(symbol)
    if not defined:
        return ["the archive defines nothing: nm's output was not understood"]
    return [
        f"{where}: kernels must not call {symbol}"
        for symbol, where in sorted(undefined.items())
        if symbol not in defined and not ALLOWED.fullmatch(symbol.split("@")[0])
    ]


if __name__ == "__main__":
    archive, nm = sys.argv[1:3]
    rules.finish(violations(subprocess.run([nm, "-A", archive], check=True, capture_output=True, text=True).stdout))

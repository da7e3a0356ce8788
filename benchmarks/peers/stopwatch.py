"""The method of `lowbit bench` (src/cli/stopwatch.cpp) for programs in Python, and the results in the same JSON.

On a GPU: events around calls that are queued behind a copy which keeps the device busy while the host queues them, so
that the device's time is measured and not the host's; a call that waits for the device is measured with its wait.
"""
import datetime
import json
import math
import subprocess
import time

import torch

SAMPLES = {"cpu": 5, "cuda": 21}
MOST_SAMPLES, MOST_CALLS, MOST_COPIES = 201, 32, 64
SAMPLE_SECONDS = 1e-3


class Stopwatch:
    def __init__(self, device, seconds):
        self.device, self.seconds = torch.device(device), seconds
        size = (64 << 20) if self.device.type == "cpu" else (256 << 20)
        self.source = torch.ones(size // 4, dtype=torch.int32, device=self.device)
        self.target = torch.zeros_like(self.source)
        self.copy_rate = None
        copy, = self([lambda call: self.target.copy_(self.source)])
        self.copy_rate = 2 * size / copy[0]

    def _sample(self, work, state):
        if self.device.type == "cpu":
            start = time.perf_counter()
            work(state["next"])
            state["next"] += 1
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(state["copies"]):
            self.target.copy_(self.source, non_blocking=True)
        begin.record()
        for _ in range(state["calls"]):
            work(state["next"])
            state["next"] += 1
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3 / state["calls"]

    def _pace(self, work):
        """Calls in one sample, and the copies that outlast their launches."""
        state = {"next": 1, "calls": 2, "copies": 0}
        work(0)
        if self.device.type == "cpu":
            return state
        call = self._sample(work, state)
        state["calls"] = min(max(math.ceil(SAMPLE_SECONDS / call), 1), MOST_CALLS)
        start = time.perf_counter()
        for _ in range(state["calls"]):
            work(state["next"])
            state["next"] += 1
        host = time.perf_counter() - start
        torch.cuda.synchronize(self.device)
        copy = 2 * self.source.nbytes / self.copy_rate if self.copy_rate else 1e-3
        state["copies"] = min(max(math.ceil(1.5 * host / copy), 1), MOST_COPIES)
        return state

    def __call__(self, contestants):
        """(median seconds, spread) of each function of the number of the call; they take turns."""
        states = [self._pace(work) for work in contestants]
        times = [[] for _ in contestants]
        start = time.perf_counter()
        while len(times[0]) < SAMPLES[self.device.type] or (
                len(times[0]) < MOST_SAMPLES and time.perf_counter() - start < self.seconds * len(contestants)):
            for work, state, samples in zip(contestants, states, times):
                samples.append(self._sample(work, state))
        result = []
        for samples in times:
            samples.sort()
            median, count = samples[len(samples) // 2], len(samples)
            result.append((median, (samples[count * 9 // 10] - samples[count // 10]) / median))
        return result


def choose_device(name):
    return name if name != "auto" else "cuda:0" if torch.cuda.is_available() else "cpu"


def l2_bytes(device):
    device = torch.device(device)
    return 0 if device.type == "cpu" else torch.cuda.get_device_properties(device).L2_cache_size


def machine(device):
    device = torch.device(device)
    if device.type == "cpu":
        return "CPU, %d threads" % torch.get_num_threads()
    try:
        driver = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                                capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    return "%s, driver %s (torch for CUDA %s)" % (torch.cuda.get_device_name(device), driver, torch.version.cuda)


def report(bench, device, watch, settings, rows):
    import bitsandbytes
    return {"bench": bench, "library": "bitsandbytes", "version": bitsandbytes.__version__,
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(), "device": device,
            "machine": machine(device), **settings, "ceilings": {"copy": watch.copy_rate}, "rows": rows}


def add_options(parser):
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--seconds", type=float, default=0.3, help="spent on each measurement, at least")
    parser.add_argument("-o", "--output", help="write the JSON here")
    parser.add_argument("--lowbit", help="the program lowbit: measure it, too, and print both side by side")
    parser.add_argument("--lowbit-json", help="with --lowbit: keep its JSON here")


def finish(args, result, lowbit_arguments):
    """Writes and prints the result; beside lowbit's, which is measured now, where the program is given."""
    import pathlib
    import sys
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
    import compare
    if args.output:
        pathlib.Path(args.output).write_text(json.dumps(result, indent=1) + "\n")
    if not args.lowbit:
        sys.stdout.write(compare.table(result))
        return
    command = [args.lowbit, "bench", result["bench"], "--device", result["device"], "--seconds", str(args.seconds),
               "--json"] + lowbit_arguments
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    if args.lowbit_json:
        pathlib.Path(args.lowbit_json).write_text(text)
    sys.stdout.write(compare.side_by_side(json.loads(text), result))

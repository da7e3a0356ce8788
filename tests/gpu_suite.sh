#!/usr/bin/env bash
# Everything that needs a GPU, from one folder of programs (./dev gpu-test --bundle makes it), on a machine that
# need not be the one that built them: tests, compute-sanitizer over the kernel tests, benchmarks.
#
#   tests/gpu_suite.sh --bin DIR [--out DIR] [--model PATH] [--skip-tests] [--skip-sanitizer] [--skip-bench]
#
# --model: a float model (directory or GGUF file) that the program quantizes, reads and runs on the GPU and on the CPU.
# Prints tables; --out gets the whole output: tests.log, sanitizer.log, bench.log; model.log; linear, quantize, optimizer
# and matmul as .md and .json, kernels_quantize.md, backward.md, sweep.md; plots (.svg); where Python has bitsandbytes, its results (bitsandbytes_*.json) and the
# comparison (compare_*.md). Whatever fails or hangs, the rest still runs. Exit code: 0 when all passed, 1 otherwise.
set -uo pipefail
root=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/..
bin= out= model= tests=1 sanitizer=1 bench=1
while [ $# -gt 0 ]; do
  case "$1" in
    --bin) bin=$(readlink -f "$2"); shift ;;
    --out) mkdir -p "$2"; out=$(readlink -f "$2"); shift ;;
    --model) model=$(readlink -f "$2"); shift ;;
    --skip-tests) tests=0 ;;
    --skip-sanitizer) sanitizer=0 ;;
    --skip-bench) bench=0 ;;
    *) echo "gpu_suite: unknown option $1" >&2; exit 2 ;;
  esac
  shift
done
[ -n "$bin" ] && [ -e "$bin/gpu_programs.txt" ] || { echo "gpu_suite: --bin DIR must hold gpu_programs.txt" >&2; exit 2; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[ -n "$out" ] || out=$work
export LOWBIT_GOLDEN_DIR=${LOWBIT_GOLDEN_DIR:-$(readlink -f "$root/tests/golden")}

# The programs' own libraries, then those of torch's Python package, then the toolkit's.
torch=${LOWBIT_TORCH_DIR:-$(python3 -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])' 2>/dev/null)}
export LD_LIBRARY_PATH=$bin:$torch/lib:$torch/../nvidia/cu13/lib:/usr/local/cuda/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

failures=0
fail() { failures=$((failures + 1)); }
# seconds START: since then.
seconds() { echo $(($(date +%s) - $1)); }
# count PATTERN FILE: the number in the last line of GoogleTest's that matches, or 0.
count() { sed -n "s/^\[  $1 *\] \([0-9]*\) test.*/\1/p" "$2" | tail -n 1 | grep . || echo 0; }

echo "GPU: $(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1 | paste -sd';')"
echo "Programs: $(cat "$bin/commit.txt" 2>/dev/null)"

# ---- tests --------------------------------------------------------------------------------------------------------

# One program to its end, its result in $work/NAME.*.
run_test() {
  local device=$1 filter=$2 name=$3 start
  start=$(date +%s)
  [ "$device" = own ] || export LOWBIT_TEST_DEVICE=$device
  timeout -k 5 "${LOWBIT_TEST_TIMEOUT:-110}" "$bin/$name" --gtest_filter="$filter" >"$work/$name.log" 2>&1
  echo $? >"$work/$name.rc"
  seconds "$start" >"$work/$name.s"
}

if [ $tests = 1 ]; then
  start=$(date +%s)
  while read -r device filter name; do
    while [ "$(jobs -rp | wc -l)" -ge 4 ]; do wait -n; done
    run_test "$device" "$filter" "$name" &
  done <"$bin/gpu_programs.txt"
  wait
  printf '\n%-28s %7s %8s %7s %5s  %s\n' "tests" passed skipped failed s result
  while read -r device filter name; do
    log=$work/$name.log rc=$(cat "$work/$name.rc")
    failed=$(grep -c '^\[  FAILED  \] .*(.* ms)$' "$log")
    passed=$(count PASSED "$log")
    case $rc in
      0) verdict=ok; [ "$passed" -gt 0 ] || { verdict="NOTHING RAN"; fail; } ;;
      124 | 137) verdict="TIMEOUT in $(grep '^\[ RUN' "$log" | tail -n 1)"; fail ;;
      *) verdict="FAILED, exit code $rc"; fail ;;
    esac
    printf '%-28s %7s %8s %7s %5s  %s\n' "$name" "$passed" "$(count SKIPPED "$log")" "$failed" "$(cat "$work/$name.s")" "$verdict"
    { echo "==== $name"; cat "$log"; } >>"$out/tests.log"
  done <"$bin/gpu_programs.txt"
  echo "all tests: $(seconds "$start") s"
  while read -r device filter name; do
    [ "$(cat "$work/$name.rc")" = 0 ] && continue
    printf '\n---- %s\n' "$name"
    grep -A7 'Failure$\|^unknown file\|error while loading\|what()' "$work/$name.log" | cut -c1-300 | head -n 24
    grep '^\[  FAILED  \]' "$work/$name.log" | sort -u | cut -c1-160 | head -n 12
    [ -s "$work/$name.log" ] && tail -n 3 "$work/$name.log" | cut -c1-300
  done <"$bin/gpu_programs.txt"
fi

# ---- compute-sanitizer ----------------------------------------------------------------------------------------------

checker=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
# One tool over one part of one program's tests.
run_tool() {
  local tool=$1 name=$2 part=$3 parts=$4 start log
  start=$(date +%s) log=$work/$tool.$name.$part
  LOWBIT_TEST_ROUNDS=${LOWBIT_TEST_ROUNDS:-1} GTEST_TOTAL_SHARDS=$parts GTEST_SHARD_INDEX=$part timeout -k 5 "${LOWBIT_SANITIZER_TIMEOUT:-300}" \
    "$checker" --tool "$tool" --error-exitcode 9 "$bin/$name" >"$log.log" 2>&1
  echo $? >"$log.rc"
  seconds "$start" >"$log.s"
}

if [ $sanitizer = 1 ] && [ ! -x "$checker" ]; then
  printf '\ncompute-sanitizer is not installed (it comes with the CUDA toolkit): no sanitizer ran\n'
elif [ $sanitizer = 1 ]; then
  start=$(date +%s)
  kernel_tests=$(sed -n 's/^own [^ ]* \(kernels_.*\)/\1/p' "$bin/gpu_programs.txt")
  parts=4
  for tool in racecheck initcheck memcheck synccheck; do
    for name in $kernel_tests; do
      for ((part = 0; part < parts; ++part)); do
        while [ "$(jobs -rp | wc -l)" -ge "${LOWBIT_SANITIZER_JOBS:-12}" ]; do wait -n; done
        run_tool "$tool" "$name" "$part" "$parts" &
      done
    done
  done
  wait
  printf '\n%-12s %-28s %7s %8s %5s  %s\n' "sanitizer" program tests errors s result
  for tool in memcheck racecheck initcheck synccheck; do
    for name in $kernel_tests; do
      ok=0 errors=0 longest=0 verdict=clean
      for ((part = 0; part < parts; ++part)); do
        log=$work/$tool.$name.$part rc=$(cat "$work/$tool.$name.$part.rc")
        ok=$((ok + $(grep -c '^\[       OK \]' "$log.log")))
        found=$(sed -n 's/^=* *ERROR SUMMARY: \([0-9]*\) error.*/\1/p; s/^=* *RACECHECK SUMMARY: \([0-9]*\) hazard.*/\1/p' "$log.log" | tail -n 1)
        errors=$((errors + ${found:-0}))
        [ "$(cat "$log.s")" -le "$longest" ] || longest=$(cat "$log.s")
        case $rc in
          0) ;;
          124 | 137) verdict="TIMEOUT in $(grep '^\[ RUN' "$log.log" | tail -n 1)" ;;
          *) verdict="NOT CLEAN, exit code $rc" ;;
        esac
        { echo "==== $tool $name, part $part"; head -c 1000000 "$log.log"; } >>"$out/sanitizer.log"
      done
      [ "$verdict$ok" != clean0 ] || verdict="NOTHING RAN"
      [ "$verdict" = clean ] || fail
      printf '%-12s %-28s %7s %8s %5s  %s\n' "$tool" "$name" "$ok" "$errors" "$longest" "$verdict"
      if [ "$verdict" != clean ]; then
        grep -h -A3 '^========= \(Error\|Warning\|Invalid\|Uninit\|Race\|Potential\|Barrier\|Program hit\)' "$work/$tool.$name".*.log |
          cut -c1-200 | head -n 8
        grep -h '^\[  FAILED  \]' "$work/$tool.$name".*.log | sort -u | cut -c1-160 | head -n 4
      fi
    done
  done
  echo "all sanitizers: $(seconds "$start") s"
fi

# ---- a model, from the command line -----------------------------------------------------------------------------------

# Logits of the license in float32, where devices differ by the order of sums alone, and in bfloat16, where every layer
# rounds.
if [ -n "$model" ]; then
  start=$(date +%s)
  printf '\nmodel %s\n' "$(basename "$model")"
  text=$(head -c 1200 "$root/LICENSE")
  for type in "nf4 --double-quant" int8; do
    quantized=$work/quantized-${type%% *}
    {
      "$bin/lowbit" quantize "$model" "$quantized" --type $type --device cuda:0 || echo "FAILED: quantize $type"
      for dtype in float32 bfloat16; do
        for device in cpu cuda:0; do
          "$bin/lowbit" logits "$quantized" --text "$text" --dtype $dtype --device $device \
            -o "$work/$dtype-${device%:*}.safetensors" || echo "FAILED: logits $type $dtype $device"
        done
      done
      if [ "$type" = int8 ]; then
        LOWBIT_CPU_ISA=scalar "$bin/lowbit" logits "$quantized" --text "$text" --dtype float32 --device cpu \
          -o "$work/noise.safetensors" || echo "FAILED: logits $type scalar"
      fi
      for device in cpu cuda:0; do
        "$bin/lowbit" ppl "$quantized" --text "$root/LICENSE" --ctx 512 --device $device || echo "FAILED: ppl $type $device"
      done
      "$bin/lowbit" run "$quantized" -p "Why is the sky blue?" --device cuda:0 || echo "FAILED: run $type"
    } >"$work/model.log" 2>&1
    { echo "==== model $type"; cat "$work/model.log"; } >>"$out/model.log"
    echo "-- $type"
    grep "perplexity\|^| quantized\|^FAILED\|error" "$work/model.log" | cut -c1-160
    ! grep -q "^FAILED" "$work/model.log" || fail
    if [ "$type" = int8 ]; then
      limits=(--noise "$work/noise.safetensors" --noise "$work/noise.safetensors")
    else
      limits=(--error 1e-3 --error 6e-2)
    fi
    printf 'float32: '; python3 -B "$root/tests/compare_logits.py" "$work"/float32-{cuda,cpu}.safetensors "${limits[@]:0:2}" || fail
    printf 'bfloat16: '; python3 -B "$root/tests/compare_logits.py" "$work"/bfloat16-{cuda,cpu}.safetensors "${limits[@]:2:2}" || fail
  done
  echo "model: $(seconds "$start") s"
fi

# ---- benchmarks, one at a time ----------------------------------------------------------------------------------------

# run_bench LINES TIMEOUT PROGRAM ARGS...: shows the last LINES of its output.
run_bench() {
  local lines=$1 limit=$2 name=$3 rc start; shift 3
  [ -x "$bin/$name" ] || { printf '\n%s is not in the folder\n' "$name"; return; }
  start=$(date +%s)
  printf '\n==> %s %s\n' "$name" "$*"
  timeout -k 5 "$limit" "$bin/$name" "$@" >"$work/bench" 2>&1
  rc=$?
  { echo "==== $name $*"; cat "$work/bench"; } >>"$out/bench.log"
  tail -n "$lines" "$work/bench" | cut -c1-180
  echo "($(seconds "$start") s)"
  [ $rc = 0 ] || { echo "FAILED, exit code $rc"; fail; }
}

# run_python LINES TIMEOUT SCRIPT ARGS...: the same for a script of benchmarks/.
run_python() {
  local lines=$1 limit=$2 name=$3 rc start; shift 3
  start=$(date +%s)
  printf '\n==> %s\n' "$name"
  timeout -k 5 "$limit" python3 -B "$root/benchmarks/$name" "$@" >"$work/bench" 2>&1
  rc=$?
  { echo "==== $name $*"; cat "$work/bench"; } >>"$out/bench.log"
  tail -n "$lines" "$work/bench" | cut -c1-180
  echo "($(seconds "$start") s)"
  [ $rc = 0 ] || { echo "FAILED, exit code $rc"; fail; }
}

if [ $bench = 1 ]; then
  start_bench=$(date +%s)
  shapes=14336x4096,4096x4096 tokens=1,8,16,32,64,128,512,2048
  all_shapes=14336x4096,4096x4096,8192x8192,28672x8192,4096x14336,1024x4096
  all_tokens=1,8,16,32,64,128,256,512,2048,8192
  run_bench 36 60 lowbit doctor
  run_bench 16 60 quantize_cuda_bench $((1 << 28)) "$out/kernels_quantize.md"
  run_bench 13 90 optimizer_cuda_bench
  run_bench 18 60 lowbit bench quantize --device cuda:0 --seconds 0.03 -o "$out/quantize.md" -o "$out/quantize.json"
  run_bench 102 60 lowbit bench linear --device cuda:0 --shapes $shapes --m $tokens --type nf4,fp4,int8 --backward \
    --seconds 0.03 -o "$out/linear.md" -o "$out/linear.json"
  run_bench 12 60 lowbit bench optimizer --device cuda:0 --seconds 0.03 -o "$out/optimizer.md" -o "$out/optimizer.json"
  run_bench 8 60 lowbit bench optimizer --device cuda:0 --tensors 448 --elements 42000000 --optimizers adamw8bit \
    --seconds 0.03 -o "$out/optimizer_448.md" -o "$out/optimizer_448.json"
  run_bench 80 120 lowbit bench linear --device cuda:0 --shapes $all_shapes --m $all_tokens --type nf4 --seconds 0.02 \
    -o "$out/linear_nf4.md" -o "$out/linear_nf4.json"
  run_bench 30 90 fourbit_matmul_cuda_bench --md "$out/matmul.md" --json "$out/matmul.json"
  run_bench 30 60 fourbit_matmul_cuda_bench --backward --md "$out/backward.md"
  run_bench 30 60 fourbit_matmul_cuda_bench --sweep --shape 14336x4096 --shape 4096x4096 --md "$out/sweep.md"
  run_bench 24 60 fourbit_matmul_cuda_bench --experts
  for batch in 1 8 32; do
    run_bench 3 60 lowbit bench generate --shape llama-8b --type nf4 --double-quant --device cuda:0 --batch $batch \
      --prompt-tokens 512 --new-tokens 64 --repeat 2
  done
  run_bench 3 60 lowbit bench generate --shape llama-8b --type nf4 --double-quant --quantize-embeddings --device cuda:0 \
    --prompt-tokens 2048 --new-tokens 64 --repeat 2
  run_bench 3 60 lowbit bench generate --shape llama-8b --type int8 --device cuda:0 --prompt-tokens 512 --new-tokens 32 --repeat 1
  peer=
  if python3 -c 'import torch, bitsandbytes' >/dev/null 2>&1; then
    peer=1
    run_python 2 90 peers/linear.py --device cuda:0 --shapes $shapes --m $tokens --type nf4,int8 --seconds 0.03 \
      -o "$out/bitsandbytes_linear.json"
    run_python 2 90 peers/linear.py --device cuda:0 --shapes $all_shapes --m $all_tokens --type nf4 --seconds 0.02 \
      -o "$out/bitsandbytes_linear_nf4.json"
    run_python 2 90 peers/quantize.py --device cuda:0 --seconds 0.03 -o "$out/bitsandbytes_quantize.json"
    run_python 2 90 peers/optimizer.py --device cuda:0 --seconds 0.03 -o "$out/bitsandbytes_optimizer.json"
    run_python 2 90 peers/optimizer.py --device cuda:0 --tensors 448 --elements 42000000 --optimizers adamw8bit \
      --seconds 0.03 -o "$out/bitsandbytes_optimizer_448.json"
    for what in linear linear_nf4 quantize optimizer optimizer_448; do
      run_python 70 20 compare.py "$out/$what.json" "$out/bitsandbytes_$what.json" -o "$out/compare_$what.md"
    done
  else
    printf '\nPython has no bitsandbytes (pip install bitsandbytes): not compared\n'
  fi
  for what in linear quantize; do
    run_python 2 20 plot.py "$out/$what.json" ${peer:+"$out/bitsandbytes_$what.json"} -o "$out/$what.svg"
  done
  echo "all benchmarks: $(seconds "$start_bench") s"
fi

echo
if [ $failures = 0 ]; then echo "GPU suite: all passed"; else echo "GPU suite: $failures FAILED"; fi
[ $failures = 0 ]

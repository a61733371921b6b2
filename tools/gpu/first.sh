#!/bin/bash
# The first ten minutes on a GPU, most informative parts first: the environment, the tests that need a device, device
# synchronizations, augmented images, determinism, speed, compiled steps, a run, a resumed run. Each step has a limit in
# seconds; in the rest of 590 s, plain and fused token mixing, and autotuned steps. From the project's folder:
#   tools/gpu/first.sh [DATA [OUT]]
# DATA: a folder of images, train/<class>/ and val/<class>/; default: scikit-learn's digits. OUT: a new folder for the
# results, a few hundred kB.
# PYTHON, DEVICE, CFG, BATCH, ROUNDS, WORKERS override the defaults. A small run on a CPU, where the check of
# determinism of a ResNet may exceed its limit of 25 s:
#   DEVICE=cpu CFG=configs/debug/std_debug.yaml BATCH=128 ROUNDS=1 COMPILED=off tools/gpu/first.sh
set -u -o pipefail
cd "$(dirname "$0")/../.."
data=${1:-} out=${2:-out} python=${PYTHON:-python3} words=${WORDS:-}
config=${CFG:-configs/std/mixer-s4_c100_multi.yaml}
compiled=${COMPILED:-on graphs}
digits="DATA.NAME=digits $words"
images=$digits
[ -n "$data" ] && images="DATA.NAME=image_folder DATA.ROOT=$data DATA.NUM_WORKERS=${WORKERS:-8} $words"
mkdir -p "$out"

say() { echo "== $* at ${SECONDS} s"; }

limited() { # limited SECONDS PARTS COMMAND: kills it after SECONDS, and then writes error-PARTS.txt and a result
  local seconds=$1 parts=$2 start=$SECONDS code
  shift 2
  timeout -k 5 "$seconds" "$@"
  code=$?
  if [ "$code" = 124 ] || [ "$code" = 137 ]; then
    local error="killed after $((SECONDS - start)) s, its limit is $seconds s"
    echo "$error" | tee "$out/error-${parts// /-}.txt"
    echo "{\"part\": \"$parts\", \"error\": \"$error\"}" >> "$out/result.jsonl"
  fi
  return "$code"
}

first() { # first SECONDS WORDS: runs first.py; its parts are the words before the first one with - or =
  local seconds=$1 parts
  shift
  parts=$(printf '%s\n' "$@" | sed '/[-=]/,$d' | paste -sd ' ')
  limited "$seconds" "$parts" "$python" tools/gpu/first.py --out "$out" --cfg "$config" --device "${DEVICE:-cuda}" \
    --batch "${BATCH:-1024}" --rounds "${ROUNDS:-10}" "$@"
}

{
  say env
  first 60 env $digits
  say cuda tests
  limited 60 tests "$python" -m pytest -q -m cuda $(grep -l "mark.cuda" tests/test_*.py)  # collecting all takes a minute
  say waits, views, determinism
  first 85 sync views determinism $digits
  first 25 determinism --cfg configs/resnet/r-20_c100.yaml $digits
  say speed
  first 120 speed --modes off ${compiled%% *} -- $images
  say compiled steps
  first 85 steps --modes off $compiled -- MINE.PERIOD=step OPTIM.NAME=momentum $images
  say a run
  first 70 run --modes ${compiled%% *} -- $images
  say resume, cache, check
  first 55 resume $digits
  say token mixing, autotune
  left=$((590 - SECONDS))
  [ "$left" -gt 20 ] && first "$left" mixing autotune --modes off ${compiled%% *} -- $images
  say end
} 2>&1 | tee -a "$out/log.txt"

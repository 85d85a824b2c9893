#!/usr/bin/env bash
# All measurements that need a GPU (TO_MEASURE.md), in at most ten minutes on a bare machine:
#
#     bash benchmarks/h100.sh                 # everything, the most important first
#     bash benchmarks/h100.sh kernels tiny    # only these parts
#     bash benchmarks/h100.sh --list          # the parts and their commands
#
# Needs NVIDIA's driver, CUDA's nvcc, Python 3.11 or later. The part "install" fetches packages from PyPI; with PYTHON
# set to an interpreter that has LipStream with [dev] and [tensorrt] it is left out. Every part has a log and results in
# OUT (default out/gpu); one that fails does not stop the others. SIZE: 1.3b (default) or 14b. LIMIT: seconds of all.
# SIZE=tiny DEVICE=cpu QUICK=1 tries the part "eager" on a CPU.
set -uo pipefail
cd "$(dirname "$0")/.."

OUT=${OUT:-out/gpu} SIZE=${SIZE:-1.3b} LIMIT=${LIMIT:-600} DEVICE=${DEVICE:-cuda} QUICK=${QUICK:-}
PYTHON=${PYTHON:-}
PY=${PYTHON:-.venv/bin/python}
LIPSTREAM="$PY -m lipstream"

declare -A PART
ORDER=()
part() { ORDER+=("$1"); PART[$1]=$2; }

[ -n "$PYTHON" ] || part install "make .venv/.dev && $PY -m pip install --quiet -e '.[dev,tensorrt]'"
part doctor "$LIPSTREAM doctor"
# A skipped test proves nothing, so it counts as a failure.
part kernels "$PY -m pytest -q -rs tests/csrc -k cuda | tee $OUT/kernels.txt && ! grep -q skipped $OUT/kernels.txt"
part tiny "$LIPSTREAM export tiny --precision bf16 -o $OUT/tiny-bf16 &&
  $LIPSTREAM build $OUT/tiny-bf16 --recipe tiny-bf16 -o $OUT/tiny-engines --json > $OUT/tiny-build.json &&
  $LIPSTREAM verify $OUT/tiny-engines --json > $OUT/tiny-verify.json &&
  $PY -m benchmarks.stream --bundle $OUT/tiny-engines --against tiny --streams 1 2 4 8 --json $OUT/tiny-stream.json \
    --trace $OUT/tiny-trace.json --timeline $OUT/tiny-timeline.svg"
part eager "$PY -m benchmarks.dit_latency --size $SIZE --device $DEVICE --json $OUT/dit_latency-$SIZE.json ${QUICK:+--quick}"
part fits "$PY -m benchmarks.stream --bundle $OUT/tiny-engines --streams 1 2 4 8 --prepared --json $OUT/tiny-prepared.json"
part files "$PY -m benchmarks.random_release $SIZE $OUT/files > $OUT/files.txt"
part export "$LIPSTREAM export \$(cat $OUT/files.txt) --precision bf16 --no-parity -o $OUT/$SIZE-bf16"
part build "$LIPSTREAM build $OUT/$SIZE-bf16 --recipe $SIZE-bf16-h100 -o $OUT/$SIZE-engines --json > $OUT/build-$SIZE.json"
part stream "$PY -m benchmarks.stream --bundle $OUT/$SIZE-engines --streams 1 2 4 8 --json $OUT/stream-$SIZE.json \
  --trace $OUT/trace-$SIZE.json --timeline $OUT/timeline-$SIZE.svg"
part prepared "$PY -m benchmarks.stream --bundle $OUT/$SIZE-engines --streams 1 2 4 8 --prepared \
  --json $OUT/prepared-$SIZE.json"
part light "$LIPSTREAM export \$(cat $OUT/files.txt) --encoder taehv --precision bf16 --no-parity -o $OUT/$SIZE-light &&
  $LIPSTREAM build $OUT/$SIZE-light --recipe $SIZE-bf16-h100 -o $OUT/$SIZE-light-engines --json > $OUT/light-$SIZE.json &&
  $PY -m benchmarks.stream --bundle $OUT/$SIZE-light-engines --streams 1 2 4 --json $OUT/stream-light-$SIZE.json"
part verify "$LIPSTREAM verify $OUT/$SIZE-engines --json > $OUT/verify-$SIZE.json"
part layers "$LIPSTREAM inspect $OUT/$SIZE-engines --layers > $OUT/layers-$SIZE.txt"
part fp8 "$LIPSTREAM export tiny --precision fp8 -o $OUT/tiny-fp8 &&
  $LIPSTREAM build $OUT/tiny-fp8 --recipe tiny-fp8 -o $OUT/tiny-fp8-engines --json > $OUT/fp8-build.json &&
  $LIPSTREAM verify $OUT/tiny-fp8-engines --json > $OUT/fp8-verify.json"
part fp8size "$LIPSTREAM export \$(cat $OUT/files.txt) --precision fp8 --no-parity -o $OUT/$SIZE-fp8 &&
  $LIPSTREAM build $OUT/$SIZE-fp8 --recipe $SIZE-fp8-h100 -o $OUT/$SIZE-fp8-engines --json > $OUT/fp8-$SIZE.json &&
  $PY -m benchmarks.stream --bundle $OUT/$SIZE-fp8-engines --streams 1 2 4 8 --json $OUT/stream-fp8-$SIZE.json"
part dub "$LIPSTREAM run sdk/lipstream/sample/face.mp4 sdk/lipstream/sample/speech.wav -o $OUT/dub.mp4 \
  --bundle $OUT/tiny-engines --json > $OUT/dub.json"
part onnxruntime "$LIPSTREAM run sdk/lipstream/sample/face.mp4 sdk/lipstream/sample/speech.wav -o $OUT/ort.mp4 --provider cuda"

if [ "${1:-}" = --list ]; then
  for name in "${ORDER[@]}"; do printf '%s\t%s\n' "$name" "${PART[$name]//$'\n'/ }"; done
  exit
fi
chosen=("${@:-${ORDER[@]}}")
for name in "${chosen[@]}"; do
  [ -n "${PART[$name]+there}" ] || { echo "no part is called $name; bash $0 --list" >&2; exit 2; }
done

mkdir -p "$OUT"
failed=0
summary=$OUT/summary.txt
: > "$summary"
for name in "${chosen[@]}"; do
  left=$((LIMIT - SECONDS))
  if [ $left -le 0 ]; then
    echo "$name: not run, the time is up" | tee -a "$summary"
    failed=1
    continue
  fi
  begun=$SECONDS
  if timeout "$left" bash -c "${PART[$name]}" > "$OUT/$name.log" 2>&1; then state=ok; else state="FAILED ($?)"; failed=1; fi
  echo "$name: $state, $((SECONDS - begun)) s; $OUT/$name.log" | tee -a "$summary"
done
exit $failed

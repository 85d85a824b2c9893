#!/usr/bin/env bash
# All measurements that need a GPU (TO_MEASURE.md), on a bare machine:
#
#     bash benchmarks/h100.sh                 # every part, the 1.3B stream on engines first
#     bash benchmarks/h100.sh kernels tiny    # only these parts
#     bash benchmarks/h100.sh --bundles       # only the bundles, which need no GPU
#     bash benchmarks/h100.sh --list          # the parts and their commands
#     bash benchmarks/h100.sh --help          # this text
#
# Needs NVIDIA's driver, CUDA's nvcc, Python 3.11 or later. The part "install" fetches packages from PyPI; with PYTHON
# set to an interpreter that has LipStream with [dev] and [tensorrt] it is left out.
#
# Every part has a time limit, a log and results in OUT (default out/gpu); one that fails does not stop the others. A
# part whose result exists is skipped, so the same command continues after an interruption; --fresh repeats all.
# LIMIT: seconds of all parts together. SIZE: 1.3b (default) or 14b.
#
# BUNDLES: folder of the bundles that engines are built from (default OUT/bundles). Those that it holds are used, also
# with --fresh if BUNDLES is given; the others are exported. So they can be made on a machine without a GPU and copied.
# SIZE=tiny DEVICE=cpu QUICK=1 tries the part "eager" on a CPU.
set -uo pipefail
cd "$(dirname "$0")/.."

OUT=${OUT:-out/gpu} SIZE=${SIZE:-1.3b} LIMIT=${LIMIT:-600} DEVICE=${DEVICE:-cuda} QUICK=${QUICK:-}
PYTHON=${PYTHON:-} GIVEN=${BUNDLES:-}
BUNDLES=${BUNDLES:-$OUT/bundles}
PY=${PYTHON:-.venv/bin/python}
LIPSTREAM="$PY -m lipstream"

declare -A COMMAND MOST RESULT
ORDER=()
part() { # name, most seconds, command; result: by default a file that is written when the part has passed
  ORDER+=("$1") MOST[$1]=$2 COMMAND[$1]=$3 RESULT[$1]=${4:-$OUT/$1-$SIZE.ok}
}
bundle() { # name, most seconds, folder, command
  part "$1" "$2" "$4 -o $3" "$3"
}
# Files of a release with random weights, written once, and only if a bundle is missing.
FILES="{ [ -s $OUT/files-$SIZE.txt ] || $PY -m benchmarks.random_release $SIZE $OUT/files-$SIZE > $OUT/files-$SIZE.txt ; }"
RELEASE="$FILES && $LIPSTREAM export \$(cat $OUT/files-$SIZE.txt) --no-parity"
STREAM="$PY -m benchmarks.stream --bundle"

[ -n "$PYTHON" ] || part install 900 "make .venv/.dev && $PY -m pip install --quiet -e '.[dev,tensorrt]'"
part doctor 60 "$LIPSTREAM doctor"
bundle bundle 1200 $BUNDLES/$SIZE-bf16 "$RELEASE --precision bf16"
part build 1800 "$LIPSTREAM build $BUNDLES/$SIZE-bf16 --recipe $SIZE-bf16-h100 -o $OUT/$SIZE-engines \
  --json > $OUT/build-$SIZE.json"
part stream 300 "$STREAM $OUT/$SIZE-engines --streams 1 2 4 8 --json $OUT/stream-$SIZE.json \
  --trace $OUT/trace-$SIZE.json --timeline $OUT/timeline-$SIZE.svg"
part prepared 300 "$STREAM $OUT/$SIZE-engines --streams 1 2 4 8 --prepared --json $OUT/prepared-$SIZE.json"
# A skipped test proves nothing, so it counts as a failure.
part kernels 300 "$PY -m pytest -q -rs tests/csrc -k cuda | tee $OUT/kernels.txt && ! grep -q skipped $OUT/kernels.txt"
bundle bundle-tiny 120 $BUNDLES/tiny-bf16 "$LIPSTREAM export tiny --precision bf16"
part tiny 600 "$LIPSTREAM build $BUNDLES/tiny-bf16 --recipe tiny-bf16 -o $OUT/tiny-engines --json > $OUT/tiny-build.json &&
  $LIPSTREAM verify $OUT/tiny-engines --json > $OUT/tiny-verify.json &&
  $STREAM $OUT/tiny-engines --against tiny --streams 1 2 4 8 --json $OUT/tiny-stream.json \
    --trace $OUT/tiny-trace.json --timeline $OUT/tiny-timeline.svg"
part fits 300 "$STREAM $OUT/tiny-engines --streams 1 2 4 8 --prepared --json $OUT/tiny-prepared.json"
part dub 120 "$LIPSTREAM run sdk/lipstream/sample/face.mp4 sdk/lipstream/sample/speech.wav -o $OUT/dub.mp4 \
  --bundle $OUT/tiny-engines --json > $OUT/dub.json"
part verify 600 "$LIPSTREAM verify $OUT/$SIZE-engines --json > $OUT/verify-$SIZE.json"
part layers 120 "$LIPSTREAM inspect $OUT/$SIZE-engines --layers > $OUT/layers-$SIZE.txt"
part eager 600 "$PY -m benchmarks.dit_latency --size $SIZE --device $DEVICE --json $OUT/dit_latency-$SIZE.json \
  ${QUICK:+--quick}"
bundle bundle-light 1200 $BUNDLES/$SIZE-light "$RELEASE --encoder taehv --precision bf16"
part light 1800 "$LIPSTREAM build $BUNDLES/$SIZE-light --recipe $SIZE-bf16-h100 -o $OUT/$SIZE-light-engines \
    --json > $OUT/light-$SIZE.json &&
  $STREAM $OUT/$SIZE-light-engines --streams 1 2 4 --json $OUT/stream-light-$SIZE.json &&
  $LIPSTREAM verify $OUT/$SIZE-light-engines --json > $OUT/verify-light-$SIZE.json"
bundle bundle-tiny-fp8 300 $BUNDLES/tiny-fp8 "$LIPSTREAM export tiny --precision fp8"
part fp8 600 "$LIPSTREAM build $BUNDLES/tiny-fp8 --recipe tiny-fp8 -o $OUT/tiny-fp8-engines --json > $OUT/fp8-build.json &&
  $LIPSTREAM verify $OUT/tiny-fp8-engines --json > $OUT/fp8-verify.json"
bundle bundle-fp8 1800 $BUNDLES/$SIZE-fp8 "$RELEASE --precision fp8"
part fp8size 1800 "$LIPSTREAM build $BUNDLES/$SIZE-fp8 --recipe $SIZE-fp8-h100 -o $OUT/$SIZE-fp8-engines \
    --json > $OUT/fp8-$SIZE.json &&
  $STREAM $OUT/$SIZE-fp8-engines --streams 1 2 4 8 --json $OUT/stream-fp8-$SIZE.json &&
  $LIPSTREAM verify $OUT/$SIZE-fp8-engines --json > $OUT/verify-fp8-$SIZE.json"
part onnxruntime 120 "$LIPSTREAM run sdk/lipstream/sample/face.mp4 sdk/lipstream/sample/speech.wav -o $OUT/ort.mp4 \
  --provider cuda"

chosen=() fresh=
for word in "$@"; do
  case $word in
    --list)
      for name in "${ORDER[@]}"; do printf '%s\t%s\n' "$name" "${COMMAND[$name]//$'\n'/ }"; done
      exit
      ;;
    --help)
      sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' benchmarks/h100.sh
      exit
      ;;
    --fresh) fresh=yes ;;
    --bundles) for name in "${ORDER[@]}"; do [[ $name != bundle* ]] || chosen+=("$name"); done ;;
    *)
      [ -n "${COMMAND[$word]+there}" ] || { echo "no part is called $word; bash $0 --list" >&2; exit 2; }
      chosen+=("$word")
      ;;
  esac
done
[ ${#chosen[@]} -gt 0 ] || chosen=("${ORDER[@]}")

mkdir -p "$OUT" "$BUNDLES"
child=
trap '[ -z "$child" ] || kill "$child"; exit 130' INT TERM
declare -A names=()
note() { # state, name, detail
  names[$1]+=" $2"
  echo "$2: $1, $3"
}
for name in "${chosen[@]}"; do
  result=${RESULT[$name]} left=$((LIMIT - SECONDS)) log=$OUT/$name.log
  again=$fresh
  [[ $name != bundle* || -z $GIVEN ]] || again=
  if [ -z "$again" ] && [ -e "$result" ]; then
    note skipped "$name" "$result exists"
    continue
  fi
  if [ $left -le 0 ]; then
    note "not run" "$name" "the time is up (LIMIT=$LIMIT); run it again to continue"
    continue
  fi
  begun=$SECONDS most=$((MOST[$name] < left ? MOST[$name] : left))
  [[ $result != *.ok ]] || rm -f "$result"
  timeout --kill-after=10 "$most" bash -o pipefail -c "${COMMAND[$name]}" > "$log" 2>&1 &
  child=$!
  wait $child
  code=$?
  child=
  if [ $code -eq 0 ]; then
    [[ $result != *.ok ]] || touch "$result"
    note passed "$name" "$((SECONDS - begun)) s; $log"
    [ "$name" != stream ] || cat "$log"
  elif [ $code -eq 124 ] || [ $code -eq 137 ]; then
    note failed "$name" "stopped after $most s; $log"
  else
    note failed "$name" "exit status $code, $((SECONDS - begun)) s; $log"
  fi
done
for state in passed failed skipped "not run"; do echo "$state:${names[$state]:- none}"; done | tee "$OUT/summary.txt"
[ -z "${names[failed]:-}${names[not run]:-}" ]

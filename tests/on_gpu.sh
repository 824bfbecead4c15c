#!/usr/bin/env bash
# Checks kernels and whole models on this machine's GPU, then measures. What it finds goes to FOLDER: check-*.log, and a
# JSON list of each shape's measurements.
#
#   tests/on_gpu.sh vulkan|cuda FOLDER [check] [attention] [SHAPE…]      SHAPE: a name in tests/shapes/, as lite9
#
# `attention` is one layer's alone, of DeepSeek-V3 in a batch of 64 and of GLM-4.7-Flash in one of 1, beside PyTorch's
# where that is installed.
# The checks run in PYTEST_WORKERS processes (2).
set -uo pipefail
cd "$(dirname "$0")/.."
device=$1 folder=$2
shift 2
export MLC_DSV3_TEST_GPU=$device PYTHONUNBUFFERED=1
mkdir -p "$folder"
failed=0
for part in "$@"; do
    started=$SECONDS
    if [ "$part" = check ]; then
        timeout 240 python3 -m pytest -q -m "full or not full" -p no:cacheprovider -n "${PYTEST_WORKERS:-2}" \
            tests/vulkan/test_gpu_kernels.py tests/vulkan/test_gpu_sampling.py tests/vulkan/test_model.py \
            tests/vulkan/test_device_bench.py tests/cuda/test_graph.py tests/emulation/test_verbs.py \
            > "$folder/check-$device.log" 2>&1 || failed=1
        tail -n 30 "$folder/check-$device.log"
    elif [ "$part" = attention ]; then
        versus=()
        if [ "$device" = cuda ] && python3 -c "import torch" 2> /dev/null; then versus=(--versus torch); fi
        for shape in deepseek_v3:1,64 glm_4_7_flash:1; do
            timeout 120 python3 -m mlc_dsv3 bench --device "$device" --model-config "tests/shapes/${shape%:*}.json" \
                --random-weights --attention --batch "${shape#*:}" --depth 8192 --rounds 5 "${versus[@]}" --json \
                > "$folder/attention-$device-${shape%:*}.json" 2> "$folder/attention-$device-${shape%:*}.err" || failed=1
            cat "$folder/attention-$device-${shape%:*}.json"
        done
    else
        timeout 240 python3 -m mlc_dsv3 bench --device "$device" --model-config "tests/shapes/$part.json" \
            --random-weights --prefill 2048 --decode 64 --depth 0,4096 --batch 1,16 --verify 2 --profile --json \
            > "$folder/bench-$device-$part.json" 2> "$folder/bench-$device-$part.err" || failed=1
        tail -n 3 "$folder/bench-$device-$part.err" | tail -c 500
        python3 - "$folder/bench-$device-$part.json" <<'PY'
import json, sys
for m in json.load(open(sys.argv[1])):
    print(*(f"{name}={m[name]:.4g}" if isinstance(m[name], float) else f"{name}={m[name]}" for name in (
        "device", "model", "kind", "depth", "batch", "tokens", "tokens_per_second", "gb_per_second",
        "limit_gb_per_second", "share_of_limit", "load_seconds", "compile_seconds", "host_seconds_per_launch")))
    for k in sorted(m["profile"], key=lambda k: -k["milliseconds"])[:9]:
        print(f"    {k['operator']} {k['shape']} x{k['calls']} {k['milliseconds']:.3f} ms {k['bytes'] / 1e6 / max(k['milliseconds'], 1e-6):.0f} GB/s {k['launches']} launches")
PY
    fi
    echo "== $device $part: $((SECONDS - started)) s"
done
exit $failed

#!/bin/sh
# An engineer has photos in class folders and a checkpoint of timm's train.py. A small model must ship as ONNX by Friday.
#
#   sh 1-ship-an-onnx.sh [PHOTOS [CHECKPOINT]]
#
# Without PHOTOS: handwritten digits, and a checkpoint trained on them here. Files go to a new folder, or to $WORK.
# With photos of your own set EPOCHS (30, say), SIZE (224) and STUDENT.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
photos=${1:+$(cd "$1" && pwd)}
checkpoint=${2:+$(realpath "$2")}
cd "${WORK:-$(mktemp -d)}"
echo "Working in $PWD"
student=${STUDENT:-mobilenetv3_small_050}

if [ -z "$photos" ]; then
    photos=photos
    python "$here/make_data.py" photos $photos
fi
if [ -z "$checkpoint" ]; then
    kdcli distill --teacher none --student resnet10t --data "$photos" --epochs "${EPOCHS:-4}" --output runs/mine --set \
        student.image_size="${SIZE:-32}" --no-test --quiet
    checkpoint=model_best.pth.tar
    python "$here/make_data.py" checkpoint runs/mine $checkpoint
fi

# 1. What would happen: is the checkpoint understood, and is it any good on these photos?
kdcli distill --teacher "$checkpoint" --student "$student" --data "$photos" --dry-run --set \
    student.image_size="${SIZE:-32}"
# 2. Train, with the student alone beside it, and see whether it helped.
kdcli distill --teacher "$checkpoint" --student "$student" --data "$photos" --epochs "${EPOCHS:-4}" --baseline \
    --output runs/small --set student.image_size="${SIZE:-32}"
# 3. Accuracy, size and latency beside the teacher.
kdcli evaluate runs/small
# 4. The file to ship, and the page to send along.
kdcli export runs/small --format onnx --output deploy
kdcli report runs/small
# 5. The same answers from kdcli and from the shipped file.
find -L "$photos" -type f -name '*.[pjPJ]*[gG]' | sort | head -4 >some.txt
xargs kdcli predict runs/small --json <some.txt >predictions.json
python - <<'CHECK'
import json
from pathlib import Path

import onnxruntime

result = json.loads(Path("runs/small/result.json").read_text())
alone = json.loads(Path("runs/small/baseline/result.json").read_text())
split = "test" if result.get("test") else "validation"
accuracy, other = result[split]["accuracy"], alone[split]["accuracy"]
assert 0 < accuracy <= 1 and 0 < other <= 1
session = onnxruntime.InferenceSession("deploy/model.onnx")
assert session.get_inputs()[0].shape[1] == 3
assert len(json.loads(Path("predictions.json").read_text())["predictions"]) == 4
assert Path("runs/small/report.html").stat().st_size > 10_000
print(f"Done: {split} accuracy {accuracy:.1%} distilled, {other:.1%} alone; deploy/model.onnx, runs/small/report.html")
CHECK

#!/bin/sh
# An engineer has photos in class folders and a checkpoint of timm's train.py. A small model must ship as ONNX by Friday.
#
#   sh 1-ship-an-onnx.sh [PHOTOS [CHECKPOINT]]
#
# Without PHOTOS: handwritten digits, and a checkpoint trained on them here. Files go to a new folder, or to $WORK.
# With photos of your own set EPOCHS (30, say), SIZE (224) and STUDENT.
# Needs: pip install -e '.[onnx]'
set -eu
here=$(cd "$(dirname "$0")" && pwd)
photos=${1:+$(cd "$1" && pwd)}
checkpoint=${2:+$(realpath "$2")}
cd "${WORK:-$(mktemp -d)}"
echo "Working in $PWD"
student=${STUDENT:-mobilenetv3_small_050}

quick=
if [ -z "$photos" ]; then
    photos=photos
    # Many steps in few epochs, and gentle augmentation. Photos of your own take the defaults.
    quick="--batch-size 32 --lr 0.003 --set augment.crop_scale=[0.7,1] --set augment.flip=0"
    python "$here/make_data.py" photos $photos
fi
if [ -z "$checkpoint" ]; then
    kdcli distill --teacher none --student resnet10t --data "$photos" --epochs "${EPOCHS:-4}" --output runs/mine \
        --set student.image_size="${SIZE:-32}" $quick --no-test --quiet
    checkpoint=model_best.pth.tar
    python "$here/make_data.py" checkpoint runs/mine $checkpoint
fi

# 1. What would happen: is the checkpoint understood, and is it any good on these photos?
kdcli distill --teacher "$checkpoint" --student "$student" --data "$photos" --dry-run \
    --set student.image_size="${SIZE:-32}" $quick
# 2. Train, with the student alone beside it, and see whether it helped.
kdcli distill --teacher "$checkpoint" --student "$student" --data "$photos" --epochs "${EPOCHS:-4}" --baseline \
    --output runs/small --set student.image_size="${SIZE:-32}" $quick
# 3. Accuracy, size and latency beside the teacher.
kdcli evaluate runs/small
# 4. The file to ship, and the page to send along.
kdcli export runs/small --format onnx --output deploy
kdcli report runs/small
# 5. The same answers from kdcli and from the shipped file.
find -L "$photos" -type f -name '*.[pjPJ]*[gG]' | sort | head -4 >some.txt
xargs -d '\n' kdcli predict runs/small --json <some.txt >predictions.json
python - <<'CHECK'
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

result = json.loads(Path("runs/small/result.json").read_text())
alone = json.loads(Path("runs/small/baseline/result.json").read_text())
split = "test" if result.get("test") else "validation"
accuracy, other = result[split]["accuracy"], alone[split]["accuracy"]
assert 0 < accuracy <= 1 and 0 < other <= 1
session = onnxruntime.InferenceSession("deploy/model.onnx")
told = json.loads(Path("deploy/preprocessing.json").read_text())
predictions = json.loads(Path("predictions.json").read_text())["predictions"]
for each in predictions:  # without kdcli: resize, crop the middle, normalise
    image = Image.open(each["input"]).convert("RGB").resize(told["resize"][::-1], Image.Resampling.BICUBIC)
    height, width = told["image_size"]
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), "float32") / 255
    pixels = ((pixels - told["mean"]) / told["std"]).transpose(2, 0, 1)[None].astype("float32")
    (logits,) = session.run(None, {session.get_inputs()[0].name: pixels})
    answer = each["answers"]["student"][0]
    shares = np.exp(logits[0]) / np.exp(logits[0]).sum()
    assert told["labels"][int(shares.argmax())] == answer["label"], each["input"]
    assert abs(float(shares.max()) - answer["probability"]) < 1e-3, (each["input"], shares.max(), answer)
assert Path("runs/small/report.html").stat().st_size > 10_000
print(f"Done: {split} accuracy {accuracy:.1%} distilled, {other:.1%} alone; deploy/model.onnx, runs/small/report.html")
CHECK

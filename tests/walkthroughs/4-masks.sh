#!/bin/sh
# Someone has images with masks, and wants a small segmenter.
#
#   sh 4-masks.sh [FOLDER]
#
# FOLDER has images/ and masks/ with equal file names (`kdcli guide dense` names the other forms). Without it: 160 images
# of discs and boxes. With your own set EPOCHS, SIZE and CLASSES. Files go to a new folder, or to $WORK.
# Needs: pip install -e '.[dense,demo]'
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:+$(realpath "$1")}
cd "${WORK:-$(mktemp -d)}"
echo "Working in $PWD"
size=${SIZE:-64}
if [ -z "$folder" ]; then
    folder=masks
    CLASSES='[background,disc,box]'
    python "$here/make_data.py" masks $folder
fi
common="--task semantic-segmentation --student smp:unet/mobilenetv3_small_050 --data $folder --epochs ${EPOCHS:-6}
    --batch-size 16 --set train.validate_every=3 --set student.image_size=$size"
[ -z "${CLASSES:-}" ] || common="$common --set data.class_names=$CLASSES"

# 1. What was found in the folder, and what would be distilled?
kdcli distill $common --teacher package:efficientnet_lite0 --set teacher.image_size="$size" --dry-run
# 2. Train beside the student alone.
kdcli distill $common --teacher package:efficientnet_lite0 --set teacher.image_size="$size" --baseline --output runs/masks
# 3. Measure, look, hand over.
kdcli evaluate runs/masks --show 6
kdcli predict runs/masks "$folder/images" --output pictures
kdcli export runs/masks --format onnx --output deploy
python - <<'CHECK'
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

result = json.loads(Path("runs/masks/result.json").read_text())
mean_iou = result["validation"]["mean_iou"]
assert 0 < mean_iou <= 1
for name in ("runs/masks/samples.png", "runs/masks/evaluation/samples.png"):
    Image.open(name).verify()
made = sorted(Path("pictures").glob("*_mask.png"))
numbers = set(np.unique(np.asarray(Image.open(made[0]))).tolist())
onnxruntime.InferenceSession("deploy/model.onnx")
print(f"Done: validation mean IoU {mean_iou:.1%}; {len(made)} masks in pictures/ (the first has classes {numbers})")
CHECK

#!/bin/sh
# A researcher compares three methods over seeds, and puts table and figure into a paper.
#
#   sh 2-compare-methods.sh [DATA]
#
# Without DATA: demo:digits with few labels, three seeds of a student that takes seconds. $SEEDS sets other seeds, $TEACHER
# another teacher; $STUDENT, $SIZE, $IMAGES and $EPOCHS the rest. Files go to a new folder, or to $WORK.
# Needs: pip install -e '.[demo]'; pdflatex, where there is one, sets the paper.
set -eu
data=${1:-demo:digits}
[ ! -e "$data" ] || data=$(realpath "$data")
cd "${WORK:-$(mktemp -d)}"
echo "Working in $PWD"
mkdir -p methods

# One recipe says what all methods share; each method says only what differs.
cat >common.yaml <<RECIPE
description: What the methods share
task: image-classification
teacher: {name: "${TEACHER:-package:efficientnet_lite0}", image_size: ${TEACHER_SIZE:-48}}
student: {name: "${STUDENT:-cifar:resnet8}", image_size: ${SIZE:-32}}
data: {name: "$data", train_images: ${IMAGES:-200}}
optim: {lr: 0.01}
train: {epochs: ${EPOCHS:-6}, batch_size: 32, validate_every: 3}
RECIPE
cat >methods/alone.yaml <<RECIPE
extends: ../common.yaml
description: The labels alone
teacher: none
methods: [{method: supervised}]
RECIPE
cat >methods/projection.yaml <<RECIPE
extends: ../common.yaml
description: The plan's own projection
RECIPE
cat >methods/rkd.yaml <<RECIPE
extends: ../common.yaml
description: Relational distances
methods: [{method: supervised}, {method: rkd_distance}]
RECIPE
for recipe in methods/*.yaml; do kdcli config check "$recipe"; done

# Hyperparameters are best chosen with --no-test and seeds of their own; here they are as they are.
kdcli sweep methods --seeds "${SEEDS:-3}" --output runs/methods --baseline alone
kdcli compare runs/methods --baseline runs/methods/alone/seed-0 --output paper

cat >paper/paper.tex <<'LATEX'
\documentclass{article}
\usepackage{booktabs,graphicx}
\begin{document}
\begin{table}\centering\input{table.tex}\caption{Methods over seeds.}\end{table}
\begin{figure}\centering\includegraphics[width=\linewidth]{bars.png}\caption{Means with 95\,\% intervals.}\end{figure}
\end{document}
LATEX
if command -v pdflatex >/dev/null; then
    (cd paper && pdflatex -interaction=nonstopmode -halt-on-error paper.tex >/dev/null)
fi
python - <<'CHECK'
import csv
import json
import re
from pathlib import Path

from PIL import Image

table = Path("paper/table.tex").read_text()
assert all(word in table for word in ("\\toprule", "\\bottomrule", "alone", "projection", "rkd"))
assert table.count("{") == table.count("}") and not re.search(r"(?<!\\)[%_#]", table), "LaTeX would stop here"
rows = list(csv.DictReader(open("paper/compare.csv", newline="")))
results = [json.loads(file.read_text()) for file in Path("runs/methods").glob("*/seed-*/result.json")]
assert len(rows) == len(results) and len(rows) % 3 == 0, (len(rows), len(results))
Image.open("paper/bars.png").verify()
print(table)
print(f"Done: {len(results)} runs; paper/table.tex, paper/bars.png, paper/paper.tex")
CHECK

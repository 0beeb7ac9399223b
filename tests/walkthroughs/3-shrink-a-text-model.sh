#!/bin/sh
# A text engineer has a csv of texts with labels and a folder of a sentence encoder, such as MiniLM.
#
#   sh 3-shrink-a-text-model.sh [TEXTS.csv [ENCODER]]
#
# Without TEXTS: sentences of Python's manual. Without ENCODER: an untrained small BERT, so that nothing is downloaded
# (its numbers mean nothing). Files go to a new folder, or to $WORK.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
texts=${1:+$(realpath "$1")}
encoder=${2:+$(realpath "$2")}
cd "${WORK:-$(mktemp -d)}"
echo "Working in $PWD"
[ -n "$texts" ] || { texts=texts.csv && python "$here/make_data.py" texts $texts; }
[ -n "$encoder" ] || { encoder=encoder && python "$here/make_data.py" encoder $encoder; }

# 1. Which task fits the file? The answer is an error that names it.
kdcli distill --teacher "$encoder" --student 'teacher?layers=2' --data "$texts" --dry-run && exit 1
# 2. A classifier: half of the encoder's layers, with the encoder as teacher, and the same student alone.
kdcli distill --task text-classification --teacher "$encoder" --student 'teacher?layers=2' --data "$texts" \
    --epochs "${EPOCHS:-3}" --baseline --output runs/classifier
# 3. An encoder for search: no labels are read; the teacher's space goes into the student.
kdcli distill --task sentence-embedding --teacher "$encoder" --student 'teacher?layers=1' --data "$texts" \
    --epochs "${EPOCHS:-3}" --output runs/search
# 4. Use both.
kdcli evaluate runs/classifier
kdcli predict runs/classifier --text "The for statement is used to iterate over the elements of a sequence." --json >one.json
kdcli predict runs/search "$texts" --output embeddings.npy
kdcli export runs/classifier
kdcli export runs/search
python - <<'CHECK'
import json
from pathlib import Path

import numpy as np
from transformers import AutoModelForSequenceClassification, AutoTokenizer

result = json.loads(Path("runs/classifier/result.json").read_text())
search = json.loads(Path("runs/search/result.json").read_text())
(answer,) = json.loads(Path("one.json").read_text())["predictions"]
AutoTokenizer.from_pretrained("runs/classifier/export")
model = AutoModelForSequenceClassification.from_pretrained("runs/classifier/export")
embeddings = np.load("embeddings.npy")
assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-4)
print(f"Done: validation accuracy {result['validation']['accuracy']:.1%} with {model.num_labels} classes;")
print(f"rank correlation with the teacher's cosines {search['validation']['spearman']:.3f}; {len(embeddings)} embeddings")
CHECK

"""What about 60 command lines print and leave behind, to show that a change of the structure changes nothing else.

    KDCLI_PARITY=before.json pytest -n0 tests/benchmarks/parity.py
    KDCLI_PARITY=after.json pytest -n0 tests/benchmarks/parity.py
    python tests/benchmarks/parity.py before.json after.json

The first two record: every task, every method, resume, two processes, a sweep, episodes, exports and what is printed of
them. Times, throughput and where the files lie are taken out; all else, weights to the bit, has to be equal. Both are to
be run on the same machine with the same packages.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

RECORD = os.environ.get("KDCLI_PARITY")
TIMED = {"images_per_second", "texts_per_second", "data_wait", "seconds", "time", "ms_per_sample", "created"}
"""Keys of JSON files whose values are times, or follow from them."""
QUICK = ("--batch-size", "16", "--epochs", "1", "--device", "cpu")
SMALL = (*QUICK, "--set", "data.workers=0")
METHODS = {
    "inverted": "{method: projection, projector: inverted}, {method: spectral_regularization}",
    "orthogonal": "{method: projection, projector: orthogonal, normalize: whiten, weight: 1, weighting: loss}",
    "logits": "{method: logit_kd}, {method: dkd}, {method: dist}",
    "maps": "{method: fitnet}, {method: attention_transfer}, {method: nst}, {method: vid}, {method: review_kd}",
    "relations": "{method: similarity_preserving}, {method: pkt}, {method: correlation_congruence},"
    " {method: rkd_distance}, {method: rkd_angle}, {method: crd, negatives: 16}",
    "projected": "{method: fitnet, projector: inverted}, {method: pkt, projector: mlp}",
    "triplets": "{method: stochastic_triplet_kl}, {method: local_classifier_kl}",
}


def commands(folders: dict[str, Path]) -> Iterator[tuple[str, tuple[str | Path, ...]]]:
    """Yield a name and the arguments of each command, in the order in which they are run."""
    photos, teacher, vit = folders["photos"], folders["teacher"], folders["vit"]
    images = ("--data", photos, *SMALL, "--set", "student.image_size=32")
    pair = ("--teacher", teacher, "--student", "test_vit")

    def distill(name: str, *arguments: str | Path) -> tuple[str, tuple[str | Path, ...]]:
        return name, ("distill", *arguments, "--output", f"runs/{name}")

    yield distill("alone", "--teacher", "none", "--student", "test_vit", *images)
    yield distill("random", "--teacher", "random:test_resnet", "--student", "test_vit", *images)
    yield distill("same", *pair, *images, "--baseline")
    yield distill("classes", *pair, "--data", "demo:digits", *SMALL, "--set", "data.train_images=100")
    yield distill("transformers", "--teacher", vit, "--student", vit, "--unchecked-teacher", *images)
    yield distill("dry", *pair, *images, "--dry-run")
    for name, methods in METHODS.items():
        yield distill(name, *pair, *images, "--set", f"methods=[{{method: supervised}}, {methods}]")
    yield distill("refilled", *pair, *images, "--method", "refilled")
    yield distill(
        "distilled-token", "--teacher", teacher, "--student", "deit_tiny_distilled_patch16_224?depth=1&embed_dim=24&"
        "num_heads=2&patch_size=8", "--method", "deit", *images, "--no-student-pretrained",
    )  # fmt: skip
    yield distill(
        "mixed", *pair, *images, "--set", "augment.mixup=0.2", "--set", "augment.cutmix=1", "--set", "train.ema=0.9",
        "--set", "data.labels_per_class=3",
    )  # fmt: skip
    yield distill("resumed", *pair, *images)
    yield "resume", ("distill", "--resume", "runs/resumed", "--epochs", "2")
    yield distill("two-processes", *pair, *images, "--num-processes", "2")
    yield (
        "sweep",
        ("sweep", "runs/random/config.yaml", "--seeds", "2", "--vary", "optim.lr=0.01,0.001", "--output", "swept"),
    )
    yield distill(
        "episodes", *pair, *images, "--ways", "2", "--shots", "4", "--queries", "2", "--episodes", "2",
    )  # fmt: skip
    bert, student = folders["bert"], "hf:distilbert?dim=24&n_layers=1&n_heads=2&hidden_dim=32"
    texts = ("--teacher", bert, "--student", student, *QUICK)
    yield distill("texts", "--task", "text-classification", *texts, "--data", folders["reviews"])
    yield distill("numbers", "--task", "text-classification", *texts, "--data", folders["numbers"])
    yield distill("labels", "--task", "text-classification", *texts, "--data", folders["labels"])
    yield distill("words", "--task", "token-classification", *texts, "--data", folders["entities"])
    yield distill("sentences", "--task", "sentence-embedding", *texts, "--data", folders["reviews"])
    for task in ("masked", "causal"):
        models = folders["language"]
        pair_of_words = ("--teacher", models / task, "--student", models / f"{task}-student")
        yield distill(
            task, "--task", f"{task}-lm", "--unchecked-teacher", *pair_of_words, *QUICK, "--data", folders["reviews"]
        )
    yield distill("image-embedding", "--task", "image-embedding", *pair, *images)
    yield distill(
        "image-embedding-from-vit", "--task", "image-embedding", "--teacher", vit, "--student", "test_vit", *images
    )
    for name in ("same", "transformers", "texts", "words", "causal", "sentences", "image-embedding"):
        yield f"export-{name}", ("export", f"runs/{name}", "--output", f"exported/{name}")
    yield "evaluate", ("evaluate", "runs/same", "--device", "cpu", "--output", "evaluated")
    yield "analyze", ("analyze-projector", "runs/random")
    yield "analyze-several", ("analyze-projector", "runs/random", "runs/classes", "--output", "analyzed-several")
    yield "compare", ("compare", "runs/same", "runs/random", "runs/alone")
    yield "probe", ("models", "probe", "--teacher", teacher, "--teacher", vit, "--data", photos, "--device", "cpu")
    yield "layers", ("models", "layers", teacher)
    yield "search", ("models", "search", "--max-params", "1M", "--name", "test_*")
    yield "recipes", ("recipes", "list")
    yield "recipe", ("recipes", "show", "quickstart")
    yield "extensions", ("extensions",)
    for command in ("distill", "sweep", "export", "analyze-projector", "compare", "evaluate"):
        yield f"help-{command}", (command, "--help")
    for name, wrong in {
        "no-teacher": ("--teacher", "resnett18", "--student", "test_vit", *images),
        "no-data": (*pair, "--data", "nowhere", *SMALL),
        "no-key": (*pair, *images, "--set", "train.epoch=1"),
        "no-method": (*pair, *images, "--method", "logit"),
        "no-task": (*pair, *images, "--task", "segmentation"),
        "no-effect": ("--teacher", "none", "--student", "test_vit", *images, "--projector", "inverted"),
        "text-key": (*pair, *images, "--set", "student.max_length=8"),
    }.items():
        yield distill(f"wrong-{name}", *wrong)
    yield "wrong-resume", ("distill", "--resume", "runs/same", "--lr", "0.5")


def files_of(folder: Path, root: str) -> Iterator[tuple[str, Any]]:
    """Yield what is compared of each file: tensors' hashes by name, JSON without times, else text or a hash."""
    from safetensors.torch import load_file

    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if not file.is_file() or "/checkpoints/" in f"/{name}":
            continue
        if file.suffix == ".safetensors":
            tensors = load_file(file)
            yield name, {key: digest(value.numpy().tobytes()) for key, value in sorted(tensors.items())}
        elif file.suffix == ".json":
            yield name, untimed(json.loads(file.read_text()), root)
        elif file.suffix == ".jsonl":
            yield name, [untimed(json.loads(line), root) for line in file.read_text().splitlines()]
        elif file.suffix == ".csv":  # the last column is seconds
            yield name, re.sub(r",[\d.]*$", "", plain(file.read_text(), root), flags=re.M)
        elif file.suffix in {".yaml", ".md", ".txt"}:
            yield name, plain(file.read_text(), root)
        elif file.suffix not in {".png", ".onnx", ".svg"}:  # their bytes hold versions and times
            yield name, digest(file.read_bytes())
        else:
            yield name, "is there"


def digest(content: bytes) -> str:
    """Return a short hash."""
    return hashlib.sha256(content).hexdigest()[:16]


def untimed(value: Any, root: str) -> Any:
    """Return JSON without times, paths and the sums over files that hold them."""
    if isinstance(value, dict):
        return {
            plain(key, root): untimed(entry, root)
            for key, entry in value.items()
            if key not in TIMED and not key.endswith("_seconds") and "latency" not in key and "checksum" not in key
        }
    if isinstance(value, list):
        return [untimed(entry, root) for entry in value]
    return plain(value, root) if isinstance(value, str) else value


def plain(text: str, root: str) -> str:
    """Return ``text`` without times, rates, sums over files, the widths they give to tables, and where the files lie."""
    text = text.replace(root, "ROOT")
    text = re.sub(r"\b[0-9a-f]{64}\b", "HASH", text)
    text = re.sub(r"\b\d+(\.\d+)? (ms|s|min|h)\b", "TIME", text)
    text = re.sub(r"\([\d.]+x\)(?= +(Latency|Teacher against))|(?<=TIME) \([\d.]+x\)", "", text)
    text = re.sub(r"(?<=[│|]) +\d+\.\d +(?=[│|])", " TIME ", text)  # milliseconds in tables of models
    text = re.sub(r"\b[\d,.]+(?= (images|texts|samples)(/s| a second))", "RATE", text)
    text = re.sub(r"\d+%(?= waiting for data)", "SHARE", text)
    text = re.sub(r"\b\d+:\d\d(:\d\d)?\b", "TIME", text)
    text = re.sub(r"^[│|] *(seconds|latency|\w+ per second)\b.*$", r"\1", text, flags=re.M)
    text = re.sub(r"─{2,}|━{2,}|-{3,}", "──", text)
    return re.sub(r" {2,}", " ", text)


def test_record(run_cli_in: Callable[..., Any], tmp_path_factory: Any, request: Any, capfd: Any) -> None:
    """Run all commands and write what came of them to ``KDCLI_PARITY``."""
    assert RECORD, "Set KDCLI_PARITY to the file to write."
    cwd = tmp_path_factory.mktemp("parity")
    fixtures = {"photos": "photos", "teacher": "trained_teacher", "vit": "hf_folder", "bert": "bert_folder",
                "reviews": "reviews", "entities": "entities", "language": "language_models"}  # fmt: skip
    folders = {name: request.getfixturevalue(fixture) for name, fixture in fixtures.items()}
    texts = [line.rsplit(",", 1)[0] for line in folders["reviews"].read_text().splitlines()[1:]]
    for name, rows in {
        "numbers.csv": ["text,label", *(f"{text},{1.5 + 0.25 * (row % 7)}" for row, text in enumerate(texts))],
        "labels.jsonl": [
            json.dumps({"text": text, "label": ["praise"] * (row % 2) + ["long"] * (row % 3 == 0)})
            for row, text in enumerate(texts)
        ],
    }.items():
        folders[Path(name).stem] = cwd / name
        (cwd / name).write_text("\n".join(rows) + "\n")
    extra = {"numbers": ("--set", "data.label_kind=number"), "labels": ("--set", "data.label_kind=classes")}
    root = str(tmp_path_factory.getbasetemp())
    record = {}
    for name, arguments in commands(folders):
        outcome = run_cli_in(*arguments, *extra.get(name, ()), cwd=cwd)
        of_processes = capfd.readouterr()  # what several processes print, which run_cli_in does not see
        record[name] = {
            "exit": outcome.exit_code,
            "stdout": plain(outcome.stdout + of_processes.out, root).splitlines(),
            "stderr": plain(outcome.stderr + of_processes.err, root).splitlines(),
        }
    record["files"] = dict(files_of(cwd, root))
    Path(RECORD).write_text(json.dumps(record, indent=1, sort_keys=True))
    failed = [name for name, found in record.items() if name != "files" and found["exit"]]
    print("Commands that fail:", *failed)
    assert all(name.startswith("wrong-") for name in failed), {name: record[name]["stderr"] for name in failed}


def differences(first: dict[str, Any], second: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that differ between two records."""
    lines = [
        [f"{name}: {json.dumps(value, sort_keys=True)}" for name, value in sorted(leaves(record))]
        for record in (first, second)
    ]
    yield from difflib.unified_diff(*lines, "before", "after", lineterm="", n=0)


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value of a record with the path to it."""
    entries: Sequence[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))
    for key, entry in entries:
        yield from leaves(entry, f"{name}/{key}")
    if not entries:
        yield name, value


if __name__ == "__main__":
    records = [json.loads(Path(file).read_text()) for file in sys.argv[1:3]]
    found = list(differences(*records))
    print("\n".join(found) or f"{len(list(leaves(records[0])))} values are equal.")
    sys.exit(bool(found))

"""A student's folder: completed for sentence-transformers, loaded by transformers alone, and how a card loads it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import kdcli.models.transformers.quiet  # noqa: F401
from kdcli.base.errors import UserError
from kdcli.base.reads import Reads
from kdcli.base.tasks import TASKS, TaskFacts
from kdcli.config.models import Pooling
from kdcli.data import Text, TextBatch, TextPair
from kdcli.models.base import Model
from kdcli.models.detections import BOXES
from kdcli.models.reloaded import Reloaded, check_labels, logits_of
from kdcli.models.transformers import dense_kinds
from kdcli.models.transformers.dense import HFDense
from kdcli.models.transformers.detection import HFDetector
from kdcli.models.transformers.padding import pool
from kdcli.models.transformers.sentence import read_sentence_settings, write_sentence_settings
from kdcli.models.transformers.text import AUTO, HFTextModel
from kdcli.models.transformers.tokenizer import encode
from kdcli.models.transformers.tokens import HFTokenModel
from kdcli.projectors.maps import Projector, linear_layers

_BY = "transformers"
_TEXTS = ("Short.", "A text of somewhat more words, and of another length.", "Cut: " + "so much to say " * 2000)


def write(student: Model, folder: Path, projector: Projector | None) -> None:
    """Save the student; one that embeds texts also for sentence-transformers, which has no backbone's own pooler.

    Args:
        student: to save.
        folder: to write to.
        projector: from its embeddings (B, d) into the teacher's space, written as Dense layers.
    """
    student.save(folder)
    if not isinstance(student, HFTextModel) or (pooling := _pooling(student)) is None:
        return
    write_sentence_settings(
        folder,
        pooling=pooling,
        width=student.facts.feature_dims["pooled"],
        max_length=student.preprocessing.max_length,
        layers=[] if projector is None else linear_layers(projector),
    )


def _pooling(student: HFTextModel) -> Pooling | None:
    """Return how sentence-transformers is to pool; None for what it can't be given."""
    pooling = student.preprocessing.pooling
    if student.facts.num_classes or pooling == "none" or pooling == "pooler":
        return None
    return pooling


@torch.inference_mode()
def reload(student: Model, folder: Path, projector: Projector | None) -> Iterator[Reloaded]:
    """Load ``folder`` by transformers alone, tokenizer included, and run it on made-up images or on a few texts."""
    if isinstance(student, HFDetector):
        yield from _reload_detector(student, folder)
        return
    if isinstance(student, HFDense):
        yield from _reload_dense(student, folder)
        return
    if not isinstance(student, HFTextModel):
        yield _reload_images(student, folder)
        return
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    inputs = _same_tokens(student, tokenizer, _TEXTS)
    if not student.facts.num_classes:
        yield from _reload_embedder(student, folder, inputs, projector)
        return
    auto, _, _ = AUTO[TASKS[student.facts.task].head]
    module = auto.from_pretrained(folder, trust_remote_code=False).eval()
    if student.facts.label_names is not None:
        check_labels(module.config.id2label.values(), student)
    if isinstance(student, HFTokenModel):
        tokens = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        logits = module(**tokens).logits.flatten(0, 1)[tokens["attention_mask"].flatten().bool()]
        output = student(inputs)
        expected = output.logits if output.vocabulary is None else output.vocabulary.dense()
        assert expected is not None
        yield Reloaded(_BY, "logits", logits, expected)
        return
    pairs = [TextPair(text, other) for text, other in zip(_TEXTS, reversed(_TEXTS), strict=True)]
    for given in (inputs, _same_tokens(student, tokenizer, pairs)):
        logits = torch.cat([module(**text).logits for text in _each(given)])
        yield Reloaded(_BY, "logits", logits, logits_of(student, given))


def _reload_images(student: Model, folder: Path) -> Reloaded:
    images = student.example(2, seed=2)
    module: Any
    if student.facts.num_classes:
        module = transformers.AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=False).eval()
        check_labels([module.config.id2label[index] for index in range(module.config.num_labels)], student)
        return Reloaded(_BY, "logits", module(images).logits, logits_of(student, images))
    module = transformers.AutoModel.from_pretrained(folder, trust_remote_code=False).eval()
    expected = student.module(images).last_hidden_state
    return Reloaded(_BY, "features", module(images).last_hidden_state, expected)


def _reload_dense(student: HFDense, folder: Path) -> Iterator[Reloaded]:
    """Compare the answers, and what the folder's image processor makes of them at the size of the images."""
    images, size = student.example(2, seed=2), student.preprocessing.image_size
    module: Any = dense_kinds.AUTO[student.head].from_pretrained(folder, trust_remote_code=False).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    outputs, expected = module(images), student.native(images)
    if student.head == "dense":
        check_labels([module.config.id2label[index] for index in range(module.config.num_labels)], student)
        yield Reloaded(_BY, "logits", outputs.logits, expected)
        found = torch.stack(processor.post_process_semantic_segmentation(outputs, target_sizes=[size] * 2))
        again = F.interpolate(outputs.logits, size, mode="bilinear", align_corners=False).argmax(dim=1)
        yield Reloaded(_BY, "classes of pixels", found.float(), again.float())
        return
    yield Reloaded(_BY, "depths", outputs.predicted_depth, expected[:, 0])
    sized = processor.post_process_depth_estimation(outputs, target_sizes=[size] * 2)
    again = F.interpolate(outputs.predicted_depth[:, None], size, mode="bicubic", align_corners=False)[:, 0]
    yield Reloaded(_BY, "depths at the image's size", torch.stack([one["predicted_depth"] for one in sized]), again)


def _reload_detector(student: HFDetector, folder: Path) -> Iterator[Reloaded]:
    images = student.example(2, seed=2)
    module: Any = transformers.AutoModelForObjectDetection.from_pretrained(folder, trust_remote_code=False).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    check_labels([module.config.id2label[index] for index in range(module.config.num_labels)], student)
    outputs, expected = module(images), student(images).heads[BOXES]
    yield Reloaded(_BY, "logits", outputs.logits, expected.raw["logits"])
    yield Reloaded(_BY, "boxes", outputs.pred_boxes, expected.raw["pred_boxes"])
    sizes = [student.preprocessing.image_size] * len(images)
    chosen = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
    scores = [one["scores"].sort(descending=True).values for one in chosen]
    yield Reloaded(_BY, "scores", torch.stack(scores), torch.stack([one["scores"] for one in expected.boxes]))


def _reload_embedder(
    student: HFTextModel, folder: Path, inputs: dict[str, Tensor], projector: Projector | None
) -> Iterator[Reloaded]:
    pooling = student.preprocessing.pooling
    module = getattr(transformers, type(student.module).__name__).from_pretrained(folder).eval()
    outputs = [(module(**text), text["attention_mask"]) for text in _each(inputs)]
    pooled = torch.cat(
        [
            output.pooler_output if pooling == "pooler" else pool(output.last_hidden_state, mask, pooling)
            for output, mask in outputs
        ]
    )
    expected = student(inputs, Reads(("pooled",))).features["pooled"]
    yield Reloaded(_BY, "embeddings", pooled, expected)
    if _pooling(student) is not None:
        head: nn.Module | None = read_sentence_settings(folder).head
        assert head is not None
        projected = F.normalize(expected if projector is None else projector(expected), dim=1)
        yield Reloaded("sentence-transformers", "embeddings", head(pooled), projected)


def _same_tokens(student: HFTextModel, tokenizer: Any, texts: Sequence[Text]) -> dict[str, Tensor]:
    """Return the student's inputs for ``texts``.

    Raises:
        UserError: the exported tokenizer, which pads on a side of its own, gives a text other tokens.
    """
    samples = torch.arange(len(texts))
    ours = student.prepare(TextBatch(texts=list(texts), targets=samples, samples=samples))
    options: dict[str, Any] = {"truncation": True}
    if TASKS[student.facts.task].is_language_model:  # whose tokenizers keep a length of their own
        tokenizer.truncation_side = "right"
        options["max_length"] = student.preprocessing.max_length
    before = student.preprocessing.prompt
    for text, row in zip(texts, _each(ours), strict=True):
        found = encode(tokenizer, [f"{before}{text}" if isinstance(text, str) else text], **options)
        if any(found[name] != tensor.tolist() for name, tensor in row.items() if name in found):
            raise UserError(
                "The exported tokenizer gives other tokens.", "Please report this with the run's config.yaml."
            )
    return ours


def _each(inputs: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the inputs of each text by itself, without padding."""
    for row, length in enumerate(inputs["attention_mask"].sum(dim=1).tolist()):
        yield {
            name: inputs[name][row : row + 1, :length]
            for name in ("input_ids", "attention_mask", "token_type_ids")
            if name in inputs
        }


_LOAD_CLASSIFIER = (
    "from transformers import AutoModelForImageClassification\n\n"
    'model = AutoModelForImageClassification.from_pretrained("PATH")\nlabels = model.config.id2label'
)
_LOAD_BACKBONE = (
    'from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained("PATH").eval()\n'
    "features = model(images).last_hidden_state  # the embedding: their mean over positions, without class tokens"
)
_LOAD_EMBEDDER = (
    "# a folder of kdcli export: in the teacher's space, of length 1\n"
    'from sentence_transformers import SentenceTransformer\n\nmodel = SentenceTransformer("PATH")\n\n'
    "# or the features of its tokens\nfrom transformers import AutoTokenizer, CLASS\n\n"
    'tokenizer, model = AutoTokenizer.from_pretrained("PATH"), CLASS.from_pretrained("PATH")'
)
_LOAD_DETECTOR = (
    "from transformers import AutoImageProcessor, AutoModelForObjectDetection\n\n"
    'processor = AutoImageProcessor.from_pretrained("PATH")\n'
    'model = AutoModelForObjectDetection.from_pretrained("PATH").eval()\n'
    'outputs = model(**processor(images=image, return_tensors="pt"))  # image: of PIL\n'
    "found = processor.post_process_object_detection(outputs, threshold=0.5, target_sizes=[image.size[::-1]])"
)
_LOAD_DENSE = (
    "from transformers import AutoImageProcessor, CLASS\n\n"
    'processor, model = AutoImageProcessor.from_pretrained("PATH"), CLASS.from_pretrained("PATH").eval()\n'
    'outputs = model(**processor(images=image, return_tensors="pt"))  # image: of PIL\n'
)
_LOAD_SEGMENTER = _LOAD_DENSE.replace("CLASS", "AutoModelForSemanticSegmentation") + (
    "classes = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.size[::-1]])[0]  # (H, W)"
)
_LOAD_DEPTH = _LOAD_DENSE.replace("CLASS", "AutoModelForDepthEstimation") + (
    "found = processor.post_process_depth_estimation(outputs, target_sizes=[image.size[::-1]])[0]\n"
    'metres = found["predicted_depth"]  # (H, W)'
)
_LOAD_PIPELINE = 'from transformers import pipeline\n\nmodel = pipeline("PIPELINE", "PATH")'


def snippet(folder: Path, task: TaskFacts) -> str:
    """Return the lines of Python that load ``folder`` by transformers or sentence-transformers."""
    if task.head == "boxes":
        return _LOAD_DETECTOR
    if task.head in ("dense", "depth"):
        return _LOAD_DEPTH if task.head == "depth" else _LOAD_SEGMENTER
    if task.reads_images:
        return _LOAD_BACKBONE if task.is_label_free else _LOAD_CLASSIFIER
    if not task.is_label_free:
        return _LOAD_PIPELINE.replace("PIPELINE", task.pipeline_tag)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return _LOAD_EMBEDDER.replace("CLASS", config["architectures"][0])

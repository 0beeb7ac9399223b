"""How a model card says to run an exported graph: preprocessing, the library that runs it, and what its answer says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from kdcli.base.checksums import is_signed_card
from kdcli.base.facts import Preprocessing, TextPreprocessing
from kdcli.base.reads import DEPTH, IMAGE, LOGITS
from kdcli.base.tasks import TASKS
from kdcli.models.base import Model

Codes = Mapping[str, str]
"""Lines of Python by what loads the model with them, ``ONNX`` for example."""

_IMPORTS = {
    "onnx": ("import onnxruntime",),
    "torch-export": ("import torch",),
    "openvino": ("import openvino",),
    "executorch": ("import torch", "from executorch.runtime import Runtime"),
}
_LOADS = {
    "onnx": """session = onnxruntime.InferenceSession("PATH/model.onnx")
(answer,) = session.run(None, {inputs})""",
    "torch-export": """model = torch.export.load("PATH/model.pt2").module()
with torch.inference_mode():
    answer = model(torch.from_numpy({images})).numpy()""",
    "openvino": """model = openvino.Core().compile_model("PATH/model.xml", "CPU")
answer = model({inputs})[0]""",
    "executorch": """program = Runtime.get().load_program("PATH/model.pte")  # of one image at a time
answer = program.load_method("forward").execute([torch.from_numpy({images})])[0].numpy()""",
}
_INT8 = "\n# PATH/model.int8.onnx is the same in whole numbers: smaller, and less exact (quantization.json)."
_IMAGES = 'read("photo.jpg")'
_ROW = re.compile(r"^(?:With ([^\n]+):\n\n)?```python\n(.*?)\n```$", re.M | re.S)


def graph_code(student: Model, form: str, *, inputs: Sequence[str], output: str, pairs: bool, int8: bool) -> str:
    """Return lines of Python that run an exported graph on a file or a text, without kdcli.

    Args:
        student: that it is of.
        form: the format's name.
        inputs: the graph's, by name.
        output: what it gives: a head's name or ``embedding``.
        pairs: whether its texts are pairs.
        int8: whether there is a graph in whole numbers beside it.
    """
    facts, told = student.facts, _told(student, output)
    if TASKS[facts.task].reads_images:
        assert isinstance(facts.preprocessing, Preprocessing)
        given = f'{{"images": {_IMAGES}}}'
        before = _read_images(facts.preprocessing)
        others = ["import numpy as np", *_IMPORTS[form], "from PIL import Image, ImageOps"]
    else:
        assert isinstance(facts.preprocessing, TextPreprocessing)
        given = "{name: words[name] for name in (" + ", ".join(f'"{name}"' for name in inputs) + ")}"
        texts = '["One text."], ["Another."]' if pairs else '["A text."]'
        options = f'padding=True, truncation=True, max_length={facts.preprocessing.max_length}, return_tensors="np"'
        before = f'tokenizer = AutoTokenizer.from_pretrained("PATH")\nwords = tokenizer({texts}, {options})'
        others = ["import numpy as np", *_IMPORTS[form], "from transformers import AutoTokenizer"]
    head = "\n".join(others)
    if "json." in told:
        head = f"import json\n\n{head}"
    load = _LOADS[form].replace("{inputs}", given).replace("{images}", _IMAGES) + (_INT8 if int8 else "")
    gap = "\n\n\n" if before.startswith("def") else "\n\n"
    return f"{head}{gap}{before}{gap}{load}\n{told}"


def _read_images(wanted: Preprocessing) -> str:
    """Return a function that reads a file as the student takes it in evaluation."""
    (height, width), (tall, wide) = wanted.image_size, wanted.resize
    filter_ = f"Image.Resampling.{wanted.interpolation.upper()}"
    lines = ["def read(file):", '    image = ImageOps.exif_transpose(Image.open(file)).convert("RGB")']
    if wanted.geometry == "squash":
        lines.append(f"    image = image.resize(({wide}, {tall}), {filter_})")
    elif wanted.geometry == "crop" and tall == wide:
        lines.append("    short = min(image.size)")
        size = f"({wide} * image.width // short, {tall} * image.height // short)"
        lines.append(f"    image = image.resize({size}, {filter_})")
    else:
        choose = "min" if wanted.geometry == "border" else "max"
        lines.append(f"    scale = {choose}({wide} / image.width, {tall} / image.height)")
        size = "(max(1, round(scale * image.width)), max(1, round(scale * image.height)))"
        lines.append(f"    image = image.resize({size}, {filter_})")
    if wanted.geometry == "border":
        colour = tuple(round(255 * value) for value in wanted.mean)
        lines += [
            f'    canvas = Image.new("RGB", ({width}, {height}), {colour})',
            f"    canvas.paste(image, (({width} - image.width) // 2, ({height} - image.height) // 2))",
            "    image = canvas",
        ]
    elif wanted.geometry == "crop" or (tall, wide) != (height, width):
        whole = "round" if wanted.kernels == "pillow" else "int"
        lines += [
            f"    left, top = {whole}((image.width - {width}) / 2), {whole}((image.height - {height}) / 2)",
            f"    image = image.crop((left, top, left + {width}, top + {height}))",
        ]
    mean, std = ("[" + ", ".join(f"{value:.8g}" for value in values) + "]" for values in (wanted.mean, wanted.std))
    lines.append(f"    pixels = (np.asarray(image) / 255 - {mean}) / {std}")
    flipped = "[..., ::-1]" if wanted.channels == "BGR" else ""
    lines.append(f"    return np.ascontiguousarray(pixels{flipped}.transpose(2, 0, 1)[None], dtype=np.float32)")
    return "\n".join(lines)


def _told(student: Model, output: str) -> str:
    """Return the lines that make an answer out of what the graph gives for one sample."""
    if output == DEPTH:
        return "depth = answer[0, 0]"
    if output == IMAGE:
        return "picture = Image.fromarray(((answer[0].transpose(1, 2, 0) + 1) * 127.5).clip(0, 255).astype(np.uint8))"
    if output != LOGITS:
        return "embedding = answer[0]"
    if student.label_kind == "number":
        return "number = answer[0, 0]"
    if not student.facts.label_names:
        return "logits = answer[0]"
    labels = 'labels = json.load(open("PATH/preprocessing.json", encoding="utf-8"))["labels"]\n'
    if TASKS[student.facts.task].target == "pixels":
        return f"{labels}classes = answer[0].argmax(axis=0)  # of every pixel, numbers of labels"
    if student.label_kind == "classes":
        return f"{labels}probabilities = 1 / (1 + np.exp(-answer[0]))\nprint(dict(zip(labels, probabilities)))"
    return (
        f"{labels}powers = np.exp(answer[0] - answer[0].max())\nprobabilities = powers / powers.sum()\n"
        "print(labels[probabilities.argmax()], probabilities.max())"
    )


def codes_of(card: bytes, native: str, same: Sequence[str]) -> Codes:
    """Return what a model card says to load its files with, by title; that of the library ``native`` is empty.

    Nothing where it was edited, or lacks one of the texts ``same``: it is of another run.
    """
    text = card.decode("utf-8", "replace")
    if not is_signed_card(card) or not all(part in text for part in same):
        return {}
    return {"" if title == native else title: code for title, code in _ROW.findall(text)}

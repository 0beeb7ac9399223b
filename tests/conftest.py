"""What every test shares: no network, one thread, real commands run in this process, small data and finished runs."""

from __future__ import annotations

import atexit
import contextlib
import csv
import functools
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import tomllib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase
from typing import Any, NamedTuple

# Before anything imports torch, the hub's client or rich: they read these once.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "agg",
    "NO_COLOR": "1",
}
# What is measured of teachers is kept in the user's cache folder: the tests have one of their own, but for fonts.
os.environ.setdefault(
    "MPLCONFIGDIR", str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "matplotlib")
)
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="kdcli-tests-cache-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TERMINAL_WIDTH"):
    os.environ.pop(name, None)

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import typer.main  # noqa: E402
from PIL import Image  # noqa: E402

torch.set_num_threads(1)
typer.main.get_command = functools.cache(typer.main.get_command)  # built once, not for every command that is run
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # commands are tested as a terminal starts them, not nohup

hypothesis.settings.register_profile(
    "kdcli",
    derandomize=not os.environ.get("KDCLI_FUZZ_CASES"),  # the suite draws the same cases every time
    database=None,
    deadline=None,
    print_blob=False,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("kdcli")

CLASSES = ("apple", "leaf", "sky")
IMAGES_PER_CLASS = 24
WIDTH = 400  # nothing printed is wrapped, so that text can be searched


class Outcome(NamedTuple):
    """What a command came to."""

    exit_code: int
    stdout: str
    stderr: str


def run_command(*arguments: str | Path, cwd: Path) -> Outcome:
    """Run ``kdcli ARGUMENTS`` in this process, as its entry point does; no library may have anything to say.

    Warnings are filtered as Python does by default, not as pytest does. Plans are printed whole, unless the arguments
    say how much of them.
    """
    from kdcli.cli.app import main
    from kdcli.terminal import console

    if arguments[:1] == ("distill",) and "--plan" not in arguments:
        arguments = ("distill", "--plan", "full", *arguments[1:])
    console.console.width = console.errors.width = WIDTH
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    argv, sys.argv = sys.argv, ["kdcli", *map(str, arguments)]
    try:
        with (
            contextlib.chdir(cwd),
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
            warnings.catch_warnings(),
        ):
            warnings.resetwarnings()
            for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
                warnings.simplefilter("ignore", category)
            try:
                main()
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = argv
    assert "Note from " not in stderr.getvalue(), stderr.getvalue()
    return Outcome(code, stdout.getvalue(), stderr.getvalue())


_FORKS = """
import json, os, sys, traceback
import kdcli.experiments.distill, timm, torch, torchmetrics.classification, transformers
torch.set_num_threads(1)

def start(job):
    child = os.fork()
    if child:
        return child
    os.environ.clear()
    os.environ |= job["environment"]
    os.chdir(job["cwd"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    file = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = job["arguments"]
    code = 1
    try:
        exec(compile(job["code"], "forked", "exec"), {"__name__": "__main__"})
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)

for line in sys.stdin:
    children = [start(job) for job in json.loads(line)]
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[tuple[int, str]]]]:
    """``forked((code, arguments, environment), ...)``: each in a process of its own, at once; exit codes and outputs.

    ``arguments`` are ``sys.argv[1:]``, ``environment`` is added to that of the tests. They are forked from one that has imported what a run needs, which takes longest.
    """
    environment = {"NO_COLOR": "1", "COLUMNS": "300"}
    parent = subprocess.Popen(
        [sys.executable, "-c", _FORKS],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment,
    )  # fmt: skip

    def run(*jobs: tuple[str, Sequence[str | Path], dict[str, str]]) -> list[tuple[int, str]]:
        folder = tmp_path_factory.mktemp("forked")
        outputs = [folder / f"{number}.txt" for number in range(len(jobs))]
        lines = [
            {
                "code": code,
                "arguments": ["kdcli", *map(str, arguments)],
                "environment": os.environ | environment | own,
                "cwd": str(Path.cwd()),
                "output": str(output),
            }
            for (code, arguments, own), output in zip(jobs, outputs, strict=True)
        ]
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(json.dumps(lines) + "\n")
        parent.stdin.flush()
        return list(zip(json.loads(parent.stdout.readline()), [file.read_text() for file in outputs], strict=True))

    yield run
    parent.communicate()


@pytest.fixture(scope="session")
def forked_together(forked: Callable[..., list[tuple[int, str]]]) -> Callable[..., list[str]]:
    """``forked_together(code, arguments)``: in two processes with a launcher's environment; what each prints."""

    def run(code: str, arguments: Sequence[str | Path]) -> list[str]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = str(free.getsockname()[1])
        together = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        jobs = [(code, arguments, together | {"RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
        done = forked(*jobs)
        assert [exit_code for exit_code, _ in done] == [0, 0], done
        return [output for _, output in done]

    return run


@pytest.fixture(scope="session")
def run_in_two_processes(forked_together: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """``run_in_two_processes([("distill", ...), ...])``: each in two processes that train together; what they print."""

    def run(commands: Sequence[Sequence[str | Path]]) -> list[str]:
        return ["".join(forked_together("from kdcli.cli.app import main\nmain()", command)) for command in commands]

    return run


def write_photos(root: Path, counts: dict[str, int], *, seed: int = 0, size: int = 40, prefix: str = "") -> Path:
    """Write ``{"train/apple": 3}`` as noisy images; a class shows in which colour prevails."""
    generator = np.random.default_rng(seed)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        channel = CLASSES.index(folder.rpartition("/")[2]) if folder.rpartition("/")[2] in CLASSES else 0
        mean = np.where(np.arange(3) == channel, 190.0, 60.0)
        for number in range(count):
            pixels = np.clip(mean + generator.normal(0, 40, (size, size, 3)), 0, 255).astype(np.uint8)
            suffix = "png" if number % 2 else "jpg"
            Image.fromarray(pixels).save(root / folder / f"{prefix}{number:02d}.{suffix}")
    return root


@pytest.fixture(scope="session")
def run_cli_in() -> Callable[..., Outcome]:
    """``run_cli_in(*arguments, cwd=FOLDER)``, for fixtures of the whole session."""
    return run_command


@pytest.fixture
def run_cli(tmp_path: Path) -> Callable[..., Outcome]:
    """``run_cli(*arguments) -> (exit_code, stdout, stderr)``, in ``tmp_path`` unless ``cwd`` says otherwise."""

    def run(*arguments: str | Path, cwd: Path = tmp_path) -> Outcome:
        return run_command(*arguments, cwd=cwd)

    return run


@pytest.fixture(scope="session")
def sign_again() -> Callable[[Path], None]:
    """``sign_again(RUN)``: the files of a finished run are changed by hand, and are to be taken for its own."""
    from kdcli.runs.folder import RunFolder

    def sign(path: Path) -> None:
        run = RunFolder(path)
        result = run.read_result()
        assert result is not None
        run.write_result(result)

    return sign


@pytest.fixture
def make_photos(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder of class folders of your own: ``make_photos({"apple": 3, "sky": 3})``."""

    def make(counts: dict[str, int], name: str = "own-photos", **options: int) -> Path:
        return write_photos(tmp_path / name, counts, **options)

    return make


@pytest.fixture(scope="session")
def make_photos_in() -> Callable[..., Path]:
    """The same in any folder: ``make_photos_in(folder, {"apple": 3, "sky": 3})``."""
    return write_photos


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 24 images of 40 pixels, told apart by their colour; no splits. Not to be changed."""
    root = tmp_path_factory.mktemp("data") / "photos"
    # By these names every class has 4 or 5 test images, 14 in all, and with seed 0 two validation images.
    return write_photos(root, dict.fromkeys(CLASSES, IMAGES_PER_CLASS), prefix="291155-")


@pytest.fixture(scope="module")
def few_digits() -> Iterator[None]:
    """``demo:digits``, in this process, with 400 images to train on and 50 to test on."""
    from kdcli.data.images import demo
    from kdcli.data.images.sources import OfficialSplits, Subset

    whole = demo._digits

    def few() -> OfficialSplits:
        found = whole()
        assert found.test is not None
        return replace(found, train=Subset(found.train, range(400)), test=Subset(found.test, range(50)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "_digits", few)
        yield


@pytest.fixture(scope="module")
def few_points() -> Iterator[None]:
    """``analyze-projector``, in this process, with 7 points along each direction of a landscape instead of 21."""
    import kdcli.results.paper_figures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kdcli.results.paper_figures, "_SIDES", (7,))
        yield


@pytest.fixture(scope="session")
def install_package(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """A function that installs the package in a folder by pip, without a network, and returns where it lies."""

    def install(package: Path) -> Path:
        site = tmp_path_factory.mktemp("site")
        options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--no-cache-dir")
        command = [sys.executable, "-m", "pip", "install", "--quiet", *options, "--target", site, package]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return site

    return install


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """Options that make a run of a few seconds."""
    return (
        *("--epochs", "1", "--batch-size", "16", "--device", "cpu"),
        *("--set", "student.image_size=32", "--set", "data.workers=0"),
    )


@pytest.fixture(scope="session")
def _finish(tmp_path_factory: pytest.TempPathFactory, photos: Path, tiny: tuple[str, ...]) -> Callable[..., Path]:
    def finish(name: str, *arguments: str | Path) -> Path:
        cwd = tmp_path_factory.mktemp("runs")
        outcome = run_command("distill", "--data", photos, *tiny, "--output", name, *arguments, cwd=cwd)
        assert outcome.exit_code == 0, outcome.stderr
        return cwd / name

    return finish


@pytest.fixture(scope="session")
def alone_run(_finish: Callable[..., Path]) -> Path:
    """A finished run without a teacher. Its student is a teacher that knows the labels. Not to be changed."""
    return _finish("alone", "--teacher", "none", "--student", "test_resnet", "--epochs", "2")


@pytest.fixture(scope="session")
def trained_teacher(alone_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in timm's format with a small model trained on ``photos``, 96 features wide. Not to be changed."""
    return Path(shutil.copytree(alone_run / "student", tmp_path_factory.mktemp("models") / "teacher"))


@pytest.fixture(scope="session")
def random_run(_finish: Callable[..., Path]) -> Path:
    """A finished run with an untrained teacher: inverted projector. Not to be changed."""
    return _finish("inverted", "--teacher", "random:test_vit", "--student", "test_resnet", "--epochs", "2")


@pytest.fixture(scope="session")
def same_run(_finish: Callable[..., Path], trained_teacher: Path) -> Path:
    """A finished run whose teacher has the data's labels: orthogonal projector, logit KD. Not to be changed."""
    return _finish("orthogonal", "--teacher", trained_teacher, "--student", "test_convnext", "--epochs", "2")


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT in transformers' format, its classifier over ``photos``' labels. Not to be changed."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: index for index, name in enumerate(CLASSES)},
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-vit"
    ViTForImageClassification(config).save_pretrained(folder)
    return folder


GOOD, BAD = ["good", "great", "fine", "lovely", "superb"], ["bad", "awful", "poor", "dull", "weak"]
PLAIN = [
    "the",
    "film",
    "plot",
    "actor",
    "scene",
    "music",
    "was",
    "is",
    "and",
    "with",
    "a",
    "very",
    "quite",
    "story",
    "end",
    "script",
]


def write_reviews(file: Path, count: int, *, seed: int = 0) -> Path:
    """Write a csv of made-up film reviews, ``text,label``; two words of each say whether it is positive."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        words = list(generator.choice(PLAIN, size=generator.integers(4, 14)))
        for word in generator.choice(BAD if number % 2 else GOOD, size=2):
            words.insert(int(generator.integers(len(words) + 1)), word)
        rows.append((" ".join(words), "negative" if number % 2 else "positive"))
    with file.open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines).writerows([("text", "label"), *rows])
    return file


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A csv of 240 short texts, ``text,label`` with the labels negative and positive. Not to be changed."""
    return write_reviews(tmp_path_factory.mktemp("data") / "reviews.csv", 240)


def write_entities(file: Path, count: int, *, seed: int = 0) -> Path:
    """Write CoNLL lines: of the words of ``reviews`` one good word is B-GOOD, two bad ones are B-BAD I-BAD, others O."""
    generator = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        words = [(str(word), "O") for word in generator.choice(PLAIN, size=generator.integers(3, 9))]
        where = int(generator.integers(len(words) + 1))
        bad = [(str(word), f"{letter}-BAD") for letter, word in zip("BI", generator.choice(BAD, size=2), strict=True)]
        words[where:where] = bad if generator.random() < 0.5 else [(str(generator.choice(GOOD)), "B-GOOD")]
        texts.append("".join(f"{word} _ {label}\n" for word, label in words))
    file.write_text("-DOCSTART- -X- O\n\n" + "\n".join(texts), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def entities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CoNLL file of 300 short texts with the labels B-BAD, B-GOOD, I-BAD and O. Not to be changed."""
    return write_entities(tmp_path_factory.mktemp("data") / "entities.conll", 300)


def train_tokenizer(max_length: int = 64, kind: str = "bert") -> Any:
    """Return a tokenizer over letters and the words of ``write_reviews``, as BERT's, GPT-2's or T5's.

    The kind ``masked`` is ``bert`` with a mask token. It is not trained: the library's training numbers the tokens
    differently in every process, so that models with it would differ too.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    around = {"bert": ("[CLS] ", " [SEP]"), "gpt2": ("", ""), "t5": ("", " [SEP]")}
    around["masked"] = around["bert"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(["[MASK]"] if kind == "masked" else [])]
    tokens += [*ascii_lowercase, *(f"##{letter}" for letter in ascii_lowercase), *sorted({*GOOD, *BAD, *PLAIN} - {"a"})]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    before, after = around[kind]
    if before + after:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{before}$A{after}", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    special = {"unk_token": "[UNK]", "eos_token": "[SEP]"}
    if kind != "gpt2":  # which has no token to pad with
        special |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    if kind == "masked":
        special |= {"mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **special)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """``make_tokenizer(max_length=64, kind="bert")``: see :func:`train_tokenizer`."""
    return train_tokenizer


@pytest.fixture(scope="session")
def make_byte_tokenizer() -> Callable[..., Any]:
    """``make_byte_tokenizer(prefix=False)``: of bytes, with a space as part of the word after it, as RoBERTa's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    def make(prefix: bool = False) -> Any:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        special = ["<s>", "<pad>", "</s>"]
        trainer = trainers.BpeTrainer(
            vocab_size=380,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator([" ".join(GOOD + BAD + PLAIN)] * 2, trainer)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
        tokens = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **tokens)

    return make


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., Any]) -> Path:
    """A tiny BERT without a classifier, 32 wide, with its tokenizer. Not to be changed."""
    from transformers import BertConfig, BertModel

    tokenizer, folder = make_tokenizer(), tmp_path_factory.mktemp("models") / "tiny-bert"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    sizes |= {"initializer_range": 0.2}  # for such widths: with the usual 0.02 all texts look alike
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def distilbert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of a tiny DistilBERT, 24 wide, and nothing else: neither weights nor tokenizer. Not to be changed."""
    from transformers import DistilBertConfig

    folder = tmp_path_factory.mktemp("models") / "tiny-distilbert"
    sizes = {"dim": 24, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 80}
    DistilBertConfig(initializer_range=0.2, **sizes).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def language_models(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., Any]) -> Path:
    """Untrained weights of a masked and of a causal teacher, vocabulary padded, and a student's config alone.

    Folders ``masked``, ``masked-student``, ``causal`` and ``causal-student``. Not to be changed.
    """
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        DistilBertConfig,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
    )

    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    tokenizer = make_tokenizer(kind="masked")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = BertConfig(vocab_size=len(tokenizer) + 3, max_position_embeddings=64, initializer_range=0.1, **sizes)
    BertForMaskedLM(config).save_pretrained(root / "masked")
    tokenizer.save_pretrained(root / "masked")
    sizes = {"dim": 24, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
    # Without dropout, of which two processes draw another one than one does.
    DistilBertConfig(dropout=0.0, attention_dropout=0.0, **sizes).save_pretrained(root / "masked-student")
    tokenizer = make_tokenizer(kind="gpt2")
    config = GPT2Config(vocab_size=len(tokenizer) + 3, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    config.bos_token_id = config.eos_token_id = 3
    GPT2LMHeadModel(config).save_pretrained(root / "causal")
    tokenizer.save_pretrained(root / "causal")
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    LlamaConfig(num_key_value_heads=1, tie_word_embeddings=True, **sizes).save_pretrained(root / "causal-student")
    return root


@pytest.fixture(scope="session")
def embedding_teacher(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., Any]) -> Path:
    """A tiny BERT, 32 wide, of one layer that sees no positions: a student can learn its space. Not to be changed."""
    from transformers import BertConfig, BertModel

    tokenizer, folder = make_tokenizer(), tmp_path_factory.mktemp("models") / "embedding-teacher"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    sizes |= {"initializer_range": 0.2}
    model = BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes))
    torch.nn.init.zeros_(model.embeddings.position_embeddings.weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def _finish_text(
    tmp_path_factory: pytest.TempPathFactory, reviews: Path, bert_folder: Path, distilbert_folder: Path
) -> Callable[..., Path]:
    def finish(name: str, *arguments: str | Path) -> Path:
        cwd = tmp_path_factory.mktemp("runs")
        models = ("--teacher", bert_folder, "--student", distilbert_folder)
        options = ("--data", reviews, "--batch-size", "16", "--device", "cpu", "--output", name)
        outcome = run_command("distill", *models, *options, *arguments, cwd=cwd)
        assert outcome.exit_code == 0, outcome.stderr
        return cwd / name

    return finish


@pytest.fixture(scope="session")
def classified_run(_finish_text: Callable[..., Path]) -> Path:
    """A finished run of text-classification with an embedding teacher: inverted projector. Not to be changed."""
    return _finish_text("texts", "--task", "text-classification", "--epochs", "25", "--lr", "0.005")


@pytest.fixture(scope="session")
def _finish_embedding(_finish_text: Callable[..., Path], embedding_teacher: Path) -> Callable[..., Path]:
    models = ("--teacher", embedding_teacher, "--student", "hf:distilbert?dim=24&n_layers=1&n_heads=2&hidden_dim=32")

    def finish(name: str, *arguments: str | Path) -> Path:
        return _finish_text(name, "--task", "sentence-embedding", *models, "--lr", "0.005", *arguments)

    return finish


@pytest.fixture(scope="session")
def embedded_run(_finish_embedding: Callable[..., Path]) -> Path:
    """A finished run of sentence-embedding: orthogonal projector, from 24 to 32. Not to be changed."""
    return _finish_embedding("embedded", "--epochs", "12")


@pytest.fixture(scope="session")
def untrained_embedding(_finish_embedding: Callable[..., Path]) -> Path:
    """The run of the same student without a single step. Not to be changed."""
    return _finish_embedding("untrained", "--epochs", "0")


@pytest.fixture(scope="session")
def hf_run(_finish: Callable[..., Path], hf_folder: Path) -> Path:
    """A finished run of transformers' models, teacher and student. Not to be changed."""
    return _finish("transformers", "--teacher", hf_folder, "--student", hf_folder)


@pytest.fixture(scope="module")
def toy_extension(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The example extension, as pip would leave it."""
    extension = Path(__file__).parent / "extension"
    site = tmp_path_factory.mktemp("site")
    info = site / "kdcli_toy-1.0.dist-info"
    info.mkdir()
    shutil.copy(extension / "kdcli_toy.py", site)
    groups = tomllib.loads((extension / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in rows.items()) for group, rows in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kdcli-toy\nVersion: 1.0\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        yield

"""Malicious weights, configs, recipes, data sets and names through the real commands: nothing runs, nothing leaks."""

from __future__ import annotations

import json
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

SMALL = ("--batch-size", "8", "--epochs", "1", "--device", "cpu", "--set", "student.image_size=32")
MODELS = ("--teacher", "random:test_vit", "--student", "test_resnet")
ODD_NAMES = ["../../owned", "a/b", "new\nline", "n\0ul", "p|pe <b> `x`", "\x1b[31mred", "..", "é💥\u202e"]


class Payload:
    """Unpickling this creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.fixture
def marker(tmp_path_factory):
    """The file that every payload here would create; no test may find it at its end."""
    path = tmp_path_factory.mktemp("outside") / "owned"
    yield path
    assert not path.exists(), "foreign code was run"


@pytest.fixture
def payload(tmp_path_factory):
    """``payload(marker)`` as an object; that it would work is checked first."""

    def make(target: Path) -> Payload:
        trial = tmp_path_factory.mktemp("trial") / "owned"
        pickle.loads(pickle.dumps(Payload(trial)))
        assert trial.exists()
        return Payload(target)

    return make


@pytest.fixture
def refused(run_cli, marker):
    """Run a command that must be refused with one message; return it."""

    def run(*arguments: str | Path) -> str:
        outcome = run_cli(*arguments)
        assert outcome.exit_code == 2, outcome
        lines = [line for line in outcome.stderr.splitlines() if line.startswith(("Error: ", "Hint: "))]
        assert [line.partition(":")[0] for line in lines] == ["Error", "Hint"]
        assert "Traceback" not in outcome.stderr
        assert not marker.exists(), "foreign code was run"
        return outcome.stderr

    return run


# --- weights ----------------------------------------------------------------------------------------------------------

KINDS = ("pickle", "torch", "legacy", "tar", "state dict")


def write_evil(file: Path, kind: str, payload: Payload, state: dict[str, torch.Tensor]) -> None:
    if kind == "pickle":
        file.write_bytes(pickle.dumps(payload))
    elif kind == "tar":  # torch's format before 0.1.10
        (file.parent / "pickle").write_bytes(pickle.dumps(payload))
        with tarfile.open(file, "w") as archive:
            for name in ("sys_info", "storages", "tensors", "pickle"):
                archive.add(file.parent / "pickle", name)
        (file.parent / "pickle").unlink()
    elif kind == "state dict":
        torch.save({"state_dict": state, "optimizer": payload}, file)
    else:
        torch.save(payload, file, _use_new_zipfile_serialization=kind == "torch")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["t.pth", "t.bin", "t.pt", "t.safetensors"])
def test_teacher_weights(refused, tmp_path, photos, trained_teacher, marker, payload, name, kind):
    write_evil(tmp_path / name, kind, payload(marker), load_file(trained_teacher / "model.safetensors"))
    message = refused(
        *("distill", "--teacher", "test_resnet", "--teacher-weights", name, "--student", "test_resnet"),
        *("--data", photos, *SMALL, "--output", "run"),
    )
    assert name in message
    assert not (tmp_path / "run").exists()


def test_numpy_teacher_weights(refused, tmp_path, photos, marker, payload):
    np.savez(tmp_path / "t.npz", a=np.array([payload(marker)], dtype=object))
    for teacher in ("test_resnet", "vit_tiny_patch16_224"):  # the second has weights of this format
        options = ("--teacher", teacher, "--teacher-weights", "t.npz", "--student", "test_resnet")
        assert "t.npz" in refused("distill", *options, "--data", photos, *SMALL)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("timm", "pytorch_model.bin"),
        ("timm", "model.pth"),
        ("timm", "x.pth.tar"),
        ("transformers", "pytorch_model.bin"),
    ],
)
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_weights_in_a_model_folder(
    refused, tmp_path, photos, trained_teacher, hf_folder, marker, payload, library, name, kind, role
):
    folder = shutil.copytree(trained_teacher if library == "timm" else hf_folder, tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    write_evil(folder / name, kind, payload(marker), state)
    models = {"teacher": "random:test_vit", "student": "test_resnet"} | {role: "./model"}
    options = [text for key, value in models.items() for text in (f"--{key}", value)]
    message = refused("distill", *options, "--student-pretrained", "--data", photos, *SMALL, "--output", "run")
    assert "model" in message
    assert "weights_only=False" not in message, "bad advice"


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_pickles_beside_good_weights_are_left_alone(
    run_cli, tmp_path, photos, trained_teacher, hf_folder, marker, payload, library
):
    folder = shutil.copytree(trained_teacher if library == "timm" else hf_folder, tmp_path / "model")
    for name in (
        "pytorch_model.bin",
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "model.pth",
        "rng_state.pth",
    ):
        torch.save(payload(marker), folder / name)
    options = ("--teacher", "./model", "--student", "test_resnet", "--data", photos, *SMALL)
    assert run_cli("distill", *options, "--dry-run").exit_code == 0


# --- code in model folders --------------------------------------------------------------------------------------------

MAPS = {
    name: f"{module}.X"
    for name, module in {
        "AutoConfig": "configuration_x",
        "AutoModel": "modeling_x",
        "AutoModelForImageClassification": "modeling_x",
        "AutoImageProcessor": "image_processing_x",
    }.items()
}
CODE_CONFIGS = {
    "beside its own class": {"auto_map": MAPS},
    "of an unknown kind": {"auto_map": MAPS, "model_type": "x"},
    "of another repository": {
        "auto_map": {key: f"org/name--{value}" for key, value in MAPS.items()},
        "model_type": "x",
    },
    "as attention kernels": {"attn_implementation": "org/kernel"},
    "as internal kernels": {"_attn_implementation_internal": "org/kernel", "_attn_implementation": "org/kernel"},
    "as a quantiser": {"quantization_config": {"quant_method": "x", "modules": "modeling_x"}},
}


@pytest.fixture
def code_folder(tmp_path, hf_folder, marker):
    """``code_folder(changes)``: a transformers model whose folder has code, with a changed config."""

    def make(config: dict | None = None, processor: dict | None = None) -> Path:
        folder = shutil.copytree(hf_folder, tmp_path / "model")
        for name in ("configuration_x", "modeling_x", "image_processing_x", "__init__", "setup", "kernel"):
            (folder / f"{name}.py").write_text(
                f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass X: pass\n"
            )
        values = json.loads((folder / "config.json").read_text()) | (config or {})
        (folder / "config.json").write_text(json.dumps(values))
        if processor is not None:
            (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        return folder

    return make


def attempt(run_cli, photos: Path, marker: Path, *arguments: str) -> int:
    """Run ``distill``, whether it works or not, and check that no foreign code was run."""
    outcome = run_cli("distill", *arguments, "--data", photos, *SMALL, "--dry-run")
    assert outcome.exit_code in (0, 2)
    assert "Traceback" not in outcome.stderr
    assert not marker.exists(), "foreign code was run"
    assert "Do you wish to run the custom code" not in outcome.stdout + outcome.stderr
    return outcome.exit_code


ROLES = {
    "teacher": ("--teacher", "./model", "--student", "test_resnet"),
    "random teacher": ("--teacher", "random:./model", "--student", "test_resnet"),
    "student": ("--teacher", "random:test_vit", "--student", "./model"),
    "pretrained student": ("--teacher", "random:test_vit", "--student", "./model", "--student-pretrained"),
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", CODE_CONFIGS)
def test_code_that_a_config_names(run_cli, photos, marker, code_folder, kind, role):
    code_folder(CODE_CONFIGS[kind])
    exit_code = attempt(run_cli, photos, marker, *ROLES[role])
    assert exit_code == (2 if "model_type" in CODE_CONFIGS[kind] or "quantiser" in kind else 0)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("known", [True, False])
def test_code_that_an_image_processor_names(run_cli, photos, marker, code_folder, known, role):
    settings = {"auto_map": {"AutoImageProcessor": "image_processing_x.X"}, "size": {"height": 32, "width": 32}}
    code_folder(processor=settings | {"image_processor_type": "ViTImageProcessor" if known else "X"})
    assert attempt(run_cli, photos, marker, *ROLES[role]) == (0 if known else 2)


def test_a_saved_student_names_no_code(run_cli, tmp_path, photos, code_folder):
    code_folder({"auto_map": MAPS, "attn_implementation": "org/kernel"})
    outcome = run_cli("distill", *ROLES["student"], "--data", photos, *SMALL, "--output", "run")
    assert outcome.exit_code == 0, outcome.stderr
    assert run_cli("export", "run").exit_code == 0
    for config in (tmp_path / "run").rglob("config.json"):
        assert "auto_map" not in config.read_text()
        assert "org/kernel" not in config.read_text()
    assert sorted(tmp_path.glob("run/**/*.py")) == []


TIMM_CONFIGS = {
    "huge images": {"pretrained_cfg": {"input_size": [3, 100_000, 100_000]}},
    "huge image argument": {"model_args": {"img_size": 100_000}},
    "impossible images": {"pretrained_cfg": {"std": [0, 0, 0]}},
    "huge crop": {"pretrained_cfg": {"crop_pct": 1e-9}},
    "a cache elsewhere": {"model_args": {"cache_dir": "../outside"}},
    "a checkpoint elsewhere": {"model_args": {"checkpoint_path": "/etc/hostname"}},
    "a feature extractor": {"model_args": {"features_only": True}},
    "a class by name": {"model_args": {"act_layer": "os.system"}},
    "more memory than there is": {"architecture": "vit_base_patch16_224", "model_args": {"embed_dim": 10**8}},
    "no architecture": {"architecture": "../x"},
    "a number as architecture": {"architecture": 5},
    "a list as config": {"pretrained_cfg": []},
    "a number as arguments": {"model_args": 5},
    "a word as class count": {"num_classes": "x"},
}


@pytest.mark.parametrize("kind", TIMM_CONFIGS)
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_configs_of_timm_that_make_no_sense(refused, tmp_path, photos, trained_teacher, kind, role):
    folder = shutil.copytree(trained_teacher, tmp_path / "model")
    values = json.loads((folder / "config.json").read_text())
    for key, change in TIMM_CONFIGS[kind].items():
        values[key] = {**values[key], **change} if key == "pretrained_cfg" and isinstance(change, dict) else change
    (folder / "config.json").write_text(json.dumps(values))
    before = sorted(tmp_path.parent.iterdir())
    refused("distill", *ROLES[role], "--data", photos, "--device", "cpu", "--output", "run")
    assert sorted(tmp_path.iterdir()) == [folder]
    assert sorted(tmp_path.parent.iterdir()) == before


HF_CONFIGS = {
    "huge images": {"image_size": 100_000},
    "huge sides": {"image_size": [32, 100_000]},
    "no patches": {"patch_size": 0},
    "one channel": {"num_channels": 1},
    "unknown activation": {"hidden_act": "os.system"},
    "a number as architectures": {"architectures": 5},
    "a number as labels": {"id2label": 5},
    "a number as kind": {"model_type": 5},
    "a path as kind": {"model_type": "../x"},
    "more memory than there is": {"hidden_size": 10**8},
}


@pytest.mark.parametrize(
    ("role", "kind"),
    # An untrained student is built for the data's channels, whatever its config says.
    [
        (role, kind)
        for role in ("teacher", "student")
        for kind in HF_CONFIGS
        if (role, kind) != ("student", "one channel")
    ],
)
def test_configs_of_transformers_that_make_no_sense(refused, photos, code_folder, role, kind):
    code_folder(HF_CONFIGS[kind])
    refused("distill", *ROLES[role], "--data", photos, "--device", "cpu", "--output", "run")


# --- recipes and data sets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/object/new:subprocess.Popen", "!!python/name"]
)
def test_recipes_with_python_tags(refused, tmp_path, marker, tag):
    (tmp_path / "r.yaml").write_text(f"teacher: none\nstudent: test_resnet\ndata: {tag} ['touch {marker}']\n")
    assert "r.yaml is not valid YAML" in refused("distill", "--recipe", "r.yaml")
    assert "--set data" in refused("distill", *MODELS, "--set", f"data={tag} ['touch {marker}']")


def png() -> bytes:
    from io import BytesIO

    from PIL import Image

    buffer = BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["table.py", "photos.py", "__init__.py"])
def test_a_loading_script_beside_a_table(refused, run_cli, tmp_path, marker, name):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "table").mkdir()
    pq.write_table(pa.table({"image": [png()] * 20, "label": [0, 1] * 10}), tmp_path / "table" / "a.parquet")
    (tmp_path / "table" / name).write_text(f"open({str(marker)!r}, 'w')\n")
    plan = run_cli("distill", *MODELS, "--data", "table", *SMALL, "--dry-run")
    assert plan.exit_code == 0, plan.stderr
    assert "Not read: 1 file (.py: 1)" in plan.stdout
    for data in ("hf:./table", f"hf:./table/{name}", f"table/{name}"):
        if data != "hf:./table" or name == "table.py":  # the only name that a folder's script ever had
            assert "table" in refused("distill", *MODELS, "--data", data, *SMALL, "--output", "run")


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_pickled_type_in_a_table(run_cli, tmp_path, marker, payload, suffix):
    """Arrow's extension types in Python were pickles in the schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(payload(marker)),
    }
    schema = pa.schema([pa.field("image", pa.binary(), metadata=metadata), pa.field("label", pa.int64())])
    table = pa.table([pa.array([png()] * 20), pa.array([0, 1] * 10)], schema=schema)
    (tmp_path / "table").mkdir()
    file = str(tmp_path / "table" / f"a.{suffix}")
    if suffix == "parquet":
        pq.write_table(table, file)
    else:
        with pa.OSFile(file, "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            writer.write_table(table)
    attempt(run_cli, Path("table"), marker, *MODELS)


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "file",
    [
        *("projector.safetensors", "spectra.safetensors", "config.yaml", "plan.json", "metrics.jsonl"),
        *("student/config.json", "student/model.safetensors"),
    ],
)
@pytest.mark.parametrize("command", ["export", "analyze-projector"])
def test_a_run_whose_files_are_pickles(run_cli, tmp_path, random_run, marker, payload, file, command):
    run = shutil.copytree(random_run, tmp_path / "run")
    (run / file).write_bytes(pickle.dumps(payload(marker)))
    outcome = run_cli(command, "run")
    unused = {"export": {"projector.safetensors", "spectra.safetensors"}, "analyze-projector": {"plan.json"}}
    assert outcome.exit_code == (0 if file in unused[command] else 2), outcome
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize("command", ["export", "analyze-projector"])
def test_a_run_whose_student_is_a_pickle(refused, tmp_path, random_run, marker, payload, command):
    run = shutil.copytree(random_run, tmp_path / "run")
    (run / "student" / "model.safetensors").unlink()
    torch.save(payload(marker), run / "student" / "pytorch_model.bin")
    assert "student" in refused(command, "run")


@pytest.mark.parametrize(
    "plan",
    ["[]", "{}", "5", '{"relation": "x"}']
    + [
        json.dumps({"relation": "x", "decisions": d, "command": "c", "versions": {}})
        for d in (5, [], [{"name": "student"}])
    ],
)
def test_export_of_a_run_with_a_strange_plan(refused, tmp_path, random_run, plan):
    run = shutil.copytree(random_run, tmp_path / "run")
    (run / "plan.json").write_text(plan)
    assert "plan.json" in refused("export", "run")
    assert not (run / "export").exists()


@pytest.mark.parametrize(
    "metrics", ["", "[]\n", "5\n", '{"event": "validation"}\n', '{"event": "validation", "epoch": 0}\n']
)
def test_analysis_of_a_run_with_strange_metrics(refused, tmp_path, random_run, metrics):
    run = shutil.copytree(random_run, tmp_path / "run")
    (run / "metrics.jsonl").write_text(metrics)
    assert "metrics.jsonl" in refused("analyze-projector", "run")


@pytest.mark.parametrize("change", ["other names", "no steps", "no values", "not finite", "flat"])
def test_analysis_of_a_run_with_strange_spectra(refused, tmp_path, random_run, change):
    from safetensors.torch import save_file

    run = shutil.copytree(random_run, tmp_path / "run")
    tensors = load_file(run / "spectra.safetensors")
    (name,) = tensors.keys() - {"steps"}
    if change == "other names":
        tensors["../../owned"] = tensors.pop(name)
    elif change == "no steps":
        del tensors["steps"]
    elif change == "no values":
        tensors[name] = tensors[name][:, :0].clone()
    elif change == "not finite":
        tensors[name] = tensors[name] * float("nan")
    else:
        tensors[name] = tensors[name].flatten()
    save_file(tensors, run / "spectra.safetensors")
    assert "spectra.safetensors" in refused("analyze-projector", "run")


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("student", ["test_resnet", "hf"])
def test_labels_never_become_paths(run_cli, tmp_path, hf_folder, marker, student):
    """Labels from a table: into the student's config, its card and the terminal, but nowhere else."""
    from datasets import ClassLabel, Dataset, Features, Image

    features = Features({"image": Image(), "label": ClassLabel(names=ODD_NAMES)})
    labels = list(range(len(ODD_NAMES))) * 4
    rows = {"image": [{"bytes": png(), "path": None}] * len(labels), "label": labels}
    work = tmp_path / "a" / "b" / "c"
    work.mkdir(parents=True)
    Dataset.from_dict(rows, features=features).to_parquet(work / "table.parquet")
    outcome = run_cli(
        *("distill", "--teacher", "random:test_vit", "--student", hf_folder if student == "hf" else student),
        *("--data", "table.parquet", *SMALL, "--output", "run"),
        cwd=work,
    )
    assert outcome.exit_code == 0, outcome.stderr
    for arguments in (("export", "run"), ("analyze-projector", "run")):
        outcome = run_cli(*arguments, cwd=work)
        assert outcome.exit_code == 0, outcome.stderr
        assert "\x1b" not in outcome.stdout
    assert {path.name for path in work.iterdir()} == {"run", "table.parquet"}
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
    assert [path for path in tmp_path.rglob("*") if "owned" in path.name or "\n" in path.name] == []
    config = json.loads((work / "run" / "export" / "config.json").read_text())
    names = config["label_names"] if "label_names" in config else config.get("id2label", {}).values()
    assert list(names or config["pretrained_cfg"]["label_names"]) == ODD_NAMES
    check_card((work / "run" / "export" / "README.md").read_text())


def check_card(card: str) -> None:
    """A front matter, one heading, one table of two columns, and closed fences."""
    front, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(front)["pipeline_tag"] == "image-classification"
    lines = body.splitlines()
    assert sum(line.startswith("# ") for line in lines) == 1
    rows = [line for line in lines if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)
    assert all(line.replace("\\\\", "").replace("\\|", "").count("|") == 3 for line in rows)
    assert all(character.isprintable() or character == "\n" for character in body)


def test_class_folders_of_odd_names(run_cli, tmp_path, make_photos, marker):
    """What Linux allows in a folder's name: anything but a slash, half characters included."""
    names = ["new\nline", "p|pe <b> `x`", "\x1b[31mred", "-rf", "caf\udce9", "$x$"]
    folder = make_photos(dict.fromkeys(names, 5))
    outcome = run_cli("distill", *MODELS, "--data", folder, *SMALL, "--output", "run")
    assert outcome.exit_code == 0, outcome.stderr
    assert "\x1b" not in outcome.stdout
    outcome.stdout.encode()
    check_card((tmp_path / "run" / "README.md").read_text())
    assert run_cli("export", "run").exit_code == 0
    config = json.loads((tmp_path / "run" / "export" / "config.json").read_text())
    assert sorted(config["label_names"]) == sorted(names)


def test_a_run_folder_of_an_odd_name(run_cli, tmp_path, random_run):
    """No formula, no markup and no option of a shell."""
    run = shutil.copytree(random_run, tmp_path / "$\\frac{ [red] `x`")
    outcome = run_cli("analyze-projector", run)
    assert outcome.exit_code == 0, outcome.stderr
    assert run_cli("export", run).exit_code == 0


@pytest.mark.parametrize("name", ["...yaml", "-.yaml", "....yaml", "~.yaml", "\n.yaml"])
def test_the_name_of_a_recipe_never_leads_out_of_runs(run_cli, tmp_path, photos, name):
    recipe = {"teacher": "none", "student": "test_resnet", "data": str(photos)}
    (tmp_path / name).write_text(yaml.safe_dump(recipe))
    outcome = run_cli("distill", "--recipe", f"./{name}", *SMALL)
    assert outcome.exit_code == (2 if "\n" in name else 0), outcome.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {name, "runs"}
    assert len(list(tmp_path.glob("runs/*/config.yaml"))) == ("\n" not in name)


def test_a_card_whose_command_holds_a_fence(run_cli, tmp_path, photos):
    outcome = run_cli(
        *("distill", "--teacher", "none", "--student", "test_resnet", "--data", photos, *SMALL, "--output", "run"),
        *("--set", "description='a ````` \n# Title\n'"),
    )
    assert outcome.exit_code == 0, outcome.stderr
    card = (tmp_path / "run" / "README.md").read_text()
    assert "\n``````sh\n" in card
    assert card.count("\n``````") == 2


# --- tokens -----------------------------------------------------------------------------------------------------------


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_tokens_reach_neither_files_nor_the_terminal(run_cli, tmp_path, photos, monkeypatch):
    secrets = {
        "HF_TOKEN": "secret-of-the-hub",
        "WANDB_API_KEY": "secret of the tracker's 'own'",
        "MLFLOW_TRACKING_PASSWORD": "secret-of-mlflow",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    typed = ["hf_" + "Typed123" * 4, "typed-credentials"]
    description = f"from https://user:{typed[1]}@host/x with {typed[0]} and {' '.join(secrets.values())}"
    folder = shutil.copytree(photos, tmp_path / f"photos-{secrets['HF_TOKEN']}")
    outcomes = [
        run_cli(
            *("distill", *MODELS, "--data", folder, *SMALL, "--output", "run", "--track", "tensorboard"),
            *("--set", f"description={json.dumps(description)}"),
        ),
        run_cli("export", "run"),
        run_cli("export", "run", "--format", "onnx", "--output", "onnx"),
    ]
    assert [outcome.exit_code for outcome in outcomes] == [0, 0, 0], outcomes
    written = everything_in(tmp_path / "run") + everything_in(tmp_path / "onnx")
    printed = "".join(outcome.stdout + outcome.stderr for outcome in outcomes)
    for secret in (*secrets.values(), *typed):
        assert secret.encode() not in written
        assert secret not in printed
    assert b"description=" in (tmp_path / "run" / "plan.json").read_bytes(), "the command is recorded"
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    command = json.loads((tmp_path / "run" / "plan.json").read_text())["command"]
    assert config["description"] == "from https://REDACTED@host/x with hf_REDACTED and REDACTED REDACTED REDACTED"
    assert command.count("REDACTED") == 6
    assert (tmp_path / "run" / "README.md").read_text().count("REDACTED") >= 6


def test_a_config_that_is_all_token_can_be_read_again(run_cli, tmp_path, photos, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret: {of} 'the' \"hub\"")
    options = (
        "--data",
        photos,
        *SMALL,
        "--output",
        "run",
        "--set",
        "description=" + json.dumps("secret: {of} 'the' \"hub\""),
    )
    assert run_cli("distill", *MODELS, *options).exit_code == 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["description"] == "REDACTED"
    assert run_cli("analyze-projector", "run").exit_code == 0
    assert run_cli("export", "run").exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("distill", *MODELS, "--data", "hf:https://user:{}@huggingface.co/datasets/org/name"),
        ("distill", *MODELS, "--data", "https://user:{}@host/photos"),
        (
            "distill",
            "--teacher",
            "hf:https://user:{}@huggingface.co/org/name",
            "--student",
            "test_resnet",
            "--data",
            "x",
        ),
        ("distill", *MODELS, "--data", "photos", "--teacher-weights", "https://user:{}@host/x.pth"),
        ("distill", *MODELS, "--data", "photos", "--set", "data.token=https://user:{}@host"),
        ("distill", *MODELS, "--data", "photos", "--set", "https://user:{}@host"),
        ("distill", *MODELS, "--data", "photos", "--set", "seed=https://user:{}@host"),
        ("distill", "--recipe", "https://user:{}@host/r.yaml"),
        ("recipes", "show", "https://user:{}@host/r"),
        ("export", "https://user:{}@host/run"),
        ("export", "run", "--format", "https://user:{}@host"),
    ],
)
def test_messages_carry_no_tokens(refused, arguments):
    message = refused(*(argument.format("typed-credentials") for argument in arguments))
    assert "typed-credentials" not in message

"""What a dry run imports: neither torch's compiler nor scikit-learn, which are most of what it can do without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DRY_RUN = """
import sys
from kdcli.cli.app import main
sys.argv = ["kdcli", *"distill --dry-run --teacher none --student cifar:resnet8 --data demo:digits".split()]
try:
    main()
except SystemExit as ended:
    assert not ended.code
heavy = ("torch._dynamo", "sklearn", "scipy", "pandas", "matplotlib", "transformers", "datasets")
print([name for name in heavy if name in sys.modules])
"""
LATER = """
import sys
from kdcli.cli.quick_imports import postpone_compiler
postpone_compiler()
import torch, torchvision
from torchvision import ops, tv_tensors
assert "torch._dynamo" not in sys.modules
assert torch.compiler.disable.__module__ == "torch.compiler"
image = torch.zeros(1, 3, 8, 8)
assert ops.roi_align(image, [torch.tensor([[0.0, 0.0, 4.0, 4.0]])], 2).shape == (1, 3, 2, 2)
mask = tv_tensors.Mask(torch.zeros(1, 4, 4))
assert type(tv_tensors.wrap(torch.ones(1, 4, 4), like=mask)) is tv_tensors.Mask
import torch._dynamo
assert torch._dynamo.utils.__file__
assert torch.compile(torch.nn.Linear(2, 2), backend="eager")(torch.zeros(1, 2)).shape == (1, 2)
"""


def run(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_dry_run_imports_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    assert run(DRY_RUN, tmp_path).splitlines()[-1] == "[]"


def test_what_was_left_out_is_there_when_it_is_used(tmp_path: Path) -> None:
    run(LATER, tmp_path)

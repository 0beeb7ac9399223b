"""Methods on maps: two processes with half of the samples each against one with all of them."""

PROCESSES = """
import dataclasses
import torch
from torch import distributed
from kdcli.base.facts import ModelFacts, Preprocessing
from kdcli.config.methods import find_method
from kdcli.machine.gather import gather_batch, gather_list
from kdcli.methods import build_method
from kdcli.methods.base import Context
from kdcli.methods.share import Share
from kdcli.models.outputs import ModelOutput
from kdcli.tasks.classification.one_label import ImageClassification

FACTS = ModelFacts(
    "m", "timm", "image-classification", True, "", 3, None, {"a": 5}, Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3),
    1, 1, 1, grids={"a": (6, 4)}, heads=("logits",),
)
METHODS = [
    {"method": name, "layers": ["a:a"], **keys}
    for name, keys in [
        ("cwd", {}), ("skd", {}), ("ifvd", {}), ("cirkd", {}), ("pkd", {}), ("fgd", {}), ("mgd", {}),
        ("cwd", {"projector": "linear", "lr_scale": 1.0}),
        ("projection", {"projector": "orthogonal", "reads": "maps", "normalize_student": "standardize"}),
    ]
] + [
    {"method": "logit_kd"},
    {"method": "cwd_logits"},
    {"method": "spectral_regularization", "student_tap": "a", "reads": "maps"},
]

def outputs(seed):
    generator = torch.Generator().manual_seed(seed)
    return ModelOutput(
        maps={"a": torch.randn(4, 5, 6, 4, generator=generator)},
        heads={"logits": torch.randn(4, 3, 6, 4, generator=generator)},
    )

def work(rank, file):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    masks = torch.arange(4 * 24).view(4, 6, 4) * 7 % 5 - 1
    masks[:2, 1:] = -1  # other numbers of labelled positions in each process
    boxes = [{"boxes": torch.tensor([[2.0, 3, 9, 20], [1, 1, 31, 30]])[: number % 3]} for number in range(4)]
    samples = torch.tensor([3, 8, 1, 5])
    teacher = outputs(2)
    own = slice(2 * rank, 2 * rank + 2)
    for values in METHODS:
        options = find_method(values["method"]).model_validate(values)
        torch.manual_seed(0)
        context = Context(ImageClassification("abc"), FACTS, FACTS if options.needs.teacher else None, ())
        method = build_method(options, context).eval()
        targets = boxes if options.needs.labels == ("boxes",) else masks

        def loss(student, theirs, targets, samples):
            return method(student.only(method.student_reads), theirs.only(method.teacher_reads), targets, samples)

        whole = outputs(1).map(lambda tensor: tensor.requires_grad_())
        alone = loss(whole, teacher, targets, samples)
        alone = alone.mean if isinstance(alone, Share) else alone
        alone.backward()
        expected = [None if p.grad is None else p.grad.clone() for p in method.parameters()]
        method.zero_grad()
        part = outputs(1).map(lambda tensor: tensor[own].clone().requires_grad_())
        if method.scope == "batch":
            gathered = gather_list(targets[own]) if isinstance(targets, list) else gather_batch(targets[own])
            found = loss(part.map(gather_batch), teacher, gathered, gather_batch(samples[own]))
        else:
            found = loss(part, teacher.map(lambda tensor: tensor[own]), targets[own], samples[own]).whole()
        assert torch.allclose(found, alone, rtol=1e-5), (values, found, alone)
        found.backward()
        for name in ("maps", "heads"):
            for tap, tensor in getattr(part, name).items():
                gradient = getattr(whole, name)[tap].grad
                if gradient is not None:  # the mean over processes is the whole batch's
                    assert torch.allclose(tensor.grad / 2, gradient[own], rtol=1e-4, atol=1e-6), values
        for parameter, gradient in zip(method.parameters(), expected, strict=True):
            distributed.all_reduce(parameter.grad)
            assert torch.allclose(parameter.grad / 2, gradient, rtol=1e-4, atol=1e-6), values
    distributed.destroy_process_group()
"""


def test_two_processes_give_the_loss_and_the_gradients_of_one(run_forked):
    run_forked(PROCESSES)

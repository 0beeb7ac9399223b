"""A teacher in shares among two processes: it gives what the whole one gives, also where one has more batches."""

SCRIPT = """
from types import SimpleNamespace

import torch
from torch import distributed
from torch.distributed.tensor import DTensor

from kdcli.base.errors import UserError
from kdcli.base.reads import Reads
from kdcli.config.models import TeacherConfig
from kdcli.machine.team import ALONE, Team
from kdcli.models import load_teacher
from kdcli.training.teachers.sharded import even, teacher_on


class Images(SimpleNamespace):
    def __len__(self):
        return len(self.images)


def work(rank, file):
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    config = TeacherConfig(name="random:test_vit", sharded=True)
    for name, layer in (("random:test_vit", "blocks.2"), ("random:test_resnet", "layer2")):
        teacher = load_teacher(config.model_copy(update={"name": name}), seed=0)
        teacher.open_taps([layer])
        job = SimpleNamespace(
            config=SimpleNamespace(teacher=config), teacher=teacher, is_label_free=False, data=SimpleNamespace(facts=None),
            distiller=SimpleNamespace(adversaries=dict),
        )
        shared = teacher_on(job, Team(rank, 2))
        assert shared is teacher_on(job, Team(rank, 2)) is not teacher
        images = [Images(images=torch.randn(n, 3, 160, 160)) for n in (2, 0, 1, 2)][: 4 if rank else 1]
        ran = 0
        for context in (torch.no_grad, torch.inference_mode):
            with context():
                for batch in even(job, images, Team(rank, 2)):
                    if not len(batch):
                        continue
                    for reads in (Reads((layer,)), Reads(("pooled", layer), heads=("logits",)))[ran % 2 :][:1]:
                        expected, got = teacher(batch.images, reads), shared(batch.images, reads)
                        assert got.features.keys() == expected.features.keys()
                        for tap, values in expected.features.items():
                            assert torch.equal(got.features[tap], values)
                        for head, values in expected.heads.items():
                            assert torch.equal(got.heads[head], values)
                    ran += 1
        assert ran == (6 if rank else 2)
        # Each block has put back what it gathered; what is in no block stays.
        shares = [p for p in shared.parameters() if isinstance(p, DTensor)]
        whole = sum(p.numel() for p in shares)
        assert whole > 0.5 * teacher.facts.num_parameters
        assert sum(p.to_local().numel() for p in shares) < 0.6 * whole
    job.teacher = load_teacher(config, seed=0)
    try:
        teacher_on(job, ALONE)
        raise AssertionError("nobody to share with")
    except UserError as error:
        assert "there is one process" in str(error)
    distributed.destroy_process_group()
"""


def test_two_processes_with_shares_of_a_teacher_see_the_whole_one(run_forked):
    run_forked(SCRIPT)

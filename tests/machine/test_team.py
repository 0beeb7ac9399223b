"""A team of two processes against what one process would have, and a team of one."""

import torch

from kdcli.machine.team import Team

PROCESSES = """
import torch
from torch import distributed
from kdcli.machine.team import Team

def work(rank, file):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    team = Team(rank, 2)
    assert team.is_main == (rank == 0) and not team.is_alone
    own = torch.tensor([1.5 + rank, 2.0], dtype=torch.float64)
    assert team.sum(own).tolist() == [4.0, 4.0] and own.tolist() == [1.5 + rank, 2.0]
    rows = torch.arange(3.0)[:, None]
    assert torch.equal(team.gather(team.share(rows)), rows[[0, 2, 1]])
    assert team.gather(["a", "b"] if rank == 0 else []) == ["a", "b"]
    assert team.gather([rank]) == [0, 1]
    assert team.broadcast({"rank": rank}) == {"rank": 0}
    module = torch.nn.BatchNorm2d(2).to(memory_format=torch.channels_last)
    torch.nn.init.constant_(module.weight, rank)
    module.num_batches_tracked.fill_(rank + 5)
    team.broadcast_weights(module)
    assert module.weight.tolist() == [0, 0] and int(module.num_batches_tracked) == 5
    convolution = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    sent = team.gather([convolution.weight.detach().clone()])[0]
    team.broadcast_weights(convolution)
    assert torch.equal(convolution.weight, sent)
    distributed.destroy_process_group()
"""


def test_two_processes(run_forked):
    run_forked(PROCESSES)


def test_alone_all_is_given_back():
    team, values, items = Team.alone(), torch.ones(2), ["a"]
    assert team.is_alone
    assert team.is_main
    assert team.device == torch.device("cpu")
    assert team.sum(values) is team.gather(values) is team.broadcast(values) is values
    assert team.gather(items) is items
    assert team.share([1, 2, 3]) == [1, 2, 3]
    with team.autocast():
        pass


def test_shares_are_disjoint_and_make_up_the_whole():
    for size in (1, 2, 3):
        shares = [Team(rank, size).share(range(7)) for rank in range(size)]
        assert sorted(index for share in shares for index in share) == list(range(7))

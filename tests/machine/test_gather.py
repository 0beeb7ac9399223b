"""The whole batch out of the processes' shares: two processes against one."""

import torch

from kdcli.machine.gather import gather_batch, gather_rows

PROCESSES = """
import torch
from torch import distributed
from kdcli.machine.gather import gather_batch, gather_rows
from kdcli.methods.share import Share

def work(rank, file):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    whole = torch.arange(15.0).view(5, 3) + 1
    weight = torch.full((3,), 2.0, requires_grad=True)
    for counts in ((3, 2), (0, 5), (5, 0), (1, 4), (0, 0)):
        first = rank * counts[0]
        share = whole[first : first + counts[rank]].clone().requires_grad_()
        found = gather_rows(share * weight)
        total = sum(counts)
        assert torch.equal(found, whole[:total] * 2), (rank, counts, found)
        weight.grad = None
        found.square().sum().backward()
        # The mean over processes of the gradients, as data-parallel training takes it, is the whole batch's.
        distributed.all_reduce(weight.grad)
        expected = (2 * whole[:total].square() * 2).sum(0)
        assert torch.allclose(weight.grad / 2, expected), (rank, counts, weight.grad, expected)
        assert torch.allclose(share.grad, 2 * 2 * 8 / 2 * share.detach()), (rank, counts, share.grad)
        indices = gather_rows(torch.arange(first, first + counts[rank]))
        assert indices.dtype == torch.int64 and indices.tolist() == list(range(total))
        # The mean of this process's rows and their number come to the mean of all rows, and to its gradient.
        weight.grad = None
        loss = Share.of((whole[first : first + counts[rank]] * weight).square()).whole()
        loss.backward()
        distributed.all_reduce(weight.grad)
        squares = whole[:total].square()
        assert torch.allclose(loss, 4 * squares.sum() / max(3 * total, 1)), (rank, counts, loss)
        assert torch.allclose(weight.grad / 2, 4 * squares.sum(0) / max(3 * total, 1)), (rank, counts, weight.grad)
    assert torch.equal(gather_batch(whole[rank * 2 : rank * 2 + 2]), whole[:4])
    distributed.destroy_process_group()
"""


def test_rows_of_two_processes_are_one_batch(run_forked):
    """Of unequal numbers, with none at all among them; values, order and gradients."""
    run_forked(PROCESSES)


def test_alone_a_share_is_the_whole():
    share = torch.ones(3, 2)
    assert gather_rows(share) is gather_batch(share) is share

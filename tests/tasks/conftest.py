"""Meters over batches, by one process and by two."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from kdcli.machine.team import Team
from kdcli.training.evaluation import ignore_sums, run_meter


def measure_with(task, predict, batches, team=None, note=ignore_sums):
    team = team or Team.alone()
    return run_meter(task.meter(team), predict, batches, team, note)


@pytest.fixture
def measure():
    """``measure(task, predict, batches)``: the metrics of what ``predict`` makes of the batches."""
    return measure_with


class ThreadTeam(Team):
    """One of two threads that are processes to each other."""

    def __init__(self, rank, parts, barrier):
        super().__init__(rank, 2)
        self.parts, self.barrier = parts, barrier

    def _exchange(self, own):
        self.parts[self.rank] = own
        self.barrier.wait(60)
        found = list(self.parts)
        self.barrier.wait(60)
        return found

    def sum(self, values):
        return torch.stack(self._exchange(values)).sum(dim=0)

    def gather(self, part):
        first, second = self._exchange(part)
        return torch.cat([first, second]) if isinstance(part, torch.Tensor) else [*first, *second]

    def broadcast(self, value):
        return self._exchange(value)[0]


def in_two(work):
    """Return what ``work(team)`` returns in each of two processes."""
    parts, barrier = [None, None], Barrier(2)

    def process(rank):
        try:
            return work(ThreadTeam(rank, parts, barrier))
        except BaseException:
            barrier.abort()  # the other one waits for no one
            raise

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(process, range(2)))


@pytest.fixture(name="in_two")
def _in_two():
    return in_two

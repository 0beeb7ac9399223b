"""The processes that work on one thing together: what each has to know, and to ask of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar, overload

import torch
from torch import Tensor, distributed, nn

from kdcli.machine.gather import gather_list, gather_rows

if TYPE_CHECKING:
    from accelerate import Accelerator

Item = TypeVar("Item")
Kind = TypeVar("Kind")


class Team:
    """This process and the others that train, evaluate or measure with it.

    What the processes do together (:meth:`sum`, :meth:`gather`, :meth:`broadcast`) all of them have to call, in the
    same order. A team of one gets back what it gave.

    Args:
        rank: the number of this process, below ``size``.
        size: number of processes.
        device: of this process's models.
        precision: of autocast, as Accelerate calls it: ``no``, ``fp16`` or ``bf16``.
        autocast: makes the context in which models compute in this precision.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        *,
        device: torch.device | str = "cpu",
        precision: str = "no",
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.rank, self.size, self.precision = rank, size, precision
        self.device = torch.device(device)
        self._autocast = autocast

    @classmethod
    def alone(cls, *, device: torch.device | str = "cpu") -> Team:
        """Return a team of this process alone, without Accelerate and in full precision."""
        return cls(device=device)

    @classmethod
    def of(cls, accelerator: Accelerator) -> Team:
        """Return the processes that ``accelerator`` has."""
        return cls(
            accelerator.process_index,
            accelerator.num_processes,
            device=accelerator.device,
            precision=accelerator.mixed_precision,
            autocast=accelerator.autocast,
        )

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there are no other processes."""
        return self.size == 1

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context in which models compute in the team's precision."""
        return self._autocast()

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return every ``size``-th item, this process's own; the shares differ by one in number at most."""
        return items[self.rank :: self.size]

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes, on the team's device; of a team of one ``values`` themselves.

        Args:
            values: of one shape in every process; without gradient.
        """
        if self.is_alone:
            return values
        total = values.detach().to(self.device, copy=True).contiguous()
        distributed.all_reduce(total)
        return total

    @overload
    def gather(self, part: Tensor) -> Tensor: ...
    @overload
    def gather(self, part: list[Kind]) -> list[Kind]: ...
    def gather(self, part: Tensor | list[Any]) -> Tensor | list[Any]:
        """Return what all processes have, in the order of their ranks.

        Args:
            part: a tensor (n, ...), of which n alone may differ between processes, on the team's device; or a list.

        Returns:
            One tensor (sum of all n, ...), or one list.
        """
        if self.is_alone:
            return part
        return gather_rows(part) if isinstance(part, Tensor) else gather_list(part)

    def in_step(self, items: Iterable[Item]) -> Iterator[Item | None]:
        """Yield this process's ``items``, and after them None as long as any other process has some."""
        if self.is_alone:
            yield from items
            return
        own = iter(items)
        while True:
            item = next(own, None)
            if not int(self.sum(torch.tensor(int(item is not None), device=self.device))):
                return
            yield item

    def broadcast(self, value: Kind) -> Kind:
        """Return what the main process gave; what the others give is not read.

        Args:
            value: anything that can be pickled, without tensors on a GPU.
        """
        if self.is_alone:
            return value
        found = [value if self.is_main else None]
        distributed.broadcast_object_list(found, device=self.device)
        return found[0]  # type: ignore[return-value]  # the main process's

    def broadcast_weights(self, module: nn.Module) -> None:
        """Give ``module`` the parameters and buffers that it has in the main process."""
        if self.is_alone:
            return
        for tensor in module.state_dict().values():
            whole = tensor.contiguous()
            distributed.broadcast(whole, src=0)
            tensor.copy_(whole)


ALONE = Team.alone()
"""This process by itself, on the CPU."""

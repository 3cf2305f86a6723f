"""The processes that train one autoencoder together, and what they say to each other.

    rank = data share · latent shares + latent share

Each latent share is a run of the dictionary's rows, each data share a part of every batch. Processes of one data share
see the same inputs and choose among all latents together: they gather each other's candidate codes and add up their
parts of the reconstruction. Processes of one latent share average their gradients. A process alone says nothing to
anybody, and every function here then hands back what it was given.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from patchclamp.errors import RunError, SpecError
from patchclamp.evidence.rank import local_rank, world_size

CPU = torch.device("cpu")


class RankLost(RunError):
    """Another process does not answer any more."""

    def __init__(self, said: str) -> None:
        self.said = said
        super().__init__(f"another process died or fell silent ({said}); run the same command again: it goes on from "
                         "the last checkpoint, if there is one")


@dataclass(frozen=True)
class Ranks:
    """One process's place among those that train together."""

    latents: int = 1
    """Latent shares."""
    data: int = 1
    """Data shares."""
    rank: int = 0
    device: torch.device = CPU
    mesh: Any = None
    """torch's device mesh [data, latents]; none for a process alone."""

    @classmethod
    @contextmanager
    def joined(cls, data: int, device: torch.device, patience: float) -> Iterator["Ranks"]:
        """This process's place among those that torchrun started, for as long as the block lasts. `data`: data shares;
        `patience`: seconds without an answer after which another process counts as lost. SpecError if their number
        cannot be divided so."""
        own = not (dist.is_available() and dist.is_initialized())
        world = world_size() if own else dist.get_world_size()
        if world % data:
            raise SpecError(f"data_parallel is {data}, and {world} process{'es' * (world > 1)} cannot be divided into "
                            f"{data} equal shares; start with torchrun --nproc-per-node {data}, or a multiple of it")
        # Apple's GPUs lack double precision, in which sums over pairs are made
        place = device if device.type == "cuda" else CPU
        if world == 1:
            yield cls(device=place)
            return
        if place.type == "cuda" and place.index is None:
            place = torch.device("cuda", local_rank())
        if own:
            _start(place, patience)
        try:
            mesh = _mesh(place, (data, world // data))
            yield cls(world // data, data, dist.get_rank(), place, mesh)
        finally:
            if own:
                with suppress(RuntimeError):
                    dist.destroy_process_group()

    @property
    def is_many(self) -> bool:
        """Whether there are others."""
        return self.mesh is not None

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    @property
    def latent(self) -> int:
        """This process's latent share."""
        return self.rank % self.latents

    @property
    def datum(self) -> int:
        """This process's data share."""
        return self.rank // self.latents

    def rows_of(self, n: int) -> slice:
        """This process's run of `n` latents."""
        own = n // self.latents
        return slice(self.latent * own, (self.latent + 1) * own)

    def check(self, latents: int, batch: int) -> None:
        """SpecError, naming numbers that would fit, for latents or a batch that cannot be divided."""
        for what, n, shares, said in (("latents", latents, self.latents, f"{self.latents} processes"),
                                      ("rows of a batch", batch, self.data, f"{self.data} data shares")):
            if n % shares:
                below, above = n // shares * shares, -(-n // shares) * shares
                near = f"{below:,} or {above:,}" if below else f"{above:,}"
                raise SpecError(f"{n:,} {what} cannot be divided among {said}; ask for {near}")

    # What they say to each other

    def over_latents(self, tensor: Tensor) -> Tensor:
        """The sum over latent shares, in place."""
        return self._reduced(tensor, "latents") if self.latents > 1 else tensor

    def over_data(self, tensor: Tensor) -> Tensor:
        """The sum over data shares, in place."""
        return self._reduced(tensor, "data") if self.data > 1 else tensor

    def _reduced(self, tensor: Tensor, axis: str) -> Tensor:
        with _answered():
            dist.all_reduce(tensor, group=self.mesh.get_group(axis))
        return tensor

    def gathered(self, tensor: Tensor, data: bool = False) -> Tensor:
        """Everybody's, of one shape, [shares, …]: of the latent shares, or with `data` of all processes."""
        if (self.latents * self.data if data else self.latents) == 1:
            return tensor[None]
        group = dist.group.WORLD if data else self.mesh.get_group("latents")
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
        with _answered():
            dist.all_gather(parts, tensor.contiguous(), group=group)
        return torch.stack(parts)

    def first_says(self, number: int) -> int:
        """The first process's answer to what each might answer otherwise: whether it is time, or a file is there.
        Nobody goes on before the first has come here."""
        if not self.is_many:
            return number
        said = torch.tensor([number], device=self.device)
        with _answered():
            dist.broadcast(said, 0)
        return int(said)

    def meet(self) -> None:
        """Wait for all others."""
        if self.is_many:
            with _answered():
                dist.all_reduce(torch.zeros(1, device=self.device))

    def whole(self, tensor: Tensor) -> Tensor | None:
        """All shares' latents one below the other, in the first process's main memory; elsewhere None."""
        if self.latents == 1:
            return tensor.cpu() if self.is_first else None
        if self.datum:
            return None
        own = tensor.cpu().contiguous()
        parts = [torch.empty_like(own) for _ in range(self.latents)] if self.is_first else None
        with _answered():
            dist.gather(own, parts, dst=0, group=self.mesh.get_group("latents"))
        return torch.cat(parts) if parts else None

    # Within a loss

    def summed(self, part: Tensor) -> Tensor:
        """The sum over latent shares. Backwards a gradient goes to each part as it is."""
        out: Tensor = _Summed.apply(part, self) if self.latents > 1 else part
        return out

    def spread(self, tensor: Tensor) -> Tensor:
        """The tensor, of which each latent share makes its own use. Backwards the gradients are summed."""
        out: Tensor = _Spread.apply(tensor, self) if self.latents > 1 else tensor
        return out


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, ranks: Ranks) -> Tensor:
        return ranks.over_latents(part.detach().clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.ranks.over_latents(gradients[0].clone(memory_format=torch.contiguous_format)), None


def greatest(values_BN: Tensor, k: int) -> Tensor:
    """Which are the k greatest of each row, a mask; of equal ones the first. The same in every process."""
    least_B1 = values_BN.topk(k, 1).values[:, -1:]
    above_BN, equal_BN = values_BN > least_B1, values_BN == least_B1
    open_B1 = k - above_BN.sum(1, keepdim=True)
    return above_BN | (equal_BN & (equal_BN.cumsum(1) <= open_B1))


def _start(place: torch.device, patience: float) -> None:
    if place.type == "cuda":
        torch.cuda.set_device(place)
    with _answered():
        dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo",
                                timeout=timedelta(seconds=patience))


def _mesh(place: torch.device, shape: Sequence[int]) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    with _answered():
        return init_device_mesh(place.type, tuple(shape), mesh_dim_names=("data", "latents"))


@contextmanager
def _answered() -> Iterator[None]:
    """Inside, torch's errors are those of a process that does not answer."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        said = " ".join(str(error).split())[:200]
        raise RankLost(said) from error

"""What a training would cost before anybody pays for it: memory, traffic, time and storage.

Sizes follow from the tensors (`sae/cost.py`). Times rest on how many operations and bytes a step takes, which was held
against measured steps (docs/benchmarks.md): `slower` is how much longer they took. A GPU's speed, memory and link are
data-sheet numbers, assumptions until you measure yours.
"""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from patchclamp.evidence.method import NoModel, Outcome, Part, Progress, Result, Spec, load_nothing, method
from patchclamp.forward.autoencoder import Architecture
from patchclamp.sae.cost import Machine, Shape
from patchclamp.sae.store import Kind

if TYPE_CHECKING:
    import altair
    import pandas

MEASURED_SLOWER = 1.27
"""Median over nine sizes of a measured step by what operations and bytes say (benchmarks/sae_ranks.py)."""
SPARE = 0.05
"""Share of a GPU's memory that is not there for tensors: the CUDA context, what an allocator cannot use."""
MOST_GPUS = 65_536
PLACE_BYTES = 8


class PlanSpec(Spec):
    """Which training, on which machines."""

    latents: int = Field(ge=2)
    """Directions in the dictionary."""
    width: int = Field(ge=1)
    """Width of what it reads, e.g. 4096."""
    tokens: float = Field(ge=1)
    """Tokens to train on, e.g. 8e9."""
    gpus: int = Field(ge=1, le=MOST_GPUS)
    """Processes, one a GPU."""
    architecture: Architecture = "topk"
    """As `sae train`."""
    batch: int = Field(2048, ge=2)
    """Rows in a step."""
    k: int = Field(32, ge=1)
    """Latents active for an input; of relu, jumprelu and gated what you expect."""
    data_parallel: int = Field(1, ge=1)
    """Shares a batch is divided into; the latents are divided among the GPUs of each."""
    aux_k: int | None = Field(None, ge=0)
    """As `sae train`: half the width if not given."""
    kind: Kind = "bfloat16"
    """How harvested activations are stored."""
    gpu_memory: float = Field(80, gt=0)
    """A GPU's memory, GB. Assumed: H100 SXM, as all of the next."""
    gpu_tflops: float = Field(67, gt=0)
    """10^12 float32 operations a second in a matrix product (training does not round to TF32)."""
    gpu_bandwidth: float = Field(3350, gt=0)
    """GB a second to and from its memory."""
    link: float = Field(50, gt=0)
    """GB a second that a GPU gets from others: one 400 Gb/s network card each. Within one machine NVLink has 450."""
    slower: float = Field(MEASURED_SLOWER, gt=0)
    """Times that a step takes what operations and bytes say; measured on a CPU."""

    @model_validator(mode="after")
    def _fits(self) -> "PlanSpec":
        if self.gpus % self.data_parallel:
            raise ValueError(f"{self.gpus} GPUs cannot be divided into {self.data_parallel} data shares")
        if self.k > self.latents:
            raise ValueError(f"k is 1 to {self.latents}, the number of latents")
        return self


class Cost(Part):
    """One item of a plan."""

    group: Literal["memory", "traffic", "time", "storage"]
    item: str
    value: float
    unit: Literal["GB", "GB/step", "ms/step"]


class PlanResult(Result):
    """What a training would cost."""

    latent_shares: int
    latents_per_gpu: int
    steps: int
    memory_gb: float
    """Each GPU's, at its peak."""
    fits: bool
    """Whether that is less than a GPU has, 5 % left free."""
    gpus_that_fit: int | None
    """The fewest GPUs, of as many data shares, that do; null if there is no number that divides the latents."""
    first_process_gb: float
    """Main memory of the first process when it puts the finished autoencoder together."""
    traffic_gb: float
    """What a GPU gets from others in all steps."""
    traffic_while_dead_gb: float
    """What comes on top of a step's while latents are dead."""
    seconds_per_step: float
    tokens_per_second: float
    hours: float
    reading_gb_per_second: float
    """Activations that have to be read at that speed, by each data share a part."""
    storage_gb: float
    """Activations, a checkpoint and the one it replaces, and the finished file."""
    costs: list[Cost]

    def table(self) -> "pandas.DataFrame":
        """One row an item, then the sums."""
        import pandas

        enough = f"{self.gpus_that_fit} GPUs would do" if self.gpus_that_fit else "no number of GPUs would do"
        sums = [
            ("memory", "all of a GPU's", self.memory_gb, "GB: fits" if self.fits else f"GB: does not fit, {enough}"),
            ("memory", "first process, at the end", self.first_process_gb, "GB of main memory"),
            ("traffic", "training", self.traffic_gb, "GB"),
            ("traffic", "on top, while latents are dead", self.traffic_while_dead_gb, "GB/step"),
            ("time", "a step", 1000 * self.seconds_per_step, "ms/step"), ("time", "training", self.hours, "hours"),
            ("storage", "all", self.storage_gb, "GB"),
            ("storage", "read in training", self.reading_gb_per_second, "GB/s"),
        ]
        rows = [(one.group, one.item, one.value, one.unit) for one in self.costs]
        return pandas.DataFrame([*rows, *sums], columns=["of", "what", "value", "unit"])

    def chart(self) -> "altair.TopLevelMixin":
        """Memory, traffic, time and storage by what for."""
        from patchclamp.charts.sae import plan_chart

        return plan_chart(self)


@method("sae.plan", spec=PlanSpec, result=PlanResult, load=load_nothing)
def plan_training(model: NoModel, spec: PlanSpec, progress: Progress) -> Outcome:
    """Say what training a large autoencoder on many GPUs would take: memory, traffic, time, storage.

    A plan claims nothing about a model, so there is no verdict.
    """
    shape = _shape(spec, spec.gpus)
    shares = shape.latent_shares
    if spec.latents % shares or spec.batch % spec.data_parallel:
        from patchclamp.sae.ranks import Ranks

        Ranks(latents=shares, data=spec.data_parallel).check(spec.latents, spec.batch)
    machine = Machine(1e12 * spec.gpu_tflops, 1e9 * spec.gpu_bandwidth, 1e9 * spec.link, spec.slower)
    seconds, steps = shape.seconds(machine), max(1, round(spec.tokens / spec.batch))
    step, traffic = sum(seconds.values()), sum(shape.traffic().values())
    a_row = spec.width * {"float32": 4}.get(spec.kind, 2) + PLACE_BYTES
    storage = {"activations": spec.tokens * a_row, "checkpoint and the one it replaces": 2.0 * shape.state(),
               "finished autoencoder": float(shape.autoencoder())}
    return PlanResult(
        latent_shares=shares, latents_per_gpu=shape.held, steps=steps, memory_gb=_memory(shape) / 1e9,
        fits=_fits(shape, spec), gpus_that_fit=_enough(spec), first_process_gb=2 * shape.autoencoder() / 1e9,
        traffic_gb=steps * traffic / 1e9, traffic_while_dead_gb=shape.traffic_while_dead() / 1e9, seconds_per_step=step,
        tokens_per_second=spec.batch / step, hours=steps * step / 3600,
        reading_gb_per_second=spec.batch * a_row / step / 1e9, storage_gb=sum(storage.values()) / 1e9,
        costs=[*_costs("memory", shape.memory(), "GB", 1e-9), *_costs("traffic", shape.traffic(), "GB/step", 1e-9),
               *_costs("time", seconds, "ms/step", 1e3), *_costs("storage", storage, "GB", 1e-9)],
    ), None


def _shape(spec: PlanSpec, gpus: int) -> Shape:
    aux_k = spec.width // 2 if spec.aux_k is None else spec.aux_k
    return Shape(spec.architecture, spec.latents, spec.width, spec.batch, spec.k, gpus // spec.data_parallel,
                 spec.data_parallel, aux_k)


def _memory(shape: Shape) -> int:
    return sum(shape.memory().values())


def _fits(shape: Shape, spec: PlanSpec) -> bool:
    return _memory(shape) <= (1 - SPARE) * 1e9 * spec.gpu_memory


def _enough(spec: PlanSpec) -> int | None:
    """The fewest GPUs whose memory is enough."""
    for shares in range(1, MOST_GPUS // spec.data_parallel + 1):
        if spec.latents % shares == 0 and _fits(_shape(spec, shares * spec.data_parallel), spec):
            return shares * spec.data_parallel
    return None


def _costs(group: Any, items: dict[str, Any], unit: Any, factor: float) -> list[Cost]:
    return [Cost(group=group, item=item, value=value * factor, unit=unit) for item, value in items.items() if value]

"""Autoencoders from and into other projects' formats, without a change in what they compute.

Each project's conventions are folded into one as a file is read, and unfolded as it is written (`formats/parts.py`).
What was written is read again and asked for its codes beside the original's, on activations of the model and on random
ones.
"""

import re
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from patchclamp.errors import SiteError, SpecError
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Outcome, Part, Progress, Result, Spec, method
from patchclamp.forward import Model, Site
from patchclamp.forward.autoencoder import Architecture, Autoencoder
from patchclamp.forward.prepare import check_site, value_shape
from patchclamp.sae.formats.parts import Parts
from patchclamp.sae.formats.registry import FORMATS, FormatName, detect, holds
from patchclamp.sae.harvest import POINTS
from patchclamp.tasks.files import DataFile, noting_files
from patchclamp.tasks.neutral import neutral_texts

if TYPE_CHECKING:
    import altair
    import pandas

TEXTS, LONGEST = 16, 64
"""Neutral texts, and tokens of each, whose activations the two are compared on; as many random inputs."""
AT_ONCE = 256


class ConvertSpec(Spec):
    """Which autoencoder to write in which format."""

    model_config = ConfigDict(populate_by_name=True)

    source: Annotated[DataFile, Positional()]
    """The autoencoder's folder, or the file in it that holds the tensors."""
    target: FormatName = Field(alias="to")
    """The format to write."""
    out: DataFile
    """The folder to write into."""
    origin: FormatName | None = Field(None, alias="from")
    """The source's format; told by its files if not given."""
    site: str | None = None
    """What it reads, e.g. resid.15, if the source does not say so in a way that is understood."""
    output_site: str | None = None
    """What it writes, if it is a transcoder and the source does not say so."""
    name: str | None = None
    """How feature:NAME.L.i is to call it; the source's own name, or its folder's, if not given."""


class Compared(Part):
    """Codes of the original and of what was written, read again, on the same inputs."""

    inputs: str
    """The model's activations on neutral texts, or random numbers of the same mean and spread."""
    rows: int
    l0: float
    """The original's active latents for an input, on average."""
    difference: float
    """The largest difference of a code that both have, relative to the largest code."""
    changed: int
    """Codes that only one of the two has: they lie at their threshold, or at that of rank, within rounding."""


class Converted(Result):
    """A converted autoencoder."""

    path: str
    """The folder written."""
    origin: FormatName
    read_as: str
    """What the source's format calls it."""
    target: FormatName
    written_as: str
    """What the written format calls it."""
    name: str
    architecture: Architecture
    k: int | None
    latents: int
    width: int
    site: str
    output_site: str | None
    said_model: str | None
    """The model that the source names."""
    same_tensors: bool
    """Whether what was written, read again, has the original's tensors bit for bit."""
    compared: list[Compared]

    def table(self) -> "pandas.DataFrame":
        """One row a kind of input."""
        import pandas

        return pandas.DataFrame([
            {"from": f"{self.origin} {self.read_as}", "to": f"{self.target} {self.written_as}", "site": self.site,
             "latents": self.latents, "inputs": one.inputs, "rows": one.rows, "L0": one.l0,
             "difference": one.difference, "changed": one.changed} for one in self.compared
        ])

    def chart(self) -> "altair.TopLevelMixin":
        """How far codes are from the original's, in units of float32's rounding."""
        from patchclamp.charts.sae import convert_chart

        return convert_chart(self)


@method("sae.convert", spec=ConvertSpec, result=Converted)
def convert_autoencoder(model: Model, spec: ConvertSpec, progress: Progress) -> Outcome:
    """Write an autoencoder of SAELens, sparsify, dictionary_learning, Gemma Scope or patchclamp in another's format.

    What cannot be written exactly is refused. Codes of what was written are compared with the original's on activations
    of the model, which is the one the autoencoder belongs to, and on random inputs. Converting claims nothing more, so
    there is no verdict.
    """
    source, folder = Path(spec.source), Path(spec.out)
    origin = spec.origin or detect(source)
    _refuse_mixing(source, folder, spec.target)
    parts = FORMATS[origin].read(source)
    original = _original(model, spec, parts, source, origin)
    info = original.info
    written_as = FORMATS[spec.target].write(original, folder)
    with noting_files():  # these are no inputs
        again = FORMATS[spec.target].read(folder).autoencoder(
            info.name, info.site, info.output_site, info.model, info.weights, {})
    rows_ND = activations(model, original.site)
    return Converted(
        path=str(folder), origin=origin, read_as=parts.kind, target=spec.target, written_as=written_as, name=info.name,
        architecture=info.architecture, k=info.k, latents=original.n_latents, width=original.W_enc.shape[1],
        site=info.site, output_site=info.output_site, said_model=parts.model,
        same_tensors=original.tensors.keys() == again.tensors.keys() and all(
            torch.equal(tensor.float(), again.tensors[name]) for name, tensor in original.tensors.items()),
        compared=[compare(original, again, "the model's", rows_ND),
                  compare(original, again, "random", random_like(rows_ND, spec.seed))],
    ), None


def _refuse_mixing(source: Path, folder: Path, target: FormatName) -> None:
    """SpecError if the folder has another format's autoencoder in it, or the source itself."""
    if others := [name for name in holds(folder) if name != target]:
        raise SpecError(f"{folder} holds an autoencoder of {others[0]} already; name another folder with --out")
    home = source if source.is_dir() else source.parent
    if target in holds(folder) and home.resolve() == folder.resolve():
        raise SpecError(f"{folder} is the source itself and would be written over; name another folder with --out")


def _original(model: Model, spec: ConvertSpec, parts: Parts, source: Path, origin: FormatName) -> Autoencoder:
    """What was read, as the model's. SpecError if it is not, or does not fit it."""
    told = parts.told
    if told is not None and told.weights != model.weights_hash:
        raise SpecError(f"the autoencoder {told.name} belongs to {told.model} (weights {told.weights[:12]}), not to "
                        f"{model.name} ({model.weights_hash[:12]}); load that model with --model")
    site = _site(model, spec.site or (told.site if told else parts.site), "site", parts, spec.site is None and not told)
    out = spec.output_site or (told.output_site if told else parts.output_site)
    output_site = _site(model, out, "output_site", parts) if out or parts.is_transcoder else None
    home = source if source.is_dir() else source.parent
    name = spec.name or (told.name if told else re.sub(r"[^\w-]+", "_", home.resolve().name) or "converted")
    if re.search(r"[.@\s]", name):
        raise SpecError(f"the name {name!r} has a dot, a blank or an @ in it, which part a site; choose another (name)")
    settings = {} if told else {"converted": {"from": origin, "as": parts.kind, "model": parts.model}}
    original = parts.autoencoder(name, str(site), str(output_site) if output_site else None, model.name,
                                 model.weights_hash, settings)
    _check_width(model, original, site, original.W_enc.shape[1], "reads")
    _check_width(model, original, output_site or site, original.W_dec.shape[1], "writes")
    return original


def _site(model: Model, text: str | None, field: str, parts: Parts, is_guess: bool = False) -> Site:
    """A site that autoencoders can have, in the model. SpecError if there is none or it may be either of two."""
    option = f"--{field.replace('_', '-')}"
    if text is None:
        verb = "reads" if field == "site" else "writes"
        raise SpecError(f"the source does not name the site that the {parts.kind} {verb}, or not as any site here; "
                        f"say it with {option}, e.g. {option} resid.15")
    try:
        site = Site.parse(text)
    except SiteError as error:
        raise SpecError(f"{field}: {error}") from error
    if site != site.whole or site.point not in POINTS:
        raise SpecError(f"{field} {text}: an autoencoder has a whole site of these: {', '.join(POINTS)}")
    check_site(model.anatomy, site, model.name)
    family = model.anatomy.family
    if is_guess and parts.raw_output and site.point in ("attn", "mlp") and (family.post_norm or family.multiplier):
        raise SpecError(f"the source reads a module's own output, and {model.name} changes that before it is added to "
                        f"the stream, which is what {text} is here; give {option} if you know that it is meant")
    return site


def _check_width(model: Model, original: Autoencoder, site: Site, width: int, verb: str) -> None:
    expected = prod(value_shape(model.anatomy, site))
    if width != expected:
        raise SpecError(f"the autoencoder {original.info.name} {verb} {width} numbers, but {site} of {model.name} has "
                        f"{expected}; load the model it was trained on with --model, or give another site")


def activations(model: Model, site: Site) -> Tensor:
    """The model's activations at a site on neutral texts, first tokens left out, [N, D]."""
    texts = [model.encode(text).ids[:LONGEST] for text in neutral_texts(TEXTS)]
    return torch.cat([rows[1:].flatten(1).float().cpu() for rows in model.capture(texts, site).rows(site)])


def random_like(rows_ND: Tensor, seed: int) -> Tensor:
    """Normal numbers with each coordinate's mean and spread."""
    generator = torch.Generator().manual_seed(seed)
    return rows_ND.mean(0) + rows_ND.std(0) * torch.randn(rows_ND.shape, generator=generator)


def compare(one: Autoencoder, other: Autoencoder, inputs: str, rows_ND: Tensor) -> Compared:
    """The codes of two autoencoders on the same inputs."""
    active, changed, largest, difference = 0, 0, 0.0, 0.0
    for some_ND in rows_ND.split(AT_ONCE):
        a_NL, b_NL = one.encode(some_ND), other.encode(some_ND)
        has_a_NL, has_b_NL = a_NL > 0, b_NL > 0
        active += int(has_a_NL.sum())
        changed += int((has_a_NL != has_b_NL).sum())
        largest = max(largest, float(a_NL.max()))
        difference = max(difference, float(((a_NL - b_NL).abs() * (has_a_NL & has_b_NL)).max()))
    return Compared(inputs=inputs, rows=len(rows_ND), l0=active / max(1, len(rows_ND)),
                    difference=difference / largest if largest else 0.0, changed=changed)

"""Autoencoders in other projects' files: do those projects and patchclamp make the same codes of them?

    python -m benchmarks.sae_formats                                  # makes three environments once, about 5 GB
    python -m benchmarks.sae_formats --peers sparsify --latents 9216

Both ways, on the same inputs (SmolLM2's activations after block 15 on neutral texts, and as many random ones of the
same mean and spread): the project loads with its own loader what patchclamp wrote and encodes; patchclamp reads what
the project itself made and saved, of random parameters, biases and lengths of directions. Printed: the largest
difference of a code that both have over the largest code, how many codes only one has, and the largest difference of
reconstructions over their largest number. Exit code 1 if a code differs by more than is allowed, or if of a million
active codes more than one is in only one of the two. Gemma Scope comes without a loader; SAELens reads its files.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import patchclamp as pc
from benchmarks.envs import TRANSFORMERS, Peer, ensure
from patchclamp.forward.autoencoder import NEEDS, Autoencoder, AutoencoderInfo
from patchclamp.sae.convert import activations, random_like
from patchclamp.sae.formats.registry import FORMATS, FormatName

WORKER = Path(__file__).parent / "workers" / "sae_formats_worker.py"
SAE_LENS = Peer("sae-lens", "sae-lens==6.54.12", WORKER.name, ())
PEERS = {
    "sae-lens": SAE_LENS,
    "sparsify": Peer("sparsify", "eai-sparsify==1.3.3", WORKER.name, (TRANSFORMERS,)),
    "dictionary-learning": Peer("dictionary-learning", "dictionary-learning==0.1.0", WORKER.name, ()),
    "gemma-scope": SAE_LENS,
    "gemma-scope-2": SAE_LENS,
}
READ_ONLY = ("gemma-scope", "gemma-scope-2")
"""Formats that the project reads and does not write."""
FORM: dict[str, FormatName] = {
    "sae-lens": "saelens", "sparsify": "sparsify", "dictionary-learning": "dictionary_learning",
    "gemma-scope": "gemmascope", "gemma-scope-2": "gemmascope2"}
TOLERANCE, STRAY = 1e-5, 1e-6
K = 32


@dataclass(frozen=True)
class Made:
    """An autoencoder to write: its architecture, and whether it is a transcoder, with a linear path."""

    architecture: str
    transcodes: bool = False
    skip: bool = False

    def build(self, width: int, latents: int) -> Autoencoder:
        draw = torch.Generator().manual_seed(1)
        parts = {"W_enc": torch.randn(latents, width, generator=draw) * 0.3,
                 "b_enc": torch.randn(latents, generator=draw),
                 "W_dec": torch.randn(latents, width, generator=draw), "b_dec": torch.randn(width, generator=draw)}
        for name in NEEDS[self.architecture]:
            parts[name] = torch.randn(latents, generator=draw).abs() * 0.3
        if self.architecture in ("batchtopk", "matryoshka"):
            parts["threshold"] = torch.full((latents,), 9.0)
        if self.skip:
            parts["W_skip"] = torch.randn(width, width, generator=draw) * 0.3
        k = K if self.architecture in ("topk", "batchtopk", "matryoshka") else None
        return Autoencoder(AutoencoderInfo(
            name="a", architecture=self.architecture, k=k, site="resid_mid.15" if self.transcodes else "resid.15",
            output_site="mlp.15" if self.transcodes else None, model="m", weights="0"), parts)

    def __str__(self) -> str:
        return self.architecture + ", transcoder" * self.transcodes + " with a linear path" * self.skip


PLAIN = [Made(architecture) for architecture in NEEDS]
BY_THRESHOLD = [Made(architecture) for architecture in ("relu", "jumprelu", "batchtopk", "matryoshka")]
WRITTEN = {
    "sae-lens": [*PLAIN, *(Made(one, True, skip) for one in ("relu", "jumprelu") for skip in (False, True))],
    "sparsify": [Made("topk"), Made("topk", True), Made("topk", True, True)],
    "dictionary-learning": PLAIN,
    "gemma-scope": BY_THRESHOLD,
    "gemma-scope-2": [*BY_THRESHOLD, Made("jumprelu", True), Made("jumprelu", True, True)],
}


def ask(peer: str, *arguments: str | int | Path) -> None:
    """Let the project's process do something."""
    subprocess.run([str(ensure(PEERS[peer])), str(WORKER), peer, *map(str, arguments)], check=True)


def compare(own: Autoencoder, place: Path, inputs_ND: Tensor, what: str) -> bool:
    """Print how far the project's answer is from ours; whether that is allowed."""
    answer = load_file(place / "answer.safetensors")
    codes_NL, theirs_NL = own.encode(inputs_ND), answer["codes"]
    both_NL, either_NL = (codes_NL > 0) & (theirs_NL > 0), (codes_NL > 0) != (theirs_NL > 0)
    stray, active = int(either_NL.sum()), int((theirs_NL > 0).sum())
    code = float(((codes_NL - theirs_NL).abs() * both_NL).max() / theirs_NL.max())
    out_NO = own.reconstruct(inputs_ND)
    out = float((out_NO - answer["out"]).abs().max() / answer["out"].abs().max())
    where = f" (at most {from_threshold(own, inputs_ND, either_NL):.1e} from their threshold)" if stray else ""
    print(f"  {what:65} L0 {active / len(inputs_ND):6.0f}  codes {code:.1e}  reconstructions {out:.1e}  in one only "
          f"{stray} of {active:,}{where}", flush=True)
    return code <= TOLERANCE and stray <= max(1, STRAY * active)


def from_threshold(own: Autoencoder, inputs_ND: Tensor, which_NL: Tensor) -> float:
    """How far some latents are from the threshold at which they become active, in float64, over the largest code."""
    inputs_P, latents_P = which_NL.nonzero().T
    threshold_L = own.tensors.get("threshold", torch.zeros_like(own.b_enc)).double()
    pre_P = (inputs_ND[inputs_P].double() * own.W_enc[latents_P].double()).sum(1) + own.b_enc[latents_P].double()
    return float((pre_P - threshold_L[latents_P]).abs().max() / own.encode(inputs_ND).max())


@torch.no_grad()
def run(peer: str, inputs_ND: Tensor, latents: int, scratch: Path) -> bool:
    """Both ways, with one project."""
    width, form = inputs_ND.shape[1], FORMATS[FORM[peer]]
    inputs, wrote, made = scratch / "inputs.safetensors", scratch / f"{peer}-ours", scratch / f"{peer}-theirs"
    save_file({"inputs": inputs_ND.contiguous()}, inputs)
    print(f"{peer} ({PEERS[peer].requirement}) reads what patchclamp wrote")
    ours = {str(n): (one, one.build(width, latents)) for n, one in enumerate(WRITTEN[peer])}
    kinds = {name: form.write(built, wrote / name) for name, (_, built) in ours.items()}
    ask(peer, "codes", wrote, inputs)
    good = [compare(built, wrote / name, inputs_ND, f"{one} -> {kinds[name]}") for name, (one, built) in ours.items()]
    if peer in READ_ONLY:
        return all(good)
    print(f"patchclamp reads what {peer} saved")
    ask(peer, "make", made, width, latents, K)
    ask(peer, "codes", made, inputs)
    for place in sorted(made.iterdir()):
        parts = form.read(place)
        own = parts.autoencoder("a", "resid.15", "mlp.15" if parts.is_transcoder else None, "m", "0", {})
        good.append(compare(own, place, inputs_ND, f"{place.name} -> {own.info.architecture}"))
    return all(good)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--latents", type=int, default=4096)
    options = parser.parse_args()
    rows_ND = activations(pc.load(), pc.Site.parse("resid.15"))
    inputs_ND = torch.cat([rows_ND, random_like(rows_ND, 0)])
    print(f"{len(inputs_ND)} inputs of width {inputs_ND.shape[1]}, up to {float(inputs_ND.abs().max()):.3g}; "
          f"{options.latents} latents")
    with tempfile.TemporaryDirectory() as scratch:
        good = [run(peer, inputs_ND, options.latents, Path(scratch)) for peer in options.peers]
    sys.exit(not all(good))


if __name__ == "__main__":
    main()

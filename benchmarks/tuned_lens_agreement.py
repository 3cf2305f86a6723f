"""The same tuned lens, read by the tuned-lens project (0.2.0) and by patchclamp: do the logits agree?

    python -m benchmarks.tuned_lens_agreement                  # makes benchmarks/.envs/tuned-lens once, about 1 GB
    python -m benchmarks.tuned_lens_agreement --python ENV/bin/python

That project needs an old transformers, so it runs in an environment of its own. There it makes a small random model
of each family and a lens with random translators, and saves both with the logits it computes; here the model and the
lens's folder (`config.json`, `params.pt`) are loaded and the logits computed again. The same with SmolLM2's weights.
Exit code 1 if a logit differs by more than the tolerance.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

import patchclamp as pc
from benchmarks.envs import PEERS, ensure
from patchclamp.lenses.corpus import read_places
from patchclamp.lenses.transport import load_transport
from patchclamp.model.embedded import fetch

FAMILIES = ("gpt2", "llama", "gpt_neox")
EMBEDDED = "smollm2-135m-instruct"
TOLERANCE = 1e-4
WORKER = Path(__file__).parent / "workers" / "tuned_lens_random.py"


@torch.no_grad()
def largest_difference(python: Path, name: str) -> tuple[float, float]:
    """Largest difference between the two projects' logits, over layers and positions, and the largest logit."""
    given = None if name in FAMILIES else fetch(name)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        subprocess.run([str(python), str(WORKER), scratch, str(given or name)], check=True)
        theirs = load_file(folder / "logits.safetensors")
        model = pc.load(str(given or folder / "model"))
        ids = tuple(theirs["ids"].tolist())
        places_NSD = read_places(model, [ids], [range(len(ids))])
        logits_NSV = load_transport(folder / "lens", model).logits(model)(places_NSD)
        ours_LTV = logits_NSV[:, :-1].transpose(0, 1)
        return float((ours_LTV - theirs["logits"]).abs().max()), float(theirs["logits"].abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, help="an interpreter that has tuned-lens 0.2.0")
    python = parser.parse_args().python or ensure(PEERS["tuned-lens"])
    differences = []
    for name in (*FAMILIES, EMBEDDED):
        difference, largest = largest_difference(python, name)
        differences.append(difference)
        print(f"{name}: logits up to {largest:.1f}, largest difference {difference:.1e} (allowed {TOLERANCE:.0e})")
    sys.exit(max(differences) > TOLERANCE)


if __name__ == "__main__":
    main()

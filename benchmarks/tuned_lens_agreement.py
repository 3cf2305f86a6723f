"""The same tuned lens, read by the tuned-lens project (0.2.0) and by patchclamp: do the logits agree?

    python -m benchmarks.tuned_lens_agreement                  # makes benchmarks/.envs/tuned-lens once, about 1 GB
    python -m benchmarks.tuned_lens_agreement --python ENV/bin/python

That project needs an old transformers, so it runs in an environment of its own. There it makes a small random model
of each family and a lens with random translators, and saves both with the logits it computes; here the model and the
lens's folder (`config.json`, `params.pt`) are loaded and the logits computed again. Exit code 1 above the tolerance.
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
from benchmarks.envs import ENVS, TORCH
from patchclamp.lenses.corpus import read_places
from patchclamp.lenses.transport import load_transport

FAMILIES = ("gpt2", "llama", "gpt_neox")
REQUIREMENTS = ("tuned-lens==0.2.0", "transformers==4.46.3", "numpy<2.3")
TOLERANCE = 1e-4
WORKER = Path(__file__).parent / "workers" / "tuned_lens_worker.py"


def environment() -> Path:
    """The project's interpreter, its environment made first where it is missing."""
    folder = ENVS / "tuned-lens"
    python = folder / "bin" / "python"
    if not (folder / "resolved.txt").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", TORCH], check=True)
        subprocess.run([str(python), "-m", "pip", "install", *REQUIREMENTS], check=True)
        frozen = subprocess.run([str(python), "-m", "pip", "freeze"], check=True, capture_output=True, text=True).stdout
        (folder / "resolved.txt").write_text(frozen)
    return python


@torch.no_grad()
def largest_difference(python: Path, family: str) -> tuple[float, float]:
    """Largest difference between the two projects' logits, over layers and positions, and the largest logit."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([str(python), str(WORKER), name, family], check=True)
        theirs = load_file(folder / "logits.safetensors")
        model = pc.load(str(folder / "model"))
        ids = tuple(theirs["ids"].tolist())
        places_NSD = read_places(model, [ids], [range(len(ids))])
        logits_NSV = load_transport(folder / "lens", model).logits(model)(places_NSD)
        ours_LTV = logits_NSV[:, :-1].transpose(0, 1)
        return float((ours_LTV - theirs["logits"]).abs().max()), float(theirs["logits"].abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, help="an interpreter that has tuned-lens 0.2.0")
    python = parser.parse_args().python or environment()
    differences = []
    for family in FAMILIES:
        difference, largest = largest_difference(python, family)
        differences.append(difference)
        print(f"{family}: logits up to {largest:.1f}, largest difference {difference:.1e} (tolerance {TOLERANCE:.0e})")
    sys.exit(max(differences) > TOLERANCE)


if __name__ == "__main__":
    main()

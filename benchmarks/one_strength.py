"""One strength on two models: what the unit of strength is good for. Nats of KL on unrelated text, side by side.

    python -m benchmarks.one_strength --strengths 1 2 4 8

A shipped behaviour's direction (difference of means) is added after the block half-way up each model, in standard
deviations of projections over the neutral corpus, and for comparison as raw coefficients.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import patchclamp as pc
from patchclamp.evidence.written import kl_on, unrelated_texts
from patchclamp.vectors.vector import Setting

MODELS = ("smollm2-135m-instruct", "gemma-3-270m")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strengths", type=float, nargs="+", default=[1.0, 2.0, 4.0, 8.0])
    parser.add_argument("--behaviours", nargs="+", default=["sentiment", "french"])
    given = parser.parse_args()
    print("| behaviour | unit | " + " | ".join(f"{s:g}, {m}" for s in given.strengths for m in MODELS) + " |")
    models = {name: pc.load(name) for name in MODELS}
    for behaviour in given.behaviours:
        rows: dict[str, list[list[float]]] = {"sd": [], "raw": []}
        for model in models.values():
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "v.safetensors"
                pc.run("vectors.find", model, source=behaviour, save=str(path), controls=2)
                vector = pc.load_vector(path, model)
            texts = unrelated_texts(model)
            for unit, found in rows.items():
                settings = [
                    Setting(sites=(f"resid.{model.n_layers // 2}",), strength=s, unit=unit) for s in given.strengths  # type: ignore[arg-type]
                ]
                found.append(kl_on(model, texts, [vector.edits(setting) for setting in settings]).mean(1).tolist())
        for unit, found in rows.items():
            pairs = [f"{kl:.3f}" for of_strength in zip(*found, strict=True) for kl in of_strength]
            print(f"| {behaviour} | {unit} | " + " | ".join(pairs) + " |")


if __name__ == "__main__":
    main()

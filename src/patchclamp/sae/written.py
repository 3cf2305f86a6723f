"""What each feature writes: the tokens whose logits its direction raises and lowers, and the features beside it.

    effect on token v = γ ⊙ d · u_v / s       d the feature's direction, γ the final norm's gain, u_v the unembedding

s is the final norm's scale, the mean over a few windows of the corpus, so that the numbers are logits for one unit of
activation if nothing in between answered. Later blocks do answer: `sae steer` measures what happens.

    features.parquet    one row a feature, in their order: promoted, suppressed, neighbours, each with its numbers
"""

import uuid
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchclamp.corpus.table import Index
from patchclamp.errors import FileError, StoreError
from patchclamp.evidence.method import Progress
from patchclamp.forward import Model
from patchclamp.forward.autoencoder import Autoencoder
from patchclamp.forward.frozen import FrozenUnembedding
from patchclamp.sae.neighbours import neighbours

FILE, IDENTITY = "features.parquet", b"patchclamp.features"
TOKENS, NEIGHBOURS = 10, 5
VALUES = 2**25
"""Logits held at once: 128 MB, however many features and however large the vocabulary."""
SCALE_WINDOWS = 4


class Written(NamedTuple):
    """Of one feature: token ids or features, and their numbers."""

    promoted: list[tuple[int, float]]
    """Tokens and what a unit of activation adds to their logits less the mean over the vocabulary, greatest first."""
    suppressed: list[tuple[int, float]]
    neighbours: list[tuple[int, float]]
    """Features that are active somewhere in the corpus, and their directions' cosine with this one's."""


def write_features(model: Model, autoencoder: Autoencoder, index: Index, dead: Tensor, progress: Progress) -> None:
    """Write the table beside the index, whole or not at all; does nothing if it is there. Constant memory."""
    import pyarrow
    import pyarrow.parquet

    path = index.folder / FILE
    if path.is_file():
        return
    unembedding = FrozenUnembedding(model.anatomy, _usual_stream(model, index))
    portion = max(1, VALUES // model.n_vocab)
    parts = torch.arange(autoencoder.n_latents).split(portion)
    temporary = path.with_name(f".{uuid.uuid4().hex}.part")
    writer = None
    try:
        for some_A in progress.track(parts, "unembedding features", len(parts)):
            table = pyarrow.table(_columns(model, autoencoder, unembedding, some_A, dead))
            table = table.replace_schema_metadata({IDENTITY: index.manifest.identity.encode()})
            writer = writer or pyarrow.parquet.ParquetWriter(temporary, table.schema, compression="zstd")
            writer.write_table(table)
        if writer is not None:
            writer.close()
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _usual_stream(model: Model, index: Index) -> Tensor:
    """A final residual stream whose norm is the usual one: of tokens of a few windows the one of median length."""
    windows = index.windows(range(min(SCALE_WINDOWS, index.manifest.windows)))
    found: list[Tensor] = []
    model.scan(windows, [f"resid.{model.n_layers - 1}"], lambda site, values: found.append(values[:, 1:].clone()))
    rows_ND = torch.cat([values.flatten(0, 1) for values in found])
    lengths_N = rows_ND.float().norm(dim=1)
    return rows_ND[int(lengths_N.argsort()[len(lengths_N) // 2])]


@torch.no_grad()
def _columns(
    model: Model, autoencoder: Autoencoder, unembedding: FrozenUnembedding, some_A: Tensor, dead: Tensor
) -> dict[str, Any]:
    logits_AV = unembedding.written(autoencoder.directions[some_A].double().cpu())
    logits_AV = logits_AV[:, : len(model.tokenizer)].float().cpu()
    logits_AV -= logits_AV.mean(1, keepdim=True)
    columns: dict[str, Any] = {"unit": some_A.tolist()}
    for name, sign in (("promoted", 1), ("suppressed", -1)):
        best = (logits_AV * sign).topk(TOKENS, 1)
        columns |= {name: best.indices.tolist(), f"{name}_logit": (best.values * sign).tolist()}
    cosines, latents = neighbours(autoencoder.directions.cpu(), NEIGHBOURS, some_A, dead)
    return columns | {"neighbour": latents.tolist(), "neighbour_cosine": cosines.tolist()}


class Features:
    """The table, opened. Raises FileError if it is not there, damaged or of another index."""

    def __init__(self, index: Index) -> None:
        import pyarrow.parquet

        path = index.folder / FILE
        if not path.is_file():
            raise FileError(f"{index.folder} has no {FILE}; run the same `patchclamp sae index` command again, which "
                            "goes on where it was")
        try:
            self._table = pyarrow.parquet.read_table(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise FileError(f"{path} is damaged ({error}); delete it and run the same command again") from error
        if (self._table.schema.metadata or {}).get(IDENTITY) != index.manifest.identity.encode():
            raise FileError(f"{path} belongs to another index; delete it and run `patchclamp sae index` again")

    def written(self, unit: int) -> Written:
        """What is known of a feature."""
        row = {name: self._table[name][unit].as_py() for name in self._table.column_names}
        return Written(*(list(zip(row[name], row[values], strict=True)) for name, values in
                         (("promoted", "promoted_logit"), ("suppressed", "suppressed_logit"),
                          ("neighbour", "neighbour_cosine"))))

    def promoting(self, tokens: set[int], best: int = TOKENS) -> dict[int, float]:
        """Features that have one of these tokens among the so many they promote most, and by how much."""
        import numpy as np

        ids_LT = np.array(self._table["promoted"].to_pylist()).reshape(len(self._table), -1)[:, :best]
        logits_LT = np.array(self._table["promoted_logit"].to_pylist()).reshape(len(self._table), -1)[:, :best]
        hits_LT = np.where(np.isin(ids_LT, list(tokens)), logits_LT, -np.inf)
        most_L = hits_LT.max(1)
        return {int(unit): float(most_L[unit]) for unit in np.flatnonzero(np.isfinite(most_L))}


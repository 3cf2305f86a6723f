"""The models in memory: loaded when first asked for, told about, and let go."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchclamp.evidence.method import Loader, NoModel, load_language_model, load_nothing

if TYPE_CHECKING:
    from patchclamp.forward import Model

Key = tuple[Loader, str, str]
MOST_LOADED = 4
"""Models held in memory; the one that was asked longest ago makes room for another."""


class Models:
    """Models by loader, reference and number format. Several threads may ask."""

    def __init__(self) -> None:
        self._loaded: dict[Key, Any] = {}
        self._loading = threading.Lock()

    def get(self, ref: str, dtype: str, load: Loader, say: Callable[[str], None]) -> Any:
        """The model, loaded if it is not there yet; `say` is told that it takes a while. Raises as the loader."""
        if load is load_nothing:
            return NoModel()
        key = (load, ref, dtype)
        with self._loading:
            if key not in self._loaded:
                say(f"loading {ref}")
                while len(self._loaded) >= MOST_LOADED:
                    del self._loaded[next(iter(self._loaded))]
                    gc.collect()
                self._loaded[key] = load(ref, dtype=dtype, device=None, trust_remote_code=False)
            self._loaded[key] = self._loaded.pop(key)  # the last in order is the one that was asked last
            return self._loaded[key]

    def loaded(self, ref: str, dtype: str) -> Model | None:
        """The language model, if it is in memory."""
        return self._loaded.get((load_language_model, ref, dtype))

    def unload(self, ref: str, dtype: str) -> bool:
        """Let go of a model; whether there was one. Work that still holds it goes on."""
        with self._loading:
            keys = [key for key in self._loaded if key[1:] == (ref, dtype)]
            for key in keys:
                del self._loaded[key]
        gc.collect()
        return bool(keys)

    def told(self) -> list[dict[str, Any]]:
        """What is in memory: names, anatomy, identities, megabytes."""
        return [_told(ref, dtype, model) for (_, ref, dtype), model in list(self._loaded.items())]


def _told(ref: str, dtype: str, model: Any) -> dict[str, Any]:
    network = getattr(model, "hf", model)
    weights = {p.data_ptr(): p.numel() * p.element_size() for p in getattr(network, "parameters", tuple)()}
    about: dict[str, Any] = {
        "ref": ref, "name": model.name, "dtype": dtype, "device": str(model.device),
        "weights_hash": model.weights_hash, "megabytes": round(sum(weights.values()) / 1e6, 1),
        "anatomy": {}, "identities": [],
    }
    if hasattr(model, "anatomy"):
        about["anatomy"] = {
            "family": model.family, "blocks": model.n_layers, "width": model.d_model, "heads": model.n_heads,
            "key/value heads": model.n_kv_heads, "head width": model.d_head, "neurons": model.n_neurons(0),
            "vocabulary": model.n_vocab, "context": model.anatomy.context,
        }
        about["identities"] = [identity._asdict() for identity in model.identities]
    return about


def resident_megabytes() -> float | None:
    """Memory this process holds, where the system says so."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    import resource

    return round(pages * resource.getpagesize() / 1e6, 1)

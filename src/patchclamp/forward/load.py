"""From a model's name to the model that users hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from patchclamp.forward.model import Model
from patchclamp.tasks.files import ATTACHED, DEFAULT_MODEL

if TYPE_CHECKING:
    import torch


def load(
    ref: str = DEFAULT_MODEL,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | None = None,
    device_map: Any = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    attn_implementation: str | None = None,
) -> Model:
    """Load a model and prove that its parts are where its family's table says (`model.identities`).

    `ref`: an embedded model (`smollm2-135m-instruct`, `gemma-3-270m`), a Hugging Face id, a local folder or a
    `.gguf` file; `+sae=FOLDER` behind it, once or several times, attaches autoencoders trained on it. `dtype`: float32,
    bfloat16, float16, float64 or auto. `device_map` spreads a large model over devices (accelerate). `revision`: a
    branch, tag or commit on the Hub. `attn_implementation`: eager, sdpa or another that transformers offers. Raises
    ModelError if it cannot be found or read, UnsupportedModel if an identity fails, and as `Model.attach`.
    """
    from patchclamp.model.load import load_weights

    name, *folders = ref.split(ATTACHED)
    model = Model(load_weights(
        name, dtype=dtype, device=device, device_map=device_map, trust_remote_code=trust_remote_code,
        revision=revision, attn_implementation=attn_implementation,
    ))
    for folder in folders:
        model.attach(folder)
    return model

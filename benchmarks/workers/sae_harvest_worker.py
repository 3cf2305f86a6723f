"""A peer's collection of activations in `benchmarks/sae_harvest.py`: python sae_harvest_worker.py PEER.

Requests: {"folder", "windows", "layer", "width", "batch", "threads"} once, then {"count": windows a turn}.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import private_stdout, versions

REPLIES = private_stdout()  # before a library is imported, which may print


def sae_lens(asked: dict[str, Any], windows: list[list[int]]) -> Callable[[int], int]:
    """ActivationsStore on its wrapper of a transformers model, that stops at the layer."""
    from datasets import Dataset
    from sae_lens.load_model import load_model
    from sae_lens.training.activations_store import ActivationsStore

    hook = f"model.layers.{asked['layer']}"
    model = load_model("AutoModelForCausalLM", asked["folder"], "cpu", {"dtype": torch.float32}, [hook])
    length = len(windows[0])
    store = ActivationsStore(
        model, Dataset.from_dict({"tokens": windows}), streaming=False, hook_name=hook, hook_head_index=None,
        context_size=length, d_in=asked["width"], n_batches_in_buffer=8, total_training_tokens=len(windows),
        store_batch_size_prompts=asked["batch"], train_batch_size_tokens=4096, prepend_bos=False,
        normalize_activations="none", device=torch.device("cpu"), dtype="float32",
    )
    return lambda count: sum(len(store.get_filtered_llm_batch()) for _ in range(count // asked["batch"]))


def dictionary_learning(asked: dict[str, Any], windows: list[list[int]]) -> Callable[[int], int]:
    """ActivationBuffer through nnsight, that stops at the layer. It takes texts and tokenizes them itself."""
    from dictionary_learning.buffer import ActivationBuffer
    from nnsight import LanguageModel

    model = LanguageModel(asked["folder"], device_map="cpu", torch_dtype=torch.float32, dispatch=True)
    texts = iter(model.tokenizer.batch_decode(windows, skip_special_tokens=True))

    def turn(count: int) -> int:
        contexts = count * len(windows[0]) // (len(windows[0]) + 8)  # texts are a little shorter when tokenized again
        buffer = ActivationBuffer(texts, model, model.model.layers[asked["layer"]], asked["width"], n_ctxs=contexts,
                                  ctx_len=len(windows[0]), refresh_batch_size=asked["batch"], out_batch_size=4096)
        buffer.refresh()
        return len(buffer.activations)

    return turn


PEERS = {"sae-lens": (sae_lens, "sae-lens"), "dictionary-learning": (dictionary_learning, "dictionary-learning")}


def main() -> None:
    make, package = PEERS[sys.argv[1]]
    turn: Callable[[int], int] | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        reply: dict[str, Any]
        try:
            if turn is None:
                torch.set_num_threads(asked["threads"])
                turn = make(asked, json.loads(Path(asked["windows"]).read_text()))
                reply = {"ready": True, "versions": versions(("torch", package, "transformers"))}
            else:
                start, used = time.perf_counter(), time.process_time()
                with torch.no_grad():
                    rows = turn(asked["count"])
                reply = {"rows": rows, "seconds": time.perf_counter() - start, "processor": time.process_time() - used}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        REPLIES.write(json.dumps(reply) + "\n")
        REPLIES.flush()


if __name__ == "__main__":
    main()

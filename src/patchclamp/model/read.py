"""Reading a model from disk: a Hugging Face folder or a GGUF file becomes a model and its tokenizer.

Whatever is wrong with the files is found and explained here. Only safetensors and GGUF are read: both are
plain arrays, while a pickle (`pytorch_model.bin`, `.pt`, `.ckpt`) is a program that runs when it is opened.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging as hf_logging

from patchclamp.errors import ModelError, PatchclampError, RunError, UnsupportedModel
from patchclamp.model.gguf_tokenizer import repair

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZER_FILES = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "*.tiktoken", "tokenizer*.py")

Pair = tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]


@dataclass(frozen=True)
class Options:
    """How to read, after checking: what `from_pretrained` needs besides the path."""

    dtype: torch.dtype | str = torch.float32
    device_map: str | dict[str, Any] | None = None
    trust_remote_code: bool = False
    attn_implementation: str | None = None

    def keywords(self) -> dict[str, Any]:
        """Keyword arguments of `from_pretrained`."""
        chosen = {"device_map": self.device_map, "attn_implementation": self.attn_implementation}
        return {
            "dtype": self.dtype,
            "trust_remote_code": self.trust_remote_code,
            **{key: value for key, value in chosen.items() if value is not None},
        }


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and notices while it loads, and restore its settings afterwards."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


@contextmanager
def explained(what: str, remedy: str = "") -> Iterator[None]:
    """Turn whatever a library raises about the user's files into an error that says what was being done."""
    try:
        yield
    except PatchclampError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise RunError(f"{what}: out of memory; choose a smaller dtype, another device or model.") from error
    except Exception as error:
        raise ModelError(f"{what}: {gist(error).rstrip('.')}. {remedy}".rstrip()) from error


def gist(error: BaseException, limit: int = 300) -> str:
    """The first sentences of another library's message, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def read_folder(folder: Path, options: Options) -> Pair:
    """Model (in eval mode) and tokenizer of a Hugging Face folder, after checking its files."""
    check_config(folder, options.trust_remote_code)
    check_weights(folder)
    if not has_tokenizer(folder):
        raise ModelError(
            f"{folder} has no tokenizer (tokenizer.json or tokenizer.model); put the model's own there, "
            f"e.g. with tokenizer.save_pretrained({str(folder)!r})."
        )
    with quiet():
        with explained(f"Cannot read the tokenizer in {folder}"):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=options.trust_remote_code)
        with explained(f"Cannot read the model in {folder}"):
            hf, report = _build_model(folder, use_safetensors=True, **options.keywords())
    check_complete(folder, report)
    return hf.eval(), tokenizer


def read_gguf(path: Path, options: Options) -> Pair:
    """Model (in eval mode, weights dequantised to the dtype) and tokenizer of a GGUF file."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file: it does not begin with the letters GGUF.")
    dense = {}
    if hasattr(transformers, "GgufConfig"):  # releases without it always dequantise
        dense["quantization_config"] = transformers.GgufConfig(dequantize=True)
    remedy = "The file may be damaged, or of an architecture that transformers does not read from GGUF."
    with quiet(), explained(f"Cannot read {path}", remedy):
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        repair(tokenizer, path, config.model_type)
        hf, report = _build_model(path.parent, gguf_file=path.name, config=config, **dense, **options.keywords())
    check_complete(path, report)
    return hf.eval(), tokenizer


def _build_model(folder: Path, **keywords: Any) -> tuple[Any, dict[str, Any]]:
    """The model, and transformers' report of parameters it did not find or that have another shape, which it fills
    with random numbers: `check_complete` refuses them, with a reason that transformers only logs."""
    built: Any = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, ignore_mismatched_sizes=True, **keywords
    )
    return built


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds a vocabulary. Without one transformers makes up an empty tokenizer."""
    return any(found for pattern in TOKENIZER_FILES for found in folder.glob(pattern))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that `from_pretrained` reads: one file, or the shards its index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        with explained(f"Cannot read {index}"):
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        return [folder / shard for shard in shards]
    return []


def check_weights(folder: Path) -> None:
    """Raise ModelError unless the folder has whole safetensors files."""
    files = weight_files(folder)
    if not files:
        raise ModelError(f"{folder} {_instead_of_weights(folder)}")
    for file in files:
        if not file.is_file():
            raise ModelError(f"{folder} is incomplete: its index names {file.name}, which is missing.")
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} is damaged or cut short ({gist(error)}); copy or download it again.") from error


def _instead_of_config(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return "is a PEFT adapter, not a model: merge it (merge_and_unload), save that, and load its folder."
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs:
        return f"has no config.json, but a GGUF file: load {ggufs[0]} itself."
    return "has no config.json, so it is not a model's folder; give the one that save_pretrained wrote."


def _instead_of_weights(folder: Path) -> str:
    pickles = sorted(found.name for pattern in PICKLES for found in folder.glob(pattern))
    if not pickles:
        return "has a config.json but no weights (model.safetensors or model.safetensors.index.json)."
    return (
        f"holds its weights only as a pickle ({pickles[0]}), which could run any code and is not read. If "
        f"you trust its source, convert it once: AutoModelForCausalLM.from_pretrained({str(folder)!r}, "
        "use_safetensors=False).save_pretrained(NEW_FOLDER), and save the tokenizer there too."
    )


def check_config(folder: Path, trust_remote_code: bool) -> None:
    """Raise unless the folder has the config of a causal language model that transformers can build."""
    config = read_config(folder, trust_remote_code)
    fault = _not_causal(config) if config is not None else None
    if fault:
        raise UnsupportedModel(f"{folder} is not a causal language model: {fault}.")


def read_config(folder: Path, trust_remote_code: bool) -> Any:
    """The config of a model that transformers can build; None if only the model's own code, which is trusted, can.
    Raises ModelError if there is none, UnsupportedModel if transformers has no such class."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} {_instead_of_config(folder)}")
    with explained(f"{path} is not valid JSON"):
        raw = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(raw, dict):
        raise ModelError(f"{path} holds a {type(raw).__name__} where an object is expected.")
    kind, own_code = raw.get("model_type"), raw.get("auto_map") or {}
    if own_code and trust_remote_code:
        return None
    if kind not in CONFIG_MAPPING_NAMES:
        if own_code:
            raise ModelError(
                f"{folder} brings its own Python code (auto_map), because transformers has no class for "
                f"{kind!r}. If you trust that code, pass trust_remote_code=True (--trust-remote-code)."
            )
        raise UnsupportedModel(
            f"{path} has model_type {kind!r}, which transformers {transformers.__version__} does not know; "
            "a newer transformers may."
        )
    with quiet(), explained(f"Cannot read {path}"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def _not_causal(config: Any) -> str | None:
    """Why this config is not one of a model that continues text from left to right; None if it is."""
    kind, saved_as = config.model_type, list(config.architectures or [])
    if getattr(config, "is_encoder_decoder", False):
        return f"{kind!r} is an encoder-decoder"
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return f"{kind!r} has no causal language model class in transformers"
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and getattr(config, "is_decoder", True) is False:
        return f"{kind!r} is an encoder, which attends to both sides"
    entries = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    causal = {name for entry in entries for name in ([entry] if isinstance(entry, str) else entry)}
    if saved_as and not any(name in causal or name.endswith("Model") for name in saved_as):
        return f"it was saved as {saved_as[0]}, which has another head"
    return None


def check_complete(source: Path, report: dict[str, Any]) -> None:
    """Raise ModelError if the files lack some parameters or hold them in another shape."""
    for name, found, expected in sorted(report.get("mismatched_keys", ())):
        raise ModelError(
            f"{source} holds the parameter {name} with the shape {list(found)}, and its config says {list(expected)}: "
            "config and weights do not belong together."
        )
    missing = sorted(report.get("missing_keys", ()))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{source} lacks the parameter {missing[0]}{more}: config and weights do not belong together, or "
            "part of the weights is gone. A run would use random numbers there."
        )

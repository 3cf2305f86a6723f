"""Finding a Hugging Face id: in the local Hugging Face cache first, otherwise on the Hub.

The cache comes first so that a model used yesterday loads today without a network, in the same revision.
"""

from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from patchclamp.errors import ModelError
from patchclamp.model.embedded import EMBEDDED
from patchclamp.model.read import PICKLES, gist, has_tokenizer, weight_files
from patchclamp.tasks.files import DEFAULT_MODEL

TIMEOUT_S = 10.0
WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken")


def find_on_hub(
    ref: str, revision: str | None, trust_remote_code: bool = False, hint: str = "", needs_tokenizer: bool = True
) -> tuple[Path, str]:
    """The snapshot folder of a Hub id, downloaded unless the cache has it whole, and its commit.

    `hint` is added to the error messages; a model that reads no text needs no tokenizer. Raises ModelError if there is
    no such id or revision, if it has no safetensors, or if the Hub cannot be reached.
    """
    try:
        validate_repo_id(ref)
    except HFValidationError as error:
        raise ModelError(
            f"{ref!r} is neither an embedded model ({', '.join(EMBEDDED)}), nor a folder or .gguf file here, "
            f"nor a Hugging Face id such as 'EleutherAI/pythia-70m'.{hint}"
        ) from error
    folder = cached_snapshot(ref, revision, needs_tokenizer)
    if folder is None:
        folder = _download(ref, revision, trust_remote_code, hint)
    return folder, folder.name


def cached_snapshot(ref: str, revision: str | None, needs_tokenizer: bool = True) -> Path | None:
    """The id's folder in the local Hugging Face cache, if config, tokenizer and all weights are there."""
    try:
        # Only the config is asked for: a snapshot is "incomplete" to the hub client without the files we skip.
        found = snapshot_download(ref, revision=revision, local_files_only=True, allow_patterns=["config.json"])
    except LocalEntryNotFoundError:
        return None
    folder = Path(found)
    files = weight_files(folder)
    whole = files and all(file.is_file() for file in (*files, folder / "config.json"))
    return folder if whole and (has_tokenizer(folder) or not needs_tokenizer) else None


def _download(ref: str, revision: str | None, trust_remote_code: bool, hint: str) -> Path:
    at = f" at revision {revision!r}" if revision else ""
    try:
        info = HfApi().model_info(ref, revision=revision, timeout=TIMEOUT_S)
        names = choose_files(ref, [sibling.rfilename for sibling in info.siblings or ()], trust_remote_code)
        return Path(snapshot_download(ref, revision=revision, allow_patterns=names, etag_timeout=TIMEOUT_S))
    except ModelError:
        raise
    except GatedRepoError as error:
        raise ModelError(
            f"{ref} is gated: accept its terms on https://huggingface.co/{ref}, then run `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{ref} has no revision {revision!r}; give a branch, tag or commit.") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"The Hugging Face Hub has no model {ref!r}, or it is private (`hf auth login`).{hint}"
        ) from error
    except Exception as error:
        raise ModelError(
            f"{ref}{at} is not in the local Hugging Face cache, and cannot be had from the Hub "
            f"({gist(error, 120)}). Connect to the network, give a local folder, or use an embedded model "
            f"such as {DEFAULT_MODEL}.{hint}"
        ) from error


def choose_files(ref: str, names: list[str], trust_remote_code: bool) -> list[str]:
    """The repository's files that a load needs: top-level ones, weights only as safetensors.

    Raises ModelError if it has no config or no such weights.
    """
    top = [name for name in names if "/" not in name]
    if "config.json" not in top:
        ggufs = [name for name in names if name.endswith(".gguf")]
        what = "GGUF files: download one and give its path" if ggufs else "no config.json, so it is no model"
        raise ModelError(f"{ref} has {what}.")
    weights = [name for name in top if fnmatch(name, "model*.safetensors")]
    if not weights:
        pickles = [name for name in top if any(fnmatch(name, pattern) for pattern in PICKLES)]
        what = f", only a pickle ({pickles[0]}), which could run any code and is not read" if pickles else ""
        raise ModelError(
            f"{ref} has no safetensors weights{what}. Look for a revision that has them (often refs/pr/1), "
            "or convert a copy you trust and load that folder."
        )
    wanted = (*WANTED, "*.py") if trust_remote_code else WANTED
    return [
        name
        for name in top
        if any(fnmatch(name, pattern) for pattern in wanted) and (not name.endswith(".safetensors") or name in weights)
    ]

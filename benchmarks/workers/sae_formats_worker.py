"""The other project's side of `benchmarks/sae_formats.py`; runs in that project's environment.

    python sae_formats_worker.py sae-lens make FOLDER WIDTH LATENTS K     # a subfolder a class, saved as it saves them
    python sae_formats_worker.py sae-lens codes FOLDER INPUTS             # subfolders loaded as it loads them, encoding

`codes` writes what each autoencoder makes of the inputs, `codes` [N, L] and `out` [N, O], into its subfolder as
answer.safetensors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def randomize(module: torch.nn.Module) -> None:
    """Every parameter random, biases too, directions of all lengths; thresholds positive."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(std=0.3 if parameter.dim() > 1 else 1.0)
            if name in ("threshold", "r_mag"):
                parameter.abs_().mul_(0.3)
            if name in ("W_dec", "decoder.weight"):
                latents = parameter.dim() - 1 if name == "decoder.weight" else 0
                shape = (1, parameter.shape[1]) if latents else (parameter.shape[0], 1)
                parameter.mul_(torch.randn(shape).mul(0.5).exp())


class SaeLens:
    """sae-lens 6."""

    def make(self, folder: Path, width: int, latents: int, k: int) -> None:
        from sae_lens import SAE, TrainingSAE

        common = {"d_in": width, "d_sae": latents, "dtype": "float32", "device": "cpu",
                  "metadata": {"hook_name": "blocks.15.hook_resid_post", "model_name": "m"}}
        for kind in ("standard", "topk", "topk-rescaled", "jumprelu", "gated"):
            more = {"k": k, "rescale_acts_by_decoder_norm": kind == "topk-rescaled"} if kind.startswith("topk") else {}
            self.save(SAE.from_dict({**common, **more, "architecture": kind.split("-")[0]}), folder / kind)
        common["metadata"] = {"hook_name": "blocks.15.hook_resid_mid", "hook_name_out": "blocks.15.hook_mlp_out"}
        for kind in ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"):
            sae = SAE.from_dict({**common, "apply_b_dec_to_input": False, "d_out": width, "architecture": kind})
            self.save(sae, folder / kind)
        for kind, more in (("batchtopk", {}), ("matryoshka_batchtopk", {"matryoshka_widths": [latents // 4, latents]})):
            sae = TrainingSAE.from_dict({**common, **more, "k": k, "architecture": kind})
            randomize(sae)
            sae.topk_threshold.fill_(9.0)
            sae.save_inference_model(folder / kind)

    def save(self, sae: Any, folder: Path) -> None:
        randomize(sae)
        sae.save_model(folder)

    def codes(self, folder: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from sae_lens import SAE

        sae = SAE.load_from_disk(folder)
        return sae.encode(x), sae(x)


class Sparsify:
    """eai-sparsify."""

    def make(self, folder: Path, width: int, latents: int, k: int) -> None:
        from sparsify import SparseCoder, SparseCoderConfig

        for kind, more in (("sae", {}), ("transcoder", {"transcode": True}),
                           ("skip_transcoder", {"transcode": True, "skip_connection": True})):
            coder = SparseCoder(width, SparseCoderConfig(num_latents=latents, k=k, **more))
            randomize(coder)
            coder.save_to_disk(folder / kind)

    def codes(self, folder: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from sparsify import SparseCoder

        coder = SparseCoder.load_from_disk(folder)
        values, latents, before = coder.encode(x)
        return torch.zeros_like(before).scatter(-1, latents, values), coder(x).sae_out


class DictionaryLearning:
    """dictionary_learning."""

    def make(self, folder: Path, width: int, latents: int, k: int) -> None:
        from dictionary_learning import dictionary as d
        from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
        from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
        from dictionary_learning.trainers.top_k import AutoEncoderTopK

        made = [kind(width, latents)
                for kind in (d.AutoEncoder, d.AutoEncoderNew, d.GatedAutoEncoder, d.JumpReluAutoEncoder)]
        made += [kind(width, latents, k) for kind in (AutoEncoderTopK, BatchTopKSAE)]
        made.append(MatryoshkaBatchTopKSAE(width, latents, k, [latents // 4, latents - latents // 4]))
        for one in made:
            randomize(one)
            if isinstance(one, d.AutoEncoder):
                one.decoder.weight.mul_(0.01)  # its loader asserts that outputs stay within 1e-4 as it normalises
            if isinstance(one, BatchTopKSAE | MatryoshkaBatchTopKSAE):
                one.threshold.fill_(9.0)
            kind = type(one).__name__
            place = folder / kind
            place.mkdir(parents=True)
            torch.save({name: tensor.cpu() for name, tensor in one.state_dict().items()}, place / "ae.pt")
            trainer = {"dict_class": kind, "activation_dim": width, "dict_size": latents, "k": k, "layer": 15,
                       "lm_name": "m", "submodule_name": "resid_post_layer_15"}
            (place / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))

    def codes(self, folder: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from dictionary_learning.utils import load_dictionary

        one, _ = load_dictionary(str(folder), "cpu")
        codes = one.encode(x)
        return codes, one.decode(codes)


class GemmaScope:
    """Gemma Scope's files, as sae-lens reads them; it asks the hub for them, which is given the folder instead."""

    def codes(self, folder: Path, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from sae_lens import SAE
        from sae_lens.loading import pretrained_sae_loaders as loaders

        loaders.hf_hub_download = lambda repo_id, filename, *_, **__: str(folder / Path(filename).name)
        cfg, state, _ = self.read(folder, loaders, x.shape[1])
        cfg = loaders.handle_config_defaulting(cfg)
        sae = SAE.from_dict(cfg)
        sae.load_state_dict(state)
        return sae.encode(x), sae(x)

    def read(self, folder: Path, loaders: Any, width: int) -> Any:
        return loaders.gemma_2_sae_huggingface_loader(
            "google/gemma-scope-2b-pt-res", "layer_15/width_4k/average_l0_9", cfg_overrides={"d_in": width})


class GemmaScope2(GemmaScope):
    """Gemma Scope 2's."""

    def read(self, folder: Path, loaders: Any, width: int) -> Any:
        shapes = {name: list(tensor.shape) for name, tensor in load_file(folder / "params.safetensors").items()}
        loaders.get_safetensors_tensor_shapes = lambda *_: shapes
        transcodes = json.loads((folder / "config.json").read_text())["type"] == "transcoder"
        kind = "transcoder" if transcodes else "resid_post"
        return loaders.gemma_3_sae_huggingface_loader(
            "google/gemma-scope-2-1b-pt", f"{kind}_all/layer_15_width_4k_l0_small", device="cpu")


PEERS = {"sae-lens": SaeLens, "sparsify": Sparsify, "dictionary-learning": DictionaryLearning,
         "gemma-scope": GemmaScope, "gemma-scope-2": GemmaScope2}


@torch.no_grad()
def main(peer: str, task: str, folder: Path, *rest: str) -> None:
    torch.manual_seed(0)
    if peer == "dictionary-learning":
        sys.modules["torchvision"] = None  # type: ignore[assignment]  # nnsight brings one made for another torch
    worker = PEERS[peer]()
    if task == "make":
        worker.make(folder, *map(int, rest))
        return
    x_ND = load_file(rest[0])["inputs"]
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        codes_NL, out_NO = worker.codes(place, x_ND)
        save_file({"codes": codes_NL.contiguous(), "out": out_NO.contiguous()}, place / "answer.safetensors")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])

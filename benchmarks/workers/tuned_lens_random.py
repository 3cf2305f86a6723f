"""The tuned-lens project's side of `benchmarks/tuned_lens_agreement.py`; runs in its own environment.

    python tuned_lens_random.py FOLDER FAMILY     # or a model's folder instead of a family

writes into FOLDER a small random model of the family (`model/`; the model given instead is only read), a lens with
random translators in that project's own format (`lens/`), the tokens read and the logits it computes at every layer
and position (`logits.safetensors`).
"""

import sys
from pathlib import Path

import torch
import transformers as tf
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from tuned_lens.nn.lenses import TunedLens
from tuned_lens_worker import load_model

SIZE = {"vocab_size": 101, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WIDE = {**SIZE, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
CONFIGS = {
    "gpt2": lambda: tf.GPT2Config(**SIZE, n_embd=64, n_layer=4, n_head=4, n_positions=128),
    "llama": lambda: tf.LlamaConfig(**WIDE, num_key_value_heads=2),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**WIDE),
}


def random_model(family: str, place: Path) -> tf.PreTrainedModel:
    """A small model with random weights, saved with a tokenizer."""
    model = tf.AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(place)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {f"w{i}": i + 4 for i in range(97)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tf.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>").save_pretrained(place)
    return model


def main(folder: Path, family: str) -> None:
    torch.manual_seed(0)
    model = random_model(family, folder / "model") if family in CONFIGS else load_model(family)
    lens = TunedLens.from_model(model)
    with torch.no_grad():
        for translator in lens:
            translator.weight.normal_(std=0.1)
            translator.bias.normal_()
    lens.save(folder / "lens")
    ids_BT = torch.randint(4, model.config.vocab_size, (1, 20))
    with torch.no_grad():
        hidden = model(ids_BT, output_hidden_states=True).hidden_states
        logits_LTV = torch.stack([lens(hidden[layer][0], layer) for layer in range(len(lens))])
    save_file({"ids": ids_BT[0], "logits": logits_LTV.contiguous()}, folder / "logits.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

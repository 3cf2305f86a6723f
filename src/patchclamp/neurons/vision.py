"""Vision models: loading one, preparing its pictures, and reading its units.

    model = load_vision("openai/clip-vit-base-patch32")             # a Hugging Face id or folder
    model = VisionModel(my_cnn, size=224, layers=["features.12"])   # any torch module that takes pixels [B, 3, H, W]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from patchclamp.errors import InputError, ModelError, UnsupportedModel
from patchclamp.model.cache import FileStamp
from patchclamp.model.embedded import EMBEDDED
from patchclamp.model.loaded import hash_of_files, hash_of_tensors
from patchclamp.neurons.layers import Layer, Layers, find_layers, first_tensor
from patchclamp.tasks.images import open_image

if TYPE_CHECKING:
    from PIL.Image import Image

Pool = Literal["max", "mean", "class"]
Prepare = Callable[["Image"], Tensor]
"""A picture's pixels [3, H, W] as the model takes them."""
TOWERS = ("vision_model", "vision_tower", "visual", "vision_encoder")
BATCH = 16


class VisionModel:
    """A vision model whose units can be read. `module` is untouched but for being put into eval mode."""

    def __init__(
        self, module: nn.Module, *, layers: Sequence[str] = (), size: int | None = None,
        mean: Sequence[float] = (0.5, 0.5, 0.5), std: Sequence[float] = (0.5, 0.5, 0.5), prepare: Prepare | None = None,
        name: str | None = None, ref: str = "in memory", revision: str | None = None,
        weights: tuple[FileStamp, ...] = (),
    ) -> None:
        """`module` takes pixels [B, 3, H, W]. Its pictures are made `size` x `size` pixels, 0 to 1, less `mean`, over
        `std` (one a colour), unless `prepare` does all that. `layers` are paths of the modules whose channels are
        searched; left out, a transformer's blocks or a network's stages are found. `weights` are the files the module
        was read from. Raises InputError without size and prepare, UnsupportedModel and SiteError as `find_layers`."""
        if prepare is None:
            if size is None or size < 1:
                raise InputError("give `size`, the side of the model's pictures in pixels, or `prepare`, a function "
                                 "that makes pixels [3, H, W] of a picture")
            prepare = squared(size, mean, std)
        self.module, self.prepare = module.eval(), prepare
        self.ref, self.name, self.revision = ref, name or type(module).__name__, revision
        self._weights = weights
        self._as_loaded = self._state()
        self.layers: Layers = find_layers(module, self._pixels([_blank()]), layers, self.name)

    def __repr__(self) -> str:
        return f"<VisionModel {self.name}: {len(self.layers.by_name)} readable layers, {self.dtype}>"

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next((p.dtype for p in self.module.parameters()), torch.float32)

    @property
    def device(self) -> torch.device:
        """Where the pixels go."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    @property
    def weights_hash(self) -> str:
        """Hash that identifies the weights: of the files, or of the tensors if there are none or they were changed."""
        unchanged = self._weights and self._state() == self._as_loaded
        return hash_of_files(self._weights) if unchanged else hash_of_tensors(self.module)

    def _state(self) -> tuple[tuple[int, int], ...]:
        """Where each parameter lies and how often it was written to."""
        return tuple((p.data_ptr(), p._version) for p in self.module.parameters())

    def read(
        self, images: Sequence[str | Path | Image], layers: Sequence[str], pool: Pool = "max",
        track: Callable[..., Iterable[Any]] | None = None,
    ) -> dict[str, Tensor]:
        """Each layer's units on each picture, [N, units], float32 on the CPU.

        A unit has a value at every patch or point of a picture; `pool` makes one of them: the largest, the mean (both
        without class and register tokens), or the one at the class token. Raises SiteError for a layer the model lacks,
        FileError for a picture that cannot be read, InputError for `class` where there is no class token.
        """
        if pool == "class" and not self.layers.has_class_token:
            raise InputError(f"{self.name} has no class token to read units at; pool by max or mean")
        found = [self.layers.get(name, self.name) for name in layers]
        # Room for all values first: small tensors kept among large passing ones would scatter over the memory.
        read = {layer.name: torch.empty(len(images), layer.n_units) for layer in found}
        starts = range(0, len(images), BATCH)
        for start in track(starts, "looking at pictures", len(starts)) if track else starts:
            some = images[start : start + BATCH]
            opened = [open_image(one) if isinstance(one, str | Path) else one for one in some]
            hooks = [_reading(layer, pool, read[layer.name][start : start + BATCH]) for layer in found]
            try:
                with torch.no_grad():
                    self.module(self._pixels(opened))
            finally:
                for hook in hooks:
                    hook.remove()
        return read

    def _pixels(self, images: Sequence[Image]) -> Tensor:
        pixels = [self.prepare(image) for image in images]
        sizes = {tuple(one.shape) for one in pixels}
        if len(sizes) > 1:
            raise UnsupportedModel(f"{self.name}: its image processor makes pictures of different sizes "
                                   f"({' and '.join(map(str, sorted(sizes)[:2]))}), whose units do not compare")
        return torch.stack(pixels).to(self.device, self.dtype)


def _blank() -> Image:
    from PIL import Image

    return Image.new("RGB", (64, 64), "gray")


def _reading(layer: Layer, pool: Pool, into: Tensor) -> Any:
    """A hook that writes the layer's pooled values into [B, units], at once: what follows may write over them."""

    def keep(value: Any) -> None:
        tensor = first_tensor(value)
        assert tensor is not None  # the run that found the layer saw one
        into.copy_(pooled(tensor.detach(), layer.prefix, pool))

    if layer.side == "in":
        return layer.module.register_forward_pre_hook(lambda module, args: keep(args))
    return layer.module.register_forward_hook(lambda module, args, output: keep(output))


def pooled(values: Tensor, prefix: int, pool: Pool) -> Tensor:
    """One value a unit, [B, units], of maps [B, units, H, W], tokens [B, T, units] (`prefix` of them before the
    patches) or numbers [B, units]."""
    if values.dim() == 2:
        return values
    if values.dim() == 4:
        return values.amax((2, 3)) if pool == "max" else values.mean((2, 3))
    if pool == "class":
        return values[:, 0]
    patches = values[:, prefix:]
    return patches.amax(1) if pool == "max" else patches.mean(1)


def squared(size: int, mean: Sequence[float], std: Sequence[float]) -> Prepare:
    """Pixels of a picture made `size` x `size` (bicubic), from 0 to 1, less `mean`, over `std`."""

    def prepare(image: Image) -> Tensor:
        from PIL import Image as Pillow

        small = image.convert("RGB").resize((size, size), Pillow.Resampling.BICUBIC)
        pixels = np.asarray(small, dtype=np.float32) / 255
        scaled = (pixels - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
        return torch.from_numpy(scaled.transpose(2, 0, 1).copy())

    return prepare


def load_vision(
    ref: str | Path, *, dtype: str | torch.dtype = "float32", device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None, trust_remote_code: bool = False, revision: str | None = None,
) -> VisionModel:
    """A vision model, or the image tower of one that also reads text, from a Hugging Face id or folder.

    Pictures are prepared by the folder's own image processor, in its Pillow version. Options as `patchclamp.load`.
    Raises ModelError when it cannot be found or read, UnsupportedModel when it sees no pictures.
    """
    from patchclamp.model.load import check_device, check_dtype, find
    from patchclamp.model.read import Options, check_weights, explained, read_config, weight_files

    if str(ref) in EMBEDDED:
        raise UnsupportedModel(f"{ref} is a language model and sees no pictures; give a vision model's folder or "
                               "Hugging Face id with --model, e.g. openai/clip-vit-base-patch32")
    options = Options(dtype=check_dtype(dtype), device_map=device_map, trust_remote_code=trust_remote_code)
    place = check_device(device, device_map)
    source = find(str(ref), revision, trust_remote_code, None, needs_tokenizer=False)
    if source.is_file:
        raise UnsupportedModel(f"{source.path} is a GGUF file, a language model; give a vision model's folder")
    kind = _class_of(read_config(source.path, trust_remote_code), source.path)
    check_weights(source.path)
    stamps = tuple(FileStamp.of(file) for file in weight_files(source.path))
    prepare = _processor(source.path, trust_remote_code)
    module = _build(kind, source.path, options)
    if place is not None and place.type != "cpu":
        with explained(f"Cannot move {source.name} to {place}"):
            module.to(place)
    is_local = source.revision is None
    return VisionModel(
        _tower_of(module, source.name), prepare=prepare, name=source.name, revision=source.revision, weights=stamps,
        ref=str(source.path.absolute()) if is_local else str(ref),
    )


def _class_of(config: Any, folder: Path) -> Any:
    """The class the model was saved as, AutoModel if transformers has none. UnsupportedModel if it sees no pictures."""
    import transformers

    saved_as = (getattr(config, "architectures", None) or [""])[0] if config is not None else ""
    kind = getattr(transformers, saved_as, transformers.AutoModel) if saved_as else transformers.AutoModel
    inputs = getattr(kind, "main_input_name", "pixel_values")
    if config is not None and inputs != "pixel_values" and not hasattr(config, "vision_config"):
        raise UnsupportedModel(f"{folder} is no vision model: {saved_as or config.model_type} takes {inputs}, not "
                               "pictures; give one that does, e.g. openai/clip-vit-base-patch32")
    return kind


def _build(kind: Any, folder: Path, options: Any) -> nn.Module:
    """The whole model, all its parameters found in the folder."""
    from patchclamp.model.read import check_complete, explained, quiet

    with quiet(), explained(f"Cannot read the model in {folder}"):
        module, report = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True,
                                              ignore_mismatched_sizes=True, **options.keywords())
    check_complete(folder, report)
    return module


def _tower_of(module: nn.Module, name: str) -> nn.Module:
    """The part of a model that takes pixels: the model, or the outermost part that does."""
    for path, part in module.named_modules():
        takes = getattr(part, "main_input_name", None)
        if takes == "pixel_values" or (takes is None and path.rsplit(".", 1)[-1] in TOWERS):
            return part
    raise UnsupportedModel(f"{name} has no part that takes pictures (an image tower, e.g. {', '.join(TOWERS)})")


def _processor(folder: Path, trust_remote_code: bool) -> Prepare:
    """The folder's image processor, in its Pillow version: the same numbers with and without torchvision."""
    from transformers import AutoImageProcessor

    from patchclamp.model.read import explained, quiet

    if not any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        raise ModelError(f"{folder} has no preprocessor_config.json, so that nobody knows which size and colours its "
                         "model was trained on; save the model's own image processor there")
    with quiet(), explained(f"Cannot read the image processor in {folder}"):
        processor: Any = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=trust_remote_code)
    return lambda image: processor(image, return_tensors="pt")["pixel_values"][0]

"""The command `patchclamp` with the methods of `fake_methods` and a model that is none."""

from types import SimpleNamespace

from patchclamp.cli import main, run
from patchclamp.errors import ModelError
from patchclamp.evidence import method

METHODS = ("fake_methods",)


def load_model(options, load=None):
    if options.model == "missing":
        raise ModelError("there is no model missing")
    return SimpleNamespace(
        ref=options.model,
        name=options.model,
        revision=None,
        weights_hash="0" * 64,
        dtype=f"torch.{options.dtype}",
        device=options.device or "cpu",
    )


if __name__ == "__main__":
    method.BUILT_IN = METHODS
    run.load_model = load_model
    main()

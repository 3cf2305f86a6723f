"""Which autoencoder's features a question is about: one in a folder, or the one that is attached already."""

from patchclamp.errors import SpecError
from patchclamp.forward import Model, Site
from patchclamp.forward.autoencoder import Autoencoder


def attached(model: Model, folder: str | None) -> Site:
    """The site of all features, e.g. feature:sae15.15. An autoencoder in `folder` is attached if it is not yet.
    SpecError if none is named and not one is attached, and as `Model.attach`."""
    there = model.anatomy.codecs
    if folder is None:
        if len(there) != 1:
            names = ", ".join(f"{name}.{layer}" for name, layer in there) or "none is attached"
            raise SpecError(f"which autoencoder? Name its folder with sae ({names})")
        (name, layer), = there
        return Site.parse(f"{name}.{layer}")
    autoencoder = Autoencoder.load(folder)
    site = Site("feature", autoencoder.site.layer, name=autoencoder.info.name)
    known = there.get((site.place, site.layer or 0))
    if known is None or getattr(known, "fingerprint", None) != autoencoder.fingerprint:
        model.attach(folder)
    return site

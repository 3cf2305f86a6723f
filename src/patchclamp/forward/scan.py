"""A pass whose values are handed over while they are there: for sums over a corpus whose values fill no memory."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from patchclamp.errors import InputError, RunError, SiteError
from patchclamp.forward.batch import Stop, first_tensor
from patchclamp.forward.prepare import check_site
from patchclamp.forward.site import ALL, Site
from patchclamp.model.anatomy import Anatomy
from patchclamp.model.tap import Tap

Consume = Callable[[Site, Tensor], None]
"""Takes a site and its value in all sequences, [B, T, …]. The value may lie in the model's own memory: read it, and
neither change nor keep it."""


def _check(anatomy: Anatomy, sites: Sequence[Site], name: str) -> None:
    """SiteError unless the model called `name` has these sites, each a whole value that passes one of its modules."""
    for site in sites:
        if site.unit is not None or site.positions != ALL:
            raise SiteError(f"{site}: a scan reads whole values; ask for {site.whole} and pick from what it gives")
        if site.point in ("logits", "pattern", "head_out"):
            raise SiteError(f"{site}: a scan reads what passes between the model's modules; {site.point} is computed")
        check_site(anatomy, site, name)


@torch.no_grad()
def scan(anatomy: Anatomy, ids_BT: Tensor, sites: Sequence[Site], consume: Consume, name: str) -> None:
    """Run sequences of equal length unedited; `consume` is called with every site's value in the order of the pass,
    which ends with the last of them. `name`: the model's, for errors."""
    _check(anatomy, sites, name)
    left = set(sites)

    def hand_over(site: Site, tap: Tap, raw: Tensor) -> None:
        consume(site, tap.read(raw, ids_BT.shape[1]))
        left.discard(site)
        if not left:
            raise Stop

    def before(site: Site, tap: Tap, _: Any, args: tuple, kwargs: dict) -> None:
        hand_over(site, tap, args[0] if args else kwargs["hidden_states"])

    def after(site: Site, tap: Tap, _: Any, args: tuple, output: Any) -> None:
        hand_over(site, tap, first_tensor(output))

    handles = []
    try:
        for site in left.copy():
            tap = anatomy.tap(site.place, site.layer or 0)
            handles.append(
                tap.module.register_forward_pre_hook(partial(before, site, tap), with_kwargs=True) if tap.side == "in"
                else tap.module.register_forward_hook(partial(after, site, tap)))
        anatomy.base(input_ids=ids_BT.to(anatomy.unembedding.weight.device), use_cache=False)
    except Stop:
        return
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise RunError("the scan does not fit in memory: give fewer or shorter sequences at once") from error
    finally:
        for handle in handles:
            handle.remove()
    raise RunError(f"{', '.join(map(str, sorted(left, key=str)))}: the model never ran the module it belongs to")


def as_batch(sequences: Sequence[Sequence[int]]) -> Tensor:
    """Sequences of token ids as one tensor [B, T]; InputError unless there are some and they are equally long."""
    lengths = {len(ids) for ids in sequences}
    if len(lengths) != 1:
        raise InputError(f"a scan runs sequences of one length; these have {sorted(lengths) or 'none'}")
    return torch.tensor(sequences, dtype=torch.long)

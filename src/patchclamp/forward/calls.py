"""What a model's calls take and give back: one prompt or many, edits for all or for each, captured values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from patchclamp.errors import EditError, PromptError, SiteError
from patchclamp.forward.edit import Edit
from patchclamp.forward.site import Site

Prompts = Any
"""One prompt (text, messages or token ids) or a list of prompts."""


class Capture(Mapping[str, Tensor]):
    """Captured values by site: `acts["resid.15"]`.

    A value is [B, …] over the prompts: [B,T,…] for several positions, [B,…] for a single one (`@last`, an index,
    a substring). Where prompts differ in length, `rows(site)` gives one tensor a prompt instead.
    """

    def __init__(self, sites: Sequence[Site], rows: Sequence[Sequence[Tensor]]) -> None:
        self._rows = {str(site): [row[i] for row in rows] for i, site in enumerate(sites)}

    def rows(self, site: str | Site) -> list[Tensor]:
        """The values prompt by prompt, each [T,…] or […]. SiteError if the site was not captured."""
        key = str(Site.parse(site))
        if key not in self._rows:
            raise SiteError(f"{key} was not captured; captured are {', '.join(self._rows)}")
        return self._rows[key]

    def __getitem__(self, site: str | Site) -> Tensor:
        rows = self.rows(site)
        if len({tuple(r.shape) for r in rows}) > 1:
            lengths = sorted({len(r) for r in rows})
            raise SiteError(
                f"{site}: the prompts have {lengths[0]} to {lengths[-1]} tokens there, which do not stack; use "
                f"capture.rows({str(site)!r}), or one position such as @last"
            )
        return rows[0][None] if len(rows) == 1 else torch.stack(rows)

    def __contains__(self, site: object) -> bool:
        try:
            return str(Site.parse(site)) in self._rows  # type: ignore[arg-type]
        except SiteError:
            return False

    def get(self, site: str | Site, default: Any = None) -> Any:
        """As `capture[site]`, with `default` for a site that was not captured."""
        if site not in self:
            return default
        return self[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def as_sites(sites: str | Site | Sequence[str | Site]) -> list[Site]:
    """A list of sites from one or many. SiteError if there are none."""
    wanted = [Site.parse(s) for s in ([sites] if isinstance(sites, str | Site) else sites)]
    if not wanted:
        raise SiteError("no sites given: name at least one, e.g. resid.15@last")
    return wanted


def edits_by_prompt(edits: Any, n: int) -> list[Sequence[Edit]]:
    """One list of edits for each of `n` prompts."""
    if not len(edits) or isinstance(edits[0], Edit):
        return [edits] * n
    if len(edits) != n:
        raise EditError(f"{len(edits)} lists of edits for {n} prompts; give one list for all, or one for each")
    return list(edits)


def is_many(prompts: Prompts) -> bool:
    """Whether a list of prompts was given rather than one prompt (a text, messages, or token ids)."""
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        return False
    first = prompts[0] if len(prompts) else ""
    return not isinstance(first, int) and not isinstance(first, Mapping) and not hasattr(first, "role")


def as_prompts(prompts: Prompts) -> list[Any]:
    """A list of prompts from one or many. PromptError if there are none."""
    listed = list(prompts) if is_many(prompts) else [prompts]
    if not listed or (isinstance(prompts, Sequence) and not len(prompts)):
        raise PromptError("no prompts given: give at least one text to read")
    return listed

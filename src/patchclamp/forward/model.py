"""The model that users hold: an unmodified Hugging Face model whose values can be read, edited and measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from patchclamp.errors import EditError, InputError, SiteError, SpecError
from patchclamp.forward.autoencoder import Autoencoder
from patchclamp.forward.calls import Capture, Prompts, as_prompts, as_sites, edits_by_prompt, is_many
from patchclamp.forward.depend import Dependencies
from patchclamp.forward.edit import Edit
from patchclamp.forward.execute import Track, execute
from patchclamp.forward.generate import generate, stream, watching
from patchclamp.forward.gradient import differentiate
from patchclamp.forward.plan import Mode, Plan, Row
from patchclamp.forward.prepare import Job, ReadyEdit, ready_edit, ready_read, token_indices, value_shape
from patchclamp.forward.prove import prove_shortcuts
from patchclamp.forward.readout import Readout, as_readout
from patchclamp.forward.scan import Consume, as_batch, scan
from patchclamp.forward.site import Site
from patchclamp.forward.turns import Turns
from patchclamp.model.check import resolve
from patchclamp.model.tokens import Encoded, encode, pieces, single_token, token_text
from patchclamp.tasks.files import ATTACHED

if TYPE_CHECKING:
    from patchclamp.model.loaded import Loaded


class Model:
    """A loaded model. `hf` and `tokenizer` are Hugging Face's own, untouched."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.hf = loaded.hf
        self.tokenizer = loaded.tokenizer
        is_local = loaded.revision is None and Path(loaded.ref).expanduser().exists()
        self.ref = str(Path(loaded.ref).expanduser().absolute()) if is_local else loaded.ref
        self.name, self.revision = loaded.name, loaded.revision
        self.anatomy, self.identities = resolve(self.hf)
        prove_shortcuts(self.anatomy)
        self._as_loaded = self._weights_state()
        self._one_at_a_time = Turns()
        self._depends = Dependencies(self._read_clean, self._cut_to_context)

    def __repr__(self) -> str:
        return f"<Model {self.name}: {self.family}, {self.n_layers} blocks, width {self.d_model}, {self.dtype}>"

    family = property(lambda self: self.anatomy.family.name, doc="Name of the architecture's family.")
    n_layers = property(lambda self: self.anatomy.n_layers, doc="Number of blocks.")
    n_heads = property(lambda self: self.anatomy.n_heads, doc="Attention heads a block.")
    n_kv_heads = property(lambda self: self.anatomy.n_kv_heads, doc="Key/value heads a block.")
    d_model = property(lambda self: self.anatomy.d_model, doc="Width of the residual stream.")
    d_head = property(lambda self: self.anatomy.d_head, doc="Width of a head.")
    n_vocab = property(lambda self: self.anatomy.n_vocab, doc="Number of logits.")
    dtype = property(lambda self: self.hf.dtype, doc="Type of the weights.")
    device = property(lambda self: self.anatomy.unembedding.weight.device, doc="Where logits are computed.")

    def attach(self, autoencoder: Autoencoder | str | Path) -> Autoencoder:
        """Make an autoencoder's latents sites of this model, `feature:NAME.L.i`, or `feature.L.i` if its block has no
        other: read as their activation, and edited along their direction, what the autoencoder does not explain left
        as it is. A folder is loaded and stands in `ref` from then on, so that records can be run again. Raises
        SpecError for a transcoder or one of another model, FileError if it cannot be read."""
        folder = None
        if not isinstance(autoencoder, Autoencoder):
            folder = Path(autoencoder).expanduser().absolute()
            autoencoder = Autoencoder.load(folder)
        info, site = autoencoder.info, autoencoder.site
        if info.weights != self.weights_hash:
            raise SpecError(f"the autoencoder {info.name} belongs to {info.model} (weights {info.weights[:12]}), not "
                            f"to {self.name} ({self.weights_hash[:12]}); load that model, or train one on this")
        if info.output_site is not None:
            raise SpecError(f"{info.name} is a transcoder from {info.site} to {info.output_site}: its directions are "
                            "not those of what it reads, so its latents cannot be edited there")
        attached = autoencoder.to(self.device)
        with self.in_turn():
            self.anatomy.attach(info.name, attached, site.point, site.layer or 0)
            self._depends = Dependencies(self._read_clean, self._cut_to_context)
        if folder is not None:
            self.ref += f"{ATTACHED}{folder}"
        return attached

    @contextmanager
    def attaching(self) -> Iterator[None]:
        """Within it autoencoders may be attached; after it those are that were before."""
        ref, codecs, depends = self.ref, self.anatomy.attachments, self._depends
        try:
            yield
        finally:
            if self.anatomy.attachments is not codecs:
                with self.in_turn():
                    self.anatomy.attachments, self._depends = codecs, depends
            self.ref = ref

    def autoencoder(self, site: str | Site) -> Autoencoder:
        """The autoencoder that a feature's site belongs to. SiteError if there is none."""
        site = Site.parse(site)
        codec = self.anatomy.codec(site.place, site.layer or 0)[0]
        if not isinstance(codec, Autoencoder):
            raise SiteError(f"{site} belongs to no autoencoder")
        return codec

    def named(self, site: str | Site) -> Site:
        """The same site; a feature's with the name of its autoencoder, however it was asked for."""
        site = Site.parse(site)
        return replace(site, name=self.autoencoder(site).info.name) if site.point == "feature" else site

    @property
    def weights_hash(self) -> str:
        """Hash that identifies the weights: of the files, or of the tensors once they were changed in memory."""
        changed = self._weights_state() != self._as_loaded
        return self.loaded.hash_in_memory() if changed else self.loaded.weights_hash

    def _weights_state(self) -> tuple[tuple[int, int], ...]:
        """Where each parameter lies and how often it was written to."""
        return tuple((p.data_ptr(), p._version) for p in self.hf.parameters())

    def n_neurons(self, layer: int) -> int:
        """Neurons in one block's MLP; 0 for a mixture of experts."""
        return self.anatomy.n_neurons(layer)

    # Text and tokens

    def encode(self, prompt: Any) -> Encoded:
        """A prompt as tokens; PromptError if it is empty or too long."""
        return encode(self.tokenizer, prompt, self.anatomy.context, self.n_vocab)

    def tokens(self, prompt: Any) -> list[str]:
        """What each of the prompt's tokens says."""
        return list(self.encode(prompt).pieces)

    def token(self, text: str) -> int:
        """The id of the one token that spells `text`; TokenError names the tokens if it takes several."""
        return single_token(self.tokenizer, text, self.n_vocab)

    def say(self, token: int) -> str:
        """The text of a token id."""
        return token_text(self.tokenizer, token)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of several token ids."""
        return "".join(pieces(self.tokenizer, list(ids)))

    # Running

    def measure_spread(self, sites: Iterable[str | Site]) -> None:
        """Measure what units of strength at sites need, `projection_sd` and `value_sd`, in few passes over the neutral
        corpus instead of one a site when each is asked for."""
        self._depends.sample(map(Site.parse, sites))

    def projection_sd(self, site: str | Site, direction: Any) -> float:
        """The unit of strength at a site: the standard deviation of projections on `direction` [width] over the neutral
        corpus, first positions left out."""
        return float(self._depends.projection_sd(Site.parse(site), torch.as_tensor(direction, dtype=torch.float32)))

    def mean_values(self, sites: Sequence[str | Site], texts: Sequence[str] = ()) -> list[Tensor]:
        """What `Edit.mean` writes at each site: the mean over `texts` (the neutral corpus if there are none), first
        positions left out. Measured for all sites in one pass."""
        edits = [Edit.mean(site, texts) for site in sites]
        self._depends.collect(edits)
        return [mean for edit in edits if (mean := self._depends.lookup(edit, ())) is not None]

    def value_sd(self, site: str | Site) -> Tensor:
        """Standard deviation of each number at a site over the neutral corpus, first positions left out."""
        return self._depends.value_sd(Site.parse(site))

    def capture(
        self, prompts: Prompts, sites: str | Site | Sequence[str | Site], edits: Sequence[Edit] = ()
    ) -> Capture:
        """Values at sites, under `edits` if any are given. See `Capture` for shapes."""
        wanted = as_sites(sites)
        rows = [(p, edits, wanted) for p in as_prompts(prompts)]
        return Capture(wanted, self.execute(Plan.of(rows)))

    def scan(
        self, sequences: Sequence[Sequence[int]], sites: str | Site | Sequence[str | Site], consume: Consume
    ) -> None:
        """One pass over sequences of token ids, all of one length: each site's value [B, T, …] is handed to
        `consume(site, value)` when it is there, and not kept. Raises SiteError for a site with unit or positions, or
        one that is computed (logits, pattern, head_out)."""
        ids_BT = as_batch([self.encode(tuple(ids)).ids for ids in sequences])
        with self.in_turn():
            scan(self.anatomy, ids_BT, as_sites(sites), consume, self.name)

    def run(
        self, prompts: Prompts, edits: Sequence[Edit] = (),
        read: Readout | str | Sequence[Readout | str] = "logits@last", mode: Mode = "fast",
    ) -> Any:
        """Run prompts under edits and measure. One prompt gives one value, a list gives a list; several readouts
        give a list of values for each prompt."""
        single, listed = not is_many(prompts), not isinstance(read, Readout | str)
        reads = [as_readout(read)] if isinstance(read, Readout | str) else [as_readout(r) for r in read]
        results = self.execute(Plan.of([(p, edits, reads) for p in as_prompts(prompts)]), mode)
        out = results if listed else [r[0] for r in results]
        return out[0] if single else out

    def execute(self, plan: Plan, mode: Mode = "fast", track: Track | None = None) -> list[list[Any]]:
        """Execute a plan: for each row the values of its readouts. Raises EditError if an edit did not fire.

        Threads take turns: hooks are on the one model, so a run waits for another, or for a stream, to end.
        """
        if mode not in get_args(Mode):
            raise InputError(f"there is no mode {mode!r}; modes are {', '.join(get_args(Mode))}")
        with self.in_turn():
            jobs = self._jobs(plan.rows, skip_identities=mode == "fast")
            execute(self.anatomy, jobs, mode, self.say, track)
        return [job.results for job in jobs]

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Hold the model while hooks are on it: another thread's run waits. InputError in training mode."""
        if self.hf.training:
            raise InputError("the model is in training mode, in which dropout makes every run another: call "
                             "model.hf.eval() first")
        with self._one_at_a_time:
            yield

    def gradients(
        self, prompts: Prompts, readout: Readout | Sequence[Readout], sites: str | Site | Sequence[str | Site],
        edits: Sequence[Edit] | Sequence[Sequence[Edit]] = (),
    ) -> Capture:
        """d readout / d site for each prompt, in the shapes of `capture`. The readout must be one number; a list gives
        each prompt its own, and so does a list of lists of edits. Rows on one prompt or of like length are batched
        (6e-5 from one at a time, measured on SmolLM2)."""
        listed = as_prompts(prompts)
        each = [readout] * len(listed) if isinstance(readout, Readout | str) else list(readout)
        if len(each) != len(listed):
            raise InputError(f"{len(each)} readouts for {len(listed)} prompts; give one for all, or one for each")
        for one in map(as_readout, each):
            if one.kind in ("rank", "top", "logits", "value", "kl"):
                raise InputError(f"the readout {one.kind} has no gradient as one number; use logit_difference, logit, "
                                 "probability, log_probability or loss")
        wanted = as_sites(sites)
        bad = [s for s in wanted if s.point in ("logits", "head_out", "pattern")]
        if bad:
            raise SiteError(f"no gradient is kept at {bad[0]}; use head, attn or resid")
        values = [Readout.value(s) for s in wanted]
        rows = [Row(prompt=prompt, edits=tuple(own), reads=(as_readout(one), *values))
                for prompt, own, one in zip(listed, edits_by_prompt(edits, len(listed)), each, strict=True)]
        with self.in_turn(), torch.enable_grad():
            jobs = self._jobs(rows)
            differentiate(self.anatomy, jobs, wanted, self.say)
        return Capture(wanted, [job.results for job in jobs])

    # Generating

    def generate(
        self, prompts: Prompts, edits: Sequence[Edit] | Sequence[Sequence[Edit]] = (), max_new_tokens: int = 64, *,
        sample: bool = False, temperature: float = 1.0, top_p: float = 1.0, seed: int = 0, use_cache: bool = True,
    ) -> Any:
        """Answers under edits: a `Generated` for one prompt, a list for several. Greedy unless `sample`.

        `edits` are in force for every prompt; a list of lists gives each prompt its own.
        """
        encoded = [self.encode(p) for p in as_prompts(prompts)]
        settings = self._settings(max_new_tokens, sample, temperature, top_p, use_cache)
        with self.in_turn(), _seeded(seed if sample else None):
            ready = self._ready_for_generation(edits_by_prompt(edits, len(encoded)), encoded)
            answers = generate(self.anatomy, self.tokenizer, encoded, ready, settings)
        return answers if is_many(prompts) else answers[0]

    def stream(
        self, prompt: Any, edits: Sequence[Edit] = (), max_new_tokens: int = 64, *, sample: bool = False,
        temperature: float = 1.0, top_p: float = 1.0, seed: int = 0,
    ) -> Iterator[str]:
        """One prompt's answer piece by piece, as it is generated. Other runs wait until the answer is whole, or its
        reader has gone."""
        settings = self._settings(max_new_tokens, sample, temperature, top_p, True)
        return (piece for piece, _ in self._stream(prompt, edits, settings, seed if sample else None))

    def watch(
        self, prompt: Any, site: str | Site, edits: Sequence[Edit] = (), max_new_tokens: int = 64
    ) -> Iterator[tuple[str, Tensor]]:
        """One prompt's greedy answer piece by piece, as `stream`, each with the values at a site that it was written
        from: those of the tokens before its own, [tokens of the piece, …], after the edits. No positions in `site`."""
        where = Site.parse(site)
        if where.point == "pattern":
            raise SiteError(f"{where}: attention weights cannot be watched; read them of the whole answer")
        if where.positions.kind != "all":
            raise SiteError(f"{where}: watched are the tokens an answer is written from; leave the positions out")
        settings = self._settings(max_new_tokens, False, 1.0, 1.0, True)
        watched = self._stream(prompt, edits, settings, None, where)
        return ((piece, torch.stack(values)) for piece, values in watched)

    def _stream(
        self, prompt: Any, edits: Sequence[Edit], settings: dict[str, Any], seed: int | None,
        watched: Site | None = None,
    ) -> Iterator[tuple[str, list[Tensor]]]:
        encoded, seen = self.encode(prompt), list[Tensor]()
        with self.in_turn():
            ready = self._ready_for_generation([edits], [encoded])
            if watched is not None:
                (looking,) = self._ready_prompt([Edit.scale(watched, 1.0)], encoded)
                ready[0].append(watching(looking, seen))

        def run(streamer: Any) -> None:
            with self.in_turn(), _seeded(seed):
                generate(self.anatomy, self.tokenizer, [encoded], ready, settings, streamer)

        return stream(run, self.tokenizer, seen)

    @staticmethod
    def _settings(n: int, sample: bool, temperature: float, top_p: float, use_cache: bool) -> dict[str, Any]:
        if n < 1:
            raise InputError(f"max_new_tokens is {n}; ask for at least one token")
        if sample and (temperature <= 0 or not 0 < top_p <= 1):
            raise InputError("sampling needs a temperature above 0 and top_p in (0, 1]")
        extra = {"temperature": temperature, "top_p": top_p, "top_k": 0} if sample else {
            "temperature": None, "top_p": None, "top_k": None}
        return {"max_new_tokens": n, "do_sample": sample, "use_cache": use_cache, **extra}

    # Binding

    def _jobs(self, rows: Sequence[Row], skip_identities: bool = False) -> list[Job]:
        self._depends.collect(e for row in rows for e in row.edits)
        known: dict[Any, Encoded] = {}
        jobs = []
        for row in rows:
            if row.prompt not in known:
                known[row.prompt] = self.encode(row.prompt)
            encoded = known[row.prompt]
            edits = [ready_edit(self.anatomy, e, encoded, self._depends.lookup, self.name) for e in row.edits]
            if skip_identities and all(self._is_identity(e) for e in edits):
                edits = []
            reads = [ready_read(self.anatomy, self.tokenizer, r, encoded, self.name) for r in row.reads]
            jobs.append(Job(encoded, edits, reads))
        return jobs

    def _is_identity(self, ready: ReadyEdit) -> bool:
        """Whether an edit patches a value into itself: the same site of a run that has read the same tokens so far,
        which causal attention makes the same value. Such an edit alone in its row changes nothing."""
        source = ready.edit.source
        if source is None or source.site.whole != ready.site.whole or source.site.unit != ready.site.unit:
            return False
        other = self.encode(source.prompt)
        end = max(ready.tokens) + 1
        if self.anatomy.rope_side(len(other)) != self.anatomy.rope_side(len(ready.encoded)):
            return False  # the two runs turn queries and keys by other angles
        return (other.ids[:end] == ready.encoded.ids[:end]
                and token_indices(source.site.positions, other, source.site) == ready.tokens)

    def _ready_for_generation(
        self, edits: Sequence[Sequence[Edit]], encoded: Sequence[Encoded]
    ) -> list[list[ReadyEdit]]:
        self._depends.collect(e for some in edits for e in some)
        return [self._ready_prompt(some, one) for some, one in zip(edits, encoded, strict=True)]

    def _ready_prompt(self, edits: Sequence[Edit], encoded: Encoded) -> list[ReadyEdit]:
        out = []
        for edit in edits:
            response = edit.site.positions.kind == "response"
            shown = edit.model_copy(update={"site": edit.site.at("last")}) if response else edit
            ready = ready_edit(self.anatomy, shown, encoded, self._depends.lookup, self.name)
            value = edit.value.tensor if edit.value is not None else self._depends.lookup(shown, ready.tokens)
            per_token = value is not None and value.dim() > len(value_shape(self.anatomy, edit.site)) and len(value) > 1
            if (response or ready.open_end) and edit.op in ("set", "swap") and per_token:
                raise EditError(f"{edit.op} at {edit.site}: one value per token does not reach generated tokens; give "
                                "one value, or name the prompt's positions")
            out.append(replace(ready, edit=edit))
        return out

    def _cut_to_context(self, text: str) -> tuple[int, ...]:
        return encode(self.tokenizer, text, None).ids[: self.anatomy.context]

    def _read_clean(self, wanted: list[tuple[Any, list[Readout]]]) -> list[list[Tensor]]:
        return self.execute(Plan.of([(prompt, (), reads) for prompt, reads in wanted]))


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """torch's random numbers from `seed` on, and the caller's own untouched; None where nothing is drawn."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield

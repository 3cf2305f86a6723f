"""The tuned lens: for each layer an affine map, trained so that the layer's reading comes near the model's output.

    tuned_l(x) = unembed(norm_final(h_l + A_l h_l + b_l)),    A, b  minimise  E[KL(p_model ‖ tuned_l)]

Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens", arXiv 2303.08112. The
logit lens reads early layers in the last layer's basis, and errs where the basis drifts; the maps undo the drift.
`regress.py` finds where to begin, `fit.py` trains, `transport.py` keeps and applies the maps.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from patchclamp.corpus.pack import Ids, digest, need_sequences, pack
from patchclamp.errors import SpecError
from patchclamp.evidence.bootstrap import bootstrap_mean, paired_difference
from patchclamp.evidence.cli_hints import Positional
from patchclamp.evidence.method import Outcome, Part, Progress, Result, Spec, method
from patchclamp.evidence.verdict import FEWEST, Interval, Verdict, judge
from patchclamp.forward import Model, metrics
from patchclamp.forward.streams import decoded, streams, token_at
from patchclamp.lenses.corpus import kl_to_output, read_many, refuse_other_run, sample_positions
from patchclamp.lenses.fit import CHECKPOINT, Fit, Recipe, regression_sequences
from patchclamp.lenses.logit import CONTROL_TOKENS, LogitLens
from patchclamp.lenses.reading import first_top, read_layers
from patchclamp.lenses.transport import CONFIG, Transport, TransportConfig, load_transport, read_config
from patchclamp.model.tokens import Prompt
from patchclamp.tasks.files import DataFile
from patchclamp.tasks.neutral import neutral_texts

if TYPE_CHECKING:
    import altair
    import pandas

HELD_OUT_SEED = 2**40
"""Far from the seeds of the training steps."""
NOTHING = Interval(mean=0.0, low=0.0, high=0.0)


class TrainSpec(Spec):
    """What to train a tuned lens on, and how."""

    corpus: Annotated[DataFile, Positional()]
    """A text file, a folder of them, JSONL or Parquet with a text column, hf:NAME[:SPLIT], or example:neutral."""
    save: DataFile
    """The lens's folder. If training was interrupted, the same command goes on where it was."""
    tokens: int = Field(200_000, ge=1_000)
    """How many tokens to read for training; fewer if the corpus is shorter. None is read twice."""
    length: int = Field(256, ge=8)
    """Tokens in a sequence."""
    share: float = Field(0.05, ge=0.05, le=1)
    """Of each sequence's positions the share, drawn at random, at which KL is taken. Unembedding these at every layer
    is most of the work."""
    held_out: int = Field(32, ge=FEWEST)
    """Sequences at the end of what is read that are never trained on, for the KL that is reported."""
    batch: int = Field(4, ge=1)
    """Sequences in a step."""
    learning_rate: float = Field(3e-4, gt=0)
    """Adam's highest learning rate. A weight of 1 adds one standard deviation of what the regression left unexplained
    for each one of what is read."""
    checkpoint_seconds: float = Field(30, ge=0)
    """How much work an interruption may cost at most, in seconds; 0: none but the step at hand."""


class TrainedLayer(Part):
    """One layer on the held-out text: mean KL to the model's output, nats, with 95 % intervals over sequences."""

    layer: int
    """-1 for the embeddings, then the block after which the stream is read."""
    logit: Interval
    """Through the logit lens."""
    tuned: Interval
    """Through the tuned lens."""
    difference: Interval
    """tuned - logit, sequence by sequence: below 0 where training helped."""


class TrainedLens(Result):
    """A trained lens, beside the logit lens on text it has never seen."""

    layers: list[TrainedLayer]
    """From the embeddings to the last block, which both lenses read alike."""
    folder: str
    """Where the lens is."""
    tokens: int
    """Tokens read for training."""
    regression_tokens: int
    """Of these, the first ones, from which the maps' starting values were found by regression."""
    positions: int
    """Of the others, positions at which KL was taken."""
    held_out_sequences: int
    held_out_positions: int
    training: list[float]
    """KL at each step's positions before the step, nats, mean over layers."""

    def table(self) -> "pandas.DataFrame":
        """One row a layer: KL of both lenses and their difference, with intervals."""
        import pandas

        return pandas.DataFrame([
            {"layer": layer.layer, "logit lens KL": layer.logit.mean, "tuned lens KL": layer.tuned.mean,
             "difference": layer.difference.mean, "low": layer.difference.low, "high": layer.difference.high}
            for layer in self.layers
        ])

    def chart(self) -> "altair.TopLevelMixin":
        """Held-out KL by layer of both lenses, and the training's course."""
        from patchclamp.charts.transport import trained_lens_chart

        return trained_lens_chart(self)


@method("lens.tuned.train", spec=TrainSpec, result=TrainedLens)
def train_tuned_lens(model: Model, spec: TrainSpec, progress: Progress) -> Outcome:
    """Train a tuned lens on a corpus: an affine map a layer, by KL to the model's output.

    The verdict asks whether on held-out text the tuned lens is nearer to the output than the logit lens at every
    layer but the last: it rests on the layer where the gain is least sure.
    """
    if spec.tokens < 2 * spec.batch * spec.length:
        raise SpecError(f"{spec.tokens} tokens are fewer than two steps of {spec.batch} sequences of {spec.length}; "
                        "raise tokens, or lower batch or length")
    sequences = pack(model, spec.corpus, spec.length, spec.tokens // spec.length + spec.held_out)
    need_sequences(len(sequences), spec.held_out + 2 * spec.batch, spec.length, spec.corpus,
                   f"{spec.held_out} held out, {spec.batch} each for regression and a step")
    training, held_out = sequences[: -spec.held_out], sequences[-spec.held_out :]
    folder = Path(spec.save).expanduser()
    lens = _trained(model, spec, training, _identity(model, spec, sequences), folder, progress)
    generator = torch.Generator().manual_seed(spec.seed + HELD_OUT_SEED)
    positions = [sample_positions(spec.length, spec.share, generator) for _ in held_out]
    places_NSD = read_many(model, held_out, positions, progress)
    kl = kl_to_output(model, {"logit": None, "tuned": lens}, places_NSD, progress)
    logit_SQ, tuned_SQ = (kl[name].view(len(kl[name]), len(held_out), -1).mean(-1) for name in ("logit", "tuned"))
    layers = [TrainedLayer(
        layer=index - 1, logit=bootstrap_mean(logit_Q, spec.seed), tuned=bootstrap_mean(tuned_Q, spec.seed),
        difference=paired_difference(tuned_Q, logit_Q, spec.seed),
    ) for index, (logit_Q, tuned_Q) in enumerate(zip(logit_SQ, tuned_SQ, strict=True))]
    _keep(lens, layers, folder)
    last_sequences = len(training) - regression_sequences(len(training), spec.batch)
    result = TrainedLens(
        layers=layers, folder=str(folder), tokens=len(training) * spec.length,
        regression_tokens=(len(training) - last_sequences) * spec.length, positions=last_sequences * len(positions[0]),
        held_out_sequences=len(held_out), held_out_positions=len(places_NSD), training=lens.config.training,
    )
    return result, _verdict(layers, tuned_SQ - logit_SQ, spec.seed)


def _identity(model: Model, spec: TrainSpec, sequences: Sequence[Ids]) -> dict[str, Any]:
    """What has to be equal for a training to be the same one."""
    fields = spec.model_dump(exclude={"corpus", "save", "checkpoint_seconds"})
    return {**fields, "corpus": digest(sequences), "weights": model.weights_hash[:12]}


def _trained(
    model: Model, spec: TrainSpec, training: Sequence[Ids], identity: dict[str, Any], folder: Path, progress: Progress
) -> Transport:
    """The lens in `folder` if it is finished; else trained, from its checkpoint if there is one."""
    if (folder / CONFIG).is_file():
        refuse_other_run(read_config(folder).settings, identity, folder)
        return load_transport(folder, model)
    fit = Fit(model, Recipe(spec.share, spec.batch, spec.learning_rate, spec.seed), training)
    fit.resume(folder, identity)
    fit.run(folder, identity, spec.checkpoint_seconds, progress)
    config = TransportConfig.of(model, "linear_tuned_lens", identity, [sum(step) / len(step) for step in fit.losses])
    weight_LDD, bias_LD = fit.maps()
    return Transport(config, weight_LDD.cpu(), bias_LD.cpu())


def _keep(lens: Transport, layers: list[TrainedLayer], folder: Path) -> None:
    """Save the finished lens with what was measured, and drop the checkpoint it no longer needs."""
    held_out = {"logit": [layer.logit.mean for layer in layers], "tuned": [layer.tuned.mean for layer in layers]}
    config = lens.config.model_copy(update={"held_out": held_out})
    Transport(config, lens.weight, lens.bias).save(folder)
    (folder / CHECKPOINT).unlink(missing_ok=True)


def _verdict(layers: list[TrainedLayer], difference_SQ: Tensor, seed: int) -> Verdict:
    """On the layer, of all but the last, whose difference reaches highest."""
    worst = max(range(len(layers) - 1), key=lambda index: layers[index].difference.high)
    return judge(
        difference_SQ[worst], NOTHING, direction="less", seed=seed,
        claim="on held-out text the tuned lens is nearer to the model's output than the logit lens at every layer but "
              f"the last (the least sure is layer {layers[worst].layer}: tuned minus logit lens, KL in nats)",
    )


class ApplySpec(Spec):
    """What to read with a saved lens."""

    lens: Annotated[DataFile, Positional()]
    """The lens's folder, as `lens tuned train` or `lens jacobian` saved it, or one of the tuned-lens project."""
    prompt: Annotated[Prompt, Positional()]
    """The text the model reads."""
    watch: tuple[str, ...] = ()
    """Tokens to follow through the layers, each one token of the model; most begin with a space."""
    position: str = "last"
    """The token whose residual stream is read: `last`, an index, or a quoted substring."""
    top: int = Field(5, ge=1, le=50)
    """How many of the likeliest tokens to list for each layer."""
    controls: int = Field(8, ge=0, le=40)
    """On how many neutral texts the first watched token is looked for as a control; 0 for no verdict."""


@method("lens.tuned.apply", spec=ApplySpec, result=LogitLens)
def tuned_lens(model: Model, spec: ApplySpec, progress: Progress) -> Outcome:
    """Read the residual stream after every block through a saved lens: what the model would say there.

    The result is that of the logit lens, and so is the verdict: is the first watched token (else the prediction)
    more probable in the stream before the last block than the same token is in other texts?
    """
    lens = load_transport(spec.lens, model)
    watch = {text: model.token(text) for text in spec.watch}
    encoded = model.encode(spec.prompt)
    logits_SV = next(decoded(model, streams(model, [spec.prompt], spec.position), lens.logits(model)))
    layers = read_layers(model, logits_SV, watch, spec.top)
    prediction = layers[-1].top[0].token
    result = LogitLens(
        layers=layers, prediction=prediction, token=token_at(encoded, spec.position), tokens=list(encoded.pieces),
        first_top={token: first_top(layers, token) for token in watch},
    )
    if not spec.controls:
        return result, None
    text, token = next(iter(watch.items()), (prediction, int(logits_SV[-1].argmax())))
    starts = [model.encode(t).ids[:CONTROL_TOKENS] for t in neutral_texts(spec.controls)]
    others = decoded(model, streams(model, starts, track=progress.track), lens.logits(model))
    verdict = judge(
        _peak(logits_SV, token), [_peak(other_SV, token) for other_SV in others],
        claim=f"this lens reads {text!r} in the stream before the last block (greatest log-probability over these "
              "layers, against the same token in neutral texts)",
        direction="greater", against="distribution", seed=spec.seed,
    )
    return result, verdict


def _peak(logits_SV: Tensor, token: int) -> float:
    """Greatest log-probability of a token over the layers before the last block's output."""
    return float(metrics.log_probability(logits_SV, token)[:-1].max())

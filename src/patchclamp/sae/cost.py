"""What a training costs each of its processes, from the sizes of its tensors and a machine's speed.

L latents in R shares, a batch of B rows in S shares, width D, k active; l = L/R, b = B/S. All numbers are float32.

    memory    weights 2·l·D, as much for gradients, twice that for Adam's moments; b·l pre-activations (512·l for topk);
              once more l·D while latents are dead
    traffic   candidates (R-1)·b·k, reconstructions 2(R-1)/R·b·D, between data shares 2(S-1)/S of the gradients
    time      2·b·l·D operations of the encoder, the one dense product; b·k/R pairs, of which each is read and written
              D wide; PASSES times the weights, for gradients, clipping, Adam and norms

The memory is what tensors take, to the byte (tested); the time leaves out that a machine might do two things at once.
"""

from dataclasses import dataclass

from patchclamp.forward.autoencoder import Architecture
from patchclamp.sae.losses import AT_ONCE

FLOAT, WHOLE = 4, 8
PASSES = 18
"""Reads and writes of each weight in a step: a gradient of zeroes, added to: 2; projected 3; its norm 1; shortened 2;
Adam 7; rows' norms 1, divided by them 2."""
PAIR_PASSES = 6
"""Rows of the width that a pair moves: decoded 1, back to its value 1, both gradients read and added to 4."""


@dataclass(frozen=True)
class Machine:
    """How fast a process computes, moves numbers in memory, and exchanges them with others."""

    flops: float
    """Operations a second in a dense float32 product."""
    bandwidth: float
    """Bytes a second to and from memory."""
    link: float
    """Bytes a second to other processes, each way."""
    slower: float = 1.0
    """Times that a step takes what these three say."""


@dataclass(frozen=True)
class Shape:
    """A training's sizes."""

    architecture: Architecture
    latents: int
    width: int
    batch: int
    k: int
    """Of relu, jumprelu and gated the latents that are expected to be active."""
    latent_shares: int = 1
    data_shares: int = 1
    aux_k: int = 0
    prefixes: int = 3

    @property
    def held(self) -> int:
        """l."""
        return self.latents // self.latent_shares

    @property
    def rows(self) -> int:
        """b."""
        return self.batch // self.data_shares

    # Memory

    @property
    def vectors(self) -> int:
        """Parameters of one number a latent."""
        return {"jumprelu": 2, "gated": 3}.get(self.architecture, 1)

    def weights(self) -> int:
        """Bytes of a process's parameters."""
        return FLOAT * (2 * self.held * self.width + self.vectors * self.held + self.width)

    def memory(self) -> dict[str, int]:
        """Bytes a process needs, by what for."""
        is_topk = self.architecture == "topk"
        room = (min(AT_ONCE, self.rows) if is_topk else self.rows) * self.held
        return {
            "weights": self.weights(), "gradients": self.weights(),
            "Adam's moments": 2 * self.weights() + FLOAT * (3 + self.vectors), "idle counts": WHOLE * self.held + FLOAT,
            "pre-activations": FLOAT * room,
            "one more gradient, while latents are dead": FLOAT * self.held * self.width if self.aux_k else 0,
            "rows of the batch": 6 * FLOAT * self.rows * self.width,
            "candidates": FLOAT * self._candidates_held(), "pairs": 12 * WHOLE * self._pairs(),
        }

    def _candidates_held(self) -> int:
        if self.architecture == "topk":
            return (self.latent_shares > 1) * self.latent_shares * min(AT_ONCE, self.rows) * max(self.k, self.aux_k)
        if self.architecture in ("batchtopk", "matryoshka"):
            return self.latent_shares * self.data_shares * self.k * self.batch
        return 0

    def _pairs(self) -> int:
        return -(-self.rows * self.k // self.latent_shares)

    def state(self) -> int:
        """Bytes of a checkpoint, all processes together."""
        per_latent = 3 * FLOAT * (2 * self.width + self.vectors) + WHOLE
        return self.latents * per_latent + 3 * FLOAT * self.width + FLOAT * (4 + self.vectors)

    def autoencoder(self) -> int:
        """Bytes of the finished file."""
        extra = {"topk": 0, "relu": 0, "gated": 2}.get(self.architecture, 1)
        return FLOAT * (self.latents * (2 * self.width + 1 + extra) + self.width)

    # Traffic

    def traffic(self) -> dict[str, int]:
        """Bytes a process gets from others in a step, by what for."""
        shares, everyone = self.latent_shares, self.latent_shares * self.data_shares
        wide = {"gated": 2, "matryoshka": self.prefixes}.get(self.architecture, 1)
        candidates = {"topk": (shares - 1) * self.rows * min(self.k, self.held),
                      "batchtopk": (everyone - 1) * self.k * self.batch,
                      "matryoshka": (everyone - 1) * self.k * self.batch}.get(self.architecture, 0)
        return {
            "candidate codes": FLOAT * candidates,
            "reconstructions": self._reduced(shares, FLOAT * wide * self.rows * self.width),
            "gradient of what is taken off the input": self._reduced(shares, FLOAT * self.width),
            "gradients of data shares": self._reduced(self.data_shares, self.weights()),
            "which latents were active": self._reduced(self.data_shares, WHOLE * self.held),
        }

    def traffic_while_dead(self) -> int:
        """Bytes that come on top while there are dead latents."""
        if not self.aux_k:
            return 0
        most = min(self.aux_k, self.held)
        return FLOAT * (self.latent_shares - 1) * self.rows * most + self._reduced(
            self.latent_shares, FLOAT * (self.rows + 1) * self.width)

    @staticmethod
    def _reduced(shares: int, size: int) -> int:
        """Bytes that a process gets when `size` are summed over shares: each part goes round twice."""
        return 2 * (shares - 1) * size // shares

    # Time

    def seconds(self, machine: Machine) -> dict[str, float]:
        """A step's time by what for, on one process of many like it."""
        product = 2 * self.rows * self.held * self.width / machine.flops
        ranked = 2 * FLOAT * self.rows * self.held / machine.bandwidth
        pairs = PAIR_PASSES * FLOAT * self._pairs() * self.width / machine.bandwidth
        weights = PASSES * self.weights() / machine.bandwidth
        return {
            "encoder's product": machine.slower * product, "choice of latents": machine.slower * ranked,
            "sums over active pairs": machine.slower * pairs, "gradients, Adam, norms": machine.slower * weights,
            "traffic": sum(self.traffic().values()) / machine.link,
        }

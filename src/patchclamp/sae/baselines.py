"""What an autoencoder has to beat with as many active numbers: dictionaries that nobody had to learn.

    random      L directions drawn at random; the k that an input lies furthest along, all times one factor, the best
    pca         the principal axes: the k on which an input lies furthest from the mean
    neurons     the site's own axes, its numbers: the k furthest from their mean

All three say the mean and choose k numbers for every input, so what they cost is what the autoencoder costs. In an
orthonormal basis the k greatest coordinates are the best k (Parseval), so that `pca` is better than the first k
principal components, which are the same for every input.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from patchclamp.forward.autoencoder import Autoencoder, AutoencoderInfo


def random_dictionary(rows_ND: Tensor, n_latents: int, k: int, like: AutoencoderInfo, seed: int) -> Autoencoder:
    """Random directions. The factor minimises the error on `rows_ND`."""
    generator = torch.Generator().manual_seed(seed)
    directions_LD = torch.nn.functional.normalize(
        torch.randn(n_latents, rows_ND.shape[1], generator=generator), dim=1)
    plain = _dictionary("random", directions_LD, directions_LD, rows_ND, k, like)
    centred_ND = rows_ND - plain.b_dec
    said_ND = plain.looked_at(rows_ND)[0] - plain.b_dec
    square = float(said_ND.double().square().sum())
    factor = float((centred_ND.double() * said_ND.double()).sum()) / square if square else 0.0
    return _dictionary("random", directions_LD, directions_LD * factor, rows_ND, k, like)


def principal_axes(rows_ND: Tensor, k: int, like: AutoencoderInfo) -> Autoencoder:
    """The basis in which `rows_ND` do not covary."""
    centred_ND = (rows_ND - rows_ND.mean(0)).double()
    axes_DD = torch.linalg.eigh(centred_ND.T @ centred_ND).eigenvectors.T.float()
    return _both_ways("pca", axes_DD, rows_ND, k, like)


def own_axes(rows_ND: Tensor, k: int, like: AutoencoderInfo) -> Autoencoder:
    """The numbers as they are."""
    return _both_ways("neurons", torch.eye(rows_ND.shape[1]), rows_ND, k, like)


BASELINES: dict[str, Callable[[Tensor, int, int, AutoencoderInfo, int], Autoencoder]] = {
    "random": random_dictionary,
    "pca": lambda rows_ND, n_latents, k, like, seed: principal_axes(rows_ND, k, like),
    "neurons": lambda rows_ND, n_latents, k, like, seed: own_axes(rows_ND, k, like),
}


def _both_ways(name: str, axes_DD: Tensor, rows_ND: Tensor, k: int, like: AutoencoderInfo) -> Autoencoder:
    """Each axis as two latents, since codes are not negative."""
    both_LD = torch.cat([axes_DD, -axes_DD])
    return _dictionary(name, both_LD, both_LD, rows_ND, k, like)


def _dictionary(
    name: str, encoder_LD: Tensor, decoder_LD: Tensor, rows_ND: Tensor, k: int, like: AutoencoderInfo
) -> Autoencoder:
    mean_D = rows_ND.mean(0, dtype=torch.float64).float()
    info = AutoencoderInfo(name=name, architecture="topk", k=max(1, min(k, len(encoder_LD))),
                           site=like.output_site or like.site, model=like.model, weights=like.weights)
    return Autoencoder(info, {"W_enc": encoder_LD, "b_enc": -(encoder_LD @ mean_D), "W_dec": decoder_LD,
                              "b_dec": mean_D})

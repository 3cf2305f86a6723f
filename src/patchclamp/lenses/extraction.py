"""Attribute extraction: reading a relation's object off the state of its subject, by Patchscope and by other means.

Ghandeharioun et al. 2024, arXiv 2401.06102, section 4.2. The subject is read alone; the relation's own prompt with the
placeholder in the subject's place is the target.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from patchclamp.errors import SpecError
from patchclamp.evidence.controls import shuffled_labels
from patchclamp.evidence.method import Outcome, Progress
from patchclamp.evidence.verdict import judge
from patchclamp.forward import Model
from patchclamp.forward.streams import decoded, streams
from patchclamp.lenses.patchscope import (
    Baselines,
    PatchscopeResult,
    PatchscopeSpec,
    continuations,
    found_in,
    make_target,
    maps_for,
)
from patchclamp.lenses.reading import word_tokens
from patchclamp.tasks.read import read_relation

ANSWER_TOKENS = 6
FOLDS = 5


def extract(model: Model, spec: PatchscopeSpec, progress: Progress) -> Outcome:
    """Accuracy by source layer beside the baselines; the verdict's layer is chosen on every other sample."""
    assert spec.relation is not None
    relation = read_relation(spec.relation)
    order = np.random.default_rng(spec.seed).permutation(len(relation.samples))[: spec.limit]
    samples = [relation.samples[i] for i in order]
    if len(samples) < 12:
        raise SpecError(f"{spec.relation} has {len(samples)} samples; at least 12 are needed, half of them to choose "
                        "a layer on")
    template = relation.prompt_templates[0]
    subjects, objects = [s.subject for s in samples], [s.object for s in samples]
    places = streams(model, subjects, track=progress.track)
    target = make_target(model, spec, template.format(spec.placeholder), torch.stack(places).mean(0),
                         maps=maps_for(model, spec, progress))
    texts = continuations(model, target, places, min(spec.max_new_tokens, ANSWER_TOKENS), progress)
    hits_NL = _hits(texts, objects)
    answers = [g.text for g in model.generate([template.format(s) for s in subjects],
                                              max_new_tokens=min(spec.max_new_tokens, ANSWER_TOKENS))]
    result = PatchscopeResult(
        norm_matched=target.matched, accuracy_by_layer=hits_NL.mean(0).tolist(), samples=len(samples),
        baselines=Baselines(
            logit_lens=_lens_accuracy(model, places, objects), linear_probe=_probe_accuracy(places, objects, spec.seed),
            model=float(np.mean([bool(found_in(a, [o])) for a, o in zip(answers, objects, strict=True)])),
        ),
    )
    layer = int(hits_NL[::2].mean(0).argmax())
    rest = [text[layer] for text in texts[1::2]]
    shuffles = shuffled_labels(objects[1::2], 20, spec.seed)
    control = [[float(bool(found_in(t, [o]))) for t, o in zip(rest, other, strict=True)] for other in shuffles]
    verdict = judge(
        hits_NL[1::2, layer], np.array(control), direction="greater", against="distribution", share=True,
        seed=spec.seed,
        claim=f"the object of {relation.name!r} can be read off the subject's state after block {layer} (chosen on the "
              "other half of the samples; against the objects of other subjects)",
    )
    return result, verdict


def _hits(texts: Sequence[Sequence[str]], objects: Sequence[str]) -> np.ndarray:
    """Whether each continuation holds its object, [N,L]."""
    return np.array([[float(bool(found_in(t, [o]))) for t in some] for some, o in zip(texts, objects, strict=True)])


def _lens_accuracy(model: Model, places: Sequence[Tensor], objects: Sequence[str]) -> list[float]:
    """Share of samples whose object's first token is the logit lens's first choice, after every block."""
    firsts = [word_tokens(model, o)[0] for o in objects]
    choices_NL = np.array([logits_LV[1:].argmax(-1).tolist() for logits_LV in decoded(model, list(places))])
    return (choices_NL == np.array(firsts)[:, None]).mean(0).tolist()


def _probe_accuracy(places: Sequence[Tensor], objects: Sequence[str], seed: int) -> list[float] | None:
    """Cross-validated accuracy of a ridge classifier of the states, after every block; None where the classes do not
    repeat: an object seen once cannot be both learned and tested."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    counts = Counter(objects)
    if sum(n for n in counts.values() if n > 1) < len(objects) / 2:
        return None
    states_NLD = torch.stack([place_LD[1:] for place_LD in places]).float().cpu().numpy()
    folds = KFold(FOLDS, shuffle=True, random_state=seed)
    probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=100.0))
    return [float(cross_val_score(probe, states_NLD[:, layer], objects, cv=folds).mean())
            for layer in range(states_NLD.shape[1])]

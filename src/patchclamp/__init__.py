"""patchclamp: record, intervene, compare with a control, conclude.

The public names are imported on first use, so that `import patchclamp` and `patchclamp --version` cost nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchclamp.circuits.evaluate import evaluate_circuits
    from patchclamp.circuits.find import find_circuit
    from patchclamp.circuits.flow import flow
    from patchclamp.circuits.heads import read_heads
    from patchclamp.circuits.knockout import knockout
    from patchclamp.circuits.patch import patch
    from patchclamp.circuits.score import score_edges
    from patchclamp.circuits.show import show_circuit
    from patchclamp.circuits.task import show_task
    from patchclamp.circuits.verify import verify_circuit
    from patchclamp.errors import InputError, PatchclampError, RunError
    from patchclamp.evidence.method import Method, Result, Spec, get_method, method, methods, run
    from patchclamp.evidence.record import Record
    from patchclamp.evidence.store import Store, replay
    from patchclamp.evidence.verdict import Interval, Verdict, judge
    from patchclamp.forward import Capture, Edit, Generated, Model, Plan, Readout, Row, Site, When, load
    from patchclamp.forward.autoencoder import Autoencoder
    from patchclamp.lenses.attention import attention
    from patchclamp.lenses.attribute import attribute
    from patchclamp.lenses.jacobian import jacobian
    from patchclamp.lenses.language import language
    from patchclamp.lenses.logit import logit_lens
    from patchclamp.lenses.multihop import multihop
    from patchclamp.lenses.patchscope import patchscope
    from patchclamp.lenses.selfreport import selfreport
    from patchclamp.lenses.stages import stages
    from patchclamp.lenses.tuned import train_tuned_lens, tuned_lens
    from patchclamp.neurons.ablate import ablate
    from patchclamp.neurons.attribute import attribute_neurons
    from patchclamp.neurons.dose import dose
    from patchclamp.neurons.examples import examples
    from patchclamp.neurons.explain import explain
    from patchclamp.neurons.find import find_neurons
    from patchclamp.neurons.index import index
    from patchclamp.neurons.multimodal import image_units
    from patchclamp.neurons.repair import repair
    from patchclamp.neurons.vision import VisionModel, load_vision
    from patchclamp.relations.edit import edit_fact
    from patchclamp.relations.evaluate import evaluate_relations
    from patchclamp.relations.fit import fit_relation
    from patchclamp.relations.lens import attribute_lens
    from patchclamp.relations.linear import LinearRelation, load_relation
    from patchclamp.relations.table import table_of_relations
    from patchclamp.sae.attribute import attribute_features
    from patchclamp.sae.browse import browse_features
    from patchclamp.sae.compare import compare_autoencoders
    from patchclamp.sae.convert import convert_autoencoder
    from patchclamp.sae.evaluate import evaluate_autoencoder
    from patchclamp.sae.find import find_features
    from patchclamp.sae.harvest import harvest
    from patchclamp.sae.index import index_features
    from patchclamp.sae.plan import plan_training
    from patchclamp.sae.search import search_features
    from patchclamp.sae.show import show_features
    from patchclamp.sae.steer import steer_feature
    from patchclamp.sae.train import train_autoencoder
    from patchclamp.vectors.apply import apply_vector
    from patchclamp.vectors.bake import bake_vector
    from patchclamp.vectors.compose import compose_vectors
    from patchclamp.vectors.evaluate import evaluate_vector
    from patchclamp.vectors.find import find_vector
    from patchclamp.vectors.read import read_vector
    from patchclamp.vectors.select import select_vector
    from patchclamp.vectors.show import show_vector
    from patchclamp.vectors.task import task_vectors
    from patchclamp.vectors.vector import SteeringVector, load_vector

_HOME = {
    "Autoencoder": "forward.autoencoder",
    "Capture": "forward",
    "Edit": "forward",
    "Generated": "forward",
    "InputError": "errors",
    "Interval": "evidence.verdict",
    "LinearRelation": "relations.linear",
    "Method": "evidence.method",
    "Model": "forward",
    "PatchclampError": "errors",
    "Plan": "forward",
    "Readout": "forward",
    "Record": "evidence.record",
    "Result": "evidence.method",
    "Row": "forward",
    "RunError": "errors",
    "Site": "forward",
    "Spec": "evidence.method",
    "SteeringVector": "vectors.vector",
    "Store": "evidence.store",
    "Verdict": "evidence.verdict",
    "VisionModel": "neurons.vision",
    "When": "forward",
    "ablate": "neurons.ablate",
    "apply_vector": "vectors.apply",
    "attention": "lenses.attention",
    "attribute": "lenses.attribute",
    "attribute_features": "sae.attribute",
    "attribute_lens": "relations.lens",
    "attribute_neurons": "neurons.attribute",
    "bake_vector": "vectors.bake",
    "browse_features": "sae.browse",
    "compare_autoencoders": "sae.compare",
    "compose_vectors": "vectors.compose",
    "convert_autoencoder": "sae.convert",
    "dose": "neurons.dose",
    "edit_fact": "relations.edit",
    "evaluate_autoencoder": "sae.evaluate",
    "evaluate_circuits": "circuits.evaluate",
    "evaluate_relations": "relations.evaluate",
    "evaluate_vector": "vectors.evaluate",
    "examples": "neurons.examples",
    "explain": "neurons.explain",
    "find_circuit": "circuits.find",
    "find_features": "sae.find",
    "find_neurons": "neurons.find",
    "find_vector": "vectors.find",
    "fit_relation": "relations.fit",
    "flow": "circuits.flow",
    "get_method": "evidence.method",
    "harvest": "sae.harvest",
    "image_units": "neurons.multimodal",
    "index": "neurons.index",
    "index_features": "sae.index",
    "jacobian": "lenses.jacobian",
    "judge": "evidence.verdict",
    "knockout": "circuits.knockout",
    "language": "lenses.language",
    "load": "forward",
    "load_relation": "relations.linear",
    "load_vector": "vectors.vector",
    "load_vision": "neurons.vision",
    "logit_lens": "lenses.logit",
    "method": "evidence.method",
    "methods": "evidence.method",
    "multihop": "lenses.multihop",
    "patch": "circuits.patch",
    "patchscope": "lenses.patchscope",
    "plan_training": "sae.plan",
    "read_heads": "circuits.heads",
    "read_vector": "vectors.read",
    "repair": "neurons.repair",
    "replay": "evidence.store",
    "run": "evidence.method",
    "score_edges": "circuits.score",
    "search_features": "sae.search",
    "select_vector": "vectors.select",
    "selfreport": "lenses.selfreport",
    "show_circuit": "circuits.show",
    "show_features": "sae.show",
    "show_task": "circuits.task",
    "show_vector": "vectors.show",
    "stages": "lenses.stages",
    "steer_feature": "sae.steer",
    "table_of_relations": "relations.table",
    "task_vectors": "vectors.task",
    "train_autoencoder": "sae.train",
    "train_tuned_lens": "lenses.tuned",
    "tuned_lens": "lenses.tuned",
    "verify_circuit": "circuits.verify",
}

__all__ = [
    "Autoencoder",
    "Capture",
    "Edit",
    "Generated",
    "InputError",
    "Interval",
    "LinearRelation",
    "Method",
    "Model",
    "PatchclampError",
    "Plan",
    "Readout",
    "Record",
    "Result",
    "Row",
    "RunError",
    "Site",
    "Spec",
    "SteeringVector",
    "Store",
    "Verdict",
    "VisionModel",
    "When",
    "ablate",
    "apply_vector",
    "attention",
    "attribute",
    "attribute_features",
    "attribute_lens",
    "attribute_neurons",
    "bake_vector",
    "browse_features",
    "compare_autoencoders",
    "compose_vectors",
    "convert_autoencoder",
    "dose",
    "edit_fact",
    "evaluate_autoencoder",
    "evaluate_circuits",
    "evaluate_relations",
    "evaluate_vector",
    "examples",
    "explain",
    "find_circuit",
    "find_features",
    "find_neurons",
    "find_vector",
    "fit_relation",
    "flow",
    "get_method",
    "harvest",
    "image_units",
    "index",
    "index_features",
    "jacobian",
    "judge",
    "knockout",
    "language",
    "load",
    "load_relation",
    "load_vector",
    "load_vision",
    "logit_lens",
    "method",
    "methods",
    "multihop",
    "patch",
    "patchscope",
    "plan_training",
    "read_heads",
    "read_vector",
    "repair",
    "replay",
    "run",
    "score_edges",
    "search_features",
    "select_vector",
    "selfreport",
    "show_circuit",
    "show_features",
    "show_task",
    "show_vector",
    "stages",
    "steer_feature",
    "table_of_relations",
    "task_vectors",
    "train_autoencoder",
    "train_tuned_lens",
    "tuned_lens",
    "verify_circuit",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"patchclamp has no {name!r}; its names are {', '.join(__all__)}")
    value = getattr(import_module(f"patchclamp.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

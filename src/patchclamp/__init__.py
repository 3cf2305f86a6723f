"""patchclamp: record, intervene, compare with a control, conclude.

The public names are imported on first use, so that `import patchclamp` and `patchclamp --version` cost nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchclamp.circuits.knockout import knockout
    from patchclamp.circuits.patch import patch
    from patchclamp.errors import InputError, PatchclampError, RunError
    from patchclamp.evidence.method import Method, Result, Spec, get_method, method, methods, run
    from patchclamp.evidence.record import Record
    from patchclamp.evidence.store import Store, replay
    from patchclamp.evidence.verdict import Interval, Verdict, judge
    from patchclamp.forward import Capture, Edit, Generated, Model, Plan, Readout, Row, Site, load
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

_HOME = {
    "Capture": "forward",
    "Edit": "forward",
    "Generated": "forward",
    "InputError": "errors",
    "Interval": "evidence.verdict",
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
    "Store": "evidence.store",
    "Verdict": "evidence.verdict",
    "ablate": "neurons.ablate",
    "attention": "lenses.attention",
    "attribute": "lenses.attribute",
    "get_method": "evidence.method",
    "jacobian": "lenses.jacobian",
    "judge": "evidence.verdict",
    "knockout": "circuits.knockout",
    "language": "lenses.language",
    "load": "forward",
    "logit_lens": "lenses.logit",
    "method": "evidence.method",
    "methods": "evidence.method",
    "multihop": "lenses.multihop",
    "patch": "circuits.patch",
    "patchscope": "lenses.patchscope",
    "replay": "evidence.store",
    "run": "evidence.method",
    "selfreport": "lenses.selfreport",
    "stages": "lenses.stages",
    "train_tuned_lens": "lenses.tuned",
    "tuned_lens": "lenses.tuned",
}

__all__ = [
    "Capture",
    "Edit",
    "Generated",
    "InputError",
    "Interval",
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
    "Store",
    "Verdict",
    "ablate",
    "attention",
    "attribute",
    "get_method",
    "jacobian",
    "judge",
    "knockout",
    "language",
    "load",
    "logit_lens",
    "method",
    "methods",
    "multihop",
    "patch",
    "patchscope",
    "replay",
    "run",
    "selfreport",
    "stages",
    "train_tuned_lens",
    "tuned_lens",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"patchclamp has no {name!r}; its names are {', '.join(__all__)}")
    value = getattr(import_module(f"patchclamp.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

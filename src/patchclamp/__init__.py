"""patchclamp: record, intervene, compare with a control, conclude."""

from patchclamp.circuits.knockout import knockout
from patchclamp.circuits.patch import patch
from patchclamp.errors import InputError, PatchclampError, RunError
from patchclamp.evidence.method import Method, Result, Spec, get_method, method, methods, run
from patchclamp.evidence.record import Record
from patchclamp.evidence.store import Store, replay
from patchclamp.evidence.verdict import Interval, Verdict, judge
from patchclamp.forward import Capture, Edit, Generated, Model, Plan, Readout, Row, Site, load
from patchclamp.lenses.logit import logit_lens
from patchclamp.neurons.ablate import ablate

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
    "get_method",
    "judge",
    "knockout",
    "load",
    "logit_lens",
    "method",
    "methods",
    "patch",
    "replay",
    "run",
]

"""Touching a model: sites, edits, readouts, plans, and the one engine that executes them."""

from patchclamp.forward.calls import Capture
from patchclamp.forward.edit import Edit, When
from patchclamp.forward.generate import Generated
from patchclamp.forward.load import load
from patchclamp.forward.model import Model
from patchclamp.forward.plan import Plan, Row
from patchclamp.forward.readout import Readout
from patchclamp.forward.site import Site

__all__ = ["Capture", "Edit", "Generated", "Model", "Plan", "Readout", "Row", "Site", "When", "load"]

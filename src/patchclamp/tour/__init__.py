"""The guided tour: the lecture's claims put to the test on real models, as one report."""

from patchclamp.tour.stops import STOPS, Stop
from patchclamp.tour.take import take

__all__ = ["STOPS", "Stop", "take"]

"""A stand-in for Argo's workflow controller. It speaks to any API server over HTTP, and leaves there what Argo would:
the status of workflows, and their pods.

What becomes of a workflow is a brain's business. `Walking` takes it through its phases by a script, and `Interpreting`
carries it out. The logs of pods are handed in by a door that only the fake server has; on a real one they are empty.
"""

from tests.support.argo.interpreting import Interpreting
from tests.support.argo.stand_in import StandInArgo
from tests.support.argo.walking import Walk, Walking

__all__ = ["Interpreting", "StandInArgo", "Walk", "Walking"]

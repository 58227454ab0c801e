"""The Argo engine: workflows run as pods of a Kubernetes cluster, driven by Argo's own controller.

`submitting` (who is given to the cluster next) and `shapes` (objects as the versions of Argo write them) are pure;
`cluster` is the only place that knows Kubernetes' API.
"""

from .engine import ArgoEngine

__all__ = ["ArgoEngine"]

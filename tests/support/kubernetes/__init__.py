"""A Kubernetes API server for tests, as far as controllers see one.

It has the real server's rules of resourceVersion, conflicts, watches, pages and deletion (`tests/contract/kubernetes`
holds it to them, and the real one as well), for kinds that are built in as for those that definitions bring. It has no
schedulers, kubelets or admission plugins, and knows no schemas: whatever comes is kept.
"""

from tests.support.kubernetes.server import FakeKubernetes

__all__ = ["FakeKubernetes"]

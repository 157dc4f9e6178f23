"""The token that opens an agent's own ports, for a person who approves who may talk to it.

Nothing of it is stored: it is derived anew from the roots. So whoever may read the Secret `roost-roots` may know it.
"""

from roost.agents.names import gateway_token
from roost.kube.client import Gone, Kube, collection
from roost.kube.roots import load_roots

__all__ = ["NoAgent", "gateway_token_of"]


class NoAgent(Exception):
    """There is no such Agent, or nothing of it at Fly yet; the message says which."""


async def gateway_token_of(kube: Kube, installed_in: str, namespace: str, name: str) -> str:
    """The gateway token of an Agent's machine; `installed_in` is the operator's own namespace.

    Raises:
        NoAgent
        LostRoots: the roots are gone.
        KubeError: the cluster can't be asked.
    """
    try:
        agent = await kube.get(f"{collection('Agent', namespace)}/{name}")
    except Gone:
        raise NoAgent(f"There is no Agent {namespace}/{name}.") from None
    incarnation = (agent.get("status", {}).get("app") or {}).get("incarnation")
    if incarnation is None:
        raise NoAgent(f"Agent {namespace}/{name} has no app at Fly yet: wait until it is Ready.")
    roots = await load_roots(kube, installed_in)
    epoch = agent["spec"].get("identity", {}).get("tokenEpoch", 0)
    return gateway_token(roots.token, roots.owner_id, namespace, name, incarnation, epoch)

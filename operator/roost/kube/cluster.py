"""Where the Kubernetes API is and who we are there: a Pod's service account, or a kubeconfig on a laptop.

The token is always read from its file and never kept for longer than a minute: the kubelet rotates it.
"""

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from roost.settings import SERVICE_ACCOUNT_DIR

TOKEN_LIFE_SECONDS = 60.0


class NoCluster(Exception):
    """There is no cluster to talk to; the message says what to do."""


@dataclass(slots=True)
class Cluster:
    """A Kubernetes API server and the credentials of this process."""

    server: str
    ca_path: str | None
    token_path: Path | None = None
    fixed_token: str | None = None
    client_cert: tuple[str, str] | None = None
    _token: str | None = None
    _read_at: float = field(default=float("-inf"))

    def token(self, *, fresh: bool = False) -> str | None:
        """The bearer token; read again from its file once a minute, or now when the last one was refused."""
        if self.token_path is None:
            return self.fixed_token
        if fresh or monotonic() - self._read_at > TOKEN_LIFE_SECONDS:
            self._token, self._read_at = self.token_path.read_text().strip(), monotonic()
        return self._token

    def ssl_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca_path)
        if self.client_cert is not None:
            context.load_cert_chain(*self.client_cert)
        return context


def find_cluster(kubeconfig: str | None = None) -> Cluster:
    """The service account of the Pod we run in, else the kubeconfig given, in $KUBECONFIG, or at its usual place.

    Raises:
        NoCluster: neither is there.
    """
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if kubeconfig is None and host:
        directory = Path(os.environ.get("ROOST_SERVICE_ACCOUNT_DIR", SERVICE_ACCOUNT_DIR))
        if not (directory / "token").exists():
            raise NoCluster(f"no service account token in {directory}; set automountServiceAccountToken: true")
        server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        return Cluster(server, str(directory / "ca.crt"), token_path=directory / "token")
    return _from_kubeconfig(kubeconfig)


def _from_kubeconfig(path: str | None) -> Cluster:
    # Only here, since the library's import alone costs more memory than the rest of an idle operator.
    from kubernetes import client, config

    configuration = client.Configuration()
    try:
        config.load_kube_config(config_file=path, client_configuration=configuration)  # type: ignore[no-untyped-call]
    except config.ConfigException as error:
        raise NoCluster(f"no cluster: {error}; set KUBECONFIG, or run in a Pod with a service account") from error
    authorization = configuration.get_api_key_with_prefix("BearerToken") or ""
    pair = configuration.cert_file, configuration.key_file
    cert = (pair[0], pair[1]) if pair[0] and pair[1] else None
    return Cluster(
        configuration.host,
        configuration.ssl_ca_cert,
        fixed_token=authorization.removeprefix("Bearer ") or None,
        client_cert=cert,
    )

"""The endpoint's own certificate: read from its Secret by name, taken into use while connections live on.

Promises: new handshakes use the newest pair that is whole; one that is broken or missing changes nothing but a metric
and one line in the log. The key is never in a file that has a name. Between replicas exactly this certificate, and the
one before it, are trusted, whatever authority signed it.
"""

import asyncio
import base64
import binascii
import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from roost.kube.client import Gone, Kube, KubeError, core_secret
from roost.settings import EndpointTls
from roost.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)
READ_SECONDS = 30.0
DOUBT_SECONDS = 2.0
"""At most so often it is read again because another replica shows a certificate that is not known here."""
MAX_AUTHORITY_BYTES = 32 * 1024
"""It is sent to Fly in the config of every machine."""


class _Unusable(Exception):
    """What the Secret lacks."""


@dataclass(frozen=True, slots=True, repr=False)
class _Pair:
    """What a Secret holds."""

    certificate: bytes
    key: bytes
    authority: str


class Certificate:
    """One for the whole process.

    Args:
        on_authority: called when machines are to trust another authority than before.
    """

    def __init__(
        self, kube: Kube, namespace: str, settings: EndpointTls, metrics: Metrics, on_authority: Callable[[], None]
    ) -> None:
        self._kube, self._metrics, self._on_authority = kube, metrics, on_authority
        self._namespace, self._name = namespace, settings.secret_name
        self.context = _server_context()
        self.peers = _peer_context([])
        """With what another replica is called."""
        self._pair: _Pair | None = None
        self._leaves: list[str] = []
        self._told = ""
        self._lock = asyncio.Lock()
        self._doubted_at = float("-inf")

    @property
    def authority(self) -> str:
        """PEM certificates of the authority that machines must trust; empty when it is one that everybody knows."""
        return self._pair.authority if self._pair is not None else ""

    async def look(self) -> str:
        """Reads the Secret and takes into use what is new; what is wrong with it, in a sentence, or nothing."""
        async with self._lock:
            try:
                pair = _pair((await self._kube.get(core_secret(self._namespace, self._name))).get("data") or {})
                if pair != self._pair:
                    self._use(pair)
            except Gone:
                problem = f"the Secret {self._where} of endpoint.tls is missing; {self._remedy}"
            except _Unusable as error:
                problem = f"the Secret {self._where} of endpoint.tls can't be used: {error}; {self._remedy}"
            except KubeError as error:
                return f"the Secret {self._where} of endpoint.tls can't be read: {error}"
            else:
                problem = ""
            self._metrics.certificate_unusable.set(1.0 if problem else 0.0)
            return problem

    async def run(self) -> None:
        """Looks every now and then, for as long as it runs."""
        while True:
            await asyncio.sleep(READ_SECONDS)
            await self.keep()

    async def keep(self) -> None:
        """One look of a process that serves already: a problem is told once, and the pair before lives on."""
        problem = await self.look()
        if problem and problem != self._told:
            log.error("the endpoint goes on with the certificate it has", problem=problem)
        self._told = problem

    async def doubt(self) -> bool:
        """Another replica shows a certificate that is not known here: whether a look, if one is due, found another."""
        now, before = asyncio.get_running_loop().time(), self._leaves
        if now - self._doubted_at >= DOUBT_SECONDS:
            self._doubted_at = now
            await self.keep()
        return self._leaves is not before

    @property
    def _where(self) -> str:
        return f"{self._namespace}/{self._name}"

    @property
    def _remedy(self) -> str:
        return f"kubectl -n {self._namespace} create secret tls {self._name} --cert=tls.crt --key=tls.key"

    def _use(self, pair: _Pair) -> None:
        """Raises _Unusable, with everything as it was before."""
        _load(_server_context(), pair)  # one that does not fit would leave a context without any key
        try:
            leaf = x509.load_pem_x509_certificates(pair.certificate)[0]
            authority = x509.load_pem_x509_certificates(pair.authority.encode()) if pair.authority else []
        except ValueError as error:
            raise _Unusable("tls.crt or ca.crt is not PEM") from error
        _load(self.context, pair)
        before, self._pair = self._pair, pair
        self._leaves = [leaf.public_bytes(Encoding.PEM).decode(), *self._leaves[:1]]
        self.peers = _peer_context(self._leaves)
        self._metrics.certificate_expiry.set(leaf.not_valid_after_utc.timestamp())
        ends = leaf.not_valid_after_utc.isoformat()
        log.info("certificate in use", secret=self._where, ends=ends, authorities=len(authority))
        if before is not None and before.authority != pair.authority:
            self._on_authority()


def _pair(data: Mapping[str, str]) -> _Pair:
    for needed in ("tls.crt", "tls.key"):
        if not data.get(needed):
            raise _Unusable(f"it lacks the key {needed}")
    try:
        certificate, key, authority = (base64.b64decode(data.get(k) or "") for k in ("tls.crt", "tls.key", "ca.crt"))
        text = authority.decode("ascii")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise _Unusable("ca.crt is not PEM") from error
    if len(authority) > MAX_AUTHORITY_BYTES:
        raise _Unusable(f"ca.crt has more than {MAX_AUTHORITY_BYTES // 1024} KiB")
    return _Pair(certificate, key, text)


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    return context


def _peer_context(leaves: list[str]) -> ssl.SSLContext:
    """Trusts these certificates themselves. Replicas call each other by address, so no name is checked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    for leaf in leaves:
        context.load_verify_locations(cadata=leaf)
    return context


def _load(context: ssl.SSLContext, pair: _Pair) -> None:
    """OpenSSL reads files only: this one lives in memory, without a name, for as long as it takes."""
    with os.fdopen(os.memfd_create("pair", os.MFD_CLOEXEC), "wb", buffering=0) as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(pair.key.rstrip() + b"\n" + pair.certificate)
        try:
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}", password="")  # never asks at a terminal
        except (ssl.SSLError, ValueError) as error:
            raise _Unusable("tls.crt and tls.key are no PEM of a certificate and its key without password") from error

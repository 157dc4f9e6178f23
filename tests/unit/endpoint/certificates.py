"""Certificates made on the spot, and a server of core Secrets that holds them."""

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from endpoint_world import NAMESPACE, CoreSecrets

from roost.endpoint.tls import Certificate
from roost.kube.client import Kube
from roost.kube.cluster import Cluster
from roost.run import _serve
from roost.settings import EndpointTls
from roost.telemetry.metrics import Metrics

SECRET = "endpoint-tls"
NOW = datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True, slots=True)
class Made:
    """A certificate for 127.0.0.1 with its key, and who signed it."""

    certificate: bytes
    key: bytes
    ends: datetime
    _signer: tuple[x509.Name, ec.EllipticCurvePrivateKey]

    @property
    def pair(self) -> dict[str, str | bytes]:
        return {"tls.crt": self.certificate, "tls.key": self.key}


def make(name: str = "endpoint", *, by: Made | None = None, days: int = 30, password: bytes | None = None) -> Made:
    """Self-signed, or signed by another one."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, signing = by._signer if by is not None else (subject, key)
    ends = NOW + timedelta(days=days)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=60))
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(signing, SHA256())
    )
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    return Made(certificate.public_bytes(Encoding.PEM), plain, ends, (subject, key))


class Keeper:
    """A Certificate, with the Secret that it reads."""

    def __init__(self, kube: Kube, secrets: CoreSecrets, metrics: Metrics) -> None:
        self.secrets, self.metrics, self.authorities = secrets, metrics, 0
        self.certificate = Certificate(kube, NAMESPACE, EndpointTls(secret_name=SECRET), metrics, self._count)

    def _count(self) -> None:
        self.authorities += 1

    def store(self, made: Made, **other: bytes) -> None:
        self.secrets.values[SECRET] = made.pair | {name.replace("_", "."): value for name, value in other.items()}

    def metric(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name) or 0.0


@asynccontextmanager
async def keeper() -> AsyncIterator[Keeper]:
    secrets, metrics = CoreSecrets(), Metrics()
    site = await _serve(secrets.application(), "127.0.0.1:0")
    async with Kube(Cluster(f"http://127.0.0.1:{site.addresses[0][1]}", None), metrics) as kube:
        yield Keeper(kube, secrets, metrics)
    await site.cleanup()


def open_files() -> set[str]:
    """What this process has open that lies in no directory: a key in memory would be among it."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:
            continue
        if "memfd" in target:
            found.add(target)
    return found

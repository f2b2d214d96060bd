"""A certificate for loopback, made when an emulator with TLS starts and thrown away when it stops.

Part of the emulator base. The certificate signs itself, so the same file is what clients trust. It is made by the
`cryptography` package where that is installed, else by the ``openssl`` command.
"""

from __future__ import annotations

import ipaddress
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import attrs

_DAYS: Final = 7
_NAMES: Final = "DNS:localhost,IP:127.0.0.1,IP:::1"


@attrs.frozen
class Certificate:
    """The files of one certificate: ``certificate`` is also what clients are to trust."""

    certificate: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        """Return the settings of a server that shows this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        context.set_alpn_protocols(["http/1.1"])
        return context


def make_certificate(directory: Path) -> Certificate:
    """Make a certificate for localhost, 127.0.0.1 and ::1 in ``directory``, which only its owner should read."""
    made = Certificate(directory / "certificate.pem", directory / "key.pem")
    try:
        from cryptography import x509  # noqa: F401 - whether it is there decides
    except ImportError:
        _by_openssl(made)
    else:
        _by_cryptography(made)
    made.key.chmod(0o600)
    return made


def _by_cryptography(made: Certificate) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fusekit emulator")])
    now = datetime.now(UTC)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    addresses = [ipaddress.ip_address(one) for one in ("127.0.0.1", "::1")]
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign", "encipher_only",
         "decipher_only"), False
    )  # fmt: skip
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=_DAYS))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), *(x509.IPAddress(one) for one in addresses)]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=True, **usage), True)
        .add_extension(identifier, False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False)
        .sign(key, hashes.SHA256())
    )
    made.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    made.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def _by_openssl(made: Certificate) -> None:
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-batch",
        "-keyout", str(made.key), "-out", str(made.certificate), "-days", str(_DAYS), "-subj", "/CN=fusekit emulator",
        "-addext", f"subjectAltName={_NAMES}", "-addext", "keyUsage=critical,digitalSignature,keyCertSign",
    ]  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise RuntimeError("TLS needs the package `cryptography` or the command `openssl`") from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"openssl made no certificate: {error.stderr.strip()}") from error

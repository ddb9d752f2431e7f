"""Certificates of a test's own making, so that TLS is real and verified."""

import shutil
import ssl
import subprocess
from pathlib import Path


def self_signed(folder: Path) -> tuple[str, str]:
    """Certificate and key of 127.0.0.1 and engine.test; the certificate is its own authority."""
    openssl = shutil.which("openssl")
    assert openssl, "openssl makes the certificate of this test"
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-days", "2", "-keyout", str(key), "-out", str(cert),
            "-subj", "/CN=engine.test", "-addext", "subjectAltName=DNS:engine.test,IP:127.0.0.1",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return str(cert), str(key)


def server_context(cert: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context

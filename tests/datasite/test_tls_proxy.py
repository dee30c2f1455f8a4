"""docs/deployment/nginx.conf in front of a real datasite: https with a private CA works, plain http and oversize do not."""

from __future__ import annotations

import datetime
import http.client
import ipaddress
import json
import re
import secrets
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fl_privacy.datasite import requests as code_requests
from fl_privacy.errors import ConnectionFailed
from fl_privacy.messages import sign
from fl_privacy.scientist.desk import Desk
from tests.datasite.guard_double import an_order
from tests.datasite.test_served_datasite import KEY

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
EXAMPLE = Path(__file__).parents[2] / "docs" / "deployment" / "nginx.conf"

pytestmark = [pytest.mark.end_to_end, pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx")]


@dataclass
class Proxy:
    port: int
    authority: Path  # certificate of the CA that signed the proxy's

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"


@pytest.fixture(scope="module")
def proxy(datasite: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("nginx")
    authority = make_certificates(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    site = EXAMPLE.read_text()
    for pattern, value in (
        (r"127\.0\.0\.1:9201", datasite.url.removeprefix("http://")),
        (r"listen 443 ssl", f"listen {port} ssl"),
        (r"datasite\.example\.org", "localhost"),
        (r"/etc/fl-privacy/tls/fullchain\.pem", str(folder / "server.pem")),
        (r"/etc/fl-privacy/tls/key\.pem", str(folder / "server.key")),
    ):
        site, changed = re.subn(pattern, value, site)
        assert changed == 1, pattern
    (folder / "site.conf").write_text(site)
    (folder / "temporary").mkdir()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "".join(f"{kind}_temp_path {folder}/temporary/{kind};" for kind in kinds)
    (folder / "nginx.conf").write_text(
        f"user root; worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{ {places} include {folder}/site.conf; }}\n"
    )
    command = [str(NGINX), "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, process, folder / "error.log")
        yield Proxy(port, authority)
    finally:
        process.terminate()
        process.wait(10)


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(log.read_text())


def make_certificates(folder: Path) -> Path:
    """A private CA, and a certificate of it for localhost; returns the CA's."""
    now = datetime.datetime.now(datetime.UTC)

    def made(name: str, key: Any, issuer: str, issuer_key: Any, *extensions: x509.ExtensionType) -> x509.Certificate:
        builder = x509.CertificateBuilder(
            issuer_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]),
            subject_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - datetime.timedelta(hours=1),
            not_valid_after=now + datetime.timedelta(days=1),
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(issuer_key, hashes.SHA256())

    root, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    pem = serialization.Encoding.PEM
    authority = made("Private CA", root, "Private CA", root, x509.BasicConstraints(ca=True, path_length=0))
    (folder / "ca.pem").write_bytes(authority.public_bytes(pem))
    (folder / "server.pem").write_bytes(made("localhost", key, "Private CA", root, names).public_bytes(pem))
    plain = serialization.NoEncryption()
    (folder / "server.key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return folder / "ca.pem"


@pytest.fixture
def trusted(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    monkeypatch.setenv("SSL_CERT_FILE", str(proxy.authority))
    return proxy


def connection(proxy: Proxy, address: str = "127.0.0.1") -> http.client.HTTPSConnection:
    context = ssl.create_default_context(cafile=str(proxy.authority))
    return http.client.HTTPSConnection("localhost", proxy.port, context=context, source_address=(address, 0), timeout=10)


def test_a_scientist_logs_in_uploads_and_runs_a_call_over_https_with_a_private_ca(
    trusted: Proxy, invited: Any, owner: Any, approved_code: Any, tmp_path: Path
) -> None:
    desk = Desk.login("alba", trusted.url, *invited)
    blob = secrets.token_bytes(20 << 20)
    desk.relay.fetch_blob(desk.relay.put_blob(blob), tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == blob
    code, function = approved_code("over-tls")
    desk.submit(code, "over-tls")
    (request,) = [request for request in code_requests.all_requests(owner) if request.code == code]
    code_requests.approve(owner, request)
    task = {"action": "train", "message": sign(an_order(50), KEY).canonical().decode()}
    assert desk.run(function, task, timeout=120)["kind"] == "RoundOrder"
    desk.close()


@pytest.mark.parametrize("ignore", ["0", "1"])
def test_a_certificate_of_an_unknown_ca_is_refused_even_if_syft_is_told_to_ignore_it(
    proxy: Proxy, invited: Any, monkeypatch: pytest.MonkeyPatch, ignore: str
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("IGNORE_TLS_ERRORS", ignore)
    with pytest.raises(ConnectionFailed):
        Desk.login("alba", proxy.url, *invited)


def test_plain_http_gets_no_further_than_the_proxy(proxy: Proxy) -> None:
    plain = http.client.HTTPConnection("localhost", proxy.port, timeout=10)
    plain.request("GET", "/api/v2/metadata")
    assert plain.getresponse().status == 400
    plain.close()


@pytest.mark.parametrize(
    ("path", "size"), [("/api/v2/login", 5 << 10), ("/fl/v1/registry", 5 << 20), ("/api/v2/api_call", 17 << 20)]
)
def test_the_proxy_refuses_what_the_datasite_would_refuse(proxy: Proxy, path: str, size: int) -> None:
    client = connection(proxy)
    client.putrequest("POST", path)
    client.putheader("Content-Length", str(size))
    client.endheaders()
    assert client.getresponse().status == 413
    client.close()


@pytest.mark.parametrize("path", ["/", "/docs", "/metrics", "/api/v1/metadata"])
def test_other_paths_do_not_exist(proxy: Proxy, path: str) -> None:
    client = connection(proxy)
    client.request("GET", path)
    assert client.getresponse().status == 404
    client.close()


def test_the_datasite_counts_the_address_that_the_proxy_saw_and_not_the_one_that_a_client_claims(
    proxy: Proxy, datasite: Any
) -> None:
    client = connection(proxy, "127.0.0.2")
    body = json.dumps({"email": f"{secrets.token_hex(8)}@lab.example.org", "password": "wrong"})
    client.request("POST", "/api/v2/login", body, {"X-Forwarded-For": "203.0.113.9", "Content-Type": "application/json"})
    assert client.getresponse().status == 200
    client.close()
    log = datasite.log.read_text()
    assert "from 127.0.0.2" in log
    assert "203.0.113.9" not in log

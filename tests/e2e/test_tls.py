"""The S3 endpoint over TLS: clients that verify the certificate, its renewal, and clients that speak no TLS."""

import socket
import ssl
import subprocess
import time

import boto3
import pytest
from botocore.config import Config
from harness import MIB, Node, eventually, run_quarryd


def make_certificate(directory, name, days=2):
    """A new self-signed certificate for 127.0.0.1 in the files that the node reads."""
    certificate, key = directory / "chain.pem", directory / "key.pem"
    new_certificate, new_key = directory / "chain.new", directory / "key.new"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", str(days),
         "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(new_key),
         "-out", str(new_certificate)], check=True, capture_output=True,
    )
    new_key.chmod(0o600)
    new_key.rename(key)
    new_certificate.rename(certificate)
    return certificate, key


@pytest.fixture
def secured(tmp_path):
    certificate, key = make_certificate(tmp_path, "first")
    node = Node(tmp_path / "node", "--tls-certificate", certificate, "--tls-key", key, device_size="256MiB")
    node.start()
    yield node, certificate
    node.close()


def client(node, certificate):
    access, secret = node.credentials()
    return boto3.client(
        "s3", endpoint_url=f"https://127.0.0.1:{node.listen}", aws_access_key_id=access, aws_secret_access_key=secret,
        region_name="us-east-1", verify=str(certificate),
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )


def shown_certificate(node):
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", node.listen), timeout=10) as plain:
        with context.wrap_socket(plain) as secure:
            return secure.getpeercert(binary_form=True), secure.version()


def test_bodies_of_all_sizes_pass(secured):
    node, certificate = secured
    s3 = client(node, certificate)
    s3.create_bucket(Bucket="lake")
    for size in (0, 1, 16 << 10, 100_001, 5 * MIB + 7):
        body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        s3.put_object(Bucket="lake", Key=f"o{size}", Body=body)
        assert s3.get_object(Bucket="lake", Key=f"o{size}")["Body"].read() == body
    part = s3.get_object(Bucket="lake", Key="o100001", Range="bytes=99-1098")["Body"].read()
    assert len(part) == 1000


def test_a_renewed_certificate_is_taken_without_a_restart(secured, tmp_path):
    node, certificate = secured
    s3 = client(node, certificate)
    s3.create_bucket(Bucket="lake")
    first, version = shown_certificate(node)
    assert version == "TLSv1.3"
    make_certificate(tmp_path, "second")
    eventually("the renewed certificate is shown", 20, lambda: shown_certificate(node)[0] != first)
    # A connection from before goes on; a new one needs the new certificate.
    s3.put_object(Bucket="lake", Key="old", Body=b"1")
    client(node, certificate).put_object(Bucket="lake", Key="new", Body=b"2")
    # Nonsense is refused, and what was there stays.
    second, _ = shown_certificate(node)
    certificate.write_text("nonsense")
    time.sleep(6)
    assert shown_certificate(node)[0] == second


def test_clients_without_tls_are_closed_and_cost_nothing(secured):
    node, certificate = secured
    with socket.create_connection(("127.0.0.1", node.listen), timeout=20) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = plain.recv(4096)
        assert not answer.startswith(b"HTTP/"), answer
    # Silent ones are let go, and others are served meanwhile.
    silent = [socket.create_connection(("127.0.0.1", node.listen), timeout=20) for _ in range(50)]
    client(node, certificate).create_bucket(Bucket="lake")
    started = time.monotonic()
    for connection in silent:
        assert connection.recv(1) == b""
    assert time.monotonic() - started < 20
    for connection in silent:
        connection.close()


def test_half_a_configuration_is_refused(tmp_path):
    run = run_quarryd("--standalone", "--data", tmp_path, "--tls-certificate", tmp_path / "chain.pem", "--check-config")
    assert run.returncode != 0 and "--tls-key" in run.stderr, run.stderr

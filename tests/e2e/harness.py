"""Starts and stops real quarryd processes on free ports of 127.0.0.1, and talks to them with boto3."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

import boto3
from botocore.config import Config

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARIES = pathlib.Path(os.environ.get("QUARRY_BINARIES", ROOT / "target" / "release"))
START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 60


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Node:
    """One quarryd with the embedded control plane and its data directory."""

    def __init__(self, data, *flags, device_size="1GiB"):
        self.data = pathlib.Path(data)
        self.flags = [*flags, "--device-size", device_size]
        self.process = None
        self.listen = free_port()
        self.admin = free_port()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.listen}"

    def start(self, *flags, wait=True):
        assert self.process is None, "already running"
        command = [
            str(BINARIES / "quarryd"), "--standalone", "--data", str(self.data),
            "--listen", f"127.0.0.1:{self.listen}", "--admin", f"127.0.0.1:{self.admin}",
            "--enable-fault-injection", *self.flags, *flags,
        ]
        self.data.parent.mkdir(parents=True, exist_ok=True)
        self.log = open(self.data.parent / f"{self.data.name}.log", "ab")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self):
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"quarryd ended with {self.process.returncode}:\n{self.tail()}")
            try:
                if self.admin_get("/health/ready")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise RuntimeError(f"quarryd is not ready after {START_SECONDS_MAX} s:\n{self.tail()}")

    def tail(self):
        path = self.data.parent / f"{self.data.name}.log"
        return path.read_text(errors="replace")[-4000:]

    def admin_get(self, path, method="GET"):
        request = urllib.request.Request(f"http://127.0.0.1:{self.admin}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def map(self):
        return json.loads(self.admin_get("/map")[1])

    def device_paths(self):
        """Device id -> path, from the map."""
        return {int(device): pathlib.Path(entry["location"]) for device, entry in self.map()["devices"].items()}

    def inject(self, device, mode):
        status, body = self.admin_get(f"/debug/fault?device={device:016x}&mode={mode}", method="POST")
        assert status == 200, (status, body)

    def stop(self):
        """SIGTERM: drains and exits 0."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=STOP_SECONDS_MAX)
        self.process = None
        assert code == 0, f"quarryd exited with {code} on SIGTERM:\n{self.tail()}"

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process = None

    def close(self):
        if self.process is not None:
            self.kill()
        shutil.rmtree(self.data, ignore_errors=True)

    def credentials(self):
        text = (self.data / "credentials").read_text()
        values = dict(line.split(" = ", 1) for line in text.splitlines() if " = " in line)
        return values["aws_access_key_id"], values["aws_secret_access_key"]

    def client(self, retries=0, **options):
        access, secret = self.credentials()
        config = Config(
            retries={"total_max_attempts": retries + 1, "mode": "standard"}, s3={"addressing_style": "path"},
            connect_timeout=5, read_timeout=60, max_pool_connections=64, **options,
        )
        return boto3.client(
            "s3", endpoint_url=self.endpoint, aws_access_key_id=access, aws_secret_access_key=secret,
            region_name="us-east-1", config=config,
        )

    def environment(self):
        """Environment in which `aws` reaches this node."""
        return {
            **os.environ, "AWS_SHARED_CREDENTIALS_FILE": str(self.data / "credentials"),
            "AWS_CONFIG_FILE": "/dev/null", "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def fsck(self, *flags):
        """Runs fsck on the stopped node; returns (exit code, report)."""
        run = subprocess.run(
            [str(BINARIES / "quarryd"), "fsck", "--data", str(self.data), "--json", *flags],
            capture_output=True, text=True,
        )
        return run.returncode, json.loads(run.stdout) if run.stdout else run.stderr

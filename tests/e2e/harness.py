"""Starts and stops real quarryd processes on free ports of 127.0.0.1, and talks to them with boto3."""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import boto3
from botocore.config import Config

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARIES = pathlib.Path(os.environ.get("QUARRY_BINARIES", ROOT / "target" / "release")).resolve()
QUARRYD = BINARIES / "quarryd"
START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 60
MIB = 1 << 20
PORTS_GIVEN = set()


def free_port():
    """Below those that the kernel gives to outgoing connections: one of these could take the port before the server does."""
    below = int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(min(10_000, below // 2), below)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in PORTS_GIVEN:
            PORTS_GIVEN.add(port)
            return port


def eventually(what, seconds, condition):
    """Waits until `condition` returns something true, and returns that."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def run_quarryd(*arguments, timeout=60, environment=None):
    """Runs quarryd to its end; what it prints comes back as text."""
    return subprocess.run(
        [str(QUARRYD), *map(str, arguments)], capture_output=True, text=True, timeout=timeout,
        env={**os.environ, "NO_COLOR": "1", "RUST_BACKTRACE": "0", **(environment or {})},
    )


class Node:
    """One quarryd with the embedded control plane and its data directory."""

    host = "127.0.0.1"

    def __init__(self, data, *flags, device_size="1GiB", environment=None):
        self.data = pathlib.Path(data)
        self.flags = [*map(str, flags), "--device-size", device_size]
        self.extra_environment = environment or {}
        self.process = None
        self.listen = free_port()
        self.admin = free_port()
        self.log_path = self.data.parent / f"{self.data.name}.log"

    @property
    def endpoint(self):
        return f"http://{self.host}:{self.listen}"

    def command(self, *flags):
        return [
            str(QUARRYD), "--standalone", "--data", str(self.data), "--listen", f"127.0.0.1:{self.listen}",
            "--admin", f"127.0.0.1:{self.admin}", "--enable-fault-injection", *self.flags, *map(str, flags),
        ]

    def start(self, *flags, wait=True):
        assert self.process is None, "already running"
        self.data.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "NO_COLOR": "1", **self.extra_environment}
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(self.command(*flags), stdout=log, stderr=log, env=environment)
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
            time.sleep(0.02)
        raise RuntimeError(f"quarryd is not ready after {START_SECONDS_MAX} s:\n{self.tail()}")

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def tail(self):
        return self.log()[-4000:]

    def admin_get(self, path, method="GET"):
        request = urllib.request.Request(f"http://{self.host}:{self.admin}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def map(self):
        return json.loads(self.admin_get("/map")[1])

    def device_paths(self):
        """Device id -> path, from the map, in the order of the paths."""
        entries = [(int(device), pathlib.Path(entry["location"])) for device, entry in self.map()["devices"].items()]
        return dict(sorted(entries, key=lambda entry: entry[1]))

    def devices_in(self):
        return {int(device) for device, entry in self.map()["devices"].items() if entry["state"] == "in"}

    def open_profiles(self):
        """(k, m) of the placement groups that take new blobs."""
        cluster_map = self.map()
        return {
            (group["profile"]["data_shards"], group["profile"]["parity_shards"])
            for group in cluster_map["placement_groups"].values()
            if group["state"] == "open"
            and all(cluster_map["devices"][str(device)]["state"] == "in" for device in group["members"])
        }

    def metric(self, name, **labels):
        """Sum of a metric's series that carry these labels."""
        status, text = self.admin_get("/metrics")
        assert status == 200, (status, text)
        values = []
        for line in text.splitlines():
            match = re.fullmatch(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)", line)
            if match and match[1] == name:
                found = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
                if labels.items() <= found.items():
                    values.append(float(match[3]))
        assert values, f"no series {name} with {labels}"
        return sum(values)

    def inject(self, device, mode):
        status, body = self.admin_get(f"/debug/fault?device={device:016x}&mode={mode}", method="POST")
        assert status == 200, (status, body)

    def stop(self):
        """SIGTERM: drains and exits 0."""
        self.process.send_signal(signal.SIGTERM)
        self.wait_stopped()

    def wait_stopped(self):
        try:
            code = self.process.wait(timeout=STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"quarryd still runs {STOP_SECONDS_MAX} s after SIGTERM:\n{self.tail()}") from None
        self.process = None
        assert code == 0, f"quarryd exited with {code} on SIGTERM:\n{self.tail()}"

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process = None

    def close(self):
        """Ends the node and removes its data; a panic anywhere in its log is an error."""
        if self.process is not None:
            self.kill()
        shutil.rmtree(self.data, ignore_errors=True)
        panics = [line for line in self.log().splitlines() if "panicked" in line]
        assert not panics, "quarryd panicked:\n" + "\n".join(panics[:10])

    def credentials(self):
        if "QUARRY_ACCESS_KEY" in self.extra_environment:
            return self.extra_environment["QUARRY_ACCESS_KEY"], self.extra_environment["QUARRY_SECRET_KEY"]
        text = (self.data / "credentials").read_text()
        values = dict(line.split(" = ", 1) for line in text.splitlines() if " = " in line)
        return values["aws_access_key_id"], values["aws_secret_access_key"]

    def client(self, retries=0, **options):
        access, secret = self.credentials()
        options = {"connect_timeout": 5, "read_timeout": 60, "max_pool_connections": 64, "signature_version": "s3v4", **options}
        config = Config(
            retries={"total_max_attempts": retries + 1, "mode": "standard"}, s3={"addressing_style": "path"}, **options,
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
        run = run_quarryd("fsck", "--data", self.data, "--json", *flags, timeout=600)
        return run.returncode, json.loads(run.stdout) if run.stdout else run.stderr

    def assert_fsck_is_clean(self):
        """Every owner has its shards, every shard its owner, every block one user; all bytes match their checksums."""
        code, report = self.fsck("--verify-data")
        assert code == 0 and report["clean"], f"fsck (exit code {code}) found: {report}"
        return report

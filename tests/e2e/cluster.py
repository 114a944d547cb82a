"""A cluster of real processes: etcd, controllers, and nodes with device files; on loopback addresses, or each in a network
namespace of its own (`netns.py`)."""

import json
import os
import shutil
import subprocess
import urllib.request

from harness import BINARIES, QUARRYD, Node, eventually, free_port

ETCD = shutil.which("etcd")
CONTROLLER = BINARIES / "quarry-controller"
KEYS = {"QUARRY_ACCESS_KEY": "cluster-of-tests", "QUARRY_SECRET_KEY": "not-a-secret-not-a-secret-not-a-secret"}
# Short, so that a test sees a node's end soon; long enough for a slow machine.
LEASE_TTL_S = 8


def run_ctl(node, *words, output="table"):
    """Runs quarryctl through this node, whatever comes of it."""
    command = [BINARIES / "quarryctl", "--admin", f"http://{node.host}:{node.admin}", "--output", output,
               "--token-file", node.data / "admin-token", *words]
    environment = {name: value for name, value in os.environ.items() if name != "QUARRY_ADMIN_TOKEN"}
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60, env=environment,
                          stdin=subprocess.DEVNULL)


def ctl(node, *words, output="json"):
    """What quarryctl says, through this node."""
    done = run_ctl(node, *words, output=output)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return json.loads(done.stdout) if output == "json" else done.stdout


class Process:
    """One program that logs to a file."""

    def __init__(self, log_path, command, environment=None):
        self.log_path, self.command, self.environment = log_path, [str(word) for word in command], environment or {}
        self.process = None

    def start(self):
        assert self.process is None, "already running"
        with open(self.log_path, "ab") as log:
            environment = {**os.environ, "NO_COLOR": "1", **self.environment}
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=environment)
        return self

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""


class ClusterNode(Node):
    """A node that is told by its file which cluster to join."""

    def __init__(self, cluster, number, devices):
        super().__init__(cluster.root / f"node-{number}", environment=KEYS)
        self.number, self.peer = number, free_port()
        self.name = f"node-{number}"
        self.host, self.within = cluster.place(self.name)
        self.config_path = cluster.root / f"node-{number}.toml"
        paths = [str(cluster.root / f"device-{number}-{index}") for index in range(devices)]
        self.config_path.write_text(f"""
data = "{self.data}"
devices = {paths}
device-size = "{cluster.device_size}"
listen = "{self.host}:{self.listen}"
admin = "{self.host}:{self.admin}"
peer-listen = "{self.host}:{self.peer}"
cluster-key-file = "{cluster.key_path}"
cores = 1

[cluster]
name = "tests"
node-name = "node-{number}"
lease-ttl-s = {LEASE_TTL_S}

[cluster.etcd]
endpoints = {json.dumps(cluster.etcd_urls)}
""")

    def command(self, *flags):
        return [*self.within, str(QUARRYD), "--config", str(self.config_path), "--enable-fault-injection", *map(str, flags)]


class Cluster:
    """Everything of one cluster; `close` ends it all."""

    def __init__(self, root, nodes=3, devices=2, profile="2+1", partitions=64, device_size="256MiB", controllers=1,
                 etcds=1, etcd_root=None, network=None, rebuild_after_s=600):
        self.root, self.device_size, self.network = root, device_size, network
        self.rebuild_after_s = rebuild_after_s
        root.mkdir(parents=True, exist_ok=True)
        self.key_path = root / "cluster-key"
        self.key_path.write_text(os.urandom(32).hex() + "\n")
        self.key_path.chmod(0o600)
        self.make_etcds(etcds, etcd_root or root)
        self.controller_metrics = [f"127.0.0.1:{free_port()}" for _ in range(controllers)]
        self.controllers = [
            Process(root / f"controller-{index}.log", [*self.place(f"controller-{index}")[1], CONTROLLER, "--config",
                    self.controller_config(index, profile, partitions, nodes)])
            for index in range(controllers)
        ]
        self.nodes = [ClusterNode(self, number, devices) for number in range(1, nodes + 1)]

    def place(self, name):
        """Address of a program, and what comes before its command."""
        if self.network is None:
            return "127.0.0.1", []
        return self.network.add(name), self.network.within(name)

    def make_etcds(self, count, root):
        places = [(f"etcd-{index}", *self.place(f"etcd-{index}"), free_port(), free_port()) for index in range(count)]
        self.etcd_urls = [f"http://{host}:{client}" for _, host, _, client, _ in places]
        peers = {name: f"http://{host}:{peer}" for name, host, _, _, peer in places}
        # No fsync: what etcd wrote outlives its process, and no test cuts the power of this machine.
        self.etcds = [
            Process(self.root / f"{name}.log", [
                *within, ETCD, "--name", name, "--data-dir", root / name, "--listen-client-urls", url,
                "--advertise-client-urls", url, "--listen-peer-urls", peers[name], "--initial-advertise-peer-urls",
                peers[name], "--initial-cluster", ",".join(f"{name}={peer}" for name, peer in peers.items()),
                "--unsafe-no-fsync",
            ], {"ETCD_UNSUPPORTED_ARCH": os.uname().machine})
            for (name, _, within, _, _), url in zip(places, self.etcd_urls)
        ]
        self.etcd, self.etcd_url = self.etcds[0], self.etcd_urls[0]

    def controller_config(self, index, profile, partitions, nodes):
        path = self.root / f"controller-{index}.toml"
        path.write_text(f"""
name = "controller-{index}"
profile = "{profile}"
partitions = {partitions}
initial-nodes = {nodes}
node-grace-s = 1
rebuild-after-s = {self.rebuild_after_s}
metrics-address = "{self.controller_metrics[index]}"

[cluster]
name = "tests"
lease-ttl-s = {LEASE_TTL_S}

[cluster.etcd]
endpoints = {json.dumps(self.etcd_urls)}
""")
        return path

    def start(self):
        for etcd in self.etcds:
            etcd.start()
        eventually("etcd answers", 20, self.etcd_answers)
        for controller in self.controllers:
            controller.start()
        for node in self.nodes:
            node.start(wait=False)
        for node in self.nodes:
            node.wait_ready()
        return self

    def etcd_answers(self):
        try:
            with urllib.request.urlopen(f"{self.etcd_url}/health", timeout=2) as answer:
                return b"true" in answer.read()
        except OSError:
            return False

    def close(self):
        for node in self.nodes:
            if node.process is not None:
                node.kill()
        for process in (*self.controllers, *self.etcds):
            process.kill()
        for node in self.nodes:
            node.close()

"""Programs in network namespaces of their own, all on one bridge, so that any link between two can be cut, also one way.

Names and addresses are unique per process. What this machine has besides is not touched: the bridge is new, and `close` removes
it with everything on it.
"""

import os
import shutil
import subprocess

# Nobody's: frames to it are lost in silence.
NOBODY = "02:00:00:00:00:ff"


def missing():
    """Why there can be no network, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "the program ip (Debian: iproute2) is not installed"
    probe = f"qfp{os.getpid()}"
    made = subprocess.run(["ip", "link", "add", probe, "type", "bridge"], capture_output=True, text=True)
    if made.returncode != 0:
        return f"no bridge can be made: {made.stderr.strip()}"
    subprocess.run(["ip", "link", "del", probe], check=True)
    return None


class Network:
    """A bridge with hosts. This process is on it too, as the last address."""

    def __init__(self):
        number = os.getpid()
        self.prefix = f"qf{number}"
        used = ip("-4", "addr")
        candidates = (f"10.{128 + (number + step) % 120}.{number // 120 % 250}." for step in range(120))
        self.subnet = next(subnet for subnet in candidates if f"inet {subnet}" not in used)
        self.addresses, self.cuts = {}, set()
        ip("link", "add", self.prefix, "type", "bridge")
        ip("addr", "add", f"{self.subnet}254/24", "dev", self.prefix)
        ip("link", "set", self.prefix, "up")

    def add(self, name):
        """Makes a host; its address."""
        number = len(self.addresses) + 1
        namespace, outer = self.namespace(name), f"{self.prefix}v{number}"
        self.addresses[name] = f"{self.subnet}{number}"
        ip("netns", "add", namespace)
        ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        ip("link", "set", outer, "master", self.prefix, "up")
        ip("-n", namespace, "addr", "add", f"{self.addresses[name]}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", namespace, "link", "set", device, "up")
        return self.addresses[name]

    def namespace(self, name):
        return f"{self.prefix}-{name}"

    def within(self, name):
        """What comes before a command that runs on this host. The process is the command's own."""
        return ["ip", "netns", "exec", self.namespace(name)]

    def cut(self, sender, receiver, silent):
        """From now on nothing that `sender` sends reaches `receiver`. Its attempts to connect fail at once (a blackhole
        route) or, if silent, time out."""
        address, namespace = self.addresses[receiver], self.namespace(sender)
        if silent:
            ip("-n", namespace, "neigh", "replace", address, "lladdr", NOBODY, "dev", "eth0", "nud", "permanent")
        else:
            ip("-n", namespace, "route", "add", "blackhole", f"{address}/32")
        self.cuts.add((sender, receiver, silent))

    def heal(self):
        """Mends every cut."""
        for sender, receiver, silent in self.cuts:
            address, namespace = self.addresses[receiver], self.namespace(sender)
            if silent:
                ip("-n", namespace, "neigh", "del", address, "dev", "eth0")
            else:
                ip("-n", namespace, "route", "del", "blackhole", f"{address}/32")
        self.cuts.clear()

    def close(self):
        for name in self.addresses:
            subprocess.run(["ip", "netns", "del", self.namespace(name)], capture_output=True)
        subprocess.run(["ip", "link", "del", self.prefix], capture_output=True)


def ip(*words):
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout

"""Loop devices with direct I/O, to stand for raw block devices. Needs root."""

import os
import shutil
import subprocess

from harness import eventually

UNITS = {"MiB": 1 << 20, "GiB": 1 << 30}


class NoLoopDevices(Exception):
    """This machine offers none; the text says why."""


def losetup(*arguments):
    return subprocess.run(["losetup", *map(str, arguments)], capture_output=True, text=True, timeout=30)


def size_bytes(text):
    return int(text[:-3]) * UNITS[text[-3:]]


class LoopDevices:
    """So many loop devices over sparse files in a directory, until `detach`."""

    def __init__(self, directory, count, each_bytes):
        self.attached = []  # (loop device, backing file)
        if os.geteuid() != 0 or not shutil.which("losetup"):
            raise NoLoopDevices("not root, or no losetup")
        directory.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            path = directory / f"backing-{index}"
            with open(path, "wb") as file:
                file.truncate(each_bytes)
            made = losetup("--direct-io=on", "--show", "--find", path)
            if made.returncode != 0:
                self.detach()
                raise NoLoopDevices(made.stderr.strip())
            self.attached.append((made.stdout.strip(), path))

    def flags(self):
        return [flag for device, _ in self.attached for flag in ("--device", device)]

    def detach(self):
        for device, path in self.attached:
            eventually(f"{device} is detached", 30, lambda: losetup("--detach", device).returncode == 0)
            path.unlink()
        self.attached = []

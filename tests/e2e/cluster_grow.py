"""The long run: python cluster_grow.py NODESxPROFILE SEED [STEP...]. Prints the table of steps; fails on any wrong result."""

import os
import pathlib
import shutil
import sys
import tempfile

import netns
from cluster import ETCD
from growing import RACKS, GrowRun, every_step, table
from harness import ROOT


def main(shape, seed, words):
    problem = netns.missing() or (None if ETCD else "etcd is not installed (Debian: etcd-server)")
    if problem:
        print(f"skipped: {problem}")
        return 0
    root = pathlib.Path(os.environ.get("QUARRY_E2E_DIR", ROOT / "target" / "e2e"))
    root.mkdir(parents=True, exist_ok=True)
    nodes, profile = shape.split("x")
    # Racks of two, if that comes out even.
    racks = RACKS if int(nodes) == 2 * RACKS else 0
    options = {name.lower(): int(os.environ[name]) for name in ("RATE", "CLIENTS") if name in os.environ}
    run = GrowRun(
        tempfile.mkdtemp(prefix="grow-", dir=root), seed, nodes=int(nodes), profile=profile, racks=racks,
        device_size=os.environ.get("DEVICE_SIZE", "256MiB"), **options)
    good = False
    try:
        run.start()
        for step in every_step(run, words):
            if racks or step != run.cut_rack:
                run.step(step)
        print(f"{shape}, seed {seed}: {run.finish()}")
        good = True
    finally:
        if run.windows:
            print(table(run.report()), flush=True)
        run.close()
        if good:
            shutil.rmtree(run.root, ignore_errors=True)
        else:
            print(f"logs and history: {run.root}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))

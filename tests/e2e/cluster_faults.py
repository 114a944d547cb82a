"""The long run: python cluster_faults.py SEED SECONDS [FAULT...]. Prints the table of faults; fails on any wrong result."""

import os
import pathlib
import shutil
import sys
import tempfile
import time

import netns
from cluster import ETCD
from faults import Run, every_fault, table
from harness import ROOT

# etcd is gone for this long, if there is so much time.
ETCD_GONE_S = 600


def main(seed, seconds, words):
    problem = netns.missing() or (None if ETCD else "etcd is not installed (Debian: etcd-server)")
    if problem:
        print(f"skipped: {problem}")
        return 0
    root = pathlib.Path(os.environ.get("QUARRY_E2E_DIR", ROOT / "target" / "e2e"))
    root.mkdir(parents=True, exist_ok=True)
    run, begun = Run(tempfile.mkdtemp(prefix="faults-", dir=root), seed), time.monotonic()
    run.waits_for_places = True
    good = False
    try:
        run.start()
        etcd_gone_s = ETCD_GONE_S if words else min(ETCD_GONE_S, seconds // 3)
        for round_number in range(1000):
            plan = every_fault(run, etcd_gone_s if round_number == 0 else 30, words)
            run.random.shuffle(plan)
            for fault, hold_s in plan:
                if round_number == 0 or time.monotonic() - begun < seconds:
                    run.apply(fault, hold_s)
            if time.monotonic() - begun >= seconds:
                break
        verdict = run.finish()
        print(f"seed {seed}: {verdict}")
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
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))

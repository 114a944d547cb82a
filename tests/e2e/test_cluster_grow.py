"""A node dies for good under recorded clients and another takes its place; tests/cluster_grow.sh has everything."""

import netns
import pytest
from cluster import ETCD
from growing import GrowRun, table

pytestmark = [
    pytest.mark.skipif(ETCD is None, reason="etcd is not installed"),
    pytest.mark.skipif(netns.missing() is not None, reason=str(netns.missing())),
]


def test_a_node_dies_for_good_and_another_takes_its_place(scratch):
    run = GrowRun(scratch, seed=1, rate=40, clients=16)
    failed = True
    try:
        run.start()
        run.step(run.kill_one)
        run.step(run.add_node)
        verdict = run.finish()
        print(table(run.report()))
        died, added = run.windows
        # What lay on it, and what was written meanwhile; and of the rest of the cluster, a sixth for the new one.
        assert died["moved_mib"] <= died["least_mib"] * 1.5 + 32, died
        assert added["moved_mib"] <= added["least_mib"] * 1.5 + 32, added
        assert verdict["attempts"] > 300, verdict
        failed = False
    finally:
        if failed:
            for name, log in run.logs().items():
                print(f"--- end of {name}:\n{log[-4000:]}")
        run.close()

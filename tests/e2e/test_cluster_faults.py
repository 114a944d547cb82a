"""Some faults of a cluster in network namespaces; what clients saw must be linearizable. tests/cluster_faults.sh has them all."""

import netns
import pytest
from cluster import ETCD
from faults import Run, table

pytestmark = [
    pytest.mark.skipif(ETCD is None, reason="etcd is not installed"),
    pytest.mark.skipif(netns.missing() is not None, reason=str(netns.missing())),
]


def test_what_clients_see_of_faults_is_linearizable(scratch):
    run = Run(scratch, seed=1)
    try:
        run.start()
        run.apply(run.kill_node(), 12)
        run.apply(run.kill_etcd_leader(), 2)
        run.apply(run.cut("node-", outward=False, inward=True, silent=True), 12)
        run.apply(run.stop_node(), 12)
        verdict = run.finish()
        print(table(run.report()))
        assert verdict["attempts"] > 1000 and verdict["keys"] > 24, verdict
        failed = False
    except BaseException:
        failed = True
        raise
    finally:
        if failed:
            for name, log in run.logs().items():
                print(f"--- end of {name}:\n{log[-4000:]}")
        run.close()

"""Some faults of a cluster in network namespaces; what clients saw must be linearizable. tests/cluster_faults.sh has them all."""

import netns
import pytest
from cluster import ETCD
from faults import Run, table

# Longer than others take to lead what a node led that they miss.
CUT_S = 25

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
        run.apply(run.cut_from_peers(outward=False, inward=True, silent=True), CUT_S)
        run.apply(run.stop_node(), 12)
        verdict = run.finish()
        rows = run.report()
        print(table(rows))
        assert verdict["attempts"] > 1000 and verdict["keys"] > 24, verdict
        # It was the whole cut before others took over; a request that hangs ends after 10 s.
        gaps = [row["gap_write_one_key_s"] for row in rows if "cut from its peers" in row["fault"]]
        assert gaps and max(gaps) < CUT_S - 5, table(rows)
        failed = False
    except BaseException:
        failed = True
        raise
    finally:
        if failed:
            for name, log in run.logs().items():
                print(f"--- end of {name}:\n{log[-4000:]}")
        run.close()

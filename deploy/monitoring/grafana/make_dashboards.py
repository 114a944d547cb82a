#!/usr/bin/env python3
"""Writes the dashboards beside it: each is a list of rows, each row a list of panels (title, unit, queries).

    python3 make_dashboards.py           writes dashboards/*.json
    python3 make_dashboards.py --check   fails if a file differs

A query is PromQL, or (PromQL, legend). `$node` is the choice of nodes at the top.
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent / "dashboards"
N = 'instance=~"$node"'


def quantiles(metric, by, labels=N, legend=""):
    """p50, p99 and p99.9 of a histogram."""
    by = f"le, {by}" if by else "le"
    return [
        (f"histogram_quantile({q}, sum by ({by}) (rate({metric}_bucket{{{labels}}}[$__rate_interval])))", f"{name} {legend}".strip())
        for q, name in ((0.5, "p50"), (0.99, "p99"), (0.999, "p99.9"))
    ]


def quantile(q, metric, by, legend, labels=N):
    return [(f"histogram_quantile({q}, sum by (le, {by}) (rate({metric}_bucket{{{labels}}}[$__rate_interval])))", legend)]


def rate(metric, by, legend, labels=N):
    return [(f"sum by ({by}) (rate({metric}{{{labels}}}[$__rate_interval]))", legend)]


def total(metric, labels=N):
    return [(f"sum(rate({metric}{{{labels}}}[$__rate_interval]))", "")]


S3 = "quarry_s3_request_duration_seconds"
DEVICE = "quarry_device_operation_duration_seconds"
LOAD = "quarry_loadgen_operation_duration_seconds"
OPERATION = f'{N}, operation=~"$operation"'

DASHBOARDS = {
    "overview": ("Quarry: overview", [], [
        [
            ("Nodes up", "stat", [('sum(up{job="quarry"})', "")]),
            ("Devices out", "stat", [('max(quarry_map_devices{state="out"})', "")]),
            ("Partitions not served", "stat", [("max(quarry_map_partitions) - sum(quarry_core_partition_primaries)", "")]),
            ("Groups that lack shards", "stat", [
                ('sum(max by (missing) (quarry_map_placement_groups_by_missing_shards{missing!="0"}))', "")]),
            ("Waiting for repair", "stat", [("sum(quarry_repair_backlog_shards) + sum(quarry_blobs_by_missing_shards)", "")]),
            ("Leaders", "stat", [("sum(quarry_controller_leader)", "")]),
        ], [
            ("Requests", "reqps", rate("quarry_s3_requests_total", "operation", "{{operation}}")),
            ("Errors by status", "reqps", rate("quarry_s3_requests_total", "status", "{{status}}", f'{N}, status=~"[45]..|other"')),
        ], [
            ("Latency of all requests", "s", quantiles(S3, "")),
            ("Bytes of bodies", "Bps", rate("quarry_s3_bytes_total", "direction", "{{direction}}")),
        ], [
            ("CPU by node", "percentunit", [(f"rate(process_cpu_seconds_total{{{N}, job=\"quarry\"}}[$__rate_interval])", "{{instance}}")]),
            ("Space used", "percentunit", [
                (f"sum by (instance) (quarry_device_used_bytes{{{N}}}) / sum by (instance) (quarry_device_capacity_bytes{{{N}}})", "{{instance}}")]),
        ], [
            ("Map version", "none", [(f"quarry_map_version{{{N}}}", "{{instance}}")]),
            ("Memory", "bytes", [(f"process_resident_memory_bytes{{{N}, job=\"quarry\"}}", "{{instance}}")]),
        ],
    ]),
    "node": ("Quarry: node", ["node"], [
        [
            ("CPU by core", "percentunit", [(f"rate(quarry_core_cpu_seconds_total{{{N}}}[$__rate_interval])", "{{instance}} core {{core}}")]),
            ("Scheduling delay, p99", "s", quantile(0.99, "quarry_core_scheduling_delay_seconds", "instance, core", "{{instance}} core {{core}}")),
        ], [
            ("Queue delay, p99", "s", quantile(0.99, "quarry_core_queue_delay_seconds", "instance, queue", "{{instance}} {{queue}}")),
            ("Longest scheduling delay between scrapes", "s", [(f"quarry_core_scheduling_delay_max_seconds{{{N}}}", "{{instance}} core {{core}}")]),
        ], [
            ("Stripe buffers in use", "percentunit", [
                (f"1 - quarry_core_buffers_free{{{N}}} / quarry_core_buffers{{{N}}}", "{{instance}} core {{core}}")]),
            ("Device operations in flight", "none", [(f"quarry_core_device_operations_in_flight{{{N}}}", "{{instance}} core {{core}}")]),
        ], [
            ("Connections of clients", "none", [(f"quarry_core_connections{{{N}}}", "{{instance}} core {{core}}")]),
            ("Partitions", "none", [
                (f"sum by (instance) (quarry_core_partition_primaries{{{N}}})", "{{instance}} primaries"),
                (f"sum by (instance) (quarry_core_partition_replicas{{{N}}})", "{{instance}} replicas")]),
        ], [
            ("Uncommitted log entries", "none", [(f"quarry_partition_log_uncommitted_entries{{{N}}}", "{{instance}}")]),
            ("New epochs", "ops", [(f"rate(quarry_partition_epoch_changes_total{{{N}}}[$__rate_interval])", "{{instance}}")]),
        ], [
            ("Bytes to and from other nodes", "Bps", rate("quarry_peer_bytes_total", "instance, direction, class", "{{instance}} {{class}} {{direction}}")),
            ("Round trip to other nodes", "s", [(f"quarry_peer_round_trip_seconds{{{N}, class=\"urgent\"}}", "{{instance}} to {{peer}}")]),
        ], [
            ("Connections to other nodes that failed", "ops", rate("quarry_peer_failures_total", "instance, peer", "{{instance}} to {{peer}}")),
            ("Clock against the scraper's", "s", [(f"quarry_time_seconds{{{N}}} - timestamp(quarry_time_seconds{{{N}}})", "{{instance}}")]),
        ], [
            ("Open files", "none", [(f"process_open_fds{{{N}, job=\"quarry\"}}", "{{instance}}")]),
            ("Audit lines", "ops", rate("quarry_audit_events_total", "instance, result", "{{instance}} {{result}}")),
        ], [
            ("Certificate ends in", "s", [(f"quarry_tls_certificate_expiry_timestamp_seconds{{{N}}} - time()", "{{instance}}")]),
            ("Threads", "none", [(f"process_threads{{{N}, job=\"quarry\"}}", "{{instance}}")]),
        ],
    ]),
    "device": ("Quarry: device", ["node"], [
        [
            ("Write latency, p99", "s", quantile(0.99, DEVICE, "instance, device", "{{instance}} {{device}}", f'{N}, operation="write"')),
            ("Flush latency, p99", "s", quantile(0.99, DEVICE, "instance, device", "{{instance}} {{device}}", f'{N}, operation="flush"')),
        ], [
            ("Read latency, p99", "s", quantile(0.99, DEVICE, "instance, device", "{{instance}} {{device}}", f'{N}, operation="read"')),
            ("Operations", "iops", rate(f"{DEVICE}_count", "instance, operation", "{{instance}} {{operation}}")),
        ], [
            ("Bytes", "Bps", rate("quarry_device_bytes_total", "instance, device, operation", "{{instance}} {{device}} {{operation}}")),
            ("Errors", "ops", rate("quarry_device_errors_total", "instance, device, operation", "{{instance}} {{device}} {{operation}}")),
        ], [
            ("Free space", "percentunit", [
                (f"quarry_device_free_bytes{{{N}}} / quarry_device_capacity_bytes{{{N}}}", "{{instance}} {{device}}")]),
            ("In", "none", [(f"quarry_device_in{{{N}}}", "{{instance}} {{device}}")]),
        ], [
            ("Journal: records per flush", "none", [
                (f"sum by (instance) (rate(quarry_device_journal_records_total{{{N}}}[$__rate_interval])) / "
                 f"sum by (instance) (rate(quarry_device_journal_flushes_total{{{N}}}[$__rate_interval]))", "{{instance}}")]),
            ("Journal queue", "bytes", [(f"quarry_device_journal_queue_bytes{{{N}}}", "{{instance}} {{device}}")]),
        ], [
            ("Checkpoints", "Bps", rate("quarry_device_checkpoint_bytes_total", "instance, device", "{{instance}} {{device}}")),
            ("Quarantined", "bytes", [(f"quarry_device_quarantined_bytes{{{N}}}", "{{instance}} {{device}}")]),
        ], [
            ("Slow writes gone on without", "ops", [(f"rate(quarry_device_slow_writes_total{{{N}}}[$__rate_interval])", "{{instance}}")]),
            ("Reports of failed devices", "ops", [(f"rate(quarry_device_failures_total{{{N}}}[$__rate_interval])", "{{instance}}")]),
        ],
    ]),
    "s3": ("Quarry: S3", ["node", "operation"], [
        [
            ("Requests", "reqps", rate("quarry_s3_requests_total", "operation", "{{operation}}", OPERATION)),
            ("Share of 5xx", "percentunit", [
                (f'(sum(rate(quarry_s3_requests_total{{{OPERATION}, status=~"5.."}}[$__rate_interval])) or vector(0)) / '
                 f"sum(rate(quarry_s3_requests_total{{{OPERATION}}}[$__rate_interval]))", "5xx")]),
        ], [
            ("Latency, p50", "s", quantile(0.5, S3, "operation", "{{operation}}", OPERATION)),
            ("Latency, p99", "s", quantile(0.99, S3, "operation", "{{operation}}", OPERATION)),
        ], [
            ("Mean time by stage", "s", [
                (f"sum by (stage) (rate(quarry_s3_request_stage_duration_seconds_sum{{{OPERATION}}}[$__rate_interval])) / "
                 f"ignoring (stage) group_left sum(rate({S3}_count{{{OPERATION}}}[$__rate_interval]))", "{{stage}}")]),
            ("Stages, p99", "s", quantile(0.99, "quarry_s3_request_stage_duration_seconds", "stage", "{{stage}}", OPERATION)),
        ], [
            ("CPU seconds per second by stage", "percentunit", rate(
                "quarry_s3_request_stage_duration_seconds_sum", "stage", "{{stage}}", f'{OPERATION}, stage=~"parse|auth|checksum|encode"')),
            ("Bytes of bodies", "Bps", rate("quarry_s3_bytes_total", "operation, direction", "{{operation}} {{direction}}", OPERATION)),
        ], [
            ("Busiest buckets", "reqps", [(f"topk(10, sum by (bucket) (rate(quarry_bucket_requests_total{{{N}}}[$__rate_interval])))", "{{bucket}}")]),
            ("Buckets by bytes", "Bps", [(f"topk(10, sum by (bucket, direction) (rate(quarry_bucket_bytes_total{{{N}}}[$__rate_interval])))", "{{bucket}} {{direction}}")]),
        ], [
            ("Refused for want of rights", "reqps", rate("quarry_s3_requests_total", "operation", "{{operation}}", f'{OPERATION}, status=~"401|403"')),
            ("CPU seconds per 1,000 requests", "s", [
                (f"1000 * sum(rate(process_cpu_seconds_total{{{N}, job=\"quarry\"}}[$__rate_interval])) / sum(rate(quarry_s3_requests_total{{{N}}}[$__rate_interval]))", "")]),
        ],
    ]),
    "repair": ("Quarry: repair and placement", ["node"], [
        [
            ("Placement groups by missing shards", "none", [("max by (missing) (quarry_map_placement_groups_by_missing_shards)", "{{missing}} missing")]),
            ("Placement groups by state", "none", [("max by (state) (quarry_map_placement_groups)", "{{state}}")]),
        ], [
            ("Shards that wait for repair", "none", [(f"quarry_repair_backlog_shards{{{N}}}", "{{instance}}")]),
            ("Short blobs", "none", [(f"sum by (missing) (quarry_blobs_by_missing_shards{{{N}}})", "{{missing}} missing")]),
        ], [
            ("Repaired", "Bps", rate("quarry_repair_bytes_total", "instance", "{{instance}}")),
            ("Not repairable", "ops", rate("quarry_repair_lost_total", "instance", "{{instance}}")),
        ], [
            ("Scrub: bytes read", "Bps", rate("quarry_scrub_bytes_total", "instance", "{{instance}}")),
            ("Scrub: damage found", "ops", rate("quarry_scrub_damage_total", "instance", "{{instance}}")),
        ], [
            ("Scrub: age by device", "s", [(f"time() - quarry_scrub_finished_timestamp_seconds{{{N}}}", "{{instance}} {{device}}")]),
            ("Scrub: passes to go", "none", [(f"quarry_scrub_pass_wanted{{{N}}} - quarry_scrub_pass_finished{{{N}}}", "{{instance}}")]),
        ], [
            ("Damage met by reads", "ops", rate("quarry_object_damage_total", "instance", "{{instance}}")),
            ("Freed, collected, expired", "ops", [
                (f"sum(rate(quarry_blob_freed_total{{{N}}}[$__rate_interval]))", "freed"),
                (f"sum(rate(quarry_blob_collected_total{{{N}}}[$__rate_interval]))", "collected"),
                (f"sum(rate(quarry_object_expired_total{{{N}}}[$__rate_interval]))", "objects expired"),
                (f"sum(rate(quarry_upload_expired_total{{{N}}}[$__rate_interval]))", "uploads expired")]),
        ], [
            ("Partitions without an available primary", "none", [("max(quarry_map_partitions_headless)", "")]),
            ("Nodes by the leader", "none", [("quarry_controller_nodes", "{{state}}")]),
        ], [
            ("Plans of the leader", "ops", [("sum by (result) (rate(quarry_controller_plans_total[$__rate_interval]))", "{{result}}")]),
            ("etcd: latency, p99", "s", quantile(0.99, "quarry_controller_etcd_request_duration_seconds", "operation", "{{operation}}", 'job="quarry-controller"')),
        ], [
            ("etcd: errors", "ops", [("sum by (instance, operation) (rate(quarry_controller_etcd_errors_total[$__rate_interval]))", "{{instance}} {{operation}}")]),
            ("Reports that wait for the leader", "none", [("quarry_controller_reports_waiting", "{{instance}}")]),
        ],
    ]),
    "loadgen": ("Quarry: load generator", [], [
        [
            ("Operations", "ops", [(f"sum by (operation) (rate({LOAD}_count[$__rate_interval]))", "{{operation}}")]),
            ("Bytes of bodies", "Bps", [("sum by (operation) (rate(quarry_loadgen_bytes_total[$__rate_interval]))", "{{operation}}")]),
        ], [
            ("Latency from the intended start", "s", quantiles(LOAD, "", 'job="quarry-loadgen"')),
            ("p99 by operation", "s", quantile(0.99, LOAD, "operation", "{{operation}}", 'job="quarry-loadgen"')),
        ], [
            ("Failed attempts", "ops", [("sum by (kind) (rate(quarry_loadgen_failed_attempts_total[$__rate_interval]))", "{{kind}}")]),
            ("Failed, abandoned, repeated", "ops", [
                ("sum(rate(quarry_loadgen_failed_operations_total[$__rate_interval]))", "failed"),
                ("sum(rate(quarry_loadgen_abandoned_operations_total[$__rate_interval]))", "abandoned"),
                ("sum(rate(quarry_loadgen_retries_total[$__rate_interval]))", "repeated")]),
        ], [
            ("Operations in flight", "none", [("sum(quarry_loadgen_operations_in_flight)", "")]),
            ("Wrong contents", "none", [("sum(quarry_loadgen_wrong_contents_total)", "")]),
        ], [
            ("CPU of the load generator", "percentunit", [('sum(rate(process_cpu_seconds_total{job="quarry-loadgen"}[$__rate_interval]))', "")]),
            ("Objects prepared", "none", [("sum(quarry_loadgen_prepared_objects)", "")]),
        ],
    ]),
}

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def variable(name, query):
    return {
        "name": name, "label": name, "type": "query", "datasource": DATASOURCE, "definition": query,
        "query": {"query": query, "refId": name}, "refresh": 2, "multi": True, "includeAll": True, "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]}, "sort": 1, "hide": 0,
    }


VARIABLES = {
    "node": variable("node", 'label_values(up{job="quarry"}, instance)'),
    "operation": variable("operation", "label_values(quarry_s3_requests_total, operation)"),
}


def panel(number, title, unit, queries, place):
    stat = unit == "stat"
    targets = [
        {"refId": chr(ord("A") + index), "datasource": DATASOURCE, "expr": query, "legendFormat": legend or "__auto",
         "range": not stat, "instant": stat, "editorMode": "code"}
        for index, (query, legend) in enumerate(queries)
    ]
    custom = {} if stat else {"custom": {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 8, "showPoints": "never", "spanNulls": True}}
    defaults = {"unit": "none" if stat else unit, **custom}
    if not stat:
        defaults["min"] = 0 if unit != "s" or "against" not in title else None
    options = (
        {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "colorMode": "value", "graphMode": "area"}
        if stat else
        {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}, "tooltip": {"mode": "multi", "sort": "desc"}})
    return {
        "id": number, "type": "stat" if stat else "timeseries", "title": title, "datasource": DATASOURCE, "gridPos": place,
        "targets": targets, "fieldConfig": {"defaults": {name: value for name, value in defaults.items() if value is not None},
                                            "overrides": []}, "options": options,
    }


def dashboard(name, title, variables, rows):
    panels, y = [], 0
    for row in rows:
        height = 4 if row[0][1] == "stat" else 8
        width = 24 // len(row)
        for column, (panel_title, unit, queries) in enumerate(row):
            place = {"x": column * width, "y": y, "w": width, "h": height}
            panels.append(panel(len(panels) + 1, panel_title, unit, queries, place))
        y += height
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "refresh": 1,
              "current": {}, "hide": 0, "includeAll": False, "multi": False}
    # Every dashboard of nodes has the choice of nodes, as the overview's queries use it too.
    wanted = ["node", *(variable for variable in variables if variable != "node")] if name != "loadgen" else []
    return {
        "uid": f"quarry-{name}", "title": title, "tags": ["quarry"], "schemaVersion": 39, "version": 1, "editable": True,
        "timezone": "browser", "refresh": "10s", "time": {"from": "now-30m", "to": "now"}, "graphTooltip": 1,
        "templating": {"list": [source, *(VARIABLES[variable] for variable in wanted)]}, "annotations": {"list": []},
        "links": [{"type": "dashboards", "title": "Quarry", "tags": ["quarry"], "asDropdown": True, "keepTime": True,
                   "includeVars": True, "targetBlank": False, "icon": "external link", "tooltip": "", "url": ""}],
        "panels": panels,
    }


def main():
    check = "--check" in sys.argv[1:]
    stale = []
    for name, (title, variables, rows) in DASHBOARDS.items():
        text = json.dumps(dashboard(name, title, variables, rows), indent=1) + "\n"
        path = HERE / f"{name}.json"
        if check:
            stale += [path.name] if not path.exists() or path.read_text() != text else []
        else:
            HERE.mkdir(exist_ok=True)
            path.write_text(text)
    if stale:
        sys.exit(f"run make_dashboards.py: {', '.join(stale)}")


if __name__ == "__main__":
    main()

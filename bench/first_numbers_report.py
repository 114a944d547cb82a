"""The table of first_numbers.py as Markdown."""

GIB = 1 << 30
MIB = 1 << 20

def numbers(run):
    """What the report of quarry-loadgen says about the measured phase."""
    loadgen = run["loadgen"]
    return {
        "cpu_seconds": loadgen["server"]["cpu_seconds"],
        "bytes": loadgen["bytes"],
        "operations": loadgen["operations"],
        "seconds": loadgen["elapsed_seconds"],
        "p50_ms": loadgen["latency_ms"]["p50"],
        "p99_ms": loadgen["latency_ms"]["p99"],
        "failed": loadgen["failed_operations"],
        "client_bound": loadgen["client_saturated"],
    }


def is_large(workload):
    return workload.startswith("64 MiB")


def cost(measured, workload):
    """CPU seconds per GiB, or per 1,000 operations."""
    if is_large(workload):
        return ratio(measured["cpu_seconds"], measured["bytes"] / GIB)
    return ratio(measured["cpu_seconds"], measured["operations"] / 1000)


def rate(measured, workload):
    """MiB or operations per second."""
    amount = measured["bytes"] / MIB if is_large(workload) else measured["operations"]
    return ratio(amount, measured["seconds"])


def ratio(a, b):
    return a / b if b else float("nan")


def spread(values, digits):
    """All rounds as `best (min..max)` is for costs, where the least is the best."""
    return f"{min(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def span(values, digits=0):
    return f"{min(values):.{digits}f}..{max(values):.{digits}f}"


def markdown(measured):
    sections = [
        head(measured), servers_table(measured), fio_table(measured), bound_table(measured), semantics(measured),
    ]
    return "\n\n".join(sections) + "\n"


def head(measured):
    machine, parameters = measured["machine"], measured["parameters"]
    k, m = parameters["profile"]
    unclean = [f"{run['workload']} on {run['server']}, round {run['round']}"
               for run in measured["runs"] if run["exit_code"] != 0]
    warning = [f"**Not valid: quarry-loadgen failed in {'; '.join(unclean)}.**", ""] if unclean else []
    return "\n".join([
        "# First numbers",
        "",
        *warning,
        f"{measured['date']}, commit {measured['commit']}. Made by `sh bench/first-numbers.sh`; no target is set yet.",
        "",
        f"- Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, kernel "
        f"{machine['kernel']}, disk {machine['disk']}; load average before the start {machine['load_before']:.2f}.",
        f"- {parameters['devices']} device files of {parameters['device_size']} on that one disk, profile {k}+{m}; "
        f"{parameters['streams']} connections over loopback, {parameters['payload']} payload, closed loop, "
        f"{parameters['seconds']} s each, {parameters['rounds']} interleaved rounds.",
        "- CPU is user and system time of the whole server process. The client runs on the same cores: rates and "
        "latencies are those of both together, CPU costs are the server's own.",
        "- Best of all rounds, in brackets the least and the most; ratios compare the best.",
    ])


def servers_table(measured):
    rows = [
        "## Server CPU",
        "",
        "| workload | unit | Quarry | bare hyper floor | ratio | Quarry rate | floor rate | Quarry p50 / p99 ms | floor p50 / p99 ms | failed |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for workload in workloads(measured):
        quarry, floor = (of_server(measured, workload, server) for server in ("quarry", "floor"))
        costs = [[cost(one, workload) for one in runs] for runs in (quarry, floor)]
        unit, rate_unit = ("CPU s/GiB", "MiB/s") if is_large(workload) else ("CPU s/1,000", "/s")
        bound = " (client-bound)" if any(one["client_bound"] for one in quarry + floor) else ""
        cells = [
            workload + bound, unit, spread(costs[0], 3), spread(costs[1], 3), f"{ratio(min(costs[0]), min(costs[1])):.1f}",
            *(f"{span([rate(one, workload) for one in runs])} {rate_unit}" for runs in (quarry, floor)),
            *(latencies(runs) for runs in (quarry, floor)),
            str(sum(one["failed"] for one in quarry + floor)),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    idle = ", ".join(f"{name} {percent:.1f} %" for name, percent in measured["idle_cpu_percent"].items())
    rows += ["", f"CPU of one core while idle: {idle}."]
    return "\n".join(rows)


def latencies(runs):
    return f"{min(one['p50_ms'] for one in runs):.2f} / {min(one['p99_ms'] for one in runs):.2f}"


def fio_table(measured):
    rows = [
        "## fio on the same device files",
        "",
        "| job | CPU s/GiB | CPU s/1,000 | MiB/s | operations/s | mean latency ms | mean fdatasync ms |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for job in fio_jobs(measured):
        runs = [one for one in measured["fio"] if one["job"] == job]
        cells = [
            job,
            spread([ratio(one["cpu_seconds"], one["bytes"] / GIB) for one in runs], 3),
            spread([ratio(one["cpu_seconds"], one["operations"] / 1000) for one in runs], 4),
            span([ratio(one["bytes"] / MIB, one["seconds"]) for one in runs]),
            span([ratio(one["operations"], one["seconds"]) for one in runs]),
            f"{min(one['mean_latency_us'] for one in runs) / 1000:.2f}",
            f"{min(one['mean_flush_us'] for one in runs) / 1000:.2f}" if runs[0]["mean_flush_us"] else "",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def bound_table(measured):
    """What moving the bytes costs at least: the floor's network side, fio's device side, the ETag's MD5."""
    k, m = measured["parameters"]["profile"]
    md5 = min(measured["md5_cpu_seconds_per_gib"])
    rows = [
        "## Bounds of the 64 MiB workloads",
        "",
        f"The floor (network) plus fio (devices, a PUT writing {k + m}/{k} bytes for each of the object's and a GET "
        "reading one) plus, for a PUT, the MD5 that S3 wants as its ETag, one stream at a time by OpenSSL. Erasure "
        "coding, checksums and everything else come on top.",
        "",
        "| workload | floor | fio | MD5 | bound, CPU s/GiB | Quarry / bound | disk alone, MiB/s | Quarry rate / disk "
        "| disk bytes / object byte |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for workload, job, bytes_per_byte, counter, hashing in [
        ("64 MiB PUT", "128 KiB sequential write", (k + m) / k, "disk_write_bytes", md5),
        ("64 MiB GET", "128 KiB sequential read", 1, "disk_read_bytes", 0),
    ]:
        quarry, floor = (of_server(measured, workload, server) for server in ("quarry", "floor"))
        fio = [one for one in measured["fio"] if one["job"] == job]
        network = min(cost(one, workload) for one in floor)
        devices = bytes_per_byte * min(ratio(one["cpu_seconds"], one["bytes"] / GIB) for one in fio)
        bound = network + devices + hashing
        disk_rate = max(ratio(one["bytes"] / MIB, one["seconds"]) for one in fio) / bytes_per_byte
        cells = [
            workload, f"{network:.3f}", f"{devices:.3f}", f"{hashing:.3f}", f"{bound:.3f}",
            f"{min(cost(one, workload) for one in quarry) / bound:.1f}", f"{disk_rate:.0f}",
            f"{max(rate(one, workload) for one in quarry) / disk_rate:.2f}",
            span([ratio(one["counters"][counter], one["bytes"]) for one in quarry], 2),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def semantics(measured):
    k, m = measured["parameters"]["profile"]
    rows = [
        "## What is durable when a PUT is answered",
        "",
        f"- Quarry: after fdatasync of all {k + m} shards (on their {k + m} devices) and of {m + 1} replicas of the "
        f"metadata record; a small object's bytes ride in that record. The device files share one disk, so these "
        f"flushes queue behind each other here.",
        "- Floor: nothing. The body is dropped, no signature is checked, a GET sends zeros from one cached buffer.",
        "- fio: direct I/O, no flush, but for the line that says fdatasync.",
        "",
        "| workload | flushes per 1,000 PUT | journal records per flush | checkpoints |",
        "|---|---:|---:|---:|",
    ]
    for workload in workloads(measured):
        if not workload.endswith("PUT"):
            continue
        runs = of_server(measured, workload, "quarry")
        total = {key: sum(one["counters"].get(key, 0) for one in runs) for key in ("flushes", "records", "checkpoints")}
        operations = sum(one["operations"] for one in runs)
        rows.append(f"| {workload} | {ratio(1000 * total['flushes'], operations):.0f} | "
                    f"{ratio(total['records'], total['flushes']):.1f} | {total['checkpoints']} |")
    return "\n".join(rows)


def workloads(measured):
    return list(dict.fromkeys(run["workload"] for run in measured["runs"]))


def fio_jobs(measured):
    return list(dict.fromkeys(one["job"] for one in measured["fio"]))


def of_server(measured, workload, server):
    return [{**numbers(run), "counters": run["counters"]} for run in measured["runs"]
            if run["workload"] == workload and run["server"] == server]

"""The report of peers.py: a table of ratios as Markdown, and a plot of them as SVG. Standard library only."""

import html

from first_numbers_report import cost, numbers, rate, ratio, spread

COLOURS = ["#1b6ca8", "#e07a1f", "#4c9f70", "#8e5ea2", "#777777"]


def markdown(measured, stem):
    machine, parameters = measured["machine"], measured["parameters"]
    names = list(measured["servers"])
    lines = [
        "# Quarry beside its peers", "",
        f"{measured['date']}, commit {measured['commit']}. Made by `sh bench/peers.sh`.", "",
        f"- Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, kernel {machine['kernel']}, disk "
        f"{machine['disk']}; load average before the start {machine['load_before']:.2f}.",
        f"- {parameters['streams']} connections over loopback, {parameters['payload']} payload, closed loop, "
        f"{parameters['seconds']} s each, {parameters['rounds']} interleaved rounds; the others are stopped meanwhile. The client "
        "runs on the same cores: rates and latencies are those of both together, CPU is the server's own.",
        "- Best of all rounds, in brackets the least and the most. Ratios: CPU of the peer by CPU of Quarry (more than 1: Quarry "
        "needs less), of the best rounds.", "",
        "| server | version | durable when a PUT is answered |", "|---|---|---|",
        *(f"| {name} | {about['version']} | {about['durability']} |" for name, about in measured["servers"].items()), "",
        f"![CPU of each server]({stem}.svg)", "",
        "## Objects", "",
        "| workload | server | CPU, s/GiB or s per 1,000 operations | ratio | rate | p50 / p99 ms | peak memory MiB | failed |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for workload in dict.fromkeys(run["workload"] for run in measured["runs"]):
        own = None
        for name in names:
            runs = [run for run in measured["runs"] if run["workload"] == workload and run["server"] == name]
            measured_numbers = [numbers(run) for run in runs]
            costs = [cost(entry, workload) for entry in measured_numbers]
            own = own or min(costs)
            best = max(measured_numbers, key=lambda entry: rate(entry, workload))
            unit = "MiB/s" if workload.startswith("64 MiB") else "/s"
            memory = max(run["loadgen"]["server"].get("peak_rss_bytes", 0) for run in runs) >> 20
            lines.append(
                f"| {workload} | {name} | {spread(costs, 3)} | {ratio(min(costs), own):.1f} | {rate(best, workload):,.0f} {unit} "
                f"| {best['p50_ms']:.2f} / {best['p99_ms']:.2f} | {memory} | {sum(e['failed'] for e in measured_numbers)} |")
    if measured["listings"]:
        lines += ["", f"## Listing a bucket of {parameters['keys']:,} keys", "",
                  "One connection, one request in flight.", "",
                  "| listing | server | CPU, s per 1,000 entries | ratio | entries/s | p50 / p99 ms of a page |",
                  "|---|---|---:|---:|---:|---:|"]
    for workload in dict.fromkeys(run["workload"] for run in measured["listings"]):
        own = None
        for name in names:
            runs = [run for run in measured["listings"] if run["workload"] == workload and run["server"] == name]
            costs = [ratio(run["cpu_seconds"], run["entries"] / 1000) for run in runs]
            own = own or min(costs)
            best = max(runs, key=lambda run: run["entries"] / run["seconds"])
            lines.append(f"| {workload} | {name} | {spread(costs, 4)} | {ratio(min(costs), own):.1f} "
                         f"| {best['entries'] / best['seconds']:,.0f} | {best['p50_ms']:.2f} / {best['p99_ms']:.2f} |")
    return "\n".join(lines) + "\n"


def plot(measured):
    """Bars: CPU of each server by CPU of Quarry, one group a workload."""
    names = list(measured["servers"])
    groups = []
    for workload in dict.fromkeys(run["workload"] for run in measured["runs"]):
        best = {name: min(cost(numbers(run), workload) for run in measured["runs"]
                          if run["workload"] == workload and run["server"] == name) for name in names}
        groups.append((workload, best))
    for workload in dict.fromkeys(run["workload"] for run in measured["listings"]):
        best = {name: min(ratio(run["cpu_seconds"], run["entries"]) for run in measured["listings"]
                          if run["workload"] == workload and run["server"] == name) for name in names}
        groups.append((workload, best))
    bar, gap, left, width = 14, 16, 250, 900
    most = max([best[name] / best[names[0]] for _, best in groups for name in names if best[names[0]]] or [1])
    height = 50 + len(groups) * (len(names) * bar + gap)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
             f'font-size="12"><rect width="100%" height="100%" fill="white"/>'
             f'<text x="10" y="20" font-size="14">Server CPU by that of Quarry (less is better)</text>']
    y = 36
    for workload, best in groups:
        parts.append(f'<text x="10" y="{y + len(names) * bar / 2 + 4:.0f}">{html.escape(workload)}</text>')
        for name, colour in zip(names, COLOURS * len(names)):
            times = ratio(best[name], best[names[0]])
            length = times / most * (width - left - 120)
            parts.append(f'<rect x="{left}" y="{y}" width="{max(length, 1):.1f}" height="{bar - 2}" fill="{colour}"/>'
                         f'<text x="{left + length + 6:.1f}" y="{y + bar - 4}" font-size="11">{html.escape(name)} {times:.1f}</text>')
            y += bar
        y += gap
    return "\n".join([*parts, "</svg>"]) + "\n"

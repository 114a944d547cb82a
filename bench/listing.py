#!/usr/bin/env python3
"""Fills a bucket of any S3 server with many small objects and measures its listing, by one client on one connection.

    python3 bench/listing.py --endpoint http://127.0.0.1:9000 --credentials quarry-data/credentials --keys 1000000

Needs boto3 (for the signature only: pages are fetched over a plain connection and searched as bytes, so that the
client's XML parser is not what is measured). quarry-loadgen fills the bucket: one directory at a time, so that the keys
are DIRECTORY/obj-NUMBER. A bucket that has the keys is taken as it is with --no-fill.

Every page is checked: keys grow from page to page, and the end is reached with exactly the keys that were written.
CPU is user and system time of the server's process from /proc, memory its resident set; both only where the server
runs on this machine (by default the process that listens on the endpoint's port; of a server in several processes give
each with --server-pid).
"""

import argparse
import configparser
import datetime
import html
import http.client
import os
import pathlib
import platform
import random
import re
import subprocess
import sys
import time
import urllib.parse

import botocore.auth
import botocore.awsrequest
import botocore.credentials

ROOT = pathlib.Path(__file__).resolve().parent.parent
OBJECT_BYTES = 16
FILL_WORKERS = 64
PAGE_KEYS = 1000
# Prefixes asked for in one page of the root: several pages even of a small bucket.
ROOT_PAGE_PREFIXES = 100
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def main():
    args = parse_arguments()
    client = Client(args)
    server = Server(args.server_pid or listeners(args.endpoint))
    lines = []
    if args.fill:
        lines.append(fill(args, server))
    pages = []
    for number in range(1, args.rounds + 1):
        pages.append(flat(args, client, server, f"whole bucket, {PAGE_KEYS} keys a page, round {number}"))
    pages.append(root(args, client, server))
    pages.append(directories(args, client, server))
    text = report(args, lines, pages, server)
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        path = args.out / f"{datetime.date.today().isoformat()}-listing-{args.name.lower().replace(' ', '-')}.md"
        path.write_text(text)
        print(f"written to {path}", file=sys.stderr)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--endpoint", required=True, help="http://HOST:PORT")
    parser.add_argument("--access-key", default=os.environ.get("AWS_ACCESS_KEY_ID"))
    parser.add_argument("--secret-key", default=os.environ.get("AWS_SECRET_ACCESS_KEY"))
    parser.add_argument("--credentials", type=pathlib.Path, help="file in the format of ~/.aws/credentials")
    parser.add_argument("--region", default="us-east-1")
    parser.add_argument("--bucket", default="listing")
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--directories", type=int, help="that hold the keys in equal parts [default: one per 1,000 keys]")
    parser.add_argument("--no-fill", dest="fill", action="store_false", help="the bucket has the keys from an earlier run")
    parser.add_argument("--loadgen", type=pathlib.Path,
                        default=pathlib.Path(os.environ.get("QUARRY_BINARIES", ROOT / "target/release")) / "quarry-loadgen")
    parser.add_argument("--server-pid", type=int, action="append")
    parser.add_argument("--rounds", type=int, default=2, help="listings of the whole bucket")
    parser.add_argument("--delimiter-pages", type=int, default=500, help="of each kind, about")
    parser.add_argument("--name", default="Quarry", help="of the server, in the report")
    parser.add_argument("--out", type=pathlib.Path, help="directory for the report, such as bench/results")
    args = parser.parse_args()
    if args.credentials:
        section = configparser.ConfigParser(interpolation=None)
        section.read(args.credentials)
        args.access_key, args.secret_key = (
            section["default"][name] for name in ("aws_access_key_id", "aws_secret_access_key"))
    if not (args.access_key and args.secret_key):
        parser.error("no credentials")
    args.directories = args.directories or max(1, args.keys // 1000)
    if args.keys % args.directories:
        parser.error(f"{args.keys} keys do not divide into {args.directories} directories")
    return args


class Client:
    """One connection that asks for pages of a listing."""

    def __init__(self, args):
        self.url = f"{args.endpoint}/{args.bucket}"
        parts = urllib.parse.urlsplit(args.endpoint)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self.connection = kind(parts.netloc, timeout=120)
        credentials = botocore.credentials.Credentials(args.access_key, args.secret_key)
        self.auth = botocore.auth.S3SigV4Auth(credentials, "s3", args.region)

    def page(self, **parameters):
        """(the answer's bytes, seconds from the request sent to the last byte read); signing is not counted."""
        query = urllib.parse.urlencode(
            sorted({"list-type": "2", **{name.replace("_", "-"): value for name, value in parameters.items()}}.items()),
            quote_via=urllib.parse.quote)
        request = botocore.awsrequest.AWSRequest("GET", f"{self.url}?{query}")
        self.auth.add_auth(request)
        prepared = request.prepare()
        path = prepared.url.split("/", 3)[3]
        started = time.perf_counter()
        self.connection.request("GET", f"/{path}", headers=dict(prepared.headers.items()))
        response = self.connection.getresponse()
        body = response.read()
        seconds = time.perf_counter() - started
        if response.status != 200:
            sys.exit(f"{prepared.url}: {response.status} {body[:500].decode(errors='replace')}")
        return body, seconds


def found(tag, body):
    return [html.unescape(value.decode()) for value in re.findall(rb"<%s>([^<]*)</%s>" % (tag, tag), body)]


def prefixes_of(body):
    return [html.unescape(value.decode()) for value in
            re.findall(rb"<CommonPrefixes>\s*<Prefix>([^<]*)</Prefix>", body)]


def next_page(body):
    token = found(b"NextContinuationToken", body)
    return {"continuation_token": token[0]} if token else None


class Server:
    """CPU seconds and memory of the server's processes."""

    def __init__(self, pids):
        self.pids = pids

    def cpu(self):
        total = 0
        for pid in self.pids:
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICKS_PER_SECOND

    def memory_mib(self, field):
        text = "".join(pathlib.Path(f"/proc/{pid}/status").read_text() for pid in self.pids)
        return sum(int(value) for value in re.findall(rf"{field}:\s+(\d+) kB", text)) / 1024


def listeners(endpoint):
    """Processes of this machine that listen on the endpoint's port."""
    port = urllib.parse.urlsplit(endpoint).port
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in pathlib.Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port:
                sockets.add(f"socket:[{fields[9]}]")
    pids = set()
    for link in pathlib.Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) in sockets:
                pids.add(int(link.parts[2]))
        except OSError:
            continue
    return sorted(pids)


class Measured:
    """Requests of one kind: their latencies, what they listed, and the server's CPU meanwhile."""

    def __init__(self, what, server):
        self.what, self.server = what, server
        self.latencies, self.entries = [], 0
        self.started, self.cpu_before = time.perf_counter(), server.cpu()

    def add(self, entries, seconds):
        self.entries += entries
        self.latencies.append(seconds)

    def end(self):
        self.seconds = time.perf_counter() - self.started
        self.cpu = self.server.cpu() - self.cpu_before
        return self

    def percentile(self, share):
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000

    def row(self):
        cpu = f"{self.cpu / self.entries * 1e6:.2f} | {self.cpu / len(self.latencies) * 1e3:.2f}" if self.server.pids else "- | -"
        return (f"| {self.what} | {len(self.latencies)} | {self.entries} | {self.entries / self.seconds:,.0f} "
                f"| {self.percentile(0.5):.2f} | {self.percentile(0.99):.2f} | {self.percentile(1):.2f} | {cpu} |")


def fill(args, server):
    """One loadgen after the other, each a directory; what it reads at its end is one millisecond of GETs."""
    each = args.keys // args.directories
    started, cpu = time.monotonic(), server.cpu()
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": args.access_key, "AWS_SECRET_ACCESS_KEY": args.secret_key}
    for number in range(args.directories):
        run = subprocess.run(
            [str(args.loadgen), "mixed", "--endpoint", args.endpoint, "--region", args.region, "--bucket", args.bucket,
             "--size", str(OBJECT_BYTES), "--objects", str(each), "--concurrency", str(FILL_WORKERS), "--duration", "1ms",
             "--mix", "get=1", "--verify", "none", "--prefix", directory(number), "--retries", "5"],
            env=environment, capture_output=True, text=True)
        if run.returncode:
            sys.exit(f"quarry-loadgen ended with {run.returncode}:\n{run.stdout}\n{run.stderr}")
        if number % 50 == 49:
            print(f"{(number + 1) * each} keys after {time.monotonic() - started:.0f} s, server "
                  f"{server.memory_mib('VmRSS'):.0f} MiB", file=sys.stderr, flush=True)
    seconds = time.monotonic() - started
    return (f"Filled in {seconds:.0f} s ({args.keys / seconds:,.0f} PUT/s of {OBJECT_BYTES} bytes by {FILL_WORKERS} connections)"
            + (f", {(server.cpu() - cpu) / args.keys * 1e3:.3f} s of server CPU per 1,000 keys" if server.pids else "") + ".")


def directory(number):
    return f"dir-{number:06}/"


def flat(args, client, server, what):
    """The whole bucket, page by page to its end."""
    measured = Measured(what, server)
    more, last = {}, ""
    while more is not None:
        body, seconds = client.page(max_keys=PAGE_KEYS, **more)
        keys = found(b"Key", body)
        if any(first >= second for first, second in zip([last, *keys], keys)):
            sys.exit(f"keys do not grow after {last!r}")
        last = keys[-1] if keys else last
        measured.add(len(keys), seconds)
        more = next_page(body)
    measured.end()
    if measured.entries != args.keys:
        sys.exit(f"listed {measured.entries} keys instead of {args.keys}")
    return measured


def root(args, client, server):
    """The directories of the bucket by delimiter: each entry leaves out all keys of a directory."""
    size = min(ROOT_PAGE_PREFIXES, args.directories)
    measured = Measured(f"directories of the root by delimiter, {size} a page", server)
    while len(measured.latencies) < args.delimiter_pages:
        more, prefixes = {}, []
        while more is not None:
            body, seconds = client.page(delimiter="/", max_keys=size, **more)
            page = prefixes_of(body)
            measured.add(len(page), seconds)
            prefixes += page
            more = next_page(body)
        if prefixes != [directory(number) for number in range(args.directories)]:
            sys.exit(f"{len(prefixes)} directories instead of {args.directories}, or not in order")
    return measured.end()


def directories(args, client, server):
    """The first page of directories drawn at random."""
    size = min(PAGE_KEYS, args.keys // args.directories)
    measured = Measured(f"a directory by prefix and delimiter, {size} keys", server)
    drawn = random.Random(1)
    for _ in range(args.delimiter_pages):
        name = directory(drawn.randrange(args.directories))
        body, seconds = client.page(delimiter="/", prefix=name, max_keys=PAGE_KEYS)
        keys = found(b"Key", body)
        if len(keys) != size or not all(key.startswith(name) for key in keys):
            sys.exit(f"{name} has {len(keys)} keys instead of {size}")
        measured.add(len(keys), seconds)
    return measured.end()


def report(args, lines, pages, server):
    cpu = next((line.split(":", 1)[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine())
    memory = (f"{server.memory_mib('VmRSS'):.0f} MiB resident at the end, {server.memory_mib('VmHWM'):.0f} MiB at most since "
              "the server's start" if server.pids else "not seen: the server is elsewhere")
    return "\n".join([
        f"# Listing {args.keys:,} keys: {args.name}", "",
        f"{datetime.datetime.now().astimezone().isoformat(timespec='seconds')}, made by `python3 bench/listing.py`.", "",
        f"- Machine: {cpu}, {os.cpu_count()} cores, kernel {platform.release()}; load average at the end "
        f"{os.getloadavg()[0]:.2f}, and the client on the same cores.",
        f"- {args.keys:,} keys in {args.directories:,} directories; one client, one connection, one request in flight.",
        f"- Memory of the server: {memory}.", *(f"- {line}" for line in lines), "",
        "| listing | pages | entries | entries/s | page p50 ms | p99 | max | server CPU s per 1,000,000 entries | CPU ms per page |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        *(measured.row() for measured in pages), "",
    ])


if __name__ == "__main__":
    main()

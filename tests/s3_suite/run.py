"""Runs a third-party S3 conformance suite against a node started for it, and writes what passed, what did not, and why.

The suite is ceph/s3-tests, from a checkout that the caller gives; nothing of it is kept here. Each failure needs a
reason in reasons.toml; one without is shown as such, which is a defect until looked at.
"""

import argparse
import collections
import configparser
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
import xml.etree.ElementTree

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

from harness import BINARIES, Node  # noqa: E402 - needs the path above

ROOT_KEY, ROOT_SECRET = "conformanceroot", "conformance-root-secret"
# What every test does in its beginning, with every user.
LIST_BUCKETS = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": "s3:ListAllMyBuckets", "Resource": "*"}],
}
# Sections of the suite's configuration. To the suite they are accounts of their own; here they are users of one account,
# with no rights but to see which buckets there are.
USERS = ["s3 alt", "s3 tenant", "iam", "iam root", "iam alt root"]


def owner_id(name):
    """The id that Quarry shows as owner of what this user (or the root access key) makes."""
    return hashlib.sha256(b"quarry owner " + name.encode()).hexdigest()


def python_of_suite(suite):
    """An interpreter with what the suite needs, in .venv-conformance."""
    place = ROOT / ".venv-conformance"
    wanted = (suite / "requirements.txt").read_text() + "pytest-timeout\n"
    stamp = place / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(place, ignore_errors=True)
        venv.create(place, with_pip=True)
        listed = place / "wanted.txt"
        listed.write_text(wanted)
        subprocess.run([place / "bin" / "pip", "install", "-q", "--disable-pip-version-check", "-r", listed], check=True)
        listed.rename(stamp)
    return place / "bin" / "python"


def quarryctl(node, *arguments):
    """What a command prints, as JSON."""
    command = [str(BINARIES / "quarryctl"), "--admin", f"http://127.0.0.1:{node.admin}",
               "--token-file", str(node.data / "admin-token"), "--output", "json", *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, f"quarryctl {arguments}: {run.stdout}{run.stderr}"
    return json.loads(run.stdout)


def write_configuration(node, path):
    policy = path.with_name("list-buckets.json")
    policy.write_text(json.dumps(LIST_BUCKETS))
    quarryctl(node, "policy", "put", "list-buckets", policy)
    config = configparser.RawConfigParser()
    config["DEFAULT"] = {"host": "127.0.0.1", "port": node.listen, "is_secure": "False", "ssl_verify": "False"}
    config["fixtures"] = {"bucket prefix": "conf-{random}-"}
    config["s3 main"] = {
        "access_key": ROOT_KEY, "secret_key": ROOT_SECRET, "user_id": owner_id(ROOT_KEY), "display_name": ROOT_KEY,
        "email": "root@example.com", "api_name": "", "lc_debug_interval": "1",
    }
    for section in USERS:
        name = section.replace(" ", "-")
        access, secret = make_user(node, name, "list-buckets")
        config[section] = {"access_key": access, "secret_key": secret, "user_id": owner_id(name), "display_name": name,
                           "email": f"{name}@example.com"}
    config["s3 tenant"]["tenant"] = ""
    with open(path, "w") as file:
        config.write(file)


def make_user(node, name, policy):
    quarryctl(node, "user", "create", name)
    quarryctl(node, "policy", "attach", policy, name)
    key = quarryctl(node, "key", "create", name)
    return key["id"], key["secret"]


def run_suite(arguments, node, work):
    report = work / "report.xml"
    configuration = work / "s3tests.conf"
    write_configuration(node, configuration)
    # The suite makes its configuration from the environment; the plugin is ours.
    environment = {**os.environ, "S3TEST_CONF": str(configuration), "PYTHONPATH": f"{HERE}:{arguments.suite}"}
    command = [
        python_of_suite(arguments.suite), "-m", "pytest", "-q", "-p", "marks", "--tb=line", "--timeout=120",
        f"--junitxml={report}", "-o", "cache_dir=" + str(work / "cache"),
        *(["-k", arguments.only] if arguments.only else []),
        *[f"s3tests/functional/{name}.py" for name in ("test_s3", "test_headers", "test_iam")],
    ]
    subprocess.run(command, cwd=arguments.suite, env=environment, check=False)
    return report


Result = collections.namedtuple("Result", "name marks outcome message")


WORSE = ["passed", "skipped", "error", "failure"]


def results(report):
    """One result of each test, the worst that was seen of it: pytest reports a failed test and its clean-up apart."""
    found = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        marks = next((p.get("value") for p in case.iter("property") if p.get("name") == "marks"), "")
        seen = {kind: case.find(kind) for kind in WORSE[1:]}
        outcome = next((kind for kind in reversed(WORSE[1:]) if seen[kind] is not None), "passed")
        message = "" if outcome == "passed" else (seen[outcome].get("message") or "").split("\n")[0]
        result = Result(case.get("name"), set(marks.split()), outcome, message[:200])
        before = found.get(result.name)
        if before is None or WORSE.index(before.outcome) < WORSE.index(outcome):
            found[result.name] = result
    return list(found.values())


def reason_of(result, reasons):
    for entry in reasons:
        if set(entry.get("marks", [])) & result.marks or any(re.search(p, result.name) for p in entry.get("tests", [])):
            return entry["reason"]
    return None


def write_report(found, reasons, commit, path):
    passed = sorted(r.name for r in found if r.outcome == "passed")
    skipped = [r for r in found if r.outcome == "skipped"]
    failed = [r for r in found if r.outcome in ("failure", "error")]
    by_reason = collections.defaultdict(list)
    for result in failed:
        by_reason[reason_of(result, reasons)].append(result)
    unexplained = by_reason.pop(None, [])
    lines = [
        "# Conformance", "",
        "What `tests/conformance SUITE_DIR` found with ceph/s3-tests at commit", f"`{commit}`. This page is written by that command; the",
        "reasons are kept in `tests/s3_suite/reasons.toml`.", "",
        "| | tests |", "|---|---|", f"| passed | {len(passed)} |", f"| skipped by the suite itself | {len(skipped)} |",
        f"| failed, for a reason below | {len(failed) - len(unexplained)} |", f"| failed, not explained | {len(unexplained)} |", "",
        "## Failed, by reason", "",
    ]
    for reason, some in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        lines += [f"**{reason}** ({len(some)})", "", " ".join(f"`{r.name}`" for r in sorted(some)), ""]
    if unexplained:
        lines += ["## Failed, not explained", "", "| test | what was seen |", "|---|---|"]
        lines += [f"| `{r.name}` | {r.message.replace('|', '/')} |" for r in sorted(unexplained)] + [""]
    lines += ["## Passed", "", " ".join(f"`{name}`" for name in passed), ""]
    path.write_text("\n".join(lines))
    print(f"{len(passed)} passed, {len(skipped)} skipped, {len(failed)} failed, {len(unexplained)} of them not explained: {path}")
    return unexplained


def main():
    parser = argparse.ArgumentParser(prog="tests/conformance", description=__doc__)
    parser.add_argument("suite", type=pathlib.Path, help="a checkout of ceph/s3-tests")
    parser.add_argument("--only", help="only tests that match (pytest -k); the page is not written")
    parser.add_argument("--page", type=pathlib.Path, default=ROOT / "docs" / "conformance.md")
    arguments = parser.parse_args()
    arguments.suite = arguments.suite.resolve()
    work = pathlib.Path(tempfile.mkdtemp(dir=os.environ.get("QUARRY_E2E_DIR")))
    keys = {"QUARRY_ACCESS_KEY": ROOT_KEY, "QUARRY_SECRET_KEY": ROOT_SECRET}
    node = Node(work / "node", environment=keys)
    try:
        node.start()
        found = results(run_suite(arguments, node, work))
    finally:
        node.close()
        shutil.rmtree(work, ignore_errors=True)
    if arguments.only:
        for result in found:
            print(f"{result.outcome:8} {result.name} {result.message}")
        return 0
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=arguments.suite, capture_output=True, text=True)
    reasons = tomllib.loads((HERE / "reasons.toml").read_text())["reason"]
    write_report(found, reasons, commit.stdout.strip() or "not a git checkout", arguments.page)
    return 0


if __name__ == "__main__":
    sys.exit(main())

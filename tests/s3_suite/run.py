"""Runs a third-party S3 conformance suite against a node started for it, and writes what passed, what did not, and why.

The suite is ceph/s3-tests, from a checkout that the caller gives; nothing of it is kept here. Each failure needs a
reason in reasons.toml; one without is shown as such, and is an error. So is a pattern that explains nothing any more: it would
hide what breaks next.

Tests that wait for lifecycle rules run at the end, against a node whose days have nine seconds; the others see whole days.

With --external the same tests run against another server, which the caller started and describes in a configuration of the suite;
what passes there is counted and printed by feature, and no page is written.
"""

import argparse
import collections
import concurrent.futures
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

# The length of a day in the tests that wait for days, for how long they wait for each, and how many nodes share them. A rule of one
# day ends at the midnight after it, so up to two days later, which is just when those tests look: days are shorter by the time
# that a node may take to notice. The longest rule that must not have ended yet has five days, which are looked at after four.
DAY_SECONDS = 9
WAIT_SECONDS = 10
DAYS_JOBS = 4
ROOT_KEY, ROOT_SECRET = "conformanceroot", "conformance-root-secret"
# Sections of the suite's configuration. To the suite they are accounts of their own; here they are users of one account,
# each with the policy `tenant`: everything on buckets that the user made, nothing on those of others.
USERS = ["s3 main", "s3 alt", "s3 tenant", "iam", "iam root", "iam alt root"]


def canonical_id(user):
    """The id that Quarry shows as owner of what this user makes."""
    return hashlib.sha256(b"quarry user " + user.encode()).hexdigest()


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
    config = configparser.RawConfigParser()
    config["DEFAULT"] = {"host": "127.0.0.1", "port": node.listen, "is_secure": "False", "ssl_verify": "False"}
    config["fixtures"] = {"bucket prefix": "conf-{random}-"}
    for section in USERS:
        name = section.replace(" ", "-")
        access, secret = make_user(node, name, "tenant")
        config[section] = {"access_key": access, "secret_key": secret, "user_id": canonical_id(name), "display_name": name,
                           "email": f"{name}@example.com"}
    config["s3 main"].update({"api_name": "", "lc_debug_interval": str(WAIT_SECONDS)})
    config["s3 tenant"]["tenant"] = ""
    with open(path, "w") as file:
        config.write(file)


def make_user(node, name, policy):
    quarryctl(node, "user", "create", name)
    quarryctl(node, "policy", "attach", policy, name)
    key = quarryctl(node, "key", "create", name)
    return key["id"], key["secret"]


def run_suite(arguments, python, work, share):
    """Runs a share of the tests (see marks.py) against a node of its own; returns the results."""
    work.mkdir()
    keys = {"QUARRY_ACCESS_KEY": ROOT_KEY, "QUARRY_SECRET_KEY": ROOT_SECRET}
    # The suite expects access control lists to count in every bucket, as they did before S3 had ownership controls.
    options = ["--object-ownership", "object-writer"]
    if share.startswith("days"):
        options += ["--lifecycle-day-seconds", str(DAY_SECONDS)]
    node = Node(work / "node", *options, device_size="384MiB", environment=keys)
    try:
        node.start()
        return results(run_share(arguments, python, node, work, share))
    finally:
        node.close()


def run_share(arguments, python, node, work, share):
    configuration = work / "s3tests.conf"
    write_configuration(node, configuration)
    return run_tests(arguments, python, configuration, work, share)


def run_tests(arguments, python, configuration, work, share):
    report = work / "report.xml"
    # The suite makes its configuration from the environment; the plugin is ours.
    environment = {**os.environ, "S3TEST_CONF": str(configuration), "PYTHONPATH": f"{HERE}:{arguments.suite}",
                   "QUARRY_SHARE": share}
    command = [
        python, "-m", "pytest", "-q", "-p", "marks", "--tb=line", "--timeout=300",
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


# The first that matches a test's name or one of its marks. What is above the line is of issue 4; the rest is not built.
FEATURES = [
    ("encryption (not built)", r"sse_|_kms|encrypt|_enc\b|_enc\[|obj_s3_"),
    ("object lock (not built)", r"object_lock|retention|legal_hold"),
    ("bucket logging (not built)", r"logging"),
    ("IAM REST interface (not built)", r"iam_|user_policy|group_policy|role_policy|account_|_role|_group_|test_verify|same_account|cross_account"),
    ("classes that need a restore (not built)", r"transition|cloud|restore|storage_class"),
    ("Ceph extensions (not built)", r"append|usage|head_extended|unordered|torrent"),
    ("lifecycle", r"lifecycle"),
    ("forms (POST object)", r"post_object"),
    ("checksums", r"checksum|content_md5|bad_md5|_sha256|crc"),
    ("multipart", r"multipart|upload_part|_part"),
    ("access control lists and owners", r"_acl|acl_|access_bucket|ownership|not_owned|_anon|raw_|expected_bucket_owner|publicread"),
    ("policies and public access", r"policy|public_block|block_public|ignore_public|restrict"),
    ("tags", r"tag"),
    ("CORS", r"cors"),
    ("website", r"website"),
    ("versions", r"version"),
    ("conditions", r"ifmatch|ifnonmatch|ifmodified|ifunmodified|ifnonematch|if_match|if_none|conditional"),
    ("copies", r"copy"),
    ("listings", r"list"),
    ("signatures and headers", r"_date_|_bad_|authenticated|presigned|_aws2|_aws4|expect"),
    ("buckets", r"bucket"),
]


def feature_of(result):
    return next((name for name, words in FEATURES if re.search(words, " ".join([result.name, *result.marks]))), "objects")


def version_of(suite):
    """The commit of a checkout, or the digest of the names and contents of its files, and their number."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=suite, capture_output=True, text=True)
    if commit.returncode == 0:
        return f"at commit `{commit.stdout.strip()}`"
    digest, count = hashlib.sha256(), 0
    for path in sorted(suite.rglob("*")):
        inside = path.relative_to(suite)
        if path.is_file() and not {"__pycache__", ".pytest_cache", ".git"} & set(inside.parts):
            digest.update(f"{inside}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
            count += 1
    return f"(no git checkout: {count} files, digest `{digest.hexdigest()[:16]}`)"


def write_report(found, reasons, version, path):
    by_feature = collections.defaultdict(collections.Counter)
    for result in found:
        by_feature[feature_of(result)][result.outcome] += 1
    passed = sorted(r.name for r in found if r.outcome == "passed")
    skipped = [r for r in found if r.outcome == "skipped"]
    failed = [r for r in found if r.outcome in ("failure", "error")]
    by_reason = collections.defaultdict(list)
    for result in failed:
        by_reason[reason_of(result, reasons)].append(result)
    unexplained = by_reason.pop(None, [])
    lines = [
        "# Conformance", "",
        f"What `tests/conformance SUITE_DIR` found with ceph/s3-tests {version}. This page is written by that command; the",
        "reasons are kept in `tests/s3_suite/reasons.toml`. Tests that wait for lifecycle rules saw days of "
        f"{DAY_SECONDS} seconds.", "",
        "| | tests |", "|---|---|", f"| passed | {len(passed)} |", f"| skipped by the suite itself | {len(skipped)} |",
        f"| failed, for a reason below | {len(failed) - len(unexplained)} |", f"| failed, not explained | {len(unexplained)} |", "",
        "## By feature", "", "| feature | passed | skipped | failed |", "|---|---|---|---|",
        *[f"| {name} | {n['passed']} | {n['skipped']} | {n['failure'] + n['error']} |" for name, n in sorted(by_feature.items())], "",
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


def count_external(arguments, python, work):
    """Runs the suite against a server that is there already."""
    found = results(run_tests(arguments, python, arguments.external.resolve(), work, "all/0/1"))
    by_feature = collections.defaultdict(collections.Counter)
    for result in found:
        by_feature[feature_of(result)][result.outcome] += 1
    for name, n in sorted(by_feature.items()):
        print(f"{name}: {n['passed']} passed, {n['skipped']} skipped, {n['failure'] + n['error']} failed")
    n = sum(by_feature.values(), collections.Counter())
    print(f"{n['passed']} passed, {n['skipped']} skipped, {n['failure'] + n['error']} failed, {version_of(arguments.suite)}")


def main():
    parser = argparse.ArgumentParser(prog="tests/conformance", description=__doc__)
    parser.add_argument("suite", type=pathlib.Path, help="a checkout of ceph/s3-tests")
    parser.add_argument("--only", help="only tests that match (pytest -k); the page is not written")
    parser.add_argument("--jobs", type=int, default=1, help="nodes that share the tests")
    parser.add_argument("--page", type=pathlib.Path, default=ROOT / "docs" / "conformance.md")
    parser.add_argument("--external", type=pathlib.Path, metavar="CONFIGURATION", help="of a server that runs already, to compare")
    arguments = parser.parse_args()
    arguments.suite = arguments.suite.resolve()
    work = pathlib.Path(tempfile.mkdtemp(dir=os.environ.get("QUARRY_E2E_DIR")))
    python = python_of_suite(arguments.suite)
    try:
        if arguments.external:
            count_external(arguments, python, work)
            return 0
        with concurrent.futures.ThreadPoolExecutor(arguments.jobs + DAYS_JOBS) as pool:
            # Those that wait hardly need a processor.
            waiting, jobs = DAYS_JOBS, arguments.jobs
            shares = [f"days/{n}/{waiting}" for n in range(waiting)] + [f"rest/{n}/{jobs}" for n in range(jobs)]
            one = lambda share: run_suite(arguments, python, work / share.replace("/", "-"), share)
            found = [result for some in pool.map(one, shares) for result in some]
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if arguments.only:
        for result in found:
            print(f"{result.outcome:8} {result.name} {result.message}")
        return 0
    reasons = tomllib.loads((HERE / "reasons.toml").read_text())["reason"]
    unexplained = write_report(found, reasons, version_of(arguments.suite), arguments.page)
    failed = [result.name for result in found if result.outcome in ("failure", "error")]
    patterns = [pattern for entry in reasons for pattern in entry.get("tests", [])]
    stale = [pattern for pattern in patterns if not any(re.search(pattern, name) for name in failed)]
    for pattern in stale:
        print(f"explains nothing that fails: {pattern}", file=sys.stderr)
    return 1 if stale or unexplained else 0


if __name__ == "__main__":
    sys.exit(main())

"""Leaves out one flush, one wait for a flush, or one rule of the S3 gateway at a time; the tests of a normal run must notice.

Flushes of the store, and waits for its journal, are found by pattern, so a new one is on the list by itself. Places
further up are written down below, rules of the gateway in mutations_s3.py. The source stays as it is: a copy is changed, under
target/mutations.
"""

import fcntl
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

from mutations_s3 import RULES

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
COPY = TARGET / "mutations"
# Longest run of a package's tests; a mutation that hangs them was noticed.
TEST_SECONDS_MAX = 300

# Package, words in the names of its tests, which of its targets.
STORAGE = ("quarry-storage", "store::tests", "--lib")
OBJECT = ("quarry-object", "", "--lib")
PARTITION = ("quarry-partition", "replication", "--lib")
FLUSH_ORDER = ("quarryd", "sim::flush_order", "--bins")
CRASH = ("quarryd", "sim::crash", "--bins")

STORE = "dataplane/storage/src/store"
# What is put in place of what is left out.
UNFLUSHED = "Ok::<(), crate::device::DeviceError>(())"
UNAWAITED = ".unawaited()"
UNAWAITED_TICKET = """
impl Ticket {
    fn unawaited(self) -> Result<(), StoreError> {
        Ok(())
    }
}
"""

# Name, file, text, text in its place, and who must notice: the first that does ends the search.
WRITTEN_DOWN = [
    (
        "checkpoint waits for the re-appended entries",
        f"{STORE}/checkpoint.rs",
        "tail.await.unwrap_or(Err(StoreError::Closed))?;",
        "drop(tail);",
        [STORAGE],
    ),
    (
        "host reports a log entry durable",
        "dataplane/node/src/host/partition.rs",
        "Poll::Pending => operation.await,",
        """Poll::Pending => {
                    (host.links.spawn)(Box::pin(async move {
                        let _unawaited = operation.await;
                    }));
                    Ok(())
                }""",
        [FLUSH_ORDER, CRASH],
    ),
    (
        "host gives a receipt for a shard",
        "dataplane/node/src/host/shards.rs",
        "self.store.commit_shard(row).await.map_err(|error| self.fault(error))?;",
        """{
            let mut commit = Box::pin(self.store.commit_shard(row));
            let _unawaited = futures::poll!(commit.as_mut());
        }""",
        [FLUSH_ORDER, CRASH],
    ),
    (
        "writer waits for every receipt",
        "dataplane/object/src/writer/placed.rs",
        "let result = self.cluster.commit_shard(reserved, owner, checksums).await;",
        """let cluster = Rc::clone(&self.cluster);
            self.cluster.spawn(
                async move {
                    let _unawaited = cluster.commit_shard(reserved, owner, checksums).await;
                }
                .boxed_local(),
            );
            let result: Result<(), PeerError> = Ok(());""",
        [OBJECT, FLUSH_ORDER],
    ),
    (
        "writer waits for its data writes",
        "dataplane/object/src/writer/placed.rs",
        "let (result, _block) = placed.cluster.write_shard(&reserved, offset, block).await;",
        """let (cluster, held) = (Rc::clone(&placed.cluster), Rc::clone(&reserved));
            placed.cluster.spawn(
                async move {
                    let _unawaited = cluster.write_shard(&held, offset, block).await;
                }
                .boxed_local(),
            );
            let result: Result<(), PeerError> = Ok(());""",
        [OBJECT, FLUSH_ORDER],
    ),
    (
        "member acknowledges what it has flushed",
        "dataplane/partition/src/replication/follower.rs",
        "self.flushed.min(follower.matched)\n        };",
        "self.tail.last().min(follower.matched)\n        };",
        [PARTITION],
    ),
    (
        "primary counts what it has flushed",
        "dataplane/partition/src/replication/primary.rs",
        "{ self.tail.last() } else { self.flushed };",
        "{ self.tail.last() } else { self.tail.last() };",
        [PARTITION],
    ),
]


class Place:
    """One text to replace."""

    def __init__(self, name, file, span, put, tests, also=None):
        self.name, self.file, self.span, self.put, self.tests, self.also = name, file, span, put, tests, also

    def changed(self):
        """Files of the copy with this place left out."""
        text = (ROOT / self.file).read_text()
        files = {self.file: text[: self.span[0]] + self.put + text[self.span[1] :]}
        if self.also:
            file, more = self.also
            files[file] = files.get(file, (ROOT / file).read_text()) + more
        return files


def found():
    """Places found by pattern."""
    waits = (f"{STORE}/mod.rs", UNAWAITED_TICKET)
    patterns = [
        ("flush", re.compile(r"(?:\w+\.)*device\.flush\(\)\.await"), UNFLUSHED, None),
        ("wait for the journal", re.compile(r"\.wait\(\)\.await"), UNAWAITED, waits),
    ]
    places, known = [], 0
    for path in sorted((ROOT / "dataplane/storage/src").rglob("*.rs")):
        file = str(path.relative_to(ROOT))
        if "/tests" in file or "/device/" in file:
            continue
        text = path.read_text()
        known += len(re.findall(r"\.flush\(\)", text))
        for what, pattern, put, also in patterns:
            for match in pattern.finditer(text):
                function = re.findall(r"fn (\w+)", text[: match.start()])[-1]
                line = text.count("\n", 0, match.start()) + 1
                name = f"{what} in {function} ({file.removeprefix('dataplane/storage/src/')}:{line})"
                tests = [STORAGE] if what == "flush" else [STORAGE, FLUSH_ORDER, CRASH]
                places.append(Place(name, file, match.span(), put, tests, also))
    flushes = sum(place.put == UNFLUSHED for place in places)
    if flushes != known:
        sys.exit(f"{known} calls of flush() in the store, {flushes} fit the pattern: mend tests/mutations.py")
    return places


def written_down():
    for name, file, text, put, tests in WRITTEN_DOWN + RULES:
        whole = (ROOT / file).read_text()
        if whole.count(text) != 1:
            sys.exit(f"{name}: the text is not there once in {file}: mend tests/mutations.py")
        at = whole.index(text)
        yield Place(name, file, (at, at + len(text)), put, tests)


def copy_source():
    """Brings the copy up to date; untouched files keep their times, so that cargo builds little."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    for file in files.decode().split("\0"):
        if file and (ROOT / file).is_file():
            write(file, (ROOT / file).read_bytes())


def write(file, content):
    path = COPY / file
    if not path.exists() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def run(package, words, target, build_only=False):
    command = ["cargo", "test", "--quiet", "--locked", "-p", package, target]
    command += ["--no-run"] if build_only else [word for word in [words] if word]
    environment = {**os.environ, "CARGO_TARGET_DIR": str(TARGET), "RUST_BACKTRACE": "0"}
    return subprocess.run(
        command, cwd=COPY, env=environment, capture_output=True, text=True, timeout=None if build_only else TEST_SECONDS_MAX
    )


def who_notices(place):
    """Name of a test that fails without this place, or None."""
    for package, words, target in place.tests:
        built = run(package, words, target, build_only=True)
        if built.returncode != 0:
            sys.exit(f"{place.name}: does not build:\n{built.stderr[-3000:]}")
        try:
            ran = run(package, words, target)
        except subprocess.TimeoutExpired:
            return f"{package}: hangs"
        if ran.returncode != 0:
            failed = re.findall(r"^    ([a-z_][\w:]*)$", ran.stdout, re.MULTILINE)
            return f"{package}: {', '.join(dict.fromkeys(failed)) or 'crashes'}"
    return None


def main():
    words = sys.argv[1:]
    places = found() + list(written_down())
    if words == ["--list"]:
        print("\n".join(place.name for place in places))
        return
    places = [place for place in places if not words or any(word in place.name for word in words)]
    COPY.mkdir(parents=True, exist_ok=True)
    lock = open(COPY.with_suffix(".lock"), "w")
    fcntl.flock(lock, fcntl.LOCK_EX)  # One at a time: there is one copy.
    copy_source()
    unnoticed = []
    for place in places:
        started = time.monotonic()
        changed = place.changed()
        try:
            for file, text in changed.items():
                write(file, text.encode())
            notices = who_notices(place)
        finally:
            for file in changed:
                shutil.copyfile(ROOT / file, COPY / file)
        seconds = time.monotonic() - started
        print(f"{place.name}: {notices or 'NOBODY NOTICES'} ({seconds:.0f} s)", flush=True)
        if not notices:
            unnoticed.append(place.name)
    print(f"{len(places)} places, {len(unnoticed)} unnoticed")
    sys.exit(1 if unnoticed else 0)


if __name__ == "__main__":
    main()

"""Start, stop and refuse: configuration, formatting, locks, signals, credentials, metrics."""

import http.client
import re
import signal
import stat
import threading
import time

import pytest
from botocore.exceptions import ClientError
from harness import MIB, Node, free_port, run_quarryd
from objects import ObjectSet, content

BUCKET = "life"


def refused(run, *words):
    """It ended with an error whose text says these words, and not with a panic."""
    text = run.stdout + run.stderr
    assert run.returncode not in (0, 101) and run.returncode > 0, f"exit code {run.returncode}: {text}"
    assert "panicked" not in text, text
    missing = [word for word in words if word.lower() not in text.lower()]
    assert not missing, f"the error does not say {missing}: {text}"


def start_and_end(data, *flags):
    """A start that is expected to end by itself."""
    return run_quarryd(
        "--standalone", "--data", data, "--listen", f"127.0.0.1:{free_port()}", "--admin", f"127.0.0.1:{free_port()}",
        *flags, timeout=30)


# Configuration

def test_check_config_says_valid_and_opens_nothing(scratch):
    data = scratch / "data"
    run = run_quarryd("--standalone", "--data", data, "--check-config")
    assert run.returncode == 0, run.stderr
    assert not data.exists(), "--check-config has created something"


@pytest.mark.parametrize("flags, words", [
    (["--no-such-flag"], ["--no-such-flag"]),
    (["--profile", "4-2"], ["profile"]),
    (["--profile", "0+2"], ["profile"]),
    (["--profile", "8+3"], ["11", "6"]),
    (["--device-size", "1MiB"], ["device-size", "64MiB"]),
    (["--device-size", "4GB"], ["device-size", "4GiB"]),
    (["--cores", "0"], ["cores"]),
    (["--listen", "nowhere"], ["--listen"]),
    (["--device", "/x", "--device", "/x", "--profile", "1+0"], ["/x", "twice"]),
    (["--config", "/no/such/file.toml"], ["/no/such/file.toml"]),
], ids=lambda value: " ".join(value))
def test_check_config_refuses(scratch, flags, words):
    refused(run_quarryd("--standalone", "--data", scratch / "data", "--check-config", *flags), *words)


@pytest.mark.parametrize("text, words", [
    ("device_sice = \"1GiB\"\n", ["device_sice"]),
    ("profile = \"4+2\"\ncores = \"many\"\n", ["cores"]),
    ("profile = \"banana\"\n", ["profile"]),
    ("standalone = true\ndevice-size = \"4GB\"\n", ["4GiB"]),
    ("not toml at all", ["config.toml"]),
])
def test_configuration_file_errors_name_the_key(scratch, text, words):
    path = scratch / "config.toml"
    path.write_text(text)
    refused(run_quarryd("--standalone", "--data", scratch / "data", "--config", path, "--check-config"), *words)


def test_configuration_file_works_and_flags_win(scratch):
    path = scratch / "config.toml"
    path.write_text(f'standalone = true\ndata = "{scratch / "data"}"\nprofile = "9+9"\n')
    refused(run_quarryd("--config", path, "--check-config"), "18", "6")
    run = run_quarryd("--config", path, "--profile", "2+1", "--check-config")
    assert run.returncode == 0, run.stderr


def test_standalone_and_data_are_required(scratch):
    refused(run_quarryd("--data", scratch / "data", "--check-config"), "--standalone")
    refused(run_quarryd("--standalone", "--check-config"), "--data")


# Devices

def make_ext4(path):
    """Only what identifies ext4: its superblock's magic at byte 1080."""
    image = bytearray(64 * MIB)
    image[1024 + 56:1024 + 58] = b"\x53\xef"
    image[1024 + 96:1024 + 100] = b"\x40\x00\x00\x00"
    path.write_bytes(image)


FOREIGN = {
    "ext4": (make_ext4, ["ext2/3/4"]),
    "xfs": (lambda path: path.write_bytes(b"XFSB" + bytes(64 * MIB - 4)), ["xfs"]),
    "text": (lambda path: path.write_bytes(b"holiday photos\n" * 5_000_000), []),
    "noise": (lambda path: path.write_bytes(content("noise", 1, 64 * MIB)), []),
    "late noise": (lambda path: path.write_bytes(bytes(8 * MIB) + content("noise", 1, 56 * MIB)), []),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_device_that_holds_something_else_is_not_formatted_without_the_flag(scratch, make_node, kind):
    make, words = FOREIGN[kind]
    device = scratch / "device"
    make(device)
    before = device.read_bytes()
    flags = ["--device", device, "--profile", "1+0"]
    refused(start_and_end(scratch / "data", *flags), str(device), "--format-devices-losing-their-data", *words)
    assert device.read_bytes() == before, "the refused device was written to"
    node = make_node(*flags, "--format-devices-losing-their-data")
    node.client().create_bucket(Bucket=BUCKET)
    node.stop()
    assert device.read_bytes() != before


def test_the_format_flag_does_not_touch_devices_of_this_node(make_node):
    node = make_node(device_size="64MiB")
    client = node.client()
    client.create_bucket(Bucket=BUCKET)
    client.put_object(Bucket=BUCKET, Key="k", Body=b"kept" * 50_000)
    node.stop()
    node.start("--format-devices-losing-their-data")
    assert node.client().get_object(Bucket=BUCKET, Key="k")["Body"].read() == b"kept" * 50_000, "formatted its own data"
    node.stop()


def test_devices_of_another_cluster_are_refused(scratch, make_node):
    first = make_node(name="first", device_size="64MiB")
    first.client().create_bucket(Bucket=BUCKET)
    paths = list(first.device_paths().values())
    first.stop()
    second = make_node(name="second", device_size="64MiB")
    second.stop()
    mixed = [*second.data.glob("devices/*")]
    mixed[0] = paths[0]
    flags = [word for path in mixed for word in ("--device", path)]
    refused(start_and_end(second.data, *flags), str(paths[0]), "cluster")
    first.start()
    first.client().head_bucket(Bucket=BUCKET)
    first.stop()


def test_a_file_that_is_too_small_is_refused(scratch):
    device = scratch / "device"
    device.write_bytes(bytes(100_000))
    refused(start_and_end(scratch / "data", "--device", device, "--profile", "1+0"), str(device))


@pytest.mark.parametrize("profile, devices", [("1+0", 1), ("1+1", 2), ("2+1", 3), ("3+2", 8)])
def test_other_profiles_and_numbers_of_devices(scratch, make_node, profile, devices):
    flags = [word for index in range(devices) for word in ("--device", scratch / f"device-{index}")]
    node = make_node(*flags, "--profile", profile, device_size="256MiB")
    client = node.client()
    client.create_bucket(Bucket=BUCKET)
    objects = ObjectSet(BUCKET)
    objects.write(client, profile, small=20)
    objects.verify(client, f"profile {profile}")
    node.stop()
    node.start()
    objects.verify(node.client(), f"profile {profile} after a restart")
    node.kill()
    node.start()
    objects.verify(node.client(), f"profile {profile} after kill -9")
    node.stop()


def test_one_core_serves_all_devices(make_node):
    node = make_node("--cores", "1", device_size="256MiB")
    client = node.client()
    client.create_bucket(Bucket=BUCKET)
    objects = ObjectSet(BUCKET)
    objects.write(client, "one", small=20)
    node.stop()
    # The number of cores may change between starts.
    node.flags[node.flags.index("--cores") + 1] = "2"
    node.start()
    objects.verify(node.client(), "after a start with another number of cores")
    node.stop()


def test_a_second_node_on_the_same_data_is_refused(scratch, make_node):
    node = make_node(device_size="64MiB")
    node.client().create_bucket(Bucket=BUCKET)
    refused(start_and_end(node.data, "--device-size", "64MiB"), str(node.data), "in use")
    node.client().put_object(Bucket=BUCKET, Key="k", Body=b"1" * 100_000)
    assert len(node.devices_in()) == 6, "the refused second node has put devices out"
    node.stop()
    node.start()
    assert node.client().get_object(Bucket=BUCKET, Key="k")["Body"].read() == b"1" * 100_000
    node.stop()


def test_devices_in_use_by_another_node_are_refused(scratch, make_node):
    node = make_node(device_size="64MiB")
    flags = [word for path in node.device_paths().values() for word in ("--device", path)]
    refused(start_and_end(scratch / "other", *flags), "in use")
    assert node.admin_get("/health/ready")[0] == 200
    node.stop()


def test_an_address_in_use_is_refused_before_anything_is_served(scratch, make_node):
    node = make_node(device_size="64MiB")
    run = run_quarryd("--standalone", "--data", scratch / "other", "--device-size", "64MiB", "--listen",
                      f"127.0.0.1:{free_port()}", "--admin", f"127.0.0.1:{node.admin}", timeout=30)
    refused(run, str(node.admin))
    run = run_quarryd("--standalone", "--data", scratch / "other", "--device-size", "64MiB", "--listen",
                      f"127.0.0.1:{node.listen}", "--admin", f"127.0.0.1:{free_port()}", timeout=30)
    refused(run, str(node.listen))
    node.stop()


def test_restarts_right_after_a_stop_or_kill_find_all_devices(make_node):
    node = make_node(device_size="64MiB")
    client = node.client()
    client.create_bucket(Bucket=BUCKET)
    for round_number in range(10):
        key = f"round/{round_number}"
        client.put_object(Bucket=BUCKET, Key=key, Body=b"r" * 200_000)
        if round_number % 2:
            node.stop()
        else:
            node.kill()
        node.start()
        assert len(node.devices_in()) == 6, f"round {round_number}: devices are out after a restart: {node.map()['devices']}"
        assert client.get_object(Bucket=BUCKET, Key=key)["Body"].read() == b"r" * 200_000
    node.stop()


# Stop

@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_lets_a_transfer_finish(make_node, how):
    node = make_node(device_size="256MiB")
    client = node.client()
    client.create_bucket(Bucket=BUCKET)
    body = content("slow", 1, 24 * MIB)
    client.put_object(Bucket=BUCKET, Key="slow", Body=body)
    url = client.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": "slow"})
    put_url = client.generate_presigned_url("put_object", Params={"Bucket": BUCKET, "Key": "late"})

    down = http.client.HTTPConnection("127.0.0.1", node.listen, timeout=30)
    down.request("GET", url.split(str(node.listen), 1)[1])
    response = down.getresponse()
    received = response.read(MIB)
    up = http.client.HTTPConnection("127.0.0.1", node.listen, timeout=30)
    up.putrequest("PUT", put_url.split(str(node.listen), 1)[1])
    up.putheader("Content-Length", str(len(body)))
    up.endheaders()
    up.send(body[:MIB])
    time.sleep(0.2)

    node.process.send_signal(how)
    time.sleep(0.5)
    assert node.process.poll() is None, "the node did not wait for the transfers"
    for start in range(MIB, len(body), 4 * MIB):
        up.send(body[start:start + 4 * MIB])
        received += response.read(4 * MIB)
        time.sleep(0.05)
    received += response.read()
    answer = up.getresponse()
    assert answer.status == 200, f"PUT in progress at the signal: {answer.status} {answer.read()[:300]}"
    assert received == body, f"GET in progress at the signal: {len(received)} of {len(body)} bytes"
    up.close()
    down.close()
    node.wait_stopped()
    node.start()
    assert node.client().get_object(Bucket=BUCKET, Key="late")["Body"].read() == body
    node.stop()


def test_idle_connections_do_not_delay_the_stop(make_node):
    node = make_node(device_size="64MiB")
    clients = [node.client() for _ in range(4)]
    for client in clients:
        client.list_buckets()
    started = time.monotonic()
    node.stop()
    assert time.monotonic() - started < 5, "idle keep-alive connections held the stop up"


def test_a_client_that_hangs_does_not_hold_the_stop_up_for_ever(make_node):
    node = make_node(device_size="64MiB")
    client = node.client()
    client.create_bucket(Bucket=BUCKET)
    url = client.generate_presigned_url("put_object", Params={"Bucket": BUCKET, "Key": "never"})
    hanging = http.client.HTTPConnection("127.0.0.1", node.listen, timeout=90)
    hanging.putrequest("PUT", url.split(str(node.listen), 1)[1])
    hanging.putheader("Content-Length", str(MIB))
    hanging.endheaders()
    hanging.send(b"x" * 1000)
    time.sleep(0.2)
    node.stop()
    hanging.close()
    node.start()
    with pytest.raises(ClientError, match="404|NoSuchKey|Not Found"):
        node.client().get_object(Bucket=BUCKET, Key="never")
    node.stop()


# Credentials

def test_credentials_are_made_once_with_mode_0600(make_node):
    node = make_node(device_size="64MiB")
    path = node.data / "credentials"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = node.credentials()
    node.stop()
    assert node.credentials()[1] not in node.log(), "the secret is in the log"
    node.start()
    assert node.credentials() == first
    node.stop()
    path.chmod(0o644)
    refused(start_and_end(node.data, "--device-size", "64MiB"), "credentials", "chmod 600")


def test_credentials_from_the_environment(make_node):
    keys = {"QUARRY_ACCESS_KEY": "admin-of-tests", "QUARRY_SECRET_KEY": "a secret".replace(" ", "-") * 3}
    node = make_node(device_size="64MiB", environment=keys)
    assert not (node.data / "credentials").exists(), "credentials were generated although they are given"
    node.client().create_bucket(Bucket=BUCKET)
    assert keys["QUARRY_SECRET_KEY"] not in node.log(), "the secret is in the log"
    node.stop()


def test_half_of_the_credentials_in_the_environment_is_refused(scratch):
    run = run_quarryd("--standalone", "--data", scratch / "data", "--device-size", "64MiB", "--listen",
                      f"127.0.0.1:{free_port()}", "--admin", f"127.0.0.1:{free_port()}",
                      environment={"QUARRY_ACCESS_KEY": "only-this"}, timeout=30)
    refused(run, "QUARRY_SECRET_KEY")


# Admin address

SERIES = [
    "quarry_s3_requests_total", "quarry_s3_request_duration_seconds_bucket", "quarry_s3_bytes_total",
    "quarry_device_free_bytes", "quarry_map_devices", "quarry_map_placement_groups_open", "quarry_map_version",
    "quarry_object_damage_total", "quarry_core_scheduling_delay_max_seconds",
]
SAMPLE = re.compile(r'[a-zA-Z_:][a-zA-Z0-9_:]*(\{([a-zA-Z_]\w*="([^"\\\n]|\\.)*",?)*\})? (-?[0-9.e+-]+|[+-]Inf|NaN)( \d+)?')


def test_metrics_are_prometheus_text_and_move(make_node):
    node = make_node(device_size="64MiB")
    client = node.client()
    client.create_bucket(Bucket=BUCKET)
    client.put_object(Bucket=BUCKET, Key="k", Body=b"m" * MIB)
    client.get_object(Bucket=BUCKET, Key="k")["Body"].read()
    status, text = node.admin_get("/metrics")
    assert status == 200 and text.endswith("\n")
    typed, sampled = {}, set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in typed, f"two TYPE lines for {name}"
            assert kind in ("counter", "gauge", "histogram"), line
            typed[name] = kind
        elif not line.startswith("# HELP "):
            assert SAMPLE.fullmatch(line), f"not a Prometheus sample: {line!r}"
            name = re.match(r"[\w:]+", line)[0]
            sampled.add(name)
            family = re.sub(r"_(bucket|sum|count)$", "", name)
            assert name in typed or typed.get(family) == "histogram", f"{name} has no TYPE"
    missing = [name for name in SERIES if name not in sampled]
    assert not missing, f"series that are missing: {missing}"
    assert node.metric("quarry_s3_bytes_total", direction="in") == MIB
    assert node.metric("quarry_s3_bytes_total", direction="out") == MIB
    assert node.metric("quarry_s3_requests_total", operation="PutObject", status="200") == 1
    assert node.metric("quarry_map_devices", state="in") == 6
    before = node.metric("quarry_device_free_bytes")
    client.put_object(Bucket=BUCKET, Key="more", Body=b"m" * 8 * MIB)
    time.sleep(1.5)
    taken = before - node.metric("quarry_device_free_bytes")
    assert 12 * MIB <= taken <= 15 * MIB, f"8 MiB at 4+2 took {taken / MIB:.1f} MiB of the devices"
    node.stop()


def test_health_is_live_before_it_is_ready_and_gone_after_the_stop(make_node):
    node = make_node(device_size="64MiB")
    assert node.admin_get("/health/live")[0] == 200
    assert node.admin_get("/health/ready")[0] == 200
    assert node.admin_get("/no/such/page")[0] == 404
    node.stop()
    with pytest.raises(OSError):
        node.admin_get("/health/live")


def test_faults_cannot_be_injected_unless_allowed(scratch):
    node = Node(scratch / "data", device_size="64MiB")
    command = node.command
    node.command = lambda *flags: [word for word in command(*flags) if word != "--enable-fault-injection"]
    try:
        node.start()
        device = next(iter(node.device_paths()))
        assert node.admin_get(f"/debug/fault?device={device:016x}&mode=all", method="POST")[0] == 403
        node.stop()
    finally:
        node.close()


def test_many_threads_on_one_key_see_each_other_in_order(make_node):
    """Read-after-write on one key, from many connections on all cores."""
    node = make_node(device_size="256MiB")
    node.client().create_bucket(Bucket=BUCKET)
    newest, problems, lock, stop = [0], [], threading.Lock(), threading.Event()

    def write():
        client = node.client()
        for number in range(1, 120):
            size = [10, 50_000, 2_000_000][number % 3]
            client.put_object(Bucket=BUCKET, Key="k", Body=content("k", number, size), Metadata={"n": str(number)})
            with lock:
                newest[0] = number
        stop.set()

    def look():
        client, last = node.client(), 0
        while not stop.is_set():
            with lock:
                at_least = max(newest[0], last)
            if at_least == 0:
                continue
            answer = client.get_object(Bucket=BUCKET, Key="k")
            number, body = int(answer["Metadata"]["n"]), answer["Body"].read()
            if number < at_least:
                problems.append(f"stale: {number} read after {at_least} was acknowledged or seen")
            if body != content("k", number, [10, 50_000, 2_000_000][number % 3]):
                problems.append(f"version {number} has other bytes")
            last = number

    threads = [threading.Thread(target=write), *(threading.Thread(target=look) for _ in range(4))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert stop.is_set(), "the writer failed"
    assert not problems, problems[:5]
    node.stop()


def test_every_file_is_closed_to_others(make_node):
    """Device files hold everybody's data; the metastore holds keys."""
    node = make_node(device_size="64MiB")
    open_to_all = [
        f"{path} {stat.S_IMODE(path.stat().st_mode):o}" for path in node.data.rglob("*")
        if path.is_file() and path.name != "metastore.lock" and stat.S_IMODE(path.stat().st_mode) & 0o007
    ]
    assert not open_to_all, f"others may read {open_to_all}"
    node.stop()

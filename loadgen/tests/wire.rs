//! The binary against a server in memory: a right one must pass, and every wrong one must be found out.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod server;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use server::{ACCESS_KEY, Fault, SECRET_KEY, Server};

fn loadgen(server: &Server, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quarry-loadgen"));
    let mut words = arguments.split_whitespace();
    command.args(words.next()).args(["--json", "--endpoint", &server.endpoint()]).args(words);
    command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    command.env_remove("AWS_SESSION_TOKEN");
    command
}

fn code_and_json(output: &Output) -> (i32, Value) {
    let text = String::from_utf8_lossy(&output.stdout);
    let json = serde_json::from_str(&text)
        .unwrap_or_else(|_| panic!("no JSON: {text} {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().unwrap(), json)
}

fn run(server: &Server, arguments: &str) -> (i32, Value) {
    code_and_json(&loadgen(server, arguments).output().unwrap())
}

fn found(report: &Value) -> &str {
    report["mismatches"][0]["found"].as_str().unwrap()
}

#[test]
fn put_stores_what_get_verifies() {
    let server = Server::start(Fault::None);
    let common = "--bucket bench --prefix run/a/ --objects 12 -c 3 --duration 300ms";
    for size in ["0", "5", "100000B", "1MiB"] {
        for payload in ["unsigned", "signed"] {
            let (code, put) = run(&server, &format!("put {common} --size {size} --payload {payload}"));
            assert_eq!(code, 0, "{put}");
            assert!(put["operations"].as_u64().unwrap() > 12, "{put}");
            assert_eq!(put["loop"], "closed");
            assert_eq!(server.state().objects.len(), 12);
            let (code, get) = run(&server, &format!("get {common} --no-prepare"));
            assert_eq!((code, &get["mismatches_total"]), (0, &0.into()), "{get}");
            assert!(get["operations"].as_u64().unwrap() > 12);
            assert_eq!(get["server"]["found_by"], "listening_port");
            assert_eq!(get["server"]["pids"][0], std::process::id());
        }
    }
}

#[test]
fn every_operation_of_a_mix_is_verified_and_timed() {
    let server = Server::start(Fault::None);
    let mix = "--mix put=30,get=40,delete=25,list=5";
    let (code, report) = run(
        &server,
        &format!("mixed --bucket bench --size 4KiB --objects 40 -c 4 --duration 600ms {mix} --threads 2"),
    );
    assert_eq!((code, &report["errors_total"]), (0, &0.into()), "{report}");
    for operation in ["put", "get", "delete", "list"] {
        let timed = &report["by_operation"][operation];
        assert!(timed["operations"].as_u64().unwrap() > 5, "{operation}: {report}");
        assert!(timed["latency_ms"]["p50"].as_f64().unwrap() > 0.0);
        assert!(timed["latency_ms"]["max"].as_f64() >= timed["latency_ms"]["p999"].as_f64());
    }
    assert!(report["client_cpu_seconds"].as_f64().unwrap() > 0.0);
    assert!(report["server"]["cpu_seconds_per_1000_operations"].as_f64().unwrap() > 0.0);
}

#[test]
fn large_objects_go_up_in_parts() {
    let server = Server::start(Fault::None);
    let (code, report) = run(
        &server,
        "get --bucket bench --size 700KiB --part-size 256KiB --payload signed --objects 3 -c 2 --duration 200ms",
    );
    assert_eq!((code, &report["mismatches_total"]), (0, &0.into()), "{report}");
    assert!(server.state().objects.values().all(|body| body.len() == 700 << 10));
    assert!(server.state().uploads.is_empty());
    assert_eq!(server.state().puts, 0);
}

#[test]
fn a_refused_upload_is_taken_back() {
    let server = Server::start(Fault::RefusesSecondPart);
    let put = "put --bucket bench --size 700KiB --part-size 256KiB --objects 2 -c 1 --duration 100ms";
    let (code, report) = run(&server, put);
    assert_eq!((code, &report["operations"]), (3, &0.into()), "{report}");
    assert!(report["errors"]["HTTP 400 InvalidPart"].as_u64().unwrap() > 0, "{report}");
    assert!(server.state().uploads.is_empty() && server.state().objects.is_empty());
}

#[test]
fn every_wrong_body_is_found_out_and_named() {
    for (fault, words) in [
        (Fault::Swapped, "of key obj-0000000"),
        (Fault::Damaged, "damage: 1 wrong bytes (1 bits)"),
        (Fault::Truncated, "a truncated body"),
        (Fault::Shifted, "the right version, shifted: bytes of offset 4096"),
        (Fault::Zeroed, "zeros ("),
        (Fault::Longer, "a body that is too long"),
    ] {
        let server = Server::start(fault);
        let (code, report) =
            run(&server, "get --bucket bench --size 300000 --objects 4 -c 2 --duration 100ms");
        assert_eq!(code, 1, "{fault:?}: {report}");
        assert!(found(&report).contains(words), "{fault:?}: {}", found(&report));
        assert_eq!(report["operations"], 0, "{fault:?}: wrong reads are no operations");
        let middle = 150_003;
        let offset = report["mismatches"][0]["offset_bytes"].as_u64().unwrap();
        let right = match fault {
            Fault::Damaged | Fault::Truncated => offset == middle,
            // A generated byte may be zero by chance.
            Fault::Zeroed => (middle..middle + 4).contains(&offset),
            Fault::Longer => offset == 300_000,
            _ => offset < 4,
        };
        assert!(right, "{fault:?}: {offset}");
    }
}

#[test]
fn a_stale_version_is_named() {
    let server = Server::start(Fault::Stale);
    let (code, report) = run(
        &server,
        "mixed --bucket bench --size 10KB --objects 2 -c 2 --first-version 100 --mix put=1,get=1 --duration 200ms",
    );
    assert_eq!(code, 1);
    assert!(found(&report) == "version 100 of the same key", "{}", found(&report));
    assert!(report["mismatches"][0]["expected"].as_str().unwrap().starts_with("version 10"));
}

#[test]
fn lost_kept_and_disordered_objects_are_found_out() {
    for (fault, mix, words) in [
        (Fault::Forgets, "get=1", "no object"),
        (Fault::KeepsDeleted, "get=1,delete=1,put=1", "an object"),
        (Fault::Disordered, "list=1", "out of order"),
    ] {
        let server = Server::start(fault);
        let (code, report) = run(
            &server,
            &format!("mixed --bucket bench --size 1KiB --objects 6 -c 2 --duration 200ms --mix {mix}"),
        );
        assert_eq!(code, 1, "{fault:?}: {report}");
        assert!(found(&report).contains(words), "{fault:?}: {}", found(&report));
    }
}

#[test]
fn a_body_cut_short_is_an_error_and_not_a_success() {
    let server = Server::start(Fault::Cut);
    let (code, report) =
        run(&server, "get --bucket bench --size 300000 --objects 4 -c 2 --duration 200ms --keep-going");
    assert_eq!(code, 0, "{report}");
    assert!(report["errors"]["connection lost"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["operations"], 0);
}

#[test]
fn both_versions_are_right_after_an_unknown_outcome() {
    let server = Server::start(Fault::StoresThenFails);
    let mix =
        "mixed --bucket bench --size 9KB --objects 4 -c 2 --duration 300ms --mix put=1,get=2 --keep-going";
    let (code, report) = run(&server, &format!("{mix} --retries 3"));
    assert_eq!((code, &report["mismatches_total"]), (0, &0.into()), "{report}");
    assert!(report["errors"]["HTTP 500 InternalError"].as_u64().unwrap() > 0, "{report}");
    assert!(report["retries"].as_u64().unwrap() > 0);
    let (code, report) = run(&server, mix);
    assert_eq!((code, &report["mismatches_total"]), (0, &0.into()), "{report}");
    assert!(report["failed_operations"].as_u64().unwrap() > 0);
}

#[test]
fn retries_make_refusals_good_but_they_are_counted() {
    let server = Server::start(Fault::None);
    let put = "put --bucket bench --size 1KiB --objects 4 -c 2 --duration 300ms";
    run(&server, put);
    server.set_fault(Fault::SlowDown);
    let (code, report) = run(&server, &format!("{put} --retries 20"));
    assert_eq!((code, &report["failed_operations"]), (0, &0.into()), "{report}");
    assert!(report["errors"]["HTTP 503 SlowDown"].as_u64().unwrap() > 0, "{report}");
    let output = loadgen(&server, put).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn an_audit_passes_on_what_was_kept_and_fails_on_what_was_not() {
    let directory = tempfile::tempdir().unwrap();
    let journal = directory.path().join("journal");
    let audit = |server: &Server| {
        code_and_json(&loadgen(server, "audit -c 3 --retries 1 --journal").arg(&journal).output().unwrap())
    };
    let server = Server::start(Fault::StoresThenFails);
    let put = "mixed --mix put=3,delete=1 --bucket bench --size 5000 --objects 10 -c 3 --duration 200ms --keep-going";
    let output = loadgen(&server, put).arg("--retries=5").arg("--journal").arg(&journal).output().unwrap();
    assert_eq!(code_and_json(&output).0, 0);
    server.set_fault(Fault::None);
    let (code, report) = audit(&server);
    assert_eq!((code, &report["keys"], &report["right"]), (0, &10.into(), &10.into()), "{report}");

    let put = "put --bucket bench --size 5000 --objects 10 -c 3 --duration 100ms";
    loadgen(&server, put).arg("--journal").arg(&journal).output().unwrap();
    assert_eq!(audit(&server).0, 0);
    let kept = server.state().objects.clone();
    server.state().objects.remove("obj-00000003");
    let (code, report) = audit(&server);
    assert_eq!((code, &report["lost"]), (1, &1.into()), "{report}");
    server.state().objects = kept;
    server.set_fault(Fault::Damaged);
    let (code, report) = audit(&server);
    assert_eq!((code, &report["wrong"]), (1, &10.into()), "{report}");
}

/// The server loses its connections and its newest acknowledged writes: the audit must say so, and only then.
#[test]
fn a_run_survives_a_restart_and_the_audit_sees_a_rollback() {
    let directory = tempfile::tempdir().unwrap();
    let journal = directory.path().join("journal");
    let mut server = Server::start(Fault::None);
    let (address, state) = (server.address, server.state.clone());
    let child = loadgen(
        &server,
        "put --bucket bench --size 2KiB --objects 20 -c 4 --duration 2s --keep-going --journal",
    )
    .arg(&journal)
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let before = server.state().objects.clone();
    std::thread::sleep(Duration::from_millis(200));
    drop(server);
    std::thread::sleep(Duration::from_millis(400));
    server = Server::start_with(Fault::None, state, address);
    let (code, report) = code_and_json(&child.wait_with_output().unwrap());
    assert_eq!(code, 0, "{report}");
    assert!(report["errors"]["connect"].as_u64().unwrap() > 0, "{report}");
    assert!(report["longest_gap_seconds"].as_f64().unwrap() > 0.3, "{report}");
    let audit = || loadgen(&server, "audit --journal").arg(&journal).output().unwrap();
    assert_eq!(code_and_json(&audit()).0, 0);
    server.state().objects = before;
    let (code, report) = code_and_json(&audit());
    assert_eq!((code, &report["wrong"]), (1, &20.into()), "{report}");
    assert!(report["problems"][0]["found"].as_str().unwrap().ends_with("of the same key"), "{report}");
}

#[test]
fn without_keep_going_an_unreachable_server_ends_the_run() {
    let server = Server::start(Fault::None);
    let child = loadgen(&server, "put --bucket bench --size 2KiB --objects 20 -c 4 --duration 20s")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(400));
    drop(server);
    let (code, report) = code_and_json(&child.wait_with_output().unwrap());
    assert_eq!(code, 3);
    assert!(report["stopped_early"].as_str().is_some(), "{report}");
    assert!(report["operations"].as_u64().unwrap() > 0);
}

#[test]
fn bad_arguments_and_credentials_are_explained() {
    let server = Server::start(Fault::None);
    let stderr = |arguments: &str, code: i32| {
        let output = loadgen(&server, arguments).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments}: {text}");
        text
    };
    assert!(stderr("put --bucket bench --size 4K", 2).contains("unknown unit 'K'"));
    assert!(stderr("put --bucket Bad! --size 4KiB", 2).contains("3 to 63"));
    assert!(stderr("put --bucket bench --size 4KiB --objects 3 -c 4", 2).contains("key of its own"));
    assert!(stderr("mixed --bucket bench --no-prepare", 2).contains("--size"));
    assert!(stderr("put --bucket bench --size 4KiB --duration 5", 2).contains("needs a unit"));
    let wrong = stderr("put --bucket bench --size 1KiB --access-key a --secret-key b", 3);
    assert!(wrong.contains("cannot use bucket bench: HTTP 403"), "{wrong}");
    let missing = stderr("put --bucket bench --size 1KiB --credentials /nonexistent", 3);
    assert!(missing.contains("cannot read the credentials file"), "{missing}");
    assert!(stderr("get --bucket bench --size 1KiB --no-prepare -c 2", 3).contains("fewer than workers"));
    let journal = Path::new("/nonexistent/journal").display().to_string();
    assert!(stderr(&format!("audit --journal {journal}"), 3).contains("cannot use the journal"));
}

#[test]
fn credentials_come_from_a_file_and_the_table_is_for_people() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("credentials");
    let text = format!("[bench]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n");
    std::fs::write(&file, text).unwrap();
    let server = Server::start(Fault::None);
    let output = Command::new(env!("CARGO_BIN_EXE_quarry-loadgen"))
        .args(["put", "--bucket", "bench", "--size", "1KiB", "--duration", "100ms", "--profile", "bench"])
        .args(["--endpoint", &server.endpoint(), "--credentials"])
        .arg(&file)
        .output()
        .unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for words in ["closed loop", "p99.9", "server CPU", "found by the listening port", "wrong content  0"] {
        assert!(table.contains(words), "{words}: {table}");
    }
}

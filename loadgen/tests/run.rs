//! The command `run` against a server in memory: what is drawn, timed, verified and reported.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod server;

use std::process::{Command, Output, Stdio};

use serde_json::Value;
use server::{ACCESS_KEY, Fault, SECRET_KEY, Server};

fn loadgen(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quarry-loadgen"));
    command.args(arguments.split_whitespace());
    command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    command.env_remove("AWS_SESSION_TOKEN");
    command
}

fn run_output(server: &Server, arguments: &str) -> Output {
    let line = format!("run --json --quiet --endpoint {} --bucket bench {arguments}", server.endpoint());
    loadgen(&line).output().unwrap()
}

fn run(server: &Server, arguments: &str) -> (i32, Value) {
    let output = run_output(server, arguments);
    let text = String::from_utf8_lossy(&output.stdout);
    let json = serde_json::from_str(&text)
        .unwrap_or_else(|_| panic!("no JSON: {text} {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().unwrap(), json)
}

/// What depends on the machine's speed may fail while it is busy with something else: it has to hold once in five times.
fn patiently(test: impl Fn() + std::panic::RefUnwindSafe) {
    let held = (0..5).any(|_| std::panic::catch_unwind(&test).is_ok());
    assert!(held, "it did not hold in any of five times; why is above");
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

const ALL: &str = "put=10,get=20,range=20,head=10,delete=5,list=10,multipart=3,copy=10,conditional=12";

#[test]
fn every_operation_is_drawn_verified_and_timed() {
    let server = Server::start(Fault::None);
    let arguments = format!(
        "--mix {ALL} --size uniform:1B..20KiB --range uniform:1B..5000B --part-size 16KiB --objects 60 -c 6 \
         --new-share 0.3 --popularity zipf:0.9 --phases prepare,steady:1500ms --threads 2"
    );
    let write = "--prefix two/ --mix put=1 --size 3KiB --objects 20 --phases prepare,steady:100ms";
    assert_eq!(run(&server, write).0, 0);
    let (code, report) = run(&server, &arguments);
    assert_eq!(
        (code, &report["mismatches_total"], &report["errors_total"]),
        (0, &0.into(), &0.into()),
        "{report}"
    );
    for operation in ["put", "get", "range", "head", "delete", "list", "multipart", "copy", "conditional"] {
        let timed = &report["by_operation"][operation];
        assert!(number(&timed["operations"]) > 5.0, "{operation}: {report}");
        assert!(number(&timed["latency_ms"]["p50"]) > 0.0);
        assert!(number(&timed["latency_ms"]["max"]) >= number(&timed["latency_ms"]["p9999"]) * 0.99);
    }
    assert_eq!((&report["loop"], &report["target"]["server"]), (&"closed".into(), &"test-server".into()));
    assert!(number(&report["server"]["cpu_seconds_per_1000_operations"]) > 0.0);
    assert!(number(&report["client_cpu_us_per_operation"]) > 0.0);
    let counted: f64 =
        report["latency_us_counts"].as_array().unwrap().iter().map(|pair| number(&pair[1])).sum();
    assert_eq!(counted, number(&report["operations"]));
    // What another run finds there, it can read without having written it.
    let (code, report) = run(
        &server,
        "--prefix two/ --mix get=2,range=2,head=1,list=1 --range 100B --phases steady:300ms -c 3",
    );
    assert_eq!((code, &report["mismatches_total"]), (0, &0.into()), "{report}");
    assert!(number(&report["by_operation"]["range"]["operations"]) > 5.0, "{report}");
}

#[test]
fn every_wrong_answer_is_found_out() {
    for (fault, mix, words) in [
        (Fault::Damaged, "get=1", "damage: 1 wrong bytes"),
        (Fault::ShiftsRanges, "range=1", ""),
        (Fault::WrongSize, "head=1", "a size of 3001 bytes"),
        (Fault::ListsIncompletely, "list=1", "no obj-"),
        (Fault::Disordered, "list=1", "out of order"),
        (Fault::Unconditional, "conditional=1", "a write although it does not hold"),
        (Fault::CopiesAnother, "copy=1,get=1", "of key obj-"),
        (Fault::Forgets, "get=1", "no object"),
    ] {
        let server = Server::start(fault);
        let arguments = format!("--mix {mix} --size 3000B --objects 20 -c 2 --phases prepare,steady:300ms");
        let (code, report) = run(&server, &arguments);
        assert_eq!(code, 1, "{fault:?}: {report}");
        let found = report["mismatches"][0]["found"].as_str().unwrap();
        assert!(found.contains(words), "{fault:?}: {found}");
        if fault == Fault::ShiftsRanges {
            assert!(number(&report["mismatches_total"]) > 0.9 * server.state().requests as f64 - 60.0);
        }
    }
}

#[test]
fn writes_with_unknown_outcome_leave_both_versions_right_and_audits_pass() {
    let directory = tempfile::tempdir().unwrap();
    let journal = directory.path().join("journal");
    let server = Server::start(Fault::StoresThenFails);
    let arguments = format!(
        "--mix put=2,get=2,range=1,conditional=1,copy=1 --size 9KB --objects 10 -c 4 --retries 3 --keep-going \
         --phases prepare,steady:400ms --audit --journal {}",
        journal.display()
    );
    let (code, report) = run(&server, &arguments);
    assert_eq!((code, &report["mismatches_total"]), (0, &0.into()), "{report}");
    assert!(number(&report["errors"]["HTTP 500 InternalError"]) > 0.0, "{report}");
    let audit = &report["audit"];
    assert!(number(&audit["right"]) >= 10.0 && audit["right"] == audit["keys"], "{audit}");
    server.state().objects.remove("obj-00000003");
    let line = format!("audit --json --endpoint {} --journal {}", server.endpoint(), journal.display());
    assert_eq!(loadgen(&line).output().unwrap().status.code(), Some(1));
}

/// The reason for the open loop. The server answers nothing for one second out of four.
#[test]
fn a_stall_shows_in_the_open_loop_and_hides_in_the_closed_one() {
    patiently(|| {
        let mix = "--mix get=1 --size 100B --objects 4 --phases prepare,steady:4s";
        let server = Server::start(Fault::Stalls);
        let (code, open) = run(&server, &format!("{mix} --rate 200 -c 300"));
        assert_eq!(code, 0, "{open}");
        let server = Server::start(Fault::Stalls);
        let (code, closed) = run(&server, &format!("{mix} -c 1"));
        assert_eq!(code, 0, "{closed}");
        let ms = |report: &Value, quantile: &str| number(&report["latency_ms"][quantile]);
        // Some 200 of 800 operations fell into the stall and waited for up to a second.
        assert!((700.0..2_500.0).contains(&ms(&open, "p999")), "{open}");
        assert!(ms(&open, "p90") > 250.0, "{open}");
        // One operation of the closed loop waited; all those that it kept from being sent count as nothing.
        assert!(ms(&closed, "max") > 900.0, "{closed}");
        assert!(ms(&closed, "p99") < 200.0, "{closed}");
        assert!(ms(&open, "p99") > 4.0 * ms(&closed, "p99"));
        assert!((number(&open["operations"]) - 800.0).abs() < 150.0, "{open}");
        // The series has the second without answers.
        let quietest = |report: &Value| {
            let series = report["series"].as_array().unwrap()[..4].to_vec();
            series.iter().map(|second| number(&second["operations"])).fold(f64::INFINITY, f64::min)
        };
        assert!(quietest(&open) < 150.0, "{open}");
    });
}

/// With fewer connections than the stall needs, the wait for one is part of the latency, and is told apart.
#[test]
fn waiting_for_a_connection_counts_too() {
    patiently(|| {
        let server = Server::start(Fault::Stalls);
        let (_, report) =
            run(&server, "--mix get=1 --size 100B --objects 4 --phases prepare,steady:3s --rate 100 -c 2");
        assert!(number(&report["latency_ms"]["p90"]) > 200.0, "{report}");
        assert!(
            number(&report["service_ms"]["p90"]) < 0.5 * number(&report["latency_ms"]["p90"]),
            "{report}"
        );
        assert!(number(&report["start_delay_ms"]["p90"]) > 100.0, "{report}");
    });
}

#[test]
fn phases_follow_each_other_and_ramps_are_left_out() {
    patiently(|| {
        let server = Server::start(Fault::None);
        let phases = "prepare,ramp:1s,steady:1s,burst:1s:x3";
        let arguments =
            format!("--mix head=1 --size 10B --objects 5 --arrivals constant --rate 100 --phases {phases}");
        let (code, report) = run(&server, &arguments);
        assert_eq!(code, 0, "{report}");
        let operations: Vec<f64> =
            report["phases"].as_array().unwrap().iter().map(|phase| number(&phase["operations"])).collect();
        assert_eq!(operations, [50.0, 100.0, 300.0]);
        assert_eq!(number(&report["operations"]), 400.0);
        let ramp = number(&report["elapsed_seconds"]) - number(&report["measured_seconds"]);
        assert!((ramp - 1.0).abs() < 1e-6, "all but the ramp is measured: {report}");
        let (_, report) =
            run(&server, "--mix head=1 --size 10B --objects 5 -c 2 --think 50ms --phases prepare,steady:1s");
        assert!(
            (1.0..=42.0).contains(&number(&report["operations"])),
            "2 workers, at most 20 times a second and once more: {report}"
        );
    });
}

#[test]
fn the_same_seed_asks_for_the_same_things() {
    patiently(|| {
        let requests = |seed: u32| {
            let server = Server::start(Fault::None);
            let arguments = format!(
                "--preset pastebin --objects 20 --arrivals constant --rate 200 -c 1 --phases prepare,steady:500ms \
                 --seed {seed}"
            );
            assert_eq!(run(&server, &arguments).0, 0);
            std::mem::take(&mut server.state().log)
        };
        let first = requests(7);
        assert!(first.len() > 100);
        assert_eq!(first, requests(7));
        assert_ne!(first, requests(8));
    });
}

#[test]
fn the_knee_is_where_the_server_gives_up() {
    patiently(|| {
        let server = Server::start(Fault::None);
        server.state().buckets.push("bench".to_owned());
        server.set_fault(Fault::SlowDown);
        let arguments = "--mix get=1 --size 10B --objects 4 --retries 9 --phases prepare,steady:200ms --find-knee \
                         --knee-step 300ms --knee-p99 30ms --rate 200";
        // Every second request is refused and retried after 50 ms: no rate holds.
        let output = run_output(&server, arguments);
        assert_eq!(output.status.code(), Some(3));
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains("no rate holds the limits"), "{told}");
        let server = Server::start(Fault::None);
        let arguments =
            arguments.replace("--knee-p99 30ms", "--knee-p99 200ms").replace("--rate 200", "--rate 400");
        let (code, report) = run(&server, &format!("{arguments} --keep-going -c 4"));
        assert_eq!(code, 0, "{report}");
        let knee = &report["knee"];
        assert!(number(&knee["rate"]) >= 400.0, "{knee}");
        let steps = knee["steps"].as_array().unwrap();
        assert!(steps.iter().any(|step| step["broke"].is_string()), "{knee}");
        assert_eq!((&report["loop"], &report["offered_per_second"]), (&"open".into(), &knee["rate"]));
    });
}

#[test]
fn a_file_is_a_workload_and_problems_are_explained() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("workload.toml");
    std::fs::write(
        &file,
        "mix = \"put=1,get=3\"\nsize = \"2KiB\"\nobjects = 9\nphases = \"prepare,steady:200ms\"\n",
    )
    .unwrap();
    let server = Server::start(Fault::None);
    let (code, report) = run(&server, &format!("--workload {} --size 1KiB", file.display()));
    assert_eq!(
        (code, &report["workload"]["size"], &report["workload"]["objects"]),
        (0, &"1KiB".into(), &9.into())
    );
    std::fs::write(&file, "mixture = \"put=1\"\n").unwrap();
    let problem = |arguments: &str| {
        let output = run_output(&server, arguments);
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(problem(&format!("--workload {}", file.display())).contains("is not a workload"));
    assert!(problem("--mix put=1,post=1").contains("unknown operation 'post'"));
    assert!(problem("--size 1K").contains("unknown unit"));
    assert!(problem("--rate 5 --think 1s").contains("closed loop"));
    assert!(problem("--phases steady:1s --prefix none/").contains("no objects under prefix"));
    assert!(problem("--speed 1000").contains("0.1 to 100"));
}

#[test]
fn results_become_tables_files_pages_and_comparisons() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let server = Server::start(Fault::None);
    let limits =
        format!("limits --json --dir {} --size 16MiB --duration 50ms --out {}", path(""), path("limits"));
    assert!(loadgen(&limits).output().unwrap().status.success());
    let arguments = format!(
        "--preset website --objects 20 --phases prepare,steady:600ms --limits {} --out {} --csv {} --csv-operations {} \
         --html {}",
        path("limits"),
        path("a.json"),
        path("s.csv"),
        path("o.csv"),
        path("r.html")
    );
    let (code, report) = run(&server, &arguments);
    assert_eq!(code, 0, "{report}");
    assert!(number(&report["bound"]["share"]) > 0.0 && report["bound"]["limiter"].is_string(), "{report}");
    let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&read("a.json")).unwrap(), report);
    let (series, operations) = (read("s.csv"), read("o.csv"));
    assert!(series.lines().count() >= 2 && series.starts_with("second,operations,bytes,errors,"));
    assert!(operations.contains("\noperation,get,") && operations.contains("\nall,all,"), "{operations}");
    let columns = |line: &str| line.split(',').count();
    assert!(operations.lines().all(|line| columns(line) == 12), "{operations}");
    let page = read("r.html");
    for words in
        ["<svg", "p99.9", "prefers-color-scheme:dark", "limiter", "Throughput by second", "histogram:2KiB"]
    {
        assert!(page.contains(words), "{words}");
    }
    for foreign in ["http://www", "https://", "<script", "src=", "NaN", "inf,"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    let again =
        loadgen(&format!("report {} --html {}", path("a.json"), path("again.html"))).output().unwrap();
    assert!(again.status.success() && read("again.html") == page);
    let table = String::from_utf8(again.stdout).unwrap();
    for words in
        ["website get=90", "test-server", "p99.99", "% of the bound that applies", "TLS none", "durability"]
    {
        assert!(table.contains(words), "{words}: {table}");
    }
    let more = format!(
        "--preset website --objects 20 --size 1KiB --phases prepare,steady:300ms --out {}",
        path("b.json")
    );
    run(&server, &more);
    let compared = |json: &str| {
        loadgen(&format!("compare {} {} {json}", path("a.json"), path("b.json"))).output().unwrap().stdout
    };
    let table = String::from_utf8(compared("")).unwrap();
    assert!(table.contains("NOTE: the settings differ") && table.contains("size: histogram"), "{table}");
    assert!(table.contains("all ops/s") && table.contains("get p99 ms"), "{table}");
    let json: Value = serde_json::from_slice(&compared("--json")).unwrap();
    let row = &json["rows"][0];
    assert!((number(&row["ratio"]) - number(&row["other"]) / number(&row["base"])).abs() < 1e-9);
}

const LOG: &str = "\
o logs [06/Feb/2026:00:00:00 +0000] 192.0.2.3 r 1 REST.GET.OBJECT a/b \"GET /logs/a/b HTTP/1.1\" 200 - 5000 5000 7 1 \"-\" \"x\" -
o logs [06/Feb/2026:00:00:10 +0000] 192.0.2.3 r 2 REST.GET.OBJECT a/b \"GET /logs/a/b HTTP/1.1\" 206 - 100 5000 7 1 \"-\" \"x\" -
o logs [06/Feb/2026:00:00:20 +0000] 192.0.2.3 r 3 REST.PUT.OBJECT c \"PUT /logs/c HTTP/1.1\" 200 - - 777 7 1 \"-\" \"x\" -
o logs [06/Feb/2026:00:00:30 +0000] 192.0.2.3 r 4 REST.HEAD.OBJECT c \"HEAD /logs/c HTTP/1.1\" 200 - - 777 7 1 \"-\" \"x\" -
o logs [06/Feb/2026:00:00:40 +0000] 192.0.2.3 r 5 REST.DELETE.OBJECT c \"DELETE /logs/c HTTP/1.1\" 204 - - - 7 1 \"-\" \"x\" -
";

#[test]
fn a_recorded_log_is_replayed_at_another_speed() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(path("log"), LOG).unwrap();
    let told =
        loadgen(&format!("record --log {} --out {}", path("log"), path("trace"))).output().unwrap().stdout;
    assert!(String::from_utf8(told).unwrap().starts_with("5 operations in 40 s on 2 objects"));
    let server = Server::start(Fault::None);
    let begun = std::time::Instant::now();
    let (code, report) = run(&server, &format!("--replay {} --speed 40", path("trace")));
    assert_eq!((code, &report["loop"], &report["operations"]), (0, &"replay".into(), &5.into()), "{report}");
    assert!((0.95..20.0).contains(&begun.elapsed().as_secs_f64()), "40 s at 40 times the speed");
    let asked: Vec<String> = server.state().log.iter().rev().take(5).rev().cloned().collect();
    let (a, c) = ("/bench/obj-00000000", "/bench/obj-00000001");
    let wanted = [("GET", a, 0), ("GET", a, 0), ("PUT", c, 777), ("HEAD", c, 0), ("DELETE", c, 0)];
    assert_eq!(asked, wanted.map(|(method, key, bytes)| format!("{method} {key} {bytes}")));
    assert_eq!((server.state().objects.len(), &report["by_operation"]["range"]["bytes"]), (1, &100.into()));
}

/// Two agents: disjoint objects, half of the rate each, counts that add up; and no run without the token.
#[test]
fn agents_do_their_parts_and_the_sum_is_one_result() {
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "a secret of enough letters\n").unwrap();
    let free_port = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let agents = [free_port(), free_port()];
    let mut children = agents.map(|address| {
        let line = format!("agent --listen {address} --token-file {}", token.display());
        loadgen(&line).stderr(Stdio::null()).spawn().unwrap()
    });
    for address in agents {
        while std::net::TcpStream::connect(address).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
    let server = Server::start(Fault::None);
    let line = format!(
        "coordinate --json --quiet --agents {},{} --endpoint {} --bucket bench --mix put=1,get=3 --size 1KiB --objects 20 \
         --rate 100 --arrivals constant --phases prepare,steady:1s",
        agents[0],
        agents[1],
        server.endpoint()
    );
    let refused = loadgen(&line).output().unwrap();
    let with_token = loadgen(&line).arg("--token-file").arg(&token).output().unwrap();
    for child in &mut children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(String::from_utf8_lossy(&refused.stderr).contains("the token is wrong"));
    let problem = String::from_utf8_lossy(&with_token.stderr).into_owned();
    let report: Value = serde_json::from_slice(&with_token.stdout).unwrap_or_else(|_| panic!("{problem}"));
    assert_eq!((&report["clients"], &report["mismatches_total"]), (&2.into(), &0.into()), "{report}");
    assert_eq!((&report["operations"], &report["phases"][0]["operations"]), (&100.into(), &100.into()));
    let counted: f64 =
        report["latency_us_counts"].as_array().unwrap().iter().map(|pair| number(&pair[1])).sum();
    assert_eq!(counted, 100.0);
    let keys: Vec<String> = server.state().objects.keys().cloned().collect();
    let of = |client: &str| keys.iter().filter(|key| key.starts_with(client)).count();
    assert_eq!((of("client-0/"), of("client-1/"), keys.len()), (10, 10, 20), "{keys:?}");
}

#[test]
fn without_a_terminal_there_is_a_line_each_second() {
    patiently(|| {
        let server = Server::start(Fault::None);
        let line = format!(
            "run --endpoint {} --bucket bench --mix get=1 --size 1KiB --objects 5 --phases prepare,steady:2500ms",
            server.endpoint()
        );
        let output = loadgen(&line).output().unwrap();
        let progress = String::from_utf8(output.stderr).unwrap();
        let lines: Vec<&str> = progress.lines().filter(|line| line.contains("ops/s")).collect();
        assert!((1..=3).contains(&lines.len()), "{progress}");
        assert!(!progress.contains('\u{1b}') && lines[0].contains("steady"), "{progress}");
    });
}

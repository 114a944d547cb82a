//! Planted violations are found, and their honest counterparts pass.

use super::History;

/// One line: (client, call), kind with its values, when, how it ended.
fn line(key: &str, kind: &str, rest: &str, start: u64, end: u64, outcome: &str) -> String {
    format!(
        r#"{{"client":{start},"call":{end},"attempt":1,"node":0,"key":"{key}","kind":"{kind}"{rest},"intended":{start},"start":{start},"end":{end},"outcome":"{outcome}"}}"#
    ) + "\n"
}

fn put(value: u64, start: u64, outcome: &str) -> String {
    line("k", "put", &format!(r#","value":{value}"#), start, start + 10, outcome)
}

fn get(value: u64, start: u64) -> String {
    line("k", "get", &format!(r#","read":{value}"#), start, start + 10, "ok")
}

fn absent(kind: &str, start: u64) -> String {
    line("k", kind, r#","read":null"#, start, start + 10, "ok")
}

fn violations(lines: &[String]) -> usize {
    let text = format!("{{\"origin_unix_us\":1}}\n{}", lines.concat());
    let verdict = History::parse(&text).unwrap().judge();
    for violation in &verdict.violations {
        let _ = format!("{violation}");
    }
    assert_eq!(verdict.records, lines.len());
    verdict.violations.len()
}

#[test]
fn a_stale_read() {
    let history = [put(1, 0, "ok"), put(2, 20, "ok")];
    assert_eq!(violations(&[&history[..], &[get(2, 40)]].concat()), 0);
    assert_eq!(violations(&[&history[..], &[get(1, 40)]].concat()), 1);
    assert_eq!(violations(&[&history[..], &[get(1, 25)]].concat()), 0, "concurrent");
    let listed = line("k", "list", r#","read":1"#, 40, 50, "ok");
    assert_eq!(violations(&[&history[..], &[listed]].concat()), 1);
}

#[test]
fn a_lost_write() {
    for read in ["get", "head", "list"] {
        assert_eq!(violations(&[put(1, 0, "ok"), absent(read, 20)]), 1, "{read}");
        assert_eq!(violations(&[put(1, 0, "unknown"), absent(read, 20), get(1, 500)]), 0, "{read}");
    }
}

#[test]
fn a_delete_that_is_undone() {
    let deleted = line("k", "delete", "", 20, 30, "ok");
    assert_eq!(violations(&[put(1, 0, "ok"), deleted.clone(), absent("get", 40)]), 0);
    assert_eq!(violations(&[put(1, 0, "ok"), deleted.clone(), get(1, 40)]), 1);
    // Only a write whose outcome nobody knows may come back.
    assert_eq!(violations(&[put(1, 0, "unknown"), deleted, absent("get", 40), get(1, 60)]), 0);
}

#[test]
fn a_torn_value() {
    let torn = line("k", "get", r#","wrong":"half of another""#, 20, 30, "ok");
    assert_eq!(violations(&[put(1, 0, "ok"), torn]), 1);
}

#[test]
fn what_failed_for_sure_had_no_effect() {
    assert_eq!(violations(&[put(1, 0, "failed"), absent("get", 20)]), 0);
    assert_eq!(violations(&[put(1, 0, "failed"), get(1, 20)]), 1);
}

#[test]
fn two_creators() {
    let create = |value: u64, outcome| {
        line("k", "create", &format!(r#","value":{value}"#), value, value + 10, outcome)
    };
    assert_eq!(violations(&[create(1, "ok"), create(2, "refused"), get(1, 40)]), 0);
    assert_eq!(violations(&[create(1, "ok"), create(2, "ok")]), 1);
    let replace = |value: u64, old: u64| {
        let values = format!(r#","value":{value},"replaces":{old}"#);
        line("k", "replace", &values, 40 + value, 50 + value, "ok")
    };
    assert_eq!(violations(&[create(1, "ok"), replace(3, 1), replace(40, 3)]), 0);
    assert_eq!(violations(&[create(1, "ok"), replace(3, 1), replace(40, 1)]), 1);
}

#[test]
fn keys_are_judged_apart_and_a_cut_line_is_left_out() {
    let other = line("other", "get", r#","read":null"#, 40, 50, "ok");
    assert_eq!(violations(&[put(1, 0, "ok"), other.clone()]), 0);
    let text = put(1, 0, "ok") + &other[..20];
    let verdict = History::parse(&text).unwrap().judge();
    assert_eq!((verdict.records, verdict.keys), (1, 1));
    assert!(History::parse("nonsense\n").is_err());
    assert!(History::parse(&line("k", "put", "", 0, 1, "ok")).is_err(), "a write without value");
}

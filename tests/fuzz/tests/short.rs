//! A short campaign of every target with a fixed seed: part of every test run. `sh tests/fuzz.sh` runs longer ones.

use std::time::Duration;

use quarry_fuzz::{Problem, TARGETS, campaign};

const SEED: u64 = 1;
/// Whichever ends first; a slow machine tries fewer inputs.
const TIME: Duration = Duration::from_secs(2);
const INPUTS_MAX: u64 = 10_000;

fn short(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of that name");
    match campaign(target, SEED, TIME, INPUTS_MAX) {
        Ok(done) => assert!(done.accepted_damaged > 0, "no damage got past the checksums: {done:?}"),
        Err(failure) => {
            let shown = &failure.input[..failure.input.len().min(4096)];
            let input: String = shown.iter().map(|byte| format!("{byte:02x}")).collect();
            let hint = if failure.problem == Problem::Panic { " (its message is above)" } else { "" };
            panic!(
                "{:?}{hint}; replay with `quarry-fuzz --replay {name} {SEED}:{}`; input: {input}",
                failure.problem, failure.number
            );
        }
    }
}

macro_rules! short {
    ($($test:ident $name:literal;)+) => {
        $(#[test]
        fn $test() {
            short($name);
        })+

        #[test]
        fn every_target_is_here() {
            let here = [$($name),+];
            assert!(TARGETS.iter().all(|target| here.contains(&target.name)));
        }
    };
}

short! {
    superblock "superblock";
    batch "journal-batch";
    record "journal-record";
    index_row "index-row";
    free_map "free-map";
    tree "index-tree";
    device "device";
    payload "log-payload";
    envelope "log-envelope";
    message "command-message";
    partition_row "partition-row";
    peer "peer";
    metastore_file "metastore-file";
    metastore_json "metastore-json";
    policy_json "policy-json";
    html_form "html-form";
}

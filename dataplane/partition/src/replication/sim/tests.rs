use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Outcome, run};
use crate::replication::defects::Defects;

const SEEDS_DEFAULT: u64 = 300;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// `QUARRY_SIM_SEEDS=N` runs seeds 0..N, `QUARRY_SIM_SEED=x` runs one.
#[test]
fn seeds_hold() {
    let seeds = match variable("QUARRY_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..variable("QUARRY_SIM_SEEDS").unwrap_or(SEEDS_DEFAULT),
    };
    let many = seeds.end - seeds.start >= SEEDS_DEFAULT;
    let mut total = Outcome::default();
    for seed in seeds {
        let outcome = match catch_unwind(AssertUnwindSafe(|| run(seed, Defects::default()))) {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(violation)) => panic!("seed {seed}: {violation}"),
            Err(_) => panic!("seed {seed}: an assertion failed"),
        };
        total.acknowledged += outcome.acknowledged;
        total.committed += outcome.committed;
        total.epochs += outcome.epochs;
        total.crashes += outcome.crashes;
        total.promoted += outcome.promoted;
    }
    println!("{total:?}");
    if many {
        assert!(total.acknowledged > 10_000 && total.crashes > 500 && total.promoted > 100, "{total:?}");
    }
}

#[test]
fn runs_repeat() {
    assert_eq!(run(3, Defects::default()), run(3, Defects::default()));
}

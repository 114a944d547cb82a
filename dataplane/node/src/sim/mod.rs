//! The data path of a node on simulated devices: real stores, replicas, controller, object layer and jobs, in one
//! thread, in virtual time. What is simulated is the [`Platform`](crate::platform::Platform): devices that lose what
//! was not flushed, a transport that delays, timers that fire when nothing else can run.
//!
//! A run follows from its seed: a failure prints it, and `QUARRY_SIM_SEED=<seed>` runs that one alone;
//! `QUARRY_SIM_SEEDS=<count>` runs more of them, and then every crash point instead of a sample.

mod clients;
mod crash;
mod devices;
mod executor;
mod expiry;
mod flush_order;
mod history;
mod isolation;
mod life;
mod loss;
mod machine;
mod network;
mod nodes;
mod observed;
mod repair;
pub(crate) mod stopped;
mod tiers;
mod transport;
mod verify;
mod versions;
mod world;

/// Seeds of a normal run of a test, or those that the environment asks for.
fn seeds(normal: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    match (number("QUARRY_SIM_SEED"), number("QUARRY_SIM_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(count)) => 0..count,
        (None, None) => 0..normal,
    }
}

/// Whether more than the normal run was asked for.
fn is_long_run() -> bool {
    std::env::var_os("QUARRY_SIM_SEEDS").is_some()
}

/// Says what was being done when a test fails.
struct Doing(String);

impl Drop for Doing {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed while: {}", self.0);
        }
    }
}

/// Random numbers that follow from a seed.
struct Random(std::cell::Cell<u64>);

impl Random {
    fn new(seed: u64) -> Self {
        Self(std::cell::Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1))
    }

    fn next(&self) -> u64 {
        let mut x = self.0.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    fn below(&self, bound: u64) -> u64 {
        self.next() % bound
    }
}

//! A seeded simulation of one partition: devices that crash and tear unflushed journals, a network that loses,
//! duplicates, reorders, delays and cuts one way or both, clocks of different rates, nodes that stop for seconds, a
//! control plane that evicts, adds, promotes, renews and hands over, is away at times and does not reach everybody,
//! and clients whose histories must be linearizable per key.
//!
//! After the faults everything is healed, and the partition must become available and equal everywhere.

mod checker;
mod clients;
mod control;
mod faults;
mod host;
mod journal;
mod random;
mod tests;
mod world;

use world::{Outcome, run, run_unwatched};

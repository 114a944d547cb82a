//! A seeded simulation of one partition: devices that crash and tear unflushed journals, a network that loses,
//! duplicates, reorders and delays, a control plane that evicts, adds, promotes and renews, clients that propose.
//!
//! After the faults everything is healed, and the partition must become available and equal everywhere.

mod checker;
mod control;
mod journal;
mod random;
mod tests;
mod world;

use world::{Outcome, run};

//! Background jobs of one core over the partitions whose primaries it holds. Each is one file with one loop; all
//! of them are idempotent and start over after a restart.

pub(crate) mod collector;
pub(crate) mod expiry;
pub(crate) mod freer;
pub(crate) mod leftovers;
pub(crate) mod mover;
pub(crate) mod repair;
pub(crate) mod room;
pub(crate) mod scrub;
pub(crate) mod strays;
pub(crate) mod tables;
pub(crate) mod tiers;
pub(crate) mod why;

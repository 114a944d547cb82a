//! An object across devices: stripes, shards, quorums, degraded reads, repair.

pub mod api;
pub mod checksum;
pub mod cluster;
mod latency;
pub mod lifecycle;
pub mod metadata;
pub mod objects;
pub mod peer;
pub mod reader;
pub mod repair;
pub mod stripe;
#[cfg(test)]
mod test_cluster;
pub mod tier;
pub mod transport;
pub mod writer;

pub use latency::ReadLatency;

//! An object across devices: stripes, shards, quorums, degraded reads.

pub mod api;

//! What the measurements share.
//!
//! The numbers themselves come from three places: `hyper_floor` (a bare server to compare the node with),
//! `first-numbers.sh` (end to end, beside fio), and the criterion benches (one mechanism at a time).

pub mod stream;

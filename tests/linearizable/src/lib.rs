//! A judge of histories: [`check`] says whether what clients saw of one key is possible if every operation took effect at
//! one instant between its call and its return; [`history`] reads what `quarry-loadgen history` recorded and judges
//! every key of it. The simulator of partitions uses the first, the tests with real processes the second, by the
//! program `quarry-linearizable FILE`.

pub mod history;
mod search;

pub use search::{Action, Operation, Told, Value, check};

//! Object metadata of one partition: a replicated log and its state machine, no I/O inside.

mod blob;
pub mod command;
mod row;

pub use blob::BlobRef;
pub use row::Row;

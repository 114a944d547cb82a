//! Object metadata of one partition: a replicated log and its state machine, no I/O inside.

mod blob;

pub use blob::BlobRef;

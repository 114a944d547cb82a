//! Object metadata of one partition: a replicated log and its state machine, no I/O inside.

mod blob;
pub mod command;
mod log;
pub mod replication;
mod row;

pub use blob::BlobRef;
pub use log::{
    Entry, FRAME_HEADER_BYTES, FrameError, PAYLOAD_BYTES_MAX, PAYLOAD_ROWS_MAX, Payload, ROW_KEY_BYTES_MAX,
    RecoveredLog,
};
pub use replication::{Envelope, Input, Message, Output, Refusal, Replica, Report};
pub use row::Row;

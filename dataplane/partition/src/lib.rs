//! Object metadata of one partition: a replicated log and its state machine, no I/O inside.

mod blob;
mod log;
pub mod replication;

pub use blob::BlobRef;
pub use log::{
    Entry, FRAME_HEADER_BYTES, FrameError, PAYLOAD_BYTES_MAX, PAYLOAD_ROWS_MAX, Payload, ROW_KEY_BYTES_MAX,
    RecoveredLog, Row,
};
pub use replication::{Envelope, Input, Message, Output, Refusal, Replica, Report};

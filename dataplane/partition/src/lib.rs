//! Object metadata of one partition: a replicated log and its state machine, no I/O inside.

mod blob;
pub mod checksum;
pub mod command;
pub mod frame;
mod log;
pub mod replication;
mod row;

pub use blob::BlobRef;
pub use frame::{FRAME_HEADER_BYTES, FrameError};
pub use log::{Entry, PAYLOAD_BYTES_MAX, PAYLOAD_ROWS_MAX, Payload, ROW_KEY_BYTES_MAX, RecoveredLog};
pub use replication::{Envelope, Input, LAGGING_MS, LeaseTimes, Message, Output, Refusal, Replica, Report};
pub use row::Row;

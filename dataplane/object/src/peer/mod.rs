//! What one core or node asks of the owner of a device; see the table in docs/protocols.md.

mod message;

pub use message::{
    DeviceFill, FRAME_BYTES_MAX, LIST_SHARDS_MAX, PIN_KEPT_MS, PeerFault, PeerRequest, PeerResponse,
    REPLICATE_BYTES_MAX, RESERVATION_KEPT_MS, Run, ShardEntry, ShardName,
};

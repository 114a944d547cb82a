//! How serialised messages reach the owner of a device: in one process a queue between cores, between nodes a
//! socket. Everything above this trait is the same in both.
//!
//! Bulk bytes travel beside the message that names them, so that they are never copied into it.

use bytes::Bytes;
use quarry_clustermap::{DeviceId, NodeId};

/// Most bulk bytes of one message. Larger pieces are cut by the caller.
pub const BULK_BYTES_MAX: usize = 1 << 20;

/// Who a message is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Address {
    /// The core that owns a device, on whichever node it is.
    Device(DeviceId),
    /// A node, for questions that span its devices (listing): it asks its own cores.
    Node(NodeId),
    /// A core of this node, for questions that span its devices. Never leaves the node.
    Core(usize),
}

/// How urgent a message is. Between nodes each class has queues and a connection of its own, so that none waits for a
/// later one; between cores all share a queue.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Class {
    /// Replication and leases: others wait for them, and they are short.
    Urgent,
    /// Questions with answers of moderate size.
    Ordinary,
    /// Bytes of shards.
    Bulk,
}

impl Class {
    /// All, the most urgent first.
    pub const ALL: [Self; 3] = [Self::Urgent, Self::Ordinary, Self::Bulk];
}

/// A serialised message and the bytes beside it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Parcel {
    /// Encoded message.
    pub message: Bytes,
    /// Bytes beside it, at most [`BULK_BYTES_MAX`]; mostly none.
    pub bulk: Bytes,
}

impl Parcel {
    /// Bytes of both.
    pub fn len_bytes(&self) -> usize {
        self.message.len() + self.bulk.len()
    }
}

impl From<Vec<u8>> for Parcel {
    fn from(message: Vec<u8>) -> Self {
        Self { message: message.into(), bulk: Bytes::new() }
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TransportError {
    /// A queue is full; nothing was done. Shed load, retry later.
    #[error("the receiver's queue is full")]
    Overloaded,
    /// Nobody answers for the address; nothing was done.
    #[error("nobody answers for the address")]
    Unreachable,
    /// The message was sent, and no answer will come: whether it was acted on is not known.
    #[error("no answer came: what was asked may have been done or not")]
    Lost,
}

/// Delivers messages. A one-way message may be lost; a call is answered once or fails.
#[expect(async_fn_in_trait, reason = "single-threaded executors: futures need not be Send")]
pub trait Transport: 'static {
    /// Sends without waiting for an answer.
    ///
    /// # Errors
    /// The message was not queued.
    fn send(&self, to: Address, class: Class, parcel: Parcel) -> Result<(), TransportError>;

    /// Sends and waits for the answer. Ends: a silent peer becomes [`TransportError::Lost`].
    ///
    /// # Errors
    /// No answer will come; see [`TransportError`] for what may have happened.
    async fn call(&self, to: Address, class: Class, parcel: Parcel) -> Result<Parcel, TransportError>;
}

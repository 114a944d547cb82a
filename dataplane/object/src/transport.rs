//! How serialised messages reach the owner of a device: in one process a queue between cores, between nodes a
//! socket. Everything above this trait is the same in both.

use bytes::Bytes;
use quarry_clustermap::DeviceId;

/// Who a message is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Address {
    /// The core that owns a device.
    Device(DeviceId),
    /// A core of this node, for questions that span its devices (listing).
    Core(usize),
}

/// Why a message could not be delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TransportError {
    /// The receiver's queue is full: shed load, retry later.
    #[error("the receiver's queue is full")]
    Overloaded,
    /// Nobody answers for the address.
    #[error("nobody answers for the address")]
    Unreachable,
}

/// Delivers frames. A one-way frame may be lost; a call is answered once or fails.
#[expect(async_fn_in_trait, reason = "single-threaded executors: futures need not be Send")]
pub trait Transport: 'static {
    /// Sends without waiting for an answer.
    ///
    /// # Errors
    /// The frame was not queued.
    fn send(&self, to: Address, frame: Bytes) -> Result<(), TransportError>;

    /// Sends and waits for the answer.
    ///
    /// # Errors
    /// No answer will come; whether the request was acted on is not known.
    async fn call(&self, to: Address, frame: Bytes) -> Result<Bytes, TransportError>;
}

//! Device I/O behind one trait; backends side by side: `uring` (production), `sync` (inspection and formatting
//! outside an executor), `sim` (tests, seeded faults), `fault` (injects errors into a running node), `meter` (counts).
//!
//! Invariants: offsets and lengths are multiples of [`BLOCK_BYTES`] and lengths are not zero (asserted in one
//! place, for every backend alike); a range beyond the device is an error, never a partial transfer; a buffer
//! given to an operation comes back with its result, and if the future is dropped the buffer is kept until the
//! device has finished with it.
//!
//! Failure model: any read may return an error or wrong bytes (callers verify checksums); a write that was
//! acknowledged is durable only after a later [`Device::flush`] succeeded; writes between two flushes may be
//! lost, torn at [`SECTOR_BYTES`] granularity, or applied in any order. A failed flush is never retried.

mod buffer;
mod error;
mod fault;
mod file;
mod meter;
mod probe;
mod sim;
mod sync;
mod uring;

use std::rc::Rc;

pub use buffer::{BufferPool, IoBuf};
pub use error::{DeviceError, Operation};
pub use fault::{FaultDevice, FaultMode, FaultSwitch, Pause};
pub use file::{DeviceFile, OpenMode};
pub use meter::{DeviceMeter, MeteredDevice, OperationMeter};
pub use probe::Found;
pub use sim::{Access, Capture, Event, Fault, SimDevice, When};
pub use sync::SyncDevice;
pub use uring::{Ring, UringDevice};

/// Unit of alignment of every offset and length: a multiple of all logical block sizes in the field.
pub const BLOCK_BYTES: usize = 4096;
/// What a device writes atomically at best.
pub const SECTOR_BYTES: usize = 512;

/// One device, or a file standing for one.
///
/// Dropping a future does not undo its operation: a write may still reach the device.
#[allow(async_fn_in_trait, reason = "single-threaded per core: no caller needs the futures to be Send")]
pub trait Device {
    /// Usable bytes, a multiple of [`BLOCK_BYTES`].
    fn size_bytes(&self) -> u64;

    /// Fills the whole of `buf` from `offset` (bytes). On error the content of `buf` is unspecified.
    ///
    /// # Errors
    /// [`DeviceError::Io`], [`DeviceError::Short`], [`DeviceError::OutOfBounds`], [`DeviceError::Closed`].
    async fn read(&self, offset: u64, buf: IoBuf) -> (Result<(), DeviceError>, IoBuf);

    /// Writes the whole of `buf` at `offset` (bytes). Durable only after a later successful flush.
    ///
    /// # Errors
    /// As for [`Device::read`], and [`DeviceError::ReadOnly`]. After an error the range holds anything.
    async fn write(&self, offset: u64, buf: IoBuf) -> (Result<(), DeviceError>, IoBuf);

    /// Makes every write that completed before this call durable. Never retry a failed flush: what it should
    /// have covered counts as lost.
    ///
    /// # Errors
    /// [`DeviceError::Io`], [`DeviceError::ReadOnly`], [`DeviceError::Closed`].
    async fn flush(&self) -> Result<(), DeviceError>;
}

impl<D: Device> Device for Rc<D> {
    fn size_bytes(&self) -> u64 {
        (**self).size_bytes()
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> (Result<(), DeviceError>, IoBuf) {
        (**self).read(offset, buf).await
    }

    async fn write(&self, offset: u64, buf: IoBuf) -> (Result<(), DeviceError>, IoBuf) {
        (**self).write(offset, buf).await
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        (**self).flush().await
    }
}

/// The shared gate of every backend: alignment is the caller's duty, bounds may come from damaged metadata.
///
/// # Panics
/// On an unaligned offset or length, or an empty buffer.
fn check_range(
    operation: Operation,
    offset: u64,
    length_bytes: usize,
    size_bytes: u64,
) -> Result<(), DeviceError> {
    let block_bytes = BLOCK_BYTES as u64;
    assert!(offset.is_multiple_of(block_bytes), "{operation} at {offset}: offset is not block-aligned");
    assert!(length_bytes > 0, "{operation} at {offset}: empty buffer");
    assert!(length_bytes.is_multiple_of(BLOCK_BYTES), "{operation} at {offset}: {length_bytes} bytes");
    let length_bytes = length_bytes as u64;
    if offset.checked_add(length_bytes).is_none_or(|end| end > size_bytes) {
        return Err(DeviceError::OutOfBounds { operation, offset, length_bytes, size_bytes });
    }
    Ok(())
}

#[cfg(test)]
mod tests;

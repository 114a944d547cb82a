//! A wrapper that makes a healthy device fail on request, so that an operator can rehearse a device error on a
//! running node. The switch is shared with an admin endpoint on another thread.
//!
//! Failure model: an injected error is decided before the operation; the wrapped device never sees it.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use super::{Device, DeviceError, IoBuf, Operation};

/// Which operations fail with EIO.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FaultMode {
    /// None: the device works.
    None = 0,
    /// Reads.
    Read = 1,
    /// Writes.
    Write = 2,
    /// Flushes.
    Flush = 3,
    /// Everything.
    All = 4,
}

impl FaultMode {
    fn strikes(self, operation: Operation) -> bool {
        match self {
            Self::None => false,
            Self::Read => operation == Operation::Read,
            Self::Write => operation == Operation::Write,
            Self::Flush => operation == Operation::Flush,
            Self::All => true,
        }
    }
}

/// The remote control of a [`FaultDevice`]; clones steer the same device, from any thread.
#[derive(Clone, Debug, Default)]
pub struct FaultSwitch {
    mode: Arc<AtomicU8>,
}

impl FaultSwitch {
    /// Takes effect with the next operation.
    pub fn set(&self, mode: FaultMode) {
        self.mode.store(mode as u8, Ordering::Relaxed);
    }

    /// The mode in force.
    pub fn mode(&self) -> FaultMode {
        match self.mode.load(Ordering::Relaxed) {
            1 => FaultMode::Read,
            2 => FaultMode::Write,
            3 => FaultMode::Flush,
            4 => FaultMode::All,
            _ => FaultMode::None,
        }
    }
}

/// A device that fails when its switch says so.
#[derive(Debug)]
pub struct FaultDevice<D> {
    inner: D,
    switch: FaultSwitch,
}

impl<D> FaultDevice<D> {
    /// Wraps `inner`; it works until `switch` is set.
    pub fn new(inner: D, switch: FaultSwitch) -> Self {
        Self { inner, switch }
    }

    /// The remote control.
    pub fn switch(&self) -> &FaultSwitch {
        &self.switch
    }

    /// The wrapped device.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    fn check(&self, operation: Operation, offset: u64, length_bytes: usize) -> Result<(), DeviceError> {
        if self.switch.mode().strikes(operation) {
            return Err(DeviceError::io(operation, offset, length_bytes, libc::EIO));
        }
        Ok(())
    }
}

impl<D: Device> Device for FaultDevice<D> {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> (Result<(), DeviceError>, IoBuf) {
        match self.check(Operation::Read, offset, buf.len()) {
            Ok(()) => self.inner.read(offset, buf).await,
            Err(error) => (Err(error), buf),
        }
    }

    async fn write(&self, offset: u64, buf: IoBuf) -> (Result<(), DeviceError>, IoBuf) {
        match self.check(Operation::Write, offset, buf.len()) {
            Ok(()) => self.inner.write(offset, buf).await,
            Err(error) => (Err(error), buf),
        }
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.check(Operation::Flush, 0, 0)?;
        self.inner.flush().await
    }
}

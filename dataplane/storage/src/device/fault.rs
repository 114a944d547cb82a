//! A wrapper that makes a healthy device fail or dawdle on request, so that an operator can rehearse a device that breaks
//! or is slow on a running node. The switch is shared with an admin endpoint on another thread.
//!
//! Failure model: an injected error is decided before the operation; the wrapped device never sees it. A slow device does
//! everything right, each operation that much later; operations wait beside each other, so only latency grows.

use std::{
    fmt,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::LocalBoxFuture;

use super::{Device, DeviceError, IoBuf, Operation};

/// Lets time pass on the executor of the device's core.
pub type Pause = Rc<dyn Fn(Duration) -> LocalBoxFuture<'static, ()>>;

/// What goes wrong: which operations fail with EIO, or how late all are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultMode {
    /// Nothing: the device works.
    None,
    /// Reads fail.
    Read,
    /// Writes fail.
    Write,
    /// Flushes fail.
    Flush,
    /// Everything fails.
    All,
    /// Nothing fails, every operation begins so many milliseconds later.
    Slow {
        /// Milliseconds.
        delay_ms: u32,
    },
}

impl FaultMode {
    fn strikes(self, operation: Operation) -> bool {
        match self {
            Self::None | Self::Slow { .. } => false,
            Self::Read => operation == Operation::Read,
            Self::Write => operation == Operation::Write,
            Self::Flush => operation == Operation::Flush,
            Self::All => true,
        }
    }

    /// In one word, so that a reader never sees half of a change: the kind, above it the delay.
    fn word(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Read => 1,
            Self::Write => 2,
            Self::Flush => 3,
            Self::All => 4,
            Self::Slow { delay_ms } => 5 | u64::from(delay_ms) << u32::BITS,
        }
    }

    fn from_word(word: u64) -> Self {
        let delay_ms = u32::try_from(word >> u32::BITS).expect("32 bits are left");
        match word & u64::from(u32::MAX) {
            1 => Self::Read,
            2 => Self::Write,
            3 => Self::Flush,
            4 => Self::All,
            5 => Self::Slow { delay_ms },
            _ => Self::None,
        }
    }
}

/// The remote control of a [`FaultDevice`]; clones steer the same device, from any thread.
#[derive(Clone, Debug, Default)]
pub struct FaultSwitch {
    mode: Arc<AtomicU64>,
}

impl FaultSwitch {
    /// Takes effect with the next operation.
    pub fn set(&self, mode: FaultMode) {
        self.mode.store(mode.word(), Ordering::Relaxed);
    }

    /// The mode in force.
    pub fn mode(&self) -> FaultMode {
        FaultMode::from_word(self.mode.load(Ordering::Relaxed))
    }
}

/// A device that fails or is slow when its switch says so.
pub struct FaultDevice<D> {
    inner: D,
    switch: FaultSwitch,
    pause: Pause,
}

impl<D> FaultDevice<D> {
    /// Wraps `inner`; it works until `switch` is set.
    pub fn new(inner: D, switch: FaultSwitch, pause: Pause) -> Self {
        Self { inner, switch, pause }
    }

    /// The remote control.
    pub fn switch(&self) -> &FaultSwitch {
        &self.switch
    }

    /// The wrapped device.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    async fn check(&self, operation: Operation, offset: u64, length_bytes: usize) -> Result<(), DeviceError> {
        let mode = self.switch.mode();
        if let FaultMode::Slow { delay_ms } = mode {
            (self.pause)(Duration::from_millis(delay_ms.into())).await;
        }
        if mode.strikes(operation) {
            return Err(DeviceError::io(operation, offset, length_bytes, libc::EIO));
        }
        Ok(())
    }
}

impl<D: fmt::Debug> fmt::Debug for FaultDevice<D> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("FaultDevice")
            .field("inner", &self.inner)
            .field("switch", &self.switch)
            .finish_non_exhaustive()
    }
}

impl<D: Device> Device for FaultDevice<D> {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> (Result<(), DeviceError>, IoBuf) {
        match self.check(Operation::Read, offset, buf.len()).await {
            Ok(()) => self.inner.read(offset, buf).await,
            Err(error) => (Err(error), buf),
        }
    }

    async fn write(&self, offset: u64, buf: IoBuf) -> (Result<(), DeviceError>, IoBuf) {
        match self.check(Operation::Write, offset, buf.len()).await {
            Ok(()) => self.inner.write(offset, buf).await,
            Err(error) => (Err(error), buf),
        }
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.check(Operation::Flush, 0, 0).await?;
        self.inner.flush().await
    }
}

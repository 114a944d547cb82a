//! A wrapper that counts what a device does and how long that takes, as its users see it: from the first poll of an
//! operation to its end, the wait for a place in the ring included. An operation that nobody waits for to its end is
//! not counted.
//!
//! One core uses one wrapper, so counting is plain loads and stores ([`quarry_meter::Counter`]).

use std::{sync::Arc, time::Instant};

use quarry_meter::{Counter, Histogram};

use super::{Device, DeviceError, IoBuf, Operation};

/// What is known of one kind of operation.
#[derive(Debug, Default)]
pub struct OperationMeter {
    /// How long those took that succeeded; also how many they were.
    pub took: Histogram,
    /// Bytes of those that succeeded.
    pub bytes: Counter,
    /// Those that failed.
    pub errors: Counter,
}

/// What one core has asked of one device.
#[derive(Debug, Default)]
pub struct DeviceMeter {
    /// Reads.
    pub read: OperationMeter,
    /// Writes.
    pub write: OperationMeter,
    /// Flushes; they have no bytes.
    pub flush: OperationMeter,
}

impl DeviceMeter {
    /// Every kind.
    pub fn operations(&self) -> [(Operation, &OperationMeter); 3] {
        [(Operation::Read, &self.read), (Operation::Write, &self.write), (Operation::Flush, &self.flush)]
    }
}

/// A device whose operations are counted.
#[derive(Debug)]
pub struct MeteredDevice<D> {
    inner: D,
    meter: Arc<DeviceMeter>,
}

impl<D> MeteredDevice<D> {
    /// Wraps `inner`; `meter` must belong to this thread alone.
    pub fn new(inner: D, meter: Arc<DeviceMeter>) -> Self {
        Self { inner, meter }
    }
}

impl OperationMeter {
    fn note(&self, began: Instant, bytes: usize, result: &Result<(), DeviceError>) {
        match result {
            Ok(()) => {
                self.took.observe(began.elapsed());
                self.bytes.add(bytes as u64);
            }
            Err(_) => self.errors.add(1),
        }
    }
}

impl<D: Device> Device for MeteredDevice<D> {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> (Result<(), DeviceError>, IoBuf) {
        let (began, bytes) = (Instant::now(), buf.len());
        let (result, buf) = self.inner.read(offset, buf).await;
        self.meter.read.note(began, bytes, &result);
        (result, buf)
    }

    async fn write(&self, offset: u64, buf: IoBuf) -> (Result<(), DeviceError>, IoBuf) {
        let (began, bytes) = (Instant::now(), buf.len());
        let (result, buf) = self.inner.write(offset, buf).await;
        self.meter.write.note(began, bytes, &result);
        (result, buf)
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        let began = Instant::now();
        let result = self.inner.flush().await;
        self.meter.flush.note(began, 0, &result);
        result
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::device::{BLOCK_BYTES, FaultDevice, FaultMode, FaultSwitch, SimDevice};

    #[test]
    fn what_succeeds_and_what_fails_is_counted_apart() {
        let (meter, switch) = (Arc::new(DeviceMeter::default()), FaultSwitch::default());
        let sim =
            FaultDevice::new(SimDevice::new(1 << 20, 7), switch.clone(), Rc::new(|_| Box::pin(async {})));
        let device = MeteredDevice::new(sim, Arc::clone(&meter));
        let buf = || IoBuf::zeroed(2 * BLOCK_BYTES);
        futures::executor::block_on(async {
            assert!(device.write(0, buf()).await.0.is_ok() && device.read(0, buf()).await.0.is_ok());
            assert!(device.flush().await.is_ok());
            switch.set(FaultMode::All);
            assert!(device.write(0, buf()).await.0.is_err() && device.read(0, buf()).await.0.is_err());
            assert!(device.flush().await.is_err());
        });
        for (operation, meter) in meter.operations() {
            let bytes = if operation == Operation::Flush { 0 } else { 2 * BLOCK_BYTES as u64 };
            assert_eq!(
                (meter.took.read().count(), meter.bytes.get(), meter.errors.get()),
                (1, bytes, 1),
                "{operation}"
            );
        }
    }
}

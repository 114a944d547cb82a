use std::{cell::Cell, panic, rc::Rc, time::Duration};

use futures::{executor::block_on, future::LocalBoxFuture};

use super::{
    BLOCK_BYTES, Device, DeviceError, FaultDevice, FaultMode, FaultSwitch, IoBuf, Operation, Pause,
    SimDevice, check_range,
};

#[test]
fn ranges_must_lie_on_the_device() {
    let size_bytes = 4 * BLOCK_BYTES as u64;
    assert_eq!(check_range(Operation::Read, 0, 4 * BLOCK_BYTES, size_bytes), Ok(()));
    assert_eq!(check_range(Operation::Read, 3 * 4096, BLOCK_BYTES, size_bytes), Ok(()));
    for (offset, length) in [(0, 5 * BLOCK_BYTES), (4 * 4096, BLOCK_BYTES), (u64::MAX - 4095, BLOCK_BYTES)] {
        let refused = check_range(Operation::Write, offset, length, size_bytes);
        assert!(matches!(refused, Err(DeviceError::OutOfBounds { .. })), "{offset} {length}");
    }
}

#[test]
fn unaligned_ranges_are_our_bug() {
    for (offset, length) in [(512, BLOCK_BYTES), (0, 512), (0, 0)] {
        let outcome = panic::catch_unwind(|| check_range(Operation::Read, offset, length, 1 << 20));
        assert!(outcome.is_err(), "{offset} {length}");
    }
}

#[test]
fn fault_device_fails_what_its_switch_says() {
    let switch = FaultSwitch::default();
    let never = Rc::new(|_| -> LocalBoxFuture<'static, ()> { panic!("no device is slow here") });
    let device = Rc::new(FaultDevice::new(SimDevice::new(1 << 20, 1), switch.clone(), never));
    let fails = |mode| {
        switch.set(mode);
        assert_eq!(switch.mode(), mode);
        block_on(async {
            let (read, buf) = device.read(0, IoBuf::zeroed(BLOCK_BYTES)).await;
            let (write, _) = device.write(4096, buf).await;
            [read.is_err(), write.is_err(), device.flush().await.is_err()]
        })
    };
    assert_eq!(fails(FaultMode::None), [false, false, false]);
    assert_eq!(fails(FaultMode::Read), [true, false, false]);
    assert_eq!(fails(FaultMode::Write), [false, true, false]);
    assert_eq!(fails(FaultMode::Flush), [false, false, true]);
    assert_eq!(fails(FaultMode::All), [true, true, true]);
    assert_eq!(fails(FaultMode::None), [false, false, false]);
}

#[test]
fn a_slow_device_does_everything_right_and_late() {
    let (switch, waited) = (FaultSwitch::default(), Rc::new(Cell::new(Duration::ZERO)));
    let clock = Rc::clone(&waited);
    let pause: Pause = Rc::new(move |duration| {
        clock.set(clock.get() + duration);
        Box::pin(async {})
    });
    let device = FaultDevice::new(SimDevice::new(1 << 20, 1), switch.clone(), pause);
    block_on(async {
        let mode = FaultMode::Slow { delay_ms: 70 };
        switch.set(mode);
        assert_eq!(switch.mode(), mode);
        let (written, mut buf) = device.write(4096, IoBuf::zeroed(BLOCK_BYTES)).await;
        assert!(written.is_ok());
        assert_eq!(waited.get(), Duration::from_millis(70));
        buf.fill(0xa5);
        let (read, buf) = device.read(4096, buf).await;
        assert!(read.is_ok() && buf.iter().all(|byte| *byte == 0));
        assert!(device.flush().await.is_ok());
        assert_eq!(waited.get(), Duration::from_millis(210));
        switch.set(FaultMode::None);
        assert!(device.read(4096, buf).await.0.is_ok());
        assert_eq!(waited.get(), Duration::from_millis(210));
    });
}

#[test]
fn errors_name_the_facts() {
    let error = DeviceError::io(Operation::Write, 8192, 4096, libc::EIO);
    assert_eq!(error.to_string(), "write of 4096 bytes at 8192: Input/output error (os error 5)");
    let error = DeviceError::Setup { action: "register", errno: libc::ENOMEM };
    assert!(error.to_string().contains("LimitMEMLOCK"), "{error}");
}

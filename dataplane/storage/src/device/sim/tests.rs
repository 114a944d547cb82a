use std::{cell::RefCell, collections::BTreeSet, future::Future, pin::pin, rc::Rc, task::Context};

use futures::{
    executor::{LocalPool, block_on},
    future::join_all,
    task::{LocalSpawnExt, noop_waker_ref},
};
use proptest::prelude::{Strategy, any, prop_oneof};

use super::super::{BLOCK_BYTES, Device, DeviceError, IoBuf, Operation, SECTOR_BYTES};
use super::{Event, Fault, SimDevice, When};

const BLOCKS: usize = 16;
const SIZE_BYTES: u64 = (BLOCKS * BLOCK_BYTES) as u64;

fn device() -> SimDevice {
    SimDevice::new(SIZE_BYTES, 1)
}

fn filled(byte: u8) -> IoBuf {
    IoBuf::copy_of(&[byte; BLOCK_BYTES])
}

fn write(device: &SimDevice, offset: u64, byte: u8) -> Result<(), DeviceError> {
    block_on(device.write(offset, filled(byte))).0
}

fn read(device: &SimDevice, offset: u64) -> Result<u8, DeviceError> {
    let (result, buf) = block_on(device.read(offset, filled(0xEE)));
    result.map(|()| buf[0])
}

fn flush(device: &SimDevice) -> Result<(), DeviceError> {
    block_on(device.flush())
}

#[test]
fn a_large_device_costs_what_is_written() {
    let device = SimDevice::new(1 << 40, 1);
    write(&device, (1 << 40) - 4096, 5).unwrap();
    assert_eq!((read(&device, (1 << 40) - 4096), read(&device, 1 << 39)), (Ok(5), Ok(0)));
    assert!(matches!(write(&device, 1 << 40, 5), Err(DeviceError::OutOfBounds { .. })));
}

#[test]
fn operations_yield_and_log() {
    let device = device();
    let mut context = Context::from_waker(noop_waker_ref());
    let mut first = pin!(device.write(0, filled(1)));
    assert!(first.as_mut().poll(&mut context).is_pending());
    assert!(first.as_mut().poll(&mut context).is_ready());
    flush(&device).unwrap();
    read(&device, 4096).unwrap();
    let range = |offset| (offset, 4096);
    let (offset, length_bytes) = range(0);
    assert_eq!(
        device.events(),
        [
            Event::WriteStart { offset, length_bytes },
            Event::WriteDone { offset, length_bytes },
            Event::FlushStart,
            Event::FlushDone,
            Event::Read { offset: 4096, length_bytes },
        ]
    );
}

#[test]
fn shuffle_completes_out_of_order() {
    let orders: BTreeSet<Vec<u64>> = (0..20)
        .map(|seed| {
            let device = SimDevice::new(SIZE_BYTES, seed);
            device.set_shuffle(true);
            let order = Rc::new(RefCell::new(Vec::new()));
            let mut executor = LocalPool::new();
            for block in 0..4 {
                let (device, order) = (device.clone(), Rc::clone(&order));
                let task = async move {
                    device.write(block * 4096, filled(1)).await.0.unwrap();
                    order.borrow_mut().push(block);
                };
                executor.spawner().spawn_local(task).unwrap();
            }
            executor.run();
            order.take()
        })
        .collect();
    assert!(orders.len() > 5, "{orders:?}");
}

#[test]
fn a_flush_covers_only_what_completed_before_it() {
    let device = device();
    let mut context = Context::from_waker(noop_waker_ref());
    write(&device, 0, 1).unwrap();
    let mut late = pin!(device.write(4096, filled(2)));
    assert!(late.as_mut().poll(&mut context).is_pending());
    let mut barrier = pin!(device.flush());
    assert!(barrier.as_mut().poll(&mut context).is_pending());
    assert!(late.as_mut().poll(&mut context).is_ready());
    assert!(barrier.as_mut().poll(&mut context).is_ready());
    let after = device.crash_keeping_nothing();
    assert_eq!((read(&after, 0), read(&after, 4096)), (Ok(1), Ok(0)));
    assert_eq!(device.capture().unflushed(), [(4096, 4096)]);
    assert_eq!(read(&device.capture().crash_keeping_everything(), 4096), Ok(2));
}

#[test]
fn a_dropped_write_still_lands() {
    let device = device();
    {
        let mut write = pin!(device.write(0, filled(1)));
        assert!(write.as_mut().poll(&mut Context::from_waker(noop_waker_ref())).is_pending());
    }
    assert_eq!(read(&device, 0), Ok(1));
}

#[test]
fn crashes_are_reproducible_and_reach_every_outcome() {
    let device = device();
    for block in 0..4 {
        write(&device, block * 4096, 1).unwrap();
    }
    let image = |seed| device.crash(seed).peek(0, 4 * BLOCK_BYTES);
    assert_eq!(image(7), image(7));
    let images: BTreeSet<_> = (0..300).map(image).collect();
    assert!(images.contains(&vec![0; 4 * BLOCK_BYTES]) && images.contains(&vec![1; 4 * BLOCK_BYTES]));
    let torn =
        images.iter().any(|image| image[..BLOCK_BYTES].contains(&0) && image[..BLOCK_BYTES].contains(&1));
    assert!(torn, "some block is torn");
    assert!(images.len() > 20, "{}", images.len());
}

#[test]
fn every_flush_boundary_is_captured() {
    let device = device();
    device.set_capture(true);
    for byte in 1..=5 {
        write(&device, 0, byte).unwrap();
        flush(&device).unwrap();
    }
    let captures = device.captures();
    assert_eq!(captures.len(), 5);
    for (flushed, capture) in (0..).zip(&captures) {
        assert_eq!(read(&capture.crash_keeping_nothing(), 0), Ok(flushed));
        assert_eq!(read(&capture.crash_keeping_everything(), 0), Ok(flushed + 1));
        assert_eq!(capture.events_before(), usize::from(flushed) * 4 + 2);
    }
}

#[test]
fn a_skipped_flush_is_seen_by_a_crash_and_not_in_the_log() {
    let device = device();
    device.set_capture(true);
    device.set_skip_flush(true);
    write(&device, 0, 1).unwrap();
    flush(&device).unwrap();
    assert_eq!(read(&device.crash_keeping_nothing(), 0), Ok(0));
    assert!(!device.events().contains(&Event::FlushStart));
    assert_eq!(device.captures().len(), 1);
}

#[test]
fn what_a_failed_flush_should_have_covered_stays_volatile() {
    let device = device();
    write(&device, 0, 1).unwrap();
    write(&device, 4096, 1).unwrap();
    device.inject(Fault::Error, When::on(Operation::Flush).times(1));
    assert!(matches!(flush(&device), Err(DeviceError::Io { errno: libc::EIO, .. })));
    write(&device, 4096, 2).unwrap();
    flush(&device).unwrap();
    let after = device.crash_keeping_nothing();
    assert_eq!((read(&device, 0), read(&after, 0), read(&after, 4096)), (Ok(1), Ok(0), Ok(2)));
    assert!((0..100).all(|seed| read(&device.crash(seed), 4096) == Ok(2)));
}

#[test]
fn errors_strike_by_count_range_and_predicate() {
    let device = device();
    device.inject(Fault::Error, When::on(Operation::Read).skip(1).times(2));
    let failed: Vec<bool> = (0..5).map(|_| read(&device, 0).is_err()).collect();
    assert_eq!(failed, [false, true, true, false, false]);
    device.inject(Fault::Error, When::on(Operation::Write).touching(5000..5001));
    assert!(
        write(&device, 0, 1).is_ok() && write(&device, 4096, 1).is_err() && write(&device, 8192, 1).is_ok()
    );
    device.clear_faults();
    device.inject(Fault::Error, When::any().matching(|access| access.offset == 8192));
    assert!(read(&device, 8192).is_err() && write(&device, 8192, 1).is_err() && flush(&device).is_ok());
}

#[test]
fn media_faults() {
    let device = device();
    write(&device, 0, 1).unwrap();
    device.inject(Fault::StaleRead, When::any().touching(0..4096).times(1));
    write(&device, 0, 2).unwrap();
    assert_eq!((read(&device, 0), read(&device, 0)), (Ok(1), Ok(2)));
    device.inject(Fault::LostWrite, When::any().times(1));
    write(&device, 0, 3).unwrap();
    assert_eq!(read(&device, 0), Ok(2));
    device.inject(Fault::MisdirectedWrite { to: 8192 }, When::any().times(1));
    write(&device, 0, 4).unwrap();
    assert_eq!((read(&device, 0), read(&device, 8192)), (Ok(2), Ok(4)));
    device.flip_bit(8192, 3);
    assert_eq!(read(&device, 8192), Ok(4 ^ 8));
    flush(&device).unwrap();
    device.poke(100, b"x");
    assert_eq!(device.crash_keeping_nothing().peek(99, 3), [2, b'x', 2]);
}

#[test]
fn stall_holds_everything_and_power_off_fails_it() {
    let device = device();
    device.set_stalled(true);
    let results = Rc::new(RefCell::new(Vec::new()));
    let mut executor = LocalPool::new();
    let start = |executor: &LocalPool, offset| {
        let (device, results) = (device.clone(), Rc::clone(&results));
        let task = async move {
            let result = device.write(offset, filled(1)).await.0;
            results.borrow_mut().push(result);
        };
        executor.spawner().spawn_local(task).unwrap();
    };
    start(&executor, 0);
    executor.run_until_stalled();
    assert!(results.borrow().is_empty());
    device.set_stalled(false);
    executor.run_until_stalled();
    assert_eq!(results.take(), [Ok(())]);
    device.set_stalled(true);
    start(&executor, 4096);
    executor.run_until_stalled();
    device.power_off();
    executor.run_until_stalled();
    assert_eq!(results.take(), [Err(DeviceError::Closed)]);
    assert_eq!((read(&device, 0), flush(&device)), (Err(DeviceError::Closed), Err(DeviceError::Closed)));
    assert_eq!(device.capture().unflushed().len(), 2);
}

#[derive(Clone, Debug)]
enum Step {
    Write { block: usize, blocks: usize, byte: u8 },
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let write = (0..BLOCKS, 1_usize..4, any::<u8>()).prop_map(|(block, blocks, byte)| Step::Write {
        block,
        blocks: blocks.min(BLOCKS - block),
        byte,
    });
    prop_oneof![4 => write, 1 => proptest::strategy::Just(Step::Flush)]
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 64, failure_persistence: None, ..Default::default() })]

    /// After a crash every sector holds its last durable content or that of a write since.
    #[test]
    fn crash_keeps_durable_and_possibly_later(
        steps in proptest::collection::vec(step(), 1..40),
        seeds in proptest::collection::vec(any::<u64>(), 4),
    ) {
        let device = device();
        let sectors = BLOCKS * BLOCK_BYTES / SECTOR_BYTES;
        let mut possible = vec![BTreeSet::from([0_u8]); sectors];
        let mut latest = vec![0_u8; sectors];
        for step in steps {
            match step {
                Step::Write { block, blocks, byte } => {
                    let buf = IoBuf::copy_of(&vec![byte; blocks * BLOCK_BYTES]);
                    block_on(device.write((block * BLOCK_BYTES) as u64, buf)).0.unwrap();
                    let per_block = BLOCK_BYTES / SECTOR_BYTES;
                    for sector in block * per_block..(block + blocks) * per_block {
                        possible[sector].insert(byte);
                        latest[sector] = byte;
                    }
                }
                Step::Flush => {
                    flush(&device).unwrap();
                    possible = latest.iter().map(|&byte| BTreeSet::from([byte])).collect();
                }
            }
            for &seed in &seeds {
                let image = device.crash(seed).peek(0, BLOCKS * BLOCK_BYTES);
                for (sector, bytes) in image.chunks(SECTOR_BYTES).enumerate() {
                    assert!(possible[sector].contains(&bytes[0]), "sector {sector}");
                    assert!(bytes.iter().all(|&byte| byte == bytes[0]), "sector {sector} is torn inside");
                }
            }
        }
        let everything = device.capture().crash_keeping_everything().peek(0, BLOCKS * BLOCK_BYTES);
        assert_eq!(everything, device.peek(0, BLOCKS * BLOCK_BYTES));
    }
}

#[test]
fn concurrent_operations_share_a_device() {
    let device = device();
    device.set_shuffle(true);
    block_on(join_all((0..16_u8).map(|block| {
        let device = device.clone();
        async move {
            let offset = u64::from(block) * 4096;
            device.write(offset, filled(block)).await.0.unwrap();
            device.flush().await.unwrap();
        }
    })));
    let after = device.crash_keeping_nothing();
    assert!((0..16_u8).all(|block| read(&after, u64::from(block) * 4096) == Ok(block)));
}

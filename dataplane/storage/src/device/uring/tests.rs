use std::{
    cell::Cell,
    fs,
    future::Future,
    os::fd::BorrowedFd,
    path::PathBuf,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Waker},
};

use futures::future::join_all;
use quarry_clustermap::SHARD_BLOCK_BYTES;
use tempfile::TempDir;

use super::super::{BLOCK_BYTES, BufferPool, Device, DeviceError, DeviceFile, IoBuf, OpenMode, Operation};
use super::{COMPLETIONS_PER_DEPTH, Ring, UringDevice};

const SIZE_BYTES: u64 = 16 << 20;

struct Bench {
    pool: BufferPool,
    ring: Ring,
    file: Arc<DeviceFile>,
    path: PathBuf,
    _directory: TempDir,
}

fn bench(depth: u32, slots: usize) -> Bench {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device");
    let file = Arc::new(DeviceFile::create(&path, SIZE_BYTES).unwrap());
    let pool = BufferPool::new(slots).unwrap();
    let ring = Ring::new(depth, &pool).unwrap();
    Bench { pool, ring, file, path, _directory: directory }
}

fn pattern(buf: &mut [u8], seed: u64) {
    for (word, number) in buf.chunks_exact_mut(8).zip(seed * 1_000_003..) {
        word.copy_from_slice(&number.to_le_bytes());
    }
}

#[test]
fn reads_back_what_was_written() {
    let bench = bench(8, 4);
    let device = UringDevice::new(&bench.ring, Arc::clone(&bench.file));
    bench.ring.drive_blocking(async {
        for (seed, mut buf) in [(1, bench.pool.take().await), (2, IoBuf::zeroed(3 * BLOCK_BYTES))] {
            pattern(&mut buf, seed);
            let wanted = buf.to_vec();
            let (result, mut buf) = device.write(seed << 20, buf).await;
            result.unwrap();
            device.flush().await.unwrap();
            buf.fill(0);
            let (result, buf) = device.read(seed << 20, buf).await;
            result.unwrap();
            assert!(*buf == *wanted);
        }
    });
    assert_eq!((bench.ring.in_flight(), bench.pool.free_slots()), (0, 4));
}

#[test]
fn more_operations_than_slots_take_turns() {
    let bench = bench(2, 1);
    let device = UringDevice::new(&bench.ring, Arc::clone(&bench.file));
    let slots = (2 * COMPLETIONS_PER_DEPTH) as usize;
    let most = Rc::new(Cell::new(0));
    let writes = (0..256_u64).map(|block| {
        let (device, ring, most) = (&device, &bench.ring, Rc::clone(&most));
        async move {
            let mut buf = IoBuf::zeroed(BLOCK_BYTES);
            pattern(&mut buf, block);
            let (result, buf) = device.write(block * 4096, buf).await;
            result.unwrap();
            most.set(most.get().max(ring.in_flight()));
            let (result, mut read) = device.read(block * 4096, IoBuf::zeroed(BLOCK_BYTES)).await;
            result.unwrap();
            assert!(*read == *buf, "block {block}");
            read.fill(0);
        }
    });
    bench.ring.drive_blocking(join_all(writes));
    assert!(most.get() <= slots, "{} in flight of {slots}", most.get());
    assert_eq!(bench.ring.in_flight(), 0);
}

#[test]
fn a_dropped_future_keeps_its_buffer_until_the_kernel_is_done() {
    let bench = bench(8, 1);
    let device = UringDevice::new(&bench.ring, Arc::clone(&bench.file));
    let mut context = Context::from_waker(Waker::noop());
    {
        let mut buf = bench.pool.try_take().unwrap();
        pattern(&mut buf, 77);
        let mut write = pin!(device.write(1 << 20, buf));
        assert!(write.as_mut().poll(&mut context).is_pending());
        bench.ring.submit();
    }
    assert_eq!((bench.ring.in_flight(), bench.pool.free_slots()), (1, 0));
    // The kernel finishes at any time after; the pool gets its slot back only by a reap.
    let mut back = bench.ring.drive_blocking(bench.pool.take());
    assert_eq!(bench.ring.in_flight(), 0);
    let mut wanted = vec![0; SHARD_BLOCK_BYTES];
    pattern(&mut wanted, 77);
    back.fill(0);
    let (result, back) = bench.ring.drive_blocking(device.read(1 << 20, back));
    result.unwrap();
    assert!(*back == *wanted, "an abandoned write is still carried out");
}

#[test]
fn abandoned_reads_never_touch_memory_in_other_hands() {
    let bench = bench(8, 4);
    let device = UringDevice::new(&bench.ring, Arc::clone(&bench.file));
    let mut context = Context::from_waker(Waker::noop());
    for round in 0..100_u64 {
        let mut taken = bench.ring.drive_blocking(bench.pool.take_many(4));
        let mut kept = pin!(device.read(0, taken.pop().unwrap()));
        assert!(kept.as_mut().poll(&mut context).is_pending());
        for buf in taken.drain(..2) {
            let mut abandoned = pin!(device.read(round * 4096, buf));
            assert!(abandoned.as_mut().poll(&mut context).is_pending());
            if round.is_multiple_of(2) {
                bench.ring.submit();
            }
        }
        // Whatever is free belongs to us alone: a late completion must not change it.
        taken.extend(std::iter::from_fn(|| bench.pool.try_take()));
        assert_eq!(taken.len(), 1);
        taken.iter_mut().for_each(|buf| buf.fill(0xA5));
        bench.ring.drive_blocking(kept).0.unwrap();
        assert!(taken.iter().all(|buf| buf.iter().all(|&byte| byte == 0xA5)));
    }
    drop(device);
    bench.ring.drive_blocking(bench.pool.take_many(4));
}

#[test]
fn dropping_everything_waits_for_what_is_in_flight() {
    let bench = bench(4, 16);
    let device = UringDevice::new(&bench.ring, Arc::clone(&bench.file));
    let mut context = Context::from_waker(Waker::noop());
    for index in 0..16_u64 {
        let mut buf = bench.pool.try_take().unwrap();
        pattern(&mut buf, index);
        let mut write = pin!(device.write(index * SHARD_BLOCK_BYTES as u64, buf));
        assert!(write.as_mut().poll(&mut context).is_pending());
        if index == 7 {
            bench.ring.submit();
        }
    }
    assert_eq!((bench.ring.in_flight(), bench.pool.free_slots()), (16, 0));
    let Bench { pool, ring, file, path, _directory } = bench;
    drop((device, ring));
    assert_eq!((pool.free_slots(), Arc::strong_count(&file)), (16, 1));
    drop(file);
    let bytes = fs::read(path).unwrap();
    for (index, shard) in (0..16).zip(bytes.chunks(SHARD_BLOCK_BYTES)) {
        let mut wanted = vec![0; SHARD_BLOCK_BYTES];
        pattern(&mut wanted, index);
        assert!(shard == wanted, "shard {index}");
    }
}

#[test]
fn the_end_of_a_file_is_a_short_read() {
    let bench = bench(4, 1);
    let device = UringDevice::new(&bench.ring, Arc::clone(&bench.file));
    for (left_bytes, wanted) in [(8192, 8192), (0, 0)] {
        fs::File::options().write(true).open(&bench.path).unwrap().set_len(left_bytes).unwrap();
        let (result, buf) = bench.ring.drive_blocking(device.read(0, IoBuf::zeroed(4 * BLOCK_BYTES)));
        let length_bytes = buf.len() as u64;
        let operation = Operation::Read;
        assert_eq!(
            result,
            Err(DeviceError::Short { operation, offset: 0, length_bytes, done_bytes: wanted })
        );
    }
}

#[test]
fn refusals_return_the_buffer() {
    let bench = bench(4, 1);
    let file = DeviceFile::open(&bench.path, OpenMode::ReadOnly).unwrap();
    let device = UringDevice::new(&bench.ring, file);
    bench.ring.drive_blocking(async {
        let (result, buf) = device.write(0, bench.pool.take().await).await;
        assert_eq!(result, Err(DeviceError::ReadOnly { operation: Operation::Write }));
        assert_eq!(device.flush().await, Err(DeviceError::ReadOnly { operation: Operation::Flush }));
        let (result, _) = device.read(SIZE_BYTES, buf).await;
        assert!(matches!(result, Err(DeviceError::OutOfBounds { .. })));
    });
}

#[test]
fn the_hook_rings_once_per_round_and_the_event_descriptor_on_completion() {
    let bench = bench(8, 1);
    let device = UringDevice::new(&bench.ring, Arc::clone(&bench.file));
    let rung = Rc::new(Cell::new(0));
    let counter = Rc::clone(&rung);
    bench.ring.set_on_queue(Rc::new(move || counter.set(counter.get() + 1)));
    let mut context = Context::from_waker(Waker::noop());
    let mut reads = pin!(join_all((0..3).map(|block| device.read(block * 4096, IoBuf::zeroed(BLOCK_BYTES)))));
    assert!(reads.as_mut().poll(&mut context).is_pending());
    assert_eq!((rung.get(), bench.ring.in_flight()), (1, 3));
    bench.ring.submit();
    let mut flush = pin!(device.flush());
    assert!(flush.as_mut().poll(&mut context).is_pending());
    assert_eq!(rung.get(), 2);
    bench.ring.submit();
    // SAFETY: the descriptor belongs to the ring, which outlives this use.
    let event_fd = unsafe { BorrowedFd::borrow_raw(bench.ring.event_fd()) };
    let mut event = fs::File::from(event_fd.try_clone_to_owned().unwrap());
    while bench.ring.in_flight() > 0 {
        std::io::Read::read_exact(&mut event, &mut [0; 8]).unwrap();
        bench.ring.reap();
    }
    assert!(reads.as_mut().poll(&mut context).is_ready());
    assert!(flush.as_mut().poll(&mut context).is_ready());
}

#[test]
fn devices_beyond_the_registered_files_still_work() {
    let bench = bench(8, 1);
    let devices: Vec<_> = (0..70).map(|_| UringDevice::new(&bench.ring, Arc::clone(&bench.file))).collect();
    for device in &devices {
        let (result, _) = bench.ring.drive_blocking(device.read(0, IoBuf::zeroed(BLOCK_BYTES)));
        result.unwrap();
    }
    drop(devices);
    assert_eq!(Arc::strong_count(&bench.file), 1);
}

#[test]
fn a_depth_the_kernel_refuses_is_an_error() {
    let pool = BufferPool::new(1).unwrap();
    assert!(matches!(Ring::new(1 << 30, &pool), Err(DeviceError::Setup { errno: libc::EINVAL, .. })));
}

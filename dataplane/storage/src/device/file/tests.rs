use std::{env, fs, process::Command, sync::Arc};

use futures::executor::block_on;

use super::super::{BufferPool, Device, IoBuf, Operation, Ring, SyncDevice, UringDevice};
use super::{BLOCK_BYTES, DeviceError, DeviceFile, Found, OpenMode};

const SIZE_BYTES: u64 = 4 << 20;

#[test]
fn creates_locks_and_refuses_to_clobber() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device");
    let file = DeviceFile::create(&path, SIZE_BYTES).unwrap();
    assert_eq!((file.size_bytes(), file.mode(), file.sector_bytes()), (SIZE_BYTES, OpenMode::ReadWrite, 512));
    assert!(matches!(DeviceFile::create(&path, SIZE_BYTES), Err(DeviceError::Exists { .. })));
    assert!(matches!(DeviceFile::open(&path, OpenMode::ReadWrite), Err(DeviceError::InUse { .. })));
    DeviceFile::open(&path, OpenMode::ReadOnly).unwrap();
    drop(file);
    DeviceFile::open(&path, OpenMode::ReadWrite).unwrap();
    assert_eq!(DeviceFile::probe(&path).unwrap(), Found::Blank);
}

#[test]
fn refuses_what_cannot_be_a_device() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device");
    for size_bytes in [0, 4095, 4097] {
        assert!(matches!(DeviceFile::create(&path, size_bytes), Err(DeviceError::InvalidSize { .. })));
    }
    assert!(matches!(
        DeviceFile::open(&path, OpenMode::ReadOnly),
        Err(DeviceError::Open { errno: libc::ENOENT, .. })
    ));
    // More than any file system holds: the attempt leaves nothing behind.
    assert!(matches!(DeviceFile::create(&path, 1 << 62), Err(DeviceError::Open { .. })));
    assert!(!path.exists());
    for path in [directory.path().to_str().unwrap(), "/dev/null"] {
        let refused = DeviceFile::open(path, OpenMode::ReadWrite);
        assert!(matches!(refused, Err(DeviceError::NotADevice { .. })), "{path}");
    }
    fs::write(&path, b"short").unwrap();
    assert!(matches!(
        DeviceFile::open(&path, OpenMode::ReadWrite),
        Err(DeviceError::InvalidSize { size_bytes: 5, .. })
    ));
    assert_eq!(DeviceFile::probe(&path).unwrap(), Found::Unknown);
}

#[test]
fn refused_direct_io_is_named() {
    // Regular, but of a file system without direct I/O.
    let refused = DeviceFile::open("/proc/self/status", OpenMode::ReadOnly);
    assert!(matches!(refused, Err(DeviceError::DirectIoRefused { .. })), "{refused:?}");
}

#[test]
fn sync_device_reads_back_and_knows_its_limits() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device");
    let device = SyncDevice::new(DeviceFile::create(&path, SIZE_BYTES).unwrap());
    let mut buf = IoBuf::zeroed(2 * BLOCK_BYTES);
    buf[..8].copy_from_slice(b"QUARRYSB");
    block_on(async {
        let (result, _) = device.write(0, buf).await;
        result.unwrap();
        device.flush().await.unwrap();
        let (result, buf) = device.read(0, IoBuf::zeroed(2 * BLOCK_BYTES)).await;
        result.unwrap();
        assert_eq!(&buf[..8], b"QUARRYSB");
        let (result, _) = device.read(SIZE_BYTES, buf).await;
        assert!(matches!(result, Err(DeviceError::OutOfBounds { .. })));
    });
    assert_eq!(DeviceFile::probe(&path).unwrap(), Found::Quarry);

    let reader = SyncDevice::new(DeviceFile::open(&path, OpenMode::ReadOnly).unwrap());
    let refused = DeviceError::ReadOnly { operation: Operation::Write };
    assert_eq!(reader.write_blocking(0, &IoBuf::zeroed(BLOCK_BYTES)), Err(refused));
    assert_eq!(reader.flush_blocking(), Err(DeviceError::ReadOnly { operation: Operation::Flush }));

    // Truncated behind our back.
    fs::File::options().write(true).open(&path).unwrap().set_len(BLOCK_BYTES as u64).unwrap();
    let short = reader.read_blocking(0, &mut IoBuf::zeroed(2 * BLOCK_BYTES));
    assert!(matches!(short, Err(DeviceError::Short { done_bytes: 4096, .. })), "{short:?}");
}

#[test]
fn probe_recognises_a_real_file_system() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    fs::File::create(&path).unwrap().set_len(SIZE_BYTES).unwrap();
    let Ok(made) = Command::new("mkfs.ext4").arg("-q").arg(&path).status() else { return };
    assert!(made.success());
    assert_eq!(DeviceFile::probe(&path).unwrap(), Found::Ext);
}

/// Needs a blank block device, whose content is lost: `QUARRY_TEST_BLOCK_DEVICE=/dev/loop7`.
#[test]
fn raw_block_device() {
    let Some(path) = env::var_os("QUARRY_TEST_BLOCK_DEVICE") else { return };
    assert_eq!(DeviceFile::probe(&path).unwrap(), Found::Blank);
    let file = Arc::new(DeviceFile::open(&path, OpenMode::ReadWrite).unwrap());
    assert!(file.size_bytes() > 0 && file.sector_bytes() >= 512);
    assert!(matches!(DeviceFile::open(&path, OpenMode::ReadWrite), Err(DeviceError::InUse { .. })));
    let device = SyncDevice::new(Arc::clone(&file));
    let last = file.size_bytes() - BLOCK_BYTES as u64;
    let mut buf = IoBuf::copy_of(&[9; BLOCK_BYTES]);
    device.write_blocking(last, &buf).unwrap();
    device.flush_blocking().unwrap();
    device.read_blocking(last, &mut buf).unwrap();
    assert_eq!(buf[4095], 9);
    let pool = BufferPool::new(1).unwrap();
    let ring = Ring::new(4, &pool).unwrap();
    let through_ring = UringDevice::new(&ring, file);
    ring.drive_blocking(async {
        let mut buf = pool.take().await;
        buf.set_len(BLOCK_BYTES);
        let (result, mut buf) = through_ring.read(last, buf).await;
        result.unwrap();
        assert_eq!(buf[4095], 9);
        buf.fill(0);
        through_ring.write(last, buf).await.0.unwrap();
        through_ring.flush().await.unwrap();
    });
    assert_eq!(DeviceFile::probe(&path).unwrap(), Found::Blank);
}

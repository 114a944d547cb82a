//! Opening what a device lives on: a raw block device or a preallocated file, always with direct I/O.
//!
//! Invariants: while a device is open for writing nobody else has it so (a block device by O_EXCL, which also refuses
//! mounted ones, a file by an exclusive lock); nothing that exists is replaced. Opening read-only takes no lock, so
//! that a running node can be inspected; such a reader may see a moment in between two writes.
#![allow(unsafe_code, reason = "ioctl and fallocate have no safe form in the standard library")]

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek},
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use super::{
    BLOCK_BYTES, DeviceError, Found, IoBuf,
    error::{errno_of, last_errno},
    probe::{self, PROBE_BYTES},
};

/// What an open device may be used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// Everything; excludes other writers.
    ReadWrite,
    /// Reading only.
    ReadOnly,
}

/// An open block device or file. Send and Sync: every core can use it through its own ring.
#[derive(Debug)]
pub struct DeviceFile {
    file: File,
    path: PathBuf,
    mode: OpenMode,
    size_bytes: u64,
    sector_bytes: u32,
}

impl DeviceFile {
    /// Opens an existing block device or file with direct I/O. The size is rounded down to [`BLOCK_BYTES`].
    ///
    /// # Errors
    /// [`DeviceError::InUse`], [`DeviceError::DirectIoRefused`], [`DeviceError::NotADevice`],
    /// [`DeviceError::InvalidSize`] if it is smaller than a block, otherwise [`DeviceError::Open`].
    pub fn open(path: impl AsRef<Path>, mode: OpenMode) -> Result<Self, DeviceError> {
        let path = path.as_ref();
        let kind = fs::metadata(path).map_err(|error| open_error("look at", path, &error))?.file_type();
        if !kind.is_block_device() && !kind.is_file() {
            return Err(DeviceError::NotADevice { path: path.to_path_buf() });
        }
        let exclusive = if kind.is_block_device() && mode == OpenMode::ReadWrite { libc::O_EXCL } else { 0 };
        let file = OpenOptions::new()
            .read(true)
            .write(mode == OpenMode::ReadWrite)
            .custom_flags(libc::O_DIRECT | exclusive)
            .open(path)
            .map_err(|error| open_error("open", path, &error))?;
        Self::adopt(file, path, mode)
    }

    /// Creates a file of `size_bytes` with all its space allocated, and opens it for writing.
    ///
    /// # Errors
    /// [`DeviceError::Exists`] if there is anything at `path`, [`DeviceError::InvalidSize`],
    /// [`DeviceError::DirectIoRefused`], otherwise [`DeviceError::Open`]; then the file is removed again.
    pub fn create(path: impl AsRef<Path>, size_bytes: u64) -> Result<Self, DeviceError> {
        let path = path.as_ref();
        let length = libc::off_t::try_from(size_bytes).ok().filter(|_| is_whole_blocks(size_bytes));
        let Some(length) = length else {
            return Err(DeviceError::InvalidSize { path: path.to_path_buf(), size_bytes });
        };
        // Without O_DIRECT at first: a file system that refuses it would leave the new file behind.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| open_error("create", path, &error))?;
        let created = allocate(&file, path, length).and_then(|()| {
            let opened = Self::open(path, OpenMode::ReadWrite)?;
            sync_parent(path)?;
            Ok(opened)
        });
        if created.is_err() {
            // The first error is the one worth reporting.
            let _ = fs::remove_file(path);
        }
        created
    }

    /// Says what is on a block device or in a file, without changing or locking it.
    ///
    /// # Errors
    /// [`DeviceError::NotADevice`], [`DeviceError::Open`].
    pub fn probe(path: impl AsRef<Path>) -> Result<Found, DeviceError> {
        let path = path.as_ref();
        let kind = fs::metadata(path).map_err(|error| open_error("look at", path, &error))?.file_type();
        if !kind.is_block_device() && !kind.is_file() {
            return Err(DeviceError::NotADevice { path: path.to_path_buf() });
        }
        let read = || -> io::Result<(Vec<u8>, Vec<u8>)> {
            let mut file = File::open(path)?;
            let size_bytes = file.seek(io::SeekFrom::End(0))?;
            let mut part = |start: u64| -> io::Result<Vec<u8>> {
                let mut bytes = Vec::new();
                file.seek(io::SeekFrom::Start(start))?;
                (&file).take(PROBE_BYTES).read_to_end(&mut bytes)?;
                Ok(bytes)
            };
            Ok((part(0)?, part(size_bytes.saturating_sub(PROBE_BYTES))?))
        };
        let (head, tail) = read().map_err(|error| open_error("probe", path, &error))?;
        Ok(probe::identify(&head, &tail))
    }

    /// Usable bytes, a multiple of [`BLOCK_BYTES`].
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Logical block size of a block device, 512 for a file; what the medium writes atomically at best.
    pub fn sector_bytes(&self) -> u32 {
        self.sector_bytes
    }

    /// What it may be used for.
    pub fn mode(&self) -> OpenMode {
        self.mode
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file, for blocking I/O.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// One fdatasync; the error number if it failed. The standard library's call would repeat it after EINTR, and a
    /// failed flush is never retried.
    pub(super) fn flush_once(&self) -> Result<(), i32> {
        // SAFETY: the descriptor is open and the call touches no memory of ours.
        if unsafe { libc::fdatasync(self.raw_fd()) } == 0 { Ok(()) } else { Err(last_errno()) }
    }

    /// The descriptor, valid as long as self.
    pub(super) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn adopt(file: File, path: &Path, mode: OpenMode) -> Result<Self, DeviceError> {
        let metadata = file.metadata().map_err(|error| open_error("look at", path, &error))?;
        let (bytes, sector_bytes) = if metadata.file_type().is_block_device() {
            (block_device_bytes(&file, path)?, block_device_sector_bytes(&file, path)?)
        } else if metadata.is_file() {
            if mode == OpenMode::ReadWrite {
                lock(&file, path)?;
            }
            (metadata.len(), 512)
        } else {
            return Err(DeviceError::NotADevice { path: path.to_path_buf() });
        };
        let size_bytes = bytes - bytes % BLOCK_BYTES as u64;
        if size_bytes == 0 {
            return Err(DeviceError::InvalidSize { path: path.to_path_buf(), size_bytes: bytes });
        }
        // Some file systems accept the flag and refuse the first transfer; so does a sector larger than a block.
        let mut block = IoBuf::zeroed(BLOCK_BYTES);
        match file.read_at(&mut block, 0) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                Err(DeviceError::DirectIoRefused { path: path.to_path_buf() })
            }
            // Any other error is the medium's, and will show again where it can be handled.
            _ => Ok(Self { file, path: path.to_path_buf(), mode, size_bytes, sector_bytes }),
        }
    }
}

fn is_whole_blocks(size_bytes: u64) -> bool {
    size_bytes > 0 && size_bytes.is_multiple_of(BLOCK_BYTES as u64)
}

fn open_error(action: &'static str, path: &Path, error: &io::Error) -> DeviceError {
    let path = path.to_path_buf();
    match (action, errno_of(error)) {
        ("open", libc::EBUSY) => DeviceError::InUse { path },
        ("open", libc::EINVAL) => DeviceError::DirectIoRefused { path },
        ("create", libc::EEXIST) => DeviceError::Exists { path },
        (_, errno) => DeviceError::Open { action, path, errno },
    }
}

fn lock(file: &File, path: &Path) -> Result<(), DeviceError> {
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => DeviceError::InUse { path: path.to_path_buf() },
        TryLockError::Error(error) => open_error("lock", path, &error),
    })
}

fn allocate(file: &File, path: &Path, length: libc::off_t) -> Result<(), DeviceError> {
    // SAFETY: the descriptor is open for writing and the call touches no memory of ours.
    let refused = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) } != 0;
    if refused {
        return Err(DeviceError::Open { action: "allocate", path: path.to_path_buf(), errno: last_errno() });
    }
    file.sync_all().map_err(|error| open_error("flush", path, &error))
}

/// Makes the directory entry of a new file durable.
fn sync_parent(path: &Path) -> Result<(), DeviceError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| open_error("flush directory", parent, &error))
}

/// BLKGETSIZE64 of `linux/fs.h`, `_IOR(0x12, 114, size_t)`, on 64-bit machines.
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272_u32 as libc::Ioctl;
/// BLKSSZGET of `linux/fs.h`, `_IO(0x12, 104)`.
const BLKSSZGET: libc::Ioctl = 0x1268;

fn block_device_bytes(file: &File, path: &Path) -> Result<u64, DeviceError> {
    let mut bytes = 0_u64;
    // SAFETY: the request writes one u64 through the pointer, which is valid for the call.
    let refused = unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut bytes) } != 0;
    if refused {
        return Err(DeviceError::Open {
            action: "get the size of",
            path: path.to_path_buf(),
            errno: last_errno(),
        });
    }
    Ok(bytes)
}

fn block_device_sector_bytes(file: &File, path: &Path) -> Result<u32, DeviceError> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one int through the pointer, which is valid for the call.
    let refused = unsafe { libc::ioctl(file.as_raw_fd(), BLKSSZGET, &raw mut bytes) } != 0;
    if refused {
        let (action, errno) = ("get the sector size of", last_errno());
        return Err(DeviceError::Open { action, path: path.to_path_buf(), errno });
    }
    Ok(u32::try_from(bytes).expect("a sector size is positive"))
}

#[cfg(test)]
mod tests;

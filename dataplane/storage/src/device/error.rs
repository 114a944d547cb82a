//! What can go wrong on a device, with the facts a log line or a policy needs.

use std::{fmt, io, path::PathBuf};

/// What was being done when an error struck.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Operation {
    /// Filling a buffer.
    Read,
    /// Writing a buffer.
    Write,
    /// Making completed writes durable.
    Flush,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
        })
    }
}

/// Errors of this module. `errno` fields hold Linux error numbers.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DeviceError {
    /// The kernel or the medium failed an operation. `offset` and `length_bytes` are 0 for a flush.
    #[error("{operation} of {length_bytes} bytes at {offset}: {}", describe(*errno))]
    Io {
        /// What failed.
        operation: Operation,
        /// First byte of the range.
        offset: u64,
        /// Bytes asked for.
        length_bytes: u64,
        /// Linux error number.
        errno: i32,
    },
    /// Fewer bytes were transferred than asked for, for example because the file was truncated behind our back.
    #[error("{operation} of {length_bytes} bytes at {offset} ended after {done_bytes}")]
    Short {
        /// What fell short.
        operation: Operation,
        /// First byte of the range.
        offset: u64,
        /// Bytes asked for.
        length_bytes: u64,
        /// Bytes transferred.
        done_bytes: u64,
    },
    /// The range does not lie on the device.
    #[error("{operation} of {length_bytes} bytes at {offset} is outside the device of {size_bytes} bytes")]
    OutOfBounds {
        /// What was refused.
        operation: Operation,
        /// First byte of the range.
        offset: u64,
        /// Bytes asked for.
        length_bytes: u64,
        /// Size of the device.
        size_bytes: u64,
    },
    /// Write or flush on a device opened read-only.
    #[error("{operation} refused: the device is open read-only")]
    ReadOnly {
        /// What was refused.
        operation: Operation,
    },
    /// The device was switched off.
    #[error("the device is closed")]
    Closed,
    /// A system call on the way to an open device failed.
    #[error("{action} {}: {}", path.display(), describe(*errno))]
    Open {
        /// What was tried: open, lock, allocate, ...
        action: &'static str,
        /// The file or block device.
        path: PathBuf,
        /// Linux error number.
        errno: i32,
    },
    /// Another process has it open for writing, or it is mounted.
    #[error("{} is in use: another process holds it, or it is mounted", path.display())]
    InUse {
        /// The file or block device.
        path: PathBuf,
    },
    /// A new device file would replace something.
    #[error("{} exists and will not be overwritten", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Direct I/O in units of [`super::BLOCK_BYTES`] does not work there.
    #[error(
        "{} does not support direct I/O (O_DIRECT) in units of 4096 bytes: use a raw block device or a file on ext4 or xfs",
        path.display()
    )]
    DirectIoRefused {
        /// The file or block device.
        path: PathBuf,
    },
    /// Neither a regular file nor a block device.
    #[error("{} is neither a regular file nor a block device", path.display())]
    NotADevice {
        /// What was named.
        path: PathBuf,
    },
    /// The size asked for is zero or not a multiple of [`super::BLOCK_BYTES`].
    #[error("{}: a size of {size_bytes} bytes is not a positive multiple of 4096", path.display())]
    InvalidSize {
        /// The file or block device.
        path: PathBuf,
        /// As given or found.
        size_bytes: u64,
    },
    /// The buffer memory or the ring could not be set up.
    #[error("{action}: {}{}", describe(*errno), memlock_hint(*errno))]
    Setup {
        /// What was tried.
        action: &'static str,
        /// Linux error number.
        errno: i32,
    },
}

impl DeviceError {
    /// The range that the medium could not read (EIO), as (offset, length) in bytes; `None`: something else went wrong.
    #[must_use]
    pub fn unreadable(&self) -> Option<(u64, u64)> {
        match *self {
            Self::Io { operation: Operation::Read, offset, length_bytes, errno: libc::EIO } => {
                Some((offset, length_bytes))
            }
            _ => None,
        }
    }
}

impl DeviceError {
    /// Builds the error of one I/O from what the operating system said.
    pub(super) fn io(operation: Operation, offset: u64, length_bytes: usize, errno: i32) -> Self {
        Self::Io { operation, offset, length_bytes: length_bytes as u64, errno }
    }
}

/// The error number behind `error`; EIO where the standard library made the error up itself.
pub(super) fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// The error number of the system call that has just failed on this thread.
pub(super) fn last_errno() -> i32 {
    errno_of(&io::Error::last_os_error())
}

fn describe(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

fn memlock_hint(errno: i32) -> &'static str {
    if errno == libc::ENOMEM {
        " (registered buffers count as locked memory: raise LimitMEMLOCK= in the systemd unit, or `ulimit -l`)"
    } else {
        ""
    }
}

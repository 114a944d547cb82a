//! Blocking I/O behind the [`Device`] trait: its futures are ready at the first poll. For formatting, inspection and
//! fsck outside an executor; on a core it would block everything else.

use std::{io, os::unix::fs::FileExt, sync::Arc};

use super::{Device, DeviceError, DeviceFile, IoBuf, OpenMode, Operation, check_range, error::errno_of};

/// A [`DeviceFile`] used by blocking system calls; read-only if the file was opened so.
#[derive(Clone, Debug)]
pub struct SyncDevice {
    file: Arc<DeviceFile>,
}

impl SyncDevice {
    /// Uses `file`.
    pub fn new(file: impl Into<Arc<DeviceFile>>) -> Self {
        Self { file: file.into() }
    }

    /// The file under it.
    #[must_use]
    pub fn file(&self) -> &Arc<DeviceFile> {
        &self.file
    }

    /// Fills `buf` from `offset`, blocking.
    ///
    /// # Errors
    /// As [`Device::read`].
    pub fn read_blocking(&self, offset: u64, buf: &mut IoBuf) -> Result<(), DeviceError> {
        let length_bytes = buf.len();
        check_range(Operation::Read, offset, length_bytes, self.file.size_bytes())?;
        transfer(Operation::Read, offset, length_bytes, |done| {
            self.file.file().read_at(&mut buf[done..], offset + done as u64)
        })
    }

    /// Writes `buf` at `offset`, blocking.
    ///
    /// # Errors
    /// As [`Device::write`].
    pub fn write_blocking(&self, offset: u64, buf: &IoBuf) -> Result<(), DeviceError> {
        check_range(Operation::Write, offset, buf.len(), self.file.size_bytes())?;
        self.check_writable(Operation::Write)?;
        transfer(Operation::Write, offset, buf.len(), |done| {
            self.file.file().write_at(&buf[done..], offset + done as u64)
        })
    }

    /// Makes completed writes durable, blocking.
    ///
    /// # Errors
    /// As [`Device::flush`].
    pub fn flush_blocking(&self) -> Result<(), DeviceError> {
        self.check_writable(Operation::Flush)?;
        self.file.flush_once().map_err(|errno| DeviceError::io(Operation::Flush, 0, 0, errno))
    }

    fn check_writable(&self, operation: Operation) -> Result<(), DeviceError> {
        match self.file.mode() {
            OpenMode::ReadWrite => Ok(()),
            OpenMode::ReadOnly => Err(DeviceError::ReadOnly { operation }),
        }
    }
}

/// Repeats `step`, which gets the bytes done so far and returns the bytes of one system call, until all are done.
fn transfer(
    operation: Operation,
    offset: u64,
    length_bytes: usize,
    mut step: impl FnMut(usize) -> io::Result<usize>,
) -> Result<(), DeviceError> {
    let mut done = 0;
    while done < length_bytes {
        match step(done) {
            Ok(0) => {
                let (length_bytes, done_bytes) = (length_bytes as u64, done as u64);
                return Err(DeviceError::Short { operation, offset, length_bytes, done_bytes });
            }
            Ok(bytes) => done += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(DeviceError::io(operation, offset, length_bytes, errno_of(&error))),
        }
    }
    Ok(())
}

impl Device for SyncDevice {
    fn size_bytes(&self) -> u64 {
        self.file.size_bytes()
    }

    async fn read(&self, offset: u64, mut buf: IoBuf) -> (Result<(), DeviceError>, IoBuf) {
        (self.read_blocking(offset, &mut buf), buf)
    }

    async fn write(&self, offset: u64, buf: IoBuf) -> (Result<(), DeviceError>, IoBuf) {
        (self.write_blocking(offset, &buf), buf)
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.flush_blocking()
    }
}

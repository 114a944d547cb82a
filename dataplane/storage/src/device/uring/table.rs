//! The slots of a ring: every operation from the moment it is queued until its future has the result.
//!
//! `free -> busy (queued, in the kernel, or queued again for the rest) -> done -> free`; the slot of an abandoned
//! future goes from busy to free. Nothing here calls a waker or drops a buffer: that is the caller's part, after it has
//! given back its borrow.

use std::{collections::VecDeque, io, mem, sync::Arc, task::Waker};

use io_uring::{IoUring, opcode, squeue, types};

use super::super::{DeviceError, DeviceFile, IoBuf, Operation, SECTOR_BYTES};

/// Registered files per ring; devices beyond that use their plain descriptor.
const FIXED_FILES: u32 = 64;
/// How often one operation is repeated after EINTR or EAGAIN.
const RETRIES_MAX: u32 = 8;
/// Most bytes in one submission, below the kernel's own limit of 2 GiB; the rest is continued.
const TRANSFER_BYTES_MAX: usize = 1 << 30;

/// An operation as its future asks for it; range and mode are checked already.
pub(super) struct Request {
    pub(super) operation: Operation,
    /// Position in the table of files.
    pub(super) file: usize,
    pub(super) offset: u64,
    /// `None` for a flush only.
    pub(super) buf: Option<IoBuf>,
    /// Index of the registered memory that `buf` lies in.
    pub(super) fixed_buffer: Option<u16>,
}

/// The end of an operation.
pub(super) struct Finished {
    pub(super) result: Result<(), DeviceError>,
    pub(super) buf: Option<IoBuf>,
}

enum Slot {
    Free,
    Busy(Busy),
    Done(Finished),
}

struct Busy {
    request: Request,
    done_bytes: usize,
    retries: u32,
    waker: Option<Waker>,
    /// The future is gone; only the buffer waits for the completion.
    abandoned: bool,
}

struct FileEntry {
    file: Arc<DeviceFile>,
    fixed: bool,
    /// The device handle, and every busy slot.
    users: usize,
}

/// What to do after a reap, outside the borrow.
pub(super) struct Reaped {
    wakers: Vec<Waker>,
    abandoned: Vec<Finished>,
    /// The queue was empty and now holds the rest of short transfers.
    pub(super) queued: bool,
}

impl Reaped {
    pub(super) fn freed_slots(&self) -> usize {
        self.abandoned.len()
    }

    /// Wakes the futures and lets go of abandoned buffers.
    pub(super) fn finish(self) {
        drop(self.abandoned);
        self.wakers.into_iter().for_each(Waker::wake);
    }
}

/// The io_uring and its slots.
pub(super) struct Core {
    /// Dropped by hand: only when no operation is in the kernel.
    uring: mem::ManuallyDrop<IoUring>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Slots to hand to the kernel, in order.
    queue: VecDeque<usize>,
    busy: usize,
    files: Vec<Option<FileEntry>>,
    fixed_files: u32,
}

impl Core {
    pub(super) fn new(uring: IoUring) -> Self {
        let slots = uring.params().cq_entries() as usize;
        let fixed_files =
            uring.submitter().register_files_sparse(FIXED_FILES).map(|()| FIXED_FILES).unwrap_or(0);
        Self {
            uring: mem::ManuallyDrop::new(uring),
            slots: (0..slots).map(|_| Slot::Free).collect(),
            free: (0..slots).rev().collect(),
            queue: VecDeque::with_capacity(slots),
            busy: 0,
            files: Vec::new(),
            fixed_files,
        }
    }

    /// Operations queued or in the kernel.
    pub(super) fn busy(&self) -> usize {
        self.busy
    }

    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Enters a file; the entry lives until its release and the end of its last operation.
    pub(super) fn add_file(&mut self, file: &Arc<DeviceFile>) -> usize {
        let index = self.files.iter().position(Option::is_none).unwrap_or_else(|| {
            self.files.push(None);
            self.files.len() - 1
        });
        let fixed = self.update_file(index, file.raw_fd());
        self.files[index] = Some(FileEntry { file: Arc::clone(file), fixed, users: 1 });
        index
    }

    /// Gives back one use of a file.
    pub(super) fn release_file(&mut self, index: usize) {
        let entry = self.files[index].as_mut().expect("a file in use has an entry");
        entry.users -= 1;
        if entry.users == 0 {
            if entry.fixed {
                self.update_file(index, -1);
            }
            self.files[index] = None;
        }
    }

    /// Registers a descriptor with the kernel, or removes it (-1); false if that was not possible.
    fn update_file(&self, index: usize, fd: i32) -> bool {
        let index = u32::try_from(index).expect("few files");
        index < self.fixed_files
            && self.uring.submitter().register_files_update(index, &[fd]).is_ok_and(|updated| updated == 1)
    }

    /// Puts a request into a free slot and the slot into the queue. Returns the slot, and whether the queue was empty.
    ///
    /// # Panics
    /// When there is no room.
    pub(super) fn queue(&mut self, request: Request) -> (usize, bool) {
        let index = self.free.pop().expect("the caller waited for room");
        self.files[request.file].as_mut().expect("a device has its file").users += 1;
        self.slots[index] =
            Slot::Busy(Busy { request, done_bytes: 0, retries: 0, waker: None, abandoned: false });
        self.busy += 1;
        let first = self.nothing_queued();
        self.queue.push_back(index);
        (index, first)
    }

    /// The result of a slot, which is then free; otherwise remembers whom to wake.
    pub(super) fn poll(&mut self, index: usize, waker: &Waker) -> Option<Finished> {
        match &mut self.slots[index] {
            Slot::Busy(busy) => {
                if !busy.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
                    busy.waker = Some(waker.clone());
                }
                None
            }
            Slot::Done(_) => self.take_done(index),
            Slot::Free => unreachable!("a future owns its slot"),
        }
    }

    /// The future of a slot is gone. Returns what was done already, for dropping.
    pub(super) fn abandon(&mut self, index: usize) -> Option<Finished> {
        if let Slot::Busy(busy) = &mut self.slots[index] {
            busy.abandoned = true;
            busy.waker = None;
            return None;
        }
        self.take_done(index)
    }

    fn take_done(&mut self, index: usize) -> Option<Finished> {
        let Slot::Done(finished) = mem::replace(&mut self.slots[index], Slot::Free) else {
            unreachable!("only a done slot is taken");
        };
        self.free.push(index);
        Some(finished)
    }

    /// Hands the queue to the kernel and waits for `wait_for` completions. Returns whether something is left over.
    ///
    /// # Panics
    /// When the kernel refuses the call as such.
    pub(super) fn submit(&mut self, wait_for: usize) -> bool {
        match self.try_submit(wait_for) {
            Ok(()) => {}
            Err(error) if is_transient(&error) => {}
            Err(error) => panic!("io_uring_enter refused a valid call: {error}"),
        }
        !self.nothing_queued()
    }

    fn try_submit(&mut self, wait_for: usize) -> io::Result<()> {
        loop {
            self.fill();
            if self.uring.submission().is_empty() && wait_for == 0 {
                return Ok(());
            }
            // Waiting makes sense only once nothing is left to submit.
            let last = self.queue.is_empty();
            let submitted = self.uring.submit_and_wait(if last { wait_for } else { 0 })?;
            if last || submitted == 0 {
                return Ok(());
            }
        }
    }

    /// Moves the queue into the kernel's submission queue as far as there is space.
    fn fill(&mut self) {
        while let Some(&index) = self.queue.front() {
            let entry = self.entry(index);
            // SAFETY: the memory named by the entry belongs to the buffer in the slot, which stays there, unmoved and
            // untouched, until the completion with this index arrives.
            if unsafe { self.uring.submission().push(&entry) }.is_err() {
                return;
            }
            self.queue.pop_front();
        }
    }

    fn nothing_queued(&mut self) -> bool {
        self.queue.is_empty() && self.uring.submission().is_empty()
    }

    /// The submission for what is left to do in a slot.
    fn entry(&mut self, index: usize) -> squeue::Entry {
        let Slot::Busy(busy) = &mut self.slots[index] else { unreachable!("only busy slots are queued") };
        let request = &mut busy.request;
        let file = self.files[request.file].as_ref().expect("a busy slot keeps its file");
        let entry = if file.fixed {
            let position = i32::try_from(request.file).expect("few files");
            prepare(request, types::Fd(position), busy.done_bytes).flags(squeue::Flags::FIXED_FILE)
        } else {
            prepare(request, types::Fd(file.file.raw_fd()), busy.done_bytes)
        };
        entry.user_data(index as u64)
    }

    /// Takes in all completions.
    pub(super) fn reap(&mut self) -> Reaped {
        if self.uring.submission().taskrun() {
            // Completions wait for this thread to enter the kernel. A failure leaves them for the next time.
            let _ = self.uring.submit();
        }
        let was_empty = self.nothing_queued();
        let mut reaped = Reaped { wakers: Vec::new(), abandoned: Vec::new(), queued: false };
        while let Some(entry) = { self.uring.completion().next() } {
            let index = usize::try_from(entry.user_data()).expect("a slot index");
            self.complete(index, entry.result(), &mut reaped);
        }
        reaped.queued = was_empty && !self.nothing_queued();
        reaped
    }

    fn complete(&mut self, index: usize, result: i32, reaped: &mut Reaped) {
        let Slot::Busy(mut busy) = mem::replace(&mut self.slots[index], Slot::Free) else {
            unreachable!("a completion belongs to a busy slot");
        };
        let Some(result) = busy.advance(result) else {
            self.slots[index] = Slot::Busy(busy);
            self.queue.push_back(index);
            return;
        };
        self.busy -= 1;
        self.release_file(busy.request.file);
        let finished = Finished { result, buf: busy.request.buf };
        if busy.abandoned {
            self.free.push(index);
            reaped.abandoned.push(finished);
        } else {
            self.slots[index] = Slot::Done(finished);
            reaped.wakers.extend(busy.waker);
        }
    }

    /// Carries out what is queued and waits for everything in flight.
    fn drain(&mut self) -> io::Result<()> {
        while self.busy > 0 {
            match self.try_submit(1) {
                Err(error) if !is_transient(&error) => return Err(error),
                _ => self.reap().finish(),
            }
        }
        Ok(())
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if let Err(error) = self.drain() {
            // The kernel may still write to the buffers: leaking them, and the ring, is all that is safe.
            tracing::error!(%error, in_flight = self.busy, "storage.ring.leaked");
            mem::forget(mem::take(&mut self.slots));
            return;
        }
        // SAFETY: dropped once, here, and not used afterwards.
        unsafe { mem::ManuallyDrop::drop(&mut self.uring) };
    }
}

impl Busy {
    /// Takes in one completion; `None` if the operation has to go on.
    fn advance(&mut self, result: i32) -> Option<Result<(), DeviceError>> {
        let Request { operation, offset, .. } = self.request;
        let length_bytes = self.request.buf.as_ref().map_or(0, |buf| buf.len());
        let Ok(moved) = usize::try_from(result) else {
            let errno = -result;
            // A failed flush is never retried: the second one would succeed without what the first one lost.
            let transient = matches!(errno, libc::EINTR | libc::EAGAIN) && operation != Operation::Flush;
            if transient && self.retries < RETRIES_MAX {
                self.retries += 1;
                return None;
            }
            return Some(Err(DeviceError::io(operation, offset, length_bytes, errno)));
        };
        if operation == Operation::Flush {
            return Some(Ok(()));
        }
        self.done_bytes += moved;
        assert!(self.done_bytes <= length_bytes, "the kernel moved {} of {length_bytes}", self.done_bytes);
        if self.done_bytes == length_bytes {
            return Some(Ok(()));
        }
        // The end of the file. Direct I/O could not go on from inside a sector either.
        if moved == 0 || !self.done_bytes.is_multiple_of(SECTOR_BYTES) {
            let (length_bytes, done_bytes) = (length_bytes as u64, self.done_bytes as u64);
            return Some(Err(DeviceError::Short { operation, offset, length_bytes, done_bytes }));
        }
        None
    }
}

/// `file` is a descriptor, or a position among the registered files if the caller flags it so.
fn prepare(request: &mut Request, file: types::Fd, done_bytes: usize) -> squeue::Entry {
    let Some(buf) = &mut request.buf else {
        assert_eq!(request.operation, Operation::Flush, "a transfer has a buffer");
        return opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build();
    };
    let rest = &mut buf[done_bytes..];
    let length = u32::try_from(rest.len().min(TRANSFER_BYTES_MAX)).expect("bounded above");
    let start = rest.as_mut_ptr();
    let offset = request.offset + done_bytes as u64;
    match (request.operation, request.fixed_buffer) {
        (Operation::Read, Some(index)) => {
            opcode::ReadFixed::new(file, start, length, index).offset(offset).build()
        }
        (Operation::Read, None) => opcode::Read::new(file, start, length).offset(offset).build(),
        (Operation::Write, Some(index)) => {
            opcode::WriteFixed::new(file, start, length, index).offset(offset).build()
        }
        (Operation::Write, None) => opcode::Write::new(file, start, length).offset(offset).build(),
        (Operation::Flush, _) => unreachable!("a flush has no buffer"),
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

#[cfg(test)]
mod tests {
    use super::super::super::BLOCK_BYTES;
    use super::{Busy, DeviceError, IoBuf, Operation, RETRIES_MAX, Request};

    fn busy(operation: Operation) -> Busy {
        let buf = (operation != Operation::Flush).then(|| IoBuf::zeroed(2 * BLOCK_BYTES));
        let offset = if buf.is_some() { 4096 } else { 0 };
        let request = Request { operation, file: 0, offset, buf, fixed_buffer: None };
        Busy { request, done_bytes: 0, retries: 0, waker: None, abandoned: false }
    }

    #[test]
    fn short_transfers_go_on_until_the_end() {
        for operation in [Operation::Read, Operation::Write] {
            let mut busy = busy(operation);
            assert_eq!(
                (busy.advance(4096), busy.advance(512), busy.advance(3584)),
                (None, None, Some(Ok(())))
            );
        }
        assert_eq!(busy(Operation::Flush).advance(0), Some(Ok(())));
    }

    #[test]
    fn no_progress_or_half_a_sector_is_short() {
        for (results, done) in [(&[4096, 0][..], 4096), (&[512, 100][..], 612), (&[0][..], 0)] {
            let mut busy = busy(Operation::Read);
            let last = results.iter().map(|&result| busy.advance(result)).last();
            assert!(
                matches!(last, Some(Some(Err(DeviceError::Short { done_bytes, .. }))) if done_bytes == done),
                "{last:?}"
            );
        }
    }

    #[test]
    fn interruptions_are_retried_a_few_times_and_errors_never() {
        let mut interrupted = busy(Operation::Write);
        for _ in 0..RETRIES_MAX {
            assert_eq!(interrupted.advance(-libc::EAGAIN), None);
        }
        let failed = |errno| Some(Err(DeviceError::io(Operation::Write, 4096, 2 * BLOCK_BYTES, errno)));
        assert_eq!(interrupted.advance(-libc::EINTR), failed(libc::EINTR));
        assert_eq!(busy(Operation::Write).advance(-libc::EIO), failed(libc::EIO));
        for errno in [libc::EIO, libc::EINTR] {
            let flush = busy(Operation::Flush).advance(-errno);
            assert_eq!(flush, Some(Err(DeviceError::io(Operation::Flush, 0, 0, errno))));
        }
    }
}

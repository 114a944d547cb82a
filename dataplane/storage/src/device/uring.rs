//! The production backend: one io_uring per core, driven by the core's own executor.
//!
//! Polling an operation only queues it and calls the hook of [`Ring::set_on_queue`]; [`Ring::submit`], once per
//! scheduler round, hands everything queued to the kernel; [`Ring::reap`], when the event descriptor fires, completes
//! futures. Buffers of the ring's own pool travel as registered memory, files as registered files.
//!
//! Invariants: a slot owns the buffer of its operation until the completion arrives, so dropping a future never
//! recycles memory that the kernel still uses (an abandoned write is still carried out); there are as many slots as
//! completion queue entries, so the kernel's queue cannot overflow, and operations beyond that wait for a slot; a ring
//! is dropped only after its last completion.
//!
//! Failure model: short transfers are continued, except at the end of a file; EINTR and EAGAIN of a transfer are
//! retried a few times; every other error, and every error of a flush, goes to the caller. A refused
//! `io_uring_enter` is a bug here and panics.
#![allow(unsafe_code, reason = "hands buffer addresses to the kernel")]

mod table;

use std::{
    cell::RefCell,
    fmt,
    future::Future,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    pin::{Pin, pin},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

use event_listener::Event;
use io_uring::IoUring;

use self::table::{Core, Finished, Request};
use super::{
    BufferPool, Device, DeviceError, DeviceFile, IoBuf, OpenMode, Operation, check_range,
    error::{errno_of, last_errno},
};

/// Completion queue entries, and so operations in flight, per submission queue entry.
const COMPLETIONS_PER_DEPTH: u32 = 4;
/// The kernel takes at most this much memory in one registered buffer; a multiple of every slot size.
const FIXED_BUFFER_BYTES: usize = 1 << 30;

/// One io_uring, for one thread. Clones are handles to the same ring.
#[derive(Clone)]
pub struct Ring {
    inner: Rc<Inner>,
}

struct Inner {
    core: RefCell<Core>,
    event_fd: OwnedFd,
    /// Keeps the registered memory mapped, and tells its buffers from others.
    pool: BufferPool,
    /// Notified when a slot becomes free.
    room: Event,
    on_queue: RefCell<Option<Rc<dyn Fn()>>>,
}

impl Ring {
    /// A ring for the calling thread that submits up to `depth` operations per system call and keeps up to four
    /// times as many in flight. Registers the memory of `pool`, which pins it.
    ///
    /// # Errors
    /// [`DeviceError::Setup`]: no io_uring here, depth out of range, or too little lockable memory.
    pub fn new(depth: u32, pool: &BufferPool) -> Result<Self, DeviceError> {
        let setup = |action| move |error: io::Error| DeviceError::Setup { action, errno: errno_of(&error) };
        let uring = build(depth).map_err(setup("set up io_uring"))?;
        let (start, bytes) = pool.region();
        let buffers: Vec<libc::iovec> = (0..bytes)
            .step_by(FIXED_BUFFER_BYTES)
            .map(|offset| libc::iovec {
                iov_base: start.as_ptr().wrapping_add(offset).cast(),
                iov_len: FIXED_BUFFER_BYTES.min(bytes - offset),
            })
            .collect();
        // SAFETY: the ranges are the mapping of `pool`; Inner holds the pool and drops it after the ring.
        unsafe { uring.submitter().register_buffers(&buffers) }
            .map_err(setup("register buffer memory with io_uring"))?;
        // Blocking reads of it, through the executor's own ring, are how the executor waits for completions.
        // SAFETY: creates a descriptor and touches no memory.
        let event_fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if event_fd < 0 {
            return Err(DeviceError::Setup { action: "create an event descriptor", errno: last_errno() });
        }
        // SAFETY: the descriptor was just created and nobody else owns it.
        let event_fd = unsafe { OwnedFd::from_raw_fd(event_fd) };
        uring
            .submitter()
            .register_eventfd(event_fd.as_raw_fd())
            .map_err(setup("register an event descriptor with io_uring"))?;
        let inner = Inner {
            core: RefCell::new(Core::new(uring)),
            event_fd,
            pool: pool.clone(),
            room: Event::new(),
            on_queue: RefCell::new(None),
        };
        Ok(Self { inner: Rc::new(inner) })
    }

    /// Becomes readable (8 bytes, blocking) when completions arrived; valid as long as the ring.
    pub fn event_fd(&self) -> RawFd {
        self.inner.event_fd.as_raw_fd()
    }

    /// Sets what is called when the queue goes from empty to non-empty: it should have [`Ring::submit`] called
    /// soon, must not call into the ring itself, and must not own it (the ring owns the hook).
    pub fn set_on_queue(&self, hook: Rc<dyn Fn()>) {
        *self.inner.on_queue.borrow_mut() = Some(hook);
    }

    /// Hands everything queued to the kernel. What the kernel cannot take now is announced by the hook again.
    pub fn submit(&self) {
        let left = self.inner.core.borrow_mut().submit(0);
        if left {
            self.inner.announce();
        }
    }

    /// Completes the futures whose operations are done.
    pub fn reap(&self) {
        let reaped = self.inner.core.borrow_mut().reap();
        // Outside the borrow: a waker or a buffer's pool may call anything.
        self.inner.room.notify_additional(reaped.freed_slots());
        if reaped.queued {
            self.inner.announce();
        }
        reaped.finish();
    }

    /// Operations queued or in the kernel.
    pub fn in_flight(&self) -> usize {
        self.inner.core.borrow().busy()
    }

    /// Runs `future` to completion on this thread, blocking in the kernel while only the ring can wake it. For tests
    /// and tools.
    pub fn drive_blocking<F: Future>(&self, future: F) -> F::Output {
        let alarm = Arc::new(Alarm { rung: AtomicBool::new(true), thread: thread::current() });
        let waker = Waker::from(Arc::clone(&alarm));
        let mut context = Context::from_waker(&waker);
        let mut future = pin!(future);
        loop {
            if alarm.rung.swap(false, Ordering::SeqCst)
                && let Poll::Ready(output) = future.as_mut().poll(&mut context)
            {
                return output;
            }
            if self.in_flight() == 0 {
                if !alarm.rung.load(Ordering::SeqCst) {
                    thread::park();
                }
                continue;
            }
            let wait_for = usize::from(!alarm.rung.load(Ordering::SeqCst));
            self.inner.core.borrow_mut().submit(wait_for);
            self.reap();
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ring({} in flight)", self.in_flight())
    }
}

/// The best ring this kernel grants: the flags save inter-processor interrupts and are newer than io_uring itself.
fn build(depth: u32) -> io::Result<IoUring> {
    let completions = depth.saturating_mul(COMPLETIONS_PER_DEPTH);
    IoUring::builder()
        .setup_cqsize(completions)
        .setup_single_issuer()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .build(depth)
        .or_else(|_| IoUring::builder().setup_cqsize(completions).build(depth))
}

struct Alarm {
    rung: AtomicBool,
    thread: Thread,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.rung.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

impl Inner {
    fn announce(&self) {
        let hook = self.on_queue.borrow().clone();
        if let Some(hook) = hook {
            hook();
        }
    }

    /// Waits for a slot behind those who wait already.
    async fn room(&self) {
        let mut waited = false;
        while !self.core.borrow().has_room() || (!waited && self.room.total_listeners() > 0) {
            self.room.listen().await;
            waited = true;
        }
    }

    async fn run(&self, request: Request) -> Finished {
        self.room().await;
        let (index, first) = self.core.borrow_mut().queue(request);
        let completion = Completion { inner: self, index: Some(index) };
        if self.core.borrow().has_room() {
            // Several slots may have become free on one notification.
            self.room.notify(1);
        }
        if first {
            self.announce();
        }
        completion.await
    }
}

/// Waits for the operation in a slot; abandons it on drop.
struct Completion<'a> {
    inner: &'a Inner,
    /// `None` once finished.
    index: Option<usize>,
}

impl Future for Completion<'_> {
    type Output = Finished;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Finished> {
        let index = self.index.expect("not polled after completion");
        let finished = self.inner.core.borrow_mut().poll(index, context.waker());
        if let Some(finished) = finished {
            self.index = None;
            self.inner.room.notify_additional(1);
            return Poll::Ready(finished);
        }
        Poll::Pending
    }
}

impl Drop for Completion<'_> {
    fn drop(&mut self) {
        let Some(index) = self.index else { return };
        let finished = self.inner.core.borrow_mut().abandon(index);
        if finished.is_some() {
            self.inner.room.notify_additional(1);
        }
    }
}

/// A [`DeviceFile`] used through a [`Ring`].
pub struct UringDevice {
    ring: Ring,
    file: Arc<DeviceFile>,
    /// Position in the ring's table of files.
    registration: usize,
}

impl UringDevice {
    /// Uses `file` through `ring`; several devices may share a ring, and several rings a file.
    pub fn new(ring: &Ring, file: impl Into<Arc<DeviceFile>>) -> Self {
        let file = file.into();
        let registration = ring.inner.core.borrow_mut().add_file(&file);
        Self { ring: ring.clone(), file, registration }
    }

    /// The file or block device behind it.
    pub fn file(&self) -> &DeviceFile {
        &self.file
    }

    fn check_writable(&self, operation: Operation) -> Result<(), DeviceError> {
        match self.file.mode() {
            OpenMode::ReadWrite => Ok(()),
            OpenMode::ReadOnly => Err(DeviceError::ReadOnly { operation }),
        }
    }

    async fn transfer(
        &self,
        operation: Operation,
        offset: u64,
        buf: IoBuf,
    ) -> (Result<(), DeviceError>, IoBuf) {
        let fixed_buffer = buf.region_offset(&self.ring.inner.pool).map(|bytes| {
            u16::try_from(bytes / FIXED_BUFFER_BYTES).expect("the kernel accepted that many buffers")
        });
        let file = self.registration;
        let request = Request { operation, file, offset, buf: Some(buf), fixed_buffer };
        let finished = self.ring.inner.run(request).await;
        (finished.result, finished.buf.expect("a transfer has a buffer"))
    }
}

impl Drop for UringDevice {
    fn drop(&mut self) {
        self.ring.inner.core.borrow_mut().release_file(self.registration);
    }
}

impl Device for UringDevice {
    fn size_bytes(&self) -> u64 {
        self.file.size_bytes()
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> (Result<(), DeviceError>, IoBuf) {
        match check_range(Operation::Read, offset, buf.len(), self.size_bytes()) {
            Ok(()) => self.transfer(Operation::Read, offset, buf).await,
            Err(error) => (Err(error), buf),
        }
    }

    async fn write(&self, offset: u64, buf: IoBuf) -> (Result<(), DeviceError>, IoBuf) {
        let checked = check_range(Operation::Write, offset, buf.len(), self.size_bytes())
            .and_then(|()| self.check_writable(Operation::Write));
        match checked {
            Ok(()) => self.transfer(Operation::Write, offset, buf).await,
            Err(error) => (Err(error), buf),
        }
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.check_writable(Operation::Flush)?;
        let file = self.registration;
        let request = Request { operation: Operation::Flush, file, offset: 0, buf: None, fixed_buffer: None };
        self.ring.inner.run(request).await.result
    }
}

impl fmt::Debug for UringDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UringDevice").field("file", &self.file).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

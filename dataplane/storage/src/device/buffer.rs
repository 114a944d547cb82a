//! Aligned I/O memory: [`IoBuf`] and the [`BufferPool`] it usually comes from.
//!
//! One anonymous mapping per pool, in huge pages where the kernel grants them, is cut into slots of
//! [`SHARD_BLOCK_BYTES`]; a ring registers the mapping once, so that no I/O has to pin pages. The pool is the bound on
//! memory in flight: when it is empty, takers wait in the order of their calls, and the socket is not read.
//!
//! Invariants: a slot is owned by exactly one `IoBuf` or stands in the free list; memory is always initialised
//! (a reused slot holds old bytes); the mapping lives until the pool and its last buffer are gone; buffers may
//! be dropped on any thread. While anybody waits, nobody overtakes: a taker of many slots gets all of them at once
//! or goes on waiting, and holds none meanwhile, so takers cannot block each other.
#![allow(unsafe_code, reason = "owns raw memory whose address the kernel and io_uring need")]

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    collections::VecDeque,
    fmt,
    ops::{Deref, DerefMut},
    ptr::{self, NonNull},
    slice,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering, fence},
    },
};

use bytes::Bytes;
use crossbeam::queue::ArrayQueue;
use event_listener::Event;
use quarry_clustermap::SHARD_BLOCK_BYTES;

use super::{BLOCK_BYTES, DeviceError, error::last_errno};

/// Alignment of the mapping, so that the kernel can back all of it with huge pages.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Owned memory for I/O, aligned to [`BLOCK_BYTES`]. Goes back to its pool, or to the heap, on drop.
pub struct IoBuf {
    start: NonNull<u8>,
    capacity_bytes: usize,
    len_bytes: usize,
    /// `None`: heap.
    slot: Option<Slot>,
}

struct Slot {
    pool: Arc<Shared>,
    index: usize,
}

// SAFETY: an IoBuf is the only owner of its initialised memory, like a Box<[u8]>; its pool handle is an Arc of a
// Sync type, and returning a slot is lock-free or takes a mutex.
unsafe impl Send for IoBuf {}
// SAFETY: through a shared reference an IoBuf only hands out `&[u8]`.
unsafe impl Sync for IoBuf {}

impl IoBuf {
    /// Zeroed heap memory with a length of `len_bytes` and a capacity rounded up to [`BLOCK_BYTES`].
    ///
    /// # Panics
    /// When `len_bytes` exceeds what an address space can hold.
    pub fn zeroed(len_bytes: usize) -> Self {
        let capacity_bytes = len_bytes.max(1).next_multiple_of(BLOCK_BYTES);
        let layout = Self::heap_layout(capacity_bytes);
        // SAFETY: the layout has a non-zero size.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, capacity_bytes, len_bytes, slot: None }
    }

    /// Heap memory holding a copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buf = Self::zeroed(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    /// Most bytes the buffer can hold, a multiple of [`BLOCK_BYTES`].
    pub fn capacity(&self) -> usize {
        self.capacity_bytes
    }

    /// Bytes in use.
    pub fn len(&self) -> usize {
        self.len_bytes
    }

    /// Whether no bytes are in use.
    pub fn is_empty(&self) -> bool {
        self.len_bytes == 0
    }

    /// Changes how many bytes are in use; bytes that come into use are initialised, but hold anything.
    ///
    /// # Panics
    /// When `len_bytes` exceeds the capacity.
    pub fn set_len(&mut self, len_bytes: usize) {
        assert!(len_bytes <= self.capacity_bytes, "{len_bytes} > capacity {}", self.capacity_bytes);
        self.len_bytes = len_bytes;
    }

    /// The bytes in use as [`Bytes`], without a copy: the memory returns to its pool with the last clone or slice.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// Position of this buffer in the mapping of `pool`, or `None` if it comes from elsewhere.
    pub(super) fn region_offset(&self, pool: &BufferPool) -> Option<usize> {
        let slot = self.slot.as_ref().filter(|slot| Arc::ptr_eq(&slot.pool, &pool.shared))?;
        Some(slot.index * SHARD_BLOCK_BYTES)
    }

    fn heap_layout(capacity_bytes: usize) -> Layout {
        Layout::from_size_align(capacity_bytes, BLOCK_BYTES).expect("a buffer fits the address space")
    }
}

impl Drop for IoBuf {
    fn drop(&mut self) {
        match self.slot.take() {
            Some(slot) => slot.pool.put_back(slot.index),
            // SAFETY: allocated in `zeroed` with this layout; capacity never changes.
            None => unsafe { dealloc(self.start.as_ptr(), Self::heap_layout(self.capacity_bytes)) },
        }
    }
}

impl Deref for IoBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len_bytes` is at most the capacity, all of which is initialised and owned by self.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len_bytes) }
    }
}

impl DerefMut for IoBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the exclusive borrow of self makes the access exclusive.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len_bytes) }
    }
}

impl AsRef<[u8]> for IoBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<IoBuf> for Bytes {
    fn from(buf: IoBuf) -> Self {
        buf.into_bytes()
    }
}

impl fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoBuf")
            .field("len_bytes", &self.len_bytes)
            .field("capacity_bytes", &self.capacity_bytes)
            .field("slot", &self.slot.as_ref().map(|slot| slot.index))
            .finish()
    }
}

/// A bounded pool of [`IoBuf`]s of [`SHARD_BLOCK_BYTES`]; one per core. Clones share the slots.
#[derive(Clone)]
pub struct BufferPool {
    shared: Arc<Shared>,
}

struct Shared {
    region: Region,
    slots: usize,
    free: ArrayQueue<usize>,
    /// Length of `queue`, readable without its lock.
    waiting: AtomicUsize,
    next_ticket: AtomicU64,
    /// Takers that found too few slots, first come first served; only the front may take.
    queue: Mutex<VecDeque<Waiter>>,
}

struct Waiter {
    ticket: u64,
    event: Arc<Event>,
}

impl BufferPool {
    /// Maps memory for `slots` buffers. Pages are only touched by use, or by registration with a ring.
    ///
    /// # Errors
    /// [`DeviceError::Setup`] if the kernel refuses the mapping.
    ///
    /// # Panics
    /// When `slots` is zero or exceeds the address space.
    pub fn new(slots: usize) -> Result<Self, DeviceError> {
        assert!(slots > 0, "a pool needs a slot");
        let bytes = slots.checked_mul(SHARD_BLOCK_BYTES).expect("a pool fits the address space");
        let region = Region::map(bytes)?;
        let free = ArrayQueue::new(slots);
        for index in 0..slots {
            free.push(index).expect("the free list has room for every slot");
        }
        let shared = Shared {
            region,
            slots,
            free,
            waiting: AtomicUsize::new(0),
            next_ticket: AtomicU64::new(0),
            queue: Mutex::new(VecDeque::new()),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// A buffer of full length, or `None` if none is free or somebody waits for one already.
    pub fn try_take(&self) -> Option<IoBuf> {
        self.try_take_many(1)?.pop()
    }

    /// All `count` buffers, or `None` if fewer are free or somebody waits already.
    pub fn try_take_many(&self, count: usize) -> Option<Vec<IoBuf>> {
        if self.shared.waiting.load(Ordering::SeqCst) > 0 {
            return None;
        }
        let taken = self.pop(count);
        if taken.is_none() {
            // What `pop` put back may be what somebody began to wait for meanwhile.
            self.shared.notify_front();
        }
        taken
    }

    /// A buffer of full length; waits for its turn.
    pub async fn take(&self) -> IoBuf {
        self.take_many(1).await.pop().expect("one was asked for")
    }

    /// `count` buffers of full length, all at once; waits for its turn and for enough of them.
    ///
    /// A task that holds buffers of this pool while it waits can block itself: take all in one call.
    ///
    /// # Panics
    /// When `count` exceeds the slots of the pool.
    pub async fn take_many(&self, count: usize) -> Vec<IoBuf> {
        assert!(count <= self.shared.slots, "{count} buffers from a pool of {}", self.shared.slots);
        if let Some(taken) = self.try_take_many(count) {
            return taken;
        }
        let turn = self.shared.enqueue();
        loop {
            // Listening before looking: a slot that returns in between is not missed.
            let listener = turn.event.listen();
            fence(Ordering::SeqCst);
            if self.shared.is_front(turn.ticket)
                && let Some(taken) = self.pop(count)
            {
                return taken;
            }
            listener.await;
        }
    }

    /// Whether somebody waits for buffers.
    pub fn is_waited_for(&self) -> bool {
        self.shared.waiting.load(Ordering::SeqCst) > 0
    }

    /// Buffers that nobody holds now.
    pub fn free_slots(&self) -> usize {
        self.shared.free.len()
    }

    /// All buffers of the pool.
    pub fn slots(&self) -> usize {
        self.shared.slots
    }

    /// The whole mapping, for registration with a ring.
    pub(super) fn region(&self) -> (NonNull<u8>, usize) {
        (self.shared.region.start, self.shared.slots * SHARD_BLOCK_BYTES)
    }

    fn pop(&self, count: usize) -> Option<Vec<IoBuf>> {
        if self.shared.free.len() < count {
            return None;
        }
        let mut indexes = Vec::with_capacity(count);
        while indexes.len() < count {
            let Some(index) = self.shared.free.pop() else {
                // Another thread was faster; its own return of slots notifies whoever waits.
                for index in indexes {
                    self.shared.free.push(index).expect("the free list has room for every slot");
                }
                return None;
            };
            indexes.push(index);
        }
        Some(indexes.into_iter().map(|index| self.buffer(index)).collect())
    }

    fn buffer(&self, index: usize) -> IoBuf {
        assert!(index < self.shared.slots, "slot {index} of {}", self.shared.slots);
        // SAFETY: the slot lies inside the mapping, which has `slots * SHARD_BLOCK_BYTES` bytes.
        let start = unsafe { self.shared.region.start.add(index * SHARD_BLOCK_BYTES) };
        IoBuf {
            start,
            capacity_bytes: SHARD_BLOCK_BYTES,
            len_bytes: SHARD_BLOCK_BYTES,
            slot: Some(Slot { pool: Arc::clone(&self.shared), index }),
        }
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufferPool({} of {} free)", self.free_slots(), self.slots())
    }
}

impl Shared {
    fn put_back(&self, index: usize) {
        self.free.push(index).expect("the free list has room for every slot");
        self.notify_front();
    }

    fn notify_front(&self) {
        // Pairs with the fence of a waiter: either it sees the slot, or we see it waiting.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0
            && let Some(front) = self.queue().front()
        {
            front.event.notify(1);
        }
    }

    fn enqueue(&self) -> Turn<'_> {
        let mut queue = self.queue();
        let ticket = self.next_ticket.fetch_add(1, Ordering::Relaxed);
        let event = Arc::new(Event::new());
        queue.push_back(Waiter { ticket, event: Arc::clone(&event) });
        self.waiting.store(queue.len(), Ordering::SeqCst);
        Turn { shared: self, ticket, event }
    }

    fn is_front(&self, ticket: u64) -> bool {
        self.queue().front().is_some_and(|front| front.ticket == ticket)
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Waiter>> {
        // Nothing panics while holding the lock; a poisoned queue is still a whole queue.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the queue, given up on drop, whether served or cancelled.
struct Turn<'a> {
    shared: &'a Shared,
    ticket: u64,
    event: Arc<Event>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queue = self.shared.queue();
        queue.retain(|waiter| waiter.ticket != self.ticket);
        self.shared.waiting.store(queue.len(), Ordering::SeqCst);
        // The next in the queue may already find enough.
        if let Some(front) = queue.front() {
            front.event.notify(1);
        }
    }
}

/// An anonymous mapping whose usable part starts at a huge page boundary.
struct Region {
    mapping: NonNull<u8>,
    mapping_bytes: usize,
    start: NonNull<u8>,
}

// SAFETY: the region is only an address range; access goes through IoBufs, each of which owns its own slot.
unsafe impl Send for Region {}
// SAFETY: as above; nothing is read or written through a Region itself.
unsafe impl Sync for Region {}

impl Region {
    fn map(bytes: usize) -> Result<Self, DeviceError> {
        let mapping_bytes = bytes
            .checked_next_multiple_of(HUGE_PAGE_BYTES)
            .and_then(|bytes| bytes.checked_add(HUGE_PAGE_BYTES))
            .expect("a pool fits the address space");
        // SAFETY: a fresh private anonymous mapping at an address of the kernel's choice; no existing memory is touched.
        let mapping = unsafe {
            libc::mmap(
                ptr::null_mut(),
                mapping_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapping == libc::MAP_FAILED {
            return Err(DeviceError::Setup { action: "map buffer memory", errno: last_errno() });
        }
        let mapping = NonNull::new(mapping.cast::<u8>()).expect("a mapping is never at address 0");
        let lead_bytes = mapping.align_offset(HUGE_PAGE_BYTES);
        assert!(lead_bytes < HUGE_PAGE_BYTES);
        // SAFETY: the mapping is a huge page longer than needed, so the aligned start and `bytes` after it lie inside.
        let start = unsafe { mapping.add(lead_bytes) };
        // SAFETY: the range lies inside our own mapping; the advice does not change its content. A kernel
        // without huge pages refuses it, which costs speed only.
        unsafe { libc::madvise(start.as_ptr().cast(), mapping_bytes - HUGE_PAGE_BYTES, libc::MADV_HUGEPAGE) };
        Ok(Self { mapping, mapping_bytes, start })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length; every IoBuf holds the Shared that holds us, so none is left.
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.mapping_bytes) };
    }
}

#[cfg(test)]
mod tests;

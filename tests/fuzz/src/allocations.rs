//! Counts what a thread has allocated: the system's allocator with two numbers per thread beside it.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

thread_local! {
    /// Bytes allocated and not freed; memory that moves between threads makes it wrong, and decoders start none.
    static LIVE_BYTES: Cell<isize> = const { Cell::new(0) };
    static PEAK_BYTES: Cell<isize> = const { Cell::new(0) };
    /// Target, seed and number of the input at work.
    static AT_WORK: Cell<(&str, u64, u64)> = const { Cell::new(("", 0, 0)) };
}

/// Remembers the input at work.
pub(crate) fn note(target: &'static str, seed: u64, number: u64) {
    AT_WORK.set((target, seed, number));
}

/// No decoder needs so much; the process may end for want of it, so say first what asked.
const ALLOCATION_BYTES_MAX: usize = 1 << 30;

struct Counting;

fn count(bytes: isize) {
    let live = LIVE_BYTES.get().wrapping_add(bytes);
    LIVE_BYTES.set(live);
    PEAK_BYTES.set(PEAK_BYTES.get().max(live));
}

#[allow(unsafe_code, reason = "counting allocations needs the trait of allocators; in tests only")]
// SAFETY: every call goes to the system's allocator unchanged. Counting neither allocates nor panics (but for
// a message about a huge allocation, which takes little): both cells are
// initialised at compile time and have no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > ALLOCATION_BYTES_MAX {
            let (target, seed, number) = AT_WORK.get();
            eprintln!("{} bytes asked for by --replay {target} {seed}:{number}", layout.size());
        }
        count(layout.size().cast_signed());
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout.size().cast_signed().wrapping_neg());
        // SAFETY: `pointer` came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `work`; returns what it returned, and by how many bytes memory grew at most meanwhile.
pub(crate) fn peak_bytes<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE_BYTES.get();
    PEAK_BYTES.set(before);
    let result = work();
    let peak = PEAK_BYTES.get().wrapping_sub(before);
    (result, usize::try_from(peak).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_seen_and_what_was_freed_is_not_kept() {
        let (kept, peak) = peak_bytes(|| {
            drop(vec![1_u8; 1 << 20]);
            vec![1_u8; 1 << 10]
        });
        assert!((1 << 20..(1 << 20) + 4096).contains(&peak), "{peak}");
        let ((), peak) = peak_bytes(|| drop(kept));
        assert_eq!(peak, 0);
    }
}

//! Device I/O behind one trait; backends side by side: `uring` (production), `sim` (tests, seeded faults),
//! `fault` (a wrapper that injects errors into a running node).
//!
//! Failure model: any read may return an error or wrong bytes (callers verify checksums); a write that was
//! acknowledged is durable only after a later [`Device::flush`] succeeded; writes between two flushes may be
//! lost, torn at [`SECTOR_BYTES`] granularity, or applied in any order. A failed flush is never retried.

/// Unit of alignment of every offset and length: a multiple of all logical block sizes in the field.
pub const BLOCK_BYTES: usize = 4096;
/// What a device writes atomically at best.
pub const SECTOR_BYTES: usize = 512;

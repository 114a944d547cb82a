//! MD5 of many streams at once, in SIMD lanes: S3 wants it as the ETag of every PUT, and one stream at a time it is more than
//! half of what a PUT of a large object costs.
//!
//! MD5 (RFC 1321) is serial within a stream, so a stream alone goes no faster. Streams of one thread share lanes: each
//! keeps what it was given until it has much of it or ends, and then up to eight streams are hashed together.
//!
//! | | memory kept back | work of one call |
//! |---|---|---|
//! | a stream | [`STREAM_BYTES_MAX`] and its last piece | up to eight times that, about a millisecond |
//! | a thread | [`THREAD_BYTES_MAX`] and one piece | |
//!
//! No I/O, no failure. Everything belongs to one thread: a stream is not `Send`.

mod compress;
mod lanes;

use std::cell::RefCell;
use std::marker::PhantomData;
use std::rc::Rc;

use bytes::Bytes;

use self::lanes::Lanes;

/// Bytes that a stream may keep back before it is hashed with others: more than one piece, as a connection reads them (up to
/// 400 KiB), so that others have something too.
pub const STREAM_BYTES_MAX: usize = 512 * 1024;
/// Bytes that all streams of a thread may keep back.
pub const THREAD_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of a digest.
pub const MD5_BYTES: usize = 16;

thread_local! {
    static LANES: RefCell<Lanes> = RefCell::default();
}

/// The digest of one stream.
#[derive(Debug)]
pub struct Md5 {
    slot: usize,
    /// The slot is one of this thread.
    not_send: PhantomData<Rc<()>>,
}

impl Md5 {
    /// Of a stream without bytes.
    #[must_use]
    pub fn new() -> Self {
        let slot = LANES.with_borrow_mut(Lanes::open);
        Self { slot, not_send: PhantomData }
    }

    /// The stream goes on with these bytes. They are held until they are hashed.
    pub fn update(&mut self, data: Bytes) {
        LANES.with_borrow_mut(|lanes| lanes.push(self.slot, data));
    }

    /// The digest of everything.
    #[must_use]
    pub fn finish(self) -> [u8; MD5_BYTES] {
        LANES.with_borrow_mut(|lanes| lanes.finish(self.slot))
    }
}

impl Default for Md5 {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Md5 {
    fn drop(&mut self) {
        // At the end of a thread the lanes may be gone before a stream.
        let _ = LANES.try_with(|lanes| lanes.borrow_mut().close(self.slot));
    }
}

#[cfg(test)]
mod tests;

//! Which of this module's types have a frame of their own; the family is `QPRT`.

use crate::frame::{FrameError, FrameKind};

/// Longest frame that is decoded: a listing of 1,000 keys of 1 KiB or a manifest of 10,000 segments is about
/// 1.2 MiB.
pub const FRAME_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Frame of `kind`, schema version 1.
pub(super) const fn frame(kind: u16) -> FrameKind {
    FrameKind { magic: *b"QPRT", kind, version: 1, bytes_max: FRAME_BYTES_MAX }
}

/// A type with a frame of its own.
pub trait Framed: Sized {
    /// Its frame.
    const FRAME: FrameKind;
    /// The framed bytes.
    fn encode(&self) -> Vec<u8>;
    /// Inverse of [`Framed::encode`].
    ///
    /// # Errors
    /// [`FrameError`]: whatever the bytes are, nothing panics.
    fn decode(bytes: &[u8]) -> Result<Self, FrameError>;
}

macro_rules! framed {
    // The rule sees what validation of the archive cannot: it says what of the value is out of range.
    ($type:ty, $kind:literal, $rule:expr) => {
        impl $crate::command::framed::Framed for $type {
            const FRAME: $crate::frame::FrameKind = $crate::command::framed::frame($kind);
            fn encode(&self) -> Vec<u8> {
                Self::FRAME.encode(self)
            }
            fn decode(bytes: &[u8]) -> Result<Self, $crate::frame::FrameError> {
                let value: Self = Self::FRAME.decode(bytes)?;
                let rule: fn(&Self) -> Result<(), &'static str> = $rule;
                rule(&value).map_err(|rule| $crate::frame::FrameError::Rule { rule })?;
                Ok(value)
            }
        }
    };
    ($type:ty, $kind:literal) => {
        $crate::command::framed::framed!($type, $kind, |_| Ok(()));
    };
}
pub(crate) use framed;

//! Lines of the framing: collected over cuts of the input, then parsed.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use super::ChunkError;
use super::chain::SIGNATURE_LEN;

/// Digits of a chunk's size: as many as 64 bits have.
const SIZE_DIGITS_MAX: usize = 16;
const SIGNATURE: &[u8] = b";chunk-signature=";

/// A line is longer than allowed.
pub(super) struct TooLong;

/// The begun line.
#[derive(Default)]
pub(super) struct LineBuffer {
    begun: Vec<u8>,
}

impl LineBuffer {
    /// Takes bytes from `input` up to LF and returns the line without it; `None` when the input ended before. A line with
    /// its LF may have `bytes_max`.
    pub(super) fn take(&mut self, input: &mut Bytes, bytes_max: usize) -> Result<Option<Bytes>, TooLong> {
        // No byte beyond the longest line allowed is looked at, however much input there is.
        let room = bytes_max - self.begun.len();
        let window = &input[..input.len().min(room)];
        let Some(end) = window.iter().position(|byte| *byte == b'\n') else {
            if window.len() == room {
                return Err(TooLong);
            }
            self.begun.extend_from_slice(&input.split_to(window.len()));
            return Ok(None);
        };
        let mut line = input.split_to(end + 1);
        if !self.begun.is_empty() {
            self.begun.extend_from_slice(&line);
            line = Bytes::from(std::mem::take(&mut self.begun));
        }
        line.truncate(line.len() - 1);
        Ok(Some(line))
    }

    /// Bytes of the begun line.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.begun.len()
    }
}

/// The line before a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ChunkHeader<'a> {
    pub(super) size: u64,
    pub(super) signature: Option<&'a [u8]>,
}

/// Parses `hex-size [";chunk-signature=" 64 hex]`; no other extension exists.
///
/// # Errors
/// [`ChunkError::Framing`].
pub(super) fn parse_chunk_header(line: &[u8]) -> Result<ChunkHeader<'_>, ChunkError> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    if digits == 0 || digits > SIZE_DIGITS_MAX {
        return Err(ChunkError::Framing { problem: "the size of a chunk is not valid" });
    }
    let size = line[..digits].iter().fold(0_u64, |size, digit| {
        size << 4 | u64::from(char::from(*digit).to_digit(16).expect("counted as a digit"))
    });
    let rest = &line[digits..];
    if rest.is_empty() {
        return Ok(ChunkHeader { size, signature: None });
    }
    match rest.strip_prefix(SIGNATURE) {
        Some(signature) if signature.len() == SIGNATURE_LEN => {
            Ok(ChunkHeader { size, signature: Some(signature) })
        }
        _ => Err(ChunkError::Framing { problem: "the extension of a chunk is not a signature" }),
    }
}

/// Parses `name ":" value`, blanks around the value taken off.
///
/// # Errors
/// What is wrong.
pub(super) fn parse_trailer(line: &[u8]) -> Result<(HeaderName, HeaderValue), &'static str> {
    let colon = line.iter().position(|byte| *byte == b':').ok_or("a line has no colon")?;
    let name = HeaderName::from_bytes(&line[..colon]).map_err(|_| "a name is not valid")?;
    let value = String::from_utf8_lossy(&line[colon + 1..]);
    let value = match value {
        Cow::Borrowed(text) => HeaderValue::from_str(text.trim_matches([' ', '\t'])),
        Cow::Owned(_) => return Err("a value is not text"),
    };
    Ok((name, value.map_err(|_| "a value is not valid")?))
}

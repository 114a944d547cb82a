//! Decodes aws-chunked bodies as they arrive, without I/O: bytes in, payload out, a line held at most.
//!
//! ```text
//! body    = *chunk last *trailer [signature] CRLF
//! chunk   = hex-size [";chunk-signature=" 64 hex] CRLF data CRLF       size > 0
//! last    = "0"      [";chunk-signature=" 64 hex] CRLF
//! trailer = name ":" value [CR] LF
//! ```
//!
//! Invariants:
//! - payload is handed on before the signature of its chunk is known, but [`Decoder::finish`] says `Ok` only if every
//!   signature (chunks, last chunk, trailers) was right, the payload has exactly the announced length and exactly the
//!   announced trailers came. Whoever commits must wait for that;
//! - what is held does not depend on the size of chunks: one line, and the trailers up to their limit;
//! - the result does not depend on how the input was cut.
//!
//! Failure model: the input is hostile. The first thing wrong ends the decoding; nothing is skipped or repaired.

mod chain;
mod line;

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use quarry_object::api::BodyError;
use sha2::{Digest as _, Sha256};

pub(crate) use self::chain::{Chain, SIGNATURE_LEN};
use self::line::{ChunkHeader, LineBuffer, parse_chunk_header, parse_trailer};
use crate::error::CHUNK_SIGNATURE;

/// Bytes of the line before a chunk: 16 digits, one signature, CRLF make 99.
const CHUNK_LINE_BYTES_MAX: usize = 128;
/// Bytes of one line of a trailer. A SHA-256 takes 80.
const TRAILER_LINE_BYTES_MAX: usize = 1 << 10;
/// Trailers of one body. S3 knows one beside the signature.
const TRAILERS_MAX: usize = 8;
const NO_CRLF: &str = "the line before a chunk does not end with CRLF";
const TRAILER_SIGNATURE: &str = "x-amz-trailer-signature";

/// How a body is framed, from `x-amz-content-sha256`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Framing {
    /// Every chunk is signed.
    Signed,
    /// Every chunk and the trailers are signed.
    SignedTrailer,
    /// Nothing is signed; trailers carry a checksum.
    UnsignedTrailer,
}

impl Framing {
    /// The framing that this value of `x-amz-content-sha256` names, if any that we have.
    pub(crate) fn of(content_sha256: &[u8]) -> Option<Self> {
        match content_sha256 {
            b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD" => Some(Self::Signed),
            b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER" => Some(Self::SignedTrailer),
            b"STREAMING-UNSIGNED-PAYLOAD-TRAILER" => Some(Self::UnsignedTrailer),
            _ => None,
        }
    }

    /// Whether chunks carry signatures.
    pub(crate) fn is_signed(self) -> bool {
        self != Self::UnsignedTrailer
    }

    /// Whether trailers may follow.
    pub(crate) fn has_trailers(self) -> bool {
        self != Self::Signed
    }
}

/// Why a body cannot be decoded.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum ChunkError {
    /// It ended in the middle, or the last chunk came early.
    #[error("the request body ended before its announced length")]
    Incomplete,
    /// The signature of a chunk or of the trailers is wrong.
    #[error("the signature of a chunk or of the trailers does not match")]
    Signature,
    /// The framing is wrong.
    #[error("the aws-chunked framing is malformed: {problem}")]
    Framing {
        /// What.
        problem: &'static str,
    },
    /// The trailers are wrong.
    #[error("the trailers are malformed: {problem}")]
    Trailer {
        /// What.
        problem: &'static str,
    },
}

impl From<&ChunkError> for BodyError {
    fn from(error: &ChunkError) -> Self {
        match error {
            ChunkError::Incomplete => Self::Incomplete,
            ChunkError::Signature => Self::Mismatch { what: CHUNK_SIGNATURE.to_owned() },
            ChunkError::Framing { .. } | ChunkError::Trailer { .. } => {
                Self::Malformed { problem: error.to_string() }
            }
        }
    }
}

/// ```text
/// Header --size > 0--> Data --all of it--> DataEnd --CRLF--> Header
/// Header --size = 0--> Trailers --empty line--> End
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// In the line before a chunk.
    Header,
    /// In the data of a chunk.
    Data { left: u64 },
    /// In the line end after the data, of which `seen` bytes have come.
    DataEnd { seen: usize },
    /// In the lines after the last chunk.
    Trailers,
    /// Nothing may follow.
    End,
}

/// The data of the chunk at hand, as far as its signature is concerned.
#[derive(Default)]
struct Signed {
    expected: Vec<u8>,
    data: Sha256,
}

/// Decodes one body.
pub(crate) struct Decoder {
    framing: Framing,
    state: State,
    line: LineBuffer,
    /// Payload that is still to come.
    left: u64,
    /// There for signed framings.
    chain: Option<Chain>,
    chunk: Signed,
    announced: Vec<HeaderName>,
    trailers: HeaderMap,
    trailers_verified: bool,
    /// Some clients put an empty line between the trailers and their signature; one is let through.
    gap_seen: bool,
}

impl Decoder {
    /// A decoder of a body with `len_bytes` of payload and the `announced` trailers. Signed framings need a chain.
    pub(crate) fn new(
        framing: Framing,
        len_bytes: u64,
        announced: Vec<HeaderName>,
        chain: Option<Chain>,
    ) -> Self {
        assert_eq!(framing.is_signed(), chain.is_some(), "a chain is for signed chunks");
        Self {
            framing,
            state: State::Header,
            line: LineBuffer::default(),
            left: len_bytes,
            chain,
            chunk: Signed::default(),
            announced,
            trailers: HeaderMap::new(),
            trailers_verified: false,
            gap_seen: false,
        }
    }

    /// Takes bytes from the front of `input` up to the next piece of payload, which it returns without copying;
    /// `None` when the input is used up.
    ///
    /// # Errors
    /// [`ChunkError`]; the decoder is of no use after one.
    pub(crate) fn feed(&mut self, input: &mut Bytes) -> Result<Option<Bytes>, ChunkError> {
        while !input.is_empty() {
            match self.state {
                State::Header => {
                    if let Some(line) = self.line.take(input, CHUNK_LINE_BYTES_MAX).map_err(too_long)? {
                        let line =
                            line.strip_suffix(b"\r").ok_or(ChunkError::Framing { problem: NO_CRLF })?;
                        self.begin_chunk(parse_chunk_header(line)?)?;
                    }
                }
                State::Data { left } => {
                    let count = usize::try_from(left).map_or(input.len(), |left| left.min(input.len()));
                    let data = input.split_to(count);
                    self.take_data(&data, left)?;
                    return Ok(Some(data));
                }
                State::DataEnd { seen } => {
                    if input.split_to(1)[0] != b"\r\n"[seen] {
                        return framing("the data of a chunk is not followed by CRLF");
                    }
                    self.state = if seen == 0 { State::DataEnd { seen: 1 } } else { State::Header };
                }
                State::Trailers => {
                    let taken = self.line.take(input, TRAILER_LINE_BYTES_MAX);
                    if let Some(line) = taken.map_err(|_| trailer_error("a line is too long"))? {
                        self.take_trailer(line.strip_suffix(b"\r").unwrap_or(&line))?;
                    }
                }
                State::End => return framing("there are bytes after the end"),
            }
        }
        Ok(None)
    }

    /// The body has ended: its trailers, if everything about it was right.
    ///
    /// # Errors
    /// [`ChunkError::Incomplete`] if it should not have ended here, or trailers that did not come.
    pub(crate) fn finish(&mut self) -> Result<HeaderMap, ChunkError> {
        if self.state != State::End {
            return Err(ChunkError::Incomplete);
        }
        assert_eq!(self.left, 0, "the last chunk is taken at the announced length only");
        if self.announced.iter().any(|name| !self.trailers.contains_key(name)) {
            return Err(trailer_error("an announced trailer is missing"));
        }
        Ok(std::mem::take(&mut self.trailers))
    }

    fn begin_chunk(&mut self, header: ChunkHeader<'_>) -> Result<(), ChunkError> {
        match (self.framing.is_signed(), header.signature) {
            (true, Some(signature)) => {
                self.chunk = Signed { expected: signature.to_vec(), data: Sha256::new() };
            }
            (true, None) => return framing("a chunk has no signature"),
            (false, Some(_)) => return framing("a chunk of an unsigned body has a signature"),
            (false, None) => {}
        }
        if header.size == 0 {
            if self.left > 0 {
                return Err(ChunkError::Incomplete);
            }
            self.end_chunk()?;
            self.state = State::Trailers;
        } else if header.size > self.left {
            return framing("the chunks are longer than x-amz-decoded-content-length");
        } else {
            self.state = State::Data { left: header.size };
        }
        Ok(())
    }

    fn take_data(&mut self, data: &[u8], left: u64) -> Result<(), ChunkError> {
        if self.chain.is_some() {
            self.chunk.data.update(data);
        }
        self.left -= data.len() as u64;
        let left = left - data.len() as u64;
        if left > 0 {
            self.state = State::Data { left };
            return Ok(());
        }
        self.state = State::DataEnd { seen: 0 };
        self.end_chunk()
    }

    fn end_chunk(&mut self) -> Result<(), ChunkError> {
        let Some(chain) = &mut self.chain else { return Ok(()) };
        let Signed { expected, data } = std::mem::take(&mut self.chunk);
        if chain.verify_chunk(&expected, &data.finalize()) { Ok(()) } else { Err(ChunkError::Signature) }
    }

    fn take_trailer(&mut self, line: &[u8]) -> Result<(), ChunkError> {
        if line.is_empty() {
            return self.end_trailers();
        }
        if !self.framing.has_trailers() {
            return framing("the last chunk is not followed by the end");
        }
        let (name, value) = parse_trailer(line).map_err(trailer_error)?;
        if self.trailers_verified {
            return Err(trailer_error("a trailer follows the signature"));
        }
        if name == TRAILER_SIGNATURE && self.framing == Framing::SignedTrailer {
            return self.verify_trailers(value.as_bytes());
        }
        if !self.announced.contains(&name) || self.trailers.contains_key(&name) {
            return Err(trailer_error("a trailer was not announced, or came twice"));
        }
        if self.trailers.len() >= TRAILERS_MAX {
            return Err(trailer_error("there are too many"));
        }
        self.trailers.insert(name, value);
        Ok(())
    }

    fn end_trailers(&mut self) -> Result<(), ChunkError> {
        if self.framing != Framing::SignedTrailer || self.trailers_verified {
            self.state = State::End;
        } else if self.trailers.is_empty() || std::mem::replace(&mut self.gap_seen, true) {
            return Err(trailer_error("the signature of the trailers is missing"));
        }
        Ok(())
    }

    fn verify_trailers(&mut self, signature: &[u8]) -> Result<(), ChunkError> {
        let mut lines: Vec<String> = Vec::with_capacity(self.trailers.len());
        for (name, value) in &self.trailers {
            let value = value.to_str().map_err(|_| trailer_error("a value is not ASCII"))?;
            lines.push(format!("{name}:{value}\n"));
        }
        lines.sort_unstable();
        let chain = self.chain.as_mut().expect("signed trailers come with a chain");
        if !chain.verify_trailers(signature, lines.concat().as_bytes()) {
            return Err(ChunkError::Signature);
        }
        self.trailers_verified = true;
        Ok(())
    }
}

fn framing<T>(problem: &'static str) -> Result<T, ChunkError> {
    Err(ChunkError::Framing { problem })
}

fn trailer_error(problem: &'static str) -> ChunkError {
    ChunkError::Trailer { problem }
}

fn too_long(_: line::TooLong) -> ChunkError {
    ChunkError::Framing { problem: "the line before a chunk is too long" }
}

#[cfg(test)]
mod tests;

//! What a key may hold, from the answers its only writer got; and the check of a body against it while it streams.
//!
//! A key has one writer at a time, so what a read must return is known exactly: the last acknowledged write or, when
//! writes ended without a definite answer since, that one or any of those. A refused write never counts. The next
//! acknowledged write settles the matter again.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::content::{self, Stream};

/// Bytes of a wrong body kept for its diagnosis.
const WINDOW_BYTES: usize = 4096;
/// At most this many different words in the window count as damage; more are foreign content.
const DAMAGED_WORDS_MAX: usize = 64;

/// One thing a key may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Absent,
    Version { version: u64, size_bytes: u64 },
}

impl Content {
    fn describe(self) -> String {
        match self {
            Self::Absent => "no object".to_owned(),
            Self::Version { version, size_bytes } => format!("version {version} ({size_bytes} bytes)"),
        }
    }
}

/// Everything a key may hold. The default is anything: nothing is known of it yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expected {
    /// None while the key was neither written nor read by us: any version is right.
    settled: Option<Content>,
    /// A listing showed the key, so that nothing at all is wrong, though any version is right.
    listed: bool,
    attempts: VecDeque<Content>,
}

impl Expected {
    pub(crate) fn settled(content: Content) -> Self {
        Self { settled: Some(content), ..Self::default() }
    }

    /// Any version, but an object there must be.
    pub(crate) fn listed() -> Self {
        Self { listed: true, ..Self::default() }
    }

    /// A write of `content` begins.
    pub(crate) fn attempt(&mut self, content: Content) {
        self.attempts.push_back(content);
    }

    /// The latest attempt at `content` certainly had no effect.
    pub(crate) fn reject(&mut self, content: Content) {
        if let Some(at) = self.attempts.iter().rposition(|attempt| *attempt == content) {
            self.attempts.remove(at);
        }
    }

    /// A write of `content` was acknowledged, or a first read found it.
    pub(crate) fn settle(&mut self, content: Content) {
        *self = Self::settled(content);
    }

    pub(crate) fn is_known(&self) -> bool {
        self.settled.is_some()
    }

    pub(crate) fn accepts(&self, content: Content) -> bool {
        let settled = match self.settled {
            Some(settled) => settled == content,
            None => !(self.listed && content == Content::Absent),
        };
        settled || self.attempts.contains(&content)
    }

    /// What certainly stands there, when that is one thing.
    pub(crate) fn only(&self) -> Option<Content> {
        self.settled.filter(|_| self.attempts.is_empty())
    }

    /// Whether a read is likely to find something.
    pub(crate) fn readable(&self) -> bool {
        self.listed || matches!(self.settled, Some(Content::Version { .. }))
    }

    /// Size of the smallest object that may stand there; None when that is unknown, or there may be none.
    pub(crate) fn size_min(&self) -> Option<u64> {
        self.settled?;
        self.all()
            .map(|content| match content {
                Content::Version { size_bytes, .. } => Some(size_bytes),
                Content::Absent => None,
            })
            .min()
            .flatten()
    }

    /// Whether an object of `size_bytes` may stand there.
    pub(crate) fn accepts_size(&self, size_bytes: u64) -> bool {
        let fits =
            |content| matches!(content, Content::Version { size_bytes: size, .. } if size == size_bytes);
        self.settled.is_none() || self.all().any(fits)
    }

    /// Whether a read certainly finds nothing.
    pub(crate) fn certainly_absent(&self) -> bool {
        self.settled == Some(Content::Absent)
            && self.attempts.iter().all(|attempt| *attempt == Content::Absent)
    }

    pub(crate) fn describe(&self) -> String {
        let settled = self.settled.map_or("any version".to_owned(), Content::describe);
        self.attempts.iter().fold(settled, |text, attempt| format!("{text} or {}", attempt.describe()))
    }

    fn all(&self) -> impl Iterator<Item = Content> {
        self.settled.into_iter().chain(self.attempts.iter().copied())
    }
}

/// A read that returned what the key cannot hold.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Mismatch {
    pub(crate) key: String,
    /// First wrong byte; the length received when the length is what is wrong.
    pub(crate) offset_bytes: u64,
    pub(crate) expected: String,
    pub(crate) found: String,
}

/// Checks one body. Keeps every acceptable version that fits all bytes so far; fails when none is left.
pub(crate) struct Verifier<'a> {
    seed: u64,
    key: &'a str,
    expected: &'a Expected,
    /// Versions still possible. With an unknown version it is filled from the first word.
    candidates: Vec<(Stream, Content)>,
    /// The first bytes of a body of unknown version, until they are a word.
    first_word: Option<Vec<u8>>,
    received_bytes: u64,
    announced_bytes: Option<u64>,
}

/// Why a body was refused, with what is needed to say what it looks like.
pub(crate) struct Difference {
    offset_bytes: u64,
    expected: Option<Stream>,
    /// What was received from the aligned word around `offset_bytes` on (or from the next one, when the frame begins
    /// within that word); empty when the length is wrong.
    window: Vec<u8>,
    window_offset: u64,
    reason: Option<String>,
}

impl<'a> Verifier<'a> {
    /// `announced_bytes` is the Content-Length of the answer.
    pub(crate) fn new(
        seed: u64,
        key: &'a str,
        expected: &'a Expected,
        announced_bytes: Option<u64>,
    ) -> Result<Self, Difference> {
        let candidates: Vec<_> = expected
            .all()
            .filter_map(|content| match content {
                Content::Version { version, .. } => Some((Stream::new(seed, key, version), content)),
                Content::Absent => None,
            })
            .collect();
        let first_word = (!expected.is_known()).then(Vec::new);
        if candidates.is_empty() && first_word.is_none() {
            return Err(Difference::reason(0, "an object"));
        }
        Ok(Self { seed, key, expected, candidates, first_word, received_bytes: 0, announced_bytes })
    }

    /// For a body that is the range (offset, length) of an object; with an unknown version the offset is one of a word.
    pub(crate) fn of_range(
        seed: u64,
        key: &'a str,
        expected: &'a Expected,
        (offset, len): (u64, u64),
    ) -> Result<Self, Difference> {
        let end = offset + len;
        let mut verifier = Self::new(seed, key, expected, Some(end))?;
        assert!(offset.is_multiple_of(8) || verifier.first_word.is_none(), "see above");
        verifier.received_bytes = offset;
        for (_, content) in &mut verifier.candidates {
            if let Content::Version { size_bytes, .. } = content {
                assert!(*size_bytes >= end, "ranges are chosen within every object that may stand there");
                *size_bytes = end;
            }
        }
        Ok(verifier)
    }

    pub(crate) fn feed(&mut self, frame: &[u8]) -> Result<(), Difference> {
        let offset = self.received_bytes;
        self.received_bytes += frame.len() as u64;
        let first_word = (offset - self.first_word.as_ref().map_or(0, Vec::len) as u64) / 8;
        if let Some(mut first) = self.first_word.take() {
            let missing = 8 - first.len();
            first.extend_from_slice(&frame[..missing.min(frame.len())]);
            let Ok(word) = <[u8; 8]>::try_from(first.as_slice()) else {
                self.first_word = Some(first);
                return Ok(());
            };
            self.adopt(first_word, word, frame)?;
        }
        let mut best: Option<(usize, Stream, u64)> = None;
        self.candidates.retain(|(stream, content)| {
            let Content::Version { size_bytes, .. } = *content else { return false };
            let within =
                usize::try_from(size_bytes - offset).map_or(frame.len(), |left| left.min(frame.len()));
            let matching = stream.first_difference(offset, &frame[..within]).unwrap_or(within);
            if best.is_none_or(|(most, ..)| matching > most) {
                best = Some((matching, *stream, size_bytes));
            }
            matching == frame.len()
        });
        if !self.candidates.is_empty() {
            return Ok(());
        }
        let (matching, stream, size_bytes) = best.expect("feed is not called again after it failed");
        if offset + matching as u64 == size_bytes {
            return Err(Difference::reason(size_bytes, "a body that is too long"));
        }
        Err(Difference::content(offset, matching, frame, stream))
    }

    /// Takes the version that the first word of the body claims, when any version is right.
    fn adopt(&mut self, index: u64, word: [u8; 8], frame: &[u8]) -> Result<(), Difference> {
        let Some(version) = content::version_of_word(index, word, self.seed, self.key) else {
            return Err(Difference {
                offset_bytes: 0,
                expected: None,
                window: frame[..frame.len().min(WINDOW_BYTES)].to_vec(),
                window_offset: 0,
                reason: None,
            });
        };
        let size_bytes = self.announced_bytes.unwrap_or(u64::MAX);
        let content = Content::Version { version, size_bytes };
        self.candidates.push((Stream::new(self.seed, self.key, version), content));
        Ok(())
    }

    /// The body ended: what it was, or why it cannot be right.
    pub(crate) fn finish(self) -> Result<Content, Difference> {
        let received = self.received_bytes;
        if self.first_word.is_some() {
            // Shorter than a word: the version cannot be told, and any is right.
            return Ok(Content::Version { version: 0, size_bytes: received });
        }
        let unknown = !self.expected.is_known();
        self.candidates
            .iter()
            .find_map(|(_, content)| match content {
                Content::Version { version, size_bytes } if unknown || *size_bytes == received => {
                    Some(Content::Version { version: *version, size_bytes: received })
                }
                _ => None,
            })
            .ok_or_else(|| Difference::reason(received, "a truncated body"))
    }
}

impl Difference {
    /// The object is not there.
    pub(crate) fn missing() -> Self {
        Self::reason(0, "no object")
    }

    fn reason(offset_bytes: u64, reason: &str) -> Self {
        Self {
            offset_bytes,
            expected: None,
            window: Vec::new(),
            window_offset: 0,
            reason: Some(reason.to_owned()),
        }
    }

    fn content(frame_offset: u64, at: usize, frame: &[u8], expected: Stream) -> Self {
        let offset_bytes = frame_offset + at as u64;
        let word_offset = offset_bytes - offset_bytes % 8;
        let window_offset =
            if word_offset < frame_offset { frame_offset.next_multiple_of(8) } else { word_offset };
        let from = usize::try_from(window_offset - frame_offset).expect("within a frame").min(frame.len());
        let window = frame[from..].iter().copied().take(WINDOW_BYTES).collect();
        Self { offset_bytes, expected: Some(expected), window, window_offset, reason: None }
    }

    /// Says precisely what was found, looking for its origin among `other_keys` as well.
    pub(crate) fn into_mismatch<K: AsRef<str>>(
        self,
        seed: u64,
        key: &str,
        expected: &Expected,
        other_keys: impl Iterator<Item = K>,
    ) -> Mismatch {
        let found = match &self.reason {
            Some(reason) => reason.clone(),
            None => self.diagnose(seed, key, other_keys),
        };
        Mismatch {
            key: key.to_owned(),
            offset_bytes: self.offset_bytes,
            expected: expected.describe(),
            found,
        }
    }

    fn diagnose<K: AsRef<str>>(
        &self,
        seed: u64,
        key: &str,
        mut other_keys: impl Iterator<Item = K>,
    ) -> String {
        let right = usize::try_from(self.offset_bytes.saturating_sub(self.window_offset)).expect("below 8");
        let wrong = &self.window[right.min(self.window.len())..];
        if !wrong.is_empty() && wrong.iter().all(|byte| *byte == 0) {
            return format!("zeros ({} bytes seen)", wrong.len());
        }
        if let Some(start) = self.recover() {
            if let Some(version) = Stream::version_for(start, seed, key) {
                return format!("version {version} of the same key");
            }
            if let Some(words) = self.expected.and_then(|s| content::shift_words(start, s, 1 << 32)) {
                return format!(
                    "the right version, shifted: bytes of offset {}",
                    i128::from(self.offset_bytes) + i128::from(words) * 8
                );
            }
            let origin = other_keys.find_map(|other| {
                Stream::version_for(start, seed, other.as_ref())
                    .map(|version| (other.as_ref().to_owned(), version))
            });
            return match origin {
                Some((other, version)) => format!("version {version} of key {other}"),
                None => "content of another key, seed or offset of this tool".to_owned(),
            };
        }
        let head = hex::encode(&self.window[..self.window.len().min(16)]);
        match self.damage() {
            Some((bytes, bits)) => {
                format!(
                    "damage: {bytes} wrong bytes ({bits} bits) in {} seen; begins {head}",
                    self.window.len()
                )
            }
            None => format!("foreign content; begins {head}"),
        }
    }

    /// The stream that two neighbouring words of the window agree on, unless it is the expected one (damage before it).
    fn recover(&self) -> Option<u64> {
        let (words, _) = self.window.as_chunks::<8>();
        let start = words
            .windows(2)
            .zip(self.window_offset / 8..)
            .find_map(|(pair, word)| content::recover_start(word, pair[0], pair[1]))?;
        (self.expected.and_then(|stream| content::shift_words(start, stream, 0)).is_none()).then_some(start)
    }

    fn damage(&self) -> Option<(usize, u32)> {
        let mut right = vec![0; self.window.len()];
        self.expected?.fill(self.window_offset, &mut right);
        let wrong: Vec<u8> = self.window.iter().zip(&right).map(|(got, right)| got ^ right).collect();
        let words = wrong.chunks(8).filter(|word| word.iter().any(|byte| *byte != 0)).count();
        let bytes = wrong.iter().filter(|byte| **byte != 0).count();
        (words <= DAMAGED_WORDS_MAX).then(|| (bytes, wrong.iter().map(|byte| byte.count_ones()).sum()))
    }
}

#[cfg(test)]
mod tests {
    use super::{Content, Expected, Mismatch, Verifier};
    use crate::content::Stream;

    const KEY: &str = "p/obj-00000001";
    const SIZE_BYTES: u64 = 100_000;

    fn version(version: u64) -> Content {
        Content::Version { version, size_bytes: SIZE_BYTES }
    }

    fn body(key: &str, version: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(SIZE_BYTES).unwrap()];
        Stream::new(1, key, version).fill(0, &mut bytes);
        bytes
    }

    /// Reads `body` in frames of `frame_bytes`.
    fn read(expected: &Expected, body: &[u8], frame_bytes: usize) -> Result<Content, Mismatch> {
        let others = || ["p/obj-00000000", KEY].iter();
        let mut verifier = Verifier::new(1, KEY, expected, Some(body.len() as u64))
            .map_err(|difference| difference.into_mismatch(1, KEY, expected, others()))?;
        body.chunks(frame_bytes)
            .try_for_each(|frame| verifier.feed(frame))
            .and_then(|()| verifier.finish())
            .map_err(|difference| difference.into_mismatch(1, KEY, expected, others()))
    }

    #[test]
    fn any_framing_finds_the_version_among_those_possible() {
        let mut expected = Expected::settled(version(1));
        expected.attempt(version(2));
        expected.attempt(version(3));
        expected.reject(version(3));
        for frame_bytes in [1, 7, 4096, 70_001, 1 << 20] {
            for right in [1, 2] {
                assert_eq!(read(&expected, &body(KEY, right), frame_bytes), Ok(version(right)));
                assert_eq!(read(&Expected::listed(), &body(KEY, right), frame_bytes), Ok(version(right)));
            }
            let refused = read(&expected, &body(KEY, 3), frame_bytes).unwrap_err();
            assert!(refused.offset_bytes < 8);
            // One-byte frames leave nothing to recognise.
            if frame_bytes > 4000 {
                assert_eq!(refused.found, "version 3 of the same key");
                let other = read(&expected, &body("p/obj-00000000", 1), frame_bytes).unwrap_err();
                assert_eq!(other.found, "version 1 of key p/obj-00000000");
                let other = read(&Expected::listed(), &body("p/obj-00000000", 1), frame_bytes).unwrap_err();
                assert_eq!(other.found, "version 1 of key p/obj-00000000");
            }
        }
        expected.settle(version(2));
        assert!(read(&expected, &body(KEY, 1), 4096).is_err());
    }

    #[test]
    fn a_body_mixed_of_two_right_versions_is_wrong() {
        let mut expected = Expected::settled(version(1));
        expected.attempt(version(2));
        let mut mixed = body(KEY, 1);
        mixed[50_000..].copy_from_slice(&body(KEY, 2)[50_000..]);
        for frame_bytes in [1000, 4096, 1 << 20] {
            let refused = read(&expected, &mixed, frame_bytes).unwrap_err();
            assert!((50_000..50_008).contains(&refused.offset_bytes), "{refused:?}");
            assert_eq!(refused.found, "version 2 of the same key");
        }
    }

    #[test]
    fn absence_is_right_only_where_possible() {
        assert!(Expected::default().accepts(Content::Absent));
        assert!(!Expected::listed().accepts(Content::Absent));
        let mut expected = Expected::settled(version(1));
        assert!(!expected.accepts(Content::Absent) && !expected.certainly_absent());
        expected.attempt(Content::Absent);
        assert!(expected.accepts(Content::Absent) && expected.accepts(version(1)));
        expected.settle(Content::Absent);
        assert!(expected.certainly_absent() && !expected.accepts(version(1)));
        assert!(read(&expected, &body(KEY, 1), 4096).is_err());
        expected.attempt(version(2));
        assert!(!expected.certainly_absent());
        assert_eq!(read(&expected, &body(KEY, 2), 4096), Ok(version(2)));
    }
}

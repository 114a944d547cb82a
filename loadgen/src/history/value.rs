//! Values: a number, from which size and bytes of an object follow; and the entity tag by which a HEAD or a listing
//! names it.

use std::collections::HashMap;

use md5::{Digest, Md5};

use crate::content::Stream;
use crate::workload::dice::Dice;

/// Of a hundred values so many are small enough to ride in a commit record.
const SMALL_PERCENT: u64 = 60;
const SMALL_BYTES: std::ops::Range<u64> = 64..8 << 10;
/// Above what rides in a commit record, so that there are shards.
const LARGE_BYTES: std::ops::Range<u64> = 33 << 10..160 << 10;

/// All values that were ever sent, and what was last seen of each key.
pub(super) struct Values {
    seed: u64,
    count: u64,
    tags: HashMap<u64, String>,
    by_tag: HashMap<String, u64>,
    seen: HashMap<String, u64>,
}

impl Values {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, count: 0, tags: HashMap::new(), by_tag: HashMap::new(), seen: HashMap::new() }
    }

    /// A new value for a key: its number, bytes and size.
    pub(super) fn create(&mut self, key: &str) -> (u64, Stream, u64) {
        self.count += 1;
        let (value, size_bytes) = (self.count, self.size_bytes(self.count));
        let stream = Stream::new(self.seed, key, value);
        let mut body = vec![0; usize::try_from(size_bytes).expect("small")];
        stream.fill(0, &mut body);
        let tag = format!("\"{}\"", hex::encode(Md5::digest(&body)));
        self.by_tag.insert(tag.clone(), value);
        self.tags.insert(value, tag);
        (value, stream, size_bytes)
    }

    /// Bytes of a value.
    pub(super) fn size_bytes(&self, value: u64) -> u64 {
        let mut dice = Dice::new(self.seed, 0, value);
        let range = if dice.below(100) < SMALL_PERCENT { SMALL_BYTES } else { LARGE_BYTES };
        range.start + dice.below(range.end - range.start)
    }

    pub(super) fn tag(&self, value: u64) -> Option<&str> {
        self.tags.get(&value).map(String::as_str)
    }

    pub(super) fn by_tag(&self, tag: &str) -> Option<u64> {
        self.by_tag.get(tag).copied()
    }

    /// Somebody was told that the key has this value.
    pub(super) fn saw(&mut self, key: &str, value: u64) {
        self.seen.insert(key.to_owned(), value);
    }

    pub(super) fn seen(&self, key: &str) -> Option<u64> {
        self.seen.get(key).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::Values;

    #[test]
    fn a_value_is_known_by_its_tag() {
        let mut values = Values::new(7);
        let made: Vec<_> = (0..200).map(|_| values.create("k")).collect();
        let large = made.iter().filter(|(_, _, size)| *size > 32 << 10).count();
        assert!((40..120).contains(&large), "{large}");
        for (value, _, size_bytes) in &made {
            assert_eq!(values.size_bytes(*value), *size_bytes);
            let tag = values.tag(*value).unwrap();
            assert_eq!((tag.len(), values.by_tag(tag)), (34, Some(*value)));
        }
        values.saw("k", 3);
        assert_eq!((values.seen("k"), values.seen("other")), (Some(3), None));
    }
}

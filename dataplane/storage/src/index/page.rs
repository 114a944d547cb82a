//! The format of an index page.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `QIXP` |
//! | 4 | 2 | format version, 1 |
//! | 6 | 1 | level: 0 for a leaf, one more than its children for an inner page |
//! | 7 | 1 | zero |
//! | 8 | 2 | entry count `n`, at least 1 |
//! | 10 | 2 | length `p` of the common prefix of all keys |
//! | 12 | 2 | used bytes, header included; zeros follow |
//! | 14 | 2 | zero |
//! | 16 | 8 | own address: first block of the page |
//! | 24 | p | common prefix |
//! | 24 + p | 2 n | offsets of the entries from the start of the page |
//! | 24 + p + 2 n | | entries in key order, without gaps |
//!
//! An entry: suffix length u16, payload length u16, key suffix, payload. In a leaf the payload is the value; the
//! payload length 0xffff stands for a 20-byte pointer to an out-of-line value: first block u64, blocks u32,
//! length in bytes u32, crc32c u32 (seeded with the first block). In an inner page the payload is a child: first
//! block u64, crc32c of the child page u32; its key is at most the smallest key below that child. Integers are
//! little-endian.
//!
//! The checksum of a page is not in it but in its parent, so a misdirected or lost write cannot verify. Bytes are
//! judged once, by [`Page::parse`]; every accessor relies on that.

use std::cmp::Ordering;
use std::ops::Range;

use bytes::Bytes;

use crate::device::BLOCK_BYTES;
use crate::extent::{BlockIndex, Extent};

/// Size of every index page.
pub const PAGE_BYTES: usize = 16 * 1024;
/// Blocks of an index page.
pub(super) const PAGE_BLOCKS: u32 = 4;
const _: () = assert!(PAGE_BLOCKS as usize * BLOCK_BYTES == PAGE_BYTES);

const MAGIC: [u8; 4] = *b"QIXP";
const VERSION: u16 = 1;
pub(super) const HEADER_BYTES: usize = 24;
const OFFSET_BYTES: usize = 2;
const ENTRY_HEADER_BYTES: usize = 4;
const CHILD_BYTES: usize = 12;
const POINTER_BYTES: usize = 20;
const OUT_OF_LINE: u16 = u16::MAX;
// An inner page must hold two of the longest keys, or the tree could not narrow towards its root.
const _: () = assert!(
    HEADER_BYTES
        + 4 * (OFFSET_BYTES + ENTRY_HEADER_BYTES + super::KEY_BYTES_MAX + super::INLINE_VALUE_BYTES_MAX)
        <= PAGE_BYTES
);
const _: () = assert!(PAGE_BYTES < OUT_OF_LINE as usize);

/// A child page as its parent (or the root record) knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChildRef {
    pub(super) page: BlockIndex,
    pub(super) checksum: u32,
}

impl ChildRef {
    pub(super) fn extent(self) -> Extent {
        Extent { start: self.page, blocks: PAGE_BLOCKS }
    }
}

/// Where an out-of-line value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValuePointer {
    /// The value's own extent.
    pub extent: Extent,
    /// Length of the value in bytes; the rest of the last block is zero.
    pub len_bytes: u32,
    /// crc32c over the first block's index (u64, little-endian) and the value.
    pub checksum: u32,
}

/// The payload of a row as its page holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueRef<'a> {
    /// The value itself.
    Inline(&'a [u8]),
    /// The value lies in an extent of its own.
    OutOfLine(ValuePointer),
}

/// One entry on its way into a page.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) key: Bytes,
    pub(super) payload: Payload,
}

#[derive(Clone, Debug)]
pub(super) enum Payload {
    Inline(Bytes),
    OutOfLine(ValuePointer),
    Child(ChildRef),
}

impl Item {
    /// Bytes in a page without prefix compression, its offset included.
    pub(super) fn page_bytes(&self) -> usize {
        let payload = match &self.payload {
            Payload::Inline(value) => value.len(),
            Payload::OutOfLine(_) => POINTER_BYTES,
            Payload::Child(_) => CHILD_BYTES,
        };
        OFFSET_BYTES + ENTRY_HEADER_BYTES + self.key.len() + payload
    }
}

/// Length of the common prefix of two keys.
pub(super) fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Writes a page over `out` (of [`PAGE_BYTES`], all zero).
///
/// # Panics
/// When the sorted, non-empty `items` do not fit: the caller measured them.
pub(super) fn build(out: &mut [u8], address: BlockIndex, level: u8, items: &[Item]) {
    assert_eq!(out.len(), PAGE_BYTES, "a page has one size");
    let (Some(first), Some(last)) = (items.first(), items.last()) else { panic!("a page holds an entry") };
    let prefix = common_prefix(&first.key, &last.key);
    let mut offset_at = HEADER_BYTES + prefix;
    let mut at = offset_at + OFFSET_BYTES * items.len();
    out[HEADER_BYTES..offset_at].copy_from_slice(&first.key[..prefix]);
    for item in items {
        put_u16(out, offset_at, at);
        offset_at += OFFSET_BYTES;
        let suffix = &item.key[prefix..];
        put_u16(out, at, suffix.len());
        let payload_at = at + ENTRY_HEADER_BYTES + suffix.len();
        out[at + ENTRY_HEADER_BYTES..payload_at].copy_from_slice(suffix);
        let payload_len = match &item.payload {
            Payload::Inline(value) => {
                out[payload_at..payload_at + value.len()].copy_from_slice(value);
                put_u16(out, at + 2, value.len());
                value.len()
            }
            Payload::OutOfLine(pointer) => {
                out[payload_at..payload_at + 8].copy_from_slice(&pointer.extent.start.0.to_le_bytes());
                out[payload_at + 8..payload_at + 12].copy_from_slice(&pointer.extent.blocks.to_le_bytes());
                out[payload_at + 12..payload_at + 16].copy_from_slice(&pointer.len_bytes.to_le_bytes());
                out[payload_at + 16..payload_at + 20].copy_from_slice(&pointer.checksum.to_le_bytes());
                put_u16(out, at + 2, usize::from(OUT_OF_LINE));
                POINTER_BYTES
            }
            Payload::Child(child) => {
                out[payload_at..payload_at + 8].copy_from_slice(&child.page.0.to_le_bytes());
                out[payload_at + 8..payload_at + 12].copy_from_slice(&child.checksum.to_le_bytes());
                put_u16(out, at + 2, CHILD_BYTES);
                CHILD_BYTES
            }
        };
        at = payload_at + payload_len;
    }
    out[..4].copy_from_slice(&MAGIC);
    out[4..6].copy_from_slice(&VERSION.to_le_bytes());
    out[6] = level;
    put_u16(out, 8, items.len());
    put_u16(out, 10, prefix);
    put_u16(out, 12, at);
    out[16..24].copy_from_slice(&address.0.to_le_bytes());
}

/// What is wrong with the bytes of a page whose checksum was right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadPage {
    /// It says that it belongs elsewhere.
    Address,
    /// It has another version.
    Version,
    /// Its fields contradict the format, its level or its key range.
    Structure,
}

/// A page that passed [`Page::parse`]; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Page {
    bytes: Bytes,
    count: usize,
    prefix: usize,
}

impl Page {
    /// Judges every field once, so that no accessor can fail or panic later.
    ///
    /// `from` and `to` are the key range that the parent gives the page; `device_blocks` bounds every address.
    pub(super) fn parse(
        bytes: Bytes,
        address: BlockIndex,
        level: u8,
        (from, to): (&[u8], Option<&[u8]>),
        device_blocks: u64,
    ) -> Result<Page, BadPage> {
        if bytes.len() != PAGE_BYTES || bytes[..4] != MAGIC {
            return Err(BadPage::Structure);
        }
        if bytes[4..6] != VERSION.to_le_bytes() {
            return Err(BadPage::Version);
        }
        if bytes[16..24] != address.0.to_le_bytes() {
            return Err(BadPage::Address);
        }
        let page = Page::built(bytes);
        page.check(level, from, to, device_blocks).ok_or(BadPage::Structure)?;
        Ok(page)
    }

    /// The page that [`build`] has just written.
    pub(super) fn built(bytes: Bytes) -> Page {
        Page { count: get_u16(&bytes, 8), prefix: get_u16(&bytes, 10), bytes }
    }

    fn check(&self, level: u8, from: &[u8], to: Option<&[u8]>, device_blocks: u64) -> Option<()> {
        let used = self.used_bytes();
        let mut expected_at = HEADER_BYTES + self.prefix + OFFSET_BYTES * self.count;
        let header_ok = self.level() == level && self.bytes[7] == 0 && get_u16(&self.bytes, 14) == 0;
        if !header_ok || self.count == 0 || used > PAGE_BYTES || expected_at > used {
            return None;
        }
        for index in 0..self.count {
            let at = self.entry_at(index);
            if at != expected_at || at + ENTRY_HEADER_BYTES > used {
                return None;
            }
            let (suffix, payload) = self.entry_ranges(at);
            if payload.end > used || self.prefix + suffix.len() > super::KEY_BYTES_MAX {
                return None;
            }
            if level > 0 && get_u16(&self.bytes, at + 2) != CHILD_BYTES {
                return None;
            }
            expected_at = payload.end;
        }
        let sorted = (1..self.count).all(|index| self.suffix(index - 1) < self.suffix(index));
        let in_range =
            self.compare(0, from).is_ge() && to.is_none_or(|to| self.compare(self.count - 1, to).is_lt());
        (expected_at == used && sorted && in_range && self.addresses_ok(level, device_blocks)).then_some(())
    }

    fn addresses_ok(&self, level: u8, device_blocks: u64) -> bool {
        (0..self.count).all(|index| {
            let (start, blocks) = if level > 0 {
                (self.child(index).page.0, PAGE_BLOCKS)
            } else {
                match self.value(index) {
                    ValueRef::Inline(value) => return value.len() <= super::INLINE_VALUE_BYTES_MAX,
                    ValueRef::OutOfLine(pointer) => {
                        let len = pointer.len_bytes as usize;
                        let fits = len > super::INLINE_VALUE_BYTES_MAX && len <= super::VALUE_BYTES_MAX;
                        if !fits || len.div_ceil(BLOCK_BYTES) != pointer.extent.blocks as usize {
                            return false;
                        }
                        (pointer.extent.start.0, pointer.extent.blocks)
                    }
                }
            };
            start.checked_add(u64::from(blocks)).is_some_and(|end| end <= device_blocks)
        })
    }

    pub(super) fn level(&self) -> u8 {
        self.bytes[6]
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn used_bytes(&self) -> usize {
        get_u16(&self.bytes, 12)
    }

    pub(super) fn prefix(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..HEADER_BYTES + self.prefix]
    }

    fn entry_at(&self, index: usize) -> usize {
        get_u16(&self.bytes, HEADER_BYTES + self.prefix + OFFSET_BYTES * index)
    }

    /// Where the suffix and the payload of the entry at `at` lie.
    fn entry_ranges(&self, at: usize) -> (Range<usize>, Range<usize>) {
        let suffix_at = at + ENTRY_HEADER_BYTES;
        let payload_at = suffix_at + get_u16(&self.bytes, at);
        let payload_len = match get_u16(&self.bytes, at + 2) {
            len if len == usize::from(OUT_OF_LINE) => POINTER_BYTES,
            len => len,
        };
        (suffix_at..payload_at, payload_at..payload_at + payload_len)
    }

    /// The key of an entry without the common prefix.
    pub(super) fn suffix(&self, index: usize) -> &[u8] {
        let at = self.entry_at(index);
        let suffix_at = at + ENTRY_HEADER_BYTES;
        &self.bytes[suffix_at..suffix_at + get_u16(&self.bytes, at)]
    }

    /// The whole key of an entry.
    pub(super) fn key(&self, index: usize) -> Bytes {
        Bytes::from([self.prefix(), self.suffix(index)].concat())
    }

    /// The value of an entry of a leaf.
    pub(super) fn value(&self, index: usize) -> ValueRef<'_> {
        let at = self.entry_at(index);
        let payload = &self.bytes[self.entry_ranges(at).1];
        if get_u16(&self.bytes, at + 2) != usize::from(OUT_OF_LINE) {
            return ValueRef::Inline(payload);
        }
        ValueRef::OutOfLine(ValuePointer {
            extent: Extent { start: BlockIndex(get_u64(payload, 0)), blocks: get_u32(payload, 8) },
            len_bytes: get_u32(payload, 12),
            checksum: get_u32(payload, 16),
        })
    }

    /// The value of an entry of a leaf if it is inline, as a part of the page's bytes.
    pub(super) fn inline_value(&self, index: usize) -> Option<Bytes> {
        let at = self.entry_at(index);
        let inline = get_u16(&self.bytes, at + 2) != usize::from(OUT_OF_LINE);
        inline.then(|| self.bytes.slice(self.entry_ranges(at).1))
    }

    /// The child of an entry of an inner page.
    pub(super) fn child(&self, index: usize) -> ChildRef {
        let payload = &self.bytes[self.entry_ranges(self.entry_at(index)).1];
        ChildRef { page: BlockIndex(get_u64(payload, 0)), checksum: get_u32(payload, 8) }
    }

    /// The entry as an [`Item`]; an inline value shares the page's memory.
    pub(super) fn item(&self, index: usize) -> Item {
        let payload = if self.level() > 0 {
            Payload::Child(self.child(index))
        } else {
            match self.value(index) {
                ValueRef::Inline(_) => {
                    Payload::Inline(self.bytes.slice(self.entry_ranges(self.entry_at(index)).1))
                }
                ValueRef::OutOfLine(pointer) => Payload::OutOfLine(pointer),
            }
        };
        Item { key: self.key(index), payload }
    }

    fn compare(&self, index: usize, key: &[u8]) -> Ordering {
        let prefix = self.prefix();
        match key.get(..prefix.len()) {
            Some(head) if head == prefix => self.suffix(index).cmp(&key[prefix.len()..]),
            _ => prefix.cmp(key),
        }
    }

    /// The position of `key`, or where it would be inserted.
    pub(super) fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let prefix = self.prefix();
        let Some(suffix) = key.strip_prefix(prefix) else {
            return Err(if prefix < key { self.count } else { 0 });
        };
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low.midpoint(high);
            match self.suffix(middle).cmp(suffix) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Ok(middle),
            }
        }
        Err(low)
    }

    /// The child of an inner page whose range holds `key`; smaller keys than all go to the first.
    pub(super) fn child_for(&self, key: &[u8]) -> usize {
        match self.search(key) {
            Ok(index) => index,
            Err(index) => index.saturating_sub(1),
        }
    }
}

fn put_u16(out: &mut [u8], at: usize, value: usize) {
    let value = u16::try_from(value).expect("positions in a page fit");
    out[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn get_u16(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

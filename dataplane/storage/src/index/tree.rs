//! The tree's handle, its root record and the verified way to a page.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;

use super::cache::PageCache;
use super::cursor::Cursor;
use super::error::{Damage, IndexError, KeyRange};
use super::page::{BadPage, ChildRef, PAGE_BLOCKS, PAGE_BYTES, Page, ValuePointer, ValueRef};
use super::value;
use crate::device::{BLOCK_BYTES, Device, IoBuf};
use crate::extent::BlockIndex;

/// More levels than any device needs: an inner page has at least seven children.
const HEIGHT_MAX: u8 = 24;
const ROOT_VERSION: u8 = 1;
/// Size of an encoded [`TreeRoot`].
pub const TREE_ROOT_BYTES: usize = 16;

/// The root of a tree, persisted by the superblock; no root means an empty tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeRoot {
    /// First block of the root page.
    pub page: BlockIndex,
    /// crc32c of the root page.
    pub checksum: u32,
    /// Level of the root page; 0 when it is a leaf.
    pub height: u8,
}

impl TreeRoot {
    /// The persisted form; its own checksum is the superblock's.
    ///
    /// | offset | bytes | field |
    /// |---|---|---|
    /// | 0 | 8 | first block of the root page, little-endian |
    /// | 8 | 4 | crc32c of the root page, little-endian |
    /// | 12 | 1 | level of the root page |
    /// | 13 | 1 | version of this record, 1 |
    /// | 14 | 2 | zero |
    pub fn encode(self) -> [u8; TREE_ROOT_BYTES] {
        let mut out = [0; TREE_ROOT_BYTES];
        out[..8].copy_from_slice(&self.page.0.to_le_bytes());
        out[8..12].copy_from_slice(&self.checksum.to_le_bytes());
        out[12] = self.height;
        out[13] = ROOT_VERSION;
        out
    }

    /// Reads what [`TreeRoot::encode`] wrote; `None` for anything else.
    pub fn decode(bytes: [u8; TREE_ROOT_BYTES]) -> Option<Self> {
        let page = BlockIndex(u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")));
        let checksum = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes"));
        let root = TreeRoot { page, checksum, height: bytes[12] };
        (root.encode() == bytes && root.height <= HEIGHT_MAX).then_some(root)
    }

    pub(super) fn child(self) -> ChildRef {
        ChildRef { page: self.page, checksum: self.checksum }
    }
}

/// The root that an install replaced.
#[derive(Debug)]
pub struct OldRoot(Rc<Option<TreeRoot>>);

impl OldRoot {
    /// Whether a read or cursor still works on this root. Extents freed by the batch that replaced it may be reused
    /// only when this is false here and for every older root.
    pub fn in_use(&self) -> bool {
        Rc::strong_count(&self.0) > 1
    }
}

/// The key range of a page, named by the inner entries around the way to it.
#[derive(Clone, Debug, Default)]
pub(super) struct Bounds {
    from: Option<(Page, usize)>,
    to: Option<(Page, usize)>,
}

impl Bounds {
    /// The range of the child at `index` of `page`, whose own range this is.
    pub(super) fn narrow(&self, page: &Page, index: usize) -> Bounds {
        let from = if index > 0 { Some((page.clone(), index)) } else { self.from.clone() };
        let to = if index + 1 < page.count() { Some((page.clone(), index + 1)) } else { self.to.clone() };
        Bounds { from, to }
    }

    pub(super) fn from(&self) -> Bytes {
        self.from.as_ref().map(|(page, index)| page.key(*index)).unwrap_or_default()
    }

    pub(super) fn to(&self) -> Option<Bytes> {
        self.to.as_ref().map(|(page, index)| page.key(*index))
    }

    pub(super) fn key_range(&self) -> KeyRange {
        KeyRange { from: self.from(), to: self.to() }
    }
}

/// What a loaded page is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A reader asked for it and may again.
    Read,
    /// A batch is about to replace it.
    Replace,
}

struct Inner<D> {
    device: Rc<D>,
    root: RefCell<Rc<Option<TreeRoot>>>,
    cache: RefCell<PageCache>,
}

/// An ordered map on a device; see the [module](super). Clones share everything.
pub struct Tree<D>(Rc<Inner<D>>);

impl<D> Clone for Tree<D> {
    fn clone(&self) -> Self {
        Tree(Rc::clone(&self.0))
    }
}

impl<D: Device> Tree<D> {
    /// Opens the tree of `root` (`None`: empty) without any I/O; `cache_bytes` bounds its page cache.
    pub fn open(device: Rc<D>, root: Option<TreeRoot>, cache_bytes: usize) -> Self {
        let cache = RefCell::new(PageCache::new(cache_bytes));
        Tree(Rc::new(Inner { device, root: RefCell::new(Rc::new(root)), cache }))
    }

    /// The root that new reads start from.
    pub fn root(&self) -> Option<TreeRoot> {
        **self.0.root.borrow()
    }

    /// Makes new reads start from `root`; reads under way stay on the returned one.
    pub fn install(&self, root: Option<TreeRoot>) -> OldRoot {
        OldRoot(self.0.root.replace(Rc::new(root)))
    }

    /// A cursor before the first row whose key is at least `from`; it stays on today's root.
    pub fn cursor(&self, from: &[u8]) -> Cursor<D> {
        Cursor::new(self.clone(), from)
    }

    /// The value of `key`, if it has a row.
    ///
    /// # Errors
    /// [`IndexError::Device`] or [`IndexError::Damaged`].
    pub async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, IndexError> {
        let root = self.hold_root();
        let Some(root) = *root else { return Ok(None) };
        let mut page = self.load(root.child(), root.height, &Bounds::default(), Purpose::Read).await?;
        // Bounds serve only to judge a page from the device: on cached pages they are not worth their cost.
        let mut way: Vec<(Page, usize)> = Vec::with_capacity(usize::from(root.height));
        for level in (0..root.height).rev() {
            let index = page.child_for(key);
            let child = page.child(index);
            way.push((page, index));
            page = match self.cached(child, level) {
                Some(page) => page,
                None => {
                    let narrow = |bounds: Bounds, (page, index): &(Page, usize)| bounds.narrow(page, *index);
                    let bounds = way.iter().fold(Bounds::default(), narrow);
                    self.load(child, level, &bounds, Purpose::Read).await?
                }
            };
        }
        let Ok(index) = page.search(key) else { return Ok(None) };
        match page.value(index) {
            ValueRef::Inline(value) => Ok(Some(Bytes::copy_from_slice(value))),
            ValueRef::OutOfLine(pointer) => self.load_value(key, pointer).await.map(Some),
        }
    }

    /// Up to `limit_rows` rows in key order, from `from` up to but without `to`, out-of-line values loaded: memory
    /// may reach `limit_rows` times the longest value.
    ///
    /// # Errors
    /// [`IndexError::Device`] or [`IndexError::Damaged`].
    pub async fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit_rows: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, IndexError> {
        let mut rows = Vec::new();
        let mut cursor = self.cursor(from);
        while rows.len() < limit_rows && cursor.next().await? && cursor.key() < to {
            rows.push((Bytes::copy_from_slice(cursor.key()), cursor.load_value().await?));
        }
        Ok(rows)
    }

    /// The current root, held so that [`OldRoot::in_use`] sees the reader.
    pub(super) fn hold_root(&self) -> Rc<Option<TreeRoot>> {
        Rc::clone(&self.0.root.borrow())
    }

    pub(super) fn device(&self) -> &D {
        &self.0.device
    }

    /// Reads and verifies an out-of-line value of the row `key`.
    ///
    /// # Errors
    /// [`IndexError::Device`] or [`IndexError::Damaged`].
    pub async fn load_value(&self, key: &[u8], pointer: ValuePointer) -> Result<Bytes, IndexError> {
        value::load(self.device(), key, pointer).await
    }

    /// The cached page, unless it is of another level: then the device's copy is judged again.
    fn cached(&self, child: ChildRef, level: u8) -> Option<Page> {
        self.0.cache.borrow_mut().get(child).filter(|page| page.level() == level)
    }

    /// A verified page, from the cache or the device.
    pub(super) async fn load(
        &self,
        child: ChildRef,
        level: u8,
        bounds: &Bounds,
        purpose: Purpose,
    ) -> Result<Page, IndexError> {
        if let Some(page) = self.cached(child, level) {
            return Ok(page);
        }
        let page = self.read_page(child, level, bounds).await?;
        self.0.cache.borrow_mut().insert(child, page.clone(), purpose == Purpose::Read);
        Ok(page)
    }

    /// A verified page from the device, past the cache.
    pub(super) async fn read_page(
        &self,
        child: ChildRef,
        level: u8,
        bounds: &Bounds,
    ) -> Result<Page, IndexError> {
        let offset = child.page.0.checked_mul(BLOCK_BYTES as u64);
        let Some(offset) =
            offset.filter(|_| child.page.0.saturating_add(u64::from(PAGE_BLOCKS)) <= self.device_blocks())
        else {
            return Err(damaged(child, level, Damage::Structure, bounds));
        };
        let (result, buf) = self.device().read(offset, IoBuf::zeroed(PAGE_BYTES)).await;
        result?;
        if crc32c::crc32c(&buf) != child.checksum {
            return Err(damaged(child, level, Damage::Checksum, bounds));
        }
        let (from, to) = (bounds.from(), bounds.to());
        let range = (&from[..], to.as_deref());
        Page::parse(buf.into_bytes(), child.page, level, range, self.device_blocks()).map_err(|bad| {
            let what = match bad {
                BadPage::Address => Damage::Address,
                BadPage::Version => Damage::Version,
                BadPage::Structure => Damage::Structure,
            };
            damaged(child, level, what, bounds)
        })
    }

    /// Keeps a page that was just written.
    pub(super) fn remember(&self, child: ChildRef, page: Page) {
        self.0.cache.borrow_mut().insert(child, page, false);
    }

    fn device_blocks(&self) -> u64 {
        self.device().size_bytes() / BLOCK_BYTES as u64
    }
}

fn damaged(child: ChildRef, level: u8, what: Damage, bounds: &Bounds) -> IndexError {
    IndexError::Damaged { page: child.page, level, what, key_range: Box::new(bounds.key_range()) }
}

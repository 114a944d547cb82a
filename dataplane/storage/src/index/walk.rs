//! A visit to everything a root refers to, for fsck, inspection, mending and scrub: reads past the cache and goes on
//! after damage. It may be done in steps, each of which stays on the root that was installed when it began.

use bytes::Bytes;
use futures::future::join_all;

use super::PAGE_BYTES;
use super::error::{IndexError, KeyRange};
use super::page::{ChildRef, Page, ValueRef};
use super::tree::{Bounds, Tree};
use super::yielding::Pace;
use crate::device::Device;
use crate::extent::Extent;

/// How much a walk reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkDepth {
    /// Pages only; out-of-line values are listed.
    Pages,
    /// Pages and out-of-line values; every checksum is verified.
    Values,
}

/// One thing a walk came by.
#[derive(Debug)]
pub enum Visit<'a> {
    /// A page in order.
    Page {
        /// Where it lies.
        extent: Extent,
        /// 0 for a leaf.
        level: u8,
        /// Rows of a leaf, children of an inner page.
        entries: usize,
        /// Bytes in use.
        used_bytes: usize,
    },
    /// An out-of-line value, in order as far as it was read.
    Value {
        /// Where it lies.
        extent: Extent,
        /// The row's key.
        key: &'a [u8],
        /// Length of the value.
        len_bytes: u32,
    },
    /// A page or value that cannot be read. Its extent is in use; what lies below a page is unknown.
    Damaged {
        /// Where it lies.
        extent: Extent,
        /// What is wrong.
        error: IndexError,
    },
}

/// Pages read at once below one parent.
const READS_AHEAD: usize = 16;

/// A page that a walk has still to visit.
struct Ahead {
    child: ChildRef,
    level: u8,
    bounds: Bounds,
    page: Option<Result<Page, IndexError>>,
}

impl Ahead {
    fn new(child: ChildRef, level: u8, bounds: Bounds) -> Self {
        Self { child, level, bounds, page: None }
    }
}

/// One thing a step came by; tells more than [`Visit`].
pub(crate) enum Seen<'a> {
    /// A page, before what is in it.
    Page { extent: Extent, level: u8, entries: usize, used_bytes: usize },
    /// A row whose value could be read, as far as the depth asks for it.
    Row(Row<'a>),
    /// A page or value that cannot be read, and the keys that are gone with it.
    Damaged { extent: Extent, error: IndexError, keys: KeyRange, is_page: bool },
}

/// A row of a leaf.
pub(crate) struct Row<'a> {
    page: &'a Page,
    index: usize,
    loaded: Option<&'a Bytes>,
}

impl Row<'_> {
    /// The whole key.
    pub(crate) fn key(&self) -> Bytes {
        self.page.key(self.index)
    }

    /// The value; `None` if it is out of line and was not read.
    pub(crate) fn value(&self) -> Option<&[u8]> {
        match (self.page.value(self.index), self.loaded) {
            (ValueRef::Inline(value), _) => Some(value),
            (ValueRef::OutOfLine(_), loaded) => loaded.map(|value| &value[..]),
        }
    }

    /// Extent and length of a value that lies out of line.
    pub(crate) fn out_of_line(&self) -> Option<(Extent, u32)> {
        match self.page.value(self.index) {
            ValueRef::Inline(_) => None,
            ValueRef::OutOfLine(pointer) => Some((pointer.extent, pointer.len_bytes)),
        }
    }
}

/// What a step did.
pub(crate) struct Stepped {
    /// Bytes read from the device.
    pub(crate) read_bytes: u64,
    /// First key not visited; `None` at the end of the tree.
    pub(crate) next: Option<Bytes>,
}

impl<D: Device> Tree<D> {
    /// Shows `visit` every page and every out-of-line value of the current root, pages before what they refer to.
    pub async fn walk(&self, depth: WalkDepth, mut visit: impl FnMut(Visit<'_>)) {
        let adapted = |seen: Seen<'_>| match seen {
            Seen::Page { extent, level, entries, used_bytes } => {
                visit(Visit::Page { extent, level, entries, used_bytes });
            }
            Seen::Row(row) => {
                if let Some((extent, len_bytes)) = row.out_of_line() {
                    visit(Visit::Value { extent, key: &row.key(), len_bytes });
                }
            }
            Seen::Damaged { extent, error, .. } => visit(Visit::Damaged { extent, error }),
        };
        self.walk_step(&[], depth, u64::MAX, adapted).await;
    }

    /// Shows `visit` the pages on the way to `from` and all that follows, until about `bytes_max` bytes are read: at
    /// least one page of rows or one value, and it may go one of them beyond. A page or value that the device fails
    /// to read twice counts as damaged.
    pub(crate) async fn walk_step(
        &self,
        from: &[u8],
        depth: WalkDepth,
        bytes_max: u64,
        mut visit: impl FnMut(Seen<'_>),
    ) -> Stepped {
        let root = self.hold_root();
        let pace = Pace::default();
        let mut read_bytes = 0;
        let mut ahead: Vec<Ahead> = Vec::new();
        ahead.extend((*root).map(|root| Ahead::new(root.child(), root.height, Bounds::default())));
        while !ahead.is_empty() {
            read_bytes += self.read_ahead(&mut ahead, bytes_max.saturating_sub(read_bytes)).await;
            let Some(Ahead { child, level, bounds, page: Some(page) }) = ahead.pop() else {
                unreachable!("the next page was read")
            };
            match page {
                Err(error) => {
                    let keys = bounds.key_range();
                    visit(Seen::Damaged { extent: child.extent(), error, keys, is_page: true });
                }
                Ok(page) => {
                    let (entries, used_bytes) = (page.count(), page.used_bytes());
                    visit(Seen::Page { extent: child.extent(), level, entries, used_bytes });
                    pace.spend(page.count()).await;
                    if level > 0 {
                        let children = (page.child_for(from)..page.count()).rev();
                        let below =
                            |index| Ahead::new(page.child(index), level - 1, bounds.narrow(&page, index));
                        ahead.extend(children.map(below));
                        continue;
                    }
                    let budget = bytes_max.saturating_sub(read_bytes);
                    let (bytes, next) = self.walk_leaf(&page, from, depth, budget, &mut visit).await;
                    read_bytes += bytes;
                    if next.is_some() {
                        return Stepped { read_bytes, next };
                    }
                }
            }
            if read_bytes >= bytes_max {
                return Stepped { read_bytes, next: ahead.last().map(|next| next.bounds.from()) };
            }
        }
        Stepped { read_bytes, next: None }
    }

    /// Reads the next page and some of its siblings, as far as the budget goes; returns bytes read.
    async fn read_ahead(&self, ahead: &mut [Ahead], bytes_max: u64) -> u64 {
        let Some(next) = ahead.last().filter(|next| next.page.is_none()) else { return 0 };
        let level = next.level;
        let count =
            usize::try_from(bytes_max / PAGE_BYTES as u64).unwrap_or(usize::MAX).clamp(1, READS_AHEAD);
        let reads =
            ahead.iter_mut().rev().take(count).take_while(|next| next.level == level).map(async |next| {
                next.page = Some(self.read_page_twice(next.child, level, &next.bounds).await);
            });
        (join_all(reads).await.len() * PAGE_BYTES) as u64
    }

    /// The rows of a leaf from `from` on; returns bytes read and the first key left out because they were too many.
    async fn walk_leaf(
        &self,
        page: &Page,
        from: &[u8],
        depth: WalkDepth,
        bytes_max: u64,
        visit: &mut impl FnMut(Seen<'_>),
    ) -> (u64, Option<Bytes>) {
        let first = page.search(from).unwrap_or_else(|index| index);
        let mut read_bytes = 0;
        for index in first..page.count() {
            let ValueRef::OutOfLine(pointer) = page.value(index) else {
                visit(Seen::Row(Row { page, index, loaded: None }));
                continue;
            };
            if depth == WalkDepth::Pages {
                visit(Seen::Row(Row { page, index, loaded: None }));
                continue;
            }
            if read_bytes > 0 && read_bytes >= bytes_max {
                return (read_bytes, Some(page.key(index)));
            }
            let key = page.key(index);
            read_bytes += pointer.extent.len_bytes();
            let mut loaded = self.load_value(&key, pointer).await;
            if let Err(IndexError::Device(_)) = loaded {
                loaded = self.load_value(&key, pointer).await;
            }
            match loaded {
                Ok(value) => visit(Seen::Row(Row { page, index, loaded: Some(&value) })),
                Err(error) => {
                    let keys = KeyRange::only(&key);
                    visit(Seen::Damaged { extent: pointer.extent, error, keys, is_page: false });
                }
            }
        }
        (read_bytes, None)
    }

    async fn read_page_twice(&self, child: ChildRef, level: u8, bounds: &Bounds) -> Result<Page, IndexError> {
        match self.read_page(child, level, bounds).await {
            Err(IndexError::Device(_)) => self.read_page(child, level, bounds).await,
            other => other,
        }
    }
}

//! Applying a sorted batch: every touched page is read once, merged with its part of the batch and written anew.
//!
//! The recursion returns the new content of a page as items that are not packed into pages yet, so that the parent
//! can first join what became small with a neighbour: an empty page is dropped, one below a quarter is merged.
//! An untouched subtree is never read unless it serves as such a neighbour.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use bytes::Bytes;
use futures::future::{LocalBoxFuture, join_all};

use super::error::IndexError;
use super::page::{self, ChildRef, HEADER_BYTES, Item, PAGE_BLOCKS, PAGE_BYTES, Page, Payload, ValuePointer};
use super::tree::{Bounds, Purpose, Tree, TreeRoot};
use super::writer::{End, Writer};
use super::yielding::Pace;
use super::{INLINE_VALUE_BYTES_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX, value};
use crate::device::Device;
use crate::extent::{BlockIndex, Extent, FreeMap};

/// A page with less in it is merged with a neighbour.
const UNDERFULL_BYTES: usize = PAGE_BYTES / 4;
/// Touched pages read at once below one parent.
const READS_AHEAD: usize = 16;

/// What a batch did; nothing of it is visible before [`Tree::install`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The new root, written but not flushed.
    pub root: Option<TreeRoot>,
    /// Pages and values that are allocated and that the new root does not refer to.
    pub freed: Vec<Extent>,
    /// Everything taken from the free map: given back as it is when the root is not to be installed.
    pub taken: Vec<Extent>,
    /// Bytes written for new pages and values.
    pub written_bytes: u64,
}

/// A put, or a delete when there is no value.
type Change<'b> = (&'b Bytes, Option<&'b Bytes>);

impl<D: Device> Tree<D> {
    /// Writes the tree that results from a batch of puts and deletes (`None`) beside the current one: no flush, no
    /// write in place, nothing installed. Batches must not run at the same time: each starts from the installed root.
    ///
    /// # Errors
    /// Any [`IndexError`]; then everything taken from `space` is back in it and the tree is as before.
    pub async fn apply(
        &self,
        batch: &BTreeMap<Bytes, Option<Bytes>>,
        space: &RefCell<FreeMap>,
    ) -> Result<Applied, IndexError> {
        self.apply_without(batch, &BTreeSet::new(), space).await
    }

    /// As [`Tree::apply`], and leaves out the pages that begin at `lost`, and all below them, without reading them. The
    /// batch must hold a deletion of the first key of the range of each. What lies below a lost inner page is not in
    /// [`Applied::freed`].
    ///
    /// # Errors
    /// As [`Tree::apply`].
    pub(crate) async fn apply_without(
        &self,
        batch: &BTreeMap<Bytes, Option<Bytes>>,
        lost: &BTreeSet<BlockIndex>,
        space: &RefCell<FreeMap>,
    ) -> Result<Applied, IndexError> {
        let mut changes = Vec::with_capacity(batch.len());
        let pace = Pace::default();
        for (key, value) in batch {
            if key.len() > KEY_BYTES_MAX {
                return Err(IndexError::KeyTooLong { len_bytes: key.len() });
            }
            match value {
                Some(value) if value.len() > VALUE_BYTES_MAX => {
                    return Err(IndexError::ValueTooLarge { len_bytes: value.len() });
                }
                _ => changes.push((key, value.as_ref())),
            }
            pace.spend(1).await;
        }
        let root = self.hold_root();
        let pages = Writer::new(self.device(), space, End::High);
        let values = Writer::new(self.device(), space, End::Low);
        let mut applier = Applier { tree: self, lost, pages, values, freed: Vec::new(), pace };
        match applier.run(*root, &changes).await {
            Ok((root, written_bytes)) => {
                let mut taken = applier.pages.into_taken();
                taken.extend(applier.values.into_taken());
                Ok(Applied { root, freed: applier.freed, taken, written_bytes })
            }
            Err(error) => {
                applier.pages.abort().await;
                applier.values.abort().await;
                Err(error)
            }
        }
    }
}

struct Applier<'a, D> {
    tree: &'a Tree<D>,
    lost: &'a BTreeSet<BlockIndex>,
    pages: Writer<'a, D>,
    values: Writer<'a, D>,
    freed: Vec<Extent>,
    pace: Pace,
}

/// New content of one or more neighbouring children, not packed yet.
struct Pending {
    from: Bytes,
    items: Vec<Item>,
}

impl<D: Device> Applier<'_, D> {
    async fn run(
        &mut self,
        root: Option<TreeRoot>,
        changes: &[Change<'_>],
    ) -> Result<(Option<TreeRoot>, u64), IndexError> {
        let (mut level, items) = match root {
            None => (0, Some(self.merge(None, changes).await?.unwrap_or_default())),
            Some(old) if self.lost.contains(&old.page) => {
                self.freed.push(old.child().extent());
                (0, Some(self.merge(None, changes).await?.unwrap_or_default()))
            }
            Some(old) => {
                let bounds = Bounds::default();
                let page = self.tree.load(old.child(), old.height, &bounds, Purpose::Replace).await?;
                (old.height, self.rewrite(old.child(), page, bounds, changes).await?)
            }
        };
        let Some(mut items) = items else { return Ok((root, self.finish().await?)) };
        while items.len() > 1 || level == 0 {
            if items.is_empty() {
                break;
            }
            items = self.pack(level, Bytes::new(), &items).await?;
            level += 1;
        }
        let written_bytes = self.finish().await?;
        let new_root = match items.first() {
            Some(Item { payload: Payload::Child(child), .. }) => Some(self.shorten(*child, level - 1).await?),
            _ => None,
        };
        Ok((new_root, written_bytes))
    }

    /// Takes pages with a lone child off the top of the new tree.
    async fn shorten(&mut self, mut child: ChildRef, mut height: u8) -> Result<TreeRoot, IndexError> {
        while height > 0 {
            let page = self.tree.load(child, height, &Bounds::default(), Purpose::Replace).await?;
            if page.count() > 1 {
                break;
            }
            self.freed.push(child.extent());
            child = page.child(0);
            height -= 1;
        }
        Ok(TreeRoot { page: child.page, checksum: child.checksum, height })
    }

    /// The new items of a page, or `None` when the batch changes nothing below it.
    fn rewrite<'s>(
        &'s mut self,
        child: ChildRef,
        page: Page,
        bounds: Bounds,
        changes: &'s [Change<'s>],
    ) -> LocalBoxFuture<'s, Result<Option<Vec<Item>>, IndexError>> {
        Box::pin(async move {
            let items = if page.level() == 0 {
                self.merge(Some(&page), changes).await?
            } else {
                self.rewrite_children(&page, &bounds, changes).await?
            };
            if items.is_some() {
                self.freed.push(child.extent());
            }
            Ok(items)
        })
    }

    /// Merges the rows of a leaf with their changes.
    async fn merge(
        &mut self,
        page: Option<&Page>,
        changes: &[Change<'_>],
    ) -> Result<Option<Vec<Item>>, IndexError> {
        let count = page.map_or(0, Page::count);
        let mut items = Vec::with_capacity(count + changes.len());
        let mut old = page.into_iter().flat_map(|page| (0..count).map(|index| page.item(index))).peekable();
        let mut changed = false;
        self.pace.spend(count).await;
        for (key, value) in changes {
            while let Some(item) = old.next_if(|item| item.key < **key) {
                items.push(item);
            }
            let replaced = old.next_if(|item| item.key == **key);
            changed |= replaced.is_some() || value.is_some();
            if let Some(Item { payload: Payload::OutOfLine(pointer), .. }) = replaced {
                self.freed.push(pointer.extent);
            }
            if let Some(value) = value {
                let payload = self.payload(value).await?;
                items.push(Item { key: (*key).clone(), payload });
            }
            self.pace.spend(1).await;
        }
        items.extend(old);
        Ok(changed.then_some(items))
    }

    /// Waits until everything is written; returns the bytes written.
    async fn finish(&mut self) -> Result<u64, IndexError> {
        Ok(self.values.finish().await? + self.pages.finish().await?)
    }

    /// How a value stands in its row; a long one is put out of line now.
    async fn payload(&mut self, bytes: &Bytes) -> Result<Payload, IndexError> {
        if bytes.len() <= INLINE_VALUE_BYTES_MAX {
            return Ok(Payload::Inline(bytes.clone()));
        }
        let blocks = value::blocks(bytes.len());
        // A long value costs a copy and a checksum: about a unit of work per block.
        self.pace.spend(blocks as usize).await;
        let pointer = self.values.place(blocks, |start, out| {
            out[..bytes.len()].copy_from_slice(bytes);
            ValuePointer {
                extent: Extent { start, blocks },
                len_bytes: u32::try_from(bytes.len()).expect("checked against VALUE_BYTES_MAX"),
                checksum: value::checksum(start, bytes),
            }
        });
        Ok(Payload::OutOfLine(pointer.await?))
    }

    async fn rewrite_children(
        &mut self,
        page: &Page,
        bounds: &Bounds,
        changes: &[Change<'_>],
    ) -> Result<Option<Vec<Item>>, IndexError> {
        let level = page.level() - 1;
        let parts = split(page, changes);
        let mut ahead = VecDeque::new();
        let mut output: Vec<Item> = Vec::with_capacity(page.count());
        let mut pending: Option<Pending> = None;
        // The child that `output` ends with, as long as it is an untouched one.
        let mut untouched = None;
        let mut changed = false;
        for index in 0..page.count() {
            let part = parts[index].clone();
            let mut items = None;
            if !part.is_empty() {
                if ahead.is_empty() {
                    ahead = self.load_ahead(page, bounds, &parts, index).await?;
                }
                let child = page.child(index);
                items = match ahead.pop_front().expect("every touched child is loaded") {
                    Some(page_below) => {
                        self.rewrite(child, page_below, bounds.narrow(page, index), &changes[part]).await?
                    }
                    None => {
                        self.freed.push(child.extent());
                        Some(Vec::new())
                    }
                };
            }
            changed |= items.is_some();
            if items.is_none()
                && let Some(pending) = pending.as_mut().filter(|pending| is_underfull(&pending.items))
                && let Some(neighbour) = self.take_child(page, bounds, index).await
            {
                pending.items.extend(neighbour);
                continue;
            }
            match (items, &mut pending) {
                (Some(items), _) if items.is_empty() => {}
                (Some(items), Some(pending)) if is_underfull(&items) || is_underfull(&pending.items) => {
                    pending.items.extend(items);
                }
                (items, _) => {
                    if let Some(Pending { from, items }) = pending.take() {
                        output.extend(self.pack(level, from, &items).await?);
                        untouched = None;
                    }
                    let from = bounds.narrow(page, index).from();
                    match items {
                        Some(items) => pending = Some(Pending { from, items }),
                        None => {
                            output.push(Item { key: from, payload: Payload::Child(page.child(index)) });
                            untouched = Some(index);
                        }
                    }
                }
            }
        }
        if let Some(mut last) = pending {
            if let Some(index) = untouched.filter(|_| is_underfull(&last.items))
                && let Some(mut items) = self.take_child(page, bounds, index).await
            {
                items.append(&mut last.items);
                last = Pending { from: output.pop().expect("ends with that child").key, items };
            }
            output.extend(self.pack(level, last.from, &last.items).await?);
        }
        Ok(changed.then_some(output))
    }

    /// Reads the touched children from `index` on, a bounded number at once; `None` stands for a lost one.
    async fn load_ahead(
        &self,
        page: &Page,
        bounds: &Bounds,
        parts: &[Range<usize>],
        index: usize,
    ) -> Result<VecDeque<Option<Page>>, IndexError> {
        let touched = (index..page.count()).filter(|&index| !parts[index].is_empty());
        let loads = touched.take(READS_AHEAD).map(async |index| {
            let (child, bounds) = (page.child(index), bounds.narrow(page, index));
            if self.lost.contains(&child.page) {
                return Ok(None);
            }
            self.tree.load(child, page.level() - 1, &bounds, Purpose::Replace).await.map(Some)
        });
        join_all(loads).await.into_iter().collect()
    }

    /// The items of an untouched child that is about to be merged into its neighbour; `None` when it cannot be
    /// read, for a batch must not fail because of a page that it can do without.
    async fn take_child(&mut self, page: &Page, bounds: &Bounds, index: usize) -> Option<Vec<Item>> {
        let child = page.child(index);
        let bounds = bounds.narrow(page, index);
        let page = self.tree.load(child, page.level() - 1, &bounds, Purpose::Replace).await.ok()?;
        self.freed.push(child.extent());
        self.pace.spend(page.count()).await;
        let mut items: Vec<Item> = (0..page.count()).map(|index| page.item(index)).collect();
        if page.level() > 0 {
            // Keys below the first child may be smaller than its entry, down to the page's own bound.
            items[0].key = bounds.from();
        }
        Some(items)
    }

    /// Packs items of `level` into pages; returns the entries for their parent, the first with the key `from`.
    async fn pack(&mut self, level: u8, from: Bytes, items: &[Item]) -> Result<Vec<Item>, IndexError> {
        let mut entries = Vec::new();
        for range in cut(items) {
            let key = match range.start {
                0 => from.clone(),
                start if level > 0 => items[start].key.clone(),
                start => separator(&items[start - 1].key, &items[start].key),
            };
            let items = &items[range];
            let built = self.pages.place(PAGE_BLOCKS, |address, out| {
                page::build(out, address, level, items);
                let child = ChildRef { page: address, checksum: crc32c::crc32c(out) };
                (child, Page::built(Bytes::copy_from_slice(out)))
            });
            let (child, page) = built.await?;
            self.tree.remember(child, page);
            self.pace.spend(items.len()).await;
            entries.push(Item { key, payload: Payload::Child(child) });
        }
        Ok(entries)
    }
}

/// The part of the batch that belongs to each child.
fn split(page: &Page, changes: &[Change<'_>]) -> Vec<Range<usize>> {
    let mut parts = vec![0..0; page.count()];
    let mut at = 0;
    while at < changes.len() {
        let index = page.child_for(changes[at].0);
        let end = if index + 1 < page.count() {
            let next = page.key(index + 1);
            at + changes[at..].partition_point(|(key, _)| **key < next)
        } else {
            changes.len()
        };
        parts[index] = at..end;
        at = end;
    }
    parts
}

/// The shortest key above `left` and not above `right`.
fn separator(left: &Bytes, right: &Bytes) -> Bytes {
    Bytes::copy_from_slice(&right[..=page::common_prefix(left, right)])
}

fn is_underfull(items: &[Item]) -> bool {
    Sizes::new(items).of(0..items.len()) < UNDERFULL_BYTES
}

/// Sizes of pages made of neighbouring items.
struct Sizes<'i> {
    items: &'i [Item],
    /// `sums[n]`: the first `n` items without prefix compression.
    sums: Vec<usize>,
}

impl<'i> Sizes<'i> {
    fn new(items: &'i [Item]) -> Self {
        let mut sums = Vec::with_capacity(items.len() + 1);
        let mut sum = 0;
        sums.push(0);
        for item in items {
            sum += item.page_bytes();
            sums.push(sum);
        }
        Sizes { items, sums }
    }

    fn of(&self, range: Range<usize>) -> usize {
        if range.is_empty() {
            return HEADER_BYTES;
        }
        let prefix = page::common_prefix(&self.items[range.start].key, &self.items[range.end - 1].key);
        HEADER_BYTES + prefix + self.sums[range.end] - self.sums[range.start] - range.len() * prefix
    }
}

/// Cuts items into pages: all full but the last two, which share evenly so that neither splits again at once.
fn cut(items: &[Item]) -> Vec<Range<usize>> {
    let sizes = Sizes::new(items);
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut start = 0;
    for end in 1..=items.len() {
        if sizes.of(start..end) > PAGE_BYTES {
            ranges.push(start..end - 1);
            start = end - 1;
        }
    }
    if start < items.len() {
        ranges.push(start..items.len());
    }
    if let [.., left, right] = &mut ranges[..] {
        while left.len() > 1 && sizes.of(right.start - 1..right.end) <= sizes.of(left.start..left.end - 1) {
            left.end -= 1;
            right.start -= 1;
        }
    }
    ranges
}

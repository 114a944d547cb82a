//! A visit to everything a root refers to, for fsck and inspection: reads past the cache and goes on after damage.

use super::error::IndexError;
use super::page::{ChildRef, PAGE_BLOCKS, ValueRef};
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

impl<D: Device> Tree<D> {
    /// Shows `visit` every page and every out-of-line value of the current root, pages before what they refer to.
    pub async fn walk(&self, depth: WalkDepth, mut visit: impl FnMut(Visit<'_>)) {
        let root = self.hold_root();
        let pace = Pace::default();
        let mut ahead: Vec<(ChildRef, u8, Bounds)> = Vec::new();
        ahead.extend((*root).map(|root| (root.child(), root.height, Bounds::default())));
        while let Some((child, level, bounds)) = ahead.pop() {
            let extent = Extent { start: child.page, blocks: PAGE_BLOCKS };
            let page = match self.read_page(child, level, &bounds).await {
                Ok(page) => page,
                Err(error) => {
                    visit(Visit::Damaged { extent, error });
                    continue;
                }
            };
            visit(Visit::Page { extent, level, entries: page.count(), used_bytes: page.used_bytes() });
            pace.spend(page.count()).await;
            if level > 0 {
                let children = (0..page.count()).rev();
                ahead.extend(
                    children.map(|index| (page.child(index), level - 1, bounds.narrow(&page, index))),
                );
                continue;
            }
            for index in 0..page.count() {
                let ValueRef::OutOfLine(pointer) = page.value(index) else { continue };
                let key = page.key(index);
                let extent = pointer.extent;
                let loaded = match depth {
                    WalkDepth::Pages => Ok(()),
                    WalkDepth::Values => self.load_value(&key, pointer).await.map(drop),
                };
                match loaded {
                    Ok(()) => visit(Visit::Value { extent, key: &key, len_bytes: pointer.len_bytes }),
                    Err(error) => visit(Visit::Damaged { extent, error }),
                }
            }
        }
    }
}

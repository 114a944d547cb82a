//! A cursor over the rows of one root, in key order.
//!
//! It keeps the pages on its way from the root, so the next row costs no look-up and a seek re-descends only below
//! the first page where the way changes: skipping over the keys behind a delimiter is cheap. It yields to other
//! tasks by itself. After an error it stays where it was: the next call tries again.

use std::rc::Rc;

use bytes::Bytes;

use super::error::IndexError;
use super::page::{Page, ValueRef};
use super::tree::{Bounds, Purpose, Tree, TreeRoot};
use super::yielding::Pace;
use crate::device::Device;

struct Frame {
    page: Page,
    bounds: Bounds,
    /// Inner page: the child the way goes through. Leaf: the next row.
    index: usize,
}

/// Walks rows in key order; made by [`Tree::cursor`].
pub struct Cursor<D> {
    tree: Tree<D>,
    root: Rc<Option<TreeRoot>>,
    frames: Vec<Frame>,
    /// A seek not carried out yet.
    target: Option<Vec<u8>>,
    key: Vec<u8>,
    pace: Pace,
}

impl<D: Device> Cursor<D> {
    pub(super) fn new(tree: Tree<D>, from: &[u8]) -> Self {
        let root = tree.hold_root();
        let target = Some(from.to_vec());
        Cursor { tree, root, frames: Vec::new(), target, key: Vec::new(), pace: Pace::default() }
    }

    /// Moves before the first row whose key is at least `from`, forwards or backwards.
    ///
    /// The way is taken by the following [`Cursor::next`]; until then [`Cursor::value`] must not be asked.
    pub fn seek(&mut self, from: &[u8]) {
        let mut target = self.target.take().unwrap_or_default();
        target.clear();
        target.extend_from_slice(from);
        self.target = Some(target);
    }

    /// Steps to the next row; false at the end.
    ///
    /// # Errors
    /// [`IndexError::Device`] or [`IndexError::Damaged`].
    pub async fn next(&mut self) -> Result<bool, IndexError> {
        if self.target.is_some() {
            self.descend().await?;
        }
        loop {
            let Some(frame) = self.frames.last_mut() else { return Ok(false) };
            if frame.page.level() == 0 {
                if frame.index < frame.page.count() {
                    self.key.clear();
                    self.key.extend_from_slice(frame.page.prefix());
                    self.key.extend_from_slice(frame.page.suffix(frame.index));
                    frame.index += 1;
                    return Ok(true);
                }
                let above = &self.frames[..self.frames.len() - 1];
                let Some(depth) = above.iter().rposition(|frame| frame.index + 1 < frame.page.count()) else {
                    return Ok(false);
                };
                self.frames.truncate(depth + 1);
                self.frames[depth].index += 1;
            }
            self.push_child().await?;
        }
    }

    /// The key of the row that the last [`Cursor::next`] stepped to.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The value of that row, as its page holds it.
    ///
    /// # Panics
    /// When the last step was not a successful [`Cursor::next`].
    pub fn value(&self) -> ValueRef<'_> {
        assert!(self.target.is_none(), "a cursor has a value only after a step");
        let leaf = self.frames.last().expect("the last step found a row");
        leaf.page.value(leaf.index.checked_sub(1).expect("the last step found a row"))
    }

    /// The value of that row, loaded when it is out of line; a part of its page when it is not, which stays in memory for
    /// as long.
    ///
    /// # Errors
    /// [`IndexError::Device`] or [`IndexError::Damaged`].
    ///
    /// # Panics
    /// As [`Cursor::value`].
    pub async fn load_value(&self) -> Result<Bytes, IndexError> {
        match self.value() {
            ValueRef::Inline(_) => {
                let leaf = self.frames.last().expect("the last step found a row");
                Ok(leaf.page.inline_value(leaf.index - 1).expect("the value is inline"))
            }
            ValueRef::OutOfLine(pointer) => self.tree.load_value(&self.key, pointer).await,
        }
    }

    /// Carries out the seek, keeping the part of the way that still leads there.
    async fn descend(&mut self) -> Result<(), IndexError> {
        if self.frames.is_empty() {
            let Some(root) = *self.root else {
                self.target = None;
                return Ok(());
            };
            let bounds = Bounds::default();
            let page = self.tree.load(root.child(), root.height, &bounds, Purpose::Read).await?;
            self.frames.push(Frame { page, bounds, index: 0 });
        }
        let mut depth = 0;
        loop {
            let target = self.target.as_deref().expect("a seek is under way");
            let frame = &mut self.frames[depth];
            if frame.page.level() == 0 {
                frame.index = frame.page.search(target).unwrap_or_else(|index| index);
                self.target = None;
                return Ok(());
            }
            let index = frame.page.child_for(target);
            if index != frame.index {
                frame.index = index;
                self.frames.truncate(depth + 1);
            }
            depth += 1;
            if self.frames.len() == depth {
                self.push_child().await?;
            }
        }
    }

    /// Loads the child that the last, inner frame points to.
    async fn push_child(&mut self) -> Result<(), IndexError> {
        let frame = self.frames.last().expect("there is a way");
        let bounds = frame.bounds.narrow(&frame.page, frame.index);
        let level = frame.page.level() - 1;
        let page = self.tree.load(frame.page.child(frame.index), level, &bounds, Purpose::Read).await?;
        self.pace.spend(page.count()).await;
        self.frames.push(Frame { page, bounds, index: 0 });
        Ok(())
    }
}

//! The index: an ordered map from keys to values on the device, a copy-on-write B+tree.
//!
//! `root record -> inner pages -> leaves -> out-of-line values`. Pages and values take extents of the device's free
//! map and are never overwritten: [`Tree::apply`] writes a batch as new pages along every touched path and returns
//! the new root, the caller makes it durable (flush, then superblock), then [`Tree::install`]s it and, when the last
//! reader of the old root is gone ([`OldRoot::in_use`]) and the superblock is durable, frees what the batch replaced.
//!
//! Invariants: a page is referenced by exactly one parent of the same root; every child lies one level below its
//! parent; keys ascend strictly; no page is empty. The checksum of a page or value stands in its parent, together
//! with its address, and each page holds its own address: torn, lost, misdirected and rotted writes all show.
//!
//! Failure model: every page and value is verified when it comes from the device. Damage is an error that names
//! page, level, reason and the keys behind it, never wrong data and never a panic. A failed `apply` gives its space
//! back and leaves the old tree as it was. An `apply` future must be driven to its end: dropping it half-way
//! leaves its new extents allocated until the free map is rebuilt from a walk.

mod apply;
mod cache;
mod cursor;
mod error;
mod page;
mod tree;
mod value;
mod walk;
mod writer;
mod yielding;

pub use apply::Applied;
pub use cursor::Cursor;
pub use error::{Damage, IndexError, KeyRange};
pub use page::{PAGE_BYTES, ValuePointer, ValueRef};
pub use tree::{OldRoot, TREE_ROOT_BYTES, Tree, TreeRoot};
pub(crate) use walk::{Row, Seen};
pub use walk::{Visit, WalkDepth};
pub use yielding::Pace;

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 2048;
/// Longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024;
/// Longest value kept in its page; longer ones get an extent of their own.
pub const INLINE_VALUE_BYTES_MAX: usize = 1024;

#[cfg(test)]
mod tests;

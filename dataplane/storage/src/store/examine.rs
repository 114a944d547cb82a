//! What fsck and inspection look at beside rows and shards: the index as a tree, and who claims which blocks.
//!
//! They tell of one moment. On a store that was opened read-only they cover the data area exactly: free map, the
//! extents of [`Store::free_map_extents`], everything that a walk of [`Store::tree`] visits, and all shards.

use super::Store;
use crate::device::Device;
use crate::extent::{Extent, FreeMap};
use crate::index::Tree;

impl<D: Device + 'static> Store<D> {
    /// The index as of the last checkpoint.
    #[must_use]
    pub fn tree(&self) -> &Tree<D> {
        &self.0.tree
    }

    /// A copy of the free map in memory; its area is the data area.
    #[must_use]
    pub fn free_map(&self) -> FreeMap {
        self.0.space.free.borrow().clone()
    }

    /// Where the free map of the last checkpoint is stored.
    #[must_use]
    pub fn free_map_extents(&self) -> Vec<Extent> {
        self.0.superblock.borrow().free_map.extents.clone()
    }
}

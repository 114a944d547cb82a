//! One device: format, device I/O, journal, index, extents, recovery, inspection.
//!
//! `superblock copies | journal ring | data area (extents: shards, index pages, packed values, free map)`
//!
//! A device is owned by one core; everything here is single-threaded (`Rc`, `RefCell`) and generic over
//! [`device::Device`], so that the simulator runs the same code as production.

pub mod device;
pub mod extent;
pub mod format;
pub mod index;
pub mod inspect;
mod journal;
pub mod store;

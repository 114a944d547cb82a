//! The page cache of a tree: verified pages, bounded in bytes, evicted by CLOCK.
//!
//! Every slot has a credit. A hit refills it, the passing hand takes one, and a page without credit goes. Inner
//! pages get more credit than leaves: one of them saves many descents. An entry is found only with the checksum its
//! parent names, so a page left over from a freed and reused address is a miss and never wrong data.

use std::collections::HashMap;

use super::page::{ChildRef, PAGE_BYTES, Page};

/// Below this a descent would evict its own path.
const PAGES_MIN: usize = 16;
const LEAF_CREDIT: u8 = 1;
const INNER_CREDIT: u8 = 4;

struct Slot {
    child: ChildRef,
    credit: u8,
    page: Page,
}

pub(super) struct PageCache {
    by_address: HashMap<u64, usize>,
    slots: Vec<Slot>,
    hand: usize,
    pages_max: usize,
}

impl PageCache {
    pub(super) fn new(bytes_max: usize) -> Self {
        let pages_max = (bytes_max / PAGE_BYTES).max(PAGES_MIN);
        PageCache { by_address: HashMap::new(), slots: Vec::new(), hand: 0, pages_max }
    }

    pub(super) fn get(&mut self, child: ChildRef) -> Option<Page> {
        let slot = &mut self.slots[*self.by_address.get(&child.page.0)?];
        if slot.child.checksum != child.checksum {
            return None;
        }
        slot.credit = credit(&slot.page);
        Some(slot.page.clone())
    }

    /// Keeps a page; one that was not asked for yet starts without credit.
    pub(super) fn insert(&mut self, child: ChildRef, page: Page, asked_for: bool) {
        let credit = if asked_for || page.level() > 0 { credit(&page) } else { 0 };
        let slot = Slot { child, credit, page };
        let at = match self.by_address.get(&child.page.0) {
            Some(&at) => at,
            None if self.slots.len() < self.pages_max => {
                self.by_address.insert(child.page.0, self.slots.len());
                self.slots.push(slot);
                return;
            }
            None => {
                let at = self.victim();
                self.by_address.remove(&self.slots[at].child.page.0);
                self.by_address.insert(child.page.0, at);
                at
            }
        };
        self.slots[at] = slot;
    }

    /// Ends within `INNER_CREDIT + 1` rounds, since every step takes a credit.
    fn victim(&mut self) -> usize {
        loop {
            let at = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            match &mut self.slots[at].credit {
                0 => return at,
                credit => *credit -= 1,
            }
        }
    }
}

fn credit(page: &Page) -> u8 {
    if page.level() > 0 { INNER_CREDIT } else { LEAF_CREDIT }
}

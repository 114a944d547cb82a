//! Damage on the medium: always an error, never wrong data, never a panic.

use bytes::Bytes;
use futures::executor::block_on;

use super::super::{Damage, IndexError, Visit, WalkDepth};
use super::{Batch, Bed, CACHE_BYTES, filler, puts, row_key};
use crate::device::{BLOCK_BYTES, Fault, Operation, When};
use crate::extent::{BlockIndex, Extent};

/// Rows with every fourth value out of line.
fn mixed(bed: &Bed) -> Vec<(Bytes, Bytes)> {
    let mut batch = puts(0..600, 200);
    batch.extend(
        (0..600u16)
            .step_by(4)
            .map(|n| (row_key(n.into()), Some(filler(1500 + 40 * usize::from(n) % 9000, n.into())))),
    );
    bed.apply(&batch);
    batch.into_iter().map(|(key, value)| (key, value.unwrap())).collect()
}

fn damage_at(error: &IndexError) -> BlockIndex {
    match error {
        IndexError::Damaged { page, .. } => *page,
        other => panic!("{other}"),
    }
}

#[test]
fn every_page_and_value_is_verified() {
    let mut bed = Bed::new(1 << 14);
    let rows = mixed(&bed);
    let extents = bed.check_space();
    assert!(extents.len() > 150);
    for (number, extent) in extents.iter().enumerate() {
        // Values are read to their end but not to the end of their last block.
        let byte =
            extent.start.offset_bytes() + (number as u64 * 797) % (extent.len_bytes() - 4096).max(1400);
        bed.device.flip_bit(byte, u8::try_from(number % 8).unwrap());
        bed.reopen();
        let error = block_on(bed.tree.scan(b"", b"z", usize::MAX)).unwrap_err();
        assert_eq!(damage_at(&error), extent.start);
        let IndexError::Damaged { key_range, what, .. } = error else { panic!() };
        assert!(matches!(what, Damage::Checksum | Damage::Value));
        for (key, value) in rows.iter().step_by(7) {
            let behind = *key >= key_range.from && key_range.to.as_ref().is_none_or(|to| key < to);
            match block_on(bed.tree.get(key)) {
                Ok(found) => assert!(!behind && found.as_ref() == Some(value)),
                Err(error) => assert!(behind && damage_at(&error) == extent.start),
            }
        }
        let mut damaged = Vec::new();
        block_on(bed.tree.walk(WalkDepth::Values, |visit| {
            if let Visit::Damaged { extent, .. } = visit {
                damaged.push(extent);
            }
        }));
        assert_eq!(damaged, [*extent]);
        bed.device.flip_bit(byte, u8::try_from(number % 8).unwrap());
    }
    bed.reopen();
    assert_eq!(bed.rows(), rows);
}

#[test]
fn lost_and_misdirected_writes_show() {
    for fault in [Fault::LostWrite, Fault::MisdirectedWrite { to: 4096 * 100 }] {
        let mut bed = Bed::new(1 << 12);
        bed.apply(&puts(0..300, 200));
        bed.device.inject(fault, When::on(Operation::Write).times(1));
        bed.apply(&Batch::from([(row_key(7), Some(filler(10, 0)))]));
        bed.reopen();
        block_on(bed.tree.get(&row_key(7))).unwrap_err();
    }
}

#[test]
fn a_page_of_another_address_is_refused() {
    // Right checksum in the root record, right format, wrong place: only the page's own address tells.
    let mut bed = Bed::new(1 << 10);
    bed.apply(&puts(0..20, 100));
    let root = bed.tree.root().unwrap();
    let page = bed.device.peek(root.page.offset_bytes(), super::super::PAGE_BYTES);
    bed.device.poke(4096 * 40, &page);
    let moved = super::TreeRoot { page: BlockIndex(40), ..root };
    bed.tree = super::Tree::open(std::rc::Rc::new(bed.device.clone()), Some(moved), CACHE_BYTES);
    let error = block_on(bed.tree.get(&row_key(3))).unwrap_err();
    assert!(matches!(error, IndexError::Damaged { what: Damage::Address, .. }), "{error}");
}

#[test]
fn a_root_that_points_nowhere_is_damage() {
    let bed = Bed::new(1 << 10);
    for page in [BlockIndex(u64::MAX), BlockIndex(u64::MAX / 4096), BlockIndex((1 << 10) - 3)] {
        let root = super::TreeRoot { page, checksum: 0, height: 3 };
        bed.tree.install(Some(root));
        assert_eq!(damage_at(&block_on(bed.tree.get(b"k")).unwrap_err()), page);
    }
}

#[test]
fn a_cursor_can_try_again() {
    let mut bed = Bed::new(1 << 13);
    bed.apply(&puts(0..2000, 100));
    bed.reopen();
    let mut cursor = bed.tree.cursor(b"");
    assert!(block_on(cursor.next()).unwrap());
    bed.device.inject(Fault::Error, When::on(Operation::Read).skip(2).times(1));
    let (mut rows, mut errors) = (1, 0);
    loop {
        match block_on(cursor.next()) {
            Ok(true) => rows += 1,
            Ok(false) => break,
            Err(error) => {
                assert!(matches!(error, IndexError::Device(_)), "{error}");
                errors += 1;
            }
        }
        assert!(errors == 0 || rows >= 1);
    }
    assert_eq!((rows, errors), (2000, 1));
}

#[test]
fn a_walk_lists_the_extent_of_what_is_damaged() {
    let mut bed = Bed::new(1 << 13);
    bed.apply(&puts(0..2000, 100));
    let root = bed.tree.root().unwrap();
    bed.device.poke(root.page.offset_bytes(), &[0; BLOCK_BYTES]);
    bed.reopen();
    let mut seen = Vec::new();
    block_on(bed.tree.walk(WalkDepth::Pages, |visit| match visit {
        Visit::Damaged { extent, .. } => seen.push(extent),
        other => panic!("{other:?}"),
    }));
    assert_eq!(seen, [Extent { start: root.page, blocks: 4 }]);
}

#[test]
fn a_damaged_neighbour_does_not_fail_a_batch() {
    let mut bed = Bed::new(1 << 13);
    bed.apply(&puts(0..2000, 100));
    let mut leaves = Vec::new();
    block_on(bed.tree.walk(WalkDepth::Pages, |visit| {
        if let Visit::Page { extent, level: 0, entries, .. } = visit {
            leaves.push((extent, entries as u64));
        }
    }));
    // Leaf 1 loses nearly all its rows while both its neighbours are damaged.
    for leaf in [0, 2] {
        bed.device.flip_bit(leaves[leaf].0.start.offset_bytes() + 99, 1);
    }
    bed.reopen();
    let first = leaves[0].1;
    bed.apply(&(first..first + leaves[1].1 - 2).map(|n| (row_key(n), None)).collect());
    bed.reopen();
    let last = first + leaves[1].1 - 1;
    assert_eq!(block_on(bed.tree.get(&row_key(last))).unwrap(), Some(filler(100, last)));
    assert_eq!(block_on(bed.tree.get(&row_key(first))).unwrap(), None);
    for lost in [first - 1, last + 1] {
        block_on(bed.tree.get(&row_key(lost))).unwrap_err();
    }
}

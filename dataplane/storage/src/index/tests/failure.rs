//! Batches that fail half-way: the old tree stays, no block leaks.

use futures::executor::block_on;

use super::super::{IndexError, KEY_BYTES_MAX, VALUE_BYTES_MAX};
use super::{Batch, Bed, filler, puts, row_key};
use crate::device::{Fault, Operation, When};

fn second_batch() -> Batch {
    let mut batch = puts(500..1500, 300);
    batch.extend((0..1500).step_by(30).map(|n| (row_key(n), Some(filler(50_000, n)))));
    batch.extend((0..500).step_by(3).map(|n| (row_key(n), None)));
    batch
}

#[test]
fn errors_of_the_device_leave_everything_as_it_was() {
    for operation in [Operation::Write, Operation::Read] {
        let mut bed = Bed::new(1 << 14);
        bed.apply(&puts(0..1000, 250));
        let (rows, root, free) = (bed.rows(), bed.tree.root(), bed.space.borrow().clone());
        let mut failures = 0;
        for skip in 0..200 {
            bed.reopen();
            bed.device.set_shuffle(skip % 2 == 0);
            bed.device.inject(Fault::Error, When::on(operation).skip(skip).times(1));
            let result = bed.try_apply(&second_batch());
            bed.device.clear_faults();
            if let Ok(applied) = result {
                assert!(skip > 5, "the batch is too small to test anything");
                bed.tree.install(applied.root);
                applied.freed.iter().for_each(|extent| bed.space.borrow_mut().free(*extent));
                break;
            }
            failures += 1;
            assert!(matches!(result, Err(IndexError::Device(_))));
            assert_eq!(*bed.space.borrow(), free);
            assert_eq!(bed.tree.root(), root);
            bed.reopen();
            assert_eq!(bed.rows(), rows);
        }
        assert!(failures > 5);
        bed.reopen();
        bed.check_space();
    }
}

#[test]
fn no_space_leaves_everything_as_it_was() {
    let mut bed = Bed::new(1 << 14);
    bed.apply(&puts(0..1000, 250));
    let rows = bed.rows();
    let mut fitted = false;
    for left in [0u64, 1, 3, 4, 17, 60, 200, 300, 500, 700, 4000] {
        let free = bed.space.borrow().free_blocks();
        let taken = bed.space.borrow_mut().allocate_fragmented(free - left, u32::MAX, 1).unwrap();
        let before = bed.space.borrow().clone();
        match bed.try_apply(&second_batch()) {
            Ok(applied) => {
                assert!(left > 200);
                fitted = true;
                // Not installed: as if the superblock could not be written.
                let mut new = before.clone();
                std::mem::swap(&mut new, &mut bed.space.borrow_mut());
                assert!(applied.written_bytes / 4096 <= left);
            }
            Err(error) => assert!(matches!(error, IndexError::NoSpace), "{error}"),
        }
        assert_eq!(*bed.space.borrow(), before);
        taken.into_iter().for_each(|extent| bed.space.borrow_mut().free(extent));
        bed.reopen();
        assert_eq!(bed.rows(), rows);
        bed.check_space();
    }
    assert!(fitted);
}

#[test]
fn deletes_of_everything_need_no_space() {
    let bed = Bed::new(1 << 12);
    bed.apply(&puts(0..3000, 250));
    let free = bed.space.borrow().free_blocks();
    let taken = bed.space.borrow_mut().allocate_fragmented(free, u32::MAX, 1).unwrap();
    bed.apply(&(0..3000).map(|n| (row_key(n), None)).collect());
    taken.into_iter().for_each(|extent| bed.space.borrow_mut().free(extent));
    assert!(bed.check_space().is_empty());
}

#[test]
fn the_old_root_is_readable_until_its_extents_are_freed() {
    let bed = Bed::new(1 << 14);
    bed.apply(&puts(0..1000, 250));
    let (rows, old) = (bed.rows(), bed.tree.root());
    let applied = bed.try_apply(&second_batch()).unwrap();
    let reader = super::Tree::open(std::rc::Rc::new(bed.device.clone()), old, 0);
    assert_eq!(block_on(reader.scan(b"", b"z", usize::MAX)).unwrap(), rows);
    bed.tree.install(applied.root);
    let cold = super::Tree::open(std::rc::Rc::new(bed.device.clone()), old, 0);
    assert_eq!(block_on(cold.scan(b"", b"z", usize::MAX)).unwrap(), rows);
}

#[test]
fn long_keys_and_values_are_refused() {
    let bed = Bed::new(1 << 10);
    let key = filler(KEY_BYTES_MAX + 1, 1);
    let result = bed.try_apply(&Batch::from([(key, None)]));
    assert!(matches!(result, Err(IndexError::KeyTooLong { len_bytes: 2049 })));
    let result = bed.try_apply(&Batch::from([(row_key(1), Some(filler(VALUE_BYTES_MAX + 1, 1)))]));
    assert!(matches!(result, Err(IndexError::ValueTooLarge { len_bytes: 1_048_577 })));
    assert!(bed.check_space().is_empty());
}

#[test]
fn writes_are_big_and_bounded_in_number() {
    let bed = Bed::new(1 << 15);
    let applied = bed.apply(&puts(0..100_000, 100));
    let events = bed.device.events();
    let (mut in_flight, mut most, mut writes) = (0i32, 0, 0u64);
    for event in events {
        match event {
            crate::device::Event::WriteStart { length_bytes, .. } => {
                assert!(length_bytes <= 1 << 20);
                in_flight += 1;
                writes += 1;
            }
            crate::device::Event::WriteDone { .. } => in_flight -= 1,
            _ => {}
        }
        most = most.max(in_flight);
    }
    assert!(most <= 8, "{most} writes in flight");
    assert!(writes <= applied.written_bytes / (1 << 20) + 6, "{writes} writes");
}

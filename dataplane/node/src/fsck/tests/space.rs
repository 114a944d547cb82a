//! Blocks, index pages and values.

use futures::executor::block_on;
use quarry_storage::{
    extent::Extent,
    format::rows,
    index::{Visit, WalkDepth},
};

use super::{
    super::report::Class,
    assert_found,
    node::{Node, stranger},
};

fn blocks(extent: Extent) -> String {
    format!("blocks {} to {}", extent.start.0, extent.end().0 - 1)
}

#[test]
fn a_leaked_extent() {
    let node = Node::new();
    let (device, _) = node.stripe().swap_remove(0);
    let mut lost = None;
    node.write(device, |checkpoint| lost = checkpoint.free.allocate_low(7));
    let place = format!("{device}: {}", blocks(lost.unwrap()));
    assert_found(&node.fsck(true), &[(Class::LeakedExtent, 1)], &place);
}

#[test]
fn a_free_extent_that_is_used() {
    let node = Node::new();
    let (device, row) = node.stripe().swap_remove(1);
    let extent = row.extents[0].extent;
    node.write(device, |checkpoint| checkpoint.free.free(extent));
    let place = format!("{device}: {}", blocks(extent));
    assert_found(&node.fsck(true), &[(Class::FreeButUsedExtent, 1)], &place);
}

#[test]
fn an_extent_that_is_used_twice_or_outside() {
    let node = Node::new();
    let (device, row) = node.stripe().swap_remove(1);
    let mut second = stranger(&row, row.blob);
    second.blob.counter.0 += 1 << 40;
    node.write(device, |checkpoint| checkpoint.set_shard(&second));
    let expected = [(Class::DoubleUsedExtent, 1), (Class::PendingCollection, 1)];
    assert_found(&node.fsck(true), &expected, &format!("{device}: {}", blocks(row.extents[0].extent)));
    let node = Node::new();
    second.extents[0].extent.start.0 = 2;
    node.write(device, |checkpoint| checkpoint.set_shard(&second));
    assert_found(&node.fsck(true), &expected, "outside the data area");
}

#[test]
fn a_shard_row_that_is_damaged() {
    let node = Node::new();
    let (device, row) = node.stripe().swap_remove(1);
    let mut strange = stranger(&row, row.blob);
    strange.blob.counter.0 += 1 << 40;
    let key = rows::shard_key(strange.key(), 0);
    node.write(device, |checkpoint| drop(checkpoint.rows.insert(key.clone(), Some("no row".into()))));
    let place = format!("{device}: shard row {}", hex::encode(&key));
    assert_found(&node.fsck(true), &[(Class::DamagedRow, 1)], &place);
}

/// Values that are damaged, one after another.
const VALUES_MAX: u32 = 2;

#[test]
fn a_damaged_index() {
    let node = Node::new();
    let (device, _) = node.stripe().swap_remove(0);
    let (store, mut parts) = (node.store(device), Vec::new());
    let (mut leaves, mut values) = (0, 0);
    let visit = |visit: Visit<'_>| match visit {
        Visit::Page { extent, level, .. } => {
            leaves += u32::from(level == 0);
            parts.push(extent);
        }
        Visit::Value { extent, .. } => {
            values += 1;
            parts.extend((values <= VALUES_MAX).then_some(extent));
        }
        Visit::Damaged { error, .. } => panic!("nothing is damaged yet: {error}"),
    };
    block_on(store.tree().walk(WalkDepth::Values, visit));
    drop(store);
    assert!(leaves > 1 && values > 1, "{leaves} leaves, {values} values");
    for extent in parts {
        node.flip(device, extent.start.offset_bytes() + 100);
        let report = node.fsck(false);
        // What opening reads anyway refuses the device.
        let classes = [Class::DamagedIndex, Class::DamagedDevice];
        let errors: Vec<Class> = report.errors.keys().copied().collect();
        assert!(errors.len() == 1 && classes.contains(&errors[0]), "{report}");
        assert!(report.info.keys().all(|class| *class == Class::Degraded), "{report}");
        assert!(report.examples[0].what.contains(&device.to_string()), "{report}");
        node.flip(device, extent.start.offset_bytes() + 100);
    }
    assert_found(&node.fsck(true), &[], "");
}

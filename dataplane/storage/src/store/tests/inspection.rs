//! Inspection of whole and of damaged devices.

use super::*;
use crate::format::superblock::slot_offset;
use crate::inspect::{Report, inspect};

fn look(device: &SimDevice) -> Report {
    let device = Rc::new(device.clone());
    LocalPool::new().run_until(inspect(&device, WalkDepth::Values))
}

fn filled() -> Rig {
    let mut rig = Rig::new(30);
    rig.run(|store| async move {
        for n in 0..30 {
            put_shard(&store, n, 2).await.unwrap();
        }
        let payload = format!("big={}", "v".repeat(5000));
        store.append(Epoch(1), entry(PARTITION, 1, 0, &payload)).await.unwrap();
        store.apply(PARTITION, Sequence(1), decode(payload.as_bytes()).unwrap());
        store.checkpoint().await.unwrap();
        store.append(Epoch(1), entry(PARTITION, 2, 1, "a=1")).await.unwrap();
        assert!(free(&store, 3).await.unwrap());
    });
    rig
}

#[test]
fn tells_what_is_there_and_writes_nothing() {
    let rig = filled();
    let device = rig.device.crash_keeping_nothing();
    let report = look(&device);
    assert!(report.is_clean(), "{report}");
    let (journal, index) = (report.journal.clone().unwrap(), report.index.clone().unwrap().unwrap());
    assert_eq!((journal.records[1], journal.records[2]), (1, 1));
    assert_eq!((index.shards, index.shard_bytes, index.values), (30, 30 * 8192, 1));
    let text = report.to_string();
    for part in ["superblock 3: checkpoint", "log append: 1", "30 shards", "free map:"] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    assert!(device.events().iter().all(|event| matches!(event, Event::Read { .. })));
}

#[test]
fn goes_on_past_damage() {
    let rig = filled();
    let whole = look(&rig.device);
    let superblock = whole.superblock.unwrap();
    let device = rig.device.crash_keeping_nothing();
    device.flip_bit(slot_offset(0, DEVICE_BYTES) + 30, 1);
    let page = crate::store::root_of(&superblock).unwrap().unwrap().page;
    device.flip_bit(page.offset_bytes() + 100, 1);
    device.flip_bit(superblock.free_map.extents[0].start.offset_bytes() + 9, 1);
    let report = look(&device);
    assert!(!report.is_clean());
    assert!(report.slots[0].is_err() && report.superblock.is_ok());
    assert!(report.index.as_ref().unwrap().as_ref().unwrap().damages.count > 0);
    assert!(report.free_map.as_ref().unwrap().is_err());
    assert_eq!(report.journal.as_ref().unwrap().damages.count, 0);
    assert!(report.to_string().contains("DAMAGE"), "{report}");
    assert!(look(&SimDevice::new(DEVICE_BYTES, 1)).superblock.is_err());
}

//! Random batches against a `BTreeMap`.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::executor::block_on;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof};

use super::super::{KEY_BYTES_MAX, VALUE_BYTES_MAX, ValueRef};
use super::{Batch, Bed, filler, puts, row_key};

/// Keys that collide often: few letters, shared heads, now and then the longest possible.
fn key() -> impl Strategy<Value = Bytes> {
    let short = proptest::collection::vec(0u8..3, 0..5);
    let listed = (0u32..600).prop_map(|n| format!("photos/2026/{n:05}.jpg").into_bytes());
    let long = (0u8..40, 0usize..3).prop_map(|(n, cut)| {
        let mut key = vec![b'k'; KEY_BYTES_MAX - cut];
        key[if n % 2 == 0 { 3 } else { 2000 }] = n;
        key
    });
    prop_oneof![2 => short, 6 => listed, 1 => long].prop_map(Bytes::from)
}

fn value() -> impl Strategy<Value = Option<Bytes>> {
    let len = prop_oneof![
        8 => 0usize..400,
        2 => 1020usize..1030,
        1 => 4090usize..4100,
        1 => 1usize..70_000,
    ];
    prop_oneof![
        3 => (len, any::<u64>()).prop_map(|(len, seed)| Some(filler(len, seed))),
        2 => Just(None),
    ]
}

fn batch() -> impl Strategy<Value = Batch> {
    prop_oneof![
        3 => proptest::collection::btree_map(key(), value(), 0..12),
        2 => proptest::collection::btree_map(key(), value(), 0..250),
        1 => proptest::collection::btree_map(key(), Just(None), 0..400),
    ]
}

fn update(model: &mut BTreeMap<Bytes, Bytes>, batch: &Batch) {
    for (key, value) in batch {
        match value {
            Some(value) => model.insert(key.clone(), value.clone()),
            None => model.remove(key),
        };
    }
}

proptest::proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_map(
        batches in proptest::collection::vec(batch(), 1..12),
        probes in proptest::collection::vec((key(), key(), 0usize..50), 20),
        shuffle in any::<bool>(),
    ) {
        let mut bed = Bed::new(1 << 16);
        bed.device.set_shuffle(shuffle);
        let mut model = BTreeMap::new();
        for (number, batch) in batches.iter().enumerate() {
            update(&mut model, batch);
            bed.apply(batch);
            if number % 2 == 0 {
                bed.reopen();
            }
            bed.check_space();
            let rows: Vec<_> = model.clone().into_iter().collect();
            assert_eq!(bed.rows(), rows);
            let mut cursor = bed.tree.cursor(b"");
            for (from, to, limit) in &probes {
                assert_eq!(block_on(bed.tree.get(from)).unwrap().as_ref(), model.get(from));
                let range = model.iter().filter(|(key, _)| *key >= from && *key < to).take(*limit);
                let expected: Vec<_> = range.map(|(key, value)| (key.clone(), value.clone())).collect();
                assert_eq!(block_on(bed.tree.scan(from, to, *limit)).unwrap(), expected);
                cursor.seek(from);
                for (key, value) in model.range(from.clone()..).take(3) {
                    assert!(block_on(cursor.next()).unwrap());
                    assert_eq!(cursor.key(), key);
                    assert_eq!(&block_on(cursor.load_value()).unwrap(), value);
                }
            }
        }
        let everything: Batch = model.keys().map(|key| (key.clone(), None)).collect();
        bed.apply(&everything);
        assert_eq!(bed.tree.root(), None);
        assert!(bed.check_space().is_empty());
    }
}

#[test]
fn thresholds_of_values() {
    let mut bed = Bed::new(1 << 14);
    let lens = [0, 1, 1023, 1024, 1025, 4095, 4096, 4097, VALUE_BYTES_MAX - 1, VALUE_BYTES_MAX];
    let batch: Batch = lens.iter().map(|&len| (row_key(len as u64), Some(filler(len, len as u64)))).collect();
    bed.apply(&batch);
    bed.reopen();
    bed.check_space();
    for len in lens {
        let value = block_on(bed.tree.get(&row_key(len as u64))).unwrap().unwrap();
        assert_eq!(value, filler(len, len as u64));
        let mut cursor = bed.tree.cursor(&row_key(len as u64));
        assert!(block_on(cursor.next()).unwrap());
        assert_eq!(matches!(cursor.value(), ValueRef::OutOfLine(_)), len > 1024);
    }
}

#[test]
fn a_tree_of_many_levels_grows_and_shrinks() {
    let mut bed = Bed::new(1 << 16);
    // The longest keys, groups of which differ in the last byte only: few entries to an inner page.
    let key = |n: u64| {
        let group = n / 3;
        let fill = [group.to_le_bytes()[0]; KEY_BYTES_MAX - 9];
        Bytes::from([&group.to_be_bytes()[..], &fill, &[n.to_le_bytes()[0]]].concat())
    };
    let all: Batch = (0..2400).map(|n| (key(n), Some(filler(20, n)))).collect();
    bed.apply(&all);
    bed.reopen();
    assert_eq!(bed.rows().len(), 2400);
    let height = bed.tree.root().unwrap().height;
    assert!(height >= 3, "height {height}");
    let pages = bed.check_space().len();
    for part in 0..24 {
        let gone = (part * 100..part * 100 + 100).filter(|n| n % 4 != 1).map(|n| (key(n), None));
        bed.apply(&gone.collect());
    }
    let left = bed.check_space().len();
    assert!(left < pages, "{left} of {pages} pages left");
    assert_eq!(bed.rows().len(), 600);
    for n in (0..2400).filter(|n| n % 4 == 1) {
        bed.apply(&Batch::from([(key(n), None)]));
    }
    assert_eq!(bed.tree.root(), None);
    assert!(bed.check_space().is_empty());
}

#[test]
fn mass_deletes_shrink_the_tree() {
    let bed = Bed::new(1 << 14);
    bed.apply(&puts(0..20_000, 100));
    let pages = bed.check_space().len();
    for part in 0..40 {
        let range = part * 500..part * 500 + 500;
        bed.apply(&range.filter(|n| n % 20 != 0).map(|n| (row_key(n), None)).collect());
    }
    let left = bed.check_space().len();
    assert!(left * 3 < pages, "{left} of {pages} pages left");
    assert_eq!(bed.rows().len(), 1000);
}

#[test]
fn a_batch_without_effect_writes_nothing() {
    let bed = Bed::new(1 << 12);
    bed.apply(&puts(0..1000, 50));
    let root = bed.tree.root();
    for batch in [Batch::new(), (5000..5100).map(|n| (row_key(n), None)).collect()] {
        let applied = bed.apply(&batch);
        assert_eq!((applied.root, applied.freed.len(), applied.written_bytes), (root, 0, 0));
    }
}

#[test]
fn a_lone_change_rewrites_only_its_path() {
    let bed = Bed::new(1 << 14);
    bed.apply(&puts(0..20_000, 100));
    let height = u64::from(bed.tree.root().unwrap().height);
    let applied = bed.apply(&Batch::from([(row_key(777), Some(filler(100, 1)))]));
    assert_eq!(applied.freed.len() as u64, height + 1);
    assert_eq!(applied.written_bytes, (height + 1) * 16_384);
}

#[test]
fn a_cursor_skips_and_keeps_its_root() {
    let bed = Bed::new(1 << 15);
    let batch = (0..50u64).flat_map(|folder| {
        (0..400u64).map(move |n| (format!("{folder:03}/{n:05}").into(), Some(filler(60, n))))
    });
    bed.apply(&batch.collect());
    let mut cursor = bed.tree.cursor(b"");
    let applied = bed.try_apply(&(0..10).map(|n| (format!("{n:03}/00000").into(), None)).collect()).unwrap();
    let old = bed.tree.install(applied.root);
    assert!(old.in_use());
    let mut folders = 0;
    while block_on(cursor.next()).unwrap() {
        assert_eq!(cursor.key(), format!("{folders:03}/00000").as_bytes());
        folders += 1;
        let behind = [&cursor.key()[..3], b"0"].concat();
        cursor.seek(&behind);
    }
    assert_eq!(folders, 50);
    assert!(!block_on(cursor.next()).unwrap());
    drop(cursor);
    assert!(!old.in_use());
    assert_eq!(block_on(bed.tree.get(b"003/00000")).unwrap(), None);
}

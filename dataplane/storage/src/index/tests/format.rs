//! The page format: golden bytes, and bytes that are no page.

use bytes::Bytes;
use proptest::prelude::{ProptestConfig, any};

use super::super::page::{BadPage, ChildRef, Item, PAGE_BYTES, Page, Payload, ValuePointer, ValueRef, build};
use super::super::tree::TreeRoot;
use crate::extent::{BlockIndex, Extent};

const ADDRESS: BlockIndex = BlockIndex(0x0102);
const DEVICE_BLOCKS: u64 = 1 << 20;

fn leaf_items() -> Vec<Item> {
    let extent = Extent { start: BlockIndex(0x77), blocks: 1 };
    let pointer = ValuePointer { extent, len_bytes: 2000, checksum: 0xaabb_ccdd };
    vec![
        Item { key: Bytes::from_static(b"key1"), payload: Payload::Inline(Bytes::from_static(b"v")) },
        Item { key: Bytes::from_static(b"key23"), payload: Payload::OutOfLine(pointer) },
    ]
}

fn built(level: u8, items: &[Item]) -> Vec<u8> {
    let mut bytes = vec![0; PAGE_BYTES];
    build(&mut bytes, ADDRESS, level, items);
    bytes
}

fn parse(bytes: Vec<u8>, level: u8) -> Result<Page, BadPage> {
    Page::parse(bytes.into(), ADDRESS, level, (b"", None), DEVICE_BLOCKS)
}

#[test]
fn golden_leaf() {
    let mut expected = Vec::new();
    expected.extend_from_slice(b"QIXP\x01\0\0\0");
    expected.extend_from_slice(&[2, 0, 3, 0, 63, 0, 0, 0]);
    expected.extend_from_slice(&[2, 1, 0, 0, 0, 0, 0, 0]);
    expected.extend_from_slice(b"key");
    expected.extend_from_slice(&[31, 0, 37, 0]);
    expected.extend_from_slice(&[1, 0, 1, 0]);
    expected.extend_from_slice(b"1v");
    expected.extend_from_slice(&[2, 0, 0xff, 0xff]);
    expected.extend_from_slice(b"23");
    expected.extend_from_slice(&[0x77, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    expected.extend_from_slice(&[0xd0, 7, 0, 0, 0xdd, 0xcc, 0xbb, 0xaa]);
    let used = expected.len();
    expected.resize(PAGE_BYTES, 0);
    let bytes = built(0, &leaf_items());
    assert_eq!(bytes[..80], expected[..80]);
    assert_eq!(bytes, expected);
    let page = parse(bytes, 0).unwrap();
    assert_eq!((page.used_bytes(), page.count(), page.prefix()), (used, 2, &b"key"[..]));
    assert_eq!(page.key(1), &b"key23"[..]);
    assert_eq!(page.value(0), ValueRef::Inline(b"v"));
    assert!(matches!(page.value(1), ValueRef::OutOfLine(pointer) if pointer.checksum == 0xaabb_ccdd));
}

#[test]
fn golden_inner_page() {
    let child = ChildRef { page: BlockIndex(0x0908), checksum: 0x0403_0201 };
    let items = [
        Item { key: Bytes::new(), payload: Payload::Child(child) },
        Item { key: Bytes::from_static(b"m"), payload: Payload::Child(child) },
    ];
    let bytes = built(3, &items);
    let mut expected = Vec::new();
    expected.extend_from_slice(b"QIXP\x01\0\x03\0");
    expected.extend_from_slice(&[2, 0, 0, 0, 61, 0, 0, 0]);
    expected.extend_from_slice(&[2, 1, 0, 0, 0, 0, 0, 0]);
    expected.extend_from_slice(&[28, 0, 44, 0]);
    expected.extend_from_slice(&[0, 0, 12, 0, 8, 9, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
    expected.extend_from_slice(&[1, 0, 12, 0, b'm', 8, 9, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
    assert_eq!(bytes[..expected.len()], expected);
    let page = parse(bytes, 3).unwrap();
    assert_eq!(page.child(1), child);
    assert_eq!((page.child_for(b"a"), page.child_for(b"m"), page.child_for(b"z")), (0, 1, 1));
}

#[test]
fn golden_root() {
    let root = TreeRoot { page: BlockIndex(0x0102), checksum: 0x0403_0201, height: 2 };
    assert_eq!(root.encode(), [2, 1, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 2, 1, 0, 0]);
    assert_eq!(TreeRoot::decode(root.encode()), Some(root));
    assert_eq!(TreeRoot::decode([0xff; 16]), None);
    assert_eq!(TreeRoot::decode([0; 16]), None);
}

#[test]
fn a_page_must_fit_its_parent() {
    let bytes = built(0, &leaf_items());
    assert_eq!(parse(bytes.clone(), 1).unwrap_err(), BadPage::Structure);
    let at = |address, from: &'static [u8], to| {
        Page::parse(bytes.clone().into(), address, 0, (from, to), DEVICE_BLOCKS)
    };
    assert_eq!(at(BlockIndex(9), b"", None).unwrap_err(), BadPage::Address);
    assert_eq!(at(ADDRESS, b"key2", None).unwrap_err(), BadPage::Structure);
    assert_eq!(at(ADDRESS, b"", Some(&b"key23"[..])).unwrap_err(), BadPage::Structure);
    at(ADDRESS, b"key1", Some(&b"key24"[..])).unwrap();
    let small_device = Page::parse(bytes.clone().into(), ADDRESS, 0, (b"", None), 0x77);
    assert_eq!(small_device.unwrap_err(), BadPage::Structure);
}

/// Reads all that a page offers.
fn exercise(page: &Page) {
    for index in 0..page.count() {
        let key = page.key(index);
        assert_eq!(page.search(&key), Ok(index));
        page.item(index);
    }
    page.search(b"").unwrap_or_else(|index| index);
    page.search(&[0xff; 3000]).unwrap_err();
}

proptest::proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn parsing_survives_random_bytes(head in proptest::collection::vec(any::<u8>(), 0..200), level in 0u8..3) {
        for framed in [false, true] {
            let mut bytes = vec![0; PAGE_BYTES];
            bytes[..head.len()].copy_from_slice(&head);
            if framed {
                bytes[..8].copy_from_slice(&[b'Q', b'I', b'X', b'P', 1, 0, level, 0]);
                bytes[14..24].copy_from_slice(&[0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
            }
            if let Ok(page) = parse(bytes, level) {
                exercise(&page);
            }
        }
    }

    #[test]
    fn parsing_survives_changed_bytes(changes in proptest::collection::vec((0usize..90, any::<u8>()), 1..4), inner in any::<bool>()) {
        let child = ChildRef { page: BlockIndex(4), checksum: 1 };
        let items = |n: u8| Item { key: vec![b'a', n].into(), payload: Payload::Child(child) };
        let (level, items) = if inner { (1, (0..3).map(items).collect()) } else { (0, leaf_items()) };
        let mut bytes = built(level, &items);
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        if let Ok(page) = parse(bytes, level) {
            exercise(&page);
        }
    }
}

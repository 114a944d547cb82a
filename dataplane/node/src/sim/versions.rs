//! Versions over many partitions and cores: what is listed page by page, before and after a crash.

use std::{collections::BTreeSet, rc::Rc};

use quarry_object::api::{
    ApiError, Attributes, Conditions, ListEntry, ListRequest, ObjectStore, Selector, VersionId, Versioning,
};
use quarry_storage::device::SimDevice;

use super::{
    Random,
    clients::{BUCKET, put},
    history::Content,
    machine::{Limits, Machine, NodeParts},
    verify,
};

const KEYS: usize = 12;
/// Far fewer than there are versions.
const PAGE: usize = 3;

/// What a listing names: key, version, newest, delete marker.
type Listed = (String, VersionId, bool, bool);

async fn versions(node: &Rc<NodeParts>) -> Vec<Listed> {
    let (mut listed, mut after, mut version): (Vec<Listed>, _, _) = (Vec::new(), None, None);
    loop {
        let request = ListRequest { prefix: String::new(), delimiter: None, after, max_keys: PAGE };
        let page = node.objects.list_versions(BUCKET, request, version).await.unwrap();
        listed.extend(page.entries.into_iter().map(|entry| match entry {
            ListEntry::Version { info, is_latest, is_marker } => {
                (info.key, info.version.expect("every version has a name"), is_latest, is_marker)
            }
            other => panic!("an unexpected entry {other:?}"),
        }));
        if !page.truncated {
            return listed;
        }
        let last = listed.last().expect("a truncated page has entries");
        (after, version) = (Some(last.0.clone()), Some(last.1));
    }
}

/// Puts versions on every key: the null version, two with names, and on every other key a delete marker. Returns what
/// is listed then.
async fn fill(node: &Rc<NodeParts>, random: &Random) -> Vec<Listed> {
    let keys: Vec<String> = (0..KEYS).map(|number| format!("key-{number:02}")).collect();
    for key in &keys {
        put(node, key, &Content::new(random, 20_000)).await.unwrap();
    }
    node.objects.set_versioning(BUCKET, Versioning::Enabled).await.unwrap();
    let mut expected = Vec::new();
    for (number, key) in keys.iter().enumerate() {
        let mut stack = vec![(VersionId::Null, false)];
        for len in [100, 30_000] {
            let content = Content::new(random, len);
            let (attributes, conditions) = (Attributes::default(), Conditions::default());
            let stored = node.objects.put_object(BUCKET, key, attributes, conditions, content.body()).await;
            stack.push((stored.unwrap().version.unwrap(), false));
        }
        if number % 2 == 0 {
            let deleted = node.objects.delete_object(BUCKET, key, None, Conditions::default()).await.unwrap();
            stack.push((deleted.version.unwrap(), true));
        }
        let stack = stack.into_iter().rev().enumerate();
        expected.extend(stack.map(|(n, (version, is_marker))| (key.clone(), version, n == 0, is_marker)));
    }
    expected
}

async fn check(node: &Rc<NodeParts>, expected: &[Listed]) {
    assert_eq!(versions(node).await, expected);
    let request = ListRequest { prefix: String::new(), delimiter: None, after: None, max_keys: 1000 };
    let page = node.objects.list_objects(BUCKET, request).await.unwrap();
    let names: Vec<&str> = page.entries.iter().map(ListEntry::name).collect();
    let newest = |(key, _, is_latest, is_marker): &'_ Listed| (*is_latest && !is_marker).then(|| key.clone());
    assert_eq!(names, expected.iter().filter_map(newest).collect::<Vec<_>>());
    for (key, version, _, is_marker) in expected {
        let selector = Selector { version: Some(*version), ..Selector::default() };
        let head = node.objects.head_object(BUCKET, key, selector, Conditions::default()).await;
        assert_eq!(matches!(head, Err(ApiError::VersionIsMarker { .. })), *is_marker, "{head:?}");
    }
}

#[test]
fn versions_are_listed_across_partitions_and_outlive_a_crash() {
    let machine = Machine::new("4+2", Limits::ROOMY, 5);
    let mut node = machine.start();
    let expected = node.run(|node| async move {
        node.objects.create_bucket(BUCKET).await.unwrap();
        let expected = fill(&node, &Random::new(5)).await;
        check(&node, &expected).await;
        expected
    });
    let devices = machine.devices.all().iter().map(SimDevice::crash_keeping_nothing).collect();
    let machine = machine.with(devices, node.metastore(), 6);
    drop(node);
    let mut node = machine.start();
    node.run(|node| async move {
        node.wait_until_serving().await;
        check(&node, &expected).await;
        verify::check_owners(&node).await;
        for (key, version, ..) in &expected {
            let deleted =
                node.objects.delete_object(BUCKET, key, Some(*version), Conditions::default()).await;
            assert_eq!(deleted.unwrap().version, Some(*version));
        }
        assert_eq!(versions(&node).await, []);
        let keys: BTreeSet<String> = expected.into_iter().map(|listed| listed.0).collect();
        assert_eq!(keys.len(), KEYS);
        verify::delete_everything(Rc::clone(&node), Vec::new(), Vec::new()).await;
        node.objects.delete_bucket(BUCKET).await.unwrap();
    });
}

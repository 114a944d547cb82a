//! Two tiers on one machine: classes, transitions, the policy, and moves beside clients.

use std::{cell::Cell, rc::Rc, time::Duration};

use futures::future::{Either, select};
use quarry_clustermap::{Tier, TierPolicy};
use quarry_object::{
    api::{Attributes, Conditions, DocumentKind, ListEntry, ListRequest, ObjectStore, Versioning},
    cluster::Cluster as _,
    lifecycle::{Lifecycle, NoncurrentTransition, Rule, Transition, TransitionTime},
    repair::Budget,
    tier::{STORAGE_CLASS_HEADER, moved_ms, tier_of_blob},
};
use quarry_partition::command::{DecodedRow, Manifest, Segment, decode_row};
use quarry_planner::Intent;

use super::{
    Random,
    clients::{BUCKET, put},
    executor,
    history::Content,
    machine::{Limits, Machine, NodeParts},
    verify::{check_owners, manifest, read},
};
use crate::{
    jobs::tiers::{Mover, Transitions, Wanted, pass_over},
    metrics::Moves,
    platform::Timer,
};

fn machine(seed: u64) -> Machine {
    Machine::with_tiers("2+1", Some("1+1"), Limits::ROOMY, seed)
}

fn tiers_of(node: &NodeParts, manifest: &Manifest) -> Vec<Tier> {
    let map = node.map();
    let tier = |segment: &Segment| match segment {
        Segment::Blob(blob) => tier_of_blob(&map, blob),
        Segment::Inline { .. } => None,
    };
    manifest.segments.iter().filter_map(tier).collect()
}

async fn tiers(node: &Rc<NodeParts>, key: &str) -> Vec<Tier> {
    tiers_of(node, &manifest(node, key).await)
}

async fn put_as(node: &Rc<NodeParts>, key: &str, class: &str, content: &Content) {
    let headers = [(STORAGE_CLASS_HEADER.to_owned(), class.to_owned())].into();
    let attributes = Attributes { headers, ..Attributes::default() };
    let put = node.objects.put_object(BUCKET, key, attributes, Conditions::default(), content.body());
    put.await.unwrap();
}

/// Moves every version there is, one after the other, to a tier drawn by lot, until `work` has ended.
pub(super) async fn while_versions_move<T>(
    node: Rc<NodeParts>,
    seed: u64,
    work: impl Future<Output = Vec<T>>,
) -> Vec<T> {
    let moved = Rc::new(Cell::new(0_u64));
    let moving = move_about(Rc::clone(&node), Random::new(seed), Rc::clone(&moved));
    let (work, moving) = (Box::pin(work), Box::pin(moving));
    match select(work, moving).await {
        Either::Left((result, moving)) => {
            // A move that is half done is part of what a power cut finds.
            drop(moving);
            assert!(moved.get() > 0, "nothing was moved");
            result
        }
        Either::Right(_) => unreachable!("it moves for ever"),
    }
}

async fn move_about(node: Rc<NodeParts>, random: Random, moved: Rc<Cell<u64>>) {
    // Without a wait, so that moves go on beside clients that wait for nothing either.
    let budget = Rc::new(Budget::new(u64::MAX));
    loop {
        for partition in node.host.primaries() {
            let mover = Mover { cluster: &node.cluster, budget: &budget, partition: &partition };
            let Ok(rows) = partition.committed_rows(&[], 64).await else { continue };
            for (key, value) in rows {
                let Ok(DecodedRow::Version { bucket, key, manifest }) = decode_row(&key, &value) else {
                    break;
                };
                let tier = if random.below(2) == 0 { Tier::Hot } else { Tier::Cold };
                let wanted = Wanted { tier: Some(tier), class: None, why: Moves::Policy };
                let done = mover.run((bucket, &key), &manifest, wanted).await;
                moved.set(moved.get() + done.map_or(0, |done| done.blobs));
            }
        }
        executor::turns(1).await;
    }
}

async fn pass(node: &Rc<NodeParts>, now_ms: u64) -> bool {
    let budget = Rc::new(Budget::new(1 << 30));
    let transitions = Transitions::of(&node.cluster);
    let mut complete = true;
    for partition in node.host.primaries() {
        complete &= pass_over(&partition, &transitions, &node.cluster, &budget, now_ms).await;
    }
    complete
}

#[test]
fn classes_and_rules_decide_the_tier() {
    let machine = machine(11);
    let mut node = machine.start();
    node.run(|node| async move {
        node.objects.create_bucket(BUCKET).await.unwrap();
        node.objects.set_versioning(BUCKET, Versioning::Enabled).await.unwrap();
        let content = Content::new(&Random::new(1), 300_000);
        put_as(&node, "cold", "STANDARD_IA", &content).await;
        for _ in 0..2 {
            put(&node, "log/a", &content).await.unwrap();
        }
        put(&node, "hot", &content).await.unwrap();
        assert_eq!(tiers(&node, "cold").await, [Tier::Cold]);
        assert_eq!(tiers(&node, "hot").await, [Tier::Hot]);
        let mut rule = Rule { id: "r".into(), enabled: true, ..Rule::default() };
        rule.filter.prefix = Some("log/".into());
        rule.transitions = vec![Transition { at: TransitionTime::AtMs(0), class: "GLACIER_IR".to_owned() }];
        rule.noncurrent_transitions =
            vec![NoncurrentTransition { days: 1, keep: 0, class: "STANDARD_IA".to_owned() }];
        let document = Lifecycle { rules: vec![rule] }.to_document();
        node.objects.set_bucket_document(BUCKET, DocumentKind::Lifecycle, Some(document)).await.unwrap();
        let before = manifest(&node, "log/a").await;
        // Versions of one key in one millisecond are a little ahead of the clock.
        assert!(pass(&node, node.cluster.now_ms() + 10).await);
        let after = manifest(&node, "log/a").await;
        assert_eq!(tiers_of(&node, &after), [Tier::Cold]);
        assert_eq!(after.attributes.storage_class(), Some("GLACIER_IR"));
        assert!(moved_ms(&after).is_some());
        assert_eq!((after.etag, after.last_modified_ms), (before.etag, before.last_modified_ms));
        assert_eq!(tiers(&node, "hot").await, [Tier::Hot]);
        // The older version is not a day old; then it moves too, and whoever reads finds both.
        assert_eq!(classes(&node, "log/a").await, ["GLACIER_IR", "STANDARD"]);
        let tomorrow = node.cluster.now_ms() + 2 * 24 * 3_600_000;
        assert!(pass(&node, tomorrow).await);
        assert_eq!(classes(&node, "log/a").await, ["GLACIER_IR", "STANDARD_IA"]);
        assert!(read(&node, "log/a", None).await.unwrap().0 == content.bytes);
        assert!(pass(&node, tomorrow).await, "again, there is nothing to do");
        check_owners(&node).await;
    });
}

async fn classes(node: &Rc<NodeParts>, key: &str) -> Vec<String> {
    let request = ListRequest { prefix: key.to_owned(), delimiter: None, after: None, max_keys: 10 };
    let page = node.objects.list_versions(BUCKET, request, None).await.unwrap();
    let class = |entry: &ListEntry| match entry {
        ListEntry::Version { info, .. } => {
            info.attributes.headers.get(STORAGE_CLASS_HEADER).cloned().unwrap_or("STANDARD".to_owned())
        }
        other => panic!("{other:?}"),
    };
    page.entries.iter().map(class).collect()
}

/// Without a cold tier a class is kept and the bytes are hot; when there is one, they go there.
#[test]
fn a_cold_class_waits_for_a_cold_tier() {
    let mut machine = machine(12);
    machine.missing = vec![3, 4];
    let mut node = machine.start();
    node.run(|node| async move {
        node.objects.create_bucket(BUCKET).await.unwrap();
        put_as(&node, "k", "STANDARD_IA", &Content::new(&Random::new(1), 300_000)).await;
        assert_eq!(tiers(&node, "k").await, [Tier::Hot]);
    });
    let metastore = node.shutdown();
    let devices = machine.devices.all().to_vec();
    machine = machine.with(devices, metastore, 13);
    machine.missing = Vec::new();
    let mut node = machine.start();
    node.run(|node| async move {
        // The job comes by itself.
        node.timer.sleep(Duration::from_secs(60)).await;
        assert_eq!(tiers(&node, "k").await, [Tier::Cold]);
        assert_eq!(classes(&node, "k").await, ["STANDARD_IA"]);
        check_owners(&node).await;
    });
}

#[test]
fn the_policy_demotes_what_is_not_read_and_promotes_what_is() {
    const COUNT: u64 = 24;
    let machine = machine(14);
    let mut node = machine.start();
    node.run(|node| async move {
        node.objects.create_bucket(BUCKET).await.unwrap();
        let content = Content::new(&Random::new(1), 300_000);
        for number in 0..COUNT {
            put(&node, &number.to_string(), &content).await.unwrap();
        }
        put_as(&node, "archive", "GLACIER_IR", &content).await;
        let policy = TierPolicy {
            enabled: true,
            high_percent: 6,
            low_percent: 3,
            idle_s: 30,
            promote_reads_per_hour: 3,
            cool_down_s: 120,
            ..TierPolicy::default()
        };
        node.cluster.control().controller().operate(Intent::TierPolicy(policy)).await.unwrap();
        // Key 0 is read all the time, so it stays.
        for _ in 0..13 {
            read(&node, "0", None).await.unwrap();
            node.timer.sleep(Duration::from_secs(10)).await;
        }
        let on_hot = |node: &Rc<NodeParts>| {
            let node = Rc::clone(node);
            async move {
                let mut on_hot = Vec::new();
                for number in 0..COUNT {
                    if tiers(&node, &number.to_string()).await == [Tier::Hot] {
                        on_hot.push(number);
                    }
                }
                on_hot
            }
        };
        let left = on_hot(&node).await;
        assert!(left.contains(&0) && (left.len() as u64) < COUNT - 4, "on hot are {left:?}");
        let (capacity, used) = node.host.space_of_tier(&node.map(), Tier::Hot);
        assert!(used * 100 <= capacity * 6, "{used} of {capacity} are used");
        let woken = (0..COUNT).find(|number| !left.contains(number)).unwrap().to_string();
        let when = moved_ms(&manifest(&node, &woken).await).unwrap();
        for _ in 0..10 {
            read(&node, &woken, None).await.unwrap();
            read(&node, "archive", None).await.unwrap();
            node.timer.sleep(Duration::from_secs(20)).await;
        }
        assert_eq!(tiers(&node, &woken).await, [Tier::Hot], "what is read is hot again");
        let again = moved_ms(&manifest(&node, &woken).await).unwrap();
        assert!(again - when >= 120_000, "it moved again after {} ms", again - when);
        assert_eq!(tiers(&node, "archive").await, [Tier::Cold], "somebody asked for a cold class");
        let report = node.cluster.metrics().tiers.sum();
        assert!(report.watched >= 2, "{report:?}");
        for number in 0..COUNT {
            assert!(read(&node, &number.to_string(), None).await.unwrap().0 == content.bytes);
        }
        check_owners(&node).await;
    });
}

//! No response before the flush that covers it, read from the event logs of the devices at the moment when a call
//! resolves.
//!
//! | rule | asserted as |
//! |---|---|
//! | what a call wrote is durable when it resolves | every write that started is done, and a flush that began after that is done |
//! | all copies count | shards on all k+m members of a group, the commit record on all replicas of the partition |
//! | data before the record that names it | on each device, the last data write is done before the first journal write |
//! | shards before the commit record | the last journal write of a replica starts after the receipt of every shard |

use std::{collections::BTreeSet, ops::Range, rc::Rc};

use quarry_clustermap::partition_of;
use quarry_object::{
    api::{
        ApiError, Attributes, CompletedPart, Completion, Conditions, CopyChanges, CopySource, ObjectStore,
    },
    metadata::Metadata,
};
use quarry_storage::device::{BLOCK_BYTES, Event};

use super::{
    Random,
    clients::{BUCKET, LARGE_BYTES, put},
    history::Content,
    machine::{Limits, Machine, Node, NodeParts, device_id},
    seeds,
};
use crate::platform::Timer;

/// Events in order, with the device of each.
type Trace = Vec<(usize, Event)>;

/// The journal stands behind two superblock copies.
fn journal(limits: Limits) -> Range<u64> {
    let start = 2 * BLOCK_BYTES as u64;
    start..start + limits.journal_bytes
}

/// One device's part of a trace, each event with its place in the whole.
struct Log {
    events: Vec<(usize, Event)>,
    journal: Range<u64>,
}

impl Log {
    fn of(trace: &Trace, device: usize, limits: Limits) -> Self {
        let mine = trace.iter().enumerate().filter(|(_, (of, _))| *of == device);
        Self { events: mine.map(|(place, (_, event))| (place, *event)).collect(), journal: journal(limits) }
    }

    /// Offsets of writes that no finished flush covers. Of flushes that overlap, the one that began first counts as
    /// the one that ended first, which covers the least.
    fn uncovered(&self) -> BTreeSet<u64> {
        let mut open = BTreeSet::new();
        let mut done = BTreeSet::new();
        let mut flushes = std::collections::VecDeque::new();
        for (_, event) in &self.events {
            match *event {
                Event::Read { .. } => {}
                Event::WriteStart { offset, .. } => {
                    done.remove(&offset);
                    open.insert(offset);
                }
                Event::WriteDone { offset, .. } => {
                    open.remove(&offset);
                    done.insert(offset);
                }
                Event::FlushStart => flushes.push_back(done.clone()),
                Event::FlushDone => {
                    let covered = flushes.pop_front().expect("a flush that ends has begun");
                    done.retain(|offset| !covered.contains(offset));
                }
            }
        }
        &open | &done
    }

    fn journal_starts(&self) -> impl DoubleEndedIterator<Item = usize> + '_ {
        self.events.iter().filter_map(|(place, event)| match event {
            Event::WriteStart { offset, .. } if self.journal.contains(offset) => Some(*place),
            _ => None,
        })
    }

    fn last_data_done(&self) -> Option<usize> {
        self.events.iter().rev().find_map(|(place, event)| match event {
            Event::WriteDone { offset, .. } if !self.journal.contains(offset) => Some(*place),
            _ => None,
        })
    }

    /// Where the first journal write became durable.
    fn receipt(&self) -> Option<usize> {
        let after = |from: usize, wanted: fn(&Event) -> bool| {
            self.events.iter().find(|(place, event)| *place > from && wanted(event)).map(|(place, _)| *place)
        };
        let written = after(self.journal_starts().next()?, |event| matches!(event, Event::WriteDone { .. }))?;
        let begun = after(written, |event| matches!(event, Event::FlushStart))?;
        after(begun, |event| matches!(event, Event::FlushDone))
    }
}

/// What a call has to touch.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Touches {
    /// No device at all, or only what is durable already.
    Nothing,
    /// Replicas of the key's partition.
    Commit,
    /// Every member of a placement group, then those replicas.
    ShardsAndCommit,
}

/// Rules broken by a call on `key`; empty if none.
fn broken_rules(trace: &Trace, node: &NodeParts, limits: Limits, key: &str, touches: Touches) -> Vec<String> {
    let map = node.map();
    let logs: Vec<Log> = (0..map.devices.len()).map(|device| Log::of(trace, device, limits)).collect();
    let mut broken = Vec::new();
    for (device, log) in logs.iter().enumerate() {
        let uncovered = log.uncovered();
        if !uncovered.is_empty() {
            broken.push(format!("device {device}: writes at {uncovered:?} are not durable"));
        }
    }
    if touches == Touches::Nothing {
        return broken;
    }
    let bucket = node.cluster.bucket(BUCKET).expect("made by the test").id;
    let partition = partition_of(bucket, key.as_bytes(), map.partition_count());
    let replicas: Vec<usize> = (0..logs.len())
        .filter(|device| map.partition(partition).replicas.contains(&device_id(*device)))
        .collect();
    assert_eq!(replicas.len(), map.hot_profile.metadata_replicas(), "the test runs on a whole partition");
    let mut last_receipt = 0;
    if touches == Touches::ShardsAndCommit {
        for (device, log) in logs.iter().enumerate() {
            match (log.last_data_done(), log.journal_starts().next(), log.receipt()) {
                (Some(data), Some(record), Some(receipt)) if data < record => {
                    last_receipt = last_receipt.max(receipt);
                }
                (Some(data), Some(record), Some(_)) => {
                    broken.push(format!("device {device}: data at {data}, its record already at {record}"));
                }
                _ => broken.push(format!("device {device}: no data, no record or no receipt")),
            }
        }
    }
    for device in replicas {
        match logs[device].journal_starts().next_back() {
            None => broken.push(format!("device {device}: no commit record")),
            Some(commit) if commit < last_receipt => {
                broken.push(format!("device {device}: commit at {commit}, the last shard at {last_receipt}"));
            }
            Some(_) => {}
        }
    }
    broken
}

struct Rig {
    machine: Machine,
    node: Node,
    random: Random,
}

impl Rig {
    fn new(profile: &str, seed: u64) -> Self {
        let machine = Machine::new(profile, Limits::ROOMY, seed);
        let mut node = machine.start();
        node.run(|node| async move { node.objects.create_bucket(BUCKET).await.unwrap() });
        Self { machine, node, random: Random::new(seed) }
    }

    fn content(&self, len: usize) -> Rc<Content> {
        Rc::new(Content::new(&self.random, len))
    }

    /// Runs one call on an otherwise quiet node; what it answered, and the rules it broke.
    fn call<T: 'static>(
        &mut self,
        key: &'static str,
        touches: Touches,
        call: impl AsyncFnOnce(Rc<NodeParts>) -> Result<T, ApiError> + 'static,
    ) -> (T, Vec<String>) {
        let (devices, limits) = (Rc::clone(&self.machine.devices), self.machine.limits);
        self.node.run(move |node| async move {
            // What earlier calls left to the freer is done by then.
            node.timer.sleep(std::time::Duration::from_secs(1)).await;
            devices.start_trace();
            let answer = call(Rc::clone(&node)).await.unwrap();
            let broken = broken_rules(&devices.trace(), &node, limits, key, touches);
            (answer, broken)
        })
    }

    /// The same, where no rule may be broken.
    fn obeys<T: 'static>(
        &mut self,
        name: &str,
        key: &'static str,
        touches: Touches,
        call: impl AsyncFnOnce(Rc<NodeParts>) -> Result<T, ApiError> + 'static,
    ) -> T {
        let (answer, broken) = self.call(key, touches, call);
        assert!(broken.is_empty(), "{name} broke: {broken:#?}");
        answer
    }

    fn put(&mut self, name: &str, key: &'static str, len: usize, touches: Touches) {
        let content = self.content(len);
        self.obeys(name, key, touches, async move |node| put(&node, key, &content).await);
    }

    fn part(&mut self, upload: &str, number: u16, len: usize, touches: Touches) -> CompletedPart {
        let (content, upload) = (self.content(len), upload.to_owned());
        let part = self.obeys("UploadPart", "multi", touches, async move |node| {
            node.objects.put_part(BUCKET, "multi", &upload, number, content.body()).await
        });
        CompletedPart { number, etag: part.etag, checksums: Default::default() }
    }

    fn create_upload(&mut self) -> String {
        self.obeys("CreateMultipartUpload", "multi", Touches::Commit, async |node| {
            node.objects.create_upload(BUCKET, "multi", Attributes::default(), None).await
        })
    }
}

fn every_operation_obeys(profile: &str, seed: u64) {
    use Touches::{Commit, Nothing, ShardsAndCommit};
    let _doing = super::Doing(format!("flush order, {profile}, seed {seed}"));
    let mut rig = Rig::new(profile, seed);
    rig.obeys("CreateBucket", "", Nothing, async |node| node.objects.create_bucket("other").await);
    rig.put("PUT inline", "small", 1000, Commit);
    rig.put("PUT of nothing", "empty", 0, Commit);
    rig.put("PUT of one stripe", "stripe", 20_000, ShardsAndCommit);
    rig.put("PUT of several stripes", "large", LARGE_BYTES, ShardsAndCommit);
    rig.put("overwrite, large by large", "large", LARGE_BYTES + 1, ShardsAndCommit);
    rig.put("overwrite, large by inline", "large", 10, Commit);
    rig.put("overwrite, inline by large", "small", LARGE_BYTES, ShardsAndCommit);
    rig.obeys("CopyObject", "copy", ShardsAndCommit, async |node| {
        let source = CopySource {
            bucket: BUCKET.into(),
            key: "small".into(),
            version: None,
            conditions: Conditions::default(),
            range: None,
        };
        node.objects.copy_object(source, BUCKET, "copy", CopyChanges::default(), Conditions::default()).await
    });
    for key in ["small", "copy", "empty"] {
        rig.obeys("DELETE", key, Commit, async move |node| {
            node.objects.delete_object(BUCKET, key, None, Conditions::default()).await
        });
    }
    let upload = rig.create_upload();
    rig.part(&upload, 1, 5 << 20, ShardsAndCommit);
    let parts = vec![rig.part(&upload, 1, 5 << 20, ShardsAndCommit), rig.part(&upload, 2, 100, Commit)];
    rig.part(&upload, 3, 50_000, ShardsAndCommit);
    let parts = Completion { parts, ..Completion::default() };
    rig.obeys("CompleteMultipartUpload", "multi", Commit, async move |node| {
        node.objects.complete_upload(BUCKET, "multi", &upload, parts, Conditions::default()).await
    });
    let upload = rig.create_upload();
    rig.part(&upload, 1, 50_000, ShardsAndCommit);
    rig.obeys("AbortMultipartUpload", "multi", Commit, async move |node| {
        node.objects.abort_upload(BUCKET, "multi", &upload).await
    });
    rig.obeys("DeleteBucket", "", Nothing, async |node| node.objects.delete_bucket("other").await);
}

#[test]
fn no_response_before_its_flushes() {
    for seed in seeds(4) {
        every_operation_obeys("4+2", seed);
        every_operation_obeys("1+0", seed);
    }
}

/// The proof that the checker sees what it is for.
#[test]
fn a_flush_left_out_on_any_device_is_noticed() {
    let mut rig = Rig::new("4+2", 7);
    for device in 0..6 {
        let content = rig.content(LARGE_BYTES);
        rig.machine.devices.all()[device].set_skip_flush(true);
        let ((), broken) =
            rig.call("key", Touches::ShardsAndCommit, async move |node| put(&node, "key", &content).await);
        rig.machine.devices.all()[device].set_skip_flush(false);
        let named = format!("device {device}:");
        assert!(broken.iter().any(|rule| rule.starts_with(&named)), "device {device}: {broken:?}");
        assert!(broken.iter().all(|rule| rule.starts_with(&named) || rule.contains("commit")), "{broken:?}");
    }
}

#[test]
fn a_flush_left_out_on_a_replica_is_noticed() {
    let mut rig = Rig::new("4+2", 8);
    let mut noticed = 0;
    for device in 0..6 {
        let content = rig.content(100);
        rig.machine.devices.all()[device].set_skip_flush(true);
        let ((), broken) =
            rig.call("key", Touches::Commit, async move |node| put(&node, "key", &content).await);
        rig.machine.devices.all()[device].set_skip_flush(false);
        noticed += usize::from(!broken.is_empty());
    }
    assert_eq!(noticed, 3, "an inline object is on as many devices as its partition has replicas");
}

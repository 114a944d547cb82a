//! Where a version lies, why there, and how its shards are: what `quarryctl why` asks of any node.
//!
//! The control thread puts a question on the [`WhyBoard`]. The core that leads the partition takes it, as it knows how
//! often the version was read; if none here does, the first core takes it a moment later and asks the primary.
//!
//! Cost: one lookup, and for each of at most [`BLOBS_MAX`] blobs and each shard one open and one read of a checksum
//! unit. So `damaged` is certain, and `present` says that the shard is there, of the right length, and that its first unit is right:
//! a scrub reads the rest.

use std::{
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use quarry_clustermap::{ClusterMap, DeviceId, PartitionId, ShardIndex, partition_of};
use quarry_object::{
    checksum::{CHECKSUM_UNIT_BYTES, verify},
    cluster::{Cluster, PeerError},
    metadata::{ExecuteError, Metadata},
    tier::{CLASS_DEFAULT, moved_ms, tier_of_class},
};
use quarry_partition::{
    BlobRef,
    command::{Command, Lookup, Manifest, Reply, Segment, VersionId},
};
use quarry_storage::device::IoBuf;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{cluster::NodeCluster, host::CoreHost, jobs::tiers::VersionName, platform::Platform};

/// Blobs of a version whose shards are looked at.
const BLOBS_MAX: usize = 8;
/// Pause between looks at the board.
const LOOK: Duration = Duration::from_millis(100);
/// Looks after which the first core takes what no other did.
const LEFT_AFTER: u32 = 5;
/// Questions that may wait.
const QUESTIONS_MAX: usize = 64;

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Question {
    pub(crate) bucket: String,
    pub(crate) key: String,
    /// As clients see it; the newest if it is not given.
    #[serde(default)]
    pub(crate) version_id: Option<String>,
}

/// Questions that nobody has taken, and answers that nobody has fetched.
#[derive(Default)]
struct Waiting {
    last: u64,
    questions: VecDeque<(u64, Question)>,
    answers: BTreeMap<u64, Result<Value, String>>,
}

/// Shared by the control thread and the cores of a node.
#[derive(Default)]
pub(crate) struct WhyBoard(Mutex<Waiting>);

impl WhyBoard {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().expect("nothing panics under this lock")
    }

    /// Puts a question; `None`: too many wait.
    pub(crate) fn ask(&self, question: Question) -> Option<u64> {
        let mut waiting = self.lock();
        if waiting.questions.len() >= QUESTIONS_MAX {
            return None;
        }
        waiting.last += 1;
        let number = waiting.last;
        waiting.questions.push_back((number, question));
        Some(number)
    }

    /// The answer, once.
    pub(crate) fn fetch(&self, number: u64) -> Option<Result<Value, String>> {
        self.lock().answers.remove(&number)
    }

    /// Nobody waits for it any more. An answer that still comes, and one whose asker has hung up, is dropped when newer ones
    /// need the room.
    pub(crate) fn forget(&self, number: u64) {
        let mut waiting = self.lock();
        waiting.questions.retain(|(other, _)| *other != number);
        waiting.answers.remove(&number);
    }

    fn take(&self, mine: impl Fn(&Question) -> bool) -> Option<(u64, Question)> {
        let mut waiting = self.lock();
        let at = waiting.questions.iter().position(|(_, question)| mine(question))?;
        waiting.questions.remove(at)
    }

    fn answer(&self, number: u64, answer: Result<Value, String>) {
        let mut waiting = self.lock();
        if waiting.answers.len() >= QUESTIONS_MAX {
            waiting.answers.pop_first();
        }
        waiting.answers.insert(number, answer);
    }

    fn is_empty(&self) -> bool {
        self.lock().questions.is_empty()
    }
}

/// Runs until the core stops.
pub(crate) async fn run<P: Platform>(host: Rc<CoreHost<P>>, cluster: Rc<NodeCluster<P>>) {
    let (core, _) = cluster.core();
    let mut left = 0;
    loop {
        cluster.sleep(LOOK).await;
        let board = &cluster.metrics().why;
        if board.is_empty() {
            left = 0;
            continue;
        }
        left += 1;
        let leads = |question: &Question| {
            let partition = partition_of_question(&cluster, question);
            host.primaries().iter().any(|replica| Some(replica.partition()) == partition)
        };
        let is_mine = |question: &Question| (core == 0 && left > LEFT_AFTER) || leads(question);
        if let Some((number, question)) = board.take(is_mine) {
            let answer = look(&host, &cluster, &question).await;
            board.answer(number, answer);
        }
    }
}

fn partition_of_question<P: Platform>(cluster: &NodeCluster<P>, question: &Question) -> Option<PartitionId> {
    let bucket = cluster.bucket_table().by_name.get(&question.bucket)?.id;
    Some(partition_of(bucket, question.key.as_bytes(), cluster.map().partition_count()))
}

async fn look<P: Platform>(
    host: &CoreHost<P>,
    cluster: &Rc<NodeCluster<P>>,
    question: &Question,
) -> Result<Value, String> {
    let Question { bucket, key, version_id } = question;
    let id = cluster.bucket_table().by_name.get(bucket).map(|bucket| bucket.id);
    let id = id.ok_or_else(|| format!("there is no bucket {bucket:?}"))?;
    let version = version_id
        .as_deref()
        .map(|text| VersionId::parse(text).ok_or_else(|| format!("{text:?} is not the id of a version")));
    let map = cluster.map();
    let partition = partition_of(id, key.as_bytes(), map.partition_count());
    let config = map.partition(partition);
    let lookup = Lookup { version: version.transpose()?, ..Lookup::newest(id, key.as_str()) };
    let began = cluster.monotonic();
    let answered = cluster.execute(partition, Command::Get(lookup)).await;
    let lookup_us = micros(cluster.monotonic().saturating_sub(began));
    let node = |device: DeviceId| map.devices.get(&device).map(|entry| entry.node);
    let member = |device: &DeviceId| json!({ "device": device.to_string(), "node": node(*device), "in": map.is_in(*device) });
    let mut told = json!({
        "bucket": bucket, "key": key, "map_version": map.version, "partition": partition,
        "epoch": config.epoch, "primary": member(&config.primary),
        "in_sync": config.replicas.iter().map(member).collect::<Vec<_>>(),
        "joining": config.joining.iter().map(member).collect::<Vec<_>>(),
        "lookup_us": lookup_us,
    });
    let manifest = match answered {
        Ok(Reply::Object { manifest, .. }) => manifest,
        Ok(_) => return Err("the newest version is a delete marker".to_owned()),
        Err(ExecuteError::Refused(refusal)) => {
            return Err(format!("{bucket}/{key} (partition {partition}): {refusal}"));
        }
        // The place in the map is known nevertheless.
        Err(error) => {
            told["problem"] = json!(format!("the partition does not answer: {error}"));
            return Ok(told);
        }
    };
    let name = VersionName { partition, bucket: id, key: key.clone(), version_ms: manifest.last_modified_ms };
    let access = host.watch().access(&name, cluster.now_ms());
    let blobs: Vec<&BlobRef> = manifest.segments.iter().filter_map(blob_of).collect();
    let mut shown = Vec::new();
    for blob in blobs.iter().take(BLOBS_MAX) {
        shown.push(look_at_blob(cluster, &map, blob).await);
    }
    told["version_id"] = json!(manifest.version_id().to_string());
    told["size_bytes"] = json!(manifest.size_bytes);
    told["last_modified_ms"] = json!(manifest.last_modified_ms);
    told["storage_class"] = json!(manifest.attributes.storage_class().unwrap_or(CLASS_DEFAULT));
    told["why"] = json!(reasons(&map, &manifest));
    told["last_read_ms"] = json!(access.map(|access| access.read_ms));
    told["reads_per_hour"] = json!(access.map(|access| access.reads_per_hour));
    told["blobs_all"] = json!(blobs.len());
    told["blobs"] = json!(shown);
    Ok(told)
}

fn blob_of(segment: &Segment) -> Option<&BlobRef> {
    match segment {
        Segment::Blob(blob) => Some(blob),
        Segment::Inline { .. } => None,
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

async fn look_at_blob<P: Platform>(cluster: &Rc<NodeCluster<P>>, map: &ClusterMap, blob: &BlobRef) -> Value {
    let mut told = json!({
        "blob": blob.blob.to_string(), "group": blob.pg, "size_bytes": blob.size_bytes,
        "profile": blob.profile.to_string(),
    });
    let Some(group) = map.placement_groups.get(&blob.pg) else {
        told["problem"] = json!("the map does not know its placement group");
        return told;
    };
    let mut shards = Vec::new();
    for (position, member) in (0_u8..).zip(&group.members) {
        let holder = group.holder(map, position);
        let device = holder.unwrap_or(*member);
        let entry = map.devices.get(&device);
        let began = cluster.monotonic();
        let state = match holder {
            Some(device) => shard_state(cluster, device, blob, ShardIndex(position)).await,
            None => "unknown: the device is out",
        };
        shards.push(json!({
            "shard": position, "sort": if usize::from(position) < blob.profile.data() { "data" } else { "parity" },
            "device": device.to_string(), "node": entry.map(|entry| entry.node),
            "location": entry.map(|entry| entry.location.as_str()), "state": state,
            "moves_to": (*member != device).then(|| member.to_string()),
            "asked_us": micros(cluster.monotonic().saturating_sub(began)),
        }));
    }
    told["group_state"] = json!(group.state);
    told["group_epoch"] = json!(group.epoch);
    told["tier"] = json!(group.tier);
    told["shards"] = json!(shards);
    told
}

/// What the owner says of a shard.
async fn shard_state<P: Platform>(
    cluster: &Rc<NodeCluster<P>>,
    device: DeviceId,
    blob: &BlobRef,
    shard: ShardIndex,
) -> &'static str {
    let opened = match cluster.open_shard(device, blob.pg, blob.blob, shard).await {
        Ok(opened) => opened,
        Err(error) => return state_of_error(error),
    };
    let unit = CHECKSUM_UNIT_BYTES as u64;
    if opened.checksums.len() as u64 != opened.len_bytes.div_ceil(unit) {
        return "damaged";
    }
    let bytes = usize::try_from(opened.len_bytes.min(unit)).expect("at most a unit");
    let (read, buf) = cluster.read_shard(&opened.handle, 0, IoBuf::zeroed(bytes)).await;
    match read {
        Ok(()) if verify(blob.blob, shard, 0, &buf, &opened.checksums) => "present",
        Ok(()) => "damaged",
        Err(error) => state_of_error(error),
    }
}

fn state_of_error(error: PeerError) -> &'static str {
    match error {
        PeerError::NotFound => "missing",
        PeerError::Io => "damaged",
        PeerError::DeviceOut => "unknown: the device is out",
        PeerError::Timeout => "unknown: no answer in time",
        PeerError::Busy | PeerError::Full | PeerError::StaleEpoch { .. } => "unknown: the device is busy",
    }
}

/// Why the bytes are where they are.
fn reasons(map: &ClusterMap, manifest: &Manifest) -> Vec<String> {
    let class = manifest.attributes.storage_class();
    let asked = tier_of_class(class);
    let name = class.unwrap_or(CLASS_DEFAULT);
    let mut reasons = vec![format!("storage class {name} asks for the {} tier", asked.name())];
    if manifest.segments.iter().any(|segment| blob_of(segment).is_none()) {
        reasons.push("small enough to lie in the metadata of its partition".to_owned());
    }
    let moved = moved_ms(manifest);
    let mut seen = Vec::new();
    for blob in manifest.segments.iter().filter_map(blob_of) {
        let Some(group) = map.placement_groups.get(&blob.pg) else { continue };
        let wanted = map.wanted_profile(group.tier);
        let profile = if blob.profile == wanted {
            format!("in {}, the profile of the {} tier", blob.profile, group.tier.name())
        } else {
            format!(
                "in {} instead of {wanted}: too few devices or nodes were in when it was written, or the profile was changed since",
                blob.profile
            )
        };
        let place = match (group.tier == asked, moved) {
            (true, None) => format!("written to an open group of the {} tier", group.tier.name()),
            (true, Some(at)) => {
                format!(
                    "brought to the {} tier at {at} by its class, a rule or the policy",
                    group.tier.name()
                )
            }
            (false, Some(at)) => {
                format!("moved to the {} tier at {at} by the tier policy", group.tier.name())
            }
            (false, None) => {
                format!(
                    "on the {} tier: the {} tier was not there or had no room",
                    group.tier.name(),
                    asked.name()
                )
            }
        };
        for reason in [place, profile] {
            if !seen.contains(&reason) {
                seen.push(reason);
            }
        }
    }
    reasons.extend(seen);
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(key: &str) -> Question {
        Question { bucket: "b".to_owned(), key: key.to_owned(), version_id: None }
    }

    #[test]
    fn the_board_gives_each_question_to_one_core_and_each_answer_once() {
        let board = WhyBoard::default();
        let (first, second) = (board.ask(question("1")).unwrap(), board.ask(question("2")).unwrap());
        assert_eq!(board.take(|asked| asked.key == "2"), Some((second, question("2"))));
        assert_eq!(board.take(|asked| asked.key == "2"), None);
        board.answer(second, Ok(json!(2)));
        assert_eq!((board.fetch(first), board.fetch(second)), (None, Some(Ok(json!(2)))));
        assert_eq!(board.fetch(second), None);
        board.forget(first);
        assert!(board.is_empty());
        assert!((0..QUESTIONS_MAX).all(|_| board.ask(question("x")).is_some()));
        assert_eq!(board.ask(question("x")), None);
        // Answers that nobody fetches keep nobody from asking.
        while let Some((number, _)) = board.take(|_| true) {
            board.answer(number, Ok(json!(number)));
        }
        assert!(board.ask(question("x")).is_some());
    }
}

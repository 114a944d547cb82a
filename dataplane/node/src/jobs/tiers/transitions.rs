//! Classes by lifecycle rules, and data that does not lie where its class asks.

use std::{collections::BTreeMap, rc::Rc};

use quarry_clustermap::{BucketId, ClusterMap, DocumentKind, Tier};
use quarry_object::{
    cluster::Cluster,
    lifecycle::{Candidate, Lifecycle, rank},
    metadata::Metadata,
    repair::Budget,
    tier::{CLASS_DEFAULT, elsewhere, is_open, tier_of_class},
};
use quarry_partition::command::{DecodedRow, Manifest, decode_row};

use super::{Mover, Wanted};
use crate::{cluster::NodeCluster, host::PartitionHost, metrics::Moves, platform::Platform};

/// Rows taken from the index at once, as in the scrub.
const BATCH: usize = 64;

/// What the rules of all buckets say, and where data can go.
pub(crate) struct Transitions {
    by_bucket: BTreeMap<BucketId, Lifecycle>,
    revision: u64,
    map: Rc<ClusterMap>,
    has_cold: bool,
}

/// A version among those of its key.
struct Place {
    /// When it was replaced; `None`: it is the newest.
    replaced_ms: Option<u64>,
    /// Noncurrent versions above it.
    newer: u32,
}

impl Transitions {
    pub(crate) fn of<P: Platform>(cluster: &NodeCluster<P>) -> Self {
        let map = cluster.map();
        let has_cold = is_open(&map, Tier::Cold);
        let mut found = Self { by_bucket: BTreeMap::new(), revision: 0, map, has_cold };
        for bucket in cluster.buckets() {
            let Some(document) = bucket.config.document(DocumentKind::Lifecycle) else { continue };
            found.revision = found.revision.max(bucket.revision);
            match Lifecycle::parse(document) {
                Ok(rules) if rules.has_transitions() => drop(found.by_bucket.insert(bucket.id, rules)),
                Ok(_) => {}
                Err(error) => tracing::error!(event = "lifecycle_damaged", bucket = bucket.name, %error),
            }
        }
        found
    }

    /// Grows when rules change.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether a walk could find anything.
    pub(crate) fn may_do_something(&self) -> bool {
        self.has_cold || !self.by_bucket.is_empty()
    }

    /// The class that a version is to get: never one above the class that it has.
    fn class(
        &self,
        (bucket, key): (BucketId, &str),
        manifest: &Manifest,
        place: &Place,
        now_ms: u64,
    ) -> Option<&str> {
        let rules = self.by_bucket.get(&bucket)?;
        let tags = manifest.tags.iter().cloned().collect();
        let Manifest { size_bytes, last_modified_ms, .. } = *manifest;
        let object = Candidate { key, size_bytes, last_modified_ms, tags: &tags };
        let due = match place.replaced_ms {
            None => rules.transition(&object, now_ms),
            Some(replaced_ms) => rules.noncurrent_transition(&object, (replaced_ms, place.newer), now_ms),
        };
        let current = manifest.attributes.storage_class().unwrap_or(CLASS_DEFAULT);
        due.filter(|due| rank(due) > rank(current))
    }

    /// What is to become of a version, if anything.
    fn wanted(
        &self,
        about: (BucketId, &str),
        manifest: &Manifest,
        place: &Place,
        now_ms: u64,
    ) -> Option<Wanted<'_>> {
        let class = self.class(about, manifest, place, now_ms);
        let tier = tier_of_class(class.or(manifest.attributes.storage_class()));
        // Data of a hot class may lie on cold: the policy has put it there.
        let tier =
            Some(tier).filter(|tier| if *tier == Tier::Cold { self.has_cold } else { class.is_some() });
        let is_elsewhere = |tier| {
            manifest.continuation_rows > 0 || elsewhere(&self.map, &manifest.segments, tier).next().is_some()
        };
        if class.is_none() && !tier.is_some_and(is_elsewhere) {
            return None;
        }
        let why = if class.is_some() { Moves::Transition } else { Moves::Class };
        Some(Wanted { tier, class, why })
    }
}

/// Does once what is due in a partition at `now_ms`; `false`: something could not be done.
pub(crate) async fn pass_over<P: Platform>(
    partition: &Rc<PartitionHost<P>>,
    transitions: &Transitions,
    cluster: &Rc<NodeCluster<P>>,
    budget: &Rc<Budget>,
    now_ms: u64,
) -> bool {
    let mover = Mover { cluster, budget, partition };
    Walk { mover, transitions, partition, now_ms }.run().await
}

/// One walk over the versions of a partition.
struct Walk<'w, P: Platform> {
    mover: Mover<'w, P>,
    transitions: &'w Transitions,
    partition: &'w Rc<PartitionHost<P>>,
    now_ms: u64,
}

/// Versions of one key that a walk has passed, newest first.
struct Seen {
    bucket: BucketId,
    key: String,
    count: u32,
    /// The time of the last of them: when the next one was replaced.
    last_ms: u64,
}

impl<P: Platform> Walk<'_, P> {
    async fn run(&self) -> bool {
        let (mut from, mut seen, mut complete) = (Vec::new(), None, true);
        loop {
            let rows = match self.partition.committed_rows(&from, BATCH).await {
                Ok(rows) => rows,
                Err(error) => {
                    tracing::debug!(event = "transitions_stopped", partition = %self.partition.partition(), %error);
                    return false;
                }
            };
            let Some((last, _)) = rows.last() else { return complete };
            from = [last, &[0][..]].concat();
            let bytes = rows.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum();
            self.mover.budget.spend(&**self.mover.cluster, bytes).await;
            for (key, value) in &rows {
                // What cannot be decoded is for fsck to tell; versions stand before everything else.
                match decode_row(key, value) {
                    Ok(DecodedRow::Version { bucket, key, manifest }) => {
                        complete &= self.version(bucket, key, &manifest, &mut seen).await;
                    }
                    Ok(_) => return complete,
                    Err(_) => {}
                }
            }
        }
    }

    async fn version(
        &self,
        bucket: BucketId,
        key: String,
        manifest: &Manifest,
        seen: &mut Option<Seen>,
    ) -> bool {
        let above = seen.take().filter(|seen| seen.bucket == bucket && seen.key == key);
        let place = Place {
            replaced_ms: above.as_ref().map(|above| above.last_ms),
            newer: above.as_ref().map_or(0, |above| above.count - 1),
        };
        let wanted = if manifest.kind.is_marker() {
            None
        } else {
            self.transitions.wanted((bucket, &key), manifest, &place, self.now_ms)
        };
        let done = match wanted {
            None => true,
            Some(wanted) => self.mover.run((bucket, &key), manifest, wanted).await.is_some(),
        };
        let count = above.map_or(0, |above| above.count) + 1;
        *seen = Some(Seen { bucket, key, count, last_ms: manifest.last_modified_ms });
        done
    }
}

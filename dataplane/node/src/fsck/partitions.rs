//! Reads the metadata partitions: compares the in-sync replicas of each, and walks the rows of the one that will be
//! primary.
//!
//! A replica may lag by its tail, so they are compared as of the highest sequence that any of them has applied: that
//! was committed, and every in-sync replica has flushed it. The walk sees the whole tail of the replica it reads,
//! because its entries will be committed at the next start.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quarry_clustermap::{ClusterMap, DeviceId, PartitionId, Sequence};
use quarry_storage::store::StoreError;

use super::{
    blobs::Blobs,
    devices::OpenDevice,
    owners::Owners,
    report::{Class, Findings, Totals},
    rows::{ReplicaRows, RowStream},
};

/// Every entry of a tail.
const WHOLE_TAIL: Sequence = Sequence(u64::MAX);

/// Judges a partition; the rows that were walked, if any replica could be read.
pub(super) async fn judge(
    partition: PartitionId,
    map: &ClusterMap,
    (opened, unread): (&BTreeMap<DeviceId, OpenDevice>, &BTreeSet<DeviceId>),
    blobs: &mut Blobs<'_>,
    totals: &mut Totals,
    findings: &mut Findings,
) -> Option<ReplicaRows> {
    let whole = in_sync(partition, map, opened, findings);
    compare_replicas(partition, &whole, findings).await;
    for device in &whole {
        let Ok(rows) = ReplicaRows::new(&device.store, partition, WHOLE_TAIL)
            .map_err(|error| findings.add(Class::DamagedRow, || format!("{}: {error}", device.id)))
        else {
            continue;
        };
        let mut found = Findings::default();
        match walk(&rows, partition, map.partition_count(), &mut found).await {
            Ok(owners) => {
                findings.absorb(found);
                totals.partitions += 1;
                totals.objects += owners.objects;
                owners.blobs.iter().for_each(|(blob, claim)| blobs.claim(partition, blob, *claim));
                return Some(rows);
            }
            Err(error) => findings.add(Class::DamagedIndex, || format!("{} {partition}: {error}", device.id)),
        }
    }
    let elsewhere = map.partition(partition).replicas.iter().any(|device| unread.contains(device));
    let class = if elsewhere { Class::UnreadPartition } else { Class::LostPartition };
    findings.add(class, || format!("{partition}: no in-sync replica can be read"));
    blobs.lose(partition);
    None
}

/// The in-sync replicas that can be read and hold all that was committed; the primary-to-be first.
fn in_sync<'d>(
    partition: PartitionId,
    map: &ClusterMap,
    opened: &'d BTreeMap<DeviceId, OpenDevice>,
    findings: &mut Findings,
) -> Vec<&'d OpenDevice> {
    let config = map.partition(partition);
    let replicas = config.replicas.iter().filter_map(|device| opened.get(device));
    // A replica that was lost looks like an empty one.
    let (lost, mut replicas): (Vec<_>, Vec<_>) = replicas.partition(|device| device.store.is_lost(partition));
    replicas.sort_by_key(|device| device.id != config.primary);
    for device in lost.iter().filter(|_| !replicas.is_empty()) {
        findings.add(Class::ReplicaDivergence, || format!("{partition} on {}: it was lost", device.id));
    }
    let applied = |device: &&OpenDevice| device.store.recovered_log(partition).applied;
    let committed = replicas.iter().map(applied).max().unwrap_or_default();
    replicas.retain(|device| {
        let log = device.store.recovered_log(partition);
        let last = log.tail.last().map_or(log.applied, |entry| entry.sequence);
        if last < committed {
            findings.add(Class::ReplicaDivergence, || {
                format!("{partition} on {}: its log ends at {last}, {committed} was committed", device.id)
            });
        }
        last >= committed
    });
    replicas
}

async fn walk(
    rows: &ReplicaRows,
    partition: PartitionId,
    partition_count: u16,
    findings: &mut Findings,
) -> Result<Owners, StoreError> {
    let mut owners = Owners::new(partition, partition_count);
    let mut stream = rows.stream();
    while let Some((key, value)) = stream.next().await? {
        owners.row(&key, &value, findings);
    }
    let mut problems = owners.finish(findings);
    let mut stream = rows.stream();
    while !problems.is_empty() {
        let Some((key, value)) = stream.next().await? else { break };
        owners.explain((&key, &value), &mut problems, findings);
    }
    Ok(owners)
}

async fn compare_replicas(partition: PartitionId, replicas: &[&OpenDevice], findings: &mut Findings) {
    let applied = |device: &&OpenDevice| device.store.recovered_log(partition).applied;
    let committed = replicas.iter().map(applied).max().unwrap_or_default();
    let rows = replicas.iter().filter_map(|device| {
        // What is wrong with an entry is told by the walk.
        Some((device.id, ReplicaRows::new(&device.store, partition, committed).ok()?))
    });
    let rows: Vec<(DeviceId, ReplicaRows)> = rows.collect();
    if rows.len() < 2 {
        return;
    }
    let mut heads: Vec<Head<'_>> = Vec::new();
    for (device, rows) in &rows {
        heads.push(Head { device: *device, stream: rows.stream(), row: None });
    }
    advance(&mut heads, None, partition, findings).await;
    while let Some(key) = heads.iter().filter_map(Head::key).min().cloned() {
        let at_key: Vec<(DeviceId, Option<&Bytes>)> = heads
            .iter()
            .map(|head| (head.device, head.row.as_ref().filter(|row| row.0 == key).map(|row| &row.1)))
            .collect();
        judge_row(partition, &key, &at_key, findings);
        advance(&mut heads, Some(&key), partition, findings).await;
    }
}

struct Head<'r> {
    device: DeviceId,
    stream: RowStream<'r>,
    row: Option<(Bytes, Bytes)>,
}

impl Head<'_> {
    fn key(&self) -> Option<&Bytes> {
        self.row.as_ref().map(|(key, _)| key)
    }
}

/// Steps every replica that stands at `key` (all, at first); one that cannot be read on is left out from then on.
async fn advance(
    heads: &mut Vec<Head<'_>>,
    key: Option<&Bytes>,
    partition: PartitionId,
    findings: &mut Findings,
) {
    let mut index = 0;
    while index < heads.len() {
        let head = &mut heads[index];
        if key.is_none() || head.key() == key {
            match head.stream.next().await {
                Ok(row) => head.row = row,
                Err(error) => {
                    findings.add(Class::DamagedIndex, || format!("{} {partition}: {error}", head.device));
                    heads.remove(index);
                    continue;
                }
            }
        }
        index += 1;
    }
}

/// Judges what the replicas have at one key; pure.
fn judge_row(
    partition: PartitionId,
    key: &[u8],
    values: &[(DeviceId, Option<&Bytes>)],
    findings: &mut Findings,
) {
    let Some((first, rest)) = values.split_first() else { return };
    let differing: Vec<String> = (rest.iter().filter(|other| other.1 != first.1))
        .map(|other| match (first.1, other.1) {
            (Some(_), None) => format!("{} lacks it", other.0),
            (None, _) => format!("{} lacks it, {} has it", first.0, other.0),
            (Some(_), Some(_)) => format!("{} and {} differ", first.0, other.0),
        })
        .collect();
    if !differing.is_empty() {
        findings.add(Class::ReplicaDivergence, || {
            format!("{partition} row {}: {}", hex::encode(key), differing.join(", "))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_that_differ_at_a_key_are_told() {
        let (one, two) = (Bytes::from("1"), Bytes::from("2"));
        let judged = |values: &[Option<&Bytes>]| {
            let values: Vec<_> = (1..).map(DeviceId).zip(values.iter().copied()).collect();
            let mut findings = Findings::default();
            judge_row(PartitionId(0), b"k", &values, &mut findings);
            findings.counts()
        };
        let differ = vec![(Class::ReplicaDivergence, 1)];
        assert_eq!(judged(&[Some(&one), Some(&one), Some(&one)]), []);
        assert_eq!(judged(&[Some(&one)]), []);
        assert_eq!(judged(&[Some(&one), Some(&two), Some(&two)]), differ);
        assert_eq!(judged(&[Some(&one), None]), differ);
        assert_eq!(judged(&[None, Some(&one)]), differ);
    }
}

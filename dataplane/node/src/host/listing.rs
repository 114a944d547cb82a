//! Listings over all primaries of one core, and of its node: each partition is asked for a little, and for more only when the merge
//! has used up what it gave. Never a scan of everything.

use std::{cmp::Reverse, collections::BinaryHeap, collections::VecDeque, rc::Rc};

use futures::future::join_all;
use quarry_clustermap::{BucketId, PartitionId};
use quarry_object::{
    metadata::ExecuteError,
    peer::{PeerFault, PeerResponse},
};
use quarry_partition::command::{Command, Entry, Framed, List, Position, Reply};

use super::PartitionHost;
use crate::platform::Platform;

/// Entries asked of one partition beyond its fair share, so that few are asked twice.
const SLACK: u32 = 8;

/// Entries of one partition, in order, fetched piece by piece.
struct Source<P: Platform> {
    replica: Rc<PartitionHost<P>>,
    entries: VecDeque<Entry>,
    /// More can be fetched after the last entry fetched.
    truncated: bool,
    last: Option<(String, Option<Position>)>,
}

impl<P: Platform> Source<P> {
    async fn fetch(&mut self, list: &List, max: u32) -> Result<(), PeerFault> {
        let mut list = List { max, ..list.clone() };
        if let Some((after, position)) = self.last.clone() {
            (list.after, list.after_position) = (Some(after), position);
        }
        let command = Command::List(list);
        match self.replica.execute(&command).await {
            Ok(Reply::Page { entries, truncated }) => {
                self.truncated = truncated && !entries.is_empty();
                if let Some(last) = entries.last() {
                    self.last = Some((last.name().to_owned(), last.position()));
                }
                self.entries.extend(entries);
                Ok(())
            }
            Ok(_) => Err(PeerFault::Damaged { detail: "a listing was answered with something else".into() }),
            Err(ExecuteError::Fault(fault)) => Err(fault),
            Err(ExecuteError::Refused(refusal)) => Err(PeerFault::Damaged { detail: refusal.to_string() }),
        }
    }
}

/// One page over the given primaries.
pub(crate) async fn list<P: Platform>(
    primaries: &[Rc<PartitionHost<P>>],
    list: &[u8],
) -> Result<PeerResponse, PeerFault> {
    let list = decode_list(list)?;
    let partitions = u32::try_from(primaries.len()).unwrap_or(u32::MAX).max(1);
    let share = (list.max / partitions * 5 / 4 + SLACK).min(list.max);
    let mut sources: Vec<Source<P>> = primaries
        .iter()
        .map(|replica| Source {
            replica: Rc::clone(replica),
            entries: VecDeque::new(),
            truncated: true,
            last: None,
        })
        .collect();
    for result in join_all(sources.iter_mut().map(|source| source.fetch(&list, share))).await {
        result?;
    }
    let (entries, truncated) = merge(&mut sources, &list, share).await?;
    let page = Reply::Page { entries, truncated };
    Ok(PeerResponse::Listed {
        page: page.encode(),
        partitions: primaries.iter().map(|replica| replica.partition()).collect(),
    })
}

async fn merge<P: Platform>(
    sources: &mut [Source<P>],
    list: &List,
    share: u32,
) -> Result<(Vec<Entry>, bool), PeerFault> {
    let mut heap = BinaryHeap::new();
    for (index, source) in sources.iter().enumerate() {
        if let Some(entry) = source.entries.front() {
            heap.push(Reverse((entry.name().to_owned(), index)));
        }
    }
    let mut merged: Vec<Entry> = Vec::with_capacity(list.max as usize);
    while let Some(Reverse((_, index))) = heap.pop() {
        let source = &mut sources[index];
        let entry = source.entries.pop_front().expect("the heap names sources that have an entry");
        // The same rolled-up prefix comes from every partition that has a key below it.
        if !matches!(entry, Entry::Prefix(_)) || merged.last() != Some(&entry) {
            if merged.len() == list.max as usize {
                return Ok((merged, true));
            }
            merged.push(entry);
        }
        if source.entries.is_empty() && source.truncated {
            source.fetch(list, share).await?;
        }
        if let Some(next) = source.entries.front() {
            heap.push(Reverse((next.name().to_owned(), index)));
        }
    }
    Ok((merged, false))
}

/// Pages of several cores or nodes as one.
pub(crate) struct Merged {
    pub(crate) entries: Vec<Entry>,
    pub(crate) truncated: bool,
    pub(crate) partitions: Vec<PartitionId>,
}

/// Merges the answers to one `List`. Every one gave its first `max` entries, so the first `max` of all are among them.
pub(crate) fn merge_pages(answers: Vec<PeerResponse>, max: usize) -> Result<Merged, PeerFault> {
    let damaged = || PeerFault::Damaged { detail: "a listing was answered with something else".into() };
    let mut merged = Merged { entries: Vec::new(), truncated: false, partitions: Vec::new() };
    for answer in answers {
        let PeerResponse::Listed { page, partitions } = answer else { return Err(damaged()) };
        let Ok(Reply::Page { entries, truncated }) = Reply::decode(&page) else { return Err(damaged()) };
        merged.entries.extend(entries);
        merged.truncated |= truncated;
        merged.partitions.extend(partitions);
    }
    // Stable: versions of a key are all in one partition, and stay in their order.
    merged.entries.sort_by(|a, b| a.name().cmp(b.name()));
    // Only rolled-up prefixes come from several partitions.
    merged.entries.dedup_by(|a, b| matches!(a, Entry::Prefix(_)) && a == b);
    merged.truncated |= merged.entries.len() > max;
    merged.entries.truncate(max);
    Ok(merged)
}

/// One answer to a `List` for all cores of a node.
pub(crate) fn join_lists(list: &[u8], answers: Vec<PeerResponse>) -> Result<PeerResponse, PeerFault> {
    let max = decode_list(list)?.max as usize;
    let Merged { entries, truncated, partitions } = merge_pages(answers, max)?;
    Ok(PeerResponse::Listed { page: Reply::Page { entries, truncated }.encode(), partitions })
}

/// One answer to a `BucketIsEmpty` for all cores of a node.
pub(crate) fn join_empty(answers: Vec<PeerResponse>) -> Result<PeerResponse, PeerFault> {
    let mut all = Vec::new();
    for answer in answers {
        match answer {
            PeerResponse::Empty { empty: true, partitions } => all.extend(partitions),
            PeerResponse::Empty { empty: false, .. } => return Ok(answer),
            _ => return Err(PeerFault::Damaged { detail: "an unexpected answer".into() }),
        }
    }
    Ok(PeerResponse::Empty { empty: true, partitions: all })
}

/// One answer to a `BucketRevision` for all cores of a node.
pub(crate) fn join_revisions(answers: Vec<PeerResponse>) -> Result<PeerResponse, PeerFault> {
    let (mut oldest, mut all) = (u64::MAX, Vec::new());
    for answer in answers {
        let PeerResponse::ActsOn { revision, partitions } = answer else {
            return Err(PeerFault::Damaged { detail: "an unexpected answer".into() });
        };
        oldest = oldest.min(revision);
        all.extend(partitions);
    }
    Ok(PeerResponse::ActsOn { revision: oldest, partitions: all })
}

fn decode_list(list: &[u8]) -> Result<List, PeerFault> {
    match Command::decode(list) {
        Ok(Command::List(list)) => Ok(list),
        Ok(_) => Err(PeerFault::Damaged { detail: "not a listing".into() }),
        Err(error) => Err(PeerFault::Damaged { detail: error.to_string() }),
    }
}

/// Whether none of the given primaries holds a version of a bucket.
pub(crate) async fn is_empty<P: Platform>(
    primaries: &[Rc<PartitionHost<P>>],
    bucket: BucketId,
) -> Result<PeerResponse, PeerFault> {
    for replica in primaries {
        match replica.execute(&Command::BucketIsEmpty { bucket }).await {
            Ok(Reply::Empty(true)) => {}
            Ok(Reply::Empty(false)) => {
                return Ok(PeerResponse::Empty { empty: false, partitions: Vec::new() });
            }
            Ok(_) => return Err(PeerFault::Damaged { detail: "an unexpected answer".into() }),
            Err(ExecuteError::Fault(fault)) => return Err(fault),
            Err(ExecuteError::Refused(refusal)) => {
                return Err(PeerFault::Damaged { detail: refusal.to_string() });
            }
        }
    }
    let partitions = primaries.iter().map(|replica| replica.partition()).collect();
    Ok(PeerResponse::Empty { empty: true, partitions })
}

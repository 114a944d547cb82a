//! Listings over all primaries of one core, and of its node: a merge of walks over their rows that seeks past what it does not
//! list. Never a scan of everything.

use std::rc::Rc;

use quarry_clustermap::{BucketId, PartitionId};
use quarry_object::{
    metadata::ExecuteError,
    peer::{PeerFault, PeerResponse},
};
use quarry_partition::command::{Command, Entry, Framed, List, Reply, list_merged};
use quarry_storage::index::Pace;

use super::PartitionHost;
use crate::platform::Platform;

/// One page over the given primaries.
pub(crate) async fn list<P: Platform>(
    primaries: &[Rc<PartitionHost<P>>],
    list: &[u8],
) -> Result<PeerResponse, PeerFault> {
    let list = decode_list(list)?;
    let pace = Rc::new(Pace::default());
    let views: Vec<_> = primaries.iter().map(|replica| replica.committed_view()).collect();
    let mut walks = Vec::with_capacity(views.len());
    for (view, replica) in views.iter().zip(primaries) {
        let (from, to) = replica.listed_rows(view, &list).await?;
        walks.push(view.walk((&from, &to), &pace));
    }
    let merged = list_merged(&mut walks, &list).await;
    // What one that is no primary any more says may be out of date.
    if !primaries.iter().all(|replica| replica.is_serving_primary()) {
        return Err(PeerFault::NotPrimary);
    }
    let (entries, truncated) =
        merged.map_err(|(index, error)| primaries[index].listing_failed(&views[index], error))?;
    Ok(PeerResponse::Listed {
        page: Reply::Page { entries, truncated }.encode(),
        partitions: primaries.iter().map(|replica| replica.partition()).collect(),
    })
}

/// Entries to ask of each of `sources` cores or nodes, so that the first `list.max` of all are most likely among them: partitions
/// are a hash of the key, so a share has its mean and some standard deviations. A rolled-up prefix comes from every source.
pub(crate) fn share(list: &List, sources: usize) -> u32 {
    let fair = list.max.div_ceil(u32::try_from(sources).unwrap_or(u32::MAX).max(1));
    if list.delimiter.is_some() { list.max } else { list.max.min(fair + 4 * fair.isqrt() + 4) }
}

/// Pages of several cores or nodes as one.
pub(crate) struct Merged {
    pub(crate) entries: Vec<Entry>,
    pub(crate) truncated: bool,
    pub(crate) partitions: Vec<PartitionId>,
    /// They are the first `max` entries, or all. If not, those asked for less than `max` have to be asked for it.
    pub(crate) complete: bool,
}

/// Merges the answers to one `List` for at most `max` entries.
pub(crate) fn merge_pages(answers: Vec<PeerResponse>, max: usize) -> Result<Merged, PeerFault> {
    let damaged = || PeerFault::Damaged { detail: "a listing was answered with something else".into() };
    let (mut entries, mut partitions) = (Vec::<Entry>::new(), Vec::new());
    // Of a page that is cut off, nothing is known behind its last entry.
    let mut known_to: Option<String> = None;
    let mut truncated = false;
    for answer in answers {
        let PeerResponse::Listed { page, partitions: covered } = answer else { return Err(damaged()) };
        let Ok(Reply::Page { entries: part, truncated: cut }) = Reply::decode(&page) else {
            return Err(damaged());
        };
        if cut {
            truncated = true;
            let last = part.last().map_or("", Entry::name);
            if known_to.as_deref().is_none_or(|to| last < to) {
                known_to = Some(last.to_owned());
            }
        }
        entries.extend(part);
        partitions.extend(covered);
    }
    // Stable: versions of a key are all in one partition, and stay in their order.
    entries.sort_by(|a, b| a.name().cmp(b.name()));
    // Only rolled-up prefixes come from several partitions.
    entries.dedup_by(|a, b| matches!(a, Entry::Prefix(_)) && a == b);
    truncated |= entries.len() > max;
    entries.truncate(max);
    let last = entries.last().map_or("", Entry::name);
    let complete = known_to.is_none_or(|to| entries.len() == max && last <= to.as_str());
    Ok(Merged { entries, truncated, partitions, complete })
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

pub(crate) fn decode_list(list: &[u8]) -> Result<List, PeerFault> {
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

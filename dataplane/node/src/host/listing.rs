//! Listings over all primaries of one core, and of its node: a merge of walks over their rows that seeks past what it does not
//! list. Never a scan of everything.

use std::{cell::Cell, rc::Rc};

use event_listener::Event;
use quarry_clustermap::{BucketId, PartitionId};
use quarry_object::{
    metadata::ExecuteError,
    peer::{PeerFault, PeerResponse},
};
use quarry_partition::command::{Command, Entry, Framed, List, Reply, list_merged};
use quarry_storage::index::Pace;

use super::PartitionHost;
use crate::platform::Platform;

/// Listings of a core at a time: each holds a leaf of the index for each partition (16 KiB, shared with the cache).
const LISTINGS_MAX: usize = 8;

/// Who may list on a core.
pub(super) struct Turns {
    free: Cell<usize>,
    freed: Event,
}

impl Default for Turns {
    fn default() -> Self {
        Self { free: Cell::new(LISTINGS_MAX), freed: Event::new() }
    }
}

impl Turns {
    /// Waits until fewer than [`LISTINGS_MAX`] have a turn.
    pub(super) async fn take(&self) -> Turn<'_> {
        while self.free.get() == 0 {
            let freed = self.freed.listen();
            if self.free.get() == 0 {
                freed.await;
            }
        }
        self.free.set(self.free.get() - 1);
        Turn(self)
    }
}

/// Given back when it is dropped.
pub(super) struct Turn<'a>(&'a Turns);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.free.set(self.0.free.get() + 1);
        self.0.freed.notify(1);
    }
}

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
    /// They are the first `max` entries, or all. If not, they are the first ones, and there are more of them if each is asked
    /// for `max`.
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
    if let Some(to) = &known_to {
        entries.retain(|entry| entry.name() <= to.as_str());
    }
    let complete = known_to.is_none() || entries.len() >= max;
    truncated |= entries.len() > max;
    entries.truncate(max);
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

#[cfg(test)]
mod tests {
    use futures::{FutureExt, executor::block_on};
    use quarry_partition::command::Listed;

    use super::*;

    fn page(names: &[&str], truncated: bool) -> PeerResponse {
        let entries = names.iter().map(|name| Entry::Prefix((*name).to_owned())).collect();
        PeerResponse::Listed { page: Reply::Page { entries, truncated }.encode(), partitions: Vec::new() }
    }

    fn merged(answers: Vec<PeerResponse>, max: usize) -> (String, bool, bool) {
        let Merged { entries, truncated, complete, .. } = merge_pages(answers, max).unwrap();
        (entries.iter().map(Entry::name).collect(), truncated, complete)
    }

    #[test]
    fn nothing_is_listed_behind_what_a_cut_page_does_not_show() {
        let whole = || page(&["b", "d", "f"], false);
        assert_eq!(merged(vec![page(&["a", "c", "e"], false), whole()], 10), ("abcdef".into(), false, true));
        // There may be another entry between c and d.
        assert_eq!(merged(vec![page(&["a", "c"], true), whole()], 10), ("abc".into(), true, false));
        assert_eq!(merged(vec![page(&["a", "c"], true), whole()], 4), ("abc".into(), true, false));
        assert_eq!(merged(vec![page(&["a", "c"], true), whole()], 3), ("abc".into(), true, true));
        assert_eq!(merged(vec![page(&["a", "c"], true), whole()], 2), ("ab".into(), true, true));
        assert_eq!(merged(vec![page(&["a", "b"], false), whole()], 10), ("abdf".into(), false, true));
    }

    #[test]
    fn a_share_is_more_than_the_fair_part_and_never_more_than_the_page() {
        let list = |max, delimiter: Option<&str>| List {
            bucket: BucketId(1),
            listed: Listed::Objects,
            prefix: String::new(),
            delimiter: delimiter.map(str::to_owned),
            after: None,
            after_position: None,
            max,
        };
        assert_eq!(share(&list(1000, None), 1), 1000);
        assert_eq!(share(&list(1000, None), 2), 592);
        assert_eq!(share(&list(1000, None), 12), 124);
        assert_eq!(share(&list(5, None), 12), 5);
        assert_eq!(share(&list(1000, Some("/")), 12), 1000, "each has every prefix");
    }

    #[test]
    fn listings_take_turns() {
        let turns = Turns::default();
        let mut held: Vec<Turn<'_>> = (0..LISTINGS_MAX).map(|_| block_on(turns.take())).collect();
        let mut waiting = Box::pin(turns.take());
        assert!((&mut waiting).now_or_never().is_none());
        held.pop();
        assert!(waiting.now_or_never().is_some());
    }
}

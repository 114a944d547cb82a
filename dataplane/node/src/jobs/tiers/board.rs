//! What the policy of each core sees and would do, for people; and their wish to be shown a plan.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use quarry_clustermap::Tier;
use serde::Serialize;

/// Moves of a plan that are shown one by one.
const SHOWN_MAX: usize = 20;

/// One move of a plan.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ShownMove {
    pub(crate) bucket: u64,
    pub(crate) key: String,
    pub(crate) to: Tier,
    pub(crate) size_bytes: u64,
}

/// Versions and their bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub(crate) struct Amount {
    pub(crate) versions: u64,
    pub(crate) bytes: u64,
}

impl Amount {
    pub(crate) fn add(&mut self, bytes: u64) {
        self.versions += 1;
        self.bytes += bytes;
    }

    fn join(&mut self, other: Self) {
        self.versions += other.versions;
        self.bytes += other.bytes;
    }
}

/// What a core reports; sums of several are those of a node.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct TierReport {
    /// Wish that it answers.
    #[serde(skip)]
    pub(crate) wish: u64,
    /// Versions whose reads are counted.
    pub(crate) watched: u64,
    /// Memory of that.
    pub(crate) watched_bytes: u64,
    /// Versions with blobs that the plan was made from, by where they lie.
    pub(crate) hot: Amount,
    pub(crate) cold: Amount,
    /// What the plan does.
    pub(crate) demote: Amount,
    pub(crate) promote: Amount,
    /// The first of it.
    pub(crate) moves: Vec<ShownMove>,
}

impl TierReport {
    pub(crate) fn plan(&mut self, planned: ShownMove) {
        let amount = if planned.to == Tier::Cold { &mut self.demote } else { &mut self.promote };
        amount.add(planned.size_bytes);
        if self.moves.len() < SHOWN_MAX {
            self.moves.push(planned);
        }
    }

    fn join(&mut self, other: &Self) {
        self.watched += other.watched;
        self.watched_bytes += other.watched_bytes;
        self.hot.join(other.hot);
        self.cold.join(other.cold);
        self.demote.join(other.demote);
        self.promote.join(other.promote);
        let room = SHOWN_MAX.saturating_sub(self.moves.len());
        self.moves.extend(other.moves.iter().take(room).cloned());
    }
}

/// Shared by the cores of a node.
#[derive(Default)]
pub(crate) struct TierBoard {
    wished: AtomicU64,
    reports: Mutex<BTreeMap<usize, TierReport>>,
}

impl TierBoard {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, TierReport>> {
        self.reports.lock().expect("nothing panics under this lock")
    }

    /// Asks every core to plan anew; returns what [`TierBoard::answered`] is asked with.
    pub(crate) fn wish(&self) -> u64 {
        self.wished.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The newest wish.
    pub(crate) fn wished(&self) -> u64 {
        self.wished.load(Ordering::Acquire)
    }

    /// A core has planned.
    pub(crate) fn report(&self, core: usize, report: TierReport) {
        self.lock().insert(core, report);
    }

    /// How many cores have answered a wish.
    pub(crate) fn answered(&self, wish: u64) -> usize {
        self.lock().values().filter(|report| report.wish >= wish).count()
    }

    /// All cores together.
    pub(crate) fn sum(&self) -> TierReport {
        let mut sum = TierReport::default();
        self.lock().values().for_each(|report| sum.join(report));
        sum
    }
}

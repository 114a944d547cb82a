//! Which versions are read, and how often: a table of one core, in memory alone.
//!
//! 16 bytes for each version that was read lately, nothing for the others, and no write for any read. The table grows up
//! to [`SLOTS_MAX`]; then what is read least makes room. Counts decay by half in [`HALF_LIFE_S`], so the number kept is
//! about what was read in the last hour and a half. It is lost at a restart, and when a partition gets another primary: then nothing
//! counts as idle before it has been watched for as long as the policy says.

use std::hash::{DefaultHasher, Hash, Hasher};

use quarry_clustermap::BucketId;

/// Seconds in which a count decays to half.
const HALF_LIFE_S: f32 = 3600.0;
/// Slots of a bucket: one line of the cache.
const WAYS: usize = 4;
const BUCKETS_MIN: usize = 256;
/// Slots of a core: 16 MiB.
const SLOTS_MAX: usize = 1 << 20;

/// One version.
#[derive(Clone, Copy, Default)]
struct Slot {
    /// Of the version; 0: the slot is free.
    id: u64,
    /// Of the last read, Unix seconds.
    read_s: u32,
    /// Reads, decayed up to `read_s`.
    count: f32,
}

const _: () = assert!(size_of::<Slot>() == 16, "what access tracking may cost for a version");

/// What is known of a version.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Access {
    /// Last read, Unix milliseconds.
    pub(crate) read_ms: u64,
    /// Decayed.
    pub(crate) reads_per_hour: f64,
}

/// Stands for a version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct VersionHash(u64);

impl VersionHash {
    pub(crate) fn of(bucket: BucketId, key: &str, version_ms: u64) -> Self {
        let mut hasher = DefaultHasher::new();
        (bucket.0, key, version_ms).hash(&mut hasher);
        Self(hasher.finish().max(1))
    }
}

impl Slot {
    fn count_at(&self, now_s: u32) -> f32 {
        // A clock that went back decays nothing.
        let age_s = now_s.saturating_sub(self.read_s);
        #[allow(clippy::cast_precision_loss, reason = "ages of years are all the same")]
        let half_lives = age_s as f32 / HALF_LIFE_S;
        self.count * (-half_lives).exp2()
    }
}

/// See the module.
pub(crate) struct AccessTable {
    buckets: Vec<[Slot; WAYS]>,
    used: usize,
    slots_max: usize,
}

impl AccessTable {
    pub(crate) fn new() -> Self {
        Self::with_slots_max(SLOTS_MAX)
    }

    fn with_slots_max(slots_max: usize) -> Self {
        Self { buckets: Vec::new(), used: 0, slots_max }
    }

    /// Versions that are known, and the memory that they take.
    pub(crate) fn size(&self) -> (u64, u64) {
        (self.used as u64, (self.buckets.len() * WAYS * size_of::<Slot>()) as u64)
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        *self = Self::with_slots_max(self.slots_max);
    }

    /// A version is read.
    pub(crate) fn touch(&mut self, version: VersionHash, now_ms: u64) {
        let now_s = seconds(now_ms);
        if (self.used + 1) * 4 > self.buckets.len() * WAYS * 3 {
            self.grow();
        }
        let Some(bucket) = bucket_of(self.buckets.len(), version.0) else { return };
        let bucket = &mut self.buckets[bucket];
        if let Some(slot) = bucket.iter_mut().find(|slot| slot.id == version.0) {
            slot.count = slot.count_at(now_s) + 1.0;
            slot.read_s = slot.read_s.max(now_s);
            return;
        }
        let least = |a: &&mut Slot, b: &&mut Slot| {
            (a.id != 0).cmp(&(b.id != 0)).then(a.count_at(now_s).total_cmp(&b.count_at(now_s)))
        };
        let slot = bucket.iter_mut().min_by(least).expect("a bucket has slots");
        self.used += usize::from(slot.id == 0);
        *slot = Slot { id: version.0, read_s: now_s, count: 1.0 };
    }

    /// What is known of a version; `None`: it was not read, or long ago.
    pub(crate) fn of(&self, version: VersionHash, now_ms: u64) -> Option<Access> {
        let bucket = bucket_of(self.buckets.len(), version.0)?;
        let slot = self.buckets[bucket].iter().find(|slot| slot.id == version.0)?;
        let per_half_life = f64::from(slot.count_at(seconds(now_ms))) * std::f64::consts::LN_2;
        let reads_per_hour = per_half_life * 3600.0 / f64::from(HALF_LIFE_S);
        Some(Access { read_ms: u64::from(slot.read_s) * 1000, reads_per_hour })
    }

    fn grow(&mut self) {
        let buckets = (self.buckets.len() * 2).max(BUCKETS_MIN).min(self.slots_max / WAYS);
        if buckets <= self.buckets.len() {
            return;
        }
        let old = std::mem::replace(&mut self.buckets, vec![[Slot::default(); WAYS]; buckets]);
        self.used = 0;
        for slot in old.into_iter().flatten().filter(|slot| slot.id != 0) {
            // Twice the buckets: what was in one is in two, and finds room.
            let bucket = &mut self.buckets[bucket_of(buckets, slot.id).expect("there are buckets")];
            if let Some(free) = bucket.iter_mut().find(|free| free.id == 0) {
                *free = slot;
                self.used += 1;
            }
        }
    }
}

fn bucket_of(buckets: usize, id: u64) -> Option<usize> {
    let wide = (u128::from(id) * buckets as u128) >> 64;
    (buckets > 0).then(|| usize::try_from(wide).expect("below the number of buckets"))
}

fn seconds(ms: u64) -> u32 {
    u32::try_from(ms / 1000).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0_MS: u64 = 1_700_000_000_000;

    fn version(number: u64) -> VersionHash {
        VersionHash::of(BucketId(1), &number.to_string(), 5)
    }

    #[test]
    fn counts_decay_by_half_in_an_hour() {
        let mut table = AccessTable::new();
        assert_eq!(table.of(version(1), T0_MS), None);
        (0..8).for_each(|_| table.touch(version(1), T0_MS));
        let rate = |table: &AccessTable, at_ms| table.of(version(1), at_ms).unwrap().reads_per_hour;
        let first = rate(&table, T0_MS);
        assert!((rate(&table, T0_MS + 3_600_000) - first / 2.0).abs() < 1e-3);
        assert_eq!(table.of(version(1), T0_MS + 9_000_000).unwrap().read_ms, T0_MS);
        // Read every ten minutes for long: six times an hour.
        let last_ms = (1..200).map(|n| T0_MS + n * 600_000).inspect(|at| table.touch(version(1), *at)).last();
        let steady = rate(&table, last_ms.unwrap() + 300_000);
        assert!((5.5..6.5).contains(&steady), "{steady}");
    }

    #[test]
    fn it_grows_and_forgets_what_is_read_least() {
        let mut table = AccessTable::with_slots_max(4096);
        for number in 0..3000 {
            table.touch(version(number), T0_MS);
        }
        let known = (0..3000).filter(|number| table.of(version(*number), T0_MS).is_some()).count();
        let (used, bytes) = table.size();
        assert_eq!((known as u64, bytes), (used, 4096 * 16));
        assert!(known > 2300, "{known} of 3000 are known: some buckets were full before it grew");
        for number in 10_000..10_500 {
            (0..20).for_each(|_| table.touch(version(number), T0_MS + 1000));
        }
        for number in 20_000..60_000 {
            table.touch(version(number), T0_MS + 2000);
        }
        let kept = (10_000..10_500).filter(|number| table.of(version(*number), T0_MS).is_some()).count();
        assert!(kept > 450, "{kept} of 500 often read ones are left after 40,000 others");
        assert_eq!(table.size().1, 4096 * 16, "it does not grow beyond its limit");
        table.clear();
        assert_eq!(table.size(), (0, 0));
    }
}

//! What fsck found: counts by class, the first examples of each, and totals; as text and as JSON.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

/// Examples kept of each class.
pub(super) const EXAMPLES_MAX: u64 = 10;

/// What can be found. An error breaks a promise or an invariant; the rest is told for information.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Class {
    /// A manifest's shard is not on the device that must have it.
    MissingShard,
    /// A shard that nothing names and no collector will ever free.
    ExtraShard,
    /// A shard on a device that its placement group does not put it on.
    MisplacedShard,
    /// A shard whose epoch, owner or length is not that of its blob.
    WrongGeneration,
    /// Fewer than k shards of a blob are left: its bytes cannot be read.
    ManifestWithoutShards,
    /// A blob with two owners, or with an owner and on the free list.
    DoubleOwnedBlob,
    /// Blocks neither in use nor free.
    LeakedExtent,
    /// Blocks used twice, or outside the data area.
    DoubleUsedExtent,
    /// Blocks in use that the free map would hand out.
    FreeButUsedExtent,
    /// A row that cannot be decoded, contradicts another one, or lacks one that it names.
    DamagedRow,
    /// An index page or value that cannot be read.
    DamagedIndex,
    /// A device that is there but cannot be opened.
    DamagedDevice,
    /// In-sync replicas of a partition that do not agree.
    ReplicaDivergence,
    /// A partition of which no in-sync replica can be read.
    LostPartition,
    /// A checksum unit of a shard that does not verify or cannot be read.
    CorruptUnit,
    /// A shard that nothing names, which the collector frees after the next start.
    PendingCollection,
    /// A blob with fewer than k+m shards left, but at least k.
    Degraded,
    /// A device of the map that was not found, or that the map has out and cannot be opened.
    MissingDevice,
    /// A shard of a partition that could not be read.
    UnjudgedShard,
    /// A device of a node of the cluster that was not given.
    UnreadDevice,
    /// A partition whose in-sync replicas are on such devices.
    UnreadPartition,
}

impl Class {
    pub(super) fn is_error(self) -> bool {
        !matches!(
            self,
            Self::PendingCollection
                | Self::Degraded
                | Self::MissingDevice
                | Self::UnjudgedShard
                | Self::UnreadDevice
                | Self::UnreadPartition
        )
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// One finding.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Example {
    pub(super) class: Class,
    /// Where and what, for people.
    pub(super) what: String,
}

/// All findings: bounded, whatever is wrong.
#[derive(Default, Debug)]
pub(super) struct Findings {
    counts: BTreeMap<Class, u64>,
    examples: Vec<Example>,
}

impl Findings {
    /// Counts a finding; `what` is asked only for the first of a class.
    pub(super) fn add<W: fmt::Display>(&mut self, class: Class, what: impl FnOnce() -> W) {
        let count = self.counts.entry(class).or_default();
        *count += 1;
        if *count <= EXAMPLES_MAX {
            self.examples.push(Example { class, what: what().to_string() });
        }
    }

    /// Adds those of `other`.
    pub(super) fn absorb(&mut self, other: Self) {
        for example in other.examples {
            if self.counts.get(&example.class).is_none_or(|count| *count < EXAMPLES_MAX) {
                self.examples.push(example);
            }
        }
        for (class, count) in other.counts {
            *self.counts.entry(class).or_default() += count;
        }
    }

    #[cfg(test)]
    pub(super) fn counts(&self) -> Vec<(Class, u64)> {
        self.counts.iter().map(|(class, count)| (*class, *count)).collect()
    }
}

/// A device of the map.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct DeviceReport {
    pub(super) device: String,
    pub(super) path: String,
    /// Whether it was opened and judged.
    pub(super) opened: bool,
    pub(super) shards: u64,
    pub(super) shard_bytes: u64,
    pub(super) free_bytes: u64,
}

/// Sizes of what was checked.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub(super) struct Totals {
    /// Partitions read.
    pub(super) partitions: u64,
    /// Object versions.
    pub(super) objects: u64,
    /// Blobs of object versions and of parts.
    pub(super) blobs: u64,
    /// Shards on all devices.
    pub(super) shards: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// Bytes read and verified.
    pub(super) verified_bytes: u64,
}

/// The whole report. Classes that were not found are left out.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) clean: bool,
    pub(super) errors: BTreeMap<Class, u64>,
    pub(super) info: BTreeMap<Class, u64>,
    pub(super) devices: Vec<DeviceReport>,
    #[serde(flatten)]
    pub(super) totals: Totals,
    pub(super) examples: Vec<Example>,
}

impl Report {
    pub(super) fn new(findings: Findings, devices: Vec<DeviceReport>, totals: Totals) -> Self {
        let (errors, info): (BTreeMap<_, _>, BTreeMap<_, _>) =
            findings.counts.into_iter().partition(|(class, _)| class.is_error());
        let mut examples = findings.examples;
        examples.sort_by_key(|example| example.class);
        Self { clean: errors.is_empty(), errors, info, devices, totals, examples }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for DeviceReport { device, path, opened, shards, shard_bytes, free_bytes } in &self.devices {
            if *opened {
                writeln!(
                    f,
                    "{device} {path}: {shards} shards of {shard_bytes} bytes, {free_bytes} bytes free"
                )?;
            } else {
                writeln!(f, "{device} {path}: not read")?;
            }
        }
        let Totals { partitions, objects, blobs, shards, bytes, verified_bytes } = self.totals;
        writeln!(
            f,
            "{partitions} partitions, {objects} objects, {blobs} blobs, {shards} shards of {bytes} bytes"
        )?;
        if verified_bytes > 0 {
            writeln!(f, "{verified_bytes} bytes verified")?;
        }
        for (class, count) in &self.errors {
            writeln!(f, "ERROR {class}: {count}")?;
        }
        for (class, count) in &self.info {
            writeln!(f, "info {class}: {count}")?;
        }
        for Example { class, what } in &self.examples {
            writeln!(f, "  {class}: {what}")?;
        }
        writeln!(f, "{}", if self.clean { "clean" } else { "NOT CLEAN" })
    }
}

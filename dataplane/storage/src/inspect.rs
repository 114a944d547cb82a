//! Decodes every area of a device, read-only, and goes on past damage: what an operator looks at first.
//!
//! Nothing is replayed: index, free map and shard counts are those of the newest checkpoint, the journal is told
//! beside them. Memory is bounded: damage is counted, and only the first [`NOTES_MAX`] places are described.

use std::fmt;
use std::rc::Rc;

use crate::device::Device;
use crate::extent::FreeMap;
use crate::format::record::Record;
use crate::format::rows;
use crate::format::superblock::{SLOTS, Superblock};
use crate::index::{IndexError, Tree, Visit, WalkDepth};
use crate::journal::{RingReader, ScanEnd};
use crate::store::{newest_superblock, read_free_map, read_slot, root_of};

/// Most places of damage that are described one by one.
pub const NOTES_MAX: usize = 32;
/// Bytes of index pages kept while counting rows.
const CACHE_BYTES: usize = 4 << 20;

/// Damage: how often, and where first.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Damages {
    /// Places found.
    pub count: u64,
    /// The first of them, described.
    pub notes: Vec<String>,
}

impl Damages {
    fn note(&mut self, what: impl fmt::Display) {
        self.count += 1;
        if self.notes.len() < NOTES_MAX {
            self.notes.push(what.to_string());
        }
    }
}

/// The ring.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct JournalReport {
    /// Good batches from the replay start on.
    pub batches: u64,
    /// Sequence of the first and of the last one.
    pub sequences: Option<(u64, u64)>,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// Records by kind, in the order of [`Record::KIND_NAMES`].
    pub records: [u64; Record::KIND_NAMES.len()],
    /// Records that cannot be decoded, a bad batch with later ones after it, unreadable blocks.
    pub damages: Damages,
}

/// The index as of the checkpoint.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct IndexReport {
    /// Levels; 0 for an empty index.
    pub levels: u64,
    /// Pages of all levels.
    pub pages: u64,
    /// Bytes in use in them.
    pub used_bytes: u64,
    /// Out-of-line values.
    pub values: u64,
    /// Their bytes.
    pub value_bytes: u64,
    /// Rows.
    pub rows: u64,
    /// Rows of partitions among them.
    pub partition_rows: u64,
    /// Shards.
    pub shards: u64,
    /// Bytes of shards.
    pub shard_bytes: u64,
    /// Pages, values and rows that cannot be read.
    pub damages: Damages,
}

/// The free map as of the checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FreeMapReport {
    /// Free blocks.
    pub free_blocks: u64,
    /// Runs they lie in.
    pub runs: u64,
    /// The longest of them, in blocks.
    pub longest_run_blocks: u64,
}

/// Everything found on a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Size of the device now.
    pub device_bytes: u64,
    /// The superblock copies, or why they were refused.
    pub slots: Vec<Result<Superblock, String>>,
    /// The copy the rest follows from: the newest.
    pub superblock: Result<Superblock, String>,
    /// The ring, if there is a superblock.
    pub journal: Option<JournalReport>,
    /// The index, if there is a superblock and a root that can be read.
    pub index: Option<Result<IndexReport, String>>,
    /// The free map, if there is a superblock.
    pub free_map: Option<Result<FreeMapReport, String>>,
}

impl Report {
    /// Whether nothing is damaged (blank superblock copies count as damage).
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.slots.iter().all(Result::is_ok)
            && self.superblock.is_ok()
            && self.journal.as_ref().is_some_and(|journal| journal.damages.count == 0)
            && matches!(&self.index, Some(Ok(index)) if index.damages.count == 0)
            && matches!(self.free_map, Some(Ok(_)))
    }
}

/// Reads the whole device but for the bytes of shards; verifies index values if `depth` says so.
pub async fn inspect<D: Device>(device: &Rc<D>, depth: WalkDepth) -> Report {
    let mut slots = Vec::new();
    for slot in 0..SLOTS {
        slots.push(read_slot(&**device, slot).await.map_err(|error| error.to_string()));
    }
    let superblock = newest_superblock(&**device).await.map_err(|error| error.to_string());
    let mut report = Report {
        device_bytes: device.size_bytes(),
        slots,
        superblock: superblock.clone(),
        journal: None,
        index: None,
        free_map: None,
    };
    if let Ok(superblock) = superblock {
        report.journal = Some(inspect_journal(&**device, &superblock).await);
        let map = read_free_map(&**device, &superblock).await;
        report.free_map = Some(map.map(|map| summarise(&map)).map_err(|error| error.to_string()));
        report.index = Some(match root_of(&superblock) {
            Ok(root) => Ok(inspect_index(&Tree::open(Rc::clone(device), root, CACHE_BYTES), depth).await),
            Err(error) => Err(error.to_string()),
        });
    }
    report
}

async fn inspect_journal<D: Device>(device: &D, superblock: &Superblock) -> JournalReport {
    let mut report = JournalReport::default();
    let mut reader = RingReader::new(device, superblock.journal, superblock.device, superblock.replay);
    while let Some((header, payload)) = reader.next_batch().await {
        report.batches += 1;
        report.payload_bytes += payload.len() as u64;
        let first = report.sequences.map_or(header.sequence, |(first, _)| first);
        report.sequences = Some((first, header.sequence));
        let mut rest = &payload[..];
        while !rest.is_empty() {
            match Record::decode(rest) {
                Ok((record, after)) => {
                    report.records[usize::from(record.kind()) - 1] += 1;
                    rest = after;
                }
                Err(error) => {
                    report.damages.note(format_args!("batch {}: {error}", header.sequence));
                    break;
                }
            }
        }
    }
    let expected = reader.next_start().sequence;
    match reader.end().await {
        ScanEnd::Tail => {}
        ScanEnd::Damaged { found } => {
            report.damages.note(format_args!("batch {expected} is bad, but batch {found} follows"));
        }
        ScanEnd::Unreadable(error) => report.damages.note(format_args!("batch {expected}: {error}")),
    }
    report
}

fn summarise(map: &FreeMap) -> FreeMapReport {
    let lengths = || map.runs().map(|(_, blocks)| blocks);
    FreeMapReport {
        free_blocks: map.free_blocks(),
        runs: lengths().count() as u64,
        longest_run_blocks: lengths().max().unwrap_or(0),
    }
}

async fn inspect_index<D: Device>(tree: &Tree<D>, depth: WalkDepth) -> IndexReport {
    let mut report = IndexReport {
        levels: tree.root().map_or(0, |root| u64::from(root.height) + 1),
        ..Default::default()
    };
    let visit = |visit: Visit<'_>| match visit {
        Visit::Page { used_bytes, .. } => {
            report.pages += 1;
            report.used_bytes += used_bytes as u64;
        }
        Visit::Value { len_bytes, .. } => {
            report.values += 1;
            report.value_bytes += u64::from(len_bytes);
        }
        Visit::Damaged { error, .. } => report.damages.note(error),
    };
    tree.walk(depth, visit).await;
    count_rows(tree, &mut report).await;
    report
}

/// Counts rows by table; steps over the keys behind damaged pages (the walk has noted those already).
async fn count_rows<D: Device>(tree: &Tree<D>, report: &mut IndexReport) {
    let mut cursor = tree.cursor(&[]);
    loop {
        match cursor.next().await {
            Ok(false) => return,
            Ok(true) => {}
            Err(IndexError::Damaged { key_range, .. }) => match &key_range.to {
                Some(to) => {
                    cursor.seek(to);
                    continue;
                }
                None => return,
            },
            Err(error) => {
                report.damages.note(error);
                return;
            }
        }
        report.rows += 1;
        match cursor.key() {
            [rows::TABLE_PARTITIONS, ..] => report.partition_rows += 1,
            [rows::TABLE_SHARDS, ..] => {
                let Some((key, n)) = rows::parse_shard_key(cursor.key()) else {
                    report.damages.note("a shard key is malformed");
                    continue;
                };
                let value = cursor.load_value().await.map_err(|error| error.to_string());
                match value.and_then(|value| rows::decode_shard(&value).map_err(|error| error.to_string())) {
                    Ok(row) => {
                        report.shards += u64::from(n == 0);
                        report.shard_bytes += u64::from(row.len_bytes);
                    }
                    Err(error) => report.damages.note(format_args!("{key:?} extent {n}: {error}")),
                }
            }
            _ => {}
        }
    }
}

impl fmt::Display for Damages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count > 0 {
            writeln!(f, "  DAMAGE in {} places:", self.count)?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "    {note}"))
    }
}

impl fmt::Display for JournalReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = self.sequences.unwrap_or_default();
        writeln!(
            f,
            "journal: {} batches ({first} to {last}), {} payload bytes",
            self.batches, self.payload_bytes
        )?;
        for (name, count) in Record::KIND_NAMES.iter().zip(self.records).filter(|(_, count)| *count > 0) {
            writeln!(f, "  {name}: {count}")?;
        }
        write!(f, "{}", self.damages)
    }
}

impl fmt::Display for IndexReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { levels, pages, used_bytes, values, value_bytes, .. } = self;
        writeln!(
            f,
            "index: {levels} levels, {pages} pages ({used_bytes} bytes used), {values} values ({value_bytes} bytes)"
        )?;
        let Self { rows, partition_rows, shards, shard_bytes, .. } = self;
        writeln!(f, "  {rows} rows, {partition_rows} of partitions; {shards} shards of {shard_bytes} bytes")?;
        write!(f, "{}", self.damages)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "device: {} bytes", self.device_bytes)?;
        for (slot, found) in self.slots.iter().enumerate() {
            match found {
                Ok(found) => writeln!(f, "superblock {slot}: checkpoint {}", found.checkpoint)?,
                Err(error) => writeln!(f, "superblock {slot}: {error}")?,
            }
        }
        match &self.superblock {
            Ok(newest) => {
                writeln!(
                    f,
                    "cluster {}, {}, formatted with {} bytes",
                    newest.cluster, newest.device, newest.device_bytes
                )?;
                let (journal, data) = (newest.journal, newest.data);
                writeln!(f, "  journal: {} blocks from {}", journal.blocks, journal.start.0)?;
                writeln!(f, "  data: {} blocks from {}", data.blocks, data.start.0)?;
                let replay = newest.replay;
                writeln!(f, "  replay: batch {} at position {}", replay.sequence, replay.position)?;
            }
            Err(error) => writeln!(f, "{error}")?,
        }
        if let Some(journal) = &self.journal {
            write!(f, "{journal}")?;
        }
        match &self.index {
            Some(Ok(index)) => write!(f, "{index}")?,
            Some(Err(error)) => writeln!(f, "index: {error}")?,
            None => {}
        }
        match &self.free_map {
            Some(Ok(FreeMapReport { free_blocks, runs, longest_run_blocks })) => {
                writeln!(f, "free map: {free_blocks} blocks in {runs} runs, longest {longest_run_blocks}")
            }
            Some(Err(error)) => writeln!(f, "{error}"),
            None => Ok(()),
        }
    }
}

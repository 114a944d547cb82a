//! `quarryd inspect`: decodes every area of one device, read-only, and goes on past damage.
//!
//! First the areas as they stand (superblocks, journal, index, free map: `quarry_storage::inspect`), then, if the
//! journal can be replayed, what the device holds now: space, shards, and the rows of each partition by kind.
//!
//! A device that a node has open can be inspected too: what the node writes meanwhile may show as damage.
//!
//! Exit code: 0 clean, 1 damage found, 2 cannot read.

use std::{collections::BTreeMap, fmt, path::Path, rc::Rc};

use futures::executor::block_on;
use quarry_clustermap::PartitionId;
use quarry_partition::command::{DecodedRow, decode_row};
use quarry_storage::{
    device::{DeviceFile, OpenMode, SyncDevice},
    format::record::Record,
    index::WalkDepth,
    inspect::{Damages, NOTES_MAX, Report, inspect},
    store::{Store, StoreError},
};
use serde_json::{Value, json};

use crate::fsck::read_only_options;

/// Rows and shards read at once.
const PAGE_ROWS: usize = 64;

/// Runs the command; returns only if nothing is damaged.
pub(crate) fn run(device: &Path, json: bool) -> anyhow::Result<()> {
    let file = match DeviceFile::open(device, OpenMode::ReadOnly) {
        Ok(file) => file,
        Err(error) => {
            eprintln!("cannot read {}: {error}", device.display());
            std::process::exit(2);
        }
    };
    let io = Rc::new(SyncDevice::new(file));
    let areas = block_on(inspect(&io, WalkDepth::Values));
    let replayed = block_on(replay(io)).map_err(|error| error.to_string());
    let clean = areas.is_clean() && replayed.as_ref().is_ok_and(Replayed::is_clean);
    if json {
        println!("{}", to_json(&areas, replayed.as_ref(), clean));
    } else {
        print!("{areas}");
        match &replayed {
            Ok(replayed) => print!("{replayed}"),
            Err(error) => println!("the journal cannot be replayed: {error}"),
        }
        println!("{}", if clean { "clean" } else { "DAMAGED" });
    }
    if !clean {
        std::process::exit(1);
    }
    Ok(())
}

/// A partition's log and rows on this device.
#[derive(Default, Debug)]
struct PartitionReport {
    epoch: u64,
    applied: u64,
    /// Entries after `applied`.
    tail_entries: u64,
    /// Rows by kind, in the order of [`DecodedRow::KIND_NAMES`].
    rows: [u64; DecodedRow::KIND_NAMES.len()],
}

/// What a device holds after replay.
#[derive(Default, Debug)]
struct Replayed {
    capacity_bytes: u64,
    free_bytes: u64,
    quarantined_bytes: u64,
    shards: u64,
    shard_bytes: u64,
    partitions: BTreeMap<PartitionId, PartitionReport>,
    damaged: u64,
    notes: Vec<String>,
}

async fn replay(device: Rc<SyncDevice>) -> Result<Replayed, StoreError> {
    let store = Store::open_read_only(device, read_only_options()).await?;
    let space = store.space();
    let mut replayed = Replayed {
        capacity_bytes: space.capacity_bytes,
        free_bytes: space.free_bytes,
        quarantined_bytes: space.quarantined_bytes,
        ..Replayed::default()
    };
    if let Err(error) = replayed.count_shards(&store).await {
        replayed.note(format_args!("shards: {error}"));
    }
    for partition in store.partitions() {
        replayed.count_rows(&store, partition).await;
    }
    Ok(replayed)
}

impl Replayed {
    fn is_clean(&self) -> bool {
        self.damaged == 0
    }

    fn note(&mut self, what: impl fmt::Display) {
        self.damaged += 1;
        if self.notes.len() < NOTES_MAX {
            self.notes.push(what.to_string());
        }
    }

    async fn count_shards(&mut self, store: &Store<SyncDevice>) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let page = store.shards(after, PAGE_ROWS).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.key());
            self.shards += page.len() as u64;
            self.shard_bytes += page.iter().map(|row| row.len_bytes).sum::<u64>();
        }
    }

    async fn count_rows(&mut self, store: &Store<SyncDevice>, partition: PartitionId) {
        let log = store.recovered_log(partition);
        let mut report = PartitionReport {
            epoch: log.epoch.0,
            applied: log.applied.0,
            tail_entries: log.tail.len() as u64,
            ..PartitionReport::default()
        };
        let mut from = Vec::new();
        loop {
            let page = match store.rows(partition, &from, None, PAGE_ROWS).await {
                Ok(page) => page,
                Err(error) => break self.note(format_args!("{partition}: {error}")),
            };
            for (key, value) in &page {
                match decode_row(key, value) {
                    Ok(row) => report.rows[row.kind()] += 1,
                    Err(problem) => {
                        self.note(format_args!("{partition} row {}: {problem}", hex::encode(key)))
                    }
                }
            }
            match page.last() {
                Some((last, _)) if page.len() == PAGE_ROWS => from = [last, &[0][..]].concat(),
                _ => break,
            }
        }
        self.partitions.insert(partition, report);
    }

    fn rows_by_kind(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let sum = |kind: usize| self.partitions.values().map(|report| report.rows[kind]).sum();
        DecodedRow::KIND_NAMES.into_iter().enumerate().map(move |(kind, name)| (name, sum(kind)))
    }
}

impl fmt::Display for Replayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { capacity_bytes, free_bytes, quarantined_bytes, shards, shard_bytes, .. } = self;
        let Self { partitions, damaged, notes, .. } = self;
        writeln!(
            f,
            "after replay: {free_bytes} of {capacity_bytes} bytes free; {shards} shards of {shard_bytes} bytes"
        )?;
        if *quarantined_bytes > 0 {
            writeln!(f, "  {quarantined_bytes} bytes in quarantine: the medium failed to read them")?;
        }
        for (name, count) in self.rows_by_kind().filter(|(_, count)| *count > 0) {
            writeln!(f, "  {name}: {count}")?;
        }
        writeln!(f, "  {} partitions:", partitions.len())?;
        for (partition, PartitionReport { epoch, applied, tail_entries, rows }) in partitions {
            let rows: u64 = rows.iter().sum();
            writeln!(
                f,
                "    {partition}: epoch {epoch}, applied {applied}, tail {tail_entries}, {rows} rows"
            )?;
        }
        if *damaged > 0 {
            writeln!(f, "  DAMAGE in {damaged} places:")?;
        }
        notes.iter().try_for_each(|note| writeln!(f, "    {note}"))
    }
}

fn to_json(areas: &Report, replayed: Result<&Replayed, &String>, clean: bool) -> Value {
    let damages = |damages: &Damages| json!({ "count": damages.count, "notes": damages.notes });
    let superblock = areas.superblock.as_ref().map(|newest| {
        json!({
            "cluster": newest.cluster.to_string(),
            "device": newest.device.to_string(),
            "device_bytes": newest.device_bytes,
            "checkpoint": newest.checkpoint,
            "journal": { "start_block": newest.journal.start.0, "blocks": newest.journal.blocks },
            "data": { "start_block": newest.data.start.0, "blocks": newest.data.blocks },
            "replay": { "sequence": newest.replay.sequence, "position": newest.replay.position },
        })
    });
    let journal = areas.journal.as_ref().map(|journal| {
        let records: BTreeMap<_, _> = Record::KIND_NAMES.into_iter().zip(journal.records).collect();
        json!({
            "batches": journal.batches,
            "sequences": journal.sequences,
            "payload_bytes": journal.payload_bytes,
            "records": records,
            "damages": damages(&journal.damages),
        })
    });
    let index = areas.index.as_ref().map(|index| {
        or_error(index.as_ref().map(|index| {
            json!({
                "levels": index.levels,
                "pages": index.pages,
                "used_bytes": index.used_bytes,
                "values": index.values,
                "value_bytes": index.value_bytes,
                "rows": index.rows,
                "partition_rows": index.partition_rows,
                "shards": index.shards,
                "shard_bytes": index.shard_bytes,
                "damages": damages(&index.damages),
            })
        }))
    });
    let free_map = areas.free_map.as_ref().map(|map| {
        or_error(map.as_ref().map(|map| {
            let (free, runs, longest) = (map.free_blocks, map.runs, map.longest_run_blocks);
            json!({ "free_blocks": free, "runs": runs, "longest_run_blocks": longest })
        }))
    });
    let slots: Vec<Value> = areas
        .slots
        .iter()
        .map(|slot| or_error(slot.as_ref().map(|slot| json!({ "checkpoint": slot.checkpoint }))))
        .collect();
    json!({
        "clean": clean,
        "device_bytes": areas.device_bytes,
        "slots": slots,
        "superblock": or_error(superblock),
        "journal": journal,
        "index": index,
        "free_map": free_map,
        "replayed": or_error(replayed.map(replayed_json)),
    })
}

fn replayed_json(replayed: &Replayed) -> Value {
    let partition = |(id, report): (&PartitionId, &PartitionReport)| {
        let rows: BTreeMap<_, _> = DecodedRow::KIND_NAMES.into_iter().zip(report.rows).collect();
        let PartitionReport { epoch, applied, tail_entries, .. } = report;
        let value = json!({ "epoch": epoch, "applied": applied, "tail_entries": tail_entries, "rows": rows });
        (id.0.to_string(), value)
    };
    json!({
        "capacity_bytes": replayed.capacity_bytes,
        "free_bytes": replayed.free_bytes,
        "quarantined_bytes": replayed.quarantined_bytes,
        "shards": replayed.shards,
        "shard_bytes": replayed.shard_bytes,
        "rows": replayed.rows_by_kind().collect::<BTreeMap<_, _>>(),
        "partitions": replayed.partitions.iter().map(partition).collect::<BTreeMap<_, _>>(),
        "damages": { "count": replayed.damaged, "notes": replayed.notes },
    })
}

fn or_error(result: Result<Value, &String>) -> Value {
    result.unwrap_or_else(|error| json!({ "error": error }))
}

//! Damage and loss below what the profile bears is made good: by reads, by the scrub, after a device was away; and
//! nothing of it leaves a shard or a block behind when everything is deleted.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use quarry_clustermap::{ShardIndex, Tier, partition_of};
use quarry_object::{
    api::{Conditions, ObjectStore},
    cluster::{Cluster, PeerError, ReserveShard},
    metadata::Metadata,
    writer::write_blob,
};
use quarry_partition::{
    BlobRef,
    command::{Command, Conditions as StoredConditions, Content as Stored, Put, Reply, StoredAttributes},
};
use quarry_storage::{
    device::{Device, Fault, Operation, SimDevice, When},
    store::ShardRow,
};

use super::{
    Doing, Random,
    clients::{self, BUCKET, LARGE_BYTES, Mix},
    history::{Content, History},
    machine::{Limits, Machine, Node, NodeParts, device_id},
    seeds, verify,
};
use crate::platform::Timer;

const MIX: Mix = Mix { clients: 3, keys_per_client: 6, operations_per_client: 14 };

fn filled(machine: &Machine, history: &Rc<History>, seed: u64) -> Node {
    let mut node = machine.start();
    node.run(|node| async move { node.objects.create_bucket(BUCKET).await.unwrap() });
    let noted = Rc::clone(history);
    let errors = node.run(move |node| clients::run(node, noted, MIX, seed));
    assert!(errors.is_empty(), "{errors:?}");
    node
}

/// Every shard of live blobs, with the device it is on.
async fn shards(node: &Rc<NodeParts>) -> Vec<(usize, ShardRow)> {
    verify::check_owners(node).await;
    let mut found = Vec::new();
    for index in 0..6 {
        let Some((_, device)) = node.host.devices().find(|(id, _)| *id == device_id(index)) else { continue };
        let rows = device.store.shards(None, usize::MAX).await.unwrap();
        found.extend(rows.into_iter().map(|row| (index, row)));
    }
    found
}

/// Flips bits in shards of at most two positions of each blob, and removes some of them.
async fn damage(machine_devices: &[SimDevice], node: &Rc<NodeParts>, random: &Random) -> (u64, u64) {
    let (mut flipped, mut removed) = (0, 0);
    for (index, row) in shards(node).await {
        // Which two follows from the blob.
        let first = row.blob.counter.0 % 6;
        let victim = [first, (first + 1 + row.blob.counter.0 / 6 % 5) % 6].contains(&u64::from(row.shard.0));
        if !victim {
            continue;
        }
        if random.below(4) == 0 {
            let (_, device) = node.host.devices().find(|(id, _)| *id == device_id(index)).unwrap();
            let epoch = row.epoch.max(device.store.pg_epoch(row.pg));
            assert!(device.store.free_shard(row.pg, epoch, row.blob, row.shard).await.unwrap());
            removed += 1;
            continue;
        }
        for _ in 0..=random.below(30) {
            let piece = &row.extents[usize::try_from(random.below(row.extents.len() as u64)).unwrap()];
            let at = piece.extent.start.offset_bytes() + random.below(u64::from(piece.len_bytes));
            machine_devices[index].flip_bit(at, u8::try_from(random.below(8)).unwrap());
            flipped += 1;
        }
    }
    (flipped, removed)
}

async fn repaired(node: &Rc<NodeParts>) {
    node.wait_for("repairs", || node.cluster.repairs().len() == 0).await;
}

async fn scrubbed(node: &Rc<NodeParts>) {
    let pass = node.scrub.ask();
    node.wait_for("the scrub", || node.scrub.finished() >= pass).await;
}

/// No manifest says that a shard is missing, and every shard is whole.
async fn all_whole(node: &Rc<NodeParts>, history: &History) {
    verify::check_keys(node, &history.allowed_now()).await;
    verify::check_owners(node).await;
    assert_eq!(node.cluster.metrics().shards_lost.get(), 0);
}

/// What a device holds of a partition that was moved off it is kept for ten minutes: now they are over.
async fn forget_moved(node: &Rc<NodeParts>) {
    let map = node.map();
    for (id, device) in node.host.devices() {
        for partition in device.store.partitions() {
            let is_member = map.partition(partition).members().any(|member| member == id);
            if !is_member && device.store.has_rows(partition) {
                node.host.forget(id, partition).await.unwrap();
            }
        }
    }
}

fn delete_all(mut node: Node, history: &History, machine: &Machine) {
    let keys = history.allowed_now().into_keys().collect();
    let uploads = history.uploads();
    node.run(move |node| async move {
        verify::delete_everything(Rc::clone(&node), keys, uploads).await;
        forget_moved(&node).await;
    });
    node.shutdown();
    machine.devices.all().iter().for_each(verify::check_free_map);
}

/// A cut as reads meet it: damage is decoded around, queued, and made good without anybody asking.
#[test]
fn what_reads_find_is_repaired() {
    for seed in seeds(2) {
        let _doing = Doing(format!("reads of damaged shards, seed {seed}"));
        let machine = Machine::new("4+2", Limits::ROOMY, seed);
        let history = Rc::new(History::default());
        let mut node = filled(&machine, &history, seed);
        let (devices, noted) = (machine.devices.all().to_vec(), Rc::clone(&history));
        node.run(move |node| async move {
            let random = Random::new(seed);
            let (flipped, removed) = damage(&devices, &node, &random).await;
            assert!(flipped + removed > 10, "{flipped} flipped, {removed} removed");
            // Data shards are met by reads, parity ones are not.
            for key in noted.allowed_now().into_keys() {
                verify::read(&node, &key, None).await;
            }
            repaired(&node).await;
            assert!(node.cluster.metrics().shards_rebuilt.get() > 0);
            scrubbed(&node).await;
            all_whole(&node, &noted).await;
        });
        delete_all(node, &history, &machine);
    }
}

/// Cold data that nobody reads: one pass makes everything whole, while clients work and delete.
#[test]
fn one_scrub_pass_makes_cold_data_whole() {
    let mut found = 0;
    for seed in seeds(2) {
        let _doing = Doing(format!("scrub, seed {seed}"));
        let machine = Machine::new("4+2", Limits::TIGHT, seed);
        let history = Rc::new(History::default());
        let mut node = filled(&machine, &history, seed);
        let (devices, noted) = (machine.devices.all().to_vec(), Rc::clone(&history));
        let damaged = node.run(move |node| async move {
            let random = Random::new(seed);
            let (flipped, removed) = damage(&devices, &node, &random).await;
            let pass = node.scrub.ask();
            let errors = clients::run(Rc::clone(&node), Rc::clone(&noted), MIX, seed + 7).await;
            assert!(errors.is_empty(), "{errors:?}");
            node.wait_for("the scrub", || node.scrub.finished() >= pass).await;
            all_whole(&node, &noted).await;
            (flipped + removed, node.cluster.metrics().scrub_damage.get())
        });
        assert!(damaged.0 > 0, "nothing was damaged");
        found += damaged.1;
        let metastore = node.shutdown();
        let machine = machine.with(machine.devices.all().to_vec(), metastore, !seed);
        delete_all(machine.start(), &history, &machine);
    }
    assert!(found > 0, "clients replaced all that was damaged before the scrub came to it");
}

/// More is damaged than the profile bears: that is said, and nothing is made up.
#[test]
fn what_cannot_be_repaired_is_reported_and_left() {
    let machine = Machine::new("4+2", Limits::ROOMY, 5);
    let mut node = machine.start();
    let devices = machine.devices.all().to_vec();
    node.run(move |node| async move {
        node.objects.create_bucket(BUCKET).await.unwrap();
        let random = Random::new(5);
        let content = Content::new(&random, LARGE_BYTES);
        clients::put(&node, "doomed", &content).await.unwrap();
        clients::put(&node, "whole", &content).await.unwrap();
        let mut blobs = BTreeSet::new();
        for (index, row) in shards(&node).await {
            blobs.insert(row.blob);
            if Some(&row.blob) == blobs.first() && row.shard < ShardIndex(3) {
                devices[index].flip_bit(row.extents[0].extent.start.offset_bytes(), 0);
            }
        }
        scrubbed(&node).await;
        assert!(node.cluster.metrics().shards_lost.get() > 0);
        assert_eq!(node.cluster.metrics().shards_rebuilt.get(), 0);
        node.objects.delete_object(BUCKET, "doomed", None, Conditions::default()).await.unwrap();
        let whole = verify::read(&node, "whole", None).await.unwrap();
        assert!(whole.0 == content.bytes);
    });
}

/// A delete that comes while a shard is being made anew wins: what is committed after it is refused.
#[test]
fn a_free_wins_over_a_repair_under_way() {
    let machine = Machine::new("4+2", Limits::ROOMY, 6);
    let mut node = machine.start();
    node.run(move |node| async move {
        node.objects.create_bucket(BUCKET).await.unwrap();
        let content = Content::new(&Random::new(6), LARGE_BYTES);
        clients::put(&node, "key", &content).await.unwrap();
        let (_, row) = shards(&node).await.swap_remove(0);
        let group = node.map().placement_groups[&row.pg].clone();
        let device = group.members[usize::from(row.shard.0)];
        let again = ReserveShard {
            pg: row.pg,
            epoch: group.epoch,
            blob: row.blob,
            shard: row.shard,
            len_bytes: row.len_bytes,
        };
        let checksums: Vec<u32> = row.extents.iter().flat_map(|piece| piece.checksums.clone()).collect();
        let reserved = node.cluster.reserve_shard(device, again).await.unwrap();
        node.cluster.free_shard(device, row.pg, group.epoch, row.blob, row.shard).await.unwrap();
        let committed = node.cluster.commit_shard(reserved, row.owner_partition, checksums.clone()).await;
        assert_eq!(committed, Err(PeerError::NotFound));
        // Without the free it is taken.
        let reserved = node.cluster.reserve_shard(device, again).await.unwrap();
        assert_eq!(node.cluster.commit_shard(reserved, row.owner_partition, checksums).await, Ok(()));
    });
}

async fn short_blobs(node: &Rc<NodeParts>) -> usize {
    let mut short = 0;
    for partition in node.host.primaries() {
        match partition.execute(&Command::DegradedNext { after: None, limit: 1000 }).await {
            Ok(Reply::Blobs { blobs, .. }) => short += blobs.len(),
            other => panic!("{other:?}"),
        }
    }
    short
}

/// Stores an object whose blob lacks the last shard, as a writer does that finds no whole group.
async fn put_short(node: &Rc<NodeParts>, key: &str, content: &Content) {
    let bucket = node.cluster.bucket(BUCKET).unwrap().id;
    let owner = partition_of(bucket, key.as_bytes(), node.map().partition_count());
    let blob = write_blob(&node.cluster, Tier::Hot, owner, &mut content.body()).await.unwrap();
    let (last, group) = (ShardIndex(5), node.map().placement_groups[&blob.pg].clone());
    node.cluster.free_shard(group.members[5], blob.pg, group.epoch, blob.blob, last).await.unwrap();
    let blob = BlobRef { missing_shards: 1 << last.0, ..blob };
    let put = Put {
        bucket,
        key: key.to_owned(),
        etag: content.etag.clone(),
        attributes: StoredAttributes::default(),
        tags: Vec::new(),
        checksums: Vec::default(),
        content: Stored::Blobs(vec![blob]),
        conditions: StoredConditions::default(),
    };
    node.cluster.execute(owner, Command::Put(put)).await.unwrap();
}

/// What was committed short is completed in the background, and its manifest says so; also after a restart.
#[test]
fn short_blobs_are_completed() {
    for restart in [false, true] {
        let machine = Machine::new("4+2", Limits::ROOMY, 8);
        let mut node = machine.start();
        let content = Rc::new(Content::new(&Random::new(8), LARGE_BYTES));
        let stored = Rc::clone(&content);
        node.run(move |node| async move {
            node.objects.create_bucket(BUCKET).await.unwrap();
            put_short(&node, "short", &stored).await;
            assert_eq!(short_blobs(&node).await, 1);
        });
        if restart {
            let metastore = node.shutdown();
            node = machine.with(machine.devices.all().to_vec(), metastore, 9).start();
        }
        node.run(move |node| async move {
            node.timer.sleep(Duration::from_secs(20)).await;
            assert_eq!(short_blobs(&node).await, 0, "the blob is still short");
            assert!(verify::read(&node, "short", None).await.unwrap().0 == content.bytes);
            let all = shards(&node).await;
            assert_eq!(all.len(), 6);
            let whole = BTreeMap::from([("short".to_owned(), vec![Some(content)])]);
            verify::check_keys(&node, &whole).await;
        });
    }
}

/// A device is away, comes back, and has lost its place in its partitions: everything is whole again, and what it had
/// of them does not stay.
#[test]
fn a_device_comes_back() {
    for seed in seeds(2) {
        let _doing = Doing(format!("a device away, seed {seed}"));
        let machine = Machine::new("4+2", Limits::ROOMY, seed);
        let history = Rc::new(History::default());
        let mut node = filled(&machine, &history, seed);
        let away = usize::try_from(seed % 6).unwrap();
        machine.devices.all()[away].inject(Fault::Error, When::on(Operation::Write));
        let noted = Rc::clone(&history);
        node.run(move |node| async move {
            clients::run(Rc::clone(&node), Rc::clone(&noted), MIX, seed + 3).await;
            verify::check_keys(&node, &noted.allowed_now()).await;
            node.wait_until_serving().await;
        });
        let metastore = node.shutdown();
        machine.devices.all()[away].clear_faults();
        let machine = machine.with(machine.devices.all().to_vec(), metastore, !seed);
        let mut node = machine.start();
        let noted = Rc::clone(&history);
        node.run(move |node| async move {
            node.timer.sleep(Duration::from_secs(20)).await;
            repaired(&node).await;
            assert_eq!(short_blobs(&node).await, 0, "blobs are still short");
            all_whole(&node, &noted).await;
        });
        delete_all(node, &history, &machine);
    }
}

/// Flips bits all over a device but in shards: superblocks, journal, index pages and values.
fn damage_metadata(device: &SimDevice, journal_bytes: u64, random: &Random, flips: u64) {
    const BLOCK: u64 = 4096;
    let end = device.size_bytes();
    for _ in 0..flips {
        let at = match random.below(6) {
            0 => random.below(2 * BLOCK),
            1 | 2 => 2 * BLOCK + random.below(journal_bytes),
            // Pages are allocated from the high end, values from the low one.
            3 => 2 * BLOCK + journal_bytes + random.below(1 << 20),
            _ => end - 2 * BLOCK - random.below(1 << 19),
        };
        device.flip_bit(at, u8::try_from(random.below(8)).unwrap());
    }
}

/// Two devices come back with damage in everything but shards: what is whole on them is used, the rest comes from the
/// others, and in the end nothing is missing and no block is lost.
#[test]
fn damaged_devices_are_mended() {
    let mut mended = 0;
    for seed in seeds(4) {
        let _doing = Doing(format!("two damaged devices, seed {seed}"));
        let limits = if seed % 2 == 0 { Limits::ROOMY } else { Limits::TIGHT };
        let machine = Machine::new("4+2", limits, seed);
        let history = Rc::new(History::default());
        let node = filled(&machine, &history, seed);
        let metastore = if seed % 4 < 2 { node.shutdown() } else { node.metastore() };
        let random = Random::new(seed);
        let devices: Vec<SimDevice> = machine.devices.all().iter().map(|device| device.crash(seed)).collect();
        let first = seed % 6;
        for victim in [first, (first + 1 + seed / 6 % 5) % 6] {
            let device = &devices[usize::try_from(victim).unwrap()];
            damage_metadata(device, limits.journal_bytes, &random, 1 + random.below(60));
        }
        // What a node draws at random follows from the seed.
        let machine = machine.with(devices, metastore, !seed);
        let mut node = machine.start();
        let noted = Rc::clone(&history);
        mended += node.run(move |node| async move {
            let mended = node.host.devices().filter(|(_, device)| device.store.losses().mended).count();
            verify::read_keys(&node, &noted.allowed_now()).await;
            node.wait_for("all cores' shards to be checked", || {
                let serving = node.host.devices().filter(|(id, _)| node.map().is_in(*id));
                serving.fold(true, |whole, (_, device)| whole && !device.store.losses().shards_incomplete)
            })
            .await;
            node.timer.sleep(Duration::from_secs(10)).await;
            for (id, device) in node.host.devices().filter(|(id, _)| node.map().is_in(*id)) {
                let member = |partition: &quarry_clustermap::PartitionId| {
                    let config = node.map().partitions.get(usize::from(partition.0)).cloned();
                    config.is_some_and(|config| config.members().any(|member| member == id))
                };
                let losses = device.store.losses();
                assert!(!losses.lost_partitions.iter().any(member), "{id} has not got back {losses:?}");
            }
            let errors = clients::run(Rc::clone(&node), Rc::clone(&noted), MIX, seed + 9).await;
            assert!(errors.is_empty(), "{errors:?}");
            scrubbed(&node).await;
            all_whole(&node, &noted).await;
            mended
        });
        let whole = node.run(|node| async move {
            let map = node.map();
            map.devices.keys().all(|device| map.is_in(*device))
        });
        if whole {
            delete_all(node, &history, &machine);
        }
    }
    assert!(mended > 0, "no device had to be mended");
}

/// The scrub finds a damaged index on a device in use: the device is out, nothing stops, and the next start mends it.
#[test]
fn a_damaged_index_takes_the_device_out_until_it_is_mended() {
    let machine = Machine::new("4+2", Limits::TIGHT, 11);
    let history = Rc::new(History::default());
    let metastore = filled(&machine, &history, 11).shutdown();
    // A new node has nothing cached.
    let machine = machine.with(machine.devices.all().to_vec(), metastore, 10);
    let mut node = machine.start();
    let (device, noted) = (machine.devices.all()[2].clone(), Rc::clone(&history));
    node.run(move |node| async move {
        // Pages are allocated from the high end, below the last two superblocks: damage more until one was hit.
        let blocks: Vec<u64> = (3..device.size_bytes() / 4096).collect();
        for some in blocks.chunks(200) {
            for block in some {
                device.flip_bit(device.size_bytes() - block * 4096 + 1234, 3);
            }
            scrubbed(&node).await;
            node.timer.sleep(Duration::from_secs(1)).await;
            if !node.map().is_in(device_id(2)) {
                break;
            }
        }
        node.wait_for("the device to be out", || !node.map().is_in(device_id(2))).await;
        node.wait_until_serving().await;
        verify::check_keys(&node, &noted.allowed_now()).await;
    });
    // Killed: an orderly stop would write the few pages of this index anew, from the cache.
    let (metastore, devices) =
        (node.metastore(), machine.devices.all().iter().map(|device| device.crash(12)));
    let machine = machine.with(devices.collect(), metastore, 12);
    drop(node);
    let mut node = machine.start();
    let noted = Rc::clone(&history);
    node.run(move |node| async move {
        assert!(node.map().is_in(device_id(2)), "it is not back");
        let (_, device) = node.host.devices().find(|(id, _)| *id == device_id(2)).unwrap();
        assert!(device.store.losses().mended);
        verify::read_keys(&node, &noted.allowed_now()).await;
        scrubbed(&node).await;
        node.timer.sleep(Duration::from_secs(10)).await;
        scrubbed(&node).await;
        all_whole(&node, &noted).await;
    });
    delete_all(node, &history, &machine);
}

/// Blocks that cannot be read are not used again, though their shard is made anew on the same device.
#[test]
fn unreadable_blocks_go_into_quarantine() {
    let machine = Machine::new("4+2", Limits::TIGHT, 9);
    let mut node = machine.start();
    let devices = machine.devices.all().to_vec();
    let (index, bad) = node.run(move |node| async move {
        node.objects.create_bucket(BUCKET).await.unwrap();
        let content = Content::new(&Random::new(9), LARGE_BYTES);
        clients::put(&node, "key", &content).await.unwrap();
        let first = shards(&node).await.into_iter().find(|(_, row)| row.shard == ShardIndex(0));
        let (index, row) = first.unwrap();
        let start = row.extents[0].extent.start.offset_bytes();
        let bad = start..start + 4096;
        devices[index].inject(Fault::Error, When::on(Operation::Read).touching(bad.clone()));
        // A write there takes the device out.
        devices[index].inject(Fault::Error, When::on(Operation::Write).touching(bad.clone()));
        verify::read(&node, "key", None).await.unwrap();
        repaired(&node).await;
        assert_eq!(node.cluster.metrics().shards_rebuilt.get(), 1);
        for n in 0..30 {
            clients::put(&node, &format!("fill{n}"), &content).await.unwrap();
        }
        scrubbed(&node).await;
        for (at, row) in shards(&node).await {
            let overlaps = |start: u64, len: u64| start < bad.end && bad.start < start + len;
            let extents = row.extents.iter().map(|piece| piece.extent);
            assert!(
                at != index || !extents.into_iter().any(|e| overlaps(e.start.offset_bytes(), e.len_bytes()))
            );
        }
        assert!(node.map().is_in(device_id(index)));
        (index, bad)
    });
    let metastore = node.shutdown();
    let machine = machine.with(machine.devices.all().to_vec(), metastore, 10);
    machine.start().run(move |node| async move {
        let (_, device) = node.host.devices().find(|(id, _)| *id == device_id(index)).unwrap();
        let quarantined = device.store.free_map().quarantined();
        let has = |run: &quarry_storage::extent::Extent| {
            run.start.offset_bytes() <= bad.start && bad.end <= run.end().offset_bytes()
        };
        assert!(quarantined.iter().any(has), "{quarantined:?}");
    });
}

/// A stall of seconds is waited out; one that does not end takes the device out, and clients go on.
#[test]
fn a_stalled_device_holds_clients_for_a_while_only() {
    let machine = Machine::new("4+2", Limits::ROOMY, 11);
    let mut node = machine.start();
    let devices = machine.devices.all().to_vec();
    node.run(move |node| async move {
        node.objects.create_bucket(BUCKET).await.unwrap();
        let content = Content::new(&Random::new(11), LARGE_BYTES);
        devices[2].set_stalled(true);
        let short = async {
            node.timer.sleep(Duration::from_secs(5)).await;
            devices[2].set_stalled(false);
        };
        let (stored, ()) = futures::join!(clients::put(&node, "short", &content), short);
        stored.unwrap();
        repaired(&node).await;
        assert!(node.map().is_in(device_id(2)), "a single stall is no failure");

        devices[2].set_stalled(true);
        let begun = node.timer.monotonic();
        let put = async |n: u64| {
            let key = format!("long{n}");
            while clients::put(&node, &key, &content).await.is_err() {
                node.timer.sleep(Duration::from_secs(1)).await;
            }
        };
        futures::future::join_all((0..8).map(put)).await;
        let took = node.timer.monotonic() - begun;
        assert!(took < Duration::from_secs(60), "{took:?}");
        node.wait_for("the device to be out", || !node.map().is_in(device_id(2))).await;
        for key in ["short", "long0", "long7"] {
            assert!(verify::read(&node, key, None).await.unwrap().0 == content.bytes);
        }
        devices[2].set_stalled(false);
    });
}

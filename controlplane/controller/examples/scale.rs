//! How the map and its planner grow with the cluster: the constants of `docs/scaling.md`.
//!
//!     cargo run --release -p quarry-controller --example scale -- NODES DEVICES_PER_NODE [RACKS]
//!
//! Lays out a cluster of that shape at 4+2, stores the map in an embedded metastore in a temporary directory, then plans
//! what happens: nothing, a device lost, a node lost for good, a device added. Times are CPU time of this process.

use std::{collections::BTreeMap, fs, sync::Arc};

use anyhow::{Context, Result, ensure};
use quarry_clustermap::{ClusterId, ClusterMap, DeviceId, NodeId, Tier};
use quarry_controller::StoredMap;
use quarry_metastore::{Embedded, Metastore};
use quarry_planner::{
    DeviceObservation, Inventory, Move, NodeObservation, PlanInput, Policy, REBUILD_AFTER_MS, Reports,
    groups_per_device, plan,
};

const CAPACITY_BYTES: u64 = 16 << 40;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u32>());
    let mut next = |name| arguments.next().context(name);
    let (nodes, devices) = (next("NODES")??, next("DEVICES_PER_NODE")??);
    let racks = next("RACKS").unwrap_or(Ok(nodes.div_ceil(25)))?;
    ensure!(nodes > 0 && devices > 0 && racks > 0, "numbers must not be 0");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(nodes, devices, racks))
}

async fn run(nodes: u32, devices: u32, racks: u32) -> Result<()> {
    let policy = policy()?;
    let mut inventory = inventory(nodes, devices, racks);
    let map = planned("first map", &policy, &inventory, None, 0)?.context("there was no map")?;
    println!("groups {}, partitions {}", map.placement_groups.len(), map.partitions.len());
    stored(&map).await?;
    planned("nothing to do", &policy, &inventory, Some(&map), 1)?;
    let lost = *map.devices.keys().nth(map.devices.len() / 2).context("no device")?;
    entry(&mut inventory, lost)?.present = false;
    let out = planned("a device is out", &policy, &inventory, Some(&map), 1)?.context("no change")?;
    changed(&map, &out);
    planned("its places are taken", &policy, &inventory, Some(&out), REBUILD_AFTER_MS + 2)?;
    entry(&mut inventory, lost)?.present = true;
    let node = map.devices[&lost].node;
    inventory.devices.values_mut().filter(|seen| seen.node == node).for_each(|seen| seen.present = false);
    let out = planned("a node is out", &policy, &inventory, Some(&map), 1)?.context("no change")?;
    changed(&map, &out);
    planned("its places are taken", &policy, &inventory, Some(&out), REBUILD_AFTER_MS + 2)?;
    inventory.devices.values_mut().for_each(|seen| seen.present = true);
    inventory.devices.insert(device(u64::from(nodes) * u64::from(devices)), observed(NodeId(1)));
    let more = planned("a device is added", &policy, &inventory, Some(&map), 1)?.context("no change")?;
    changed(&map, &more);
    Ok(())
}

fn policy() -> Result<Policy> {
    let hot_profile = "4+2".parse()?;
    Ok(Policy {
        cluster: ClusterId([7; 16]),
        hot_profile,
        cold_profile: None,
        partition_count: 4096,
        rebuild_after_ms: REBUILD_AFTER_MS,
        groups_per_device: groups_per_device(hot_profile),
    })
}

fn inventory(nodes: u32, devices: u32, racks: u32) -> Inventory {
    let node = |id: u32| {
        let (address, rack) =
            (format!("10.0.{}.{}:7000", id / 250, id % 250), format!("rack-{}", id % racks));
        (NodeId(id), NodeObservation { address, rack })
    };
    let total = u64::from(nodes) * u64::from(devices);
    let owner = |index: u64| NodeId(1 + u32::try_from(index / u64::from(devices)).expect("a u32"));
    Inventory {
        nodes: (1..=nodes).map(node).collect(),
        devices: (0..total).map(|index| (device(index), observed(owner(index)))).collect(),
    }
}

fn device(index: u64) -> DeviceId {
    // As long as random ids are in JSON.
    DeviceId(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(index + 1) | 1 << 63)
}

fn observed(node: NodeId) -> DeviceObservation {
    DeviceObservation {
        node,
        tier: Tier::Hot,
        capacity_bytes: CAPACITY_BYTES,
        location: "/dev/disk/by-id/nvme-VENDOR_15T36_0123456789ABCDEF".to_owned(),
        present: true,
        replaces: None,
    }
}

fn entry(inventory: &mut Inventory, device: DeviceId) -> Result<&mut DeviceObservation> {
    inventory.devices.get_mut(&device).context("an unknown device")
}

fn planned(
    what: &str,
    policy: &Policy,
    inventory: &Inventory,
    map: Option<&ClusterMap>,
    now_ms: u64,
) -> Result<Option<ClusterMap>> {
    let began = cpu_ms()?;
    let reports = Reports::default();
    let plan = plan(&PlanInput { policy, inventory, map, reports: &reports, now_ms })?;
    let joins = plan.moves.iter().filter(|step| matches!(step, Move::Join { .. })).count();
    let rebuilds = plan.moves.len() - joins;
    println!("plan, {what}: {} ms; {joins} joins, {rebuilds} rebuilds", cpu_ms()? - began);
    Ok(plan.map)
}

/// How much of the map another map replaces.
fn changed(old: &ClusterMap, new: &ClusterMap) {
    let groups =
        new.placement_groups.iter().filter(|(id, group)| old.placement_groups.get(id) != Some(group));
    let partitions = new.partitions.iter().zip(&old.partitions).filter(|(new, old)| new != old);
    println!("  changes {} groups, {} partitions", groups.count(), partitions.count());
}

async fn stored(map: &ClusterMap) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = Embedded::open(directory.path())?;
    let began = cpu_ms()?;
    StoredMap::overwrite(&store, map).await?;
    let written = cpu_ms()?;
    let entries = store.range("").await?.entries;
    let bytes: usize = entries.iter().map(|entry| entry.key.len() + entry.value.len()).sum();
    let mut kinds: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for entry in &entries {
        let kind = kinds.entry(entry.key.get(..6).unwrap_or(&entry.key)).or_default();
        *kind = (kind.0 + 1, kind.1 + entry.value.len());
    }
    println!("stored: {} keys, {bytes} bytes, {kinds:?}, {} ms", entries.len(), written - began);
    let (began, before) = (cpu_ms()?, resident_bytes()?);
    let read = StoredMap::read(&store, None).await?.context("no map was stored")?;
    println!(
        "read: {} ms, {} KiB resident more, equal: {}",
        cpu_ms()? - began,
        resident_bytes()?.saturating_sub(before) >> 10,
        *read.map == *map
    );
    let shared = Arc::clone(&read.map);
    let began = cpu_ms()?;
    shared.validate()?;
    println!("validated: {} ms", cpu_ms()? - began);
    Ok(())
}

fn cpu_ms() -> Result<u64> {
    let stat = fs::read_to_string("/proc/self/schedstat")?;
    let on_cpu_ns: u64 = stat.split(' ').next().context("an empty schedstat")?.parse()?;
    Ok(on_cpu_ns / 1_000_000)
}

fn resident_bytes() -> Result<u64> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split(' ').nth(1).context("a short statm")?.parse()?;
    Ok(pages * 4096)
}

//! How the map and its planner grow with the cluster: the constants of `docs/scaling.md`.
//!
//!     cargo run --release -p quarry-controller --example scale -- --nodes 1000 --devices 12
//!
//! Lays out a cluster of that shape at 4+2, plans what happens (nothing, a device lost, a node lost for good, a device
//! added) and stores the maps, in a directory that is removed. With `--etcd URL --etcd-pid PID` it keeps them in an etcd
//! instead, with so many `--members` beside it that hold a lease and read each map as nodes do, each with a connection of
//! its own. Times are CPU time: of this process, and of etcd.

use std::{fs, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use quarry_clustermap::{ClusterId, ClusterMap, DeviceId, NodeId, Tier};
use quarry_controller::StoredMap;
use quarry_metastore::{Embedded, Etcd, EtcdOptions, Metastore, MetastoreError, Transaction};
use quarry_planner::{
    DeviceObservation, Inventory, Move, NodeObservation, PlanInput, Policy, REBUILD_AFTER_MS, Reports,
    groups_per_device, plan,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::sleep,
};

const CAPACITY_BYTES: u64 = 16 << 40;
/// As nodes do by default: a lease of 10 s, kept alive in a quarter of it.
const LEASE: Duration = Duration::from_secs(10);
const LEASE_KEPT_EVERY: Duration = Duration::from_millis(2500);

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    nodes: u32,
    /// Of each node
    #[arg(long)]
    devices: u32,
    /// Default: one for 25 nodes
    #[arg(long)]
    racks: Option<u32>,
    #[arg(long, requires = "etcd_pid")]
    etcd: Option<String>,
    /// Whose CPU time is told
    #[arg(long)]
    etcd_pid: Option<u32>,
    #[arg(long, default_value_t = 100)]
    members: u32,
    /// How long the members only keep their leases, for the cost of that
    #[arg(long, default_value_t = 60)]
    idle_s: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(
        arguments.nodes > 0 && arguments.devices > 0 && arguments.racks != Some(0),
        "0 is no number here"
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let maps = plans(&arguments)?;
        match (&arguments.etcd, arguments.etcd_pid) {
            (Some(url), Some(pid)) => with_members(&arguments, url, pid, &maps).await,
            _ => stored(&Embedded::open(tempfile::tempdir()?.path())?, &maps).await,
        }
    })
}

/// A map, and the ones that follow from it, each by itself.
struct Maps {
    first: ClusterMap,
    next: Vec<(&'static str, ClusterMap)>,
}

type IsLost<'a> = &'a dyn Fn(DeviceId, &DeviceObservation) -> bool;

fn plans(arguments: &Arguments) -> Result<Maps> {
    let Arguments { nodes, devices, .. } = *arguments;
    let policy = policy()?;
    let mut inventory = inventory(nodes, devices, arguments.racks.unwrap_or(nodes.div_ceil(25)));
    let plan = |what, inventory: &Inventory, map: Option<&ClusterMap>, now_ms| {
        planned(what, &policy, inventory, map, now_ms)
    };
    let first = plan("first map", &inventory, None, 0)?.context("there was no map")?;
    println!("groups {}, partitions {}", first.placement_groups.len(), first.partitions.len());
    plan("nothing to do", &inventory, Some(&first), 1)?;
    let mut next = Vec::new();
    let lost = *first.devices.keys().nth(first.devices.len() / 2).context("no device")?;
    let node = first.devices[&lost].node;
    let device_of_it = |_: DeviceId, seen: &DeviceObservation| seen.node == node;
    let itself = |device: DeviceId, _: &DeviceObservation| device == lost;
    let losses: [(&str, IsLost<'_>); 2] = [("a device is out", &itself), ("a node is out", &device_of_it)];
    for (what, is_lost) in losses {
        let mut inventory = inventory.clone();
        inventory.devices.iter_mut().for_each(|(device, seen)| seen.present = !is_lost(*device, seen));
        let out = plan(what, &inventory, Some(&first), 1)?.context("no change")?;
        plan("its places are taken", &inventory, Some(&out), REBUILD_AFTER_MS + 2)?;
        next.push((what, out));
    }
    inventory.devices.insert(device(u64::from(nodes) * u64::from(devices)), observed(NodeId(1)));
    let more = plan("a device is added", &inventory, Some(&first), 1)?.context("no change")?;
    next.push(("a device is added", more));
    Ok(Maps { first, next })
}

/// What each map writes, and what it takes to read all of it.
async fn stored(store: &impl Metastore, maps: &Maps) -> Result<()> {
    write(store, "first map", &maps.first).await?;
    let began = cpu_ms("self")?;
    let read = StoredMap::read(store, None).await?.context("no map was stored")?;
    println!("read: {} ms", cpu_ms("self")? - began);
    ensure!(*read.map == maps.first, "another map was read than was written");
    // Enough of them that memory which was freed before does not hide what they take.
    const COPIES: u64 = 20;
    let (began, resident) = (cpu_ms("self")?, resident_bytes()?);
    let copies: Vec<ClusterMap> = (0..COPIES).map(|_| maps.first.clone()).collect();
    let more = resident_bytes()?.saturating_sub(resident) >> 10;
    println!("a copy: {} ms, {} KiB", (cpu_ms("self")? - began) / COPIES, more / COPIES);
    drop(copies);
    let began = cpu_ms("self")?;
    read.map.validate()?;
    println!("validated: {} ms", cpu_ms("self")? - began);
    for (what, map) in &maps.next {
        write(store, what, map).await?;
        StoredMap::overwrite(store, &maps.first).await?;
    }
    Ok(())
}

/// Writes a map over the one that is there, and says what of the metastore is new.
async fn write(store: &impl Metastore, what: &str, map: &ClusterMap) -> Result<()> {
    let before = store.keys("").await?;
    let began = cpu_ms("self")?;
    StoredMap::overwrite(store, map).await?;
    let took_ms = cpu_ms("self")? - began;
    let entries = store.range("").await?.entries;
    let (all, new): (usize, Vec<usize>) = (
        entries.iter().map(|entry| entry.key.len() + entry.value.len()).sum(),
        entries
            .iter()
            .filter(|entry| entry.key == "map" || before.binary_search(&entry.key).is_err())
            .map(|entry| entry.key.len() + entry.value.len())
            .collect(),
    );
    println!(
        "stored, {what}: {} of {} keys are new, {} of {all} bytes; {took_ms} ms",
        new.len(),
        entries.len(),
        new.iter().sum::<usize>(),
    );
    Ok(())
}

/// The same in an etcd, while members follow.
async fn with_members(arguments: &Arguments, url: &str, pid: u32, maps: &Maps) -> Result<()> {
    let pid = pid.to_string();
    let connect = || connect(url);
    let store = connect().await?;
    StoredMap::overwrite(&store, &maps.first).await?;
    let (told, version) = watch::channel(maps.first.version.0);
    let mut members = JoinSet::new();
    let (ready, mut readies) = mpsc::channel(1);
    let began = cpu_ms(&pid)?;
    for _ in 0..arguments.members {
        let (store, ready, version) = (connect().await?, ready.clone(), version.clone());
        members.spawn(async move {
            if let Err(error) = member(store, ready.clone(), version).await {
                let _ = ready.send(Err(error)).await;
            }
        });
    }
    for _ in 0..arguments.members {
        readies.recv().await.context("no member is left")??;
    }
    println!("all {} members read the whole map: etcd {} ms", arguments.members, cpu_ms(&pid)? - began);
    let began = cpu_ms(&pid)?;
    sleep(Duration::from_secs(arguments.idle_s)).await;
    println!("{} s with leases only: etcd {} ms", arguments.idle_s, cpu_ms(&pid)? - began);
    for (what, map) in &maps.next {
        for (what, map) in [(*what, map), ("and back", &maps.first)] {
            let began = cpu_ms(&pid)?;
            StoredMap::overwrite(&store, map).await?;
            let written = cpu_ms(&pid)?;
            told.send_modify(|version| *version += 1);
            for _ in 0..arguments.members {
                readies.recv().await.context("no member is left")??;
            }
            let read = cpu_ms(&pid)?;
            println!(
                "{what}: etcd {} ms to write, {} ms until all members read it",
                written - began,
                read - written
            );
        }
    }
    members.abort_all();
    while members.join_next().await.is_some() {}
    Ok(())
}

async fn connect(url: &str) -> Result<Etcd> {
    let options = EtcdOptions {
        endpoints: vec![url.to_owned()],
        prefix: "quarry-scale/".to_owned(),
        deadline: Duration::from_secs(30),
        tls: None,
        user: None,
    };
    Ok(Etcd::connect(&options).await?)
}

/// Keeps a lease, and reads the newest map whenever the `version` changes.
async fn member(
    store: Etcd,
    ready: mpsc::Sender<Result<()>>,
    mut version: watch::Receiver<u64>,
) -> Result<()> {
    let mut lease = store.grant_lease(LEASE).await?;
    let key = format!("alive/{lease:?}");
    store.transact(&Transaction::default().put_leased(&key, vec![b'a'; 100], lease)).await?;
    let mut known: Option<Arc<StoredMap>> = StoredMap::read(&store, None).await?;
    ready.send(Ok(())).await?;
    loop {
        tokio::select! {
            changed = version.changed() => {
                changed?;
                known = StoredMap::read(&store, known.as_ref()).await?;
                ready.send(Ok(())).await?;
            }
            () = sleep(LEASE_KEPT_EVERY) => {
                // All members share this thread: while they read a large map, a lease may run out.
                match store.keep_alive(lease).await {
                    Err(MetastoreError::LeaseLost) => lease = store.grant_lease(LEASE).await?,
                    kept => kept?,
                }
                store.get(&key).await?;
            }
        }
    }
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

fn planned(
    what: &str,
    policy: &Policy,
    inventory: &Inventory,
    map: Option<&ClusterMap>,
    now_ms: u64,
) -> Result<Option<ClusterMap>> {
    let began = cpu_ms("self")?;
    let reports = Reports::default();
    let plan = plan(&PlanInput { policy, inventory, map, reports: &reports, now_ms })?;
    let joins = plan.moves.iter().filter(|step| matches!(step, Move::Join { .. })).count();
    let rebuilds = plan.moves.len() - joins;
    println!("plan, {what}: {} ms; {joins} joins, {rebuilds} rebuilds", cpu_ms("self")? - began);
    Ok(plan.map)
}

/// CPU time of all threads of a process.
fn cpu_ms(pid: &str) -> Result<u64> {
    let mut on_cpu_ns = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(thread?.path().join("schedstat"))?;
        on_cpu_ns += stat.split(' ').next().context("an empty schedstat")?.parse::<u64>()?;
    }
    Ok(on_cpu_ns / 1_000_000)
}

fn resident_bytes() -> Result<u64> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split(' ').nth(1).context("a short statm")?.parse()?;
    Ok(pages * 4096)
}

//! Several nodes on one lossy network: clients put, get, list and delete the same keys through any of them, while nodes are
//! killed, stopped and started, links are cut, one way too, and nodes are cut off from all others and from the control plane
//! with clients still there.
//!
//! What is checked: reads return bytes that somebody put there, whole; an order of the operations of each key explains
//! everything that clients were told, listings too; after the faults every node reads and lists the same; and when all is
//! deleted and every node was started once more, no device has a shard left.

use std::{cell::Cell, rc::Rc, time::Duration};

use futures::{StreamExt, future::join_all};
use quarry_clustermap::{DeviceId, NodeId, PgState};
use quarry_linearizable::Action;
use quarry_object::{
    api::{ApiError, Attributes, Conditions, ListEntry, ListRequest, ObjectStore, Selector},
    cluster::Cluster,
    peer::DeviceFill,
};
use quarry_planner::Intent;

use super::{
    Doing, Random,
    executor::Executor,
    history::Content,
    observed::{Found, Observed},
    seeds,
    world::{INLINE_BELOW_BYTES, RunningNode, World},
};
use crate::platform::Timer;

const NODES: u32 = 3;
const DEVICE_BYTES: u64 = 48 << 20;
pub(super) const BUCKET: &str = "lake";
const CLIENTS: u64 = 4;
const KEYS: u64 = 6;
/// Most operations of one client in one run.
const OPERATIONS_PER_CLIENT: u64 = 80;
const LARGE_BYTES: u64 = 700_000;
const LOSS_PERMILLE: u64 = 20;
/// Longest cut: longer than any caller is patient.
const CUT_MS_MAX: u64 = 12_000;

fn keys() -> Vec<String> {
    (0..KEYS).map(|number| format!("key-{number}")).collect()
}

async fn read(node: &RunningNode, key: &str) -> Option<Result<Found, ApiError>> {
    let (objects, key) = (Rc::clone(&node.objects), key.to_owned());
    let reading = async move {
        let mut content =
            match objects.get_object(BUCKET, &key, Selector::default(), Conditions::default()).await {
                Ok(content) => content,
                Err(ApiError::NoSuchKey) => return Ok(None),
                Err(error) => return Err(error),
            };
        let mut bytes = Vec::new();
        while let Some(piece) = content.stream.next().await {
            match piece {
                Ok(piece) => bytes.extend_from_slice(&piece),
                Err(error) => return Err(ApiError::Unavailable { reason: error.to_string() }),
            }
        }
        assert_eq!(bytes.len() as u64, content.range.1, "{key} is cut short");
        Ok(Some((bytes.into(), content.info.etag)))
    };
    node.run(reading).await
}

struct Client {
    world: Rc<World>,
    observed: Rc<Observed>,
    random: Random,
    /// The faults are over.
    over: Rc<Cell<bool>>,
}

impl Client {
    async fn run(self) {
        for _ in 0..OPERATIONS_PER_CLIENT {
            if self.over.get() {
                return;
            }
            let key = format!("key-{}", self.random.below(KEYS));
            let running = self.world.running();
            if running.is_empty() {
                self.world.timer.sleep(Duration::from_millis(100)).await;
                continue;
            }
            let at = usize::try_from(self.random.below(running.len() as u64)).expect("few nodes");
            let node = Rc::clone(&running[at].1);
            drop(running);
            match self.random.below(10) {
                0 | 1 => self.put(&node, &key, self.random.below(INLINE_BELOW_BYTES / 2), false).await,
                2 => self.put(&node, &key, self.random.below(INLINE_BELOW_BYTES / 2), true).await,
                3 => self.put(&node, &key, INLINE_BELOW_BYTES + self.random.below(LARGE_BYTES), false).await,
                4 => {
                    let call = self.observed.call(&key, Action::Delete);
                    self.observed.changed(&call, delete(&node, &key).await);
                }
                5 => {
                    let calls = self.observed.call_list(&keys());
                    self.observed.listed(&calls, list(&node).await);
                }
                _ => {
                    let call = self.observed.call(&key, Action::Get);
                    self.observed.read(&call, read(&node, &key).await);
                }
            }
            self.world.timer.sleep(Duration::from_millis(self.random.below(300))).await;
        }
    }

    /// `new`: only if there is none.
    async fn put(&self, node: &Rc<RunningNode>, key: &str, len: u64, new: bool) {
        let content = self.observed.new_content(&self.random, len);
        let value = content.bytes.len() as u64;
        let call = self.observed.call(key, if new { Action::PutNew(value) } else { Action::Put(value) });
        let (objects, name, body) = (Rc::clone(&node.objects), key.to_owned(), content.body());
        let putting = async move {
            let if_none_match = new.then(|| vec!["*".to_owned()]);
            let conditions = Conditions { if_none_match, ..Conditions::default() };
            objects.put_object(BUCKET, &name, Attributes::default(), conditions, body).await.map(drop)
        };
        self.observed.changed(&call, node.run(putting).await);
    }
}

async fn delete(node: &RunningNode, key: &str) -> Option<Result<(), ApiError>> {
    let (objects, key) = (Rc::clone(&node.objects), key.to_owned());
    node.run(async move { objects.delete_object(BUCKET, &key, None, Conditions::default()).await.map(drop) })
        .await
}

async fn list(node: &RunningNode) -> Option<Result<Vec<(String, u64)>, ApiError>> {
    let objects = Rc::clone(&node.objects);
    let listing = async move {
        let request = ListRequest { prefix: String::new(), delimiter: None, after: None, max_keys: 1000 };
        let page = objects.list_objects(BUCKET, request).await?;
        Ok(page.entries.into_iter().map(|entry| match entry {
            ListEntry::Object(info) => (info.key, info.size_bytes),
            other => panic!("{other:?} in a listing of objects without a delimiter"),
        }))
    };
    let listed: Option<Result<_, ApiError>> = node.run(listing).await;
    listed.map(|listed| listed.map(Iterator::collect))
}

/// Kills, stops, starts and cuts, for a while; if `drains`, operators drain devices and take that back meanwhile.
async fn faults(world: Rc<World>, random: Random, over: Rc<Cell<bool>>, drains: bool) {
    let any = || NodeId(1 + u32::try_from(random.below(u64::from(world.node_count))).expect("few nodes"));
    let some = |most_ms| Duration::from_millis(random.below(most_ms));
    world.network.loss_permille.set(LOSS_PERMILLE);
    for _ in 0..4 {
        world.timer.sleep(some(1500)).await;
        if drains {
            let device = DeviceId(random.below(u64::from(world.node_count) * 2));
            let drain = random.below(3) > 0;
            world
                .operate(if drain { Intent::DrainDevice(device) } else { Intent::UndrainDevice(device) })
                .await;
        }
        match random.below(8) {
            0 | 1 => {
                let node = any();
                world.kill(node, random.below(2) == 0, random.next());
                world.timer.sleep(some(3000)).await;
                if random.below(2) == 0 {
                    world.expire(node).await;
                    world.timer.sleep(some(3000)).await;
                }
                world.start(node).await;
            }
            2 => {
                world.network.cut(any(), any());
                world.timer.sleep(some(CUT_MS_MAX)).await;
            }
            3 => {
                cut_off(&world, any());
                world.timer.sleep(some(CUT_MS_MAX)).await;
            }
            4 | 5 => {
                let alone = any();
                cut_off(&world, alone);
                lose_sight(&world, alone, some(2000), some(5000)).await;
            }
            _ => {
                let stopped = any();
                world.pause(stopped, true);
                lose_sight(&world, stopped, some(2000), some(4000)).await;
            }
        }
        world.network.heal();
    }
    world.network.loss_permille.set(0);
    over.set(true);
}

fn cut_off(world: &World, alone: NodeId) {
    for other in (1..=world.node_count).map(NodeId).filter(|other| *other != alone) {
        world.network.cut(alone, other);
        world.network.cut(other, alone);
    }
}

/// The control plane and a node hear nothing of each other: after a while it is taken for gone, and later it is back. A
/// node that is stopped goes on before it hears of that.
async fn lose_sight(world: &World, node: NodeId, before: Duration, after: Duration) {
    world.set_deaf(node, true);
    world.timer.sleep(before).await;
    world.suspect(node).await;
    world.timer.sleep(after).await;
    world.pause(node, false);
    world.timer.sleep(Duration::from_millis(50)).await;
    world.network.heal();
    world.set_deaf(node, false);
    world.returns(node).await;
}

/// Every node reads and lists the same.
async fn check(world: &World, observed: &Observed) {
    world.wait_until_serving().await;
    let mut first: Option<Vec<(String, u64)>> = None;
    for (id, node) in world.running() {
        let mut present = Vec::new();
        for key in keys() {
            let call = observed.call(&key, Action::Get);
            let found = read(&node, &key).await;
            let result = found.clone().expect("nobody kills now");
            let value = result.unwrap_or_else(|error| panic!("{id} cannot read {key}: {error}"));
            observed.read(&call, found);
            present.extend(value.map(|(bytes, _)| (key, bytes.len() as u64)));
        }
        let listed = list(&node).await.expect("nobody kills now").unwrap();
        assert_eq!(listed, present, "{id}: the listing differs from the reads");
        assert!(first.get_or_insert(present.clone()) == &present, "{id} reads something else");
    }
}

async fn restart_all(world: &World, random: &Random) {
    for (node, _) in world.running() {
        world.kill(node, false, random.next());
        world.start(node).await;
    }
    world.wait_until_serving().await;
}

async fn delete_everything(world: &World, random: &Random) {
    for key in keys() {
        let (_, node) = world.running().swap_remove(0);
        delete(&node, &key).await.expect("nobody kills now").unwrap();
    }
    // What a lost message left is decided when its writer has started again.
    restart_all(world, random).await;
    let mut left = Vec::new();
    for _ in 0..60 {
        world.timer.sleep(Duration::from_secs(1)).await;
        left = world.shards().await;
        if left.is_empty() {
            return;
        }
    }
    panic!("shards are left of deleted objects: {left:?}");
}

/// All nodes, and the bucket.
pub(super) async fn start(world: &World, nodes: u32) {
    for node in (1..=nodes).map(NodeId) {
        world.start(node).await;
    }
    world.wait_until_serving().await;
    let (_, node) = world.running().swap_remove(0);
    let objects = Rc::clone(&node.objects);
    node.run(async move { objects.create_bucket(BUCKET).await }).await.unwrap().unwrap();
    world.timer.sleep(Duration::from_secs(1)).await;
}

/// All devices but one are undrained; that one becomes empty.
async fn empty_one(world: &World) {
    let last = u64::from(world.node_count) * 2 - 1;
    for device in (0..last).map(DeviceId) {
        world.operate(Intent::UndrainDevice(device)).await;
    }
    world.operate(Intent::DrainDevice(DeviceId(last))).await;
    let mut uses = 0;
    for _ in 0..240 {
        world.timer.sleep(Duration::from_secs(1)).await;
        let map = world.running()[0].1.host.map();
        uses = map.uses_of(DeviceId(last));
        if uses == 0 && map.placement_groups.values().all(|group| group.state != PgState::Moving) {
            return;
        }
    }
    panic!("the drained device still has {uses} places");
}

/// What a run is like.
#[derive(Clone, Copy)]
struct Kind {
    nodes: u32,
    /// Primaries serve under leases only.
    leased: bool,
    /// Devices are drained and undrained meanwhile, and one at the end.
    drains: bool,
}

const CRASHES: Kind = Kind { nodes: NODES, leased: true, drains: false };

/// What a run showed.
type Outcome = Result<(u64, u64), String>;

/// One run; says how many changes were acknowledged, of how many.
///
/// # Errors
/// No order explains what clients saw.
fn live(seed: u64, kind: Kind) -> Outcome {
    let _doing = Doing(format!("seed {seed}"));
    let mut executor = Executor::new();
    let world = World::new(kind.nodes, |_| DEVICE_BYTES, (executor.timer(), executor.spawn()), seed);
    if !kind.leased {
        world.leases.set(None);
    }
    let (started, noted) = (Rc::clone(&world), Rc::new(Observed::default()));
    let observed = Rc::clone(&noted);
    executor.run(async move {
        start(&started, started.node_count).await;
        let random = Random::new(seed);
        let over = Rc::new(Cell::new(false));
        let injecting =
            faults(Rc::clone(&started), Random::new(random.next()), Rc::clone(&over), kind.drains);
        let clients = (0..CLIENTS).map(|_| {
            let (world, observed, over) = (Rc::clone(&started), Rc::clone(&observed), Rc::clone(&over));
            Client { world, observed, random: Random::new(random.next()), over }.run()
        });
        futures::join!(injecting, join_all(clients));
        check(&started, &observed).await;
        if kind.drains {
            empty_one(&started).await;
            check(&started, &observed).await;
        }
        if kind.leased {
            delete_everything(&started, &random).await;
        }
        for (node, _) in started.running() {
            started.kill(node, false, 0);
        }
    });
    assert!(world.network.carried.get() > 100, "the nodes hardly talked");
    noted.check()?;
    Ok((noted.acknowledged.get(), noted.submitted.get()))
}

#[test]
fn nodes_that_crash_and_links_that_are_cut_lose_nothing_and_show_nothing_old() {
    let (mut acknowledged, mut submitted) = (0, 0);
    for seed in seeds(4) {
        let (of_seed, all) = live(seed, CRASHES).unwrap_or_else(|problem| panic!("seed {seed}: {problem}"));
        (acknowledged, submitted) = (acknowledged + of_seed, submitted + all);
    }
    assert!(acknowledged > submitted / 4, "{acknowledged} of {submitted} changes were acknowledged");
    assert!(acknowledged < submitted, "no fault was felt");
}

/// Positions and replicas move between devices while nodes crash: nothing is lost, and no shard is left where it was.
#[test]
fn devices_that_are_drained_while_nodes_crash_become_empty_and_lose_nothing() {
    for seed in seeds(3) {
        let kind = Kind { nodes: 4, drains: true, ..CRASHES };
        live(seed, kind).unwrap_or_else(|problem| panic!("seed {seed}: {problem}"));
    }
}

/// Primaries that ask for no leases show old versions: that is what the clients above would see.
#[test]
fn without_leases_a_seed_shows_an_old_version() {
    const STALE_SEED: u64 = 6;
    let problem = live(STALE_SEED, Kind { leased: false, ..CRASHES }).expect_err("nobody saw anything old");
    assert!(problem.contains("not linearizable"), "{problem}");
    live(STALE_SEED, CRASHES).expect("an order explains what is seen under leases");
}

/// Every node knows how full the devices of all are, and prefers the emptier ones for new blobs.
#[test]
fn nodes_know_how_full_the_devices_of_others_are() {
    // With 4+2 on six devices each blob is on all: the last device is twice as full as the others.
    let size = |device: DeviceId| if device.0 == 5 { 12 << 20 } else { 24 << 20 };
    let mut executor = Executor::new();
    let world = World::new(NODES, size, (executor.timer(), executor.spawn()), 1);
    let started = Rc::clone(&world);
    executor.run(async move {
        start(&started, started.node_count).await;
        let random = Random::new(1);
        let (_, node) = started.running().swap_remove(0);
        for number in 0..12 {
            let (objects, name) = (Rc::clone(&node.objects), format!("key-{number}"));
            let body = Content::new(&random, 1 << 20).body();
            let putting = async move {
                objects.put_object(BUCKET, &name, Attributes::default(), Conditions::default(), body).await
            };
            node.run(putting).await.expect("nobody kills").unwrap();
        }
        // Each of the others has its turn.
        started.timer.sleep(Duration::from_secs(5)).await;
        let told: Vec<_> = started.running().iter().flat_map(|(_, node)| node.host.fill()).collect();
        assert_eq!(told.len(), 6);
        for (asked, node) in started.running() {
            for DeviceFill { device, permille } in &told {
                let known = node.cluster.fill_permille(*device);
                assert!(
                    *permille > 50 && known.abs_diff(*permille) <= 10,
                    "{asked}, {device}: {known} for {permille}"
                );
            }
            let cost = |device| node.cluster.write_cost(DeviceId(device));
            assert!((0..5).all(|other| cost(other) < cost(5)), "{asked} does not prefer the emptier devices");
        }
    });
}

/// A primary refuses what a replica on another node could not take: none is lost for want of room, and deletes work.
#[test]
fn full_devices_of_other_nodes_refuse_writes_and_take_deletes() {
    // The last one is full while all others have room.
    let size = |device: DeviceId| if device.0 == 5 { 8 << 20 } else { 12 << 20 };
    let mut executor = Executor::new();
    let world = World::new(NODES, size, (executor.timer(), executor.spawn()), 1);
    let started = Rc::clone(&world);
    executor.run(async move {
        start(&started, started.node_count).await;
        let random = Random::new(1);
        let (_, node) = started.running().swap_remove(0);
        let mut keys = Vec::new();
        // Large ones until no group takes them, then small ones until no partition does.
        for len in [600_000, 90_000, INLINE_BELOW_BYTES - 1] {
            let mut refused = 0;
            while refused < 8 {
                let key = format!("key-{}", keys.len());
                let content = Content::new(&random, usize::try_from(len).expect("small"));
                let (objects, name, body) = (Rc::clone(&node.objects), key.clone(), content.body());
                let putting = async move {
                    objects
                        .put_object(BUCKET, &name, Attributes::default(), Conditions::default(), body)
                        .await
                };
                match node.run(putting).await.expect("nobody kills") {
                    Ok(_) => refused = 0,
                    Err(ApiError::OutOfSpace) => refused += 1,
                    Err(error) => panic!("{key} of {len} bytes: {error}"),
                }
                keys.push(key);
                assert!(keys.len() < 30_000, "the devices do not become full");
            }
        }
        let map = node.host.map();
        assert!(map.devices.keys().all(|device| map.is_in(*device)), "a device is out");
        for key in &keys {
            delete(&node, key).await.expect("nobody kills").unwrap();
        }
        for _ in 0..60 {
            started.timer.sleep(Duration::from_secs(1)).await;
            if started.shards().await.is_empty() {
                return;
            }
        }
        panic!("shards are left");
    });
}

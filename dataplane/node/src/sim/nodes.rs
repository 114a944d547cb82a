//! Several nodes on one lossy network: clients put, get, list and delete through any of them, while nodes are killed and
//! started and links are cut, one way too.
//!
//! What is checked while faults go on: a read returns bytes that somebody put under that key, whole, or an error. It may
//! be an older version than the newest acknowledged one: until a primary serves only under leases of its replicas, one
//! that was replaced and has not heard of it may answer. What is checked after the faults: every key holds what
//! was acknowledged last, or something that was answered with an error after that; every node reads and lists the same;
//! and when all is deleted and every node was started once more, no device has a shard left.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::Duration,
};

use futures::{StreamExt, future::join_all};
use quarry_clustermap::{DeviceId, NodeId, PgState};
use quarry_object::api::{ApiError, Attributes, Conditions, ListEntry, ListRequest, ObjectStore, Selector};
use quarry_planner::Intent;

use super::{
    Doing, Random,
    executor::Executor,
    history::{Content, State},
    seeds,
    world::{INLINE_BELOW_BYTES, RunningNode, World},
};
use crate::platform::Timer;

const NODES: u32 = 3;
const DEVICE_BYTES: u64 = 48 << 20;
const BUCKET: &str = "lake";
const CLIENTS: u64 = 3;
const KEYS_PER_CLIENT: u64 = 3;
/// Most operations of one client in one run.
const OPERATIONS_PER_CLIENT: u64 = 60;
const LARGE_BYTES: u64 = 700_000;
const LOSS_PERMILLE: u64 = 20;
/// Longest cut: longer than any caller is patient.
const CUT_MS_MAX: u64 = 12_000;

/// What one key may hold: the last acknowledged state, and all whose outcome is open. An open one stays so: it may take
/// effect at any later time.
#[derive(Default)]
struct KeyHistory {
    acknowledged: State,
    open: Vec<State>,
    /// Everything that was ever put.
    all: Vec<State>,
}

#[derive(Default)]
struct Histories {
    keys: RefCell<BTreeMap<String, KeyHistory>>,
    /// Changes that were acknowledged, and all.
    acknowledged: Cell<u64>,
    submitted: Cell<u64>,
}

type Found = Result<Option<(bytes::Bytes, String)>, ApiError>;

fn same(state: &State, found: Option<&(bytes::Bytes, String)>) -> bool {
    match (state, found) {
        (None, None) => true,
        (Some(content), Some((bytes, etag))) => content.bytes == bytes && content.etag == *etag,
        _ => false,
    }
}

impl Histories {
    fn submit(&self, key: &str, state: State) {
        self.submitted.set(self.submitted.get() + 1);
        let mut keys = self.keys.borrow_mut();
        let history = keys.entry(key.to_owned()).or_default();
        history.all.push(state.clone());
        history.open.push(state);
    }

    fn ended(&self, key: &str, state: State, result: Option<Result<(), ApiError>>) {
        let mut keys = self.keys.borrow_mut();
        let history = keys.get_mut(key).expect("submitted");
        match result {
            Some(Ok(())) => {
                history.open.pop();
                history.acknowledged = state;
                self.acknowledged.set(self.acknowledged.get() + 1);
            }
            // Nobody knows.
            None | Some(Err(ApiError::Internal { .. })) => {}
            Some(Err(ApiError::Unavailable { .. })) => drop(history.open.pop()),
            Some(Err(error)) => panic!("{key}: {error}"),
        }
    }

    /// While faults go on.
    fn check_sound(&self, key: &str, found: Option<&(bytes::Bytes, String)>) {
        let keys = self.keys.borrow();
        let all = keys.get(key).map_or(&[][..], |history| &history.all);
        let shown = found.map(|(bytes, etag)| (bytes.len(), etag));
        assert!(found.is_none() || all.iter().any(|state| same(state, found)), "{key} holds {shown:?}");
    }

    /// After them.
    fn check_exact(&self, key: &str, found: Option<&(bytes::Bytes, String)>) {
        let keys = self.keys.borrow();
        let KeyHistory { acknowledged, open, .. } = &keys[key];
        let allowed = std::iter::once(acknowledged).chain(open);
        let shown = found.map(|(bytes, etag)| (bytes.len(), etag));
        assert!(
            allowed.clone().any(|state| same(state, found)),
            "{key} holds {shown:?}, acknowledged is {acknowledged:?}, open is {open:?}"
        );
    }

    fn keys(&self) -> Vec<String> {
        self.keys.borrow().keys().cloned().collect()
    }
}

async fn read(node: &RunningNode, key: &str) -> Option<Found> {
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
    histories: Rc<Histories>,
    random: Random,
    number: u64,
    /// The faults are over.
    over: Rc<Cell<bool>>,
}

impl Client {
    async fn run(self) {
        for _ in 0..OPERATIONS_PER_CLIENT {
            if self.over.get() {
                return;
            }
            let key = format!("client-{}/key-{}", self.number, self.random.below(KEYS_PER_CLIENT));
            let running = self.world.running();
            if running.is_empty() {
                self.world.timer.sleep(Duration::from_millis(100)).await;
                continue;
            }
            let at = usize::try_from(self.random.below(running.len() as u64)).expect("few nodes");
            let node = Rc::clone(&running[at].1);
            drop(running);
            match self.random.below(8) {
                0 | 1 => self.put(&node, &key, self.random.below(INLINE_BELOW_BYTES)).await,
                2 | 3 => self.put(&node, &key, INLINE_BELOW_BYTES + self.random.below(LARGE_BYTES)).await,
                4 => self.delete(&node, &key).await,
                5 => drop(list(&node).await),
                _ => {
                    if let Some(Ok(found)) = read(&node, &key).await {
                        self.histories.check_sound(&key, found.as_ref());
                    }
                }
            }
            self.world.timer.sleep(Duration::from_millis(self.random.below(400))).await;
        }
    }

    async fn put(&self, node: &Rc<RunningNode>, key: &str, len: u64) {
        let content = Rc::new(Content::new(&self.random, usize::try_from(len).expect("small")));
        self.histories.submit(key, Some(Rc::clone(&content)));
        let (objects, name, body) = (Rc::clone(&node.objects), key.to_owned(), content.body());
        let putting = async move {
            let (attributes, conditions) = (Attributes::default(), Conditions::default());
            objects.put_object(BUCKET, &name, attributes, conditions, body).await.map(drop)
        };
        self.histories.ended(key, Some(content), node.run(putting).await);
    }

    async fn delete(&self, node: &Rc<RunningNode>, key: &str) {
        self.histories.submit(key, None);
        let result = delete(node, key).await;
        self.histories.ended(key, None, result);
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

/// Kills, starts and cuts, for a while; if `drains`, operators drain devices and take that back meanwhile.
async fn faults(world: Rc<World>, random: Random, over: Rc<Cell<bool>>, drains: bool) {
    let any = || NodeId(1 + u32::try_from(random.below(u64::from(world.node_count))).expect("few nodes"));
    world.network.loss_permille.set(LOSS_PERMILLE);
    for _ in 0..4 {
        world.timer.sleep(Duration::from_millis(random.below(1500))).await;
        if drains {
            let device = DeviceId(random.below(u64::from(world.node_count) * 2));
            let drain = random.below(3) > 0;
            world
                .operate(if drain { Intent::DrainDevice(device) } else { Intent::UndrainDevice(device) })
                .await;
        }
        match random.below(4) {
            0 | 1 => {
                let node = any();
                world.kill(node, random.below(2) == 0, random.next());
                world.timer.sleep(Duration::from_millis(random.below(3000))).await;
                if random.below(2) == 0 {
                    world.expire(node).await;
                    world.timer.sleep(Duration::from_millis(random.below(3000))).await;
                }
                world.start(node).await;
            }
            2 => {
                world.network.cut(any(), any());
                world.timer.sleep(Duration::from_millis(random.below(CUT_MS_MAX))).await;
                world.network.heal();
            }
            _ => {
                let alone = any();
                for other in (1..=world.node_count).map(NodeId).filter(|other| *other != alone) {
                    world.network.cut(alone, other);
                    world.network.cut(other, alone);
                }
                world.timer.sleep(Duration::from_millis(random.below(CUT_MS_MAX))).await;
                world.network.heal();
            }
        }
    }
    world.network.loss_permille.set(0);
    over.set(true);
}

async fn check(world: &World, histories: &Histories) {
    world.wait_until_serving().await;
    let mut first: Option<Vec<(String, u64)>> = None;
    for (id, node) in world.running() {
        let mut present = Vec::new();
        for key in histories.keys() {
            let found = read(&node, &key).await.expect("nobody kills now");
            let found = found.unwrap_or_else(|error| panic!("{id} cannot read {key}: {error}"));
            histories.check_exact(&key, found.as_ref());
            present.extend(found.map(|(bytes, _)| (key, bytes.len() as u64)));
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

async fn delete_everything(world: &World, histories: &Histories, random: &Random) {
    for key in histories.keys() {
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
async fn start(world: &World) {
    for node in (1..=world.node_count).map(NodeId) {
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

/// One run; says how many changes were acknowledged, of how many.
fn live(seed: u64, nodes: u32, drains: bool) -> (u64, u64) {
    let _doing = Doing(format!("seed {seed}"));
    let mut executor = Executor::new();
    let world = World::new(nodes, |_| DEVICE_BYTES, (executor.timer(), executor.spawn()), seed);
    let (started, noted) = (Rc::clone(&world), Rc::new(Histories::default()));
    let histories = Rc::clone(&noted);
    executor.run(async move {
        start(&started).await;
        let random = Random::new(seed);
        let over = Rc::new(Cell::new(false));
        let injecting = faults(Rc::clone(&started), Random::new(random.next()), Rc::clone(&over), drains);
        let clients = (0..CLIENTS).map(|number| {
            let (world, histories, over) = (Rc::clone(&started), Rc::clone(&histories), Rc::clone(&over));
            Client { world, histories, random: Random::new(random.next()), number, over }.run()
        });
        futures::join!(injecting, join_all(clients));
        check(&started, &histories).await;
        if drains {
            empty_one(&started).await;
            check(&started, &histories).await;
        }
        delete_everything(&started, &histories, &random).await;
        for (node, _) in started.running() {
            started.kill(node, false, 0);
        }
    });
    assert!(world.network.carried.get() > 100, "the nodes hardly talked");
    (noted.acknowledged.get(), noted.submitted.get())
}

#[test]
fn nodes_that_crash_and_links_that_are_cut_lose_nothing() {
    let (mut acknowledged, mut submitted) = (0, 0);
    for seed in seeds(3) {
        let (of_seed, all) = live(seed, NODES, false);
        (acknowledged, submitted) = (acknowledged + of_seed, submitted + all);
    }
    assert!(acknowledged > submitted / 4, "{acknowledged} of {submitted} changes were acknowledged");
    assert!(acknowledged < submitted, "no fault was felt");
}

/// Positions and replicas move between devices while nodes crash: nothing is lost, and no shard is left where it was.
#[test]
fn devices_that_are_drained_while_nodes_crash_become_empty_and_lose_nothing() {
    for seed in seeds(3) {
        live(seed, 4, true);
    }
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
        start(&started).await;
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

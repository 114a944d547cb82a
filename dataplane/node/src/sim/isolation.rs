//! One node is cut off from the others, both ways or one, while the control plane hears everybody: others take over what it
//! leads, and go on without what it holds, within a stated time; nothing that was acknowledged is lost.

use std::{rc::Rc, time::Duration};

use futures::future::join_all;
use quarry_clustermap::NodeId;
use quarry_object::api::{Attributes, Conditions, ObjectStore, Selector};
use quarry_partition::LAGGING_MS;

use super::{
    Doing, Random,
    executor::Executor,
    history::Content,
    network::SILENT_FOR,
    nodes::{BUCKET, start},
    seeds,
    world::{LEASE_MS, RunningNode, World},
};
use crate::platform::Timer;

const KEYS: usize = 24;
/// For the word of the others to come together, and for what is not counted below.
const SLACK: Duration = Duration::from_secs(2);

/// From the cut to the last key that can be read and written: the lease of whoever is cut off ends, who misses it says so,
/// the lease that the next primary had granted ends, and a call that was under way to the node comes back.
fn bound() -> Duration {
    Duration::from_millis(2 * LEASE_MS + 2 * LAGGING_MS) + SILENT_FOR + SLACK
}

#[derive(Clone, Copy, Debug)]
enum Cut {
    Both,
    Outward,
    Inward,
}

fn cut(world: &World, alone: NodeId, nodes: u32, ways: Cut) {
    for other in (1..=nodes).map(NodeId).filter(|other| *other != alone) {
        if !matches!(ways, Cut::Inward) {
            world.network.cut(alone, other);
        }
        if !matches!(ways, Cut::Outward) {
            world.network.cut(other, alone);
        }
    }
}

async fn put(node: &Rc<RunningNode>, key: &str, content: &Content) -> bool {
    let (objects, key, body) = (Rc::clone(&node.objects), key.to_owned(), content.body());
    let putting = async move {
        objects.put_object(BUCKET, &key, Attributes::default(), Conditions::default(), body).await
    };
    node.run(putting).await.expect("nobody kills").is_ok()
}

async fn etag(node: &Rc<RunningNode>, key: &str) -> Option<String> {
    let (objects, key) = (Rc::clone(&node.objects), key.to_owned());
    let reading =
        async move { objects.head_object(BUCKET, &key, Selector::default(), Conditions::default()).await };
    node.run(reading).await.expect("nobody kills").ok().map(|head| head.info.etag)
}

/// Repeats reading, then writing, every key through a node that is not cut off; returns what was written.
async fn use_everything(
    world: &World,
    through: &Rc<RunningNode>,
    random: &Random,
    old: &[Content],
) -> Vec<Content> {
    let new: Vec<Content> = (0..KEYS).map(|_| Content::new(random, 100)).collect();
    let reads = old.iter().enumerate().map(async |(number, content)| {
        loop {
            if let Some(etag) = etag(through, &format!("key-{number}")).await {
                assert_eq!(etag, content.etag, "key-{number}");
                return;
            }
            world.timer.sleep(Duration::from_millis(50)).await;
        }
    });
    join_all(reads).await;
    let writes = new.iter().enumerate().map(async |(number, content)| {
        while !put(through, &format!("key-{number}"), content).await {
            world.timer.sleep(Duration::from_millis(50)).await;
        }
    });
    join_all(writes).await;
    new
}

/// How long it took.
fn isolate(nodes: u32, alone: NodeId, ways: Cut, seed: u64) -> Duration {
    let _doing = Doing(format!("{nodes} nodes, {alone} cut off, {ways:?}, seed {seed}"));
    let mut executor = Executor::new();
    let world = World::new(nodes, |_| 24 << 20, (executor.timer(), executor.spawn()), seed);
    executor.run(async move {
        start(&world, nodes).await;
        let random = Random::new(seed);
        let (_, through) = world.running().into_iter().find(|(node, _)| *node != alone).expect("several");
        let none: [Content; 0] = [];
        let old = use_everything(&world, &through, &random, &none).await;
        let begun = world.timer.monotonic();
        cut(&world, alone, nodes, ways);
        let new = use_everything(&world, &through, &random, &old).await;
        let took = world.timer.monotonic() - begun;
        let map = through.host.map();
        let led = map.partitions.iter().filter(|config| map.devices[&config.primary].node == alone);
        assert_eq!(led.count(), 0, "the node that is cut off leads");
        world.network.heal();
        world.wait_until_serving().await;
        for (number, content) in new.iter().enumerate() {
            let key = format!("key-{number}");
            for (id, node) in world.running() {
                assert_eq!(etag(&node, &key).await.as_ref(), Some(&content.etag), "{key} on {id}");
            }
        }
        for (node, _) in world.running() {
            world.kill(node, false, 0);
        }
        took
    })
}

#[test]
fn a_node_cut_off_from_its_peers_alone_holds_nobody_up_for_long() {
    let mut longest = Duration::ZERO;
    for seed in seeds(1) {
        for nodes in [3, 5] {
            for (alone, ways) in [(1, Cut::Both), (2, Cut::Outward), (3, Cut::Inward)] {
                let took = isolate(nodes, NodeId(alone), ways, seed);
                assert!(took <= bound(), "{nodes} nodes, {ways:?}, seed {seed}: {took:?} of {:?}", bound());
                longest = longest.max(took);
            }
        }
    }
    eprintln!("longest: {longest:?} of {:?}", bound());
}

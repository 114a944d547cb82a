//! What other nodes may do to the shards of a device, and for how long.

use futures::{executor::block_on, poll};
use quarry_clustermap::{ClusterId, DeviceId, NodeId, WriterCounter};
use quarry_storage::{
    device::SimDevice,
    store::{FormatParams, StoreOptions},
};

use super::*;

const BLOCK: usize = BLOCK_BYTES;
/// The same on the wire.
const LEN: u32 = 4096;

fn name(counter: u64) -> ShardName {
    let blob = BlobId { writer: NodeId(2), counter: WriterCounter(counter), ..BlobId::default() };
    ShardName { pg: PgId(1), blob, shard: ShardIndex(0) }
}

/// A device, its shards, and what runs the store's tasks.
fn shards() -> (SimDevice, Shards<SimDevice>, futures::executor::LocalPool) {
    use futures::task::LocalSpawn;
    let device = SimDevice::new(64 << 20, 1);
    let params = FormatParams { cluster: ClusterId([7; 16]), device: DeviceId(1), journal_bytes: 1 << 20 };
    block_on(Store::format(Rc::new(device.clone()), params)).unwrap();
    let mut pool = futures::executor::LocalPool::new();
    let spawner = pool.spawner();
    let spawn = move |task: futures::future::LocalBoxFuture<'static, ()>| {
        let _dropped = spawner.spawn_local_obj(task.into());
    };
    let options = StoreOptions::new(Rc::new(spawn), Rc::new(|_: &[u8]| Ok(Vec::new())));
    let store = pool.run_until(Store::open(Rc::new(device.clone()), options)).unwrap();
    (device, Shards::new(store, Box::new(|_, error| panic!("{error}"))), pool)
}

fn reserve(shards: &Shards<SimDevice>, name: ShardName) -> Result<PeerResponse, PeerFault> {
    shards.reserve(name, Epoch(1), 2 * BLOCK as u64, true)
}

#[test]
fn another_node_writes_and_reads_a_shard() {
    let (_, shards, mut pool) = shards();
    pool.run_until(async {
        reserve(&shards, name(1)).unwrap();
        let bytes: Vec<u8> = (0..2 * BLOCK).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
        for at in [BLOCK, 0] {
            let piece = &bytes[at..at + BLOCK];
            shards.write(name(1), Epoch(1), at as u64, piece).await.unwrap();
        }
        shards.commit(name(1), Epoch(1), PartitionId(0), vec![0]).await.unwrap();
        let opened = shards.open(name(1), true).await.unwrap();
        let PeerResponse::Opened { pin, runs, .. } = opened else { panic!("{opened:?}") };
        assert!(runs.is_empty(), "offsets do not leave the node");
        let read = shards.read(name(1), pin, 0, 2 * LEN).await.unwrap();
        assert!(read == bytes);
        assert!(shards.read(name(1), pin, BLOCK as u64, LEN).await.unwrap() == bytes[BLOCK..]);
        shards.close(name(2), pin);
        assert!(shards.read(name(1), pin, 0, LEN).await.is_ok(), "closed for another shard");
        assert_eq!(shards.read(name(2), pin, 0, LEN).await, Err(PeerFault::NotFound.into()));
        shards.close(name(1), pin);
        assert_eq!(shards.read(name(1), pin, 0, LEN).await, Err(PeerFault::NotFound.into()));
    });
}

#[test]
fn ranges_that_do_not_fit_are_refused() {
    let (_, shards, mut pool) = shards();
    pool.run_until(async {
        reserve(&shards, name(1)).unwrap();
        let block = vec![0; BLOCK];
        for (at, bytes) in [
            (1, &block[..]),
            (2 * BLOCK as u64, &block[..]),
            (u64::MAX - 4095, &block[..]),
            (0, &block[..9]),
            (0, &[]),
        ] {
            let refused = shards.write(name(1), Epoch(1), at, bytes).await;
            assert!(matches!(refused, Err(PeerFault::Damaged { .. })), "{at}, {}", bytes.len());
        }
        assert_eq!(shards.write(name(1), Epoch(2), 0, &block).await, Err(PeerFault::NotFound));
        assert_eq!(shards.write(name(2), Epoch(1), 0, &block).await, Err(PeerFault::NotFound));
        // A writer of this node writes with its own hands.
        shards.reserve(name(3), Epoch(1), BLOCK as u64, false).unwrap();
        assert!(shards.write(name(3), Epoch(1), 0, &block).await.is_err());
    });
}

/// The device may still carry out a write whose asker has given up: nobody else gets the extents before.
#[test]
fn extents_are_not_given_back_while_a_write_to_them_is_under_way() {
    let (device, shards, mut pool) = shards();
    pool.run_until(async {
        reserve(&shards, name(1)).unwrap();
        let free = shards.store.space().free_bytes;
        let block = vec![0; BLOCK];
        device.set_stalled(true);
        let mut write = Box::pin(shards.write(name(1), Epoch(1), 0, &block));
        assert!(poll!(&mut write).is_pending());
        let refused = shards.commit(name(1), Epoch(1), PartitionId(0), vec![0]).await;
        assert!(matches!(refused, Err(PeerFault::Damaged { .. })), "{refused:?}");
        shards.abort(name(1), Epoch(1)).await.unwrap();
        assert_eq!(shards.store.space().free_bytes, free, "released under a write");
        assert!(reserve(&shards, name(1)).is_err());
        device.set_stalled(false);
        assert_eq!(write.await, Err(PeerFault::NotFound));
        assert_eq!(shards.store.space().free_bytes, free + 2 * BLOCK as u64);
    });
}

#[test]
fn what_another_node_does_not_use_ends_by_itself() {
    let (_, shards, mut pool) = shards();
    pool.run_until(async {
        reserve(&shards, name(1)).unwrap();
        shards.reserve(name(2), Epoch(1), BLOCK as u64, false).unwrap();
        reserve(&shards, name(3)).unwrap();
        shards.commit(name(3), Epoch(1), PartitionId(0), vec![0]).await.unwrap();
        let mut pins = Vec::new();
        for remote in [true, false] {
            let opened = shards.open(name(3), remote).await.unwrap();
            let PeerResponse::Opened { pin, .. } = opened else { panic!("{opened:?}") };
            pins.push(pin);
        }
        shards.tick(PIN_KEPT_MS);
        assert!(shards.read(name(3), pins[0], 0, LEN).await.is_ok());
        shards.tick(2 * PIN_KEPT_MS);
        assert!(shards.read(name(3), pins[0], 0, LEN).await.is_ok(), "renewed by use");
        shards.tick(3 * PIN_KEPT_MS + 1);
        assert_eq!(shards.read(name(3), pins[0], 0, LEN).await, Err(PeerFault::NotFound.into()));
        assert!(shards.pins.borrow().contains_key(&pins[1]), "a reader of this node keeps its pin");
        shards.tick(RESERVATION_KEPT_MS);
        assert!(shards.reserved.borrow().contains_key(&name(1)));
        shards.tick(RESERVATION_KEPT_MS + 1);
        let left: Vec<_> = shards.reserved.borrow().keys().copied().collect();
        assert_eq!(left, [name(2)]);
    });
}

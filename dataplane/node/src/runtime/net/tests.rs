//! Nodes on the loopback interface of one executor.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use glommio::LocalExecutorBuilder;
use quarry_clustermap::{ClusterId, DeviceEntry, DeviceState, MapVersion, NodeEntry, Tier};

use super::*;

const CLUSTER: ClusterId = ClusterId([7; 16]);

fn spawn() -> Rc<dyn Fn(LocalBoxFuture<'static, ()>)> {
    Rc::new(|task| drop(glommio::spawn_local(task).detach()))
}

fn net(node: u32, key: u8) -> Rc<Net> {
    let me = Identity {
        cluster: CLUSTER,
        node: NodeId(node),
        incarnation: Incarnation(3),
        versions: Versions::OURS,
    };
    let stats: RefCell<BTreeMap<(NodeId, Class), Arc<LinkStats>>> = RefCell::default();
    let stats_of = move |node, class| Arc::clone(stats.borrow_mut().entry((node, class)).or_default());
    Net::new(me, ClusterKey::new([key; 32]), spawn(), Box::new(|| 7), Rc::new(stats_of))
}

/// A map in which device `n` is on node `n`.
fn map(addresses: &[(u32, String)]) -> ClusterMap {
    let node = |address: &String| NodeEntry {
        address: address.clone(),
        rack: String::new(),
        incarnation: Incarnation(3),
    };
    let device = |node: u32| DeviceEntry {
        node: NodeId(node),
        tier: Tier::Hot,
        capacity_bytes: 1,
        state: DeviceState::In,
        out_since_ms: None,
        replaced: false,
        location: String::new(),
    };
    ClusterMap {
        cluster: CLUSTER,
        version: MapVersion(1),
        hot_profile: "4+2".parse().unwrap(),
        nodes: addresses.iter().map(|(id, address)| (NodeId(*id), node(address))).collect(),
        devices: addresses.iter().map(|(id, _)| (DeviceId(u64::from(*id)), device(*id))).collect(),
        partitions: Vec::new(),
        operations: quarry_clustermap::Operations::default(),
        tiering: quarry_clustermap::Tiering::default(),
        placement_groups: BTreeMap::new(),
    }
}

/// Answers with what it was asked, after so long.
fn echo(after: Duration) -> Handler {
    Rc::new(move |_, _, parcel| {
        Box::pin(async move {
            if !after.is_zero() {
                glommio::timer::sleep(after).await;
            }
            Ok(parcel)
        })
    })
}

fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

const TO: Address = Address::Device(DeviceId(2));

/// Node 1 asks node 2; runs with the pulse that glommio needs (see [`crate::runtime::pulse`]).
fn run<F: Future<Output = ()> + 'static>(work: impl FnOnce() -> F + Send + 'static) {
    let pulse = Arc::new(crate::runtime::pulse::CorePulse::default());
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let beating = crate::runtime::pulse::start(vec![Arc::clone(&pulse)], Arc::clone(&stop)).unwrap();
    let executor = LocalExecutorBuilder::default().preempt_timer(Duration::from_millis(1));
    let done = executor
        .spawn(move || async move {
            pulse.begin().await;
            pulse.set_busy(true);
            glommio::spawn_local(Arc::clone(&pulse).answer(|| ())).detach();
            work().await;
        })
        .unwrap();
    done.join().unwrap();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    beating.join().unwrap();
}

fn parcel(message: &'static str, bulk: Bytes) -> Parcel {
    Parcel { message: Bytes::from_static(message.as_bytes()), bulk }
}

#[test]
fn calls_of_every_class_are_answered_with_what_was_asked() {
    run(|| async {
        let (asker, owner) = (net(1, 1), net(2, 1));
        let bound = owner.listen(any(), echo(Duration::ZERO)).unwrap();
        asker.set_map(&map(&[(1, String::new()), (2, bound.to_string())]));
        let bulk = Bytes::from(vec![0xa5; 1 << 20]);
        let calls = (0..100).map(|number: u32| {
            let (asker, bulk) = (&asker, bulk.clone());
            async move {
                let class = Class::ALL[number as usize % 3];
                let bulk = if class == Class::Bulk { bulk.slice(number as usize..) } else { Bytes::new() };
                let sent = parcel("question", bulk);
                assert!(asker.call(TO, class, sent.clone()).await == Ok(sent), "call {number}");
            }
        });
        join_all(calls).await;
        assert!(!asker.is_busy() && !owner.is_busy());
        let sent = asker.stats.as_ref()(NodeId(2), Class::Bulk);
        let bytes = [&sent.bytes_sent, &sent.bytes_received].map(|bytes| bytes.load(Ordering::Relaxed));
        assert!(bytes.iter().all(|bytes| *bytes > 30 << 20), "{bytes:?}");
        let unknown = asker.call(Address::Device(DeviceId(9)), Class::Urgent, Parcel::default()).await;
        assert_eq!(unknown, Err(TransportError::Unreachable));
    });
}

#[test]
fn bulk_holds_nothing_else_up_and_waits_for_room() {
    run(|| async {
        let (asker, owner) = (net(1, 1), net(2, 1));
        let slow = |to, class, parcel| {
            let wait = Duration::from_millis(if class == Class::Bulk { 200 } else { 0 });
            echo(wait)(to, class, parcel)
        };
        let bound = owner.listen(any(), Rc::new(slow)).unwrap();
        asker.set_map(&map(&[(1, String::new()), (2, bound.to_string())]));
        let bulk = Bytes::from(vec![1; 64 << 10]);
        // Twice what may be under way: the second half begins when the first has ended.
        let calls: Vec<_> = (0..64)
            .map(|_| {
                let (asker, sent) = (Rc::clone(&asker), parcel("bulk", bulk.clone()));
                glommio::spawn_local(async move { asker.call(TO, Class::Bulk, sent).await })
            })
            .collect();
        glommio::timer::sleep(Duration::from_millis(50)).await;
        assert_eq!(owner.under_way.get(), 32);
        let asked = Instant::now();
        asker.call(TO, Class::Urgent, parcel("lease", Bytes::new())).await.unwrap();
        assert!(asked.elapsed() < Duration::from_millis(100), "{:?}", asked.elapsed());
        assert!(join_all(calls).await.into_iter().all(|answer| answer.is_ok()));
    });
}

#[test]
fn another_key_and_nobody_at_all_are_unreachable_at_once() {
    run(|| async {
        let (asker, owner) = (net(1, 2), net(2, 1));
        let bound = owner.listen(any(), echo(Duration::ZERO)).unwrap();
        let free = std::net::TcpListener::bind(any()).unwrap().local_addr().unwrap();
        asker.set_map(&map(&[(1, String::new()), (2, bound.to_string()), (3, free.to_string())]));
        for device in [2, 3] {
            let to = Address::Device(DeviceId(device));
            let answer = asker.call(to, Class::Ordinary, Parcel::default()).await;
            assert_eq!(answer, Err(TransportError::Unreachable));
            let began = Instant::now();
            let answer = asker.call(to, Class::Ordinary, Parcel::default()).await;
            assert_eq!((answer, began.elapsed().as_millis()), (Err(TransportError::Unreachable), 0));
        }
    });
}

/// A link through which bytes pass until it is cut.
struct Wire {
    cut: Rc<Cell<bool>>,
    /// Passes nothing on, and closes nothing.
    dead: Rc<Cell<bool>>,
    address: SocketAddr,
}

fn wire(to: SocketAddr) -> Wire {
    use futures_lite::{AsyncReadExt, AsyncWriteExt};
    let listener = TcpListener::bind(any()).unwrap();
    let address = listener.local_addr().unwrap();
    let (cut, dead): (Rc<Cell<bool>>, Rc<Cell<bool>>) = (Rc::default(), Rc::default());
    let wire = Wire { cut: Rc::clone(&cut), dead: Rc::clone(&dead), address };
    glommio::spawn_local(async move {
        while let Ok(near) = listener.accept().await {
            let far = glommio::net::TcpStream::connect(to).await.unwrap();
            let (near, far) = (futures_lite::io::split(near), futures_lite::io::split(far));
            for (mut from, mut to) in [(near.0, far.1), (far.0, near.1)] {
                let (cut, dead) = (Rc::clone(&cut), Rc::clone(&dead));
                glommio::spawn_local(async move {
                    let mut bytes = [0; 4096];
                    while let Ok(read @ 1..) = from.read(&mut bytes).await {
                        while dead.get() {
                            glommio::timer::sleep(Duration::from_millis(10)).await;
                        }
                        if cut.get() || to.write_all(&bytes[..read]).await.is_err() {
                            break;
                        }
                    }
                    let _closed = to.close().await;
                })
                .detach();
            }
        }
    })
    .detach();
    wire
}

#[test]
fn a_connection_that_breaks_or_falls_silent_loses_what_was_sent_and_is_made_again() {
    run(|| async {
        let (asker, owner) = (net(1, 1), net(2, 1));
        let bound = owner.listen(any(), echo(Duration::from_millis(100))).unwrap();
        let wire = wire(bound);
        asker.set_map(&map(&[(1, String::new()), (2, wire.address.to_string())]));
        let call = || {
            let asker = Rc::clone(&asker);
            glommio::spawn_local(async move { asker.call(TO, Class::Ordinary, Parcel::default()).await })
        };
        assert!(call().await.is_ok());
        let asked = call();
        glommio::timer::sleep(Duration::from_millis(50)).await;
        wire.cut.set(true);
        assert_eq!(asked.await, Err(TransportError::Lost));
        assert_eq!(call().await, Err(TransportError::Unreachable));
        wire.cut.set(false);
        glommio::timer::sleep(Duration::from_millis(200)).await;
        assert!(call().await.is_ok());
        let failures = || asker.stats.as_ref()(NodeId(2), Class::Ordinary).failures.load(Ordering::Relaxed);
        let before = failures();
        wire.dead.set(true);
        let began = Instant::now();
        assert_eq!(call().await, Err(TransportError::Lost));
        assert!(began.elapsed() < link::SILENT_FOR + Duration::from_secs(3), "{:?}", began.elapsed());
        assert_eq!(failures(), before + 1, "the silence was not noticed");
        wire.dead.set(false);
        glommio::timer::sleep(Duration::from_millis(500)).await;
        assert!(call().await.is_ok());
    });
}

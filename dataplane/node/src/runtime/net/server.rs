//! The end that listens: connections that other nodes made to this core. It answers their requests; what this node asks
//! travels on connections of its own, so that a full direction never holds up the answers of the other.
//!
//! Bulk requests beyond a limit are not read: that is the backpressure, and as bulk needs nothing but a local device,
//! it always goes on. Other requests beyond a limit are refused, because they may need what stands behind them.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use event_listener::Event;
use futures::{FutureExt, future::LocalBoxFuture};
use glommio::net::{TcpListener, TcpStream};
use quarry_clustermap::{Incarnation, NodeId};
use quarry_object::transport::{Address, Class, Parcel, TransportError};

use super::{
    connection::{BATCH_BYTES, BATCH_FRAMES, Connection, ConnectionError},
    frame::{Frame, Kind, admits},
    link::{CONNECT_FOR, Common, SILENT_FOR},
    stats::{LinkStats, add},
};
use crate::runtime::fd::HyperStream;

/// Connections of one core that are not through the handshake yet.
const UNPROVED_MAX: usize = 64;
/// Requests of one connection under way.
const BULK_UNDER_WAY: usize = 32;
const UNDER_WAY: usize = 4096;

/// Answers messages of other nodes, on whichever core of this node they belong.
pub(super) type Handler =
    Rc<dyn Fn(Address, Class, Parcel) -> LocalBoxFuture<'static, Result<Parcel, TransportError>>>;

/// What the listener of a core works with.
pub(super) struct Server {
    pub(super) common: Rc<Common>,
    pub(super) handler: Handler,
    /// Whether a run of a node may be the newest one.
    pub(super) is_current: Rc<dyn Fn(NodeId, Incarnation) -> bool>,
    pub(super) stats: Rc<dyn Fn(NodeId, Class) -> Arc<LinkStats>>,
    /// Requests under way, over all connections.
    pub(super) under_way: Rc<Cell<usize>>,
}

impl Server {
    /// Takes connections for ever.
    pub(super) async fn run(self: Rc<Self>, listener: TcpListener) {
        let unproved = Rc::new(Cell::new(0_usize));
        loop {
            let accepted = listener.accept().await;
            let stream = match accepted {
                Ok(stream) if unproved.get() < UNPROVED_MAX && stream.set_nodelay(true).is_ok() => stream,
                // Too many at once: who means it dials again.
                Ok(_) => continue,
                Err(error) => {
                    tracing::warn!(event = "peer_accept_failed", %error);
                    glommio::timer::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            let (server, unproved) = (Rc::clone(&self), Rc::clone(&unproved));
            unproved.set(unproved.get() + 1);
            (self.common.spawn)(Box::pin(async move {
                let accepted = server.accept(stream).await;
                unproved.set(unproved.get() - 1);
                match accepted {
                    Ok(connection) => server.serve(connection).await,
                    Err(error) => tracing::warn!(event = "peer_refused", %error),
                }
            }));
        }
    }

    async fn accept(&self, stream: TcpStream) -> Result<Connection, ConnectionError> {
        let Common { me, key, .. } = &*self.common;
        let accepting = Connection::accept(HyperStream::new(stream), *me, key, &*self.is_current).fuse();
        let limit = glommio::timer::sleep(CONNECT_FOR).fuse();
        let (mut accepting, mut limit) = (std::pin::pin!(accepting), std::pin::pin!(limit));
        futures::select_biased! {
            accepted = accepting => accepted,
            () = limit => Err(ConnectionError::TimedOut),
        }
    }

    async fn serve(self: Rc<Self>, connection: Connection) {
        let (peer, class) = (connection.session().peer.node, connection.session().class);
        let served = Served {
            class,
            connection,
            stats: (self.stats)(peer, class),
            answers: RefCell::default(),
            queued: Event::new(),
            under_way: Cell::new(0),
            ended: Event::new(),
            heard: Cell::new(Instant::now()),
        };
        let served = Rc::new(served);
        let error = {
            let mut reading = std::pin::pin!(served.read(&self).fuse());
            let mut writing = std::pin::pin!(served.write().fuse());
            let mut watching = std::pin::pin!(served.watch().fuse());
            futures::select_biased! {
                error = reading => error,
                error = writing => error,
                error = watching => error,
            }
        };
        tracing::info!(event = "peer_disconnected", %peer, ?class, %error);
    }
}

/// One accepted connection.
struct Served {
    class: Class,
    connection: Connection,
    stats: Arc<LinkStats>,
    /// Bounded by the requests under way, and by one pong per ping that was read.
    answers: RefCell<VecDeque<Frame>>,
    queued: Event,
    under_way: Cell<usize>,
    ended: Event,
    heard: Cell<Instant>,
}

impl Served {
    async fn read(self: &Rc<Self>, server: &Rc<Server>) -> ConnectionError {
        loop {
            while self.class == Class::Bulk && self.under_way.get() >= BULK_UNDER_WAY {
                let ended = self.ended.listen();
                if self.under_way.get() >= BULK_UNDER_WAY {
                    ended.await;
                }
                // That nothing is read is this end's doing.
                self.heard.set(Instant::now());
            }
            let frame = match self.connection.read().await {
                Ok(frame) => frame,
                Err(error) => return error,
            };
            self.heard.set(Instant::now());
            add(&self.stats.frames_received, 1);
            add(&self.stats.bytes_received, frame.len_bytes());
            match frame.kind {
                Kind::Request { id, to } => self.handle(server, Some(id), to, frame.parcel),
                Kind::OneWay { to } => self.handle(server, None, to, frame.parcel),
                Kind::Ping { echo } => self.answer(Frame::bare(Kind::Pong { echo })),
                Kind::Response { .. } | Kind::Refusal { .. } | Kind::Pong { .. } => {
                    return std::io::Error::from(std::io::ErrorKind::InvalidData).into();
                }
            }
        }
    }

    fn handle(self: &Rc<Self>, server: &Rc<Server>, id: Option<u64>, to: Address, parcel: Parcel) {
        if self.under_way.get() >= UNDER_WAY {
            add(&self.stats.overloads, 1);
            if let Some(id) = id {
                self.answer(Frame::bare(Kind::Refusal { id, why: TransportError::Overloaded }));
            }
            return;
        }
        let (served, all) = (Rc::clone(self), Rc::clone(&server.under_way));
        let working = (server.handler)(to, self.class, parcel);
        served.under_way.set(served.under_way.get() + 1);
        all.set(all.get() + 1);
        (server.common.spawn)(Box::pin(async move {
            let result = working.await;
            served.under_way.set(served.under_way.get() - 1);
            all.set(all.get() - 1);
            served.ended.notify(1);
            let Some(id) = id else { return };
            served.answer(match result {
                Ok(parcel) if admits(served.class, &parcel) => Frame { kind: Kind::Response { id }, parcel },
                // The answer is longer than any may be.
                Ok(_) => Frame::bare(Kind::Refusal { id, why: TransportError::Lost }),
                Err(why) => Frame::bare(Kind::Refusal { id, why }),
            });
        }));
    }

    fn answer(&self, frame: Frame) {
        self.answers.borrow_mut().push_back(frame);
        self.queued.notify(1);
    }

    async fn write(&self) -> ConnectionError {
        let mut frames = Vec::new();
        loop {
            let mut bytes = 0;
            while frames.len() < BATCH_FRAMES && bytes < BATCH_BYTES {
                let Some(frame) = self.answers.borrow_mut().pop_front() else { break };
                bytes += frame.len_bytes();
                frames.push(frame);
            }
            if frames.is_empty() {
                let listener = self.queued.listen();
                if self.answers.borrow().is_empty() {
                    listener.await;
                }
                continue;
            }
            add(&self.stats.frames_sent, frames.len());
            add(&self.stats.bytes_sent, bytes);
            if let Err(error) = self.connection.write(&frames).await {
                return error;
            }
            frames.clear();
        }
    }

    /// The other end pings every second.
    async fn watch(&self) -> ConnectionError {
        loop {
            glommio::timer::sleep(SILENT_FOR / 4).await;
            if self.heard.get().elapsed() > SILENT_FOR {
                return ConnectionError::Silent;
            }
        }
    }
}

//! One core's connection to one node in one class: dialled when it is first used, and again after it broke, with
//! growing pauses. While it cannot be made, calls fail at once.
//!
//! ```text
//!           wanted             connected               broke
//!   Idle ------------> Dialling ---------> Up ------------------------+
//!                        ^  | failed                                  v
//!                        |  +---------------------------------------> Pausing
//!                        +----------------------------------------------+  pause over
//! ```

use std::{
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use event_listener::Event;
use futures::{FutureExt, future::LocalBoxFuture};
use glommio::net::TcpStream;
use quarry_clustermap::NodeId;
use quarry_object::transport::{Address, Class, Parcel, TransportError};

use super::{
    connection::{BATCH_BYTES, BATCH_FRAMES, Connection, ConnectionError},
    frame::{Frame, Kind},
    handshake::Identity,
    key::ClusterKey,
    outbox::Outbox,
    stats::{LinkStats, add},
};
use crate::runtime::fd::HyperStream;

/// Connecting and handshake together.
pub(super) const CONNECT_FOR: Duration = Duration::from_secs(2);
/// Pause after the first failure; doubles up to [`PAUSE_MAX`], and up to half of it more at random.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A connection that lived so long did not fail at once: the next pause is short again.
const STABLE_AFTER: Duration = Duration::from_secs(5);
/// Between two signs of life.
const PING_EVERY: Duration = Duration::from_secs(1);
/// A connection on which nothing arrived for so long is given up. Shorter than what a caller waits.
pub(super) const SILENT_FOR: Duration = Duration::from_secs(4);

/// How long a call of a class may take: shorter than the retries of a command (8 s), so that there is one.
fn call_for(class: Class) -> Duration {
    match class {
        Class::Urgent | Class::Ordinary => Duration::from_secs(6),
        // The device behind it may be a slow one with a queue.
        Class::Bulk => Duration::from_secs(20),
    }
}

/// What all links of a core share.
pub(super) struct Common {
    pub(super) me: Identity,
    pub(super) key: ClusterKey,
    pub(super) spawn: Rc<dyn Fn(LocalBoxFuture<'static, ()>)>,
    pub(super) random: Box<dyn Fn() -> u64>,
}

/// See the module.
pub(super) struct Link {
    common: Rc<Common>,
    peer: NodeId,
    address: SocketAddr,
    class: Class,
    outbox: Outbox,
    /// Something was queued, or the link was closed.
    queued: Event,
    /// A bulk call has ended.
    room: Event,
    started: Cell<bool>,
    pausing: Cell<bool>,
    closed: Cell<bool>,
    stats: Arc<LinkStats>,
}

/// Takes a call off the list however its wait ends.
struct Call<'l> {
    link: &'l Link,
    id: u64,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.link.outbox.forget(self.id);
        self.link.room.notify(1);
    }
}

impl Link {
    pub(super) fn new(
        common: Rc<Common>,
        (peer, address): (NodeId, SocketAddr),
        class: Class,
        stats: Arc<LinkStats>,
    ) -> Rc<Self> {
        Rc::new(Self {
            common,
            peer,
            address,
            class,
            outbox: Outbox::new(class),
            queued: Event::new(),
            room: Event::new(),
            started: Cell::new(false),
            pausing: Cell::new(false),
            closed: Cell::new(false),
            stats,
        })
    }

    /// Calls and frames that are under way.
    pub(super) fn is_busy(&self) -> bool {
        self.outbox.queued() + self.outbox.calls() > 0
    }

    /// The node has another address, or is gone.
    pub(super) fn close(&self) {
        self.closed.set(true);
        self.outbox.fail_all();
        self.queued.notify(usize::MAX);
        self.room.notify(usize::MAX);
    }

    fn check_up(self: &Rc<Self>) -> Result<(), TransportError> {
        if self.closed.get() || self.pausing.get() {
            return Err(TransportError::Unreachable);
        }
        if !self.started.replace(true) {
            (self.common.spawn)(Box::pin(Rc::clone(self).run()));
        }
        Ok(())
    }

    fn queued<T>(&self, result: Result<T, TransportError>) -> Result<T, TransportError> {
        match &result {
            Ok(_) => {
                self.stats.queued.store(self.outbox.queued() as u64, Ordering::Relaxed);
                self.queued.notify(1);
            }
            Err(_) => add(&self.stats.overloads, 1),
        }
        result
    }

    pub(super) fn send(self: &Rc<Self>, to: Address, parcel: Parcel) -> Result<(), TransportError> {
        self.check_up()?;
        self.queued(self.outbox.send(to, parcel))
    }

    pub(super) async fn call(self: &Rc<Self>, to: Address, parcel: Parcel) -> Result<Parcel, TransportError> {
        self.check_up()?;
        let mut deadline = std::pin::pin!(glommio::timer::sleep(call_for(self.class)).fuse());
        while !self.outbox.has_room() {
            let room = self.room.listen();
            if self.outbox.has_room() {
                break;
            }
            futures::select_biased! {
                () = room.fuse() => self.check_up()?,
                () = deadline => {
                    add(&self.stats.overloads, 1);
                    return Err(TransportError::Overloaded);
                }
            }
        }
        let (id, answer) = self.queued(self.outbox.call(to, parcel))?;
        let call = Call { link: self, id };
        futures::select_biased! {
            answer = answer.fuse() => answer.unwrap_or(Err(TransportError::Lost)),
            () = deadline => {
                let sent = self.outbox.forget(call.id);
                Err(if sent { TransportError::Lost } else { TransportError::Unreachable })
            }
        }
    }

    /// Dials and dials again, until the link is closed.
    async fn run(self: Rc<Self>) {
        let mut pause = PAUSE_MIN;
        while !self.closed.get() {
            let began = Instant::now();
            let connecting = self.connect().fuse();
            let limit = glommio::timer::sleep(CONNECT_FOR).fuse();
            let connected = {
                let (mut connecting, mut limit) = (std::pin::pin!(connecting), std::pin::pin!(limit));
                futures::select_biased! {
                    connected = connecting => connected,
                    () = limit => Err(ConnectionError::TimedOut),
                }
            };
            let error = match connected {
                Ok(connection) => {
                    add(&self.stats.connections, 1);
                    tracing::info!(event = "peer_connected", peer = %self.peer, class = ?self.class);
                    self.drive(&connection).await
                }
                Err(error) => error,
            };
            if self.closed.get() {
                break;
            }
            add(&self.stats.failures, 1);
            tracing::warn!(event = "peer_unreachable", peer = %self.peer, class = ?self.class, %error);
            self.pausing.set(true);
            self.outbox.fail_all();
            self.room.notify(usize::MAX);
            if began.elapsed() > STABLE_AFTER {
                pause = PAUSE_MIN;
            }
            let jitter = (self.common.random)() % 512;
            glommio::timer::sleep(pause + pause * u32::try_from(jitter).expect("below 512") / 1024).await;
            pause = (pause * 2).min(PAUSE_MAX);
            self.pausing.set(false);
            self.wait_until_wanted().await;
        }
        self.outbox.fail_all();
    }

    async fn wait_until_wanted(&self) {
        while self.outbox.queued() == 0 && !self.closed.get() {
            let listener = self.queued.listen();
            if self.outbox.queued() == 0 && !self.closed.get() {
                listener.await;
            }
        }
    }

    async fn connect(&self) -> Result<Connection, ConnectionError> {
        let stream = TcpStream::connect(self.address)
            .await
            .map_err(|error| std::io::Error::other(error.to_string()))?;
        stream.set_nodelay(true).map_err(|error| std::io::Error::other(error.to_string()))?;
        let Common { me, key, .. } = &*self.common;
        Connection::dial(HyperStream::new(stream), *me, key, (self.peer, self.class)).await
    }

    /// Reads and writes until the connection ends; says why.
    async fn drive(&self, connection: &Connection) -> ConnectionError {
        let heard = Cell::new(Instant::now());
        let mut reading = std::pin::pin!(self.read(connection, &heard).fuse());
        let mut writing = std::pin::pin!(self.write(connection).fuse());
        let mut watching = std::pin::pin!(self.watch(&heard).fuse());
        futures::select_biased! {
            error = reading => error,
            error = writing => error,
            error = watching => error,
        }
    }

    async fn read(&self, connection: &Connection, heard: &Cell<Instant>) -> ConnectionError {
        loop {
            let frame = match connection.read().await {
                Ok(frame) => frame,
                Err(error) => return error,
            };
            heard.set(Instant::now());
            add(&self.stats.frames_received, 1);
            add(&self.stats.bytes_received, frame.len_bytes());
            match frame.kind {
                Kind::Response { id } => {
                    self.outbox.answered(id, Ok(frame.parcel));
                }
                Kind::Refusal { id, why } => {
                    self.outbox.answered(id, Err(why));
                }
                Kind::Pong { echo } => {
                    let took = micros_of(&STARTED).saturating_sub(echo);
                    self.stats.round_trip_us.store(took, Ordering::Relaxed);
                }
                // This end asks; the other end asks on a connection of its own.
                Kind::Request { .. } | Kind::OneWay { .. } | Kind::Ping { .. } => {
                    return std::io::Error::from(std::io::ErrorKind::InvalidData).into();
                }
            }
        }
    }

    async fn write(&self, connection: &Connection) -> ConnectionError {
        let mut frames: Vec<Frame> = Vec::new();
        loop {
            let mut bytes = 0;
            while frames.len() < BATCH_FRAMES && bytes < BATCH_BYTES {
                let Some(frame) = self.outbox.next() else { break };
                bytes += frame.len_bytes();
                frames.push(frame);
            }
            if self.closed.get() {
                return ConnectionError::TimedOut;
            }
            if frames.is_empty() {
                self.wait_until_wanted().await;
                continue;
            }
            add(&self.stats.frames_sent, frames.len());
            add(&self.stats.bytes_sent, bytes);
            if let Err(error) = connection.write(&frames).await {
                return error;
            }
            frames.clear();
            self.stats.queued.store(self.outbox.queued() as u64, Ordering::Relaxed);
        }
    }

    /// Signs of life: a cut network does not close connections.
    async fn watch(&self, heard: &Cell<Instant>) -> ConnectionError {
        loop {
            self.outbox.ping(micros_of(&STARTED));
            self.queued.notify(1);
            glommio::timer::sleep(PING_EVERY).await;
            if heard.get().elapsed() > SILENT_FOR {
                return ConnectionError::Silent;
            }
        }
    }
}

thread_local! {
    static STARTED: Instant = Instant::now();
}

fn micros_of(started: &'static std::thread::LocalKey<Instant>) -> u64 {
    started.with(|started| u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX))
}

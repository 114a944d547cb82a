//! Frames between the cores of one process: a bounded queue per core, woken across threads.
//!
//! A request is answered exactly once, or fails with [`TransportError`]; nothing waits for ever, because a full queue
//! refuses at once and a dead core fails the process. Frames are serialised messages, the same that travel between
//! nodes: what is for another node goes on by [`Net`].

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::{Arc, OnceLock},
    task::{Context, Poll, Waker},
};

use crossbeam::queue::ArrayQueue;
use futures::{channel::oneshot, future::LocalBoxFuture};
use quarry_object::transport::{Address, Class, Parcel, Transport, TransportError};

use super::net::Net;

/// Frames that may wait for one core. A core handles well over 100,000 frames a second: this is under 0.1 s.
const QUEUE_FRAMES: usize = 8192;
/// Frames taken from the queue before the core's other tasks run.
const FRAMES_PER_ROUND: usize = 64;

/// What answers frames on a core.
pub(crate) type Handler = Rc<dyn Fn(Address, Parcel) -> LocalBoxFuture<'static, Parcel>>;

enum Kind {
    Request(u64),
    Response(u64),
    OneWay,
}

struct Frame {
    from: usize,
    to: Address,
    kind: Kind,
    body: Parcel,
}

/// The receiving end of one core, shared with every other core.
pub(crate) struct Inbox {
    queue: ArrayQueue<Frame>,
    /// Of the task that empties the queue; kept, see [`super::pulse`].
    waker: OnceLock<Waker>,
}

impl Inbox {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { queue: ArrayQueue::new(QUEUE_FRAMES), waker: OnceLock::new() })
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake_by_ref();
        }
    }

    fn push(&self, frame: Frame) -> Result<(), TransportError> {
        self.queue.push(frame).map_err(|_| TransportError::Overloaded)?;
        self.wake();
        Ok(())
    }
}

/// Which core of this node answers for an address; `None`: another node, or nobody.
pub(crate) type Route = Rc<dyn Fn(Address) -> Option<usize>>;

/// One core's access to all cores.
pub(crate) struct Mesh {
    me: usize,
    inboxes: Vec<Arc<Inbox>>,
    route: Route,
    handler: RefCell<Option<Handler>>,
    pending: RefCell<HashMap<u64, oneshot::Sender<Parcel>>>,
    next_request: Cell<u64>,
    spawn: Rc<dyn Fn(LocalBoxFuture<'static, ()>)>,
    net: OnceCell<Rc<Net>>,
}

impl Mesh {
    pub(crate) fn new(
        me: usize,
        inboxes: Vec<Arc<Inbox>>,
        route: Route,
        spawn: Rc<dyn Fn(LocalBoxFuture<'static, ()>)>,
    ) -> Rc<Self> {
        Rc::new(Self {
            me,
            inboxes,
            route,
            handler: RefCell::new(None),
            pending: RefCell::default(),
            next_request: Cell::new(0),
            spawn,
            net: OnceCell::new(),
        })
    }

    /// From now on other nodes are reached. Once.
    pub(crate) fn set_net(&self, net: Rc<Net>) {
        assert!(self.net.set(net).is_ok(), "a core has one way to other nodes");
    }

    /// The way to other nodes, if this one is part of a cluster.
    pub(crate) fn net(&self) -> Option<&Rc<Net>> {
        self.net.get()
    }

    /// From now on frames for this core are answered.
    pub(crate) fn set_handler(&self, handler: Handler) {
        *self.handler.borrow_mut() = Some(handler);
    }

    /// Takes frames from this core's queue for ever.
    pub(crate) async fn receive(self: Rc<Self>) {
        let inbox = Arc::clone(&self.inboxes[self.me]);
        loop {
            std::future::poll_fn(|cx| {
                inbox.waker.get_or_init(|| cx.waker().clone());
                if inbox.queue.is_empty() { Poll::Pending } else { Poll::Ready(()) }
            })
            .await;
            for _ in 0..FRAMES_PER_ROUND {
                let Some(frame) = inbox.queue.pop() else { break };
                self.accept(frame);
            }
            glommio::executor().yield_task_queue_now().await;
        }
    }

    fn accept(self: &Rc<Self>, frame: Frame) {
        let id = match frame.kind {
            Kind::Response(id) => {
                if let Some(waiting) = self.pending.borrow_mut().remove(&id) {
                    // The caller may have given up: then nobody wants the answer.
                    let _gone = waiting.send(frame.body);
                }
                return;
            }
            Kind::Request(id) => Some(id),
            Kind::OneWay => None,
        };
        let Some(handler) = self.handler.borrow().clone() else { return };
        let mut answer = handler(frame.to, frame.body);
        let Some(id) = id else {
            // Replication is mostly done at once: no task for it.
            let first = answer.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            if first.is_pending() {
                (self.spawn)(Box::pin(async move {
                    let _nobody_asked = answer.await;
                }));
            }
            return;
        };
        let mesh = Rc::clone(self);
        (self.spawn)(Box::pin(async move {
            let body = answer.await;
            mesh.respond(frame.from, Frame { from: mesh.me, to: frame.to, kind: Kind::Response(id), body })
                .await;
        }));
    }

    /// A response must arrive: it waits for room, as the asker's queue drains independently of this task.
    async fn respond(&self, to: usize, mut frame: Frame) {
        loop {
            match self.inboxes[to].queue.push(frame) {
                Ok(()) => return self.inboxes[to].wake(),
                Err(back) => frame = back,
            }
            glommio::executor().yield_task_queue_now().await;
        }
    }

    /// Asks a core of this node, for a message of another node.
    pub(crate) async fn call_here(&self, to: Address, body: Parcel) -> Result<Parcel, TransportError> {
        let core = match to {
            // Any core can ask all of them.
            Address::Node(_) => self.me,
            Address::Device(_) => (self.route)(to).ok_or(TransportError::Unreachable)?,
            Address::Core(_) => return Err(TransportError::Unreachable),
        };
        self.call_core(core, to, body).await
    }

    async fn call_core(&self, core: usize, to: Address, body: Parcel) -> Result<Parcel, TransportError> {
        if core == self.me {
            let handler = self.handler.borrow().clone().ok_or(TransportError::Unreachable)?;
            return Ok(handler(to, body).await);
        }
        let id = self.next_request.get();
        self.next_request.set(id + 1);
        let (sender, receiver) = oneshot::channel();
        self.pending.borrow_mut().insert(id, sender);
        if let Err(error) =
            self.inboxes[core].push(Frame { from: self.me, to, kind: Kind::Request(id), body })
        {
            self.pending.borrow_mut().remove(&id);
            return Err(error);
        }
        receiver.await.map_err(|_| TransportError::Lost)
    }
}

impl Transport for Mesh {
    fn send(&self, to: Address, class: Class, body: Parcel) -> Result<(), TransportError> {
        match ((self.route)(to), self.net()) {
            (Some(core), _) => self.inboxes[core].push(Frame { from: self.me, to, kind: Kind::OneWay, body }),
            (None, Some(net)) => net.send(to, class, body),
            (None, None) => Err(TransportError::Unreachable),
        }
    }

    async fn call(&self, to: Address, class: Class, body: Parcel) -> Result<Parcel, TransportError> {
        match ((self.route)(to), self.net()) {
            (Some(core), _) => self.call_core(core, to, body).await,
            (None, Some(net)) => net.call(to, class, body).await,
            (None, None) => Err(TransportError::Unreachable),
        }
    }
}

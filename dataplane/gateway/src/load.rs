//! What a core has taken on: requests, documents held whole, idle connections.
//!
//! Invariant: what is counted is given back by a drop, so nothing that ends early is counted for ever.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::options::Limits;
use crate::stream::ConnectionState;

/// Counts of one core.
pub(crate) struct Load {
    limits: Limits,
    requests: Cell<usize>,
    xml_bytes_held: Cell<usize>,
    /// By the order in which they became idle.
    idle: RefCell<BTreeMap<u64, Rc<ConnectionState>>>,
    tickets: Cell<u64>,
}

impl Load {
    pub(crate) fn new(limits: Limits) -> Rc<Self> {
        Rc::new(Self {
            limits,
            requests: Cell::new(0),
            xml_bytes_held: Cell::new(0),
            idle: RefCell::default(),
            tickets: Cell::new(0),
        })
    }

    /// Notes an idle connection; closes the one that is idle longest when there are too many. Returns what to give to
    /// [`Load::leave_idle`].
    pub(crate) fn enter_idle(&self, connection: &Rc<ConnectionState>) -> u64 {
        let ticket = self.tickets.get();
        self.tickets.set(ticket + 1);
        let mut idle = self.idle.borrow_mut();
        idle.insert(ticket, Rc::clone(connection));
        let longest = if idle.len() > self.limits.idle_connections_max { idle.pop_first() } else { None };
        drop(idle);
        if let Some((_, longest)) = longest {
            longest.close();
        }
        ticket
    }

    /// The connection is not idle any more, or gone.
    pub(crate) fn leave_idle(&self, ticket: u64) {
        self.idle.borrow_mut().remove(&ticket);
    }
}

/// The place of one request in the counts.
pub(crate) struct Slot {
    load: Rc<Load>,
    xml_bytes: Cell<usize>,
}

impl Slot {
    pub(crate) fn take(load: &Rc<Load>) -> Self {
        load.requests.set(load.requests.get() + 1);
        Self { load: Rc::clone(load), xml_bytes: Cell::new(0) }
    }

    /// There are more requests than the core may answer at once.
    pub(crate) fn is_beyond_limit(&self) -> bool {
        self.load.requests.get() > self.load.limits.requests_max
    }

    /// Counts bytes of a document; false when the core holds too many.
    #[must_use]
    pub(crate) fn hold(&self, bytes: usize) -> bool {
        let held = self.load.xml_bytes_held.get() + bytes;
        if held > self.load.limits.xml_bytes_held_max {
            return false;
        }
        self.load.xml_bytes_held.set(held);
        self.xml_bytes.set(self.xml_bytes.get() + bytes);
        true
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.load.requests.set(self.load.requests.get() - 1);
        self.load.xml_bytes_held.set(self.load.xml_bytes_held.get() - self.xml_bytes.get());
    }
}

//! State of one request and its response, shared by the layers that see it, and its record at the end.
//!
//! Invariant: the observer hears of every exchange exactly once, when the last holder of it lets go.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use quarry_meter::stage::Stages;
use quarry_object::api::BodyError;
use send_wrapper::SendWrapper;

use crate::access::Caller;
use crate::error::Fault;
use crate::host::Place;
use crate::inbound::Source;
use crate::load::Slot;
use crate::options::{Client, Front, GatewayOptions, Observer, RequestRecord};
use crate::stream::ConnectionState;

/// Operation name until routing has found one.
const UNROUTED: &str = "Unknown";

/// State of one request and its response.
pub(crate) struct Exchange {
    pub(crate) request_id: String,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) operation: RefCell<String>,
    pub(crate) status: Cell<u16>,
    pub(crate) error_code: RefCell<Option<String>>,
    bytes_in: Cell<u64>,
    pub(crate) bytes_out: Cell<u64>,
    pub(crate) complete: Cell<bool>,
    /// What was found wrong with the request's body; s3s and the object layer say less about it.
    pub(crate) fault: RefCell<Option<Fault>>,
    /// Its place in the load of the core.
    pub(crate) slot: Slot,
    /// Who asks; set when the request is judged.
    pub(crate) caller: RefCell<Option<Rc<Caller>>>,
    /// What it is about, if its path is valid; and whether its bucket is known to exist.
    pub(crate) place: RefCell<Option<Rc<Place>>>,
    pub(crate) bucket_exists: Cell<bool>,
    pub(crate) stages: Rc<Stages>,
    /// Which way it took.
    pub(crate) front: Cell<Front>,
    connection: Rc<ConnectionState>,
    started: Duration,
    clock: Rc<dyn Fn() -> Duration>,
    observer: Rc<dyn Observer>,
}

impl Exchange {
    pub(crate) fn begin<B>(
        request: &Request<B>,
        options: &GatewayOptions,
        slot: Slot,
        connection: &Rc<ConnectionState>,
    ) -> Rc<Self> {
        connection.request_begins();
        Rc::new(Self {
            request_id: (options.request_ids)(),
            method: request.method().as_str().to_owned(),
            path: request.uri().path().to_owned(),
            operation: RefCell::new(UNROUTED.to_owned()),
            status: Cell::new(0),
            error_code: RefCell::new(None),
            bytes_in: Cell::new(0),
            bytes_out: Cell::new(0),
            complete: Cell::new(false),
            fault: RefCell::new(None),
            slot,
            caller: RefCell::new(None),
            place: RefCell::new(None),
            bucket_exists: Cell::new(false),
            stages: Rc::default(),
            front: Cell::default(),
            connection: Rc::clone(connection),
            started: (options.clock)(),
            clock: Rc::clone(&options.clock),
            observer: Rc::clone(&options.observer),
        })
    }

    /// Who is at the other end of the connection.
    pub(crate) fn client(&self) -> Client {
        self.connection.client
    }

    /// Bytes of the request's body have arrived.
    pub(crate) fn count_in(&self, data: &Bytes) {
        self.bytes_in.set(self.bytes_in.get() + data.len() as u64);
    }

    /// Remembers the first fault of the body, for the answer; returns it as the object layer knows it.
    pub(crate) fn fail(&self, fault: Fault) -> BodyError {
        let error = BodyError::from(&fault);
        self.fault.borrow_mut().get_or_insert(fault);
        error
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.connection.request_ends();
        let error_code = self.error_code.borrow();
        let operation = self.operation.borrow();
        let (caller, place) = (self.caller.borrow(), self.place.borrow());
        self.observer.request(&RequestRecord {
            request_id: &self.request_id,
            operation: &operation,
            method: &self.method,
            path: &self.path,
            bucket: place.as_deref().map_or("", |place| &place.bucket),
            bucket_exists: self.bucket_exists.get(),
            key: place.as_deref().map_or("", |place| &place.key),
            principal: caller.as_deref().map(|caller| &caller.principal),
            client: self.connection.client.address,
            stages: self.stages.times(),
            status: self.status.get(),
            error_code: error_code.as_deref(),
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            duration: (self.clock)().saturating_sub(self.started),
            complete: self.complete.get(),
            front: self.front.get(),
        });
    }
}

/// An [`Exchange`] and the body of its request, in the extensions of a request on its way through s3s.
#[derive(Clone)]
pub(crate) struct ExchangeHandle {
    pub(crate) exchange: SendWrapper<Rc<Exchange>>,
    pub(crate) source: SendWrapper<Rc<Source>>,
}

impl ExchangeHandle {
    pub(crate) fn new(exchange: &Rc<Exchange>, source: &Rc<Source>) -> Self {
        Self { exchange: SendWrapper::new(Rc::clone(exchange)), source: SendWrapper::new(Rc::clone(source)) }
    }
}

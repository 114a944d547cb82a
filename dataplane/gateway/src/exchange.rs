//! State of one request and its response, shared by the layers that see it, and its record at the end.
//!
//! Invariant: the observer hears of every exchange exactly once, when the last holder of it lets go.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use quarry_object::api::BodyError;
use send_wrapper::SendWrapper;

use crate::options::{Observer, RequestRecord};

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
    pub(crate) bytes_in: Cell<u64>,
    pub(crate) bytes_out: Cell<u64>,
    pub(crate) complete: Cell<bool>,
    /// What the raw body found wrong; s3s hides it behind its own error.
    pub(crate) fault: RefCell<Option<BodyError>>,
    started: Duration,
    clock: Rc<dyn Fn() -> Duration>,
    observer: Rc<dyn Observer>,
}

impl Exchange {
    pub(crate) fn begin(
        request_id: String,
        method: String,
        path: String,
        clock: Rc<dyn Fn() -> Duration>,
        observer: Rc<dyn Observer>,
    ) -> Rc<Self> {
        let started = clock();
        Rc::new(Self {
            request_id,
            method,
            path,
            operation: RefCell::new(UNROUTED.to_owned()),
            status: Cell::new(0),
            error_code: RefCell::new(None),
            bytes_in: Cell::new(0),
            bytes_out: Cell::new(0),
            complete: Cell::new(false),
            fault: RefCell::new(None),
            started,
            clock,
            observer,
        })
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let error_code = self.error_code.borrow();
        let operation = self.operation.borrow();
        self.observer.request(&RequestRecord {
            request_id: &self.request_id,
            operation: &operation,
            method: &self.method,
            path: &self.path,
            status: self.status.get(),
            error_code: error_code.as_deref(),
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            duration: (self.clock)().saturating_sub(self.started),
            complete: self.complete.get(),
        });
    }
}

/// An [`Exchange`] in the extensions of a request on its way through s3s.
#[derive(Clone)]
pub(crate) struct ExchangeHandle(pub(crate) SendWrapper<Rc<Exchange>>);

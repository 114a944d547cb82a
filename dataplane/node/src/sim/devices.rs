//! The devices of a simulated machine: they outlive the node that runs on them, and their event logs are kept as one
//! list, so that the order between devices is known too.

use std::{cell::RefCell, future::poll_fn, pin::pin, rc::Rc, task::Poll};

use quarry_storage::device::{Device, DeviceError, Event, IoBuf, SimDevice};

/// All devices, by position.
pub(super) struct Devices {
    all: Vec<SimDevice>,
    trace: RefCell<Option<Vec<(usize, Event)>>>,
    on_flush: RefCell<Option<Rc<dyn Fn()>>>,
}

impl Devices {
    pub(super) fn new(all: Vec<SimDevice>) -> Rc<Self> {
        Rc::new(Self { all, trace: RefCell::default(), on_flush: RefCell::default() })
    }

    pub(super) fn all(&self) -> &[SimDevice] {
        &self.all
    }

    /// Begins a list of events.
    pub(super) fn start_trace(&self) {
        self.all.iter().for_each(SimDevice::clear_events);
        *self.trace.borrow_mut() = Some(Vec::new());
    }

    /// What happened since [`Devices::start_trace`], in order.
    pub(super) fn trace(&self) -> Vec<(usize, Event)> {
        self.trace.borrow().clone().unwrap_or_default()
    }

    /// `hook` runs when any flush begins, and when any has ended, before anybody hears of it.
    pub(super) fn set_on_flush(&self, hook: Option<Rc<dyn Fn()>>) {
        *self.on_flush.borrow_mut() = hook;
    }

    fn collect_events(&self, index: usize) {
        let device = &self.all[index];
        if let Some(trace) = &mut *self.trace.borrow_mut() {
            trace.extend(device.events().into_iter().map(|event| (index, event)));
        }
        device.clear_events();
    }

    fn flush_boundary(&self) {
        let hook = self.on_flush.borrow().clone();
        if let Some(hook) = hook {
            hook();
        }
    }
}

/// One device as the node uses it.
pub(crate) struct Probe {
    devices: Rc<Devices>,
    index: usize,
}

impl Probe {
    pub(super) fn new(devices: &Rc<Devices>, index: usize) -> Self {
        Self { devices: Rc::clone(devices), index }
    }

    fn device(&self) -> &SimDevice {
        &self.devices.all[self.index]
    }

    /// Moves the device's events to the common list as soon as there are any.
    async fn observed<T>(&self, operation: impl Future<Output = T>) -> T {
        let mut operation = pin!(operation);
        poll_fn(|context| {
            let polled: Poll<T> = operation.as_mut().poll(context);
            self.devices.collect_events(self.index);
            polled
        })
        .await
    }
}

impl Device for Probe {
    fn size_bytes(&self) -> u64 {
        self.device().size_bytes()
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> (Result<(), DeviceError>, IoBuf) {
        self.observed(self.device().read(offset, buf)).await
    }

    async fn write(&self, offset: u64, buf: IoBuf) -> (Result<(), DeviceError>, IoBuf) {
        self.observed(self.device().write(offset, buf)).await
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.devices.flush_boundary();
        let result = self.observed(self.device().flush()).await;
        self.devices.flush_boundary();
        result
    }
}

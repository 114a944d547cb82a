//! Frames within one core, serialised, delayed at random, and so reordered.

use std::{cell::RefCell, future::poll_fn, rc::Rc, task::Poll};

use futures::future::LocalBoxFuture;
use quarry_object::transport::{Address, Class, Parcel, Transport, TransportError};

use super::{Random, executor::Spawn};

/// Most turns of the executor that a frame is under way.
const DELAY_TURNS_MAX: u64 = 6;

type Handler = Rc<dyn Fn(Address, Parcel) -> LocalBoxFuture<'static, Parcel>>;

/// See the module.
pub(crate) struct LocalTransport {
    handler: RefCell<Option<Handler>>,
    spawn: Spawn,
    random: Random,
}

impl LocalTransport {
    pub(super) fn new(spawn: Spawn, seed: u64) -> Rc<Self> {
        Rc::new(Self { handler: RefCell::default(), spawn, random: Random::new(seed) })
    }

    pub(super) fn set_handler(&self, handler: Option<Handler>) {
        *self.handler.borrow_mut() = handler;
    }

    fn delay(&self) -> impl Future<Output = ()> + 'static {
        let mut turns = self.random.below(DELAY_TURNS_MAX);
        poll_fn(move |context| {
            if turns == 0 {
                return Poll::Ready(());
            }
            turns -= 1;
            context.waker().wake_by_ref();
            Poll::Pending
        })
    }

    fn handler(&self) -> Result<Handler, TransportError> {
        self.handler.borrow().clone().ok_or(TransportError::Unreachable)
    }
}

impl Transport for LocalTransport {
    fn send(&self, to: Address, _: Class, frame: Parcel) -> Result<(), TransportError> {
        let (handler, delay) = (self.handler()?, self.delay());
        (self.spawn)(Box::pin(async move {
            delay.await;
            handler(to, frame).await;
        }));
        Ok(())
    }

    async fn call(&self, to: Address, _: Class, frame: Parcel) -> Result<Parcel, TransportError> {
        let handler = self.handler()?;
        self.delay().await;
        let answer = handler(to, frame).await;
        self.delay().await;
        Ok(answer)
    }
}

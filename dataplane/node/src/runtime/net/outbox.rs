//! What one core has sent, and is about to send, to one node in one class. No I/O here.
//!
//! ```text
//!               call                    connection up and written          answer, refusal
//!   (nothing) ---------> queued ------------------------------> sent ------------------------> (answered)
//!                          |                                      |
//!                          | cannot connect: Unreachable          | connection broke: Lost
//!                          +--------------------------------------+-----------> (failed)
//! ```
//!
//! Rules: every call ends exactly once; what was never written is `Unreachable`, what was written and not answered is
//! `Lost`; a call whose asker is gone is forgotten, queued or sent; nothing is ever sent twice.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
};

use futures::channel::oneshot;
use quarry_object::transport::{Address, Class, Parcel, TransportError};

use super::frame::{Frame, Kind};

/// Frames that may wait for one connection. A core writes well over 100,000 frames a second.
const QUEUE_FRAMES: usize = 4096;
/// Bytes that may wait for one connection: a moment of a slow network.
const QUEUE_BYTES: usize = 16 << 20;
/// Calls of bulk under way: at the usual 128 KiB each, 4 MiB, more than delay times bandwidth of any network we meet.
const BULK_CALLS: usize = 32;

pub(crate) type Answer = Result<Parcel, TransportError>;

/// See the module.
pub(crate) struct Outbox {
    class: Class,
    queue: RefCell<VecDeque<Frame>>,
    queued_bytes: Cell<usize>,
    waiting: RefCell<HashMap<u64, Waiting>>,
    next_id: Cell<u64>,
}

struct Waiting {
    answer: oneshot::Sender<Answer>,
    sent: bool,
}

impl Outbox {
    pub(crate) fn new(class: Class) -> Self {
        Self {
            class,
            queue: RefCell::default(),
            queued_bytes: Cell::new(0),
            waiting: RefCell::default(),
            next_id: Cell::new(0),
        }
    }

    /// Whether another bulk call may begin; calls of other classes are refused instead of waiting.
    pub(crate) fn has_room(&self) -> bool {
        self.class != Class::Bulk || self.waiting.borrow().len() < BULK_CALLS
    }

    fn push(&self, frame: Frame) -> Result<(), TransportError> {
        let bytes = self.queued_bytes.get() + frame.len_bytes();
        if !super::frame::admits(self.class, &frame.parcel)
            || self.queue.borrow().len() >= QUEUE_FRAMES
            // Bulk is bounded by the calls under way.
            || self.class != Class::Bulk && bytes > QUEUE_BYTES && !self.queue.borrow().is_empty()
        {
            return Err(TransportError::Overloaded);
        }
        self.queued_bytes.set(bytes);
        self.queue.borrow_mut().push_back(frame);
        Ok(())
    }

    /// Queues a call; its id, and where the answer will come.
    pub(crate) fn call(
        &self,
        to: Address,
        parcel: Parcel,
    ) -> Result<(u64, oneshot::Receiver<Answer>), TransportError> {
        let id = self.next_id.get();
        self.push(Frame { kind: Kind::Request { id, to }, parcel })?;
        self.next_id.set(id + 1);
        let (answer, receiver) = oneshot::channel();
        self.waiting.borrow_mut().insert(id, Waiting { answer, sent: false });
        Ok((id, receiver))
    }

    /// Queues a message that has no answer.
    pub(crate) fn send(&self, to: Address, parcel: Parcel) -> Result<(), TransportError> {
        self.push(Frame { kind: Kind::OneWay { to }, parcel })
    }

    /// Queues a sign of life, before everything else.
    pub(crate) fn ping(&self, echo: u64) {
        let frame = Frame::bare(Kind::Ping { echo });
        self.queued_bytes.set(self.queued_bytes.get() + frame.len_bytes());
        self.queue.borrow_mut().push_front(frame);
    }

    /// The next frame to write; from now on it counts as sent.
    pub(crate) fn next(&self) -> Option<Frame> {
        loop {
            let frame = self.queue.borrow_mut().pop_front()?;
            self.queued_bytes.set(self.queued_bytes.get() - frame.len_bytes());
            if let Kind::Request { id, .. } = frame.kind {
                match self.waiting.borrow_mut().get_mut(&id) {
                    Some(waiting) => waiting.sent = true,
                    // Its asker is gone, and nothing was sent yet.
                    None => continue,
                }
            }
            return Some(frame);
        }
    }

    /// An answer has come; `false`: nobody waits for it.
    pub(crate) fn answered(&self, id: u64, answer: Answer) -> bool {
        let waiting = self.waiting.borrow_mut().remove(&id);
        waiting.is_some_and(|waiting| waiting.answer.send(answer).is_ok())
    }

    /// The asker does not wait any more. Says whether the call was sent.
    pub(crate) fn forget(&self, id: u64) -> bool {
        self.waiting.borrow_mut().remove(&id).is_some_and(|waiting| waiting.sent)
    }

    /// The connection is gone, or cannot be made: everything ends.
    pub(crate) fn fail_all(&self) {
        self.queue.borrow_mut().clear();
        self.queued_bytes.set(0);
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for (_, waiting) in waiting {
            let error = if waiting.sent { TransportError::Lost } else { TransportError::Unreachable };
            // Who does not listen any more does not mind.
            let _gone = waiting.answer.send(Err(error));
        }
    }

    /// Frames that wait to be written.
    pub(crate) fn queued(&self) -> usize {
        self.queue.borrow().len()
    }

    /// Calls that wait for their answer.
    pub(crate) fn calls(&self) -> usize {
        self.waiting.borrow().len()
    }
}

#[cfg(test)]
mod tests {
    use quarry_clustermap::DeviceId;

    use super::*;

    const TO: Address = Address::Device(DeviceId(1));

    fn parcel(len: usize) -> Parcel {
        vec![0; len].into()
    }

    fn id_of(frame: Option<Frame>) -> u64 {
        match frame.unwrap().kind {
            Kind::Request { id, .. } => id,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_broken_connection_tells_what_was_sent_from_what_was_not() {
        let outbox = Outbox::new(Class::Ordinary);
        let (_, mut answered) = outbox.call(TO, parcel(1)).unwrap();
        let (_, mut sent) = outbox.call(TO, parcel(1)).unwrap();
        let (_, mut queued) = outbox.call(TO, parcel(1)).unwrap();
        assert_eq!((id_of(outbox.next()), id_of(outbox.next())), (0, 1));
        assert!(outbox.answered(0, Ok(parcel(2))));
        outbox.fail_all();
        assert_eq!(answered.try_recv(), Ok(Some(Ok(parcel(2)))));
        assert_eq!(sent.try_recv(), Ok(Some(Err(TransportError::Lost))));
        assert_eq!(queued.try_recv(), Ok(Some(Err(TransportError::Unreachable))));
        assert!(outbox.next().is_none());
        assert!(!outbox.answered(1, Ok(parcel(2))), "an answer after the end is nobody's");
        assert_eq!((outbox.queued(), outbox.calls(), outbox.queued_bytes.get()), (0, 0, 0));
    }

    #[test]
    fn a_call_that_nobody_waits_for_is_not_sent() {
        let outbox = Outbox::new(Class::Ordinary);
        let (first, _receiver) = outbox.call(TO, parcel(1)).unwrap();
        let (second, _receiver) = outbox.call(TO, parcel(1)).unwrap();
        assert!(!outbox.forget(first));
        assert_eq!(id_of(outbox.next()), second);
        assert!(outbox.forget(second));
        assert_eq!(outbox.queued_bytes.get(), 0);
    }

    #[test]
    fn queues_are_bounded_in_frames_and_bytes() {
        let outbox = Outbox::new(Class::Ordinary);
        for _ in 0..QUEUE_FRAMES {
            outbox.send(TO, parcel(1)).unwrap();
        }
        assert_eq!(outbox.send(TO, parcel(1)), Err(TransportError::Overloaded));
        let outbox = Outbox::new(Class::Ordinary);
        outbox.send(TO, parcel(QUEUE_BYTES / 2)).unwrap();
        assert_eq!(outbox.send(TO, parcel(QUEUE_BYTES / 2)), Err(TransportError::Overloaded));
        let urgent = Outbox::new(Class::Urgent);
        assert_eq!(urgent.send(TO, parcel(2 << 20)), Err(TransportError::Overloaded));
    }

    #[test]
    fn bulk_calls_have_a_window() {
        let outbox = Outbox::new(Class::Bulk);
        let calls: Vec<_> = (0..BULK_CALLS).map(|_| outbox.call(TO, parcel(1)).unwrap()).collect();
        assert!(!outbox.has_room());
        outbox.forget(calls[0].0);
        assert!(outbox.has_room());
    }

    #[test]
    fn a_sign_of_life_does_not_wait() {
        let outbox = Outbox::new(Class::Bulk);
        outbox.send(TO, parcel(1)).unwrap();
        outbox.ping(4);
        assert_eq!(outbox.next().unwrap().kind, Kind::Ping { echo: 4 });
    }
}

//! A simulated device in memory: sparse, seeded, with faults and power cuts. Handles clone cheaply.
//!
//! Two images exist side by side: what reads see, and what would survive a power cut. A write joins the first when
//! it completes and the second when a flush that began after its completion succeeds; until then a crash keeps a
//! seeded random subset of the unflushed writes, including those still in flight, each whole or torn, in any order.
//! After a failed flush the writes it should have covered never become durable, as with a real kernel: retrying
//! does not help. Operations take at least one turn of the executor; dropping a future lets its write complete.
//!
//! Not modelled: time. Everything random follows from the seeds, so a failing test can be replayed.

mod faults;
mod image;

use std::{
    cell::RefCell,
    fmt, future, mem,
    rc::Rc,
    task::{Poll, Waker},
};

use self::{
    faults::{Effect, Rule},
    image::{Image, Rng},
};
use super::{Device, DeviceError, IoBuf, Operation, SECTOR_BYTES, check_range};

pub use self::faults::{Access, Fault, When};

/// Most extra turns an operation takes under [`SimDevice::set_shuffle`].
const SHUFFLE_TURNS_MAX: u64 = 8;

/// One entry of the log of a [`SimDevice`]. Operations that failed have no `Done`; a flush skipped by
/// [`SimDevice::set_skip_flush`] leaves no trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A read was issued.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes read.
        length_bytes: u64,
    },
    /// A write was issued.
    WriteStart {
        /// First byte.
        offset: u64,
        /// Bytes written.
        length_bytes: u64,
    },
    /// A write was acknowledged.
    WriteDone {
        /// First byte.
        offset: u64,
        /// Bytes written.
        length_bytes: u64,
    },
    /// A flush was issued; it covers the writes that are done by now.
    FlushStart,
    /// A flush was acknowledged.
    FlushDone,
}

/// A simulated device; clones are handles to the same one.
#[derive(Clone)]
pub struct SimDevice {
    size_bytes: u64,
    state: Rc<RefCell<State>>,
}

#[derive(Default)]
struct State {
    rng: Rng,
    visible: Image,
    durable: Image,
    unflushed: Vec<Write>,
    next_id: u64,
    completions: u64,
    events: Vec<Event>,
    rules: Vec<Rule>,
    capturing: bool,
    captures: Vec<Capture>,
    skip_flush: bool,
    shuffle: bool,
    stalled: bool,
    closed: bool,
    stalled_wakers: Vec<Waker>,
}

/// A write that no flush has made durable.
#[derive(Clone)]
struct Write {
    id: u64,
    offset: u64,
    data: Rc<[u8]>,
    /// Position in the order of completions; `None` while in flight.
    done: Option<u64>,
    /// A flush failed, or the write itself: no later flush will make it durable.
    doomed: bool,
}

/// The state of a device at one moment, from which power cuts can be derived. Shares memory with the device.
#[derive(Clone)]
pub struct Capture {
    size_bytes: u64,
    durable: Image,
    unflushed: Vec<Write>,
    events: usize,
}

impl SimDevice {
    /// A device of `size_bytes` reading as zeros; `seed` decides the order of completions under shuffle.
    ///
    /// # Panics
    /// When the size is zero or not block-aligned.
    pub fn new(size_bytes: u64, seed: u64) -> Self {
        Self::from_image(size_bytes, seed, Image::default())
    }

    fn from_image(size_bytes: u64, seed: u64, image: Image) -> Self {
        assert!(size_bytes > 0 && size_bytes.is_multiple_of(super::BLOCK_BYTES as u64), "{size_bytes} bytes");
        let state = State { rng: Rng::new(seed), visible: image.clone(), durable: image, ..State::default() };
        Self { size_bytes, state: Rc::new(RefCell::new(state)) }
    }

    /// What happened so far, oldest first.
    pub fn events(&self) -> Vec<Event> {
        self.state.borrow().events.clone()
    }

    /// Forgets the log.
    pub fn clear_events(&self) {
        self.state.borrow_mut().events.clear();
    }

    /// The state as of now.
    pub fn capture(&self) -> Capture {
        self.state.borrow().capture(self.size_bytes)
    }

    /// Whether every flush, when it begins, leaves a [`Capture`] (also flushes that fail or are skipped).
    pub fn set_capture(&self, on: bool) {
        self.state.borrow_mut().capturing = on;
    }

    /// The captures so far, oldest first.
    pub fn captures(&self) -> Vec<Capture> {
        self.state.borrow().captures.clone()
    }

    /// A new device after a power cut now; `seed` picks which unflushed writes survive, and how torn.
    pub fn crash(&self, seed: u64) -> Self {
        self.capture().crash(seed)
    }

    /// A new device after a power cut now that lost everything unflushed.
    pub fn crash_keeping_nothing(&self) -> Self {
        self.capture().crash_keeping_nothing()
    }

    /// Fails every operation from now on, also those in flight, with [`DeviceError::Closed`].
    pub fn power_off(&self) {
        self.state.borrow_mut().closed = true;
        self.set_stalled(false);
    }

    /// Adds a fault; of several that match an operation the oldest strikes.
    ///
    /// # Panics
    /// When a misdirected write would land off a block boundary.
    pub fn inject(&self, fault: Fault, when: When) {
        let mut state = self.state.borrow_mut();
        let before = state.visible.clone();
        state.rules.push(Rule::new(fault, when, before));
    }

    /// Removes all faults added by [`SimDevice::inject`].
    pub fn clear_faults(&self) {
        self.state.borrow_mut().rules.clear();
    }

    /// Makes flushes succeed without effect, so that a test can prove that it would notice a missing flush.
    pub fn set_skip_flush(&self, on: bool) {
        self.state.borrow_mut().skip_flush = on;
    }

    /// Makes operations take a random number of turns, so that they complete in random order.
    pub fn set_shuffle(&self, on: bool) {
        self.state.borrow_mut().shuffle = on;
    }

    /// Holds back every completion until switched off.
    pub fn set_stalled(&self, on: bool) {
        let wakers = {
            let mut state = self.state.borrow_mut();
            state.stalled = on;
            if on { Vec::new() } else { mem::take(&mut state.stalled_wakers) }
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Inverts one bit (0..8) of the byte at `offset` on the medium.
    pub fn flip_bit(&self, offset: u64, bit: u8) {
        let byte = self.peek(offset, 1)[0] ^ (1 << bit);
        self.poke(offset, &[byte]);
    }

    /// Bytes as a read would see them, at any alignment and past all faults.
    pub fn peek(&self, offset: u64, length_bytes: usize) -> Vec<u8> {
        assert!(offset + length_bytes as u64 <= self.size_bytes, "peek beyond the device");
        let mut bytes = vec![0; length_bytes];
        self.state.borrow().visible.read(offset, &mut bytes);
        bytes
    }

    /// Changes bytes on the medium, at any alignment, durably and unlogged: damage, or a prepared image.
    pub fn poke(&self, offset: u64, bytes: &[u8]) {
        assert!(offset + bytes.len() as u64 <= self.size_bytes, "poke beyond the device");
        let mut state = self.state.borrow_mut();
        state.visible.write(offset, bytes);
        state.durable.write(offset, bytes);
    }

    /// Waits for the turns the operation takes, and out of a stall.
    async fn pause(&self) -> Result<(), DeviceError> {
        let mut turns = self.state.borrow_mut().turns();
        future::poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            if state.closed {
                return Poll::Ready(Err(DeviceError::Closed));
            }
            if state.stalled {
                state.stalled_wakers.push(context.waker().clone());
                return Poll::Pending;
            }
            if turns == 0 {
                return Poll::Ready(Ok(()));
            }
            turns -= 1;
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }

    /// The start of every operation: what the rules make of it.
    fn begin(&self, operation: Operation, offset: u64, length_bytes: usize) -> Result<Effect, DeviceError> {
        let mut state = self.state.borrow_mut();
        if state.closed {
            return Err(DeviceError::Closed);
        }
        let access = Access { operation, offset, length_bytes: length_bytes as u64 };
        Ok(state.rules.iter_mut().find_map(|rule| rule.strike(&access)).unwrap_or(Effect::None))
    }

    async fn try_read(&self, offset: u64, buf: &mut IoBuf) -> Result<(), DeviceError> {
        check_range(Operation::Read, offset, buf.len(), self.size_bytes)?;
        let effect = self.begin(Operation::Read, offset, buf.len())?;
        self.state.borrow_mut().events.push(Event::Read { offset, length_bytes: buf.len() as u64 });
        self.pause().await?;
        match effect {
            Effect::Error(errno) => return Err(DeviceError::io(Operation::Read, offset, buf.len(), errno)),
            Effect::Stale(before) => before.read(offset, buf),
            Effect::None | Effect::Lost | Effect::Misdirected(_) => {
                self.state.borrow().visible.read(offset, buf);
            }
        }
        Ok(())
    }

    async fn try_write(&self, offset: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        check_range(Operation::Write, offset, bytes.len(), self.size_bytes)?;
        let effect = self.begin(Operation::Write, offset, bytes.len())?;
        let length_bytes = bytes.len() as u64;
        let mut landing = offset;
        if let Effect::Misdirected(to) = effect {
            check_range(Operation::Write, to, bytes.len(), self.size_bytes)?;
            landing = to;
        }
        let in_flight = {
            let mut state = self.state.borrow_mut();
            state.events.push(Event::WriteStart { offset, length_bytes });
            let kept = !matches!(effect, Effect::Lost);
            let id = kept.then(|| state.start_write(landing, bytes, matches!(effect, Effect::Error(_))));
            WriteInFlight { state: &self.state, id }
        };
        let paused = self.pause().await;
        drop(in_flight);
        paused?;
        if let Effect::Error(errno) = effect {
            return Err(DeviceError::io(Operation::Write, offset, bytes.len(), errno));
        }
        self.state.borrow_mut().events.push(Event::WriteDone { offset, length_bytes });
        Ok(())
    }
}

impl Device for SimDevice {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    async fn read(&self, offset: u64, mut buf: IoBuf) -> (Result<(), DeviceError>, IoBuf) {
        let result = self.try_read(offset, &mut buf).await;
        (result, buf)
    }

    async fn write(&self, offset: u64, buf: IoBuf) -> (Result<(), DeviceError>, IoBuf) {
        let result = self.try_write(offset, &buf).await;
        (result, buf)
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        let effect = self.begin(Operation::Flush, 0, 0)?;
        let (covered, skipped) = {
            let mut state = self.state.borrow_mut();
            if state.capturing {
                let capture = state.capture(self.size_bytes);
                state.captures.push(capture);
            }
            if !state.skip_flush {
                state.events.push(Event::FlushStart);
            }
            (state.completions, state.skip_flush)
        };
        self.pause().await?;
        let mut state = self.state.borrow_mut();
        if let Effect::Error(errno) = effect {
            state.doom(covered);
            return Err(DeviceError::io(Operation::Flush, 0, 0, errno));
        }
        if !skipped {
            state.make_durable(covered);
            state.events.push(Event::FlushDone);
        }
        Ok(())
    }
}

/// Completes a write when its turns are over, or when its future is dropped: the device carries on without it.
struct WriteInFlight<'a> {
    state: &'a RefCell<State>,
    id: Option<u64>,
}

impl Drop for WriteInFlight<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.state.borrow_mut().finish_write(id);
        }
    }
}

impl State {
    fn turns(&mut self) -> u64 {
        if self.shuffle { 1 + self.rng.below(SHUFFLE_TURNS_MAX) } else { 1 }
    }

    fn capture(&self, size_bytes: u64) -> Capture {
        let (durable, unflushed) = (self.durable.clone(), self.unflushed.clone());
        Capture { size_bytes, durable, unflushed, events: self.events.len() }
    }

    fn start_write(&mut self, offset: u64, bytes: &[u8], doomed: bool) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.unflushed.push(Write { id, offset, data: bytes.into(), done: None, doomed });
        id
    }

    fn finish_write(&mut self, id: u64) {
        if self.closed {
            return;
        }
        let write = self.unflushed.iter_mut().find(|write| write.id == id).expect("in flight is unflushed");
        self.completions += 1;
        write.done = Some(self.completions);
        // A write that fails leaves either content behind.
        if !write.doomed || self.rng.below(2) == 0 {
            let (offset, data) = (write.offset, Rc::clone(&write.data));
            self.visible.write(offset, &data);
        }
    }

    /// A flush that began after `covered` completions has succeeded.
    fn make_durable(&mut self, covered: u64) {
        let (mut flushed, kept): (Vec<_>, Vec<_>) = mem::take(&mut self.unflushed)
            .into_iter()
            .partition(|write| !write.doomed && write.done.is_some_and(|done| done <= covered));
        flushed.sort_by_key(|write| write.done);
        self.unflushed = kept;
        for write in flushed {
            self.durable.write(write.offset, &write.data);
            // What stands under a durable write can no longer come up in a crash.
            self.unflushed.retain(|old| {
                !(old.doomed && old.done.is_some() && old.done < write.done && old.overlaps(&write))
            });
        }
    }

    /// A flush that began after `covered` completions has failed.
    fn doom(&mut self, covered: u64) {
        for write in &mut self.unflushed {
            write.doomed |= write.done.is_some_and(|done| done <= covered);
        }
    }
}

impl Write {
    fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }
}

impl Capture {
    /// A device after a power cut at this moment; `seed` picks which unflushed writes survive, and how torn.
    ///
    /// The share of survivors is itself random, so that seeds reach from nothing to everything.
    pub fn crash(&self, seed: u64) -> SimDevice {
        let mut rng = Rng::new(seed);
        let mut image = self.durable.clone();
        let keep_eighths = rng.below(9);
        let mut order: Vec<&Write> = self.unflushed.iter().filter(|_| rng.below(8) < keep_eighths).collect();
        rng.shuffle(&mut order);
        for write in order {
            let unit_bytes = match rng.below(4) {
                0 => SECTOR_BYTES,
                1 => super::BLOCK_BYTES,
                _ => write.data.len(),
            };
            let whole = unit_bytes == write.data.len();
            for (unit, offset) in write.data.chunks(unit_bytes).zip((write.offset..).step_by(unit_bytes)) {
                if whole || rng.below(2) == 0 {
                    image.write(offset, unit);
                }
            }
        }
        SimDevice::from_image(self.size_bytes, seed, image)
    }

    /// A device after a power cut at this moment that tore every unflushed write: of each a random half of its units
    /// of `unit_bytes` survives, in random order.
    pub fn crash_torn(&self, unit_bytes: usize, seed: u64) -> SimDevice {
        let mut rng = Rng::new(seed);
        let mut image = self.durable.clone();
        let mut order: Vec<&Write> = self.unflushed.iter().collect();
        rng.shuffle(&mut order);
        for write in order {
            for (unit, offset) in write.data.chunks(unit_bytes).zip((write.offset..).step_by(unit_bytes)) {
                if rng.below(2) == 0 {
                    image.write(offset, unit);
                }
            }
        }
        SimDevice::from_image(self.size_bytes, seed, image)
    }

    /// A device after a power cut at this moment that kept exactly the unflushed writes for which `kept` is true, by
    /// their position in [`Capture::unflushed`], each whole: a later write without an earlier one, too.
    pub fn crash_keeping(&self, kept: impl Fn(usize) -> bool) -> SimDevice {
        let mut image = self.durable.clone();
        for (_, write) in self.unflushed.iter().enumerate().filter(|(number, _)| kept(*number)) {
            image.write(write.offset, &write.data);
        }
        SimDevice::from_image(self.size_bytes, 0, image)
    }

    /// A device after a power cut at this moment that lost everything unflushed.
    pub fn crash_keeping_nothing(&self) -> SimDevice {
        SimDevice::from_image(self.size_bytes, 0, self.durable.clone())
    }

    /// A device after a power cut at this moment that lost nothing, not even writes in flight.
    pub fn crash_keeping_everything(&self) -> SimDevice {
        let mut image = self.durable.clone();
        let mut order: Vec<&Write> = self.unflushed.iter().collect();
        order.sort_by_key(|write| write.done.unwrap_or(u64::MAX));
        for write in order {
            image.write(write.offset, &write.data);
        }
        SimDevice::from_image(self.size_bytes, 0, image)
    }

    /// Offset and length in bytes of every unflushed write, in the order they were issued.
    pub fn unflushed(&self) -> Vec<(u64, usize)> {
        self.unflushed.iter().map(|write| (write.offset, write.data.len())).collect()
    }

    /// How many entries the event log had.
    pub fn events_before(&self) -> usize {
        self.events
    }
}

impl fmt::Debug for SimDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "SimDevice({} bytes, {} writes unflushed)",
            self.size_bytes,
            self.state.borrow().unflushed.len()
        )
    }
}

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Capture({} events, {} writes unflushed)", self.events, self.unflushed.len())
    }
}

#[cfg(test)]
mod tests;

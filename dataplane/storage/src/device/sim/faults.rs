//! Which operations of a simulated device go wrong, and how.

use std::{fmt, ops::Range, rc::Rc};

use super::super::{BLOCK_BYTES, Operation};
use super::image::Image;

/// One operation, as a fault's predicate sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// What is being done.
    pub operation: Operation,
    /// First byte; 0 for a flush.
    pub offset: u64,
    /// Bytes; 0 for a flush.
    pub length_bytes: u64,
}

/// How a struck operation goes wrong. Bit flips are damage to the medium: [`super::SimDevice::flip_bit`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Fails with EIO. A failed write may or may not have left its bytes.
    Error,
    /// A write is acknowledged and thrown away. Strikes writes only.
    LostWrite,
    /// A write lands somewhere else. Strikes writes only.
    MisdirectedWrite {
        /// Where it lands, block-aligned.
        to: u64,
    },
    /// A read returns what stood there when the fault was injected. Strikes reads only.
    StaleRead,
}

type Predicate = Rc<dyn Fn(&Access) -> bool>;

/// Which operations a [`Fault`] strikes.
#[derive(Clone)]
pub struct When {
    operation: Option<Operation>,
    within: Option<Range<u64>>,
    predicate: Option<Predicate>,
    skip: u64,
    times: u64,
}

impl When {
    /// Every operation.
    pub fn any() -> Self {
        Self { operation: None, within: None, predicate: None, skip: 0, times: u64::MAX }
    }

    /// Every operation of one kind.
    pub fn on(operation: Operation) -> Self {
        Self { operation: Some(operation), ..Self::any() }
    }

    /// Only operations that touch this byte range (never a flush).
    #[must_use]
    pub fn touching(self, range: Range<u64>) -> Self {
        Self { within: Some(range), ..self }
    }

    /// Only operations for which `predicate` holds; it must not use the device.
    #[must_use]
    pub fn matching(self, predicate: impl Fn(&Access) -> bool + 'static) -> Self {
        Self { predicate: Some(Rc::new(predicate)), ..self }
    }

    /// Lets the first `count` of them pass.
    #[must_use]
    pub fn skip(self, count: u64) -> Self {
        Self { skip: count, ..self }
    }

    /// Strikes `count` times, then never again.
    #[must_use]
    pub fn times(self, count: u64) -> Self {
        Self { times: count, ..self }
    }

    fn matches(&self, access: &Access) -> bool {
        let touches = |range: &Range<u64>| {
            access.offset < range.end && range.start < access.offset + access.length_bytes
        };
        self.operation.is_none_or(|operation| operation == access.operation)
            && self.within.as_ref().is_none_or(touches)
            && self.predicate.as_ref().is_none_or(|predicate| predicate(access))
    }
}

impl fmt::Debug for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("When")
            .field("operation", &self.operation)
            .field("within", &self.within)
            .field("skip", &self.skip)
            .field("times", &self.times)
            .finish_non_exhaustive()
    }
}

/// What the rules make of one operation.
pub(super) enum Effect {
    None,
    Error(i32),
    Lost,
    Misdirected(u64),
    Stale(Image),
}

/// An injected fault.
pub(super) struct Rule {
    fault: Fault,
    when: When,
    /// What reads saw when the fault was injected.
    before: Image,
}

impl Rule {
    pub(super) fn new(fault: Fault, when: When, before: Image) -> Self {
        if let Fault::MisdirectedWrite { to } = fault {
            assert!(to.is_multiple_of(BLOCK_BYTES as u64), "a write cannot land at {to}");
        }
        Self { fault, when, before }
    }

    /// Counts `access` if it matches; the effect if it is struck.
    pub(super) fn strike(&mut self, access: &Access) -> Option<Effect> {
        let applies = match self.fault {
            Fault::Error => true,
            Fault::LostWrite | Fault::MisdirectedWrite { .. } => access.operation == Operation::Write,
            Fault::StaleRead => access.operation == Operation::Read,
        };
        if !applies || self.when.times == 0 || !self.when.matches(access) {
            return None;
        }
        if self.when.skip > 0 {
            self.when.skip -= 1;
            return None;
        }
        self.when.times -= 1;
        Some(match self.fault {
            Fault::Error => Effect::Error(libc::EIO),
            Fault::LostWrite => Effect::Lost,
            Fault::MisdirectedWrite { to } => Effect::Misdirected(to),
            Fault::StaleRead => Effect::Stale(self.before.clone()),
        })
    }
}

//! From a drawn operation to what is sent: which object, version, size and range, or which substitute.
//!
//! Substitutes: deleting, copying, or overwriting on a condition need an object that is there; without one they become a
//! PUT. A write that finds every object near the drawn one busy makes a new object. A range of an object without bytes
//! is read as a whole.

use super::Shared;
use super::keys::{Keys, Reading, Want, Writing};
use crate::client::Condition;
use crate::content::alias;
use crate::expect::Content;
use crate::stats::Operation;
use crate::workload::dice::Dice;

/// One operation, ready to be sent. It holds its object until [`Step::release`].
pub(crate) enum Step {
    Get(Reading),
    Range(Reading, (u64, u64)),
    Head(Reading),
    /// The number of the object after which the listing begins, and what must be in it.
    List(u64, Vec<Option<u32>>),
    Write(Write),
    Delete(Writing),
    Copy {
        source: u64,
        writing: Writing,
        content: Content,
    },
}

/// A PUT or an upload in parts.
pub(crate) struct Write {
    pub(crate) writing: Writing,
    pub(crate) content: Content,
    pub(crate) size_bytes: u64,
    pub(crate) operation: Operation,
    pub(crate) in_parts: bool,
    pub(crate) condition: Option<Condition>,
    /// The condition does not hold: the server has to refuse.
    pub(crate) must_fail: bool,
}

impl Step {
    /// Operation number `number` of the run.
    pub(crate) fn new(shared: &Shared, number: u64) -> Self {
        if let Some(trace) = &shared.trace {
            let index = usize::try_from(number).unwrap_or(usize::MAX) % trace.operations.len();
            return Self::replayed(shared, index);
        }
        let draw = shared.workload.draw(shared.seed, shared.client, number);
        let mut dice = draw.dice;
        let object = shared.workload.popularity.draw(shared.keys.len(), &mut dice);
        match draw.operation {
            Operation::Get => Self::Get(shared.keys.begin_read(object)),
            Operation::Head => Self::Head(shared.keys.begin_read(object)),
            Operation::Range => {
                let len = shared.workload.range.draw(&mut dice);
                Self::range(shared.keys.begin_read(object), len, None, &mut dice)
            }
            Operation::List => {
                let certain = shared.keys.certain(object, u64::from(shared.workload.list_keys));
                Self::List(object, certain)
            }
            Operation::Put | Operation::Multipart => {
                let new = dice.unit() < shared.workload.new_share;
                Self::write(shared, draw.operation, object, new, None)
            }
            Operation::Delete => match shared.keys.begin_write(object, Want::Present, |_, _| Content::Absent)
            {
                Some(writing) => Self::Delete(writing),
                None => Self::write(shared, Operation::Put, object, false, None),
            },
            Operation::Copy => Self::copy(shared, object, &mut dice),
            Operation::Conditional => Self::conditional(shared, object, &mut dice),
        }
    }

    fn replayed(shared: &Shared, index: usize) -> Self {
        let trace = shared.trace.as_ref().expect("the caller saw it");
        let recorded = trace.operations[index];
        let object = recorded.object;
        let mut dice = Dice::new(shared.seed, shared.client, index as u64);
        match recorded.operation {
            Operation::Get => Self::Get(shared.keys.begin_read(object)),
            Operation::Head => Self::Head(shared.keys.begin_read(object)),
            Operation::Range => {
                Self::range(shared.keys.begin_read(object), recorded.bytes, recorded.offset, &mut dice)
            }
            Operation::List => {
                Self::List(object, shared.keys.certain(object, u64::from(shared.workload.list_keys)))
            }
            Operation::Delete => match shared.keys.begin_write(object, Want::Present, |_, _| Content::Absent)
            {
                Some(writing) => Self::Delete(writing),
                None => Self::write(shared, Operation::Put, object, false, Some(recorded.bytes)),
            },
            Operation::Copy => Self::copy(shared, object, &mut dice),
            Operation::Put | Operation::Multipart | Operation::Conditional => {
                Self::write(shared, recorded.operation, object, false, Some(recorded.bytes))
            }
        }
    }

    fn range(reading: Reading, len: u64, offset: Option<u64>, dice: &mut Dice) -> Self {
        let size = match reading.size_min {
            Some(size) if size > 0 => size,
            _ => return Self::Get(reading),
        };
        let len = len.clamp(1, size);
        let offset = offset.unwrap_or_else(|| dice.below(size - len + 1)).min(size - len);
        // Only a word names the version of an object of which nothing is known yet.
        let offset = if reading.known { offset } else { offset - offset % 8 };
        Self::Range(reading, (offset, len))
    }

    fn write(shared: &Shared, operation: Operation, object: u64, new: bool, bytes: Option<u64>) -> Self {
        let content = |number, version| Write::content(shared, operation, (number, version), bytes);
        let idle = if new { None } else { shared.keys.begin_write(object, Want::Any, content) };
        let writing = idle.unwrap_or_else(|| shared.keys.begin_new(content));
        Self::Write(Write::new(shared, operation, writing, bytes))
    }

    fn copy(shared: &Shared, object: u64, dice: &mut Dice) -> Self {
        let Some((source, version, size_bytes)) = shared.keys.begin_copy(object) else {
            return Self::write(shared, Operation::Put, object, false, None);
        };
        let new = dice.unit() < shared.workload.new_share;
        let target = dice.below(shared.keys.len());
        let name = |number| shared.keys.name(number);
        let content = |number, _| {
            let version = alias(shared.seed, &name(source), version, &name(number));
            Content::Version { version, size_bytes }
        };
        let idle = if new { None } else { shared.keys.begin_write(target, Want::Any, content) };
        let writing = idle.unwrap_or_else(|| shared.keys.begin_new(content));
        let content = content(writing.number, writing.version);
        Self::Copy { source, writing, content }
    }

    /// One of three: a new object that must not be there, an object that is there and must not be replaced, a
    /// replacement of what is known to be there.
    fn conditional(shared: &Shared, object: u64, dice: &mut Dice) -> Self {
        let kind = dice.below(3);
        let content =
            |number, version| Write::content(shared, Operation::Conditional, (number, version), None);
        if kind > 0
            && let Some(writing) = shared.keys.begin_write(object, Want::Present, content)
        {
            let condition = match (&writing.tag, kind) {
                (Some(tag), 2) => Condition::Tag(tag.clone()),
                _ => Condition::Absent,
            };
            let must_fail = condition == Condition::Absent;
            let write = Write::new(shared, Operation::Conditional, writing, None);
            return Self::Write(Write { condition: Some(condition), must_fail, ..write });
        }
        let write = Write::new(shared, Operation::Conditional, shared.keys.begin_new(content), None);
        Self::Write(Write { condition: Some(Condition::Absent), ..write })
    }

    /// What this counts as.
    pub(crate) fn operation(&self) -> Operation {
        match self {
            Self::Get(_) => Operation::Get,
            Self::Range(..) => Operation::Range,
            Self::Head(_) => Operation::Head,
            Self::List(..) => Operation::List,
            Self::Write(write) => write.operation,
            Self::Delete(_) => Operation::Delete,
            Self::Copy { .. } => Operation::Copy,
        }
    }

    /// Gives the object back, with what a read found out.
    pub(crate) fn release(&self, keys: &Keys, found: Option<Content>) {
        match self {
            Self::Get(reading) | Self::Range(reading, _) | Self::Head(reading) => {
                keys.end_read(reading.number, found);
            }
            Self::List(..) => {}
            Self::Write(Write { writing, .. }) | Self::Delete(writing) => keys.end_write(writing.number),
            Self::Copy { source, writing, .. } => {
                keys.end_read(*source, None);
                keys.end_write(writing.number);
            }
        }
    }
}

impl Write {
    /// What a write of an object (number and version) brings.
    pub(super) fn content(
        shared: &Shared,
        operation: Operation,
        (number, version): (u64, u64),
        bytes: Option<u64>,
    ) -> Content {
        let workload = &shared.workload;
        let drawn = || workload.size_of(shared.seed, number, shared.keys.write_number(version));
        let size_bytes = bytes.unwrap_or_else(drawn);
        let multipart = operation == Operation::Multipart;
        let size_bytes = if multipart { size_bytes.max(workload.part_bytes + 1) } else { size_bytes };
        Content::Version { version, size_bytes }
    }

    pub(super) fn new(shared: &Shared, operation: Operation, writing: Writing, bytes: Option<u64>) -> Self {
        let workload = &shared.workload;
        let content = Self::content(shared, operation, (writing.number, writing.version), bytes);
        let Content::Version { size_bytes, .. } = content else { unreachable!("writes bring content") };
        Self {
            content,
            size_bytes,
            operation,
            in_parts: size_bytes > workload.part_bytes && operation != Operation::Conditional,
            condition: None,
            must_fail: false,
            writing,
        }
    }
}

//! The objects of a run, shared by all its workers, and what each may hold.
//!
//! A write begins only on an object on which nothing else is in flight; when the one that was drawn is busy, the next idle
//! one is written instead. So a read knows, when it begins, everything it may return: what stands there or, during a
//! write, also what that write brings. Reads go to the object that was drawn, unless none stands there: then to the next
//! older one that does.

use std::sync::{Mutex, MutexGuard};

use crate::expect::{Content, Expected};
use crate::worker::key_name;

/// Objects looked at in place of a busy or absent one before giving up.
const PROBES_MAX: u64 = 64;

struct Key {
    expected: Expected,
    next_version: u64,
    /// What the write that has begun brings, from before it is sent.
    writing: Option<Content>,
    readers: u32,
    /// Grows with every write, so that a listing can tell what changed meanwhile.
    writes: u32,
    /// Entity tag of what certainly stands there, if it is known and somebody wants to know it.
    tag: Option<Box<str>>,
    /// Size in a listing before the run, while nothing else is known.
    listed_bytes: u64,
}

/// All objects of one client.
pub(crate) struct Keys {
    prefix: String,
    first_version: u64,
    keep_tags: bool,
    keys: Mutex<Vec<Key>>,
}

/// A read that has begun; give it back by [`Keys::end_read`].
pub(crate) struct Reading {
    pub(crate) number: u64,
    pub(crate) expected: Expected,
    /// Size of the smallest object that may stand there.
    pub(crate) size_min: Option<u64>,
    /// Whether the version that stands there is known.
    pub(crate) known: bool,
}

/// A write that has begun; give it back by [`Keys::end_write`].
pub(crate) struct Writing {
    pub(crate) number: u64,
    pub(crate) version: u64,
    pub(crate) tag: Option<String>,
}

/// Which objects a write may take.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    Any,
    /// An object certainly stands there.
    Present,
}

impl Keys {
    pub(crate) fn new(prefix: String, first_version: u64, keep_tags: bool) -> Self {
        Self { prefix, first_version, keep_tags, keys: Mutex::new(Vec::new()) }
    }

    fn keys(&self) -> MutexGuard<'_, Vec<Key>> {
        self.keys.lock().expect("nothing panics with it")
    }

    pub(crate) fn name(&self, number: u64) -> String {
        key_name(&self.prefix, number)
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Which write of its object brings `version`: the same in every run, while versions come from the clock.
    pub(crate) fn write_number(&self, version: u64) -> u64 {
        version - self.first_version
    }

    pub(crate) fn len(&self) -> u64 {
        self.keys().len() as u64
    }

    fn push(&self, keys: &mut Vec<Key>, expected: Expected) -> u64 {
        keys.push(Key {
            expected,
            next_version: self.first_version,
            writing: None,
            readers: 0,
            writes: 0,
            tag: None,
            listed_bytes: 0,
        });
        keys.len() as u64 - 1
    }

    /// Makes room for objects of which nothing is known.
    pub(crate) fn reserve(&self, objects: u64) {
        let mut keys = self.keys();
        while (keys.len() as u64) < objects {
            self.push(&mut keys, Expected::default());
        }
    }

    /// An object that a listing showed; those between it and the known ones do not exist.
    pub(crate) fn listed(&self, number: u64, size_bytes: u64) {
        let mut keys = self.keys();
        while (keys.len() as u64) <= number {
            self.push(&mut keys, Expected::settled(Content::Absent));
        }
        let key = &mut keys[at(number)];
        key.expected = Expected::listed();
        key.listed_bytes = size_bytes;
    }

    /// Begins to read object `number`, or the next older one that can be read, or else `number` all the same.
    pub(crate) fn begin_read(&self, number: u64) -> Reading {
        let mut keys = self.keys();
        let count = keys.len() as u64;
        let found = older(number, count).find(|number| keys[at(*number)].expected.readable());
        let number = found.unwrap_or(number);
        let key = &mut keys[at(number)];
        key.readers += 1;
        let known = key.expected.is_known();
        let mut expected = key.expected.clone();
        // It may be sent at any moment from now on.
        if let Some(content) = key.writing {
            expected.attempt(content);
        }
        let size_min = if known { expected.size_min() } else { Some(key.listed_bytes) };
        Reading { number, expected, size_min, known }
    }

    /// Ends a read, which may have found out what stands there.
    pub(crate) fn end_read(&self, number: u64, found: Option<Content>) {
        let mut keys = self.keys();
        let key = &mut keys[at(number)];
        key.readers -= 1;
        if let Some(content) = found
            && !key.expected.is_known()
            && key.writing.is_none()
        {
            key.expected.settle(content);
        }
    }

    /// Begins to read an object of which only one version can stand there, as the source of a copy.
    pub(crate) fn begin_copy(&self, number: u64) -> Option<(u64, u64, u64)> {
        let mut keys = self.keys();
        let count = keys.len() as u64;
        let source = |number: &u64| match keys[at(*number)].expected.only() {
            Some(Content::Version { version, size_bytes }) => Some((*number, version, size_bytes)),
            _ => None,
        };
        let found = older(number, count).find_map(|number| source(&number))?;
        keys[at(found.0)].readers += 1;
        Some(found)
    }

    /// Begins to write object `number`, or the next one that is idle and as wanted. `content` is told number and version.
    pub(crate) fn begin_write(
        &self,
        number: u64,
        want: Want,
        content: impl FnOnce(u64, u64) -> Content,
    ) -> Option<Writing> {
        let mut keys = self.keys();
        let count = keys.len() as u64;
        let idle = |key: &Key| {
            let present = matches!(key.expected.only(), Some(Content::Version { .. }));
            key.writing.is_none() && key.readers == 0 && (want == Want::Any || present)
        };
        let number = (0..count.min(PROBES_MAX))
            .map(|probe| (number + probe) % count)
            .find(|number| idle(&keys[at(*number)]))?;
        Some(Self::take(&mut keys, number, content))
    }

    /// Begins to write an object that was never there.
    pub(crate) fn begin_new(&self, content: impl FnOnce(u64, u64) -> Content) -> Writing {
        let mut keys = self.keys();
        let number = self.push(&mut keys, Expected::default());
        Self::take(&mut keys, number, content)
    }

    fn take(keys: &mut [Key], number: u64, content: impl FnOnce(u64, u64) -> Content) -> Writing {
        let key = &mut keys[at(number)];
        key.writing = Some(content(number, key.next_version));
        key.writes = key.writes.wrapping_add(1);
        let version = key.next_version;
        key.next_version += 1;
        Writing { number, version, tag: key.tag.take().map(String::from) }
    }

    /// The write is sent: from now on it may have happened.
    pub(crate) fn attempt(&self, number: u64, content: Content) {
        self.keys()[at(number)].expected.attempt(content);
    }

    /// The write happened.
    pub(crate) fn settle(&self, number: u64, content: Content, tag: Option<String>) {
        let mut keys = self.keys();
        let key = &mut keys[at(number)];
        key.expected.settle(content);
        key.tag = tag.filter(|_| self.keep_tags).map(String::into_boxed_str);
    }

    /// The write certainly did not happen.
    pub(crate) fn reject(&self, number: u64, content: Content, tag: Option<String>) {
        let mut keys = self.keys();
        let key = &mut keys[at(number)];
        key.expected.reject(content);
        key.tag = tag.filter(|_| self.keep_tags).map(String::into_boxed_str);
    }

    pub(crate) fn end_write(&self, number: u64) {
        self.keys()[at(number)].writing = None;
    }

    /// The write counts of the `max` objects after `after` that certainly stand there; None for the others.
    pub(crate) fn certain(&self, after: u64, max: u64) -> Vec<Option<u32>> {
        let keys = self.keys();
        let certain = |key: &Key| {
            let present = matches!(key.expected.only(), Some(Content::Version { .. }));
            (present && key.writing.is_none()).then_some(key.writes)
        };
        keys.iter().skip(at(after) + 1).take(at(max)).map(certain).collect()
    }
}

fn at(number: u64) -> usize {
    usize::try_from(number).expect("objects fit into memory")
}

/// `number` and the older ones before it, from the newest on after the oldest.
fn older(number: u64, count: u64) -> impl Iterator<Item = u64> {
    (0..count.min(PROBES_MAX)).map(move |probe| (number + count - probe) % count)
}

#[cfg(test)]
mod tests {
    use super::{Keys, Want};
    use crate::expect::Content;

    fn version(version: u64) -> Content {
        Content::Version { version, size_bytes: 10 }
    }

    fn content(_: u64, number: u64) -> Content {
        version(number)
    }

    #[test]
    fn writes_wait_for_nobody_and_disturb_nobody() {
        let keys = Keys::new("p/".into(), 5, true);
        keys.reserve(3);
        let first = keys.begin_write(1, Want::Any, content).unwrap();
        assert_eq!((first.number, first.version), (1, 5));
        // Reading meanwhile, even before the write is sent: absent or the new version, and the object is not written
        // again until both are done.
        let reading = keys.begin_read(1);
        keys.attempt(1, version(5));
        assert!(reading.expected.accepts(version(5)) && reading.expected.accepts(Content::Absent));
        keys.settle(1, version(5), Some("tag".into()));
        keys.end_write(1);
        assert_eq!(keys.begin_write(1, Want::Any, content).unwrap().number, 2);
        assert!(keys.begin_write(1, Want::Present, content).is_none());
        keys.end_read(1, None);
        let second = keys.begin_write(1, Want::Present, content).unwrap();
        assert_eq!((second.number, second.version, second.tag.as_deref()), (1, 6, Some("tag")));
    }

    #[test]
    fn reads_and_copies_go_to_the_next_older_object_that_is_there() {
        let keys = Keys::new(String::new(), 1, false);
        keys.listed(3, 77);
        keys.reserve(6);
        assert_eq!(keys.begin_read(5).number, 3);
        assert_eq!(keys.begin_read(5).size_min, Some(77));
        assert_eq!(keys.begin_copy(5), None);
        let new = keys.begin_new(content);
        assert_eq!(new.number, 6);
        keys.settle(6, version(1), None);
        assert_eq!(keys.begin_copy(0), Some((6, 1, 10)), "the newest comes after the oldest");
        assert_eq!(keys.begin_read(2).number, 6);
        keys.end_read(3, Some(version(9)));
        assert_eq!(keys.begin_copy(4), Some((3, 9, 10)));
    }

    #[test]
    fn certainty_ends_with_a_write() {
        let keys = Keys::new(String::new(), 1, false);
        keys.reserve(4);
        for number in 1..4 {
            let writing = keys.begin_write(number, Want::Any, content).unwrap();
            keys.settle(writing.number, version(1), None);
            keys.end_write(writing.number);
        }
        let before = keys.certain(0, 2);
        assert_eq!(before, [Some(1), Some(1)]);
        keys.begin_write(2, Want::Any, content).unwrap();
        assert_eq!(keys.certain(0, 2), [Some(1), None]);
    }
}

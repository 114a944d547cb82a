//! What clients of several nodes saw of each key, for the judge of histories.
//!
//! A value is the length of an object: no two objects have the same one, so listings tell values too.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use bytes::Bytes;
use quarry_linearizable::{Action, Operation, Told, check};
use quarry_object::api::ApiError;

use super::{Random, history::Content};

/// A read: bytes and ETag, or nothing.
pub(super) type Found = Option<(Bytes, String)>;

/// An operation under way.
pub(super) struct Call {
    key: String,
    index: usize,
}

/// See the module.
#[derive(Default)]
pub(super) struct Observed {
    moment: Cell<u64>,
    /// `None`: refused, it has not happened.
    keys: RefCell<BTreeMap<String, Vec<Option<Operation>>>>,
    contents: RefCell<BTreeMap<u64, Rc<Content>>>,
    /// Changes that were acknowledged, and all.
    pub(super) acknowledged: Cell<u64>,
    pub(super) submitted: Cell<u64>,
}

impl Observed {
    fn now(&self) -> u64 {
        self.moment.set(self.moment.get() + 1);
        self.moment.get()
    }

    /// An object of about so many bytes, as no other.
    pub(super) fn new_content(&self, random: &Random, len: u64) -> Rc<Content> {
        let mut contents = self.contents.borrow_mut();
        let len = (len..).find(|len| !contents.contains_key(len)).expect("few objects");
        let content = Rc::new(Content::new(random, usize::try_from(len).expect("small")));
        contents.insert(len, Rc::clone(&content));
        content
    }

    pub(super) fn call(&self, key: &str, action: Action) -> Call {
        let called = self.now();
        let mut keys = self.keys.borrow_mut();
        let operations = keys.entry(key.to_owned()).or_default();
        operations.push(Some(Operation { action, called, returned: None }));
        Call { key: key.to_owned(), index: operations.len() - 1 }
    }

    fn set(&self, call: &Call, told: Option<Told>) {
        let at = self.now();
        let mut keys = self.keys.borrow_mut();
        let place = &mut keys.get_mut(&call.key).expect("called")[call.index];
        match told {
            Some(told) => place.as_mut().expect("called").returned = Some((at, told)),
            None => *place = None,
        }
    }

    /// A change has ended. `None`: its node was killed.
    pub(super) fn changed(&self, call: &Call, result: Option<Result<(), ApiError>>) {
        self.submitted.set(self.submitted.get() + 1);
        match result {
            Some(Ok(())) => {
                self.acknowledged.set(self.acknowledged.get() + 1);
                self.set(call, Some(Told::Done));
            }
            Some(Err(ApiError::PreconditionFailed)) => self.set(call, Some(Told::Refused)),
            Some(Err(ApiError::Unavailable { .. })) => self.set(call, None),
            // Nobody knows.
            None | Some(Err(ApiError::Internal { .. })) => {}
            Some(Err(error)) => panic!("{}: {error}", call.key),
        }
    }

    /// A read has ended; one that failed says nothing.
    ///
    /// # Panics
    /// If the bytes are of no object, or not all of them.
    pub(super) fn read(&self, call: &Call, result: Option<Result<Found, ApiError>>) {
        let Some(Ok(found)) = result else { return self.set(call, None) };
        let value = found.as_ref().map(|(bytes, _)| bytes.len() as u64);
        if let Some((bytes, etag)) = found {
            let contents = self.contents.borrow();
            let content = contents.get(&(bytes.len() as u64));
            let whole = content.is_some_and(|content| content.bytes == bytes && content.etag == etag);
            assert!(whole, "{} holds {} bytes that nobody put there", call.key, bytes.len());
        }
        self.set(call, Some(Told::Read(value)));
    }

    /// A listing begins: it reads every key.
    pub(super) fn call_list(&self, keys: &[String]) -> Vec<Call> {
        keys.iter().map(|key| self.call(key, Action::Get)).collect()
    }

    /// It has ended with these keys and sizes.
    pub(super) fn listed(&self, calls: &[Call], result: Option<Result<Vec<(String, u64)>, ApiError>>) {
        let Some(Ok(entries)) = result else { return calls.iter().for_each(|call| self.set(call, None)) };
        let sizes: BTreeMap<String, u64> = entries.into_iter().collect();
        for call in calls {
            self.set(call, Some(Told::Read(sizes.get(&call.key).copied())));
        }
    }

    /// Whether an order of all operations of each key explains what was seen.
    pub(super) fn check(&self) -> Result<(), String> {
        for (key, operations) in &*self.keys.borrow() {
            let operations: Vec<Operation> = operations.iter().flatten().copied().collect();
            check(&operations).map_err(|problem| format!("{key}: {problem}"))?;
        }
        Ok(())
    }
}

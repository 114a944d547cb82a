//! What clients did to each key, and so what each key may hold: after everything acknowledged, and with or without
//! what was under way. Operations on one key come one after another; those on different keys overlap.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

use bytes::Bytes;
use quarry_object::api::{ApiError, Body, BodyDigests, BodyError};

use super::Random;

/// Bytes of an object, and the ETag that it must have.
#[derive(PartialEq, Eq)]
pub(super) struct Content {
    pub(super) bytes: Bytes,
    pub(super) etag: String,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes, {}", self.bytes.len(), self.etag)
    }
}

/// `None`: the key does not exist.
pub(super) type State = Option<Rc<Content>>;

impl Content {
    /// Random bytes that no other content has.
    pub(super) fn new(random: &Random, len: usize) -> Self {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&random.next().to_be_bytes());
        }
        bytes.truncate(len);
        Self { bytes: bytes.into(), etag: hex::encode(digest(random.next())) }
    }

    pub(super) fn body(&self) -> ContentBody {
        // Pieces of an odd size, as they come from a socket.
        let pieces = self.bytes.chunks(50_001).map(|piece| self.bytes.slice_ref(piece)).collect();
        let mut md5 = [0; 16];
        hex::decode_to_slice(&self.etag, &mut md5).expect("made by us");
        ContentBody { len_bytes: self.bytes.len() as u64, pieces, md5 }
    }
}

/// Stands for the MD5 of a body: below the gateway nobody looks into it.
fn digest(number: u64) -> [u8; 16] {
    (u128::from(number) << 64 | u128::from(!number)).to_be_bytes()
}

/// A body as the gateway hands it over.
pub(super) struct ContentBody {
    len_bytes: u64,
    pieces: VecDeque<Bytes>,
    md5: [u8; 16],
}

impl Body for ContentBody {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        self.pieces.pop_front().map(Ok)
    }

    fn digests(&mut self) -> BodyDigests {
        BodyDigests { md5: self.md5, checksums: BTreeMap::new() }
    }
}

enum Outcome {
    /// Under way, or its outcome is not known.
    Open,
    /// Acknowledged at this moment.
    Done(u64),
    /// Refused at this moment: it has not happened and will not.
    Refused(u64),
}

struct Step {
    submitted: u64,
    outcome: Outcome,
    state: State,
}

/// See the module. Moments count upwards; see [`History::next_moment`].
#[derive(Default)]
pub(super) struct History {
    moment: Cell<u64>,
    keys: RefCell<BTreeMap<String, Vec<Step>>>,
    /// Key and id of every upload whose id a client has learnt.
    uploads: RefCell<Vec<(String, String)>>,
}

impl History {
    /// Ends a moment and returns its number: what was submitted or acknowledged up to now belongs to it or to an
    /// earlier one.
    pub(super) fn next_moment(&self) -> u64 {
        let moment = self.moment.get();
        self.moment.set(moment + 1);
        moment
    }

    /// Notes an operation that leaves `state` behind, and how it ended.
    pub(super) async fn note<T>(
        &self,
        key: &str,
        state: State,
        operation: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        let step = Step { submitted: self.moment.get(), outcome: Outcome::Open, state };
        let index = {
            let mut keys = self.keys.borrow_mut();
            let steps = keys.entry(key.to_owned()).or_default();
            steps.push(step);
            steps.len() - 1
        };
        let result = operation.await;
        let outcome = match &result {
            Ok(_) => Outcome::Done(self.moment.get()),
            Err(ApiError::Internal { .. }) => Outcome::Open,
            Err(_) => Outcome::Refused(self.moment.get()),
        };
        self.keys.borrow_mut().get_mut(key).expect("entered above")[index].outcome = outcome;
        result
    }

    pub(super) fn note_upload(&self, key: &str, upload: &str) {
        self.uploads.borrow_mut().push((key.to_owned(), upload.to_owned()));
    }

    pub(super) fn uploads(&self) -> Vec<(String, String)> {
        self.uploads.borrow().clone()
    }

    /// What each key may hold, given what had happened at the end of `moment`.
    pub(super) fn allowed(&self, moment: u64) -> BTreeMap<String, Vec<State>> {
        let keys = self.keys.borrow();
        keys.iter().map(|(key, steps)| (key.clone(), allowed(steps, moment))).collect()
    }

    /// What each key may hold now.
    pub(super) fn allowed_now(&self) -> BTreeMap<String, Vec<State>> {
        self.allowed(self.moment.get())
    }
}

fn allowed(steps: &[Step], moment: u64) -> Vec<State> {
    let mut allowed = vec![None];
    for step in steps.iter().take_while(|step| step.submitted <= moment) {
        match step.outcome {
            Outcome::Done(at) if at <= moment => allowed = vec![step.state.clone()],
            Outcome::Refused(at) if at <= moment => {}
            _ => allowed.push(step.state.clone()),
        }
    }
    allowed
}

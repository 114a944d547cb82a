//! Clients that put, replace, delete, read and list a few keys through the real command state machine, at whoever
//! believes to be primary, and remember what they were told.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use futures::executor::block_on;
use quarry_clustermap::{BlobId, BucketId, DeviceId, Incarnation, NodeId, WriterCounter};

use super::journal::Rows;
use super::world::{Event, World};
use crate::Payload;
use crate::command::{
    Command, Conditions, Content, Entry, EvaluateError, EvaluationContext, List, Listed, Lookup, Put, Reply,
    StoredAttributes, Versioning, View, ViewError, evaluate,
};
use crate::replication::{Input, Refusal};
use quarry_linearizable::{Action, Operation, Told, Value, check};

const BUCKET: BucketId = BucketId(3);
const CLIENTS: u64 = 4;
const KEYS: u64 = 3;
const PATIENCE_MS: u64 = 2_500;

pub(super) enum ClientEvent {
    /// A client begins its next operation.
    Next(u64),
    /// A request reaches a device.
    Arrive(u64, DeviceId),
    /// A device has read its rows, in this run of it, and now looks whether it may say so.
    Look(u64, DeviceId, u64, Vec<Told>),
    Answer(u64, Vec<Told>),
    GiveUp(u64),
}

#[derive(Clone, Copy)]
enum Wanted {
    One(u64, Action),
    List,
}

struct Open {
    client: u64,
    wanted: Wanted,
    /// One per key that it speaks of.
    records: Vec<usize>,
}

#[derive(Default)]
pub(super) struct Clients {
    history: Vec<(u64, Operation)>,
    open: BTreeMap<u64, Open>,
    /// Answers that wait for the log, by token.
    pending: BTreeMap<u64, (u64, Vec<Told>)>,
    next: u64,
    seen: BTreeMap<u64, Value>,
    /// Of the bucket, for the whole run.
    versioning: Versioning,
    pub(super) answered: u64,
}

struct RowsView<'a>(&'a Rows);

impl View for RowsView<'_> {
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        Ok(self.0.get(key).map(|value| Bytes::copy_from_slice(value)))
    }
    async fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, ViewError> {
        let copy =
            |(key, value): (&Vec<u8>, &Vec<u8>)| (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        let range = (Bound::Included(from), Bound::Excluded(to));
        Ok(self.0.range::<[u8], _>(range).take(limit).map(copy).collect())
    }
}

fn name(key: u64) -> String {
    format!("k{key}")
}

fn etag(value: u64) -> String {
    value.to_string()
}

fn request(counter: u64) -> BlobId {
    BlobId { writer: NodeId(1), incarnation: Incarnation(1), counter: WriterCounter(counter) }
}

fn put(key: u64, value: u64, conditions: Conditions) -> Command {
    let request = request(value);
    Command::Put(Put {
        bucket: BUCKET,
        key: name(key),
        etag: etag(value),
        attributes: StoredAttributes::default(),
        tags: Vec::new(),
        checksums: Vec::new(),
        content: Content::Inline { request, bytes: value.to_le_bytes().to_vec() },
        conditions,
    })
}

fn command(id: u64, wanted: Wanted) -> Command {
    let Wanted::One(key, action) = wanted else {
        let (prefix, delimiter, after, after_position) = (String::new(), None, None, None);
        let listed = Listed::Objects;
        return Command::List(List {
            bucket: BUCKET,
            listed,
            prefix,
            delimiter,
            after,
            after_position,
            max: 100,
        });
    };
    let conditions = Conditions::default();
    match action {
        Action::Put(value) => put(key, value, conditions),
        Action::PutNew(value) => {
            put(key, value, Conditions { if_none_match: Some(vec!["*".into()]), ..conditions })
        }
        Action::Replace(old, new) => {
            put(key, new, Conditions { if_match: Some(vec![etag(old)]), ..conditions })
        }
        Action::Delete => {
            let (key, version, request) = (name(key), None, request(id));
            Command::Delete { bucket: BUCKET, key, version, request, conditions }
        }
        Action::Get => Command::Get(Lookup::newest(BUCKET, name(key))),
    }
}

/// What a client makes of an answer: one result per key it speaks of.
fn told(wanted: Wanted, result: Result<Reply, EvaluateError>) -> Vec<Told> {
    match (wanted, result) {
        (Wanted::One(_, Action::Get), Ok(Reply::Object { inline, .. })) => {
            vec![Told::Read(Some(u64::from_le_bytes(inline[0].as_slice().try_into().unwrap())))]
        }
        (Wanted::One(_, Action::Get), Err(EvaluateError::Refused(_))) => vec![Told::Read(None)],
        (Wanted::One(..), Ok(Reply::Stored(_) | Reply::Deleted { .. })) => vec![Told::Done],
        (Wanted::One(..), Err(EvaluateError::Refused(_))) => vec![Told::Refused],
        (Wanted::List, Ok(Reply::Page { entries, .. })) => {
            let listed: BTreeMap<String, u64> = entries
                .into_iter()
                .map(|entry| match entry {
                    Entry::Object { key, stored, .. } => (key, stored.etag.parse().unwrap()),
                    other => panic!("objects were asked for, not {other:?}"),
                })
                .collect();
            (0..KEYS).map(|key| Told::Read(listed.get(&name(key)).copied())).collect()
        }
        (_, other) => panic!("{other:?}"),
    }
}

impl World {
    pub(super) fn start_clients(&mut self) {
        self.clients.versioning =
            *self.random.pick(&[Versioning::Unversioned, Versioning::Enabled, Versioning::Suspended]);
        for client in 0..CLIENTS {
            self.schedule(60 + client, Event::Client(ClientEvent::Next(client)));
        }
    }

    pub(super) fn client_event(&mut self, event: ClientEvent) {
        match event {
            ClientEvent::Next(client) => self.begin(client),
            ClientEvent::Arrive(id, device) => self.arrive(id, device),
            ClientEvent::Look(id, device, run, told) => {
                let serves = self.is_serving(device) && self.device(device).run == run;
                if serves { self.answer(id, told) } else { self.try_again(id) }
            }
            ClientEvent::Answer(id, told) => {
                let Some(open) = self.clients.open.remove(&id) else { return };
                self.clients.answered += 1;
                for (record, told) in open.records.into_iter().zip(told) {
                    let (key, operation) = &mut self.clients.history[record];
                    operation.returned = Some((self.now_ms, told));
                    if let Told::Read(value) = told {
                        self.clients.seen.insert(*key, value);
                    }
                }
                self.next_operation(open.client);
            }
            ClientEvent::GiveUp(id) => {
                let Some(open) = self.clients.open.remove(&id) else { return };
                self.next_operation(open.client);
            }
        }
    }

    fn next_operation(&mut self, client: u64) {
        let think_ms = 1 + self.random.below(120);
        self.schedule(think_ms, Event::Client(ClientEvent::Next(client)));
    }

    fn begin(&mut self, client: u64) {
        self.clients.next += 1;
        let (id, key) = (self.clients.next, self.random.below(KEYS));
        let seen = self.clients.seen.get(&key).copied().flatten();
        let wanted = match (self.random.below(100), seen) {
            (0..20, _) => Wanted::One(key, Action::Put(id)),
            (20..28, _) => Wanted::One(key, Action::PutNew(id)),
            (28..38, Some(old)) => Wanted::One(key, Action::Replace(old, id)),
            (38..48, _) => Wanted::One(key, Action::Delete),
            (48..58, _) => Wanted::List,
            _ => Wanted::One(key, Action::Get),
        };
        let keys = match wanted {
            Wanted::One(key, action) => vec![(key, action)],
            Wanted::List => (0..KEYS).map(|key| (key, Action::Get)).collect(),
        };
        let mut records = Vec::new();
        for (key, action) in keys {
            records.push(self.clients.history.len());
            self.clients.history.push((key, Operation { action, called: self.now_ms, returned: None }));
        }
        self.clients.open.insert(id, Open { client, wanted, records });
        self.schedule(PATIENCE_MS, Event::Client(ClientEvent::GiveUp(id)));
        self.try_again(id);
    }

    fn try_again(&mut self, id: u64) {
        let ids = self.ids();
        let device = *self.random.pick(&ids);
        let delay = 1 + self.random.below(25);
        self.schedule(delay, Event::Client(ClientEvent::Arrive(id, device)));
    }

    fn answer(&mut self, id: u64, told: Vec<Told>) {
        let delay = 1 + self.random.below(15);
        self.schedule(delay, Event::Client(ClientEvent::Answer(id, told)));
    }

    /// As the host does it: reads over committed rows, and asks afterwards whether it still serves; writes over
    /// proposed rows, answered when everything they depend on is committed.
    fn arrive(&mut self, id: u64, device: DeviceId) {
        let Some(wanted) = self.clients.open.get(&id).map(|open| open.wanted) else { return };
        if !self.is_serving(device) {
            return self.try_again(id);
        }
        let context =
            EvaluationContext { now_ms: self.local_ms(device), versioning: self.clients.versioning };
        let reads = matches!(wanted, Wanted::List | Wanted::One(_, Action::Get));
        let store = &self.device(device).store;
        let rows = if reads { store.rows.clone() } else { store.newest_rows() };
        let evaluated = block_on(evaluate(&RowsView(&rows), context, &command(id, wanted)));
        let changes = evaluated.as_ref().map(|evaluated| evaluated.rows.clone()).unwrap_or_default();
        let told = told(wanted, evaluated.map(|evaluated| evaluated.reply));
        if reads {
            let (delay, run) = (self.delay(10), self.device(device).run);
            return self.schedule(delay, Event::Client(ClientEvent::Look(id, device, run, told)));
        }
        let token = self.new_token();
        self.clients.pending.insert(token, (id, told));
        if changes.is_empty() {
            self.step(device, Input::Barrier { token });
        } else {
            let payload = Payload::Mutations(changes).encode().unwrap();
            self.step(device, Input::Propose { token, payload });
        }
    }

    /// The log has answered a token.
    pub(super) fn client_resolved(&mut self, token: u64, result: Result<(), Refusal>) {
        let Some((id, told)) = self.clients.pending.remove(&token) else { return };
        let Some(wanted) = self.clients.open.get(&id).map(|open| open.wanted) else { return };
        match result {
            Ok(()) => self.answer(id, told),
            // A put is known by its request, a delete is not.
            Err(refusal) if refusal.is_outcome_unknown() => {
                if !matches!(wanted, Wanted::One(_, Action::Delete)) && self.random.chance(60) {
                    self.try_again(id);
                }
            }
            Err(_) => self.try_again(id),
        }
    }

    /// Whether the histories of all keys can be explained.
    pub(super) fn check_histories(&self) -> Result<(), String> {
        for key in 0..KEYS {
            let of_key = self.clients.history.iter().filter(|(of, _)| *of == key);
            let operations: Vec<Operation> = of_key.map(|(_, operation)| *operation).collect();
            check(&operations).map_err(|problem| format!("history of {}: {problem}", name(key)))?;
        }
        Ok(())
    }
}

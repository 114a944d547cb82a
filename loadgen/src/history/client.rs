//! One client: an operation at a time, each tried at one node after the other.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::record::{Kind, Outcome, Record};
use super::{STANDARD_ATTEMPTS, Shared};
use crate::client::{Client, Condition, ContentBody, Failure, Read};
use crate::expect::{Content, Expected};
use crate::sigv4::UNSIGNED_PAYLOAD;
use crate::workload::dice::Dice;

/// As the AWS SDKs: the n-th pause is at most 2^n seconds.
const STANDARD_PAUSE_FIRST_S: f64 = 1.0;
const PATIENT_PAUSE: Duration = Duration::from_millis(100);
/// After this a patient client gives up as well.
const PATIENT_FOR: Duration = Duration::from_secs(180);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A client that fell behind its plan does not hurry to make up for more than this.
const BACKLOG_MAX_US: u64 = 1_000_000;
/// The newest keys written once that are read again now and then.
const ONCE_READ: u64 = 200;
/// Seeds of clients are apart from those of values.
const CLIENT_STREAM: u64 = 1_000_000;

/// Weights of what is done.
const WEIGHTS: [(Operation, u64); 9] = [
    (Operation::Hot(Kind::Get), 36),
    (Operation::Hot(Kind::Head), 7),
    (Operation::Hot(Kind::List), 3),
    (Operation::Hot(Kind::Put), 22),
    (Operation::Hot(Kind::Create), 7),
    (Operation::Hot(Kind::Replace), 9),
    (Operation::Hot(Kind::Delete), 7),
    (Operation::WriteOnce, 5),
    (Operation::ReadOnce, 4),
];

#[derive(Clone, Copy)]
enum Operation {
    Hot(Kind),
    WriteOnce,
    ReadOnce,
}

/// What is tried until it is done.
struct Call {
    number: u64,
    kind: Kind,
    key: String,
    replaces: Option<u64>,
    intended: u64,
}

/// What a successful attempt told.
enum Told {
    Done,
    Value(Option<u64>),
    Wrong(String),
    /// Key and value, for all keys of the prefix.
    Values(Vec<(String, Option<u64>)>),
}

pub(super) struct HistoryClient {
    shared: Arc<Shared>,
    number: u32,
    patient: bool,
    nodes: Vec<Client>,
    /// The node that is asked next.
    node: usize,
    calls: u64,
    dice: Dice,
}

impl HistoryClient {
    pub(super) fn new(shared: Arc<Shared>, number: u32) -> Self {
        let connect = |target| Client::new(Arc::clone(target), shared.signer.clone());
        let nodes: Vec<_> = shared.targets.iter().map(connect).collect();
        let dice = Dice::new(shared.args.seed, CLIENT_STREAM + u64::from(number), 0);
        let node = usize::try_from(number).expect("small") % nodes.len();
        Self { patient: number % 2 == 1, shared, number, nodes, node, calls: 0, dice }
    }

    /// Until the end.
    pub(super) async fn run(&mut self) {
        let clients = u64::from(self.shared.args.clients);
        let interval_us = 1_000_000 * clients / u64::from(self.shared.args.rate);
        let mut intended = self.shared.now_us() + self.dice.below(interval_us);
        while !self.shared.stop.load(Ordering::Relaxed) {
            let now = self.shared.now_us();
            tokio::time::sleep(Duration::from_micros(intended.saturating_sub(now))).await;
            let call = self.choose(intended);
            self.perform(&call).await;
            intended = (intended + interval_us).max(self.shared.now_us().saturating_sub(BACKLOG_MAX_US));
        }
    }

    /// Reads a key, patiently, beginning at a node. Returns whether there was an answer.
    pub(super) async fn read_back(&mut self, key: String, node: u64) -> bool {
        self.patient = true;
        self.node = usize::try_from(node).expect("small");
        let intended = self.shared.now_us();
        self.calls += 1;
        self.perform(&Call { number: self.calls, kind: Kind::Get, key, replaces: None, intended }).await
    }

    fn choose(&mut self, intended: u64) -> Call {
        self.calls += 1;
        self.node = usize::try_from(self.dice.next() % self.nodes.len() as u64).expect("small");
        let mut left = self.dice.below(WEIGHTS.iter().map(|(_, weight)| weight).sum());
        let operation = WEIGHTS.iter().find_map(|(operation, weight)| {
            let chosen = left < *weight;
            left = left.saturating_sub(*weight);
            chosen.then_some(*operation)
        });
        let random = self.dice.next();
        let (mut kind, key) = match operation.expect("below the sum of the weights") {
            Operation::Hot(Kind::List) => (Kind::List, self.shared.hot_key(random)),
            Operation::Hot(kind) => (kind, self.shared.hot_key(random)),
            Operation::WriteOnce => {
                let number = self.shared.once_keys.fetch_add(1, Ordering::Relaxed);
                (Kind::Put, Shared::once_key(number))
            }
            Operation::ReadOnce => {
                let count = self.shared.once_keys.load(Ordering::Relaxed).max(1);
                (Kind::Get, Shared::once_key(count.saturating_sub(1 + random % ONCE_READ.min(count))))
            }
        };
        let mut replaces = None;
        if kind == Kind::Replace {
            replaces = self.shared.values().seen(&key);
            if replaces.is_none() {
                kind = Kind::Put;
            }
        }
        Call { number: self.calls, kind, key, replaces, intended }
    }

    /// Tries until it is done or refused, or patience ends. Returns whether it was done or refused.
    async fn perform(&mut self, call: &Call) -> bool {
        let begun = self.shared.now_us();
        let patience_us = u64::try_from(PATIENT_FOR.as_micros()).expect("small");
        for attempt in 1.. {
            let outcome = self.attempt(call, attempt).await;
            if matches!(outcome, Outcome::Ok | Outcome::Refused) {
                return true;
            }
            let enough = match self.patient {
                true => self.shared.now_us() - begun > patience_us,
                false => attempt >= STANDARD_ATTEMPTS,
            };
            if enough {
                return false;
            }
            let pause = if self.patient {
                PATIENT_PAUSE
            } else {
                let exponent = i32::try_from(attempt - 1).expect("small");
                Duration::from_secs_f64(self.dice.unit() * STANDARD_PAUSE_FIRST_S * 2f64.powi(exponent))
            };
            tokio::time::sleep(pause).await;
            self.node = (self.node + 1) % self.nodes.len();
        }
        unreachable!("the loop has no end")
    }

    async fn attempt(&mut self, call: &Call, attempt: u32) -> Outcome {
        let content = call.kind.stores().then(|| self.shared.values().create(&call.key));
        let start = self.shared.now_us();
        let told = match tokio::time::timeout(CONNECT_TIMEOUT, self.nodes[self.node].connect()).await {
            Ok(Ok(())) => {
                let body = content.map(|(_, stream, size_bytes)| ContentBody::new(stream, size_bytes));
                self.send(call, body).await
            }
            Ok(Err(failure)) => Err(Failure::Connect(std::io::Error::other(failure.to_string()))),
            Err(_) => Err(Failure::Connect(std::io::ErrorKind::TimedOut.into())),
        };
        let outcome = told.as_ref().map_or_else(|failure| Outcome::of(failure, call.kind), |_| Outcome::Ok);
        let mut record = Record {
            client: self.number,
            call: call.number,
            attempt,
            node: self.node,
            key: &call.key,
            kind: call.kind,
            value: content.map(|(value, ..)| value),
            replaces: call.replaces,
            intended: call.intended,
            start,
            end: self.shared.now_us(),
            outcome,
            read: None,
            wrong: None,
            error: told.as_ref().err().map(Failure::kind),
        };
        match told {
            Ok(Told::Values(values)) => {
                for (key, value) in &values {
                    self.shared.write(&Record { key, read: *value, ..record.clone() });
                }
                return outcome;
            }
            Ok(Told::Value(value)) => record.read = value,
            Ok(Told::Wrong(wrong)) => record.wrong = Some(wrong),
            Ok(Told::Done) | Err(_) => {}
        }
        if let Some(value) = record.read.or(record.value.filter(|_| outcome == Outcome::Ok)) {
            self.shared.values().saw(&call.key, value);
        }
        self.shared.write(&record);
        outcome
    }

    async fn send(&mut self, call: &Call, body: Option<ContentBody>) -> Result<Told, Failure> {
        let (node, key) = (&mut self.nodes[self.node], call.key.as_str());
        let expected = Expected::default();
        if let Some(body) = body {
            let condition = match call.replaces {
                _ if call.kind == Kind::Create => Some(Condition::Absent),
                Some(value) => self.shared.values().tag(value).map(|tag| Condition::Tag(tag.to_owned())),
                None => None,
            };
            return node.put_if(key, body, UNSIGNED_PAYLOAD, condition.as_ref()).await.map(|_| Told::Done);
        }
        match call.kind {
            Kind::Delete => node.delete(key).await.map(|()| Told::Done),
            Kind::Head => node.head_tag(key).await.map(|tag| self.by_tag(tag.as_deref())),
            Kind::List => {
                let prefix = &key[..=key.rfind('/').expect("hot keys have groups")];
                let listed = node.list_tags(prefix).await?;
                Ok(self.listed(prefix, &listed))
            }
            _ => Ok(match node.get(key, &expected).await? {
                Read::Absent => Told::Value(None),
                Read::Wrong(difference) => {
                    let keys = std::iter::empty::<&str>();
                    let wrong = difference.into_mismatch(self.shared.args.seed, key, &expected, keys);
                    Told::Wrong(format!("at {}: {}", wrong.offset_bytes, wrong.found))
                }
                Read::Found(Content::Absent) => Told::Value(None),
                Read::Found(Content::Version { version, size_bytes }) => self.sized(version, size_bytes),
            }),
        }
    }

    fn sized(&self, value: u64, size_bytes: u64) -> Told {
        let expected = self.shared.values().size_bytes(value);
        if size_bytes == expected {
            return Told::Value(Some(value));
        }
        Told::Wrong(format!("{size_bytes} bytes of value {value}, which has {expected}"))
    }

    fn by_tag(&self, tag: Option<&str>) -> Told {
        let Some(tag) = tag else { return Told::Value(None) };
        match self.shared.values().by_tag(tag) {
            Some(value) => Told::Value(Some(value)),
            None => Told::Wrong(format!("entity tag {tag} of no value")),
        }
    }

    /// What a listing says of every key of the prefix.
    fn listed(&self, prefix: &str, listed: &[(String, String)]) -> Told {
        let group = prefix.trim_start_matches("hot/g").trim_end_matches('/').parse();
        let values = self.shared.group_keys(group.expect("a number")).map(|key| {
            let tag = listed.iter().find(|(other, _)| *other == key).map(|(_, tag)| tag);
            (key, tag.map(|tag| self.shared.values().by_tag(tag).unwrap_or(u64::MAX - 1)))
        });
        Told::Values(values.collect())
    }
}

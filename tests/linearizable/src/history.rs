//! The history of a run: one JSON object per line, one line per attempt and key (`docs/loadgen.md` has the fields).
//!
//! What is certain to have had no effect is left out of the search, so a value of it that is read later is a value that was
//! never written. A body that is not one whole value is a violation by itself.

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::search::{Action, Operation, Told, check};

/// Records around a violation that are shown with it.
const SHOWN_BEFORE: usize = 30;
const SHOWN_AFTER: usize = 5;

/// What a request asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// PUT.
    Put,
    /// PUT with `If-None-Match: *`.
    Create,
    /// PUT with `If-Match`.
    Replace,
    /// DELETE.
    Delete,
    /// GET.
    Get,
    /// HEAD.
    Head,
    /// What a listing said of the key.
    List,
}

/// How an attempt ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was done.
    Ok,
    /// Its condition did not hold.
    Refused,
    /// It certainly had no effect.
    Failed,
    /// It may have had its effect, or may have it at any later time.
    Unknown,
}

/// One attempt at an operation on one key. Times are microseconds since the start of the recording.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Who asked.
    pub client: u32,
    /// Number of the operation of this client; attempts at the same operation share it.
    pub call: u64,
    /// From 1.
    pub attempt: u32,
    /// Index of the node that was asked.
    pub node: u32,
    /// Key of the object.
    pub key: String,
    /// What was asked for.
    pub kind: Kind,
    /// The value that a PUT stores: each attempt another one.
    #[serde(default)]
    pub value: Option<u64>,
    /// The value that `If-Match` names.
    #[serde(default)]
    pub replaces: Option<u64>,
    /// When the operation should have begun.
    pub intended: u64,
    /// When this attempt began.
    pub start: u64,
    /// When it ended.
    pub end: u64,
    /// How.
    pub outcome: Outcome,
    /// What a successful read found; `None`: no object.
    #[serde(default)]
    pub read: Option<u64>,
    /// What is wrong with the bytes that a read found.
    #[serde(default)]
    pub wrong: Option<String>,
    /// What the client was told if the attempt failed.
    #[serde(default)]
    pub error: Option<String>,
}

impl Record {
    /// As an operation of the search; `None` if it had no effect and told nothing.
    fn operation(&self) -> Result<Option<Operation>> {
        let value = || self.value.with_context(|| format!("a write without value: {self:?}"));
        let action = match self.kind {
            Kind::Put => Action::Put(value()?),
            Kind::Create => Action::PutNew(value()?),
            Kind::Replace => Action::Replace(self.replaces.context("a replacement of nothing")?, value()?),
            Kind::Delete => Action::Delete,
            Kind::Get | Kind::Head | Kind::List => Action::Get,
        };
        let told = match (self.outcome, action) {
            (Outcome::Failed, _) | (Outcome::Unknown, Action::Get) => return Ok(None),
            (Outcome::Unknown, _) => None,
            (Outcome::Ok, Action::Get) => Some(Told::Read(self.read)),
            (Outcome::Ok, _) => Some(Told::Done),
            (Outcome::Refused, Action::PutNew(_) | Action::Replace(..)) => Some(Told::Refused),
            (Outcome::Refused, _) => bail!("refused without a condition: {self:?}"),
        };
        if self.end < self.start {
            bail!("it ended before it began: {self:?}");
        }
        Ok(Some(Operation { action, called: self.start, returned: told.map(|told| (self.end, told)) }))
    }
}

/// All records of a run.
#[derive(Debug)]
pub struct History {
    records: Vec<Record>,
    operations: BTreeMap<String, Vec<Operation>>,
}

/// One key whose history is impossible.
#[derive(Debug, Serialize)]
pub struct Violation {
    /// The key.
    pub key: String,
    /// What is wrong.
    pub problem: String,
    /// What happened around it.
    #[serde(skip)]
    pub context: Vec<Record>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "key {}: {}", self.key, self.problem)?;
        for record in &self.context {
            writeln!(f, "  {}", serde_json::to_string(record).map_err(|_| fmt::Error)?)?;
        }
        Ok(())
    }
}

/// What the judge found.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// Records, which are attempts, and for a listing one per key.
    pub records: usize,
    /// Attempts.
    pub attempts: usize,
    /// Attempts that were acknowledged or refused.
    pub answered: usize,
    /// Writes whose outcome is not known.
    pub unknown_writes: usize,
    /// Different keys.
    pub keys: usize,
    /// Keys whose history is impossible.
    pub violations: Vec<Violation>,
}

impl History {
    /// Reads lines of JSON. The first line may be a header: it has the field `origin_unix_us`. A last line that was cut
    /// short is left out: what it told nobody acted on.
    ///
    /// # Errors
    /// A line is not a record, or says what cannot be.
    pub fn parse(text: &str) -> Result<Self> {
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut records = Vec::new();
        for (number, line) in whole.lines().enumerate() {
            if number == 0 && line.contains("\"origin_unix_us\"") {
                continue;
            }
            let record: Record =
                serde_json::from_str(line).with_context(|| format!("line {}: not a record", number + 1))?;
            records.push(record);
        }
        let mut operations: BTreeMap<String, Vec<Operation>> = BTreeMap::new();
        for record in &records {
            let of_key = operations.entry(record.key.clone()).or_default();
            if record.wrong.is_none() {
                of_key.extend(record.operation()?);
            }
        }
        Ok(Self { records, operations })
    }

    /// Judges every key.
    #[must_use]
    pub fn judge(&self) -> Verdict {
        let mut violations: Vec<Violation> = self
            .records
            .iter()
            .filter_map(|record| {
                let problem = format!("wrong bytes: {}", record.wrong.as_ref()?);
                Some(Violation { key: record.key.clone(), problem, context: vec![record.clone()] })
            })
            .collect();
        for (key, operations) in &self.operations {
            if let Err(problem) = check(operations) {
                violations.push(Violation {
                    key: key.clone(),
                    context: self.around(key, operations),
                    problem,
                });
            }
        }
        // Records of one listing share everything but the key.
        let counted = |wanted: &dyn Fn(&Record) -> bool| {
            let mut of: Vec<_> = self
                .records
                .iter()
                .filter(|record| wanted(record))
                .map(|record| (record.client, record.call, record.attempt))
                .collect();
            of.sort_unstable();
            of.dedup();
            of.len()
        };
        let is_write = |kind| matches!(kind, Kind::Put | Kind::Create | Kind::Replace | Kind::Delete);
        Verdict {
            records: self.records.len(),
            attempts: counted(&|_| true),
            answered: counted(&|record| matches!(record.outcome, Outcome::Ok | Outcome::Refused)),
            unknown_writes: counted(&|record| record.outcome == Outcome::Unknown && is_write(record.kind)),
            keys: self.operations.len(),
            violations,
        }
    }

    /// The records around the first answer that no order explains: the shortest prefix, by end, that is impossible.
    fn around(&self, key: &str, operations: &[Operation]) -> Vec<Record> {
        let mut ends: Vec<u64> =
            operations.iter().filter_map(|operation| operation.returned.map(|(at, _)| at)).collect();
        ends.sort_unstable();
        let possible_until = ends.partition_point(|end| check(&until(operations, *end)).is_ok());
        let at = ends.get(possible_until).copied().unwrap_or(u64::MAX);
        let mut of_key: Vec<Record> =
            self.records.iter().filter(|record| record.key == key).cloned().collect();
        of_key.sort_by_key(|record| (record.end, record.start));
        let place = of_key.partition_point(|record| record.end <= at);
        let shown = place.saturating_sub(SHOWN_BEFORE)..(place + SHOWN_AFTER).min(of_key.len());
        of_key[shown].to_vec()
    }
}

/// What was known at `end`: operations that had not returned are open.
fn until(operations: &[Operation], end: u64) -> Vec<Operation> {
    operations
        .iter()
        .filter(|operation| operation.called <= end)
        .map(|operation| Operation {
            returned: operation.returned.filter(|(at, _)| *at <= end),
            ..*operation
        })
        .collect()
}

//! The strict parser of policy documents.

use crate::action::{ActionSet, Target};
use crate::condition::{Condition, Network, Operator, Quantifier, Test, Values};
use crate::context::{self, Kind};
use crate::json::{self, Json};
use crate::pattern::Pattern;
use crate::policy::{Policy, Resources, Statement};
use crate::principal::{Named, Principals};
use crate::{ARN_PREFIX, date};

/// Bytes of a bucket policy, as in S3.
pub const BUCKET_POLICY_BYTES_MAX: usize = 20 << 10;
/// Bytes of a policy of users: 6 KiB as IAM's managed policies.
pub const USER_POLICY_BYTES_MAX: usize = 6 << 10;
/// Lists and objects within one another; a policy needs five.
pub const DEPTH_MAX: usize = 8;
/// Statements of one policy.
pub const STATEMENTS_MAX: usize = 100;
/// Entries of one list, and operators and keys of one statement's conditions.
pub const VALUES_MAX: usize = 500;
/// Characters of one resource or value: a key has at most 1,024 bytes.
pub const PATTERN_CHARS_MAX: usize = 2048;

/// Why a policy was refused; the message is the reason for the user.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PolicyError {
    /// Too many bytes.
    #[error("the policy has {bytes} bytes, more than {limit_bytes}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// What is allowed.
        limit_bytes: usize,
    },
    /// Not JSON, a name that appears twice, or nested too deeply.
    #[error("the policy is not valid JSON: {reason}")]
    Json {
        /// What the parser said.
        reason: String,
    },
    /// Something else than what stands there in a policy.
    #[error("{place} must be {expected}")]
    Expected {
        /// Where.
        place: String,
        /// What it must be.
        expected: String,
    },
    /// An element that is not known.
    #[error("{place} has the unknown element {name:?}")]
    UnknownElement {
        /// Where.
        place: String,
        /// Its name.
        name: String,
    },
    /// An element that is missing, or one too many of two.
    #[error("{place} must have exactly one of {names}")]
    ExactlyOne {
        /// Where.
        place: String,
        /// Their names.
        names: &'static str,
    },
    /// More than the limit.
    #[error("{place} has more than {limit} entries")]
    TooMany {
        /// Where.
        place: String,
        /// What is allowed.
        limit: usize,
    },
    /// Two statements of one name.
    #[error("the Sid {sid:?} appears twice")]
    SidTwice {
        /// The name.
        sid: String,
    },
    /// No action of S3.
    #[error("{place}: {action:?} is no action of S3")]
    Action {
        /// Where.
        place: String,
        /// As written.
        action: String,
    },
    /// No principal that can exist.
    #[error("{place}: the principal {principal:?} does not exist here")]
    Principal {
        /// Where.
        place: String,
        /// As written.
        principal: String,
    },
    /// Not a resource, or not one that the policy can be about.
    #[error("{place}: {resource:?} {problem}")]
    Resource {
        /// Where.
        place: String,
        /// As written.
        resource: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// None of the resources is of the kind that an action needs.
    #[error("{place}: the action {action:?} does not apply to any resource of the statement")]
    ActionWithoutResource {
        /// Where.
        place: String,
        /// As written.
        action: String,
    },
    /// No such operator.
    #[error("{place}: the condition operator {operator:?} is not known")]
    Operator {
        /// Where.
        place: String,
        /// As written.
        operator: String,
    },
    /// No such key.
    #[error("{place}: the condition key {key:?} is not known")]
    Key {
        /// Where.
        place: String,
        /// As written.
        key: String,
    },
    /// The operator makes no sense for the key.
    #[error("{place}: the operator {operator} cannot be used with the key {key}")]
    OperatorForKey {
        /// Where.
        place: String,
        /// As written.
        operator: String,
        /// As written.
        key: String,
    },
    /// A value of another type, or a variable that is wrong.
    #[error("{place}: the value {value:?} is not usable: {problem}")]
    Value {
        /// Where.
        place: String,
        /// As written.
        value: String,
        /// What is wrong.
        problem: String,
    },
}

type Parsed<T> = Result<T, PolicyError>;

/// What the whole document says, for its statements.
#[derive(Clone, Copy)]
struct Document<'a> {
    bucket: Option<&'a str>,
    has_variables: bool,
}

/// Parses a policy of users, or of a bucket.
pub(crate) fn policy(document: &str, bucket: Option<&str>) -> Parsed<Policy> {
    let limit_bytes = if bucket.is_some() { BUCKET_POLICY_BYTES_MAX } else { USER_POLICY_BYTES_MAX };
    if document.len() > limit_bytes {
        return Err(PolicyError::TooLarge { bytes: document.len(), limit_bytes });
    }
    let parsed = json::parse(document, DEPTH_MAX);
    let mut top =
        Members::new(parsed.map_err(|error| PolicyError::Json { reason: error.to_string() })?, "the policy")?;
    let version = top.take("Version").map(|version| text(version, "Version")).transpose()?;
    let has_variables = match version.as_deref() {
        Some("2012-10-17") => true,
        Some("2008-10-17") | None => false,
        Some(_) => return Err(expected("Version", "2012-10-17 or 2008-10-17")),
    };
    top.take("Id").map(|id| text(id, "Id")).transpose()?;
    let statements = match top.take("Statement") {
        Some(Json::List(statements)) => statements,
        Some(one @ Json::Object(_)) => vec![one],
        _ => return Err(expected("Statement", "a statement or a list of statements")),
    };
    top.end()?;
    if statements.is_empty() {
        return Err(expected("Statement", "a list of at least one statement"));
    }
    bound(statements.len(), STATEMENTS_MAX, "Statement")?;
    let mut sids = std::collections::BTreeSet::new();
    let mut parsed = Vec::with_capacity(statements.len());
    for (index, statement) in statements.into_iter().enumerate() {
        let place = format!("statement {}", index + 1);
        let (sid, statement) = self::statement(statement, &place, Document { bucket, has_variables })?;
        if let Some(sid) = sid.filter(|sid| !sid.is_empty())
            && !sids.insert(sid.clone())
        {
            return Err(PolicyError::SidTwice { sid });
        }
        parsed.push(statement);
    }
    let mut conditions = parsed.iter().flat_map(|statement| &statement.conditions);
    let asks_existing_tags = conditions.any(|condition| condition.key.starts_with(context::EXISTING_TAG));
    Ok(Policy { statements: parsed, asks_existing_tags })
}

fn statement(json: Json, place: &str, document: Document<'_>) -> Parsed<(Option<String>, Statement)> {
    let mut members = Members::new(json, place)?;
    let sid = members.take("Sid").map(|sid| text(sid, &format!("{place}: Sid"))).transpose()?;
    let denies = match members.take("Effect") {
        Some(Json::Text(effect)) if effect == "Allow" => false,
        Some(Json::Text(effect)) if effect == "Deny" => true,
        _ => return Err(expected(format!("{place}: Effect"), "Allow or Deny")),
    };
    let principals = match (members.take("Principal"), members.take("NotPrincipal"), document.bucket) {
        (None, None, None) => Principals::Holder,
        (Some(these), None, Some(_)) => Principals::These(principals(these, place)?),
        (None, Some(others), Some(_)) if denies => Principals::AllBut(principals(others, place)?),
        (None, Some(_), Some(_)) => {
            return Err(expected(format!("{place}: NotPrincipal"), "in a statement that denies"));
        }
        (_, _, None) => {
            let problem = "left out: a policy of users applies to whom it is attached";
            return Err(expected(format!("{place}: Principal"), problem));
        }
        _ => return Err(exactly_one(place, "Principal and NotPrincipal")),
    };
    let (named, excepts) = one_of(&mut members, place, ["Action", "NotAction"], "Action and NotAction")?;
    let named = texts(named, &format!("{place}: Action"))?;
    let sets = named.iter().map(|name| actions(name, place)).collect::<Parsed<Vec<_>>>()?;
    let actions = action_set(&sets, excepts);
    let (about, others) =
        one_of(&mut members, place, ["Resource", "NotResource"], "Resource and NotResource")?;
    let about = texts(about, &format!("{place}: Resource"))?;
    if !excepts && !others {
        every_action_applies(&named, &sets, &about, place)?;
    }
    let patterns: Vec<Pattern> =
        about.iter().map(|name| resource(name, place, document, others)).collect::<Parsed<_>>()?;
    let resources = if others { Resources::AllBut(patterns) } else { Resources::These(patterns) };
    let conditions = members.take("Condition").map(|json| conditions(json, place, document)).transpose()?;
    members.end()?;
    let conditions = conditions.unwrap_or_default();
    Ok((sid, Statement { denies, principals, actions, resources, conditions }))
}

fn one_of(members: &mut Members, place: &str, names: [&str; 2], both: &'static str) -> Parsed<(Json, bool)> {
    match names.map(|name| members.take(name)) {
        [Some(these), None] => Ok((these, false)),
        [None, Some(others)] => Ok((others, true)),
        _ => Err(exactly_one(place, both)),
    }
}

fn principals(json: Json, place: &str) -> Parsed<Vec<Named>> {
    match json {
        Json::Text(everyone) if everyone == "*" => Ok(vec![Named::Everyone]),
        Json::Object(_) => {
            let place = format!("{place}: Principal");
            let mut members = Members::new(json, &place)?;
            let named = members.take("AWS");
            members.end()?;
            let named = named.ok_or_else(|| expected(place.as_str(), "\"*\" or {\"AWS\": ...}"))?;
            texts(named, &place)?.iter().map(|name| Named::parse(name, &place)).collect()
        }
        _ => Err(expected(format!("{place}: Principal"), "\"*\" or {\"AWS\": ...}")),
    }
}

fn actions(name: &str, place: &str) -> Parsed<ActionSet> {
    ActionSet::matching(name)
        .filter(|set| !set.is_empty())
        .ok_or_else(|| PolicyError::Action { place: place.to_owned(), action: name.to_owned() })
}

fn action_set(sets: &[ActionSet], excepts: bool) -> ActionSet {
    let named = sets.iter().fold(ActionSet::default(), |all, set| all.union(*set));
    if excepts { named.complement() } else { named }
}

/// A statement about, say, listing a bucket that names objects only would never apply: a mistake.
fn every_action_applies(named: &[String], sets: &[ActionSet], about: &[String], place: &str) -> Parsed<()> {
    let is_open = |resource: &String| resource.contains(['*', '?', '$']);
    let objects = about.iter().any(|resource| resource.contains('/') || is_open(resource));
    let buckets = about.iter().any(|resource| {
        resource.split_once('/').is_none_or(|(bucket, key)| is_open(&bucket.to_owned()) && key == "*")
    });
    let account = about.iter().any(is_open);
    for (name, set) in named.iter().zip(sets) {
        let applies = set.iter().any(|action| match action.target() {
            Target::Account => account,
            Target::Bucket => buckets,
            Target::Object => objects,
        });
        if !applies {
            return Err(PolicyError::ActionWithoutResource { place: place.to_owned(), action: name.clone() });
        }
    }
    Ok(())
}

fn resource(name: &str, place: &str, document: Document<'_>, excepted: bool) -> Parsed<Pattern> {
    let refuse =
        |problem| Err(PolicyError::Resource { place: place.to_owned(), resource: name.to_owned(), problem });
    let pattern = pattern(name, place, document)?;
    if name == "*" {
        return Ok(pattern);
    }
    let Some(path) = name.strip_prefix(ARN_PREFIX).filter(|path| !path.is_empty()) else {
        return refuse("is no resource of S3; write arn:aws:s3:::BUCKET or arn:aws:s3:::BUCKET/KEY");
    };
    let part = path.split_once('/').map_or(path, |(bucket, _)| bucket);
    if let Some(bucket) = document.bucket
        && !excepted
        && !part.contains("${")
        && !Pattern::wildcards(part).matches(bucket)
        && !part.contains('*')
    {
        return refuse("is not in the bucket that the policy belongs to");
    }
    Ok(pattern)
}

fn pattern(written: &str, place: &str, document: Document<'_>) -> Parsed<Pattern> {
    let refuse = |problem: String| PolicyError::Value {
        place: place.to_owned(),
        value: written.chars().take(100).collect(),
        problem,
    };
    if written.chars().count() > PATTERN_CHARS_MAX {
        return Err(refuse(format!("it has more than {PATTERN_CHARS_MAX} characters")));
    }
    if !document.has_variables {
        return Ok(Pattern::wildcards(written));
    }
    let known = |key: &str| {
        let key = context::normal(key);
        context::kind_of(&key).filter(|kind| *kind != Kind::Set).map(|_| key)
    };
    Pattern::template(written, known).map_err(refuse)
}

fn conditions(json: Json, place: &str, document: Document<'_>) -> Parsed<Vec<Condition>> {
    let place = format!("{place}: Condition");
    let mut found = Vec::new();
    for (written, keys) in Members::new(json, &place)?.members {
        let operator = Operator::parse(&written)
            .ok_or_else(|| PolicyError::Operator { place: place.clone(), operator: written.clone() })?;
        for (name, values) in Members::new(keys, &format!("{place}: {written}"))?.members {
            let key = context::normal(&name);
            let kind = context::kind_of(&key)
                .ok_or_else(|| PolicyError::Key { place: place.clone(), key: name.clone() })?;
            if !operator.takes(kind) {
                return Err(PolicyError::OperatorForKey { place, operator: written, key: name });
            }
            let values = texts(values, &format!("{place}: {written}: {name}"))?;
            let values = self::values(operator.test, &values, &place, document)?;
            found.push(Condition { key, operator, values });
        }
    }
    bound(found.len(), VALUES_MAX, &place)?;
    Ok(found)
}

fn values(test: Test, written: &[String], place: &str, document: Document<'_>) -> Parsed<Values> {
    fn all<T>(
        written: &[String],
        place: &str,
        problem: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Parsed<Vec<T>> {
        let one = |value: &String| {
            parse(value).ok_or_else(|| PolicyError::Value {
                place: place.to_owned(),
                value: value.clone(),
                problem: problem.to_owned(),
            })
        };
        written.iter().map(one).collect()
    }
    Ok(match test {
        Test::Number(_) => {
            let number = |text: &str| text.parse::<f64>().ok().filter(|number| number.is_finite());
            Values::Numbers(all(written, place, "it is not a number", number)?)
        }
        Test::Date(_) => {
            let problem = "it is not a date like 2026-01-31T00:00:00Z";
            Values::Dates(all(written, place, problem, date::parse_ms)?)
        }
        Test::Bool | Test::Null => {
            let boolean = |text: &str| text.to_ascii_lowercase().parse().ok();
            Values::Bools(all(written, place, "it is neither true nor false", boolean)?)
        }
        Test::Address => {
            Values::Networks(all(written, place, "it is not an address or a network", Network::parse)?)
        }
        Test::Arn => {
            let whole =
                |text: &str| (text.starts_with("arn:") && text.matches(':').count() >= 5).then_some(());
            all(written, place, "it is not an ARN", whole)?;
            Values::Texts(written.iter().map(|text| pattern(text, place, document)).collect::<Parsed<_>>()?)
        }
        Test::Equal | Test::EqualIgnoringCase | Test::Like => {
            Values::Texts(written.iter().map(|text| pattern(text, place, document)).collect::<Parsed<_>>()?)
        }
    })
}

/// Members of an object, of which each has to be taken.
struct Members {
    place: String,
    members: Vec<(String, Json)>,
}

impl Members {
    fn new(json: Json, place: &str) -> Parsed<Self> {
        match json {
            Json::Object(members) => {
                bound(members.len(), VALUES_MAX, place)?;
                Ok(Self { place: place.to_owned(), members })
            }
            _ => Err(expected(place, "an object")),
        }
    }

    fn take(&mut self, name: &str) -> Option<Json> {
        let position = self.members.iter().position(|(known, _)| known == name)?;
        Some(self.members.remove(position).1)
    }

    fn end(self) -> Parsed<()> {
        match self.members.into_iter().next() {
            None => Ok(()),
            Some((name, _)) => Err(PolicyError::UnknownElement { place: self.place, name }),
        }
    }
}

fn text(json: Json, place: &str) -> Parsed<String> {
    match json {
        Json::Text(text) => Ok(text),
        _ => Err(expected(place, "a text")),
    }
}

/// One value or a list of values; numbers and booleans are taken as they are written.
fn texts(json: Json, place: &str) -> Parsed<Vec<String>> {
    let one = |json| match json {
        Json::Text(text) | Json::Number(text) => Ok(text),
        Json::Bool(value) => Ok(value.to_string()),
        _ => Err(expected(place, "a text or a list of texts")),
    };
    match json {
        Json::List(values) if values.is_empty() => Err(expected(place, "a list of at least one text")),
        Json::List(values) => {
            bound(values.len(), VALUES_MAX, place)?;
            values.into_iter().map(one).collect()
        }
        other => Ok(vec![one(other)?]),
    }
}

fn bound(count: usize, limit: usize, place: &str) -> Parsed<()> {
    if count > limit { Err(PolicyError::TooMany { place: place.to_owned(), limit }) } else { Ok(()) }
}

fn expected(place: impl Into<String>, expected: &str) -> PolicyError {
    PolicyError::Expected { place: place.into(), expected: expected.to_owned() }
}

fn exactly_one(place: &str, names: &'static str) -> PolicyError {
    PolicyError::ExactlyOne { place: place.to_owned(), names }
}

impl Condition {
    /// Restricts to values that are written out: for the judgement whether a policy is public.
    pub(crate) fn is_positive(&self) -> bool {
        !self.operator.negated && !self.operator.if_exists && self.operator.quantifier != Quantifier::All
    }
}

//! When objects go by themselves: a bucket's lifecycle rules and an object's own time.
//!
//! Pure: the object layer asks it at every read, the gateway for its headers, and the node's job before it deletes, so
//! that all three agree. An object is gone at its time, whether or not the job has come by.
//!
//! Transitions to other storage classes are carried out by the node's job alone (`tier`); reads do not look at them.
//!
//! Times are Unix milliseconds. A rule in days ends, as in S3, at the first midnight (UTC) that is not before the
//! creation plus the days; dates and an object's own time are exact.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// A day, unless [`set_day_for_tests`] says otherwise.
pub const DAY_MS: u64 = 24 * 3600 * 1000;

static DAY_NOW_MS: AtomicU64 = AtomicU64::new(DAY_MS);

/// How long a day of a rule is in this process, milliseconds.
#[must_use]
pub fn day_ms() -> u64 {
    DAY_NOW_MS.load(Ordering::Relaxed)
}

/// Makes the days of rules shorter in this process: tests of a whole server do not wait for midnight.
pub fn set_day_for_tests(day_ms: NonZeroU64) {
    DAY_NOW_MS.store(day_ms.get(), Ordering::Relaxed);
}

/// An upload that no rule covers is given up after so long.
pub const UPLOAD_DAYS_DEFAULT: u32 = 7;
/// Smaller objects change their class only by rules that speak of sizes, as in S3.
pub const TRANSITION_BYTES_MIN: u64 = 128 << 10;
/// Classes that a transition may lead to, in the order in which it may: never back.
pub const LADDER: [&str; 4] = ["STANDARD_IA", "INTELLIGENT_TIERING", "ONEZONE_IA", "GLACIER_IR"];
/// The attribute with an object's own time: Unix milliseconds in decimal, or `+` and seconds from when it was written.
pub const EXPIRES_ATTRIBUTE: &str = "x-quarry-expires";

/// The rules of a bucket.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Lifecycle {
    /// In the order in which they were given.
    pub rules: Vec<Rule>,
}

/// One rule. What does nothing is left out.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Rule {
    /// Unique in its bucket.
    pub id: String,
    /// Whether it counts.
    pub enabled: bool,
    /// Which objects it is about.
    pub filter: Filter,
    /// What becomes of current versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiration: Option<Expiration>,
    /// What becomes of noncurrent versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noncurrent: Option<Noncurrent>,
    /// Uploads are aborted so many days after they began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abort_upload_days: Option<u32>,
    /// Classes that current versions get.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub transitions: Vec<Transition>,
    /// Classes that noncurrent versions get.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub noncurrent_transitions: Vec<NoncurrentTransition>,
}

/// A class that current versions get.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Transition {
    /// When.
    pub at: TransitionTime,
    /// Which.
    pub class: String,
}

/// When a current version gets another class.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransitionTime {
    /// So many days after it was written.
    Days(u32),
    /// At this time, and later ones at once.
    AtMs(u64),
}

/// A class that noncurrent versions get.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NoncurrentTransition {
    /// So many days after they were replaced.
    pub days: u32,
    /// So many of the newest stay as they are whatever their age.
    #[serde(default)]
    pub keep: u32,
    /// Which.
    pub class: String,
}

/// Everything that is given must hold.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Filter {
    /// Written beside the filter, as S3 had it first; only for giving it back.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_bare_prefix: bool,
    /// What keys begin with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Tags that the object has, among others.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Only objects of more bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub larger_than_bytes: Option<u64>,
    /// Only objects of fewer bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smaller_than_bytes: Option<u64>,
}

/// What becomes of current versions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expiration {
    /// They expire so many days after they were written.
    Days(u32),
    /// They expire at this time, and later ones at once.
    AtMs(u64),
    /// A delete marker that has no versions under it any more goes.
    LoneDeleteMarker,
}

/// What becomes of noncurrent versions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Noncurrent {
    /// They expire so many days after they were replaced.
    pub days: u32,
    /// So many of the newest stay whatever their age.
    #[serde(default)]
    pub keep: u32,
}

/// What the rules look at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate<'a> {
    /// Its key.
    pub key: &'a str,
    /// Its length.
    pub size_bytes: u64,
    /// When it was written.
    pub last_modified_ms: u64,
    /// Its tags.
    pub tags: &'a BTreeMap<String, String>,
}

/// When a current version expires, and by which rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Expiry<'a> {
    /// The time.
    pub at_ms: u64,
    /// The rule's id.
    pub rule: &'a str,
}

impl Filter {
    fn matches_key(&self, key: &str) -> bool {
        self.prefix.as_deref().is_none_or(|prefix| key.starts_with(prefix))
    }

    fn matches(&self, object: &Candidate<'_>) -> bool {
        self.matches_key(object.key)
            && self.tags.iter().all(|(name, value)| object.tags.get(name) == Some(value))
            && self.larger_than_bytes.is_none_or(|bytes| object.size_bytes > bytes)
            && self.smaller_than_bytes.is_none_or(|bytes| object.size_bytes < bytes)
    }

    /// As [`Filter::matches`]; as in S3, small objects stay where they are unless the filter speaks of sizes.
    fn takes_transition(&self, object: &Candidate<'_>) -> bool {
        let speaks_of_sizes = self.larger_than_bytes.is_some() || self.smaller_than_bytes.is_some();
        self.matches(object) && (speaks_of_sizes || object.size_bytes >= TRANSITION_BYTES_MIN)
    }

    /// How many things it asks for.
    #[must_use]
    pub fn conditions(&self) -> usize {
        usize::from(self.prefix.is_some())
            + self.tags.len()
            + usize::from(self.larger_than_bytes.is_some())
            + usize::from(self.smaller_than_bytes.is_some())
    }
}

impl Lifecycle {
    /// Reads a document that [`Lifecycle::to_document`] wrote.
    ///
    /// # Errors
    /// For anything else.
    pub fn parse(document: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(document)
    }

    /// As it is stored with its bucket.
    #[must_use]
    pub fn to_document(&self) -> String {
        serde_json::to_string(self).expect("plain data with text keys")
    }

    fn enabled(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(|rule| rule.enabled)
    }

    /// When the current version of an object expires: by the rule that comes first in time.
    #[must_use]
    pub fn expiry(&self, object: &Candidate<'_>) -> Option<Expiry<'_>> {
        let rules = self.enabled().filter(|rule| rule.filter.matches(object));
        let expiries = rules.filter_map(|rule| {
            let at_ms = match rule.expiration? {
                Expiration::Days(days) => midnight_after(object.last_modified_ms, days),
                Expiration::AtMs(at_ms) => at_ms,
                Expiration::LoneDeleteMarker => return None,
            };
            Some(Expiry { at_ms, rule: &rule.id })
        });
        expiries.min_by_key(|expiry| expiry.at_ms)
    }

    /// When a noncurrent version expires that was replaced at `replaced_ms` and has `newer` noncurrent versions above it.
    #[must_use]
    pub fn noncurrent_expiry(&self, object: &Candidate<'_>, replaced_ms: u64, newer: u32) -> Option<u64> {
        let rules = self.enabled().filter(|rule| rule.filter.matches(object));
        let noncurrent =
            rules.filter_map(|rule| rule.noncurrent).filter(|noncurrent| newer >= noncurrent.keep);
        noncurrent.map(|noncurrent| midnight_after(replaced_ms, noncurrent.days)).min()
    }

    /// Whether a delete marker goes that has nothing under it: by a rule that says so, or by its age.
    #[must_use]
    pub fn takes_lone_marker(&self, key: &str, written_ms: u64, now_ms: u64) -> bool {
        let about = |rule: &&Rule| rule.filter.matches_key(key) && rule.filter.tags.is_empty();
        self.enabled().filter(about).any(|rule| match rule.expiration {
            Some(Expiration::LoneDeleteMarker) => true,
            Some(Expiration::Days(days)) => midnight_after(written_ms, days) <= now_ms,
            Some(Expiration::AtMs(at_ms)) => at_ms <= now_ms,
            None => false,
        })
    }

    /// When an upload is given up: by the strictest rule, and without one after [`UPLOAD_DAYS_DEFAULT`].
    #[must_use]
    pub fn upload_expiry_ms(&self, key: &str, began_ms: u64) -> u64 {
        let rules = self.enabled().filter(|rule| rule.filter.matches_key(key));
        let days = rules.filter_map(|rule| rule.abort_upload_days).min();
        midnight_after(began_ms, days.unwrap_or(UPLOAD_DAYS_DEFAULT))
    }

    /// The class that a current version is to have at `now_ms`: that of the latest transition that is due.
    #[must_use]
    pub fn transition(&self, object: &Candidate<'_>, now_ms: u64) -> Option<&str> {
        let rules = self.enabled().filter(|rule| rule.filter.takes_transition(object));
        let due = rules.flat_map(|rule| &rule.transitions).map(|transition| {
            let at_ms = match transition.at {
                TransitionTime::Days(days) => midnight_after(object.last_modified_ms, days),
                TransitionTime::AtMs(at_ms) => at_ms.max(object.last_modified_ms),
            };
            (at_ms, transition.class.as_str())
        });
        latest(due, now_ms)
    }

    /// As [`Lifecycle::transition`] of a noncurrent version that was replaced at `replaced_ms` and has `newer` noncurrent
    /// versions above it.
    #[must_use]
    pub fn noncurrent_transition(
        &self,
        object: &Candidate<'_>,
        (replaced_ms, newer): (u64, u32),
        now_ms: u64,
    ) -> Option<&str> {
        let rules = self.enabled().filter(|rule| rule.filter.takes_transition(object));
        let transitions =
            rules.flat_map(|rule| &rule.noncurrent_transitions).filter(|transition| newer >= transition.keep);
        let due = transitions
            .map(|transition| (midnight_after(replaced_ms, transition.days), transition.class.as_str()));
        latest(due, now_ms)
    }

    /// Whether any rule could do anything to objects that exist.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.enabled().all(|rule| rule.expiration.is_none() && rule.noncurrent.is_none())
    }

    /// Whether any rule gives objects another class.
    #[must_use]
    pub fn has_transitions(&self) -> bool {
        self.enabled().any(|rule| !rule.transitions.is_empty() || !rule.noncurrent_transitions.is_empty())
    }
}

/// The last of what is due; of two at the same time the one further down the ladder.
fn latest<'c>(due: impl Iterator<Item = (u64, &'c str)>, now_ms: u64) -> Option<&'c str> {
    let due = due.filter(|(at_ms, _)| *at_ms <= now_ms);
    due.max_by_key(|(at_ms, class)| (*at_ms, rank(class))).map(|(_, class)| class)
}

/// Where a class stands on the ladder: transitions only lead down, so from a lower rank to a higher one.
#[must_use]
pub fn rank(class: &str) -> usize {
    LADDER.iter().position(|known| *known == class).map_or(0, |position| position + 1)
}

/// The first midnight not before `from_ms` plus so many days.
fn midnight_after(from_ms: u64, days: u32) -> u64 {
    let day_ms = day_ms();
    from_ms.saturating_add(u64::from(days) * day_ms).div_ceil(day_ms).saturating_mul(day_ms)
}

/// When an object is over, by its bucket's rules or by its own attribute, whichever comes first.
#[must_use]
pub fn expiry_ms(rules: Option<&Lifecycle>, object: &Candidate<'_>, attribute: Option<&str>) -> Option<u64> {
    let by_rule = rules.and_then(|rules| rules.expiry(object)).map(|expiry| expiry.at_ms);
    [by_rule, own_expiry_ms(attribute, object.last_modified_ms)].into_iter().flatten().min()
}

/// An object's own time, from its stored attribute.
#[must_use]
pub fn own_expiry_ms(attribute: Option<&str>, last_modified_ms: u64) -> Option<u64> {
    let text = attribute?;
    match text.strip_prefix('+') {
        Some(seconds) => {
            Some(last_modified_ms.saturating_add(seconds.parse::<u64>().ok()?.saturating_mul(1000)))
        }
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 100 * DAY_MS + DAY_MS / 2;

    fn rule(filter: Filter, expiration: Expiration) -> Rule {
        Rule { id: "r".into(), enabled: true, filter, expiration: Some(expiration), ..Rule::default() }
    }

    fn tags(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn days_end_at_midnight_and_dates_are_exact() {
        for (expiration, at_ms) in [
            (Expiration::Days(1), 102 * DAY_MS),
            (Expiration::Days(3), 104 * DAY_MS),
            (Expiration::AtMs(77), 77),
        ] {
            let rules = Lifecycle { rules: vec![rule(Filter::default(), expiration)] };
            let none = BTreeMap::new();
            let object = Candidate { key: "a", size_bytes: 1, last_modified_ms: NOON, tags: &none };
            assert_eq!(rules.expiry(&object), Some(Expiry { at_ms, rule: "r" }));
        }
        assert_eq!(midnight_after(5 * DAY_MS, 2), 7 * DAY_MS);
        assert!(midnight_after(u64::MAX, u32::MAX) > u64::MAX - DAY_MS, "no overflow");
    }

    #[test]
    fn every_condition_of_a_filter_counts() {
        let filter = Filter {
            prefix: Some("logs/".into()),
            tags: tags(&[("a", "1"), ("b", "2")]),
            larger_than_bytes: Some(10),
            smaller_than_bytes: Some(20),
            ..Filter::default()
        };
        assert_eq!(filter.conditions(), 5);
        let both = tags(&[("a", "1"), ("b", "2"), ("c", "3")]);
        for (key, size_bytes, tags, matches) in [
            ("logs/x", 11, &both, true),
            ("log", 11, &both, false),
            ("logs/x", 10, &both, false),
            ("logs/x", 19, &both, true),
            ("logs/x", 20, &both, false),
            ("logs/x", 11, &tags(&[("a", "1")]), false),
            ("logs/x", 11, &tags(&[("a", "1"), ("b", "3")]), false),
        ] {
            let object = Candidate { key, size_bytes, last_modified_ms: 0, tags };
            assert_eq!(filter.matches(&object), matches, "{object:?}");
        }
        let none = BTreeMap::new();
        let object = Candidate { key: "", size_bytes: 0, last_modified_ms: 0, tags: &none };
        assert!(Filter::default().matches(&object));
    }

    #[test]
    fn the_earliest_enabled_rule_decides() {
        let mut late = rule(Filter::default(), Expiration::Days(9));
        late.id = "late".into();
        let mut off = rule(Filter::default(), Expiration::AtMs(0));
        off.enabled = false;
        let marker = rule(Filter::default(), Expiration::LoneDeleteMarker);
        let none = BTreeMap::new();
        let object = Candidate { key: "a", size_bytes: 1, last_modified_ms: NOON, tags: &none };
        let mut rules = Lifecycle { rules: vec![marker, late, off] };
        assert_eq!(rules.expiry(&object).map(|expiry| expiry.rule), Some("late"));
        rules.rules.push(rule(Filter::default(), Expiration::Days(2)));
        assert_eq!(rules.expiry(&object).map(|expiry| expiry.rule), Some("r"));
        assert!(!rules.is_idle() && Lifecycle::default().is_idle());
    }

    #[test]
    fn uploads_noncurrent_versions_and_markers() {
        let mut one =
            rule(Filter { prefix: Some("a".into()), ..Filter::default() }, Expiration::LoneDeleteMarker);
        one.noncurrent = Some(Noncurrent { days: 1, keep: 2 });
        one.abort_upload_days = Some(30);
        let rules = Lifecycle { rules: vec![one] };
        assert_eq!(rules.upload_expiry_ms("b", NOON), 108 * DAY_MS, "the default");
        assert_eq!(rules.upload_expiry_ms("a", NOON), 131 * DAY_MS, "a rule may also give longer");
        let none = BTreeMap::new();
        let object = Candidate { key: "a", size_bytes: 1, last_modified_ms: 0, tags: &none };
        assert_eq!(rules.noncurrent_expiry(&object, NOON, 1), None, "among the newest two");
        assert_eq!(rules.noncurrent_expiry(&object, NOON, 2), Some(102 * DAY_MS));
        assert!(rules.takes_lone_marker("a", NOON, NOON) && !rules.takes_lone_marker("b", NOON, NOON));
        assert_eq!(own_expiry_ms(Some("17"), 5), Some(17));
        assert_eq!(own_expiry_ms(Some("+17"), 5), Some(17_005));
        assert_eq!(own_expiry_ms(Some("soon"), 5), None);
    }

    fn transitions(list: &[(TransitionTime, &str)]) -> Lifecycle {
        let transition =
            |(at, class): &(TransitionTime, &str)| Transition { at: *at, class: (*class).to_owned() };
        let transitions = list.iter().map(transition).collect();
        Lifecycle { rules: vec![Rule { enabled: true, transitions, ..Rule::default() }] }
    }

    #[test]
    fn the_latest_transition_that_is_due_decides() {
        use TransitionTime::{AtMs, Days};
        let none = BTreeMap::new();
        let object =
            Candidate { key: "k", size_bytes: TRANSITION_BYTES_MIN, last_modified_ms: NOON, tags: &none };
        let rules = transitions(&[(Days(1), "STANDARD_IA"), (Days(3), "GLACIER_IR")]);
        assert_eq!(rules.transition(&object, 102 * DAY_MS - 1), None);
        assert_eq!(rules.transition(&object, 102 * DAY_MS), Some("STANDARD_IA"));
        assert_eq!(rules.transition(&object, 104 * DAY_MS), Some("GLACIER_IR"));
        let same = transitions(&[(AtMs(7), "GLACIER_IR"), (AtMs(9), "STANDARD_IA")]);
        assert_eq!(same.transition(&object, NOON), Some("GLACIER_IR"), "both are due from the beginning");
        assert_eq!(same.transition(&object, NOON - 1), None, "not before it was written");
        assert!(rules.has_transitions() && rules.is_idle(), "reads need not look at it");

        let small = Candidate { size_bytes: TRANSITION_BYTES_MIN - 1, ..object };
        assert_eq!(rules.transition(&small, 104 * DAY_MS), None);
        let mut sized = rules.clone();
        sized.rules[0].filter.larger_than_bytes = Some(0);
        assert_eq!(sized.transition(&small, 104 * DAY_MS), Some("GLACIER_IR"));
        let mut disabled = rules.clone();
        disabled.rules[0].enabled = false;
        assert_eq!(disabled.transition(&object, 104 * DAY_MS), None);
    }

    #[test]
    fn noncurrent_transitions_spare_the_newest() {
        let noncurrent = vec![NoncurrentTransition { days: 1, keep: 2, class: "STANDARD_IA".to_owned() }];
        let rule = Rule { enabled: true, noncurrent_transitions: noncurrent, ..Rule::default() };
        let rules = Lifecycle { rules: vec![rule] };
        let none = BTreeMap::new();
        let object = Candidate { key: "k", size_bytes: 1 << 20, last_modified_ms: 0, tags: &none };
        assert_eq!(rules.noncurrent_transition(&object, (NOON, 1), 200 * DAY_MS), None);
        assert_eq!(rules.noncurrent_transition(&object, (NOON, 2), 102 * DAY_MS), Some("STANDARD_IA"));
        assert_eq!(rules.noncurrent_transition(&object, (NOON, 2), 102 * DAY_MS - 1), None);
        assert_eq!(rules.transition(&object, 200 * DAY_MS), None);
        assert_eq!(Lifecycle::parse(&rules.to_document()).unwrap(), rules);
    }

    #[test]
    fn ranks_follow_the_ladder() {
        assert!(rank("STANDARD") < rank("STANDARD_IA") && rank("STANDARD_IA") < rank("GLACIER_IR"));
    }

    #[test]
    fn documents_are_short_and_stable() {
        let rules = Lifecycle {
            rules: vec![rule(Filter { prefix: Some("x".into()), ..Filter::default() }, Expiration::Days(1))],
        };
        let document = rules.to_document();
        assert_eq!(
            document,
            r#"{"rules":[{"id":"r","enabled":true,"filter":{"prefix":"x"},"expiration":{"days":1}}]}"#
        );
        assert_eq!(Lifecycle::parse(&document).unwrap(), rules);
        assert!(Lifecycle::parse("{}").is_err());
    }
}

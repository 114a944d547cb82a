//! Is what clients saw of one key possible if every operation took effect at one instant between its call and its
//! return? Knows nothing of replication.
//!
//! A search over all orders, event by event. A *world* is one explanation of all answers so far: the key's value, the
//! open operations that have taken effect, and the writes of unknown outcome that have not. When an operation
//! returns, worlds are kept in which it has taken effect, with the result it returned; none left: no order explains
//! it. A write of unknown outcome never returns: it may take effect at any later time, or never.
//!
//! Four reductions keep the worlds few; none of them loses an explanation:
//! - what changes nothing (a read, a refusal) takes effect as soon as its answer is right: waiting gains nothing;
//! - a value that no answer still to come depends on is like any other such value ([`OTHER`]), and so are the writes
//!   of such values, which are therefore counted, not told apart;
//! - of two worlds that differ only in the writes left, the one that has more left can do all that the other can;
//! - a conditional write whose value to replace cannot come back will do nothing.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

/// The value of a key: each put stores another one. `None`: there is none.
pub type Value = Option<u64>;

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Action {
    /// Store this value.
    Put(u64),
    /// Only if there is none.
    PutNew(u64),
    /// Only if the first is there.
    Replace(u64, u64),
    /// Store that there is none.
    Delete,
    /// Tell the value: GET, HEAD, or a listing's word on one key.
    Get,
}

/// What a client was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    /// It took effect.
    Done,
    /// A condition did not hold.
    Refused,
    /// The value.
    Read(Value),
}

/// One operation on the key. Times are on one clock, in any unit.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// What was asked for.
    pub action: Action,
    /// When.
    pub called: u64,
    /// When and what; `None`: unknown for ever.
    pub returned: Option<(u64, Told)>,
}

/// Stands for every value that makes no difference any more.
const OTHER: u64 = u64::MAX;
/// Most worlds at a time. No history of the simulator comes near; one that does is an error, not a success.
const WORLDS_MAX: usize = 20_000;

/// What has happened in a world: the value, and the open operations that have taken effect, by index.
type Past = (Value, BTreeSet<usize>);
/// Writes of unknown outcome that have not taken effect, sorted.
type Left = Vec<Action>;

/// Worlds of which none can do all that another can.
#[derive(Default)]
struct Worlds {
    by_past: BTreeMap<Past, Vec<Left>>,
    count: usize,
}

impl Worlds {
    /// Returns whether the world is new.
    fn insert(&mut self, past: Past, left: Left) -> bool {
        let others = self.by_past.entry(past).or_default();
        if others.iter().any(|other| includes(other, &left)) {
            return false;
        }
        let before = others.len();
        others.retain(|other| !includes(&left, other));
        others.push(left);
        self.count = self.count + others.len() - before;
        true
    }

    fn contains(&self, past: &Past, left: &Left) -> bool {
        self.by_past.get(past).is_some_and(|others| others.contains(left))
    }

    fn into_iter(self) -> impl Iterator<Item = (Past, Left)> {
        self.by_past
            .into_iter()
            .flat_map(|(past, others)| others.into_iter().map(move |left| (past.clone(), left)))
    }
}

/// Whether the sorted `all` has everything that the sorted `some` has, as often.
fn includes(all: &[Action], some: &[Action]) -> bool {
    let mut all = all.iter();
    some.iter().all(|action| all.by_ref().any(|other| other == action))
}

/// What `action` answers, and what it leaves.
fn perform(action: Action, value: Value) -> (Told, Value) {
    match action {
        Action::Put(new) => (Told::Done, Some(new)),
        Action::PutNew(new) if value.is_none() => (Told::Done, Some(new)),
        Action::Replace(old, new) if value == Some(old) => (Told::Done, Some(new)),
        Action::PutNew(_) | Action::Replace(..) => (Told::Refused, value),
        Action::Delete => (Told::Done, None),
        Action::Get => (Told::Read(value), value),
    }
}

/// The value that an action stores.
fn stored(action: Action) -> Value {
    match action {
        Action::Put(new) | Action::PutNew(new) | Action::Replace(_, new) => Some(new),
        Action::Delete | Action::Get => None,
    }
}

/// The search at one event.
struct Search<'a> {
    operations: &'a [Operation],
    /// Called, and will return.
    open: BTreeSet<usize>,
    /// Values whose writes are yet to be called.
    ahead: BTreeSet<u64>,
    /// How many operations still to return, or to be called, depend on a value.
    wanted: BTreeMap<u64, u64>,
}

/// Whether some order explains the history of one key. The error names the first answer that no order explains, or says that there are too many worlds to tell.
/// # Errors
/// A text for people.
pub fn check(operations: &[Operation]) -> Result<(), String> {
    let mut search =
        Search { operations, open: BTreeSet::new(), ahead: BTreeSet::new(), wanted: BTreeMap::new() };
    let mut events: Vec<(u64, bool, usize)> = Vec::new();
    for (index, operation) in operations.iter().enumerate() {
        assert!(stored(operation.action) != Some(OTHER), "the value is reserved");
        search.depended_on(index).for_each(|value| *search.wanted.entry(value).or_default() += 1);
        search.ahead.extend(stored(operation.action));
        events.push((operation.called, false, index));
        events.extend(operation.returned.map(|(at, _)| (at, true, index)));
    }
    // At one instant calls come first: what is not clearly after counts as concurrent.
    events.sort_unstable();
    let mut worlds = Worlds::default();
    worlds.insert((None, BTreeSet::new()), Vec::new());
    for (at, returns, index) in events {
        let operation = operations[index];
        if !returns && let Some(value) = stored(operation.action) {
            search.ahead.remove(&value);
        }
        worlds = match (returns, operation.returned) {
            (true, _) => search.returned(worlds, index).ok_or_else(|| {
                format!("not decided: more than {WORLDS_MAX} worlds at {at}, {operation:?}")
            })?,
            (false, Some(_)) => {
                search.open.insert(index);
                worlds
            }
            (false, None) => search.left_open(worlds, index),
        };
        if worlds.count == 0 {
            return Err(format!("not linearizable: at {at} no order explains {operation:?}"));
        }
    }
    Ok(())
}

impl Search<'_> {
    /// The values that an operation's answer, or its effect, depends on.
    fn depended_on(&self, index: usize) -> impl Iterator<Item = u64> + use<> {
        let operation = &self.operations[index];
        let read = match operation.returned {
            Some((_, Told::Read(value))) => value,
            _ => None,
        };
        let replaced = match operation.action {
            Action::Replace(old, _) => Some(old),
            _ => None,
        };
        read.into_iter().chain(replaced)
    }

    fn no_longer_wanted(&mut self, index: usize) {
        for value in self.depended_on(index) {
            let count = self.wanted.get_mut(&value).expect("counted at the start");
            *count -= 1;
        }
    }

    /// A write of unknown outcome is called.
    fn left_open(&mut self, worlds: Worlds, index: usize) -> Worlds {
        self.no_longer_wanted(index);
        let action = self.operations[index].action;
        if action == Action::Get {
            return worlds;
        }
        let mut next = Worlds::default();
        for (past, mut left) in worlds.into_iter() {
            left.push(action);
            self.insert_reduced(&mut next, past, left);
        }
        next
    }

    /// An operation returns. `None`: too many worlds.
    fn returned(&mut self, worlds: Worlds, index: usize) -> Option<Worlds> {
        let all = self.reachable(worlds)?;
        self.open.remove(&index);
        self.no_longer_wanted(index);
        let mut next = Worlds::default();
        for ((value, mut done), left) in all.into_iter() {
            if done.remove(&index) {
                self.insert_reduced(&mut next, (value, done), left);
            }
        }
        Some(next)
    }

    /// The worlds, and those that open operations make of them.
    fn reachable(&self, worlds: Worlds) -> Option<Worlds> {
        let mut all = Worlds::default();
        let mut fresh: Vec<(Past, Left)> = Vec::new();
        for (past, left) in worlds.into_iter() {
            let past = self.observed(past);
            all.insert(past.clone(), left.clone());
            fresh.push((past, left));
        }
        while let Some((past, left)) = fresh.pop() {
            if !all.contains(&past, &left) {
                continue;
            }
            for (past, left) in self.successors(&past, &left) {
                let past = self.observed(past);
                if all.insert(past.clone(), left.clone()) {
                    fresh.push((past, left));
                }
            }
            if all.count > WORLDS_MAX {
                return None;
            }
        }
        Some(all)
    }

    /// With every open operation that changes nothing, and whose answer is right here, done.
    fn observed(&self, (value, mut done): Past) -> Past {
        for index in &self.open {
            let Operation { action, returned, .. } = self.operations[*index];
            let Some((_, told)) = returned else { continue };
            let changes_nothing = action == Action::Get || told == Told::Refused;
            if changes_nothing && perform(action, value).0 == told {
                done.insert(*index);
            }
        }
        (value, done)
    }

    /// What one more operation makes of a world.
    fn successors(&self, (value, done): &Past, left: &Left) -> Vec<(Past, Left)> {
        let mut successors = Vec::new();
        for index in self.open.difference(done) {
            let operation = &self.operations[*index];
            let (told, next) = perform(operation.action, *value);
            if operation.returned.is_some_and(|(_, answer)| answer == told) {
                let done = done.iter().copied().chain([*index]).collect();
                successors.push(((next, done), left.clone()));
            }
        }
        for (place, action) in left.iter().enumerate() {
            let (_, next) = perform(*action, *value);
            let again = place > 0 && left[place - 1] == *action;
            if next != *value && !again {
                let mut left = left.clone();
                left.remove(place);
                successors.push(((next, done.clone()), left));
            }
        }
        successors
    }

    /// Inserts a world without what makes no difference from here on.
    fn insert_reduced(&self, worlds: &mut Worlds, (value, done): Past, mut left: Left) {
        let may_come = |old: u64, left: &Left| {
            value == Some(old)
                || self.ahead.contains(&old)
                || left.iter().any(|action| stored(*action) == Some(old))
                || self
                    .open
                    .difference(&done)
                    .any(|index| stored(self.operations[*index].action) == Some(old))
        };
        let before = left.clone();
        left.retain(|action| !matches!(action, Action::Replace(old, _) if !may_come(*old, &before)));
        let kept: BTreeSet<u64> = left
            .iter()
            .filter_map(|action| if let Action::Replace(old, _) = action { Some(*old) } else { None })
            .collect();
        let reduced = |value: u64| {
            let wanted = self.wanted.get(&value).is_some_and(|count| *count > 0) || kept.contains(&value);
            if wanted { value } else { OTHER }
        };
        for action in &mut left {
            *action = match *action {
                Action::Put(new) => Action::Put(reduced(new)),
                Action::PutNew(new) => Action::PutNew(reduced(new)),
                Action::Replace(old, new) => Action::Replace(old, reduced(new)),
                Action::Delete | Action::Get => *action,
            };
        }
        left.sort_unstable();
        worlds.insert((value.map(reduced), done), left);
    }
}

//! Is what clients saw of one key possible if every operation took effect at one instant between its call and its
//! return? Knows nothing of replication.
//!
//! A search over all orders, event by event: a *world* is a value of the key and the set of open operations that
//! have taken effect in it. When an operation returns, only worlds stay in which it has taken effect, with the
//! result it returned. An operation of unknown outcome never returns: it may take effect at any later time, or
//! never. So of two worlds that differ only in unknown operations spent, the one that spent fewer can do all that
//! the other can.

use std::collections::BTreeSet;

/// The value of a key: each put stores another one.
pub(super) type Value = Option<u64>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    Put(u64),
    /// Only if there is none.
    PutNew(u64),
    /// Only if the first is there.
    Replace(u64, u64),
    Delete,
    Get,
}

/// What a client was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Told {
    Done,
    /// A condition did not hold.
    Refused,
    Read(Value),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Operation {
    pub(super) action: Action,
    pub(super) called: u64,
    /// When and what; `None`: unknown for ever.
    pub(super) returned: Option<(u64, Told)>,
}

/// Most worlds at a time; beyond, the history is not decided.
const WORLDS_MAX: usize = 2_000;

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct World {
    value: Value,
    /// Open operations that have taken effect, by index; those that will return, and those that will not.
    known: BTreeSet<usize>,
    unknown: BTreeSet<usize>,
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

/// The error names the first answer that no order explains. `Ok(false)`: too many worlds to tell.
pub(super) fn check(operations: &[Operation]) -> Result<bool, String> {
    let mut events: Vec<(u64, bool, usize)> = Vec::new();
    for (index, operation) in operations.iter().enumerate() {
        events.push((operation.called, false, index));
        if let Some((at, _)) = operation.returned {
            events.push((at, true, index));
        }
    }
    // At one instant calls come first: what is not clearly after counts as concurrent.
    events.sort_unstable();
    let mut open: BTreeSet<usize> = BTreeSet::new();
    let start = World { value: None, known: BTreeSet::new(), unknown: BTreeSet::new() };
    let mut worlds = BTreeSet::from([start]);
    for (at, returns, index) in events {
        if !returns {
            open.insert(index);
            continue;
        }
        let Some(all) = reachable(&worlds, &open, operations) else { return Ok(false) };
        open.remove(&index);
        worlds = all.into_iter().filter(|world| world.known.contains(&index)).collect();
        worlds = worlds
            .into_iter()
            .map(|mut world| {
                world.known.remove(&index);
                world
            })
            .collect();
        if worlds.is_empty() {
            return Err(format!("at {at} no order explains {:?}", operations[index]));
        }
        worlds = undominated(worlds);
    }
    Ok(true)
}

/// The worlds, and those that open operations make of them.
fn reachable(
    worlds: &BTreeSet<World>,
    open: &BTreeSet<usize>,
    operations: &[Operation],
) -> Option<BTreeSet<World>> {
    let mut all = worlds.clone();
    let mut fresh: Vec<World> = worlds.iter().cloned().collect();
    while let Some(world) = fresh.pop() {
        for index in open {
            if world.known.contains(index) || world.unknown.contains(index) {
                continue;
            }
            let operation = &operations[*index];
            let (told, value) = perform(operation.action, world.value);
            let mut next = World { value, ..world.clone() };
            match operation.returned {
                Some((_, answer)) if answer != told => continue,
                Some(_) => next.known.insert(*index),
                None if value == world.value => continue,
                None => next.unknown.insert(*index),
            };
            if all.insert(next.clone()) {
                fresh.push(next);
            }
        }
        if all.len() > WORLDS_MAX {
            return None;
        }
    }
    Some(all)
}

fn undominated(worlds: BTreeSet<World>) -> BTreeSet<World> {
    let can_as_much = |one: &World, other: &World| {
        one != other
            && one.value == other.value
            && one.known == other.known
            && one.unknown.is_subset(&other.unknown)
    };
    let kept = worlds.iter().filter(|world| !worlds.iter().any(|other| can_as_much(other, world)));
    kept.cloned().collect()
}

mod tests {
    use super::*;

    fn operation(action: Action, called: u64, returned: Option<(u64, Told)>) -> Operation {
        Operation { action, called, returned }
    }

    #[test]
    fn histories() {
        let put = operation(Action::Put(1), 0, Some((10, Told::Done)));
        let lost = operation(Action::Put(2), 11, None);
        let get = |called, value| operation(Action::Get, called, Some((called + 5, Told::Read(value))));
        assert_eq!(check(&[put, get(11, Some(1))]), Ok(true));
        assert!(check(&[put, get(11, None)]).is_err(), "stale");
        assert_eq!(check(&[put, get(5, None)]), Ok(true), "concurrent");
        assert_eq!(check(&[put, lost, get(20, Some(1)), get(90, Some(2))]), Ok(true), "late");
        assert!(check(&[put, lost, get(20, Some(2)), get(90, Some(1))]).is_err(), "back again");
        let new = operation(Action::PutNew(3), 20, Some((30, Told::Refused)));
        assert_eq!(check(&[put, new]), Ok(true));
        assert!(check(&[new]).is_err());
        let delete = operation(Action::Delete, 40, Some((50, Told::Done)));
        assert!(check(&[put, delete, get(60, Some(1))]).is_err());
        let replace = |old| operation(Action::Replace(old, 4), 60, Some((70, Told::Done)));
        assert_eq!(check(&[put, replace(1), get(80, Some(4))]), Ok(true));
        assert!(check(&[put, replace(9)]).is_err());
    }
}

//! Known histories, and small random ones against all orders tried one by one.

use super::{Action, Operation, Told, Value, check, perform};

/// SplitMix64.
struct Random(u64);

impl Random {
    /// In `0..bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

fn operation(action: Action, called: u64, returned: Option<(u64, Told)>) -> Operation {
    Operation { action, called, returned }
}

fn done(action: Action, called: u64, returned: u64) -> Operation {
    operation(action, called, Some((returned, Told::Done)))
}

fn get(called: u64, value: Value) -> Operation {
    operation(Action::Get, called, Some((called + 5, Told::Read(value))))
}

fn holds(history: &[Operation]) -> bool {
    match check(history) {
        Ok(()) => true,
        Err(problem) => {
            assert!(problem.contains("not linearizable"), "{problem}");
            false
        }
    }
}

#[test]
fn reads_and_writes() {
    let (put, later) = (done(Action::Put(1), 0, 10), done(Action::Put(2), 20, 30));
    assert!(holds(&[put, get(11, Some(1))]));
    assert!(!holds(&[put, get(11, None)]), "stale");
    assert!(holds(&[put, get(5, None)]), "concurrent");
    assert!(holds(&[put, later, get(22, Some(1)), get(28, Some(2))]));
    assert!(!holds(&[put, later, get(22, Some(2)), get(28, Some(1))]), "back again");
    assert!(!holds(&[put, get(12, Some(9))]), "never written");
    let delete = done(Action::Delete, 40, 50);
    assert!(!holds(&[put, delete, get(60, Some(1))]));
    assert!(holds(&[put, delete, get(42, Some(1)), get(43, None)]));
}

#[test]
fn conditions() {
    let put = done(Action::Put(1), 0, 10);
    let new = operation(Action::PutNew(3), 20, Some((30, Told::Refused)));
    assert!(holds(&[put, new]));
    assert!(!holds(&[new]), "refused, although there is none");
    assert!(!holds(&[put, done(Action::PutNew(3), 20, 30)]));
    let replace = |old, new| done(Action::Replace(old, new), 60, 70);
    assert!(holds(&[put, replace(1, 4), get(80, Some(4))]));
    assert!(!holds(&[put, replace(9, 4)]));
    assert!(!holds(&[put, replace(1, 4), replace(1, 5)]), "two replaced one value");
    let refused = operation(Action::Replace(1, 5), 60, Some((70, Told::Refused)));
    assert!(holds(&[put, replace(1, 4), refused]));
    assert!(!holds(&[put, refused]));
}

#[test]
fn unknown_outcomes() {
    let (put, lost) = (done(Action::Put(1), 0, 10), operation(Action::Put(2), 11, None));
    assert!(holds(&[put, lost, get(20, Some(1)), get(90, Some(2))]), "late");
    assert!(!holds(&[put, lost, get(20, Some(2)), get(90, Some(1))]), "back again");
    let refused = operation(Action::Replace(1, 5), 60, Some((70, Told::Refused)));
    assert!(holds(&[put, lost, refused]), "by the lost put that nobody reads");
    assert!(!holds(&[put, lost, refused, get(80, Some(1))]));
    let (deleted, new) = (operation(Action::Delete, 11, None), done(Action::PutNew(7), 20, 30));
    assert!(holds(&[put, deleted, new]));
    assert!(!holds(&[put, deleted, new, done(Action::PutNew(8), 40, 50)]), "one delete, two gaps");
    assert!(holds(&[put, deleted, deleted, new, done(Action::PutNew(8), 40, 50)]));
    let replaced = operation(Action::Replace(1, 6), 11, None);
    assert!(holds(&[put, replaced, get(20, Some(1)), get(40, Some(6))]));
    assert!(!holds(&[put, done(Action::Put(3), 12, 15), replaced, get(20, Some(3)), get(40, Some(6))]));
}

/// Many writes of unknown outcome, and a key that changes all the time: decided, both ways.
#[test]
fn a_long_bad_day_is_decided() {
    let mut history = Vec::new();
    for round in 0..200_u64 {
        let at = round * 20;
        history.push(operation(Action::Put(10_000 + round), at, None));
        history.push(operation(
            if round % 2 == 0 { Action::Delete } else { Action::PutNew(20_000 + round) },
            at,
            None,
        ));
        history.push(done(Action::Put(round), at + 1, at + 15));
        history.push(get(at + 2, Some(round)));
        history.push(get(at + 16, if round % 7 == 0 { Some(10_000 + round / 2) } else { Some(round) }));
    }
    assert!(holds(&history));
    history.push(get(4_100, Some(3)));
    assert!(!holds(&history));
}

/// All orders, and all choices of what of unknown outcome takes effect.
fn explained(history: &[Operation], left: &mut Vec<usize>, value: Value) -> bool {
    let returns = |index: &usize| history[*index].returned.map_or(u64::MAX, |(at, _)| at);
    let first_return = left.iter().map(returns).min().unwrap_or(u64::MAX);
    if first_return == u64::MAX {
        return true;
    }
    for place in 0..left.len() {
        let index = left[place];
        let operation = history[index];
        let (told, next) = perform(operation.action, value);
        let told_so = operation.returned.is_none_or(|(_, answer)| answer == told);
        if operation.called <= first_return && told_so {
            left.remove(place);
            let explained = explained(history, left, next);
            left.insert(place, index);
            if explained {
                return true;
            }
        }
    }
    false
}

fn random_history(random: &mut Random) -> Vec<Operation> {
    let mut history = Vec::new();
    for id in 0..3 + random.below(5) {
        let action = match random.below(6) {
            0 | 1 => Action::Put(id),
            2 => Action::PutNew(id),
            3 => Action::Replace(random.below(4), id),
            4 => Action::Delete,
            _ => Action::Get,
        };
        let told = match (action, random.below(3)) {
            (Action::Get, 0) => Told::Read(None),
            (Action::Get, _) => Told::Read(Some(random.below(6))),
            (Action::PutNew(_) | Action::Replace(..), 0 | 1) => Told::Refused,
            _ => Told::Done,
        };
        let called = random.below(20);
        let returned =
            (action == Action::Get || random.below(100) < 65).then(|| (called + random.below(12), told));
        history.push(operation(action, called, returned));
    }
    history
}

#[test]
fn agrees_with_trying_every_order() {
    let (mut random, mut good) = (Random(1), 0);
    for round in 0..20_000 {
        let history = random_history(&mut random);
        let mut all = (0..history.len()).collect();
        let expected = explained(&history, &mut all, None);
        good += u64::from(expected);
        assert_eq!(holds(&history), expected, "round {round}: {history:#?}");
    }
    assert!((2_000..18_000).contains(&good), "{good}");
}

//! Walks over rows while rows change and checkpoints come and go.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::index::Pace;

/// What happens between two steps of a walk.
#[derive(Clone, Debug)]
enum Between {
    Nothing,
    Put(u8),
    Remove(u8),
    Wipe,
    Checkpoint,
    Seek(u8),
}

fn between() -> impl Strategy<Value = Between> {
    prop_oneof![
        6 => Just(Between::Nothing),
        4 => any::<u8>().prop_map(Between::Put),
        4 => any::<u8>().prop_map(Between::Remove),
        1 => Just(Between::Wipe),
        2 => Just(Between::Checkpoint),
        2 => any::<u8>().prop_map(Between::Seek),
    ]
}

fn key(n: u8) -> String {
    format!("k{n:03}")
}

/// A store with rows, and what they should be.
struct Bed {
    rig: Rig,
    model: BTreeMap<String, String>,
    sequence: u64,
}

impl Bed {
    fn apply(&mut self, changes: &[(u8, bool)]) {
        self.sequence += 1;
        let n = self.sequence;
        for (which, put) in changes {
            if *put {
                self.model.insert(key(*which), format!("{n}-{which}"));
            } else {
                self.model.remove(&key(*which));
            }
        }
        let text: Vec<_> = changes
            .iter()
            .map(|(which, put)| if *put { format!("{}={n}-{which}", key(*which)) } else { key(*which) })
            .collect();
        let text = text.join(",");
        self.rig.run(|store| async move {
            store.append(Epoch(1), entry(PARTITION, n, n - 1, &text)).await.unwrap();
            store.apply(PARTITION, Sequence(n), decode(text.as_bytes()).unwrap());
        });
    }

    fn between(&mut self, step: &Between) {
        match step {
            Between::Nothing | Between::Seek(_) => {}
            Between::Put(which) => self.apply(&[(*which, true)]),
            Between::Remove(which) => self.apply(&[(*which, false)]),
            Between::Wipe => {
                self.model.clear();
                let base = Sequence(self.sequence);
                self.rig.run(|store| async move { store.reset(PARTITION, Epoch(1), base).await.unwrap() });
            }
            Between::Checkpoint => self.rig.run(|store| async move { store.checkpoint().await.unwrap() }),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_step_finds_the_next_row_there_is(
        first in proptest::collection::vec((any::<u8>(), any::<bool>()), 0..200),
        second in proptest::collection::vec((any::<u8>(), any::<bool>()), 0..60),
        from in any::<u8>(),
        to in any::<u8>(),
        steps in proptest::collection::vec(between(), 0..80),
    ) {
        let mut bed = Bed { rig: Rig::new(1), model: BTreeMap::new(), sequence: 0 };
        bed.apply(&distinct(first));
        bed.between(&Between::Checkpoint);
        bed.apply(&distinct(second));
        let pace = Rc::new(Pace::default());
        let (from, to) = (key(from), key(to));
        let mut walk = bed.rig.store.walk(PARTITION, from.as_bytes(), to.as_bytes(), pace);
        let mut at = from;
        for step in steps.iter().chain(&vec![Between::Nothing; 300]) {
            bed.between(step);
            if let Between::Seek(which) = step && key(*which) >= at {
                at = key(*which);
                walk.seek(at.as_bytes());
            }
            let expected = bed.model.range(at.clone()..).next().filter(|(key, _)| **key < to);
            let found = bed.rig.pool.run_until(walk.next()).unwrap();
            let row = found.then(|| (walk.key().to_vec(), walk.value().to_vec()));
            let expected = expected.map(|(key, value)| (key.clone().into_bytes(), value.clone().into_bytes()));
            prop_assert_eq!(&row, &expected);
            match row {
                Some((key, _)) => at = String::from_utf8(key).unwrap() + "\0",
                None => break,
            }
        }
    }
}

fn distinct(changes: Vec<(u8, bool)>) -> Vec<(u8, bool)> {
    let mut seen = BTreeSet::new();
    changes.into_iter().filter(|(which, _)| seen.insert(*which)).collect()
}

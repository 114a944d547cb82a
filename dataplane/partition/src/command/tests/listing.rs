//! A listing merged over partitions is that of one partition with all the rows.

use std::collections::BTreeMap;

use futures::executor::block_on;
use proptest::prelude::*;

use super::{BUCKET, Partition, Rows, blob_id, put};
use crate::command::{
    Command, Conditions, Content, Entry, List, Listed, Reply, Versioning, ViewError, Walk, list_merged,
    listed_rows,
};

/// A walk over rows in memory that counts its steps.
struct Steps<'a> {
    rows: &'a BTreeMap<Vec<u8>, Vec<u8>>,
    from: Vec<u8>,
    to: Vec<u8>,
    row: (Vec<u8>, Vec<u8>),
    taken: usize,
}

impl Walk for Steps<'_> {
    fn seek(&mut self, key: &[u8]) {
        assert!(key >= &self.from[..], "walks go forwards");
        self.from = key.to_vec();
    }

    async fn next(&mut self) -> Result<bool, ViewError> {
        self.taken += 1;
        let found = self.rows.range(self.from.clone()..).next().filter(|(key, _)| **key < self.to);
        let Some((key, value)) = found else { return Ok(false) };
        self.from = [&key[..], &[0]].concat();
        self.row = (key.clone(), value.clone());
        Ok(true)
    }

    fn key(&self) -> &[u8] {
        &self.row.0
    }

    fn value(&self) -> &[u8] {
        &self.row.1
    }
}

/// A page, and the steps it took.
fn merged(partitions: &[Partition], list: &List) -> ((Vec<Entry>, bool), usize) {
    let mut walks: Vec<Steps> = partitions
        .iter()
        .map(|Partition { rows: Rows(rows), .. }| {
            let (from, to) = block_on(listed_rows(&Rows(rows.clone()), list)).unwrap();
            Steps { rows, from, to, row: Default::default(), taken: 0 }
        })
        .collect();
    let page = block_on(list_merged(&mut walks, list)).unwrap();
    (page, walks.iter().map(|walk| walk.taken).sum())
}

fn everything(listed: Listed, prefix: &str, delimiter: Option<&str>, max: u32) -> List {
    List {
        bucket: BUCKET,
        listed,
        prefix: prefix.to_owned(),
        delimiter: delimiter.map(str::to_owned),
        after: None,
        after_position: None,
        max,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn partitions_list_as_one(
        changes in proptest::collection::vec(("[ab/]{1,5}", 0..4u8, any::<bool>()), 1..60),
        partitions in 1..7usize,
        prefix in "[ab/]{0,2}",
        delimiter in proptest::option::of("[b/]|a/"),
        max in 1..5u32,
    ) {
        let mut all = Partition { now_ms: 1000, ..Partition::default() };
        let mut split: Vec<Partition> = (0..partitions).map(|_| Partition { now_ms: 1000, ..Partition::default() }).collect();
        for (n, (key, what, versioned)) in (1..).zip(&changes) {
            let command = match what {
                0 => Command::Delete {
                    bucket: BUCKET,
                    key: key.clone(),
                    version: None,
                    request: blob_id(1000 + n),
                    conditions: Conditions::default(),
                },
                _ => put(key, Content::Inline { request: blob_id(n), bytes: vec![1; 3] }),
            };
            let home = key.bytes().map(usize::from).sum::<usize>() % partitions;
            for partition in [&mut all, &mut split[home]] {
                partition.now_ms = 1000 + 10 * n;
                partition.versioning = if *versioned { Versioning::Enabled } else { Versioning::Suspended };
                partition.run(&command).unwrap();
            }
        }
        for listed in [Listed::Objects, Listed::Versions] {
            let mut list = everything(listed, &prefix, delimiter.as_deref(), max);
            loop {
                let (page, _) = merged(&split, &list);
                let Ok(Reply::Page { entries, truncated }) = all.run(&Command::List(list.clone())) else { panic!() };
                prop_assert_eq!(&page, &(entries, truncated));
                let (entries, true) = page else { break };
                let last = entries.last().unwrap();
                (list.after, list.after_position) = (Some(last.name().to_owned()), last.position());
            }
        }
    }
}

/// What a page costs is what it shows, whatever lies below the prefixes that are rolled up.
#[test]
fn rolled_up_keys_are_not_read() {
    let mut partitions: Vec<Partition> =
        (0..4).map(|_| Partition { now_ms: 1000, ..Partition::default() }).collect();
    let mut request = 0;
    for directory in 0..10 {
        for file in 0..200 {
            request += 1;
            let content = Content::Inline { request: blob_id(request), bytes: vec![1; 3] };
            partitions[file % 4].run(&put(&format!("d{directory}/{file:03}"), content)).unwrap();
        }
    }
    let ((entries, truncated), taken) = merged(&partitions, &everything(Listed::Objects, "", Some("/"), 5));
    assert_eq!((entries.len(), truncated), (5, true));
    // For each partition the first row, and one for each of the prefixes.
    assert!(taken <= 4 * (1 + 5), "{taken} steps");
}

//! Speed, measured by hand: `cargo test --release -p quarry-storage speed -- --ignored --nocapture`.

use std::time::Instant;

use futures::executor::block_on;

use super::{Bed, puts, row_key};

const ROWS: u64 = 100_000;

#[test]
#[ignore = "a measurement, not a check"]
fn speed() {
    let mut bed = Bed::new(1 << 16);
    let batch = puts(0..ROWS, 300);
    let report = |what: &str, count: u64, start: Instant| {
        let seconds = start.elapsed().as_secs_f64();
        println!("{what}: {seconds:.3} s, {:.0}/s", count as f64 / seconds);
    };
    let start = Instant::now();
    bed.apply(&batch);
    report("apply of 100k new rows of 300 B", ROWS, start);
    let batch = (0..ROWS).step_by(10).map(|n| (row_key(n), Some(super::filler(300, n + 1)))).collect();
    let start = Instant::now();
    let applied = bed.apply(&batch);
    report("apply of 10k scattered puts", ROWS / 10, start);
    println!("    {} MiB written", applied.written_bytes >> 20);
    bed.tree = super::Tree::open(std::rc::Rc::new(bed.device.clone()), bed.tree.root(), 64 << 20);
    for round in ["cold (simulated device)", "cached"] {
        let start = Instant::now();
        let mut cursor = bed.tree.cursor(b"");
        let rows = block_on(async {
            let mut rows = 0;
            while cursor.next().await.unwrap() {
                rows += u64::from(!cursor.key().is_empty());
            }
            rows
        });
        assert_eq!(rows, ROWS);
        report(&format!("cursor rows, {round}"), ROWS, start);
    }
    let start = Instant::now();
    assert_eq!(bed.rows().len() as u64, ROWS);
    report("scan rows (copied), cached", ROWS, start);
    let keys: Vec<_> = (0..ROWS).map(|n| row_key(n * 7919 % ROWS)).collect();
    let start = Instant::now();
    block_on(async {
        for key in &keys {
            assert!(bed.tree.get(key).await.unwrap().is_some());
        }
    });
    report("get, cached", ROWS, start);
}

//! Multiplication of blocks by a matrix, one table look-up per byte: slow, obvious, on every CPU.

use crate::gf;

/// `rows` holds `targets.len()` rows of `sources.len()` coefficients; all blocks have one length.
pub(crate) fn multiply(rows: &[u8], sources: &[&[u8]], targets: &mut [&mut [u8]]) {
    assert_eq!(rows.len(), sources.len() * targets.len(), "one coefficient per source and target");
    for (row, target) in rows.chunks_exact(sources.len()).zip(targets) {
        target.fill(0);
        for (coefficient, source) in row.iter().zip(sources) {
            let products = product_table(*coefficient);
            for (sum, byte) in target.iter_mut().zip(*source) {
                *sum ^= products[usize::from(*byte)];
            }
        }
    }
}

fn product_table(coefficient: u8) -> [u8; 256] {
    let mut table = [0; 256];
    for (byte, product) in (0..=u8::MAX).zip(&mut table) {
        *product = gf::multiply(coefficient, byte);
    }
    table
}

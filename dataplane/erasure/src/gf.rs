//! Arithmetic in GF(2^8) with the polynomial 0x11d, and the two matrices of the code. Used to prepare a
//! coder, never per byte of a block.

/// Powers of the generator 2, twice over, so that the sum of two logarithms needs no reduction.
const EXP: [u8; 510] = exp_table();
/// Inverse of [`EXP`]; the entry of 0 is meaningless.
const LOG: [u8; 256] = log_table();
/// x^8 + x^4 + x^3 + x^2 + 1.
const POLYNOMIAL: u16 = 0x11d;

const fn exp_table() -> [u8; 510] {
    let mut table = [0; 510];
    let mut power = 1_u16;
    let mut i = 0;
    while i < 510 {
        table[i] = power.to_le_bytes()[0];
        power <<= 1;
        if power > 0xff {
            power ^= POLYNOMIAL;
        }
        i += 1;
    }
    table
}

const fn log_table() -> [u8; 256] {
    let mut table = [0; 256];
    let mut i = 0_u8;
    while i < 255 {
        table[EXP[i as usize] as usize] = i;
        i += 1;
    }
    table
}

pub(crate) fn multiply(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        return 0;
    }
    EXP[usize::from(LOG[usize::from(a)]) + usize::from(LOG[usize::from(b)])]
}

pub(crate) fn inverse(a: u8) -> u8 {
    assert!(a != 0, "zero has no inverse");
    EXP[255 - usize::from(LOG[usize::from(a)])]
}

/// m rows of k coefficients: `1 / ((k+i) xor j)`. Part of the on-disk contract.
pub(crate) fn cauchy_parity_rows(k: usize, m: usize) -> Vec<u8> {
    let element = |row: usize, column: usize| {
        inverse(u8::try_from(row ^ column).expect("k+m is at most 32, so is the exclusive or below 64"))
    };
    (k..k + m).flat_map(|row| (0..k).map(move |column| element(row, column))).collect()
}

/// Rows that give the `targets` from the `sources` (k of them): row t of the generator matrix, times the
/// inverse of the generator's source rows.
pub(crate) fn decode_rows(parity_rows: &[u8], k: usize, sources: &[usize], targets: &[usize]) -> Vec<u8> {
    assert_eq!(sources.len(), k, "exactly k sources determine the data");
    let generator_row = |shard: usize| -> Vec<u8> {
        match shard.checked_sub(k) {
            None => (0..k).map(|column| u8::from(column == shard)).collect(),
            Some(parity) => parity_rows[parity * k..(parity + 1) * k].to_vec(),
        }
    };
    let inverted = invert(sources.iter().map(|shard| generator_row(*shard)).collect());
    let product = |row: &[u8], column: usize| {
        row.iter().zip(&inverted).fold(0, |sum, (factor, line)| sum ^ multiply(*factor, line[column]))
    };
    targets
        .iter()
        .flat_map(|target| {
            let row = generator_row(*target);
            (0..k).map(|column| product(&row, column)).collect::<Vec<u8>>()
        })
        .collect()
}

/// Gauss-Jordan elimination.
///
/// # Panics
/// If the matrix is singular: k distinct rows of a Cauchy generator never are.
fn invert(mut matrix: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let n = matrix.len();
    for (i, row) in matrix.iter_mut().enumerate() {
        row.extend((0..n).map(|column| u8::from(column == i)));
    }
    for pivot in 0..n {
        let row =
            (pivot..n).find(|row| matrix[*row][pivot] != 0).expect("distinct Cauchy rows are independent");
        matrix.swap(pivot, row);
        let scale = inverse(matrix[pivot][pivot]);
        matrix[pivot].iter_mut().for_each(|element| *element = multiply(*element, scale));
        let pivot_row = matrix[pivot].clone();
        for (_, row) in matrix.iter_mut().enumerate().filter(|(index, _)| *index != pivot) {
            let factor = row[pivot];
            for (element, subtrahend) in row.iter_mut().zip(&pivot_row) {
                *element ^= multiply(factor, *subtrahend);
            }
        }
    }
    matrix.into_iter().map(|row| row[n..].to_vec()).collect()
}

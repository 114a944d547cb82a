//! Makes inputs, feeds them to a target, and judges what it did.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use crate::{
    Random,
    allocations::{note, peak_bytes},
    damage::damage,
};

/// One input in so many is left whole.
const WHOLE_EVERY: u64 = 16;
/// One damaged input in so many is not sealed again.
const UNSEALED_IN: usize = 5;

/// A decoder, or several that take the same bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Makes a valid encoding.
    pub sample: fn(&mut Random) -> Vec<u8>,
    /// Makes lengths and checksums of damaged bytes right; the second argument is the encoding before the damage.
    pub seal: fn(&mut Vec<u8>, &[u8]),
    /// Decodes and uses what came out; whether the bytes were accepted.
    pub decode: fn(&[u8]) -> bool,
    /// Allocations allowed per byte of input.
    pub factor: usize,
    /// Bytes of allocations allowed beside.
    pub constant: usize,
}

/// What a target did wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Problem {
    /// It panicked.
    Panic,
    /// It allocated too much.
    Memory {
        /// By how much memory grew.
        peak_bytes: usize,
        /// What was allowed.
        bound_bytes: usize,
    },
    /// It refused a valid encoding.
    RefusedWhole,
}

/// An input and what it led to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Number of the input.
    pub number: u64,
    /// The bytes.
    pub input: Vec<u8>,
    /// What happened.
    pub problem: Problem,
}

/// What a campaign did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Campaign {
    /// Inputs.
    pub inputs: u64,
    /// Damaged ones among them that were accepted all the same: proof that damage gets past checksums.
    pub accepted_damaged: u64,
    /// Most memory that one input took.
    pub peak_bytes: usize,
}

/// Input `number` of a seed; whether it is whole.
pub fn input(target: &Target, seed: u64, number: u64) -> (Vec<u8>, bool) {
    let name = u64::from(crc32c::crc32c(target.name.as_bytes()));
    let mut random =
        Random::new(Random::new(seed ^ name << 32).any() ^ number.wrapping_mul(0xd129_0d3e_a2f5_7a31));
    let whole = (target.sample)(&mut random);
    if number.is_multiple_of(WHOLE_EVERY) {
        return (whole, true);
    }
    let mut bytes = whole.clone();
    damage(&mut bytes, target.sample, &mut random);
    if !random.one_in(UNSEALED_IN) {
        (target.seal)(&mut bytes, &whole);
    }
    (bytes, false)
}

/// Feeds one input to a target: whether it was accepted and how much memory it took.
///
/// # Errors
/// The target panicked or allocated too much.
pub fn judge(target: &Target, input: &[u8]) -> Result<(bool, usize), Problem> {
    let (result, peak_bytes) = peak_bytes(|| catch_unwind(AssertUnwindSafe(|| (target.decode)(input))));
    let accepted = result.map_err(|_| Problem::Panic)?;
    let bound_bytes = target.factor * input.len() + target.constant;
    if peak_bytes > bound_bytes {
        return Err(Problem::Memory { peak_bytes, bound_bytes });
    }
    Ok((accepted, peak_bytes))
}

/// Feeds inputs of a seed to a target until the time is over or there were `inputs_max`.
///
/// # Errors
/// The first failure.
pub fn campaign(target: &Target, seed: u64, time: Duration, inputs_max: u64) -> Result<Campaign, Failure> {
    // Warms up what is allocated once and kept.
    (target.decode)(&input(target, seed, 0).0);
    let mut done = Campaign::default();
    let started = Instant::now();
    while done.inputs < inputs_max && started.elapsed() < time {
        let number = done.inputs;
        let (input, whole) = input(target, seed, number);
        note(target.name, seed, number);
        let failed = |problem| Failure { number, input: input.clone(), problem };
        let (accepted, peak_bytes) = judge(target, &input).map_err(failed)?;
        if whole && !accepted {
            return Err(failed(Problem::RefusedWhole));
        }
        done.inputs += 1;
        done.accepted_damaged += u64::from(accepted && !whole);
        done.peak_bytes = done.peak_bytes.max(peak_bytes);
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A length, a checksum and so many bytes.
    fn sample(random: &mut Random) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        bytes.extend(random.bytes(40));
        seal(&mut bytes, &[]);
        bytes
    }

    fn seal(bytes: &mut Vec<u8>, _: &[u8]) {
        bytes.resize(bytes.len().max(4), 0);
        let crc = crc32c::crc32c(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
    }

    fn body(bytes: &[u8]) -> Option<&[u8]> {
        let (crc, body) = bytes.split_first_chunk::<4>()?;
        (crc32c::crc32c(body).to_le_bytes() == *crc).then_some(body)
    }

    const GOOD: Target = Target {
        name: "good",
        sample,
        seal,
        decode: |bytes| body(bytes).is_some(),
        factor: 1,
        constant: 4096,
    };

    fn problem(target: &Target) -> Problem {
        campaign(target, 1, Duration::from_secs(5), 100_000).expect_err("nobody noticed").problem
    }

    #[test]
    fn mistakes_behind_a_checksum_are_noticed() {
        let panics =
            |bytes: &[u8]| body(bytes).is_some_and(|body| body.is_empty() || body[0] != 77 || body[9] > 0);
        assert_eq!(problem(&Target { decode: panics, ..GOOD }), Problem::Panic);
        let believes_lengths = |bytes: &[u8]| {
            let length = body(bytes).and_then(|body| body.first_chunk::<2>()).map(|b| u16::from_le_bytes(*b));
            let kept = vec![1_u8; usize::from(length.unwrap_or(0)) / 2];
            std::hint::black_box(&kept).len() < usize::MAX
        };
        let target = Target { decode: believes_lengths, ..GOOD };
        assert!(matches!(problem(&target), Problem::Memory { .. }));
        assert_eq!(problem(&Target { decode: |_| false, ..GOOD }), Problem::RefusedWhole);
    }

    #[test]
    fn inputs_follow_from_their_number_and_get_past_the_checksum() {
        let done = campaign(&GOOD, 1, Duration::from_secs(5), 2000).unwrap();
        assert!(done.accepted_damaged > 1000, "{done:?}");
        assert_eq!(input(&GOOD, 1, 77), input(&GOOD, 1, 77));
        assert_ne!(input(&GOOD, 1, 77), input(&GOOD, 2, 77));
    }
}

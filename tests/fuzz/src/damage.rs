//! Damage to an encoding.

use crate::Random;

/// Most changes to one input.
const CHANGES_MAX: usize = 4;

/// Changes `bytes` in a few places; `sample` makes another valid encoding to splice with.
pub(crate) fn damage(bytes: &mut Vec<u8>, sample: fn(&mut Random) -> Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(CHANGES_MAX) {
        if bytes.is_empty() {
            bytes.push(random.byte());
        }
        change(bytes, sample, random);
    }
}

fn change(bytes: &mut Vec<u8>, sample: fn(&mut Random) -> Vec<u8>, random: &mut Random) {
    let len = bytes.len();
    let at = random.below(len);
    // Bits and numbers most often: other changes move what follows, and little survives two of them.
    match random.below(16) {
        0..=4 => bytes[at] ^= 1 << random.below(8),
        5..=6 => bytes[at] = random.byte(),
        7..=11 => change_number(bytes, at, random),
        12 => bytes.truncate(at),
        13 => {
            let end = (at + 1 + random.below(64)).min(len);
            let run: Vec<u8> = bytes[at..end].to_vec();
            if random.one_in(2) {
                bytes.drain(at..end);
            } else {
                let to = random.below(len);
                bytes.splice(to..to, run);
            }
        }
        14 => {
            let other = sample(random);
            let from = random.below(other.len() + 1);
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        _ => {
            let end = (at + 1 + random.below(256)).min(len);
            bytes[at..end].fill_with(|| random.byte());
        }
    }
}

/// Overwrites or shifts a number of 2, 4 or 8 bytes: what lengths, counts and relative pointers are.
fn change_number(bytes: &mut [u8], at: usize, random: &mut Random) {
    let width = 2 << random.below(3);
    let Some(place) = bytes.get_mut(at..at + width) else { return };
    let mut wide = [0; 8];
    wide[..width].copy_from_slice(place);
    let old = u64::from_le_bytes(wide);
    let small = random.any() % 9;
    let new = match random.below(6) {
        0 => 0,
        1 => u64::MAX - small,
        2 => old.wrapping_add(small),
        3 => old.wrapping_sub(small),
        4 => 1 << random.below(width * 8),
        _ => random.number(),
    };
    if random.one_in(4) {
        place.copy_from_slice(&new.to_be_bytes()[8 - width..]);
    } else {
        place.copy_from_slice(&new.to_le_bytes()[..width]);
    }
}

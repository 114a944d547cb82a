//! Which of the objects an operation meets.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::dice::Dice;

/// A prime above every number of objects: multiplying by it modulo the number of objects visits each of them once.
const SCATTER: u64 = 2_654_435_761;

/// Popularity of keys. Written as `uniform`, `zipf:0.99` (the exponent; popular keys lie scattered) or `recent:0.9` (the
/// same law by age: the newest object is the most popular).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum Popularity {
    Uniform,
    Zipf(f64),
    Recent(f64),
}

impl Popularity {
    /// Number of one of `objects` objects, which are numbered by age.
    pub(crate) fn draw(self, objects: u64, dice: &mut Dice) -> u64 {
        assert!(objects > 0, "there is always an object to choose");
        match self {
            Self::Uniform => dice.below(objects),
            Self::Zipf(exponent) => {
                let rank = zipf(exponent, objects, dice) - 1;
                let number = u128::from(rank) * u128::from(SCATTER) % u128::from(objects);
                u64::try_from(number).expect("below a u64")
            }
            Self::Recent(exponent) => objects - zipf(exponent, objects, dice),
        }
    }
}

/// A rank from 1 to `ranks` with probability proportional to `rank ^ -exponent`, by rejection from the integral of the
/// density (Hörmann and Derflinger 1996): exact, and no table has to be kept while the number of objects grows.
#[allow(clippy::cast_precision_loss, reason = "there are far fewer than 2^53 objects")]
#[allow(clippy::cast_possible_truncation, reason = "clamped to 1 ..= ranks")]
#[allow(clippy::cast_sign_loss, reason = "clamped to 1 ..= ranks")]
fn zipf(exponent: f64, ranks: u64, dice: &mut Dice) -> u64 {
    let density = |x: f64| x.powf(-exponent);
    let near_one = (exponent - 1.0).abs() < 1e-9;
    let integral = |x: f64| if near_one { x.ln() } else { (x.powf(1.0 - exponent) - 1.0) / (1.0 - exponent) };
    let inverse =
        |y: f64| if near_one { y.exp() } else { (1.0 + y * (1.0 - exponent)).powf(1.0 / (1.0 - exponent)) };
    let last = ranks as f64;
    let (low, high) = (integral(1.5) - 1.0, integral(last + 0.5));
    let accept_below = 2.0 - inverse(integral(2.5) - density(2.0));
    loop {
        let area = high + dice.unit() * (low - high);
        let x = inverse(area);
        let rank = x.round().clamp(1.0, last);
        if rank - x <= accept_below || area >= integral(rank + 0.5) - density(rank) {
            return rank as u64;
        }
    }
}

impl FromStr for Popularity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let exponent = |text: &str| match text.parse::<f64>() {
            Ok(exponent) if (0.01..=5.0).contains(&exponent) => Ok(exponent),
            _ => Err(format!("'{text}' is not an exponent from 0.01 to 5")),
        };
        match text.split_once(':') {
            None if text == "uniform" => Ok(Self::Uniform),
            None if text == "zipf" => Ok(Self::Zipf(0.99)),
            None if text == "recent" => Ok(Self::Recent(0.99)),
            Some(("zipf", rest)) => exponent(rest).map(Self::Zipf),
            Some(("recent", rest)) => exponent(rest).map(Self::Recent),
            _ => Err(format!("unknown popularity '{text}': use uniform, zipf:EXPONENT or recent:EXPONENT")),
        }
    }
}

impl fmt::Display for Popularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform"),
            Self::Zipf(exponent) => write!(f, "zipf:{exponent}"),
            Self::Recent(exponent) => write!(f, "recent:{exponent}"),
        }
    }
}

super::text::string_serde!(Popularity);

#[cfg(test)]
mod tests {
    use super::{Popularity, SCATTER};
    use crate::workload::dice::Dice;

    const DRAWS: u32 = 60_000;

    fn counts(popularity: Popularity, objects: u64) -> Vec<u32> {
        let mut counts = vec![0; usize::try_from(objects).unwrap()];
        for n in 0..DRAWS {
            let number = popularity.draw(objects, &mut Dice::new(5, 0, u64::from(n)));
            counts[usize::try_from(number).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn zipf_follows_its_law_for_every_exponent() {
        for exponent in [0.5f64, 0.99, 1.0, 1.5] {
            let objects = 50;
            let total: f64 = (1..=50).map(|rank| f64::from(rank).powf(-exponent)).sum();
            let counts = counts(Popularity::Zipf(exponent), objects);
            for rank in [1u32, 2, 3, 10, 50] {
                let number = usize::try_from(u64::from(rank - 1) * SCATTER % objects).unwrap();
                let want = f64::from(DRAWS) * f64::from(rank).powf(-exponent) / total;
                let got = f64::from(counts[number]);
                assert!((got - want).abs() < 5.0 * want.sqrt() + 1.0, "{exponent} {rank}: {got} {want}");
            }
        }
    }

    #[test]
    fn recent_prefers_the_newest_and_uniform_nothing() {
        let recent = counts(Popularity::Recent(0.99), 20);
        assert!(recent.is_sorted() || recent[19] > 2 * recent[17], "{recent:?}");
        assert!(recent[19] > 8 * recent[0]);
        let uniform = counts(Popularity::Uniform, 20);
        assert!(uniform.iter().all(|count| (2_700..3_300).contains(count)), "{uniform:?}");
        assert_eq!(Popularity::Zipf(1.0).draw(1, &mut Dice::new(1, 0, 0)), 0);
    }

    #[test]
    fn scattering_meets_every_object_once() {
        for objects in [1, 2, 3, 10, 999, 65_536, 100_000] {
            let mut seen = vec![false; usize::try_from(objects).unwrap()];
            (0..objects).for_each(|rank| seen[usize::try_from(rank * SCATTER % objects).unwrap()] = true);
            assert!(seen.iter().all(|seen| *seen), "{objects}");
        }
    }

    #[test]
    fn texts_come_back() {
        for text in ["uniform", "zipf:0.99", "recent:1.2"] {
            assert_eq!(text.parse::<Popularity>().unwrap().to_string(), text);
        }
        for bad in ["", "zipf:x", "zipf:9", "hot"] {
            assert!(bad.parse::<Popularity>().is_err(), "{bad}");
        }
    }
}

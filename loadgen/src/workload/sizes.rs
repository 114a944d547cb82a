//! Distributions of sizes, in bytes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::dice::Dice;
use super::text::{fields, show_bytes};
use crate::args::parse_size;

/// S3's largest object.
const SIZE_MAX: u64 = 5 << 40;

/// How large objects, or ranges, are. Written as `64KiB`, `uniform:1KiB..1MiB`,
/// `lognormal:median=64KiB,sigma=1.5,max=16MiB` or `histogram:4KiB=70,1MiB=30`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum Sizes {
    Fixed(u64),
    /// Both ends included.
    Uniform {
        min: u64,
        max: u64,
    },
    Lognormal {
        median: u64,
        sigma: f64,
        max: u64,
    },
    /// (size, weight)
    Histogram(Vec<(u64, u32)>),
}

impl Sizes {
    #[allow(clippy::cast_precision_loss, reason = "sizes are far below 2^53")]
    #[allow(clippy::cast_possible_truncation, reason = "clamped to what a size may be")]
    #[allow(clippy::cast_sign_loss, reason = "clamped to what a size may be")]
    pub(crate) fn draw(&self, dice: &mut Dice) -> u64 {
        match self {
            Self::Fixed(bytes) => *bytes,
            Self::Uniform { min, max } => min + dice.below(max - min + 1),
            Self::Lognormal { median, sigma, max } => {
                (*median as f64 * (sigma * dice.normal()).exp()).clamp(1.0, *max as f64) as u64
            }
            Self::Histogram(entries) => {
                let mut draw = dice.below(entries.iter().map(|entry| u64::from(entry.1)).sum());
                for (bytes, weight) in entries {
                    if draw < u64::from(*weight) {
                        return *bytes;
                    }
                    draw -= u64::from(*weight);
                }
                unreachable!("the draw is below the sum of weights")
            }
        }
    }

    /// The largest size that can be drawn.
    pub(crate) fn max(&self) -> u64 {
        match self {
            Self::Fixed(bytes) => *bytes,
            Self::Uniform { max, .. } | Self::Lognormal { max, .. } => *max,
            Self::Histogram(entries) => entries.iter().map(|entry| entry.0).max().unwrap_or(0),
        }
    }

    /// Mean of the distribution without its clamping.
    #[allow(clippy::cast_precision_loss, reason = "sizes are far below 2^53")]
    pub(crate) fn mean(&self) -> f64 {
        match self {
            Self::Fixed(bytes) => *bytes as f64,
            Self::Uniform { min, max } => (*min as f64 + *max as f64) / 2.0,
            Self::Lognormal { median, sigma, max } => {
                (*median as f64 * (sigma * sigma / 2.0).exp()).min(*max as f64)
            }
            Self::Histogram(entries) => {
                let total: f64 = entries.iter().map(|entry| f64::from(entry.1)).sum();
                entries.iter().map(|(bytes, weight)| *bytes as f64 * f64::from(*weight) / total).sum()
            }
        }
    }
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let sizes = match text.split_once(':') {
            None => Self::Fixed(parse_size(text)?),
            Some(("uniform", range)) => {
                let (min, max) = range.split_once("..").ok_or("must look like uniform:1KiB..1MiB")?;
                Self::Uniform { min: parse_size(min)?, max: parse_size(max)? }
            }
            Some(("lognormal", rest)) => {
                let [median, sigma, max] = fields(rest, ["median", "sigma", "max"])?;
                let sigma: f64 = sigma.parse().map_err(|_| format!("'{sigma}' is not a number"))?;
                if !(0.0..=5.0).contains(&sigma) {
                    return Err("sigma must be 0 to 5".into());
                }
                Self::Lognormal { median: parse_size(median)?, sigma, max: parse_size(max)? }
            }
            Some(("histogram", rest)) => Self::Histogram(histogram(rest)?),
            Some((name, _)) => {
                return Err(format!("unknown distribution '{name}': use uniform, lognormal or histogram"));
            }
        };
        match &sizes {
            Self::Uniform { min, max } if min > max => Err("the smallest size is above the largest".into()),
            Self::Lognormal { median, max, .. } if *median == 0 || median > max => {
                Err("the median must be above 0 and at most max".into())
            }
            _ if sizes.max() > SIZE_MAX => Err("S3 objects have at most 5 TiB".into()),
            _ => Ok(sizes),
        }
    }
}

fn histogram(text: &str) -> Result<Vec<(u64, u32)>, String> {
    let entries = text
        .split(',')
        .map(|entry| {
            let (size, weight) = entry.split_once('=').ok_or("must look like histogram:4KiB=70,1MiB=30")?;
            let weight = weight.trim().parse().map_err(|_| format!("'{weight}' is not a weight"))?;
            Ok((parse_size(size.trim())?, weight))
        })
        .collect::<Result<Vec<_>, String>>()?;
    if entries.iter().all(|entry| entry.1 == 0) { Err("all weights are 0".into()) } else { Ok(entries) }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(bytes) => f.write_str(&show_bytes(*bytes)),
            Self::Uniform { min, max } => write!(f, "uniform:{}..{}", show_bytes(*min), show_bytes(*max)),
            Self::Lognormal { median, sigma, max } => {
                write!(f, "lognormal:median={},sigma={sigma},max={}", show_bytes(*median), show_bytes(*max))
            }
            Self::Histogram(entries) => {
                let entries: Vec<String> = entries
                    .iter()
                    .map(|(bytes, weight)| format!("{}={weight}", show_bytes(*bytes)))
                    .collect();
                write!(f, "histogram:{}", entries.join(","))
            }
        }
    }
}

super::text::string_serde!(Sizes);

#[cfg(test)]
mod tests {
    use super::Sizes;
    use crate::workload::dice::Dice;

    fn draws(text: &str) -> Vec<u64> {
        let sizes: Sizes = text.parse().unwrap();
        (0..20_000).map(|n| sizes.draw(&mut Dice::new(3, 0, n))).collect()
    }

    #[test]
    fn every_distribution_has_its_shape() {
        assert!(draws("4KiB").iter().all(|size| *size == 4096));
        let uniform = draws("uniform:1000B..3000B");
        assert!(uniform.iter().all(|size| (1000..=3000).contains(size)));
        assert!((1990..2010).contains(&(uniform.iter().sum::<u64>() / 20_000)));
        let mut lognormal = draws("lognormal:median=10000B,sigma=1,max=100000B");
        lognormal.sort_unstable();
        assert!((9_700..10_300).contains(&lognormal[10_000]), "{}", lognormal[10_000]);
        // One sigma above and below the median: 84.1 % and 15.9 %.
        assert!((26_000..28_500).contains(&lognormal[16_827]), "{}", lognormal[16_827]);
        assert!((3_500..3_850).contains(&lognormal[3_173]), "{}", lognormal[3_173]);
        assert_eq!(lognormal[19_999], 100_000);
        let histogram = draws("histogram:1KiB=3,1MiB=1");
        let large = histogram.iter().filter(|size| **size == 1 << 20).count();
        assert!((4_800..5_200).contains(&large), "{large}");
    }

    #[test]
    fn texts_are_checked_and_come_back() {
        for text in [
            "4KiB",
            "0B",
            "uniform:1KiB..1MiB",
            "lognormal:median=64KiB,sigma=1.5,max=16MiB",
            "histogram:4KiB=70,1000B=30",
        ] {
            assert_eq!(text.parse::<Sizes>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "x",
            "uniform:2KiB..1KiB",
            "lognormal:median=1KiB",
            "lognormal:median=1KiB,sigma=9,max=2KiB",
            "lognormal:median=4KiB,sigma=1,max=2KiB",
            "histogram:4KiB",
            "histogram:4KiB=0",
            "zipf:1",
            "6TiB",
        ] {
            assert!(bad.parse::<Sizes>().is_err(), "{bad}");
        }
    }
}

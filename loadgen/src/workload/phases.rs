//! Phases of a run: when, and how much load relative to the full one. Also think times.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::dice::Dice;
use super::text::show_duration;
use crate::args::parse_duration;

const FACTOR_MAX: f64 = 1000.0;

/// What load a phase puts on the server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Load {
    /// Rises from nothing to the full load; not part of the result's totals.
    Ramp,
    Steady,
    /// A multiple of the full load.
    Burst(f64),
}

/// One measured phase.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Phase {
    pub(crate) load: Load,
    pub(crate) duration: Duration,
}

/// All phases. Written as `prepare,ramp:10s,steady:60s,burst:5s:x3`. With `prepare` all objects are written before the
/// clock starts; without it those that are there are taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Phases {
    pub(crate) prepare: bool,
    pub(crate) measured: Vec<Phase>,
}

impl Phase {
    /// Load at `share` (0 to 1) of the phase, relative to the full load.
    pub(crate) fn factor(&self, share: f64) -> f64 {
        match self.load {
            Load::Ramp => share,
            Load::Steady => 1.0,
            Load::Burst(factor) => factor,
        }
    }

    /// Full-load seconds that this phase is worth.
    fn weight(&self) -> f64 {
        let seconds = self.duration.as_secs_f64();
        match self.load {
            Load::Ramp => seconds / 2.0,
            Load::Steady => seconds,
            Load::Burst(factor) => seconds * factor,
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self.load {
            Load::Ramp => "ramp",
            Load::Steady => "steady",
            Load::Burst(_) => "burst",
        }
    }

    /// Whether its operations are part of the totals.
    pub(crate) fn counts(&self) -> bool {
        self.load != Load::Ramp
    }
}

impl Phases {
    pub(crate) fn steady(prepare: bool, duration: Duration) -> Self {
        Self { prepare, measured: vec![Phase { load: Load::Steady, duration }] }
    }

    pub(crate) fn total(&self) -> Duration {
        self.measured.iter().map(|phase| phase.duration).sum()
    }

    /// The phase at `elapsed` (the last one after the end) and the load there.
    pub(crate) fn at(&self, elapsed: Duration) -> (usize, f64) {
        let mut begin = Duration::ZERO;
        for (index, phase) in self.measured.iter().enumerate() {
            let end = begin + phase.duration;
            if elapsed < end || index + 1 == self.measured.len() {
                let share = (elapsed - begin).as_secs_f64() / phase.duration.as_secs_f64();
                return (index, phase.factor(share.min(1.0)));
            }
            begin = end;
        }
        unreachable!("there is at least one phase")
    }

    /// When `full_load_seconds` of work will have been offered; None after the end. Inverse of the integral of the load, so
    /// that arrivals at a varying rate need no small steps.
    pub(crate) fn time_of(&self, mut full_load_seconds: f64) -> Option<Duration> {
        let mut begin = Duration::ZERO;
        for phase in &self.measured {
            let weight = phase.weight();
            // Sums of many small steps end a little short of the phase.
            if full_load_seconds < weight - 1e-9 {
                let seconds = phase.duration.as_secs_f64();
                let within = match phase.load {
                    Load::Ramp => seconds * (full_load_seconds / weight).sqrt(),
                    Load::Steady => full_load_seconds,
                    Load::Burst(factor) => full_load_seconds / factor,
                };
                return Some(begin + Duration::from_secs_f64(within.min(seconds)));
            }
            full_load_seconds = (full_load_seconds - weight).max(0.0);
            begin += phase.duration;
        }
        None
    }
}

impl FromStr for Phases {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut phases = Self { prepare: false, measured: Vec::new() };
        for (index, part) in text.split(',').map(str::trim).enumerate() {
            let mut words = part.split(':');
            let (kind, duration, factor) = (words.next().unwrap_or(""), words.next(), words.next());
            if kind == "prepare" {
                if index > 0 || duration.is_some() {
                    return Err("prepare comes first and has no duration".into());
                }
                phases.prepare = true;
                continue;
            }
            let load = match (kind, factor) {
                ("ramp", None) => Load::Ramp,
                ("steady", None) => Load::Steady,
                ("burst", Some(factor)) => Load::Burst(parse_factor(factor)?),
                _ => {
                    return Err(format!("'{part}' must be prepare, ramp:TIME, steady:TIME or burst:TIME:xN"));
                }
            };
            if words.next().is_some() {
                return Err(format!("'{part}' has too many colons"));
            }
            let duration = parse_duration(duration.ok_or(format!("'{part}' has no duration"))?)?;
            phases.measured.push(Phase { load, duration });
        }
        if !phases.measured.iter().any(Phase::counts) {
            return Err("needs a steady or burst phase".into());
        }
        Ok(phases)
    }
}

fn parse_factor(text: &str) -> Result<f64, String> {
    match text.strip_prefix('x').and_then(|number| number.parse::<f64>().ok()) {
        Some(factor) if factor > 0.0 && factor <= FACTOR_MAX => Ok(factor),
        _ => Err(format!("'{text}' is not a factor such as x3")),
    }
}

impl fmt::Display for Phases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = vec!["prepare".to_owned(); usize::from(self.prepare)];
        words.extend(self.measured.iter().map(|phase| {
            let text = format!("{}:{}", phase.name(), show_duration(phase.duration));
            match phase.load {
                Load::Burst(factor) => format!("{text}:x{factor}"),
                _ => text,
            }
        }));
        f.write_str(&words.join(","))
    }
}

super::text::string_serde!(Phases);

/// Pause of a closed-loop worker between an answer and its next request: `none`, `20ms` or `exponential:20ms` (the mean).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum Think {
    None,
    Fixed(Duration),
    Exponential(Duration),
}

impl Think {
    pub(crate) fn draw(self, dice: &mut Dice) -> Duration {
        match self {
            Self::None => Duration::ZERO,
            Self::Fixed(time) => time,
            Self::Exponential(mean) => mean.mul_f64(dice.exponential()),
        }
    }
}

impl FromStr for Think {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "none" => Ok(Self::None),
            None => parse_duration(text).map(Self::Fixed),
            Some(("exponential", mean)) => parse_duration(mean).map(Self::Exponential),
            Some(_) => Err("must be none, TIME or exponential:TIME".into()),
        }
    }
}

impl fmt::Display for Think {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Fixed(time) => f.write_str(&show_duration(*time)),
            Self::Exponential(mean) => write!(f, "exponential:{}", show_duration(*mean)),
        }
    }
}

super::text::string_serde!(Think);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Phases, Think};
    use crate::workload::dice::Dice;

    #[test]
    fn work_arrives_when_the_load_says() {
        let phases: Phases = "prepare,ramp:10s,steady:20s,burst:5s:x4".parse().unwrap();
        assert!(phases.prepare);
        assert_eq!(phases.total(), Duration::from_secs(35));
        // Worth in full-load seconds: 5 + 20 + 20.
        let at = |work: f64| phases.time_of(work).map(|time| time.as_secs_f64());
        assert_eq!(at(0.0), Some(0.0));
        assert!((at(1.25).unwrap() - 5.0).abs() < 1e-9, "half of the ramp is a quarter of its work");
        assert_eq!(at(15.0), Some(20.0));
        assert_eq!(at(29.0), Some(31.0));
        assert_eq!(at(45.1), None);
        assert_eq!(phases.at(Duration::from_secs(5)), (0, 0.5));
        assert_eq!(phases.at(Duration::from_secs(12)), (1, 1.0));
        assert_eq!(phases.at(Duration::from_secs(32)), (2, 4.0));
        assert_eq!(phases.at(Duration::from_secs(99)), (2, 4.0));
    }

    #[test]
    fn texts_are_checked_and_come_back() {
        for text in ["prepare,ramp:10s,steady:1m,burst:500ms:x2.5", "steady:30s"] {
            assert_eq!(text.parse::<Phases>().unwrap().to_string(), text);
        }
        for bad in
            ["", "prepare", "ramp:5s", "steady", "steady:5", "burst:5s", "burst:5s:3", "steady:5s,prepare"]
        {
            assert!(bad.parse::<Phases>().is_err(), "{bad}");
        }
        for text in ["none", "20ms", "exponential:2s"] {
            assert_eq!(text.parse::<Think>().unwrap().to_string(), text);
        }
        let mean = |think: Think| {
            (0..4_000).map(|n| think.draw(&mut Dice::new(1, 0, n)).as_secs_f64()).sum::<f64>() / 4_000.0
        };
        assert!((mean("exponential:2s".parse().unwrap()) - 2.0).abs() < 0.15);
        assert!((mean("20ms".parse().unwrap()) - 0.02).abs() < 1e-6);
    }
}

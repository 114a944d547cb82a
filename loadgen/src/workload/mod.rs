//! What a run does: operations and their weights, sizes, which objects, when, and how fast.
//!
//! Settings come from a preset, a TOML file and flags; a later one replaces single values of an earlier one. Everything
//! that is drawn follows from the seed, the client's number and the number of the operation ([`Workload::draw`]), so two
//! runs ask for the same things in the same order. What depends on answers is only where a write goes when its object is
//! busy, and what stands in an object after a failed write.

pub(crate) mod dice;
mod mix;
mod phases;
mod popularity;
mod presets;
mod sizes;
mod text;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

use dice::Dice;

pub(crate) use mix::OperationMix;
pub(crate) use phases::{Phases, Think};
pub(crate) use popularity::Popularity;
pub(crate) use presets::Preset;
pub(crate) use sizes::Sizes;
pub(crate) use text::show_bytes;

use crate::args::{OBJECTS_MAX, PARTS_MAX, parse_size_text};
use crate::stats::Operation;

/// S3 takes no smaller part, except the last.
const PART_BYTES_DEFAULT: u64 = 8 << 20;
const LIST_KEYS_DEFAULT: u32 = 1000;
/// Default number of objects: this many, or fewer whose mean sizes fill [`DEFAULT_SET_BYTES`].
const DEFAULT_OBJECTS: u64 = 1_000;
const DEFAULT_SET_BYTES: f64 = (1u64 << 30) as f64;
/// Requests started in a second, all clients together; far above what one machine can send.
const RATE_MAX: f64 = 10_000_000.0;

/// How the intended starts of an open loop are spaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Arrivals {
    /// Independent of each other, as many users are.
    Poisson,
    /// Evenly.
    Constant,
}

/// The settings of a workload, as written: every one may be left out.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct Settings {
    /// Start from a ready-made workload
    #[arg(long, value_enum)]
    pub(crate) preset: Option<Preset>,
    /// Weights of operations: put, get, range, head, delete, list, multipart, copy, conditional
    #[arg(long)]
    pub(crate) mix: Option<OperationMix>,
    /// Sizes of objects: 64KiB, uniform:1KiB..1MiB, lognormal:median=64KiB,sigma=1.5,max=16MiB or
    /// histogram:4KiB=70,1MiB=30
    #[arg(long)]
    pub(crate) size: Option<Sizes>,
    /// Sizes of ranges that are read [default: uniform:4KiB..1MiB]
    #[arg(long)]
    pub(crate) range: Option<Sizes>,
    /// Size of parts: `multipart` always uses them, `put` for objects above it [default: 8MiB]
    #[arg(long, value_parser = parse_size_text)]
    pub(crate) part_size: Option<String>,
    /// Objects written before the clock starts, or taken as they are [default: 1000 or what fills 1 GiB]
    #[arg(long)]
    pub(crate) objects: Option<u64>,
    /// Share of PUTs (0 to 1) that create a new object instead of overwriting [default: 0]
    #[arg(long)]
    pub(crate) new_share: Option<f64>,
    /// Which objects are met: uniform, zipf:0.99 or recent:0.9 [default: uniform]
    #[arg(long)]
    pub(crate) popularity: Option<Popularity>,
    /// Phases, such as prepare,ramp:10s,steady:60s,burst:5s:x3 [default: prepare,steady:30s]; without `prepare`, the
    /// objects that are there are taken
    #[arg(long)]
    pub(crate) phases: Option<Phases>,
    /// Pause of a worker of the closed loop: none, 20ms or exponential:20ms [default: none]
    #[arg(long)]
    pub(crate) think: Option<Think>,
    /// Open loop: operations started in a second, whether or not earlier ones were answered; without it, closed loop
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    /// Spacing of the open loop's operations [default: poisson]
    #[arg(long, value_enum)]
    pub(crate) arrivals: Option<Arrivals>,
    /// Workers of the closed loop, or most requests in flight of the open one [default: 8, or 64 with --rate]
    #[arg(long, short = 'c')]
    pub(crate) concurrency: Option<usize>,
    /// Keys asked for in a listing [default: 1000]
    #[arg(long)]
    pub(crate) list_keys: Option<u32>,
}

/// A checked workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Workload {
    pub(crate) preset: Option<Preset>,
    pub(crate) mix: OperationMix,
    pub(crate) size: Sizes,
    pub(crate) range: Sizes,
    pub(crate) part_bytes: u64,
    pub(crate) objects: u64,
    pub(crate) new_share: f64,
    pub(crate) popularity: Popularity,
    pub(crate) phases: Phases,
    pub(crate) think: Think,
    /// Operations per second; None for the closed loop.
    pub(crate) rate: Option<f64>,
    pub(crate) arrivals: Arrivals,
    pub(crate) concurrency: usize,
    pub(crate) list_keys: u32,
}

/// Everything random about one operation.
pub(crate) struct Draw {
    pub(crate) operation: Operation,
    /// For the choice of the object, which depends on how many there are by then, and what else is left to chance.
    pub(crate) dice: Dice,
}

impl Settings {
    /// The settings of a TOML file.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the workload {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is not a workload", path.display()))
    }

    /// These, with what `later` has in place of theirs.
    pub(crate) fn replaced_by(self, later: Self) -> Self {
        Self {
            preset: later.preset.or(self.preset),
            mix: later.mix.or(self.mix),
            size: later.size.or(self.size),
            range: later.range.or(self.range),
            part_size: later.part_size.or(self.part_size),
            objects: later.objects.or(self.objects),
            new_share: later.new_share.or(self.new_share),
            popularity: later.popularity.or(self.popularity),
            phases: later.phases.or(self.phases),
            think: later.think.or(self.think),
            rate: later.rate.or(self.rate),
            arrivals: later.arrivals.or(self.arrivals),
            concurrency: later.concurrency.or(self.concurrency),
            list_keys: later.list_keys.or(self.list_keys),
        }
    }

    /// Fills in the preset and the defaults, and checks everything.
    pub(crate) fn resolve(self) -> Result<Workload> {
        let base = self.preset.map_or_else(Self::default, Preset::settings);
        let settings = base.replaced_by(self);
        let size = settings.size.unwrap_or(Sizes::Fixed(64 << 10));
        let part_bytes = match &settings.part_size {
            Some(text) => crate::args::parse_size(text).map_err(|problem| anyhow::anyhow!(problem))?,
            None => PART_BYTES_DEFAULT,
        };
        let rate = settings.rate;
        let workload = Workload {
            preset: settings.preset,
            mix: settings.mix.unwrap_or_default(),
            objects: settings.objects.unwrap_or_else(|| default_objects(&size)),
            size,
            range: settings.range.unwrap_or(Sizes::Uniform { min: 4 << 10, max: 1 << 20 }),
            part_bytes,
            new_share: settings.new_share.unwrap_or(0.0),
            popularity: settings.popularity.unwrap_or(Popularity::Uniform),
            phases: settings.phases.unwrap_or_else(|| Phases::steady(true, Duration::from_secs(30))),
            think: settings.think.unwrap_or(Think::None),
            rate,
            arrivals: settings.arrivals.unwrap_or(Arrivals::Poisson),
            concurrency: settings.concurrency.unwrap_or(if rate.is_some() { 64 } else { 8 }),
            list_keys: settings.list_keys.unwrap_or(LIST_KEYS_DEFAULT),
        };
        workload.check()?;
        Ok(workload)
    }
}

#[allow(clippy::cast_possible_truncation, reason = "at most DEFAULT_OBJECTS")]
#[allow(clippy::cast_sign_loss, reason = "sizes are not negative")]
fn default_objects(size: &Sizes) -> u64 {
    ((DEFAULT_SET_BYTES / size.mean().max(1.0)) as u64).clamp(16, DEFAULT_OBJECTS)
}

impl Workload {
    /// Says what is wrong with the combination of values.
    pub(crate) fn check(&self) -> Result<()> {
        if !(1..=OBJECTS_MAX).contains(&self.objects) {
            bail!("objects must be 1 to {OBJECTS_MAX}");
        }
        if !(1..=crate::args::CONCURRENCY_MAX).contains(&self.concurrency) {
            bail!("concurrency must be 1 to {}", crate::args::CONCURRENCY_MAX);
        }
        if !(0.0..=1.0).contains(&self.new_share) {
            bail!("new-share must be 0 to 1");
        }
        if !(1..=1000).contains(&self.list_keys) {
            bail!("list-keys must be 1 to 1000");
        }
        if self.part_bytes == 0 || (self.size.max() / self.part_bytes) + 1 > PARTS_MAX {
            bail!("the largest object needs more than {PARTS_MAX} parts of part-size");
        }
        match self.rate {
            Some(rate) if !(rate > 0.0 && rate <= RATE_MAX) => {
                bail!("rate must be above 0, up to {RATE_MAX}")
            }
            Some(_) if self.think != Think::None => {
                bail!(
                    "think is for the closed loop: the open one (rate) starts operations whatever was answered"
                )
            }
            _ => Ok(()),
        }
    }

    /// Operation number `number` of `client`.
    pub(crate) fn draw(&self, seed: u64, client: u64, number: u64) -> Draw {
        let mut dice = Dice::new(seed, client, number);
        Draw { operation: self.mix.draw(&mut dice), dice }
    }

    /// Size that write number `write` of object `number` brings.
    pub(crate) fn size_of(&self, seed: u64, number: u64, write: u64) -> u64 {
        self.size.draw(&mut Dice::new(!seed, number, write))
    }

    /// The share of this workload that one of `clients` clients does.
    #[allow(clippy::cast_precision_loss, reason = "there are few clients")]
    pub(crate) fn share(&self, clients: u64) -> Self {
        Self {
            objects: self.objects.div_ceil(clients),
            rate: self.rate.map(|rate| rate / clients as f64),
            concurrency: self.concurrency.div_ceil(usize::try_from(clients).unwrap_or(1)),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Preset, Settings};

    #[test]
    fn flags_replace_the_file_and_the_file_the_preset() {
        let file: Settings = toml::from_str(
            "preset = \"website\"\nobjects = 77\nsize = \"1KiB\"\nrate = 100.0\nphases = \"prepare,steady:5s\"\n",
        )
        .unwrap();
        let flags = Settings { objects: Some(99), ..Settings::default() };
        let workload = file.replaced_by(flags).resolve().unwrap();
        let preset = Settings { preset: Some(Preset::Website), ..Settings::default() }.resolve().unwrap();
        assert_eq!((workload.objects, workload.size.to_string()), (99, "1KiB".to_owned()));
        assert_eq!((&workload.mix, workload.popularity), (&preset.mix, preset.popularity));
        assert_eq!(workload.rate, Some(100.0));
        assert!(toml::from_str::<Settings>("sizes = \"1KiB\"").is_err(), "unknown keys are errors");
        assert!(toml::from_str::<Settings>("size = \"1K\"").is_err());
    }

    #[test]
    fn every_preset_is_whole_and_comes_back_from_json() {
        for preset in Preset::ALL {
            let workload = Settings { preset: Some(preset), ..Settings::default() }.resolve().unwrap();
            let json = serde_json::to_string(&workload).unwrap();
            assert_eq!(serde_json::from_str::<super::Workload>(&json).unwrap(), workload);
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let problem = |text: &str| {
            let settings: Settings = toml::from_str(text).unwrap();
            settings.resolve().unwrap_err().to_string()
        };
        assert!(problem("rate = 5.0\nthink = \"1s\"").contains("closed loop"));
        assert!(problem("rate = 0.0").contains("above 0"));
        assert!(problem("size = \"1TiB\"\npart-size = \"5MiB\"").contains("parts"));
        assert!(problem("new-share = 1.5").contains("new-share"));
        assert!(problem("objects = 0").contains("objects"));
    }

    #[test]
    fn the_same_seed_draws_the_same_operations() {
        let workload = Settings { preset: Some(Preset::Pastebin), ..Settings::default() }.resolve().unwrap();
        let sequence = |seed, client| -> Vec<String> {
            (0..100)
                .map(|number| {
                    let mut draw = workload.draw(seed, client, number);
                    format!("{:?} {}", draw.operation, draw.dice.next())
                })
                .collect()
        };
        assert_eq!(sequence(1, 0), sequence(1, 0));
        assert_ne!(sequence(1, 0), sequence(2, 0));
        assert_ne!(sequence(1, 0), sequence(1, 1));
        assert_eq!(workload.size_of(1, 5, 9), workload.size_of(1, 5, 9));
    }
}

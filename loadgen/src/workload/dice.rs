//! Random draws that depend on nothing but a seed and a position, so that a run can be repeated.

use crate::content::next_random;

/// A stream of random numbers.
#[derive(Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    /// The stream at `position` of `client`: streams of different positions are independent.
    pub(crate) fn new(seed: u64, client: u64, position: u64) -> Self {
        let mut state = seed;
        for part in [client, position] {
            state = next_random(&mut state) ^ part;
        }
        let mut dice = Self(state);
        dice.next();
        dice
    }

    pub(crate) fn next(&mut self) -> u64 {
        next_random(&mut self.0)
    }

    /// Uniform in [0, 1).
    #[allow(clippy::cast_precision_loss, reason = "53 bits are exact")]
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0 .. bound`; the bias of the remainder is below 2^-24 for the bounds of this tool.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// Exponential with mean 1.
    pub(crate) fn exponential(&mut self) -> f64 {
        -(1.0 - self.unit()).ln()
    }

    /// Standard normal (Box and Muller).
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::Dice;

    #[test]
    fn draws_repeat_and_have_the_right_moments() {
        let draws = |client, position| {
            let mut dice = Dice::new(7, client, position);
            [dice.next(), dice.next()]
        };
        assert_eq!(draws(1, 2), draws(1, 2));
        assert_ne!(draws(1, 2), draws(2, 1));
        assert_ne!(draws(1, 2), draws(1, 3));
        // Neighbouring positions must not be correlated: one draw of each is a fair sample.
        let count = 20_000u32;
        let samples = |f: fn(&mut Dice) -> f64| {
            let values: Vec<f64> = (0..count).map(|n| f(&mut Dice::new(1, 0, u64::from(n)))).collect();
            let mean = values.iter().sum::<f64>() / f64::from(count);
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / f64::from(count);
            (mean, variance)
        };
        for (draw, mean, variance) in [
            (Dice::unit as fn(&mut Dice) -> f64, 0.5, 1.0 / 12.0),
            (Dice::exponential, 1.0, 1.0),
            (Dice::normal, 0.0, 1.0),
        ] {
            let (got_mean, got_variance) = samples(draw);
            assert!((got_mean - mean).abs() < 0.03, "{got_mean} {mean}");
            assert!((got_variance - variance).abs() < 0.06, "{got_variance} {variance}");
        }
    }
}

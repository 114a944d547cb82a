//! Weights of operations.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::dice::Dice;
use crate::stats::Operation;

/// Relative frequencies of operations. Written as `put=30,get=60,list=10`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct OperationMix(Vec<(Operation, u32)>);

impl OperationMix {
    pub(crate) fn draw(&self, dice: &mut Dice) -> Operation {
        let mut draw = dice.below(self.0.iter().map(|entry| u64::from(entry.1)).sum());
        for (operation, weight) in &self.0 {
            if draw < u64::from(*weight) {
                return *operation;
            }
            draw -= u64::from(*weight);
        }
        unreachable!("the draw is below the sum of weights")
    }
}

impl Default for OperationMix {
    fn default() -> Self {
        Self(vec![(Operation::Put, 30), (Operation::Get, 60), (Operation::Delete, 5), (Operation::List, 5)])
    }
}

impl FromStr for OperationMix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut mix: Vec<(Operation, u32)> = Vec::new();
        for part in text.split(',') {
            let (name, weight) = part.split_once('=').ok_or("must look like put=30,get=60,list=10")?;
            let operation = Operation::named(name.trim()).ok_or(format!(
                "unknown operation '{name}': use {}",
                Operation::ALL.map(Operation::name).join(", ")
            ))?;
            let weight = weight.trim().parse().map_err(|_| format!("'{weight}' is not a weight"))?;
            if mix.iter().any(|entry| entry.0 == operation) {
                return Err(format!("'{name}' stands twice"));
            }
            mix.push((operation, weight));
        }
        if mix.iter().all(|entry| entry.1 == 0) { Err("all weights are 0".into()) } else { Ok(Self(mix)) }
    }
}

impl fmt::Display for OperationMix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> =
            self.0.iter().map(|(operation, weight)| format!("{}={weight}", operation.name())).collect();
        f.write_str(&words.join(","))
    }
}

super::text::string_serde!(OperationMix);

#[cfg(test)]
mod tests {
    use super::OperationMix;
    use crate::stats::Operation;
    use crate::workload::dice::Dice;

    #[test]
    fn weights_are_followed() {
        let mix: OperationMix = "put=1,range=2,conditional=1,head=0".parse().unwrap();
        assert_eq!(mix.to_string(), "put=1,range=2,conditional=1,head=0");
        let draws: Vec<Operation> = (0..20_000).map(|n| mix.draw(&mut Dice::new(1, 0, n))).collect();
        let count = |operation| draws.iter().filter(|drawn| **drawn == operation).count();
        assert!((9_700..10_300).contains(&count(Operation::Range)));
        assert!((4_700..5_300).contains(&count(Operation::Put)));
        assert_eq!(count(Operation::Head), 0);
        for bad in ["", "put", "put=x", "post=1", "put=0", "put=1,put=2"] {
            assert!(bad.parse::<OperationMix>().is_err(), "{bad}");
        }
    }
}

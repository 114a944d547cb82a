//! Conditions: an operator, a key and the values it is compared with.
//!
//! | the key is absent | holds |
//! |---|---|
//! | plain operator | no |
//! | `...Not...`, `...IfExists`, `ForAllValues:` | yes |
//! | `ForAnyValue:` | no, but with `IfExists` yes |
//! | `Null` | if the value is `true` |

use std::net::IpAddr;

use crate::context::{Context, Kind};
use crate::date;
use crate::pattern::Pattern;

/// One comparison. All values of the policy are alternatives; a negated one wants none of them.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Condition {
    pub(crate) key: String,
    pub(crate) operator: Operator,
    pub(crate) values: Values,
}

/// An operator as written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Operator {
    pub(crate) test: Test,
    pub(crate) negated: bool,
    pub(crate) if_exists: bool,
    pub(crate) quantifier: Quantifier,
}

/// Which values of the request have to pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Quantifier {
    /// The key has one value.
    One,
    All,
    Any,
}

/// How a value is compared, before negation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Test {
    Equal,
    EqualIgnoringCase,
    Like,
    Number(Order),
    Date(Order),
    Bool,
    Address,
    Arn,
    Null,
}

/// The value of the request is ... than the one of the policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// What is compared with.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Values {
    Texts(Vec<Pattern>),
    Numbers(Vec<f64>),
    /// Milliseconds since 1970.
    Dates(Vec<i64>),
    Bools(Vec<bool>),
    Networks(Vec<Network>),
}

/// A range of addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Network {
    address: IpAddr,
    pub(crate) prefix_bits: u8,
}

impl Operator {
    /// `None`: there is no such operator.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (quantifier, name) = match text.split_once(':') {
            None => (Quantifier::One, text),
            Some(("ForAllValues", name)) => (Quantifier::All, name),
            Some(("ForAnyValue", name)) => (Quantifier::Any, name),
            Some(_) => return None,
        };
        let (name, if_exists) = name.strip_suffix("IfExists").map_or((name, false), |name| (name, true));
        let (test, negated) = test(name)?;
        let odd = test == Test::Null && (if_exists || quantifier != Quantifier::One);
        (!odd).then_some(Self { test, negated, if_exists, quantifier })
    }

    /// Whether it makes sense for keys of a kind.
    pub(crate) fn takes(self, kind: Kind) -> bool {
        let fits = match self.test {
            Test::Null | Test::Equal | Test::EqualIgnoringCase | Test::Like => true,
            Test::Number(_) => kind == Kind::Number,
            Test::Date(_) => matches!(kind, Kind::Date | Kind::Number),
            Test::Bool => kind == Kind::Bool,
            Test::Address => kind == Kind::Address,
            Test::Arn => kind == Kind::Arn,
        };
        let quantified = self.quantifier != Quantifier::One || self.test == Test::Null;
        fits && (kind != Kind::Set || quantified)
    }
}

fn test(name: &str) -> Option<(Test, bool)> {
    use Order::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual};
    Some(match name {
        "StringEquals" => (Test::Equal, false),
        "StringNotEquals" => (Test::Equal, true),
        "StringEqualsIgnoreCase" => (Test::EqualIgnoringCase, false),
        "StringNotEqualsIgnoreCase" => (Test::EqualIgnoringCase, true),
        "StringLike" => (Test::Like, false),
        "StringNotLike" => (Test::Like, true),
        "NumericEquals" => (Test::Number(Equal), false),
        "NumericNotEquals" => (Test::Number(Equal), true),
        "NumericLessThan" => (Test::Number(Less), false),
        "NumericLessThanEquals" => (Test::Number(LessOrEqual), false),
        "NumericGreaterThan" => (Test::Number(Greater), false),
        "NumericGreaterThanEquals" => (Test::Number(GreaterOrEqual), false),
        "DateEquals" => (Test::Date(Equal), false),
        "DateNotEquals" => (Test::Date(Equal), true),
        "DateLessThan" => (Test::Date(Less), false),
        "DateLessThanEquals" => (Test::Date(LessOrEqual), false),
        "DateGreaterThan" => (Test::Date(Greater), false),
        "DateGreaterThanEquals" => (Test::Date(GreaterOrEqual), false),
        "Bool" => (Test::Bool, false),
        "IpAddress" => (Test::Address, false),
        "NotIpAddress" => (Test::Address, true),
        "ArnEquals" | "ArnLike" => (Test::Arn, false),
        "ArnNotEquals" | "ArnNotLike" => (Test::Arn, true),
        "Null" => (Test::Null, false),
        _ => return None,
    })
}

impl Order {
    fn holds<T: PartialOrd>(self, found: &T, wanted: &T) -> bool {
        match self {
            Self::Equal => found == wanted,
            Self::Less => found < wanted,
            Self::LessOrEqual => found <= wanted,
            Self::Greater => found > wanted,
            Self::GreaterOrEqual => found >= wanted,
        }
    }
}

impl Condition {
    pub(crate) fn holds(&self, context: &Context) -> bool {
        let found = context.get(&self.key);
        let Operator { test, negated, if_exists, quantifier } = self.operator;
        if test == Test::Null {
            return matches!(&self.values, Values::Bools(wanted) if wanted.contains(&found.is_empty()));
        }
        let passes = |value: &String| self.equals_one(value, context) != negated;
        match quantifier {
            Quantifier::All => found.iter().all(passes),
            Quantifier::Any => found.iter().any(passes) || (found.is_empty() && if_exists),
            Quantifier::One if found.is_empty() => negated || if_exists,
            Quantifier::One => found.iter().all(passes),
        }
    }

    /// Whether a value of the request matches one of the policy. A value that is not of the operator's type matches none.
    fn equals_one(&self, value: &str, context: &Context) -> bool {
        match (&self.values, self.operator.test) {
            (Values::Texts(wanted), Test::Like | Test::Arn) => {
                wanted.iter().any(|pattern| pattern.matches_in(value, context))
            }
            (Values::Texts(wanted), Test::EqualIgnoringCase) => {
                let value = value.to_lowercase();
                wanted
                    .iter()
                    .any(|text| text.literal(context).is_some_and(|text| text.to_lowercase() == value))
            }
            (Values::Texts(wanted), _) => {
                wanted.iter().any(|text| text.literal(context).is_some_and(|text| text == value))
            }
            (Values::Numbers(wanted), Test::Number(order)) => value
                .parse::<f64>()
                .is_ok_and(|value| wanted.iter().any(|number| order.holds(&value, number))),
            (Values::Dates(wanted), Test::Date(order)) => {
                date::parse_ms(value).is_some_and(|value| wanted.iter().any(|date| order.holds(&value, date)))
            }
            (Values::Bools(wanted), _) => value.parse::<bool>().is_ok_and(|value| wanted.contains(&value)),
            (Values::Networks(wanted), _) => value
                .parse::<IpAddr>()
                .is_ok_and(|address| wanted.iter().any(|network| network.contains(address))),
            (Values::Numbers(_) | Values::Dates(_), _) => false,
        }
    }
}

impl Network {
    /// `192.0.2.0/24`, `2001:db8::/32` or one address.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (address, bits) =
            text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().ok()?;
        let bits_max = if address.is_ipv4() { 32 } else { 128 };
        let prefix_bits = bits.map_or(Some(bits_max), |bits| bits.parse().ok())?;
        (prefix_bits <= bits_max).then_some(Self { address, prefix_bits })
    }

    fn contains(&self, other: IpAddr) -> bool {
        // A client of IPv4 may arrive on a socket of IPv6.
        match (self.address, other.to_canonical()) {
            (IpAddr::V4(mine), IpAddr::V4(other)) => {
                let differs = u32::from(mine) ^ u32::from(other);
                differs.checked_shr(32 - u32::from(self.prefix_bits)).unwrap_or(0) == 0
            }
            (IpAddr::V6(mine), IpAddr::V6(other)) => {
                let differs = u128::from(mine) ^ u128::from(other);
                differs.checked_shr(128 - u32::from(self.prefix_bits)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// So large that it hardly restricts anything: what S3 takes for public.
    pub(crate) fn is_broad(&self) -> bool {
        match self.address {
            IpAddr::V4(address) => !address.is_private() && self.prefix_bits < 8,
            IpAddr::V6(_) => self.prefix_bits < 32,
        }
    }
}

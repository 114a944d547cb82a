//! Transitions of a lifecycle rule: which S3 takes, and in which words it refuses the others.

use std::collections::BTreeSet;

use quarry_object::lifecycle::{
    Expiration, LADDER, Noncurrent, NoncurrentTransition, Rule, Transition, TransitionTime,
};
use s3s::dto::{
    NoncurrentVersionTransition, Transition as TransitionXml, TransitionStorageClass as TransitionClass,
};
use s3s::{S3ErrorCode, S3Result};

use super::lifecycle::{KEEP_MAX, invalid, malformed, midnight};
use crate::attributes::{timestamp, unix_ms};
use crate::error::refuse;

/// Days that S3 keeps an object at least before it goes to a class of infrequent access.
const INFREQUENT_DAYS_MIN: u32 = 30;

/// A class that transitions may lead to. Those that need a restore are not built.
fn class(given: Option<TransitionClass>) -> S3Result<String> {
    let class = given.ok_or_else(|| malformed("a transition names a StorageClass"))?;
    match class.as_str() {
        TransitionClass::GLACIER | TransitionClass::DEEP_ARCHIVE => Err(refuse(
            S3ErrorCode::NotImplemented,
            "classes that need a restore before a read are not implemented",
        )),
        class if LADDER.contains(&class) => Ok(class.to_owned()),
        _ => Err(malformed("the StorageClass of a transition is not known")),
    }
}

fn is_infrequent(class: &str) -> bool {
    matches!(class, TransitionClass::STANDARD_IA | TransitionClass::ONEZONE_IA)
}

fn days(given: i32, class: &str, what: &str) -> S3Result<u32> {
    let days = u32::try_from(given).map_err(|_| {
        let text = format!("'{what}' of a transition must be nonnegative");
        refuse(S3ErrorCode::InvalidArgument, text)
    })?;
    if is_infrequent(class) && days < INFREQUENT_DAYS_MIN {
        let text = format!(
            "'{what}' in the Transition action must be greater than or equal to 30 for storageClass '{class}'"
        );
        return Err(refuse(S3ErrorCode::InvalidArgument, text));
    }
    Ok(days)
}

pub(super) fn from_xml(given: Vec<TransitionXml>) -> S3Result<Vec<Transition>> {
    let checked = given.into_iter().map(|given| {
        let date = given.date.map(|date| midnight(unix_ms(date))).transpose()?;
        let class = class(given.storage_class)?;
        let at = match (given.days, date) {
            (Some(given), None) => TransitionTime::Days(days(given, &class, "Days")?),
            (None, Some(at_ms)) => TransitionTime::AtMs(at_ms),
            _ => return Err(malformed("a transition has exactly one of Days and Date")),
        };
        Ok(Transition { at, class })
    });
    let checked: Vec<Transition> = checked.collect::<S3Result<_>>()?;
    check_classes(checked.iter().map(|transition| transition.class.as_str()), "Transition")?;
    let mixed = checked.iter().any(|one| matches!(one.at, TransitionTime::Days(_)))
        && checked.iter().any(|one| matches!(one.at, TransitionTime::AtMs(_)));
    if mixed {
        return Err(mixed_times());
    }
    let days = |one: &Transition| match one.at {
        TransitionTime::Days(days) => (one.class.clone(), u64::from(days)),
        TransitionTime::AtMs(at_ms) => (one.class.clone(), at_ms / DAY_MS),
    };
    check_order(checked.iter().map(days).collect())?;
    Ok(checked)
}

pub(super) fn noncurrent_from_xml(
    given: Vec<NoncurrentVersionTransition>,
) -> S3Result<Vec<NoncurrentTransition>> {
    let checked = given.into_iter().map(|given| {
        let class = class(given.storage_class)?;
        let given_days =
            given.noncurrent_days.ok_or_else(|| malformed("a noncurrent transition has NoncurrentDays"))?;
        let days = days(given_days, &class, "NoncurrentDays")?;
        let keep = given.newer_noncurrent_versions.unwrap_or(0);
        let keep = u32::try_from(keep).ok().filter(|keep| *keep <= KEEP_MAX);
        let keep = keep.ok_or_else(|| invalid("'NewerNoncurrentVersions' must be a number from 1 to 100"))?;
        Ok(NoncurrentTransition { days, keep, class })
    });
    let checked: Vec<NoncurrentTransition> = checked.collect::<S3Result<_>>()?;
    let classes = checked.iter().map(|transition| transition.class.as_str());
    check_classes(classes, "NoncurrentVersionTransition")?;
    check_order(checked.iter().map(|one| (one.class.clone(), u64::from(one.days))).collect())?;
    Ok(checked)
}

const DAY_MS: u64 = 24 * 3600 * 1000;

fn mixed_times() -> s3s::S3Error {
    refuse(
        S3ErrorCode::InvalidRequest,
        "Found mixed 'Date' and 'Days' based Expiration and Transition actions in lifecycle rule",
    )
}

fn check_classes<'c>(classes: impl Iterator<Item = &'c str>, action: &str) -> S3Result<()> {
    let mut seen = BTreeSet::new();
    for class in classes {
        if !seen.insert(class) {
            let text = format!("'StorageClass' must be different for '{action}' actions in same 'Rule'");
            return Err(refuse(S3ErrorCode::InvalidArgument, text));
        }
    }
    Ok(())
}

/// A rule leads down the ladder: a lower class comes later, and from a class of infrequent access after 30 days more.
fn check_order(mut by_class: Vec<(String, u64)>) -> S3Result<()> {
    by_class.sort_by_key(|(class, _)| quarry_object::lifecycle::rank(class));
    for pair in by_class.windows(2) {
        let ((above, first), (below, then)) = (&pair[0], &pair[1]);
        let least = first + if is_infrequent(above) { u64::from(INFREQUENT_DAYS_MIN) } else { 1 };
        if *then < least {
            let text = format!(
                "'Days' in the Transition action for StorageClass '{below}' must be later than that for '{above}', by 30 \
                 days after a class of infrequent access"
            );
            return Err(refuse(S3ErrorCode::InvalidArgument, text));
        }
    }
    Ok(())
}

/// What expires has been everywhere before: a rule's expiration comes after its transitions.
pub(super) fn check_rule(rule: &Rule) -> S3Result<()> {
    for transition in &rule.transitions {
        match (transition.at, rule.expiration) {
            (TransitionTime::Days(_), Some(Expiration::AtMs(_)))
            | (TransitionTime::AtMs(_), Some(Expiration::Days(_))) => return Err(mixed_times()),
            (TransitionTime::Days(days), Some(Expiration::Days(end))) if end <= days => {
                return Err(invalid(
                    "'Days' in the Expiration action must be greater than 'Days' in the Transition action",
                ));
            }
            (TransitionTime::AtMs(at_ms), Some(Expiration::AtMs(end_ms))) if end_ms <= at_ms => {
                return Err(invalid(
                    "'Date' in the Expiration action must be later than 'Date' in the Transition action",
                ));
            }
            _ => {}
        }
    }
    if let Some(Noncurrent { days, .. }) = rule.noncurrent
        && rule.noncurrent_transitions.iter().any(|transition| days <= transition.days)
    {
        return Err(invalid(
            "'NoncurrentDays' in the NoncurrentVersionExpiration action must be greater than 'NoncurrentDays' in the \
             NoncurrentVersionTransition action",
        ));
    }
    Ok(())
}

pub(super) fn to_xml(given: Vec<Transition>) -> Option<Vec<TransitionXml>> {
    let given = given.into_iter().map(|given| {
        let class = Some(TransitionClass::from(given.class));
        match given.at {
            TransitionTime::Days(days) => {
                TransitionXml { days: i32::try_from(days).ok(), date: None, storage_class: class }
            }
            TransitionTime::AtMs(at_ms) => {
                TransitionXml { days: None, date: Some(timestamp(at_ms)), storage_class: class }
            }
        }
    });
    Some(given.collect::<Vec<_>>()).filter(|given| !given.is_empty())
}

pub(super) fn noncurrent_to_xml(
    given: Vec<NoncurrentTransition>,
) -> Option<Vec<NoncurrentVersionTransition>> {
    let given = given.into_iter().map(|given| NoncurrentVersionTransition {
        newer_noncurrent_versions: i32::try_from(given.keep).ok().filter(|keep| *keep > 0),
        noncurrent_days: i32::try_from(given.days).ok(),
        storage_class: Some(TransitionClass::from(given.class)),
    });
    Some(given.collect::<Vec<_>>()).filter(|given| !given.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(days: i32, class: &str) -> TransitionXml {
        TransitionXml { days: Some(days), date: None, storage_class: Some(class.to_owned().into()) }
    }

    fn code(given: Vec<TransitionXml>) -> Option<String> {
        from_xml(given).err().map(|error| error.code().as_str().to_owned())
    }

    #[test]
    fn transitions_round_trip() {
        let given = vec![after(30, "STANDARD_IA"), after(60, "GLACIER_IR")];
        assert_eq!(to_xml(from_xml(given.clone()).unwrap()), Some(given));
        let date = TransitionXml { days: None, date: Some(timestamp(5 * DAY_MS)), ..after(0, "GLACIER_IR") };
        assert_eq!(to_xml(from_xml(vec![date.clone()]).unwrap()), Some(vec![date]));
        let noncurrent = vec![NoncurrentVersionTransition {
            newer_noncurrent_versions: Some(3),
            noncurrent_days: Some(0),
            storage_class: Some("GLACIER_IR".to_owned().into()),
        }];
        assert_eq!(noncurrent_to_xml(noncurrent_from_xml(noncurrent.clone()).unwrap()), Some(noncurrent));
        assert_eq!((to_xml(vec![]), noncurrent_to_xml(vec![])), (None, None));
    }

    #[test]
    fn what_s3_refuses_is_refused() {
        let argument = Some("InvalidArgument".to_owned());
        let date = |ms| TransitionXml { days: None, date: Some(timestamp(ms)), ..after(0, "GLACIER_IR") };
        for (given, expected) in [
            (vec![after(29, "STANDARD_IA")], argument.clone()),
            (vec![after(30, "STANDARD_IA")], None),
            (vec![after(0, "GLACIER_IR")], None),
            (vec![after(-1, "GLACIER_IR")], argument.clone()),
            (vec![after(30, "STANDARD_IA"), after(59, "GLACIER_IR")], argument.clone()),
            (vec![after(90, "STANDARD_IA"), after(60, "GLACIER_IR")], argument.clone()),
            (vec![after(30, "STANDARD_IA"), after(60, "STANDARD_IA")], argument.clone()),
            (vec![after(30, "STANDARD_IA"), date(DAY_MS)], Some("InvalidRequest".to_owned())),
            (vec![date(DAY_MS + 1000)], argument.clone()),
            // Also where the class is not there.
            (
                vec![TransitionXml {
                    storage_class: Some("GLACIER".to_owned().into()),
                    ..date(DAY_MS + 1000)
                }],
                argument,
            ),
            (vec![after(1, "GLACIER")], Some("NotImplemented".to_owned())),
            (vec![after(1, "STANDARD")], Some("MalformedXML".to_owned())),
            (vec![TransitionXml { days: None, ..after(1, "GLACIER_IR") }], Some("MalformedXML".to_owned())),
        ] {
            assert_eq!(code(given.clone()), expected, "{given:?}");
        }
    }

    #[test]
    fn an_expiration_comes_after_the_transitions_of_its_rule() {
        let rule = |days, expiration| Rule {
            transitions: from_xml(vec![after(days, "GLACIER_IR")]).unwrap(),
            expiration: Some(expiration),
            ..Rule::default()
        };
        assert!(check_rule(&rule(3, Expiration::Days(4))).is_ok());
        assert!(check_rule(&rule(3, Expiration::Days(3))).is_err());
        assert!(check_rule(&rule(3, Expiration::AtMs(DAY_MS))).is_err(), "days and dates are not mixed");
        assert!(check_rule(&rule(3, Expiration::LoneDeleteMarker)).is_ok());
    }
}

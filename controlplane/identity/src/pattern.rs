//! Patterns of resources and condition values: `*` is any run of characters, `?` is one, `${key}` is the value of a
//! condition key in the request, taken literally; `${*}`, `${?}` and `${$}` are the characters themselves.
//!
//! Matching goes back to the last `*` only, so it takes at most (pattern) x (value) steps.

use crate::context::Context;

/// A pattern, ready to match.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Pattern {
    /// Only wildcards.
    Wildcards(Box<str>),
    /// With variables.
    Template(Box<[Piece]>),
}

/// One piece of a template.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Piece {
    /// Text with wildcards.
    Wildcards(Box<str>),
    /// Text that means itself.
    Literal(Box<str>),
    /// The value of a key; if the request has none, the default, or else nothing matches.
    Variable { key: String, default: Option<String> },
}

/// What a pattern asks of the value.
#[derive(Clone, Copy)]
enum Symbol {
    Char(char),
    One,
    Any,
}

impl Symbol {
    fn of(written: char) -> Self {
        match written {
            '*' => Self::Any,
            '?' => Self::One,
            other => Self::Char(other),
        }
    }
}

impl Pattern {
    /// A pattern in which `$` means nothing, as in policies of version 2008-10-17.
    pub(crate) fn wildcards(text: &str) -> Self {
        Self::Wildcards(text.into())
    }

    /// A pattern with variables.
    ///
    /// # Errors
    /// What is wrong with a variable; `known` says whether a key may stand in one.
    pub(crate) fn template(text: &str, known: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            let (inside, behind) =
                after.split_once('}').ok_or_else(|| format!("a variable in {text:?} has no end"))?;
            if !before.is_empty() {
                pieces.push(Piece::Wildcards(before.into()));
            }
            pieces.push(match inside {
                "*" | "?" | "$" => Piece::Literal(inside.into()),
                _ => variable(inside, &known)?,
            });
            rest = behind;
        }
        if pieces.is_empty() {
            return Ok(Self::wildcards(text));
        }
        if !rest.is_empty() {
            pieces.push(Piece::Wildcards(rest.into()));
        }
        Ok(Self::Template(pieces.into()))
    }

    /// Whether a value matches a pattern without variables; one with variables matches nothing here.
    pub(crate) fn matches(&self, value: &str) -> bool {
        self.matches_in(value, &Context::default())
    }

    /// Whether a value matches, in the context of a request.
    pub(crate) fn matches_in(&self, value: &str, context: &Context) -> bool {
        match self {
            Self::Wildcards(pattern) => run(
                |at| {
                    let written = pattern[at..].chars().next()?;
                    Some((Symbol::of(written), at + written.len_utf8()))
                },
                value,
            ),
            Self::Template(pieces) => match resolve(pieces, context) {
                Some(symbols) => run(|at| symbols.get(at).map(|symbol| (*symbol, at + 1)), value),
                None => false,
            },
        }
    }

    /// The text for an operator that knows no wildcards; `None` when a variable has no value.
    pub(crate) fn literal(&self, context: &Context) -> Option<String> {
        match self {
            Self::Wildcards(text) => Some(text.to_string()),
            Self::Template(pieces) => {
                let texts = pieces.iter().map(|piece| match piece {
                    Piece::Wildcards(text) | Piece::Literal(text) => Some(text.to_string()),
                    Piece::Variable { key, default } => value_of(key, default.as_ref(), context),
                });
                texts.collect()
            }
        }
    }

    /// Means one value and no other.
    pub(crate) fn is_fixed(&self) -> bool {
        match self {
            Self::Wildcards(text) => !text.contains(['*', '?']),
            Self::Template(_) => false,
        }
    }

    /// The text, if it has no variables.
    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Wildcards(text) => Some(text),
            Self::Template(_) => None,
        }
    }
}

fn variable(inside: &str, known: &impl Fn(&str) -> Option<String>) -> Result<Piece, String> {
    let (name, default) = match inside.split_once(',') {
        None => (inside, None),
        Some((name, default)) => {
            let quoted = default.trim().strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
            let default = quoted
                .ok_or_else(|| format!("the default of the variable ${{{inside}}} is not in quotes"))?;
            (name, Some(default.to_owned()))
        }
    };
    let key = known(name.trim()).ok_or_else(|| format!("the variable ${{{name}}} is not known"))?;
    Ok(Piece::Variable { key, default })
}

fn value_of(key: &str, default: Option<&String>, context: &Context) -> Option<String> {
    match context.get(key) {
        [one] => Some(one.clone()),
        _ => default.cloned(),
    }
}

fn resolve(pieces: &[Piece], context: &Context) -> Option<Vec<Symbol>> {
    let mut symbols = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Wildcards(text) => symbols.extend(text.chars().map(Symbol::of)),
            Piece::Literal(text) => symbols.extend(text.chars().map(Symbol::Char)),
            Piece::Variable { key, default } => {
                symbols.extend(value_of(key, default.as_ref(), context)?.chars().map(Symbol::Char));
            }
        }
    }
    Some(symbols)
}

/// `symbol` gives what stands at a place of the pattern, and the next place.
fn run(symbol: impl Fn(usize) -> Option<(Symbol, usize)>, value: &str) -> bool {
    let (mut at, mut position) = (0, 0);
    // Where the pattern goes on behind the last `*`, and how far that one has eaten.
    let mut back: Option<(usize, usize)> = None;
    loop {
        match symbol(at) {
            Some((Symbol::Any, next)) => {
                back = Some((next, position));
                at = next;
                continue;
            }
            Some((wanted, next)) => {
                if let Some(found) = value[position..].chars().next()
                    && matches!(wanted, Symbol::One | Symbol::Char(_))
                    && !matches!(wanted, Symbol::Char(wanted) if wanted != found)
                {
                    (at, position) = (next, position + found.len_utf8());
                    continue;
                }
            }
            None if position == value.len() => return true,
            None => {}
        }
        let Some((behind, eaten)) = back else { return false };
        let Some(one_more) = value[eaten..].chars().next() else { return false };
        let eaten = eaten + one_more.len_utf8();
        (back, at, position) = (Some((behind, eaten)), behind, eaten);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};

    use super::{Context, Pattern};

    fn naive(pattern: &[char], value: &[char]) -> bool {
        match pattern.split_first() {
            None => value.is_empty(),
            Some(('*', rest)) => (0..=value.len()).any(|skip| naive(rest, &value[skip..])),
            Some(('?', rest)) => !value.is_empty() && naive(rest, &value[1..]),
            Some((wanted, rest)) => value.first() == Some(wanted) && naive(rest, &value[1..]),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn as_the_naive_matcher(pattern in "[ab?*\u{e9}]{0,9}", value in "[ab\u{e9}]{0,12}") {
            let (p, v): (Vec<char>, Vec<char>) = (pattern.chars().collect(), value.chars().collect());
            prop_assert_eq!(Pattern::wildcards(&pattern).matches(&value), naive(&p, &v));
        }
    }

    #[test]
    fn hostile_patterns_cost_no_more_than_their_product() {
        let value = "a".repeat(1024);
        for pattern in ["a*".repeat(500) + "b", "*a?".repeat(300) + "b", "*".repeat(2000) + "b"] {
            let started = std::time::Instant::now();
            assert!(!Pattern::wildcards(&pattern).matches(&value));
            // The naive matcher would not end in this universe.
            assert!(started.elapsed().as_secs() < 2, "{pattern:.20}");
        }
    }

    #[test]
    fn variables_are_literal() {
        let known = |name: &str| (name == "aws:username").then(|| name.to_owned());
        let pattern = Pattern::template("home/${aws:username}/*", known).unwrap();
        let mut context = Context::default();
        assert!(!pattern.matches_in("home//x", &context));
        context.set("aws:username", "a*");
        assert!(pattern.matches_in("home/a*/x", &context));
        assert!(!pattern.matches_in("home/ab/x", &context));
        let escaped = Pattern::template("${*}${?}${$}*", known).unwrap();
        assert!(escaped.matches_in("*?$xyz", &context));
        assert!(!escaped.matches_in("a?$xyz", &context));
        let default = Pattern::template("${aws:username, 'nobody'}", known).unwrap();
        assert!(default.matches_in("nobody", &Context::default()));
        assert!(Pattern::template("${nothing}", known).is_err());
        assert!(Pattern::template("${aws:username", known).is_err());
    }
}

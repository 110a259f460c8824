//! One table of the policy, read key by key, with a mistake for everything that is not right.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::Diagnostic;
use super::names::{did_you_mean, nearest};
use super::number::parse_number;
use super::place::Written;

/// The keys of one table and the mistakes found so far.
pub(super) struct Fields<'t, 'm> {
    table: &'t DeTable<'t>,
    /// What the table is, for messages.
    what: &'static str,
    known: &'static [&'static str],
    mistakes: &'m mut Vec<Diagnostic>,
}

impl<'t, 'm> Fields<'t, 'm> {
    /// Takes a table and reports every key that is not known.
    pub(super) fn new(
        table: &'t DeTable<'t>,
        what: &'static str,
        known: &'static [&'static str],
        mistakes: &'m mut Vec<Diagnostic>,
    ) -> Self {
        for key in table.keys() {
            let name: &str = key.get_ref();
            if !known.contains(&name) {
                let near = nearest(name, known.iter().copied(), 1);
                let all = format!("{what} has the keys {}", quoted_list(known));
                let help = did_you_mean(&near, &all);
                mistakes.push(Diagnostic::new(
                    key.span(),
                    format!("unknown key `{name}` in {what}"),
                    "",
                    help,
                ));
            }
        }
        Self { table, what, known, mistakes }
    }

    /// The value of a key.
    ///
    /// # Panics
    /// If the key is not one of the known: it would be read and reported as unknown.
    pub(super) fn value(&self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        assert!(self.known.contains(&key), "`{key}` is read and not known in {}", self.what);
        self.table.get(key)
    }

    /// Where a key is written.
    pub(super) fn key_span(&self, key: &str) -> Option<Range<usize>> {
        self.table.get_key_value(key).map(|(key, _)| key.span())
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    pub(super) fn mistakes_so_far(&self) -> usize {
        self.mistakes.len()
    }

    /// Reports a mistake.
    pub(super) fn mistake(
        &mut self,
        span: Range<usize>,
        message: impl Into<String>,
        label: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.mistakes.push(Diagnostic::new(span, message, label, help));
    }

    /// The same, made elsewhere.
    pub(super) fn report(&mut self, mistake: Diagnostic) {
        self.mistakes.push(mistake);
    }

    fn wrong_type(&mut self, key: &str, value: &Spanned<DeValue<'_>>, wanted: &str, help: &str) {
        let found = type_name(value.get_ref());
        self.mistake(value.span(), format!("`{key}` is {found}"), format!("not {wanted}"), help);
    }

    /// A text that is not empty.
    pub(super) fn text(&mut self, key: &str, help: &str) -> Option<Written<String>> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::String(text) if text.is_empty() => {
                self.mistake(value.span(), format!("`{key}` is empty"), "", help);
                None
            }
            DeValue::String(text) => {
                Some(Written { value: text.clone().into_owned(), span: value.span() })
            }
            _ => {
                self.wrong_type(key, value, "a text in quotes", help);
                None
            }
        }
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, key: &str, help: &str) -> Option<bool> {
        let value = self.value(key)?;
        if let DeValue::Boolean(flag) = value.get_ref() {
            return Some(*flag);
        }
        self.wrong_type(key, value, "`true` or `false`", help);
        None
    }

    /// A whole number from `least` to `most`, as a TOML integer or in quotes.
    pub(super) fn number(
        &mut self,
        key: &str,
        least: i128,
        most: i128,
        help: &str,
    ) -> Option<Written<i128>> {
        let value = self.value(key)?;
        let number = match value.get_ref() {
            DeValue::Integer(integer) => {
                i128::from_str_radix(integer.as_str(), integer.radix()).ok()
            }
            DeValue::String(text) => parse_number(text),
            _ => {
                self.wrong_type(key, value, "a whole number", help);
                return None;
            }
        };
        match number {
            Some(number) if (least..=most).contains(&number) => {
                Some(Written { value: number, span: value.span() })
            }
            Some(number) => {
                let label = if number < least { "too small" } else { "too large" };
                self.mistake(value.span(), format!("`{key}` is out of range"), label, help);
                None
            }
            None => {
                self.mistake(
                    value.span(),
                    format!("`{key}` is not a whole number"),
                    "decimal, or hexadecimal after 0x",
                    help,
                );
                None
            }
        }
    }

    /// A number from 0 to 2^64 - 1.
    pub(super) fn unsigned(&mut self, key: &str, help: &str) -> Option<Written<u64>> {
        let number = self.number(key, 0, i128::from(u64::MAX), help)?;
        let value = u64::try_from(number.value).expect("just checked against the range of u64");
        Some(Written { value, span: number.span })
    }
}

/// `a`, `b` and `c`, each in backquotes.
pub(super) fn quoted_list(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [one] => format!("`{one}`"),
        [all @ .., last] => {
            let all: Vec<_> = all.iter().map(|word| format!("`{word}`")).collect();
            format!("{} and `{last}`", all.join(", "))
        }
    }
}

/// What a value is, with its article.
pub(super) fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "`true` or `false`",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

//! Files that a policy includes.

use std::collections::HashSet;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use toml::de::DeValue;

use super::diagnostic::Diagnostic;
use super::fields::{Fields, type_name};
use super::place::Written;
use super::{MAX_POLICY_BYTES, PolicySource, SourceError};

/// Most files that include one another: a file that is included has depth 1.
const MAX_DEPTH: usize = 8;

/// Most files of a policy.
const MAX_FILES: usize = 1000;

const HELP: &str =
    "list the files: `include = [\"other.toml\"]`, relative to this file's directory";

/// The files of a policy that were read so far.
#[derive(Default)]
pub(super) struct Opened {
    /// All of them, and those that could not be read: each is told of once.
    seen: HashSet<PathBuf>,
    /// Those that are being read, each included by the one before it.
    open: Vec<PathBuf>,
    bytes: u64,
}

impl Opened {
    /// Begins a file, unless it was read before; a text that is in no file is always another one.
    ///
    /// [`Self::end`] follows, if it is begun.
    pub(super) fn begin(&mut self, path: &Path) -> bool {
        let path = fs::canonicalize(path).unwrap_or_default();
        if !path.as_os_str().is_empty() && !self.seen.insert(path.clone()) {
            return false;
        }
        self.open.push(path);
        true
    }

    /// The last file that was begun has been read.
    pub(super) fn end(&mut self) {
        self.open.pop();
    }

    /// Counts a text; whether all are as long as a policy may be.
    pub(super) fn count(&mut self, source: &PolicySource) -> bool {
        self.bytes = self.bytes.saturating_add(source.text().len() as u64);
        self.bytes <= MAX_POLICY_BYTES
    }

    /// The text of a file that `by` includes; none if it is part of the policy already.
    pub(super) fn read(
        &mut self,
        by: &PolicySource,
        wanted: &Written<PathBuf>,
    ) -> Result<Option<PolicySource>, Diagnostic> {
        let mistake = |message: String, label: &str, help: &str| {
            Diagnostic::new(wanted.span.clone(), message, label, help)
        };
        let path = by.relative(&wanted.value);
        let shown = path.display();
        let failed = |error| mistake(format!("cannot read {shown}: {error}"), "", HELP);
        let own = fs::canonicalize(&path).map_err(failed)?;
        if self.open.contains(&own) {
            return Err(mistake(
                format!("{shown} includes itself"),
                "a circle",
                "put what both files need into a third one",
            ));
        }
        if self.seen.contains(&own) {
            return Ok(None);
        }
        if self.open.len() > MAX_DEPTH {
            return Err(mistake(
                format!("more than {MAX_DEPTH} files include one another"),
                "one too deep",
                "include the files from one place",
            ));
        }
        if self.seen.len() >= MAX_FILES {
            return Err(mistake(
                format!("the policy has more than {MAX_FILES} files"),
                "the first too many",
                "write the rules of several files into one",
            ));
        }
        // Opening a pipe would wait for whoever fills it.
        if !fs::metadata(&path).map_err(failed)?.is_file() {
            return Err(mistake(format!("{shown} is not a regular file"), "", HELP));
        }
        let source = PolicySource::read_file(&path);
        let source =
            source.map_err(|error| mistake(in_words(&error), "", HELP)).and_then(|source| {
                let fits = self.count(&source);
                fits.then_some(source)
                    .ok_or_else(|| mistake(TOO_LONG.to_owned(), "one too many", TOO_LONG_HELP))
            });
        if source.is_err() {
            self.seen.insert(own);
        }
        source.map(Some)
    }
}

/// An error with its cause.
fn in_words(error: &SourceError) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

pub(super) const TOO_LONG: &str = "the files of the policy are longer than 16 MiB together";
pub(super) const TOO_LONG_HELP: &str = "let one rule cover a longer range, or name regions";

/// The files that the key `include` names.
pub(super) fn included(fields: &mut Fields<'_, '_>) -> Vec<Written<PathBuf>> {
    let Some(value) = fields.value("include") else { return Vec::new() };
    let DeValue::Array(list) = value.get_ref() else {
        let message = format!("`include` is {}, not a list of files", type_name(value.get_ref()));
        fields.mistake(value.span(), message, "", HELP);
        return Vec::new();
    };
    let mut files = Vec::new();
    for item in list {
        match item.get_ref() {
            DeValue::String(path) if !path.is_empty() => {
                let value = PathBuf::from(path.clone().into_owned());
                files.push(Written { value, span: item.span() });
            }
            DeValue::String(_) => {
                fields.mistake(item.span(), "the name of a file is empty", "", HELP);
            }
            other => {
                let message = format!("a file is {}, not a text", type_name(other));
                fields.mistake(item.span(), message, "", HELP);
            }
        }
    }
    files
}

//! Mistakes in a policy, shown where they are.

use std::fmt::Write;
use std::ops::Range;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use super::PolicySource;
use crate::terminal::{grouped, printable};

/// Most mistakes that are shown with their source line; the rest is counted.
const MAX_SHOWN: usize = 200;

/// Longest source line that is shown whole, in bytes; a longer one is shown around the mistake.
const MAX_LINE_BYTES: usize = 400;

/// One mistake: what is wrong, where, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// What is wrong, lower-case, without a full stop.
    pub message: String,
    /// The bytes of the policy's text that are wrong.
    pub span: Range<usize>,
    /// A few words next to the caret; may be empty.
    pub label: String,
    /// What would be right.
    pub help: String,
}

impl Diagnostic {
    /// A mistake at `span`.
    pub fn new(
        span: Range<usize>,
        message: impl Into<String>,
        label: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self { message: message.into(), span, label: label.into(), help: help.into() }
    }
}

/// A mistake and where it stands.
#[derive(Debug, Clone, Copy)]
pub struct PlacedMistake<'a> {
    /// The file that has it.
    pub source: &'a PolicySource,
    /// Its line, from 1.
    pub line: usize,
    /// Its character in the line, from 1.
    pub column: usize,
    /// The mistake.
    pub mistake: &'a Diagnostic,
}

/// All mistakes of one policy, in the order of its files and of their texts. Never empty.
#[derive(Debug, Clone)]
pub struct Mistakes {
    /// Those files that have any.
    files: Vec<(PolicySource, Vec<Diagnostic>)>,
}

impl Mistakes {
    /// Collects the mistakes of a policy, file by file.
    ///
    /// # Panics
    /// If there is none.
    pub fn new(files: impl IntoIterator<Item = (PolicySource, Vec<Diagnostic>)>) -> Self {
        let mut files: Vec<_> = files.into_iter().filter(|(_, found)| !found.is_empty()).collect();
        assert!(!files.is_empty(), "a list of mistakes without a mistake");
        for (source, found) in &mut files {
            for diagnostic in &mut *found {
                diagnostic.span = within(source.text(), &diagnostic.span);
            }
            found.sort_by_key(|diagnostic| diagnostic.span.start);
        }
        Self { files }
    }

    /// Every mistake.
    pub fn iter(&self) -> impl Iterator<Item = PlacedMistake<'_>> {
        self.files.iter().flat_map(|(source, found)| {
            let text = source.text();
            let (mut line, mut line_start, mut seen) = (1, 0, 0);
            found.iter().map(move |mistake| {
                let start = mistake.span.start;
                for (offset, _) in text[seen..start].match_indices('\n') {
                    line += 1;
                    line_start = seen + offset + 1;
                }
                seen = start;
                let column = text[line_start..start].chars().count() + 1;
                PlacedMistake { source, line, column, mistake }
            })
        })
    }

    /// How many there are, at least 1.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.files.iter().map(|(_, found)| found.len()).sum()
    }

    /// All mistakes for a person: source lines, carets and advice, with ANSI colours.
    pub fn render(&self) -> String {
        let renderer = Renderer::styled().decor_style(DecorStyle::Ascii);
        let path_of =
            |source: &PolicySource| printable(&source.path().to_string_lossy()).into_owned();
        let mut all = String::new();
        for PlacedMistake { source, line, mistake, .. } in self.iter().take(MAX_SHOWN) {
            let (excerpt, span) = excerpt(source.text(), &mistake.span);
            let mut annotation = AnnotationKind::Primary.span(span);
            if !mistake.label.is_empty() {
                annotation = annotation.label(printable(&mistake.label).into_owned());
            }
            let snippet = Snippet::source(excerpt)
                .path(path_of(source))
                .line_start(line)
                .annotation(annotation);
            let report = [Level::ERROR
                .primary_title(printable(&mistake.message).into_owned())
                .element(snippet)
                .element(Level::HELP.message(printable(&mistake.help).into_owned()))];
            all.push_str(&renderer.render(&report));
            all.push_str("\n\n");
        }
        let paths: Vec<_> = self.files.iter().map(|(source, _)| path_of(source)).collect();
        let paths = paths.join(", ");
        if self.len() > MAX_SHOWN {
            let rest = grouped((self.len() - MAX_SHOWN) as u64);
            let _ = writeln!(all, "… and {rest} more mistakes in {paths}; correct these first\n");
        }
        let noun = if self.len() == 1 { "mistake" } else { "mistakes" };
        let _ = writeln!(all, "{paths}: {} {noun}, nothing was run", grouped(self.len() as u64));
        all
    }
}

/// The span cut to the text and to character boundaries.
fn within(text: &str, span: &Range<usize>) -> Range<usize> {
    let mut start = span.start.min(text.len());
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    let mut end = span.end.clamp(start, text.len());
    while !text.is_char_boundary(end) {
        end += 1;
    }
    start..end
}

/// The line of the mistake, or of a long line the part around it; and the span inside.
///
/// A mistake that spans lines is shown by its first line: one line says where, and a hostile file
/// cannot fill the screen. The column that the excerpt implies is right unless the line was cut.
fn excerpt<'a>(text: &'a str, span: &Range<usize>) -> (&'a str, Range<usize>) {
    let mut start = text[..span.start].rfind('\n').map_or(0, |at| at + 1);
    let mut end = text[span.start..].find('\n').map_or(text.len(), |at| span.start + at);
    if end - start > MAX_LINE_BYTES {
        start = start.max(span.start.saturating_sub(MAX_LINE_BYTES / 2));
        end = end.min(start + MAX_LINE_BYTES);
        while !text.is_char_boundary(start) {
            start += 1;
        }
        while !text.is_char_boundary(end) {
            end -= 1;
        }
    }
    (&text[start..end], span.start - start..span.end.min(end) - start)
}

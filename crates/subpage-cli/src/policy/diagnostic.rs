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
    /// A few words beside the caret; may be empty.
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

/// All mistakes of one policy, in the order of the text. Never empty.
#[derive(Debug, Clone)]
pub struct Mistakes {
    source: PolicySource,
    found: Vec<Diagnostic>,
}

impl Mistakes {
    /// Collects the mistakes of a policy.
    ///
    /// # Panics
    /// If there is none.
    pub fn new(source: PolicySource, mut found: Vec<Diagnostic>) -> Self {
        assert!(!found.is_empty(), "a list of mistakes without a mistake");
        for diagnostic in &mut found {
            diagnostic.span = within(source.text(), &diagnostic.span);
        }
        found.sort_by_key(|diagnostic| diagnostic.span.start);
        Self { source, found }
    }

    /// The policy that has the mistakes.
    pub fn source(&self) -> &PolicySource {
        &self.source
    }

    /// Every mistake with its line and column, both counted from 1, the column in characters.
    pub fn iter(&self) -> impl Iterator<Item = (usize, usize, &Diagnostic)> {
        let text = self.source.text();
        let (mut line, mut line_start, mut seen) = (1, 0, 0);
        self.found.iter().map(move |diagnostic| {
            let start = diagnostic.span.start;
            for (offset, _) in text[seen..start].match_indices('\n') {
                line += 1;
                line_start = seen + offset + 1;
            }
            seen = start;
            (line, text[line_start..start].chars().count() + 1, diagnostic)
        })
    }

    /// How many there are, at least 1.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.found.len()
    }

    /// All mistakes for a person: source lines, carets and advice, with ANSI colours.
    pub fn render(&self) -> String {
        let renderer = Renderer::styled().decor_style(DecorStyle::Ascii);
        let path = printable(&self.source.path().to_string_lossy()).into_owned();
        let mut all = String::new();
        for (line, _, diagnostic) in self.iter().take(MAX_SHOWN) {
            let (excerpt, span) = excerpt(self.source.text(), &diagnostic.span);
            let mut annotation = AnnotationKind::Primary.span(span);
            if !diagnostic.label.is_empty() {
                annotation = annotation.label(printable(&diagnostic.label).into_owned());
            }
            let snippet =
                Snippet::source(excerpt).path(&*path).line_start(line).annotation(annotation);
            let report = [Level::ERROR
                .primary_title(printable(&diagnostic.message).into_owned())
                .element(snippet)
                .element(Level::HELP.message(printable(&diagnostic.help).into_owned()))];
            all.push_str(&renderer.render(&report));
            all.push_str("\n\n");
        }
        if self.len() > MAX_SHOWN {
            let rest = grouped((self.len() - MAX_SHOWN) as u64);
            let _ = writeln!(all, "… and {rest} more mistakes in {path}; correct these first\n");
        }
        let noun = if self.len() == 1 { "mistake" } else { "mistakes" };
        let _ = writeln!(all, "{path}: {} {noun}, nothing was run", grouped(self.len() as u64));
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

//! What code cites of the pages: `docs/NAME.md` is there, and so is the section of `docs/spp.md` whose
//! number stands behind.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::markdown;

/// The page with the facts, whose sections are cited by number.
const FACTS: &str = "docs/spp.md";

/// Every citation in the crates' sources that leads nowhere. (This program's own sources speak of pages of
/// tests.)
pub(crate) fn faults(root: &Path) -> Result<Vec<String>> {
    let facts = root.join(FACTS);
    let sections =
        if facts.exists() { sections(&markdown::read(&facts)?) } else { BTreeSet::new() };
    let mut sources = Vec::new();
    collect(&root.join("crates"), &mut sources)?;
    let mut faults = Vec::new();
    for source in sources {
        let text = fs::read_to_string(&source)
            .with_context(|| format!("cannot read {}", source.display()))?;
        let place = source.strip_prefix(root).unwrap_or(&source).display().to_string();
        for (page, numbers) in citations(&text) {
            if !root.join(&page).exists() {
                faults.push(format!("{place}: there is no {page}"));
            }
            if page == FACTS {
                let unknown = numbers.iter().filter(|number| !sections.contains(*number));
                faults.extend(unknown.map(|number| format!("{place}: {FACTS} has no {number}")));
            }
        }
    }
    Ok(faults)
}

/// The numbers that a page's headings begin with.
fn sections(text: &str) -> BTreeSet<String> {
    let titles = markdown::titles(text);
    let first = titles.iter().filter_map(|title| title.split_whitespace().next());
    first.filter_map(number).collect()
}

/// A section's number: `1` or `1.5`, whatever stands around it.
fn number(word: &str) -> Option<String> {
    let word = word.trim_matches(|character: char| !character.is_ascii_digit());
    let parts = word
        .split('.')
        .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    parts.then(|| word.to_owned())
}

/// The pages that a source cites in backquotes, each with the numbers behind it.
fn citations(source: &str) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    let mut rest = source;
    while let Some((_, after)) = rest.split_once("`docs/") {
        rest = after;
        let Some((name, behind)) = after.split_once('`') else { break };
        let page = name.strip_suffix(".md");
        let plain =
            |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if page.is_some_and(plain) {
            found.push((format!("docs/{name}"), numbers(behind)));
        }
    }
    found
}

/// The numbers at the start of a text: `1.3`, `2.3 and 2.4`, `1.3 to 1.5`; a sentence that continues with
/// other words ends them. Marks of comments do not count.
fn numbers(text: &str) -> Vec<String> {
    let mut numbers = Vec::new();
    let words = text.split_whitespace().filter(|word| !["//", "///", "//!"].contains(word));
    for word in words {
        match word {
            "and" | "to" if !numbers.is_empty() => {}
            _ => match number(word) {
                Some(number) => {
                    numbers.push(number);
                    // Behind this one begins something else.
                    if word.ends_with(|character: char| !character.is_ascii_digit()) {
                        break;
                    }
                }
                None => break,
            },
        }
    }
    numbers
}

fn collect(directory: &Path, sources: &mut Vec<PathBuf>) -> Result<()> {
    let cannot = || format!("cannot list {}", directory.display());
    for entry in fs::read_dir(directory).with_context(cannot)? {
        let path = entry.with_context(cannot)?.path();
        if path.is_dir() {
            collect(&path, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(path);
        }
    }
    sources.sort();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_the_page() {
        let of = |text: &str| numbers(text).join(" ");
        assert_eq!(of(" 1.5)."), "1.5");
        assert_eq!(of(" 2.3 and 2.4)."), "2.3 2.4");
        assert_eq!(of(" 1.3 to\n/// 1.5.\n"), "1.3 1.5");
        assert_eq!(of("\n/// 1.2, conditions 1 to 5"), "1.2");
        assert_eq!(of(" 3, hazards (a)"), "3");
        assert_eq!(of(" says so, 4 times"), "");
        assert_eq!(of(" 1.8. Entries 5"), "1.8");
    }

    #[test]
    fn what_is_cited_must_be_there() {
        let root = tempfile::tempdir().expect("a temporary directory can be made");
        for directory in ["docs", "crates/x"] {
            fs::create_dir_all(root.path().join(directory)).expect("directories can be made");
        }
        let write = |name: &str, text: &str| {
            fs::write(root.path().join(name), text).expect("files can be written");
        };
        write("docs/spp.md", "# Facts\n\n## 1. One\n\n### 1.5 Miss\n");
        write(
            "crates/x/a.rs",
            "//! `docs/spp.md` 1.5, `docs/spp.md` 1 to\n//! 1.6. `docs/no.md`\n",
        );
        let expected =
            ["crates/x/a.rs: docs/spp.md has no 1.6", "crates/x/a.rs: there is no docs/no.md"];
        assert_eq!(faults(root.path()).expect("they can be read"), expected);
    }
}

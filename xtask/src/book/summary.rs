//! The table of contents, `docs/SUMMARY.md`: each page stands in it once.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::pages;
use crate::markdown;

/// Where it is, from the root.
pub(crate) const PLACE: &str = "docs/SUMMARY.md";

/// What is wrong with it: pages that it leaves out or names twice, and what it names that is none.
pub(crate) fn faults(root: &Path) -> Result<Vec<String>> {
    let mut named: BTreeMap<PathBuf, usize> = BTreeMap::new();
    for page in markdown::linked_files(root, &root.join(PLACE))? {
        *named.entry(page).or_default() += 1;
    }
    let mut faults = Vec::new();
    let shown = |page: &Path| page.strip_prefix(root).unwrap_or(page).display().to_string();
    for page in pages::all(root)? {
        match named.remove(&page) {
            None => faults.push(format!("{} is not in it", shown(&page))),
            Some(1) => {}
            Some(times) => faults.push(format!("{} is in it {times} times", shown(&page))),
        }
    }
    faults.extend(named.keys().map(|page| format!("{} is no page", shown(page))));
    Ok(faults)
}

/// The same contents for a book whose root is the repository's.
pub(crate) fn from_root(text: &str) -> String {
    let mut moved = String::new();
    for line in text.lines() {
        match line.split_once("](") {
            // A chapter without a page.
            Some((_, rest)) if rest.starts_with(')') => moved += line,
            Some((title, rest)) => {
                moved += title;
                moved += "](";
                if let Some(outside) = rest.strip_prefix("../") {
                    moved += outside;
                } else {
                    moved += "docs/";
                    moved += rest;
                }
            }
            None => moved += line,
        }
        moved.push('\n');
    }
    moved
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn faults_of(contents: &str) -> Vec<String> {
        let root = tempfile::tempdir().expect("a temporary directory can be made");
        for directory in ["docs", "crates/x"] {
            fs::create_dir_all(root.path().join(directory)).expect("directories can be made");
        }
        for page in ["README.md", "docs/a.md", "crates/x/README.md", "crates/x/lib.rs"] {
            fs::write(root.path().join(page), "# Page\n").expect("files can be written");
        }
        fs::write(root.path().join(PLACE), contents).expect("files can be written");
        faults(root.path()).expect("it can be read")
    }

    #[test]
    fn each_page_stands_in_it_once() {
        let whole = "[R](../README.md)\n\n# Part\n\n- [A](a.md)\n- [Group]()\n  \
                     - [X](../crates/x/README.md)\n";
        assert_eq!(faults_of(whole), Vec::<String>::new());
        let wrong = "- [A](a.md)\n- [A](a.md)\n- [R](../README.md)\n- [L](../crates/x/lib.rs)\n";
        let expected = [
            "docs/a.md is in it 2 times",
            "crates/x/README.md is not in it",
            "crates/x/lib.rs is no page",
        ];
        assert_eq!(faults_of(wrong), expected);
    }

    #[test]
    fn paths_begin_at_the_root_in_the_book() {
        let text = "# Part\n\n- [A](a.md)\n- [Group]()\n  - [X](../crates/x/README.md)\n";
        let book = "# Part\n\n- [A](docs/a.md)\n- [Group]()\n  - [X](crates/x/README.md)\n";
        assert_eq!(from_root(text), book);
    }
}

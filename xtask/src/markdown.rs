//! What the tests and the site need of Markdown: do a page's links lead somewhere, what does it link to
//! and what should it, which commands does a section give.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, Result};
use percent_encoding::percent_decode_str;
use pulldown_cmark::{CowStr, Event, HeadingLevel, Options, Parser, Tag, TagEnd};

/// Reads GitHub's dialect, the one in which the pages are read most.
fn parse(text: &str) -> Parser<'_> {
    Parser::new_ext(text, Options::ENABLE_TABLES | Options::ENABLE_FOOTNOTES)
}

/// A page's links that lead nowhere, each with the reason, in the page's order.
///
/// Checked are links and images into the same tree, `root`: the file exists, and where the link
/// names a heading of a Markdown page, so does that. Links with a scheme (`https:`) are not
/// followed. An error means that the page itself cannot be read.
pub(crate) fn broken_links(root: &Path, page: &Path) -> Result<Vec<String>> {
    let text = read(page)?;
    let mut broken = Vec::new();
    for link in links(&text) {
        if has_scheme(&link) {
            continue;
        }
        if let Err(reason) = follow(root, page, &link)? {
            broken.push(format!("{link}: {reason}"));
        }
    }
    Ok(broken)
}

/// Where a page's links and images lead, in its order. A link without a destination is none.
fn links(text: &str) -> impl Iterator<Item = CowStr<'_>> {
    parse(text).filter_map(|event| match event {
        Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
            (!dest_url.is_empty()).then_some(dest_url)
        }
        _ => None,
    })
}

/// The files of the same tree that a page links to, in its order, each as often as it does.
pub(crate) fn linked_files(root: &Path, page: &Path) -> Result<Vec<PathBuf>> {
    let text = read(page)?;
    let directory = page.parent().context("a page is in a directory")?;
    let files = links(&text).filter(|link| !has_scheme(link)).filter_map(|link| {
        let path = link.split('#').next().filter(|path| !path.is_empty())?;
        let path = percent_decode_str(path).decode_utf8().ok()?;
        resolve(root, &directory.join(&*path)).filter(|target| target.is_file())
    });
    Ok(files.collect())
}

/// Which of the names a page uses in its text without a link, anywhere on the page, to one of the places
/// that stand with the name. Headings and code do not count.
pub(crate) fn unlinked_names<'a>(
    page: &Path,
    names: &[(&'a str, &[&str])],
) -> Result<Vec<&'a str>> {
    let text = read(page)?;
    let mut told = String::new();
    let mut in_heading = false;
    let mut in_code = false;
    for event in parse(&text) {
        match event {
            Event::Start(Tag::Heading { .. }) => in_heading = true,
            Event::End(TagEnd::Heading(_)) => in_heading = false,
            Event::Start(Tag::CodeBlock(_)) => in_code = true,
            Event::End(TagEnd::CodeBlock) => in_code = false,
            Event::Text(text) if !in_heading && !in_code => told.push_str(&text),
            // Two words on two lines are two words; code between words is a word.
            _ => told.push(' '),
        }
    }
    let links: Vec<_> = links(&text).collect();
    let unlinked = names.iter().filter(|(name, places)| {
        has_word(&told, name)
            && !links.iter().any(|link| places.iter().any(|place| link.starts_with(place)))
    });
    Ok(unlinked.map(|(name, _)| *name).collect())
}

/// Whether a text has a name as a word of its own.
fn has_word(text: &str, name: &str) -> bool {
    let inner = |character: char| character.is_alphanumeric() || "_-".contains(character);
    text.match_indices(name)
        .any(|(at, _)| !text[..at].ends_with(inner) && !text[at + name.len()..].starts_with(inner))
}

/// Whether a link starts with a URL scheme, such as `https:` or `mailto:`.
pub(crate) fn has_scheme(link: &str) -> bool {
    link.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.chars().all(|rest| rest.is_ascii_alphanumeric() || "+-.".contains(rest))
    })
}

fn follow(root: &Path, page: &Path, link: &str) -> Result<Result<(), &'static str>> {
    let (path, heading) = link.split_once('#').unwrap_or((link, ""));
    let Ok(path) = percent_decode_str(path).decode_utf8() else {
        return Ok(Err("not UTF-8 once decoded"));
    };
    if path.starts_with('/') {
        return Ok(Err("absolute; a link into the repository is relative to its page"));
    }
    let target = if path.is_empty() {
        page.to_owned()
    } else {
        let directory = page.parent().context("a page is in a directory")?;
        let Some(target) = resolve(root, &directory.join(&*path)) else {
            return Ok(Err("leads out of the repository"));
        };
        target
    };
    if target.is_dir() {
        return Ok(Err("a directory, which the site cannot show; link a file in it"));
    }
    if !target.exists() {
        return Ok(Err("no such file"));
    }
    let markdown = target.extension().is_some_and(|extension| extension == "md");
    if !heading.is_empty() && markdown && !anchors(&read(&target)?).contains(heading) {
        return Ok(Err("no such heading"));
    }
    Ok(Ok(()))
}

/// Takes `.` and `..` out of a path below `root`; nothing if it climbs out.
fn resolve(root: &Path, path: &Path) -> Option<PathBuf> {
    let mut resolved = root.to_owned();
    for component in path.strip_prefix(root).ok()?.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => resolved.push(name),
            Component::ParentDir if resolved != root => {
                resolved.pop();
            }
            _ => return None,
        }
    }
    Some(resolved)
}

/// The names under which GitHub makes a page's headings reachable.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let mut seen: HashMap<String, u32> = HashMap::new();
    for (_, title) in headings(text) {
        let slug: String = title
            .to_lowercase()
            .chars()
            .filter(|&character| character.is_alphanumeric() || "-_ ".contains(character))
            .map(|character| if character == ' ' { '-' } else { character })
            .collect();
        let count = seen.entry(slug.clone()).or_default();
        // The second heading of a name is `name-1`.
        anchors.insert(if *count == 0 { slug } else { format!("{slug}-{count}") });
        *count += 1;
    }
    anchors
}

fn headings(text: &str) -> Vec<(HeadingLevel, String)> {
    let mut headings = Vec::new();
    let mut title = None;
    for event in parse(text) {
        match event {
            Event::Start(Tag::Heading { .. }) => title = Some(String::new()),
            Event::End(TagEnd::Heading(level)) => {
                headings.extend(title.take().map(|title| (level, title)));
            }
            Event::Text(text) | Event::Code(text) => {
                if let Some(title) = &mut title {
                    title.push_str(&text);
                }
            }
            _ => {}
        }
    }
    headings
}

/// The headings of a page, as text.
pub(crate) fn titles(text: &str) -> Vec<String> {
    headings(text).into_iter().map(|(_, title)| title).collect()
}

/// The lines of the code blocks below a heading, up to the next one of its rank or above.
///
/// Lines come as they are written, without the empty ones. Nothing if there is no such heading.
pub(crate) fn commands(text: &str, heading: &str) -> Option<Vec<String>> {
    let mut section: Option<(HeadingLevel, Vec<String>)> = None;
    let mut titles = headings(text).into_iter();
    let mut in_code = false;
    for event in parse(text) {
        match event {
            Event::Start(Tag::Heading { .. }) => {
                let (level, title) = titles.next()?;
                match &section {
                    None if title == heading => section = Some((level, Vec::new())),
                    Some((own, _)) if level <= *own => break,
                    _ => {}
                }
            }
            Event::Start(Tag::CodeBlock(_)) => in_code = true,
            Event::End(TagEnd::CodeBlock) => in_code = false,
            Event::Text(code) if in_code => {
                if let Some((_, lines)) = &mut section {
                    let code = code.lines().filter(|line| !line.trim().is_empty());
                    lines.extend(code.map(str::to_owned));
                }
            }
            _ => {}
        }
    }
    section.map(|(_, lines)| lines)
}

/// Reads a page.
pub(crate) fn read(page: &Path) -> Result<String> {
    fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes `docs/page.md` with the text, next to a few things to link to.
    fn check(text: &str) -> Vec<String> {
        let root = tempfile::tempdir().expect("a temporary directory can be made");
        let docs = root.path().join("docs");
        fs::create_dir_all(docs.join("c")).expect("directories can be made");
        fs::write(docs.join("a b"), "").expect("files can be written");
        fs::write(root.path().join("README.md"), "# One `two`\n\n## Same\n\n## Same\n")
            .expect("files can be written");
        let page = docs.join("page.md");
        fs::write(&page, text).expect("files can be written");
        broken_links(root.path(), &page).expect("the page can be read")
    }

    #[test]
    fn links_that_lead_somewhere_are_fine() {
        let text = "# Own heading: here\n\
            [a](page.md) [b](../README.md) [c](a%20b) [d](<a b>) [e](https://example.org/x)\n\
            [f](#own-heading-here) [g](../README.md#one-two) [h](../README.md#same-1)\n\
            [i](./../docs/page.md) <mailto:a@example.org> [j][ref]\n\n[ref]: page.md 'title'\n";
        assert_eq!(check(text), Vec::<String>::new());
    }

    #[test]
    fn links_that_lead_nowhere_are_named() {
        let text = "[a](none.md) ![b](none.png) [c](/README.md) [d](../../x) [e](#none)\n\
            [f](../README.md#same-2) [g][ref] [h](c)\n\n[ref]: other.md\n";
        let expected = [
            "none.md: no such file",
            "none.png: no such file",
            "/README.md: absolute; a link into the repository is relative to its page",
            "../../x: leads out of the repository",
            "#none: no such heading",
            "../README.md#same-2: no such heading",
            "other.md: no such file",
            "c: a directory, which the site cannot show; link a file in it",
        ];
        assert_eq!(check(text), expected);
    }

    #[test]
    fn names_are_linked_once_a_page() {
        let names: [(&str, &[&str]); 3] = [
            ("SDM", &["https://intel.example/"]),
            ("the series", &["https://lore.example/"]),
            ("KVM", &["https://kvm.example/"]),
        ];
        let unlinked = |text: &str| {
            let directory = tempfile::tempdir().expect("a temporary directory can be made");
            let page = directory.path().join("page.md");
            fs::write(&page, text).expect("files can be written");
            unlinked_names(&page, &names).expect("the page can be read")
        };
        assert_eq!(unlinked("The SDM's words; the\nseries; KVM."), ["SDM", "the series", "KVM"]);
        assert_eq!(unlinked("# KVM\n\n`KVM` SDMs subpage-KVM KVM_RUN\n\n    KVM\n"), [""; 0]);
        let text = "SDM, and later the [SDM](https://intel.example/sdm). [KVM](kvm.md)";
        assert_eq!(unlinked(text), ["KVM"]);
    }

    #[test]
    fn links_in_code_are_none() {
        assert_eq!(check("`[a](none.md)`\n\n    [b](none.md)\n"), Vec::<String>::new());
    }

    #[test]
    fn commands_are_those_of_the_section() {
        let text = "# Title\n```\nno\n```\n## Two commands\nText `not this`.\n\
            ```sh\nfirst --flag 'a  b'\n```\n### Below\n\n```sh\n\nsecond\n```\n## Next\n```\nno\n```\n";
        let lines = commands(text, "Two commands").expect("the section is there");
        assert_eq!(lines, ["first --flag 'a  b'", "second"]);
        assert_eq!(commands(text, "Three commands"), None);
    }

    #[test]
    fn a_section_may_be_the_last_and_empty() {
        assert_eq!(commands("## Two commands\n", "Two commands"), Some(Vec::new()));
    }
}

//! Follows the links in the site as it was built: a link that is right in the pages can be wrong there,
//! where mdBook makes names of files and of headings its own way.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use percent_encoding::percent_decode_str;

use crate::markdown;

/// Every link in a page of the site that leads to no file, or to no heading of its page.
pub(super) fn broken_links(site: &Path) -> Result<Vec<String>> {
    let mut pages = Vec::new();
    collect(site, &mut pages)?;
    let mut texts = HashMap::new();
    for page in &pages {
        let text =
            fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
        texts.insert(page.clone(), text);
    }
    let anchors: HashMap<&PathBuf, BTreeSet<&str>> =
        texts.iter().map(|(page, text)| (page, attributes(text, "id").collect())).collect();
    let mut broken = Vec::new();
    for page in &pages {
        let text = &texts[page];
        let links: BTreeSet<_> = attributes(text, "href").chain(attributes(text, "src")).collect();
        for link in links {
            // The page for errors names the server's root as its base.
            if markdown::has_scheme(link) || link == "/" {
                continue;
            }
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = target(page, path);
            let found = target.as_ref().is_some_and(|target| target.is_file());
            let known = target.as_ref().and_then(|target| anchors.get(target));
            let there = heading.is_empty()
                || known.is_none_or(|anchors| {
                    let decoded = percent_decode_str(heading).decode_utf8_lossy();
                    anchors.contains(&*decoded)
                });
            if !found || !there {
                let page = page.strip_prefix(site).unwrap_or(page);
                let missing = if found { "heading" } else { "file" };
                broken.push(format!("{}: {link}: no such {missing}", page.display()));
            }
        }
    }
    Ok(broken)
}

/// The file that a link of a page leads to, `..` taken out.
fn target(page: &Path, path: &str) -> Option<PathBuf> {
    if path.is_empty() {
        return Some(page.to_owned());
    }
    let decoded = percent_decode_str(path).decode_utf8().ok()?;
    let mut target = page.parent()?.to_owned();
    for part in decoded.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                target.pop();
            }
            name => target.push(name),
        }
    }
    Some(target)
}

/// All HTML files below a directory.
fn collect(directory: &Path, pages: &mut Vec<PathBuf>) -> Result<()> {
    let cannot = || format!("cannot list {}", directory.display());
    for entry in fs::read_dir(directory).with_context(cannot)? {
        let path = entry.with_context(cannot)?.path();
        if path.is_dir() {
            collect(&path, pages)?;
        } else if path.extension().is_some_and(|extension| extension == "html") {
            pages.push(path);
        }
    }
    pages.sort();
    Ok(())
}

/// The values of an attribute, in double quotes as mdBook writes them.
fn attributes<'a>(html: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    let mut rest = html;
    std::iter::from_fn(move || {
        loop {
            let at = rest.find(name)?;
            let before = rest[..at].chars().next_back();
            rest = &rest[at + name.len()..];
            let value = rest.strip_prefix("=\"").and_then(|value| value.split_once('"'));
            if let (Some(character), Some((value, after))) = (before, value)
                && character.is_ascii_whitespace()
            {
                rest = after;
                return Some(value);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_the_site_are_followed() {
        let site = tempfile::tempdir().expect("a temporary directory can be made");
        fs::create_dir(site.path().join("docs")).expect("directories can be made");
        let write = |name: &str, text: &str| {
            fs::write(site.path().join(name), text).expect("files can be written");
        };
        write("a.html", "<h1 id=\"one\">x</h1> <a href=\"docs/b.html#two\">b</a>");
        write(
            "docs/b.html",
            "<h2 class=\"x\" id=\"two\">x</h2> <a href=\"../a.html#none\">a</a> \
             <a href=\"c.html\">c</a> <a href=\"https://example.org/none\">d</a> \
             <img src=\"../none.png\"> <a data-href=\"none\">no link</a>",
        );
        let expected = [
            "docs/b.html: ../a.html#none: no such heading",
            "docs/b.html: ../none.png: no such file",
            "docs/b.html: c.html: no such file",
        ];
        assert_eq!(broken_links(site.path()).expect("it can be read"), expected);
    }
}

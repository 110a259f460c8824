//! The licences of what every program of Rust is linked with: the standard library and the C library.
//!
//! The toolchain has the notices of the first as a page. Those of the second are where it comes from:
//! musl's is brought along, as rustup's target has none, and Debian keeps that of glibc.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::{licences::Texts, target::Target};

/// The notices of musl, as its sources have them, <https://git.musl-libc.org/cgit/musl/tree/COPYRIGHT>.
const MUSL: &str = include_str!("texts/musl.txt");

/// The page that the toolchain has about its library, below its root.
const PAGE: &str = "share/doc/rust/COPYRIGHT-library.html";

/// What that page only names, below `share/doc/rust/licenses`, and what it is the licence of.
const NAMED: [(&str, &str); 4] = [
    ("Apache-2.0.txt", "Rust's standard library"),
    ("MIT.txt", "Rust's standard library"),
    ("Unicode-3.0.txt", "Rust's standard library: tables of Unicode"),
    ("LLVM-exception.txt", "LLVM's compiler-rt and libunwind (Apache-2.0 with this exception)"),
];

/// What Debian says about glibc and about GCC's own library, and the licence that they name.
const GLIBC: [(&str, &str); 3] = [
    ("/usr/share/doc/libc6/copyright", "glibc"),
    ("/usr/share/common-licenses/LGPL-2.1", "glibc"),
    ("/usr/share/doc/libgcc-s1/copyright", "libgcc"),
];

/// Adds what a program for `target` is linked with besides crates.
pub(super) fn add(texts: &mut Texts, root: &Path, target: Target) -> Result<()> {
    let sysroot = sysroot(root)?;
    for (text, name) in of_page(&read(&sysroot.join(PAGE))?)? {
        texts.add(&text, &name);
    }
    for (file, name) in NAMED {
        texts.add(&read(&sysroot.join("share/doc/rust/licenses").join(file))?, name);
    }
    match target {
        Target::Musl => texts.add(MUSL, "musl"),
        Target::Glibc => {
            for (file, name) in GLIBC {
                texts.add(&read(Path::new(file))?, name);
            }
        }
    }
    Ok(())
}

/// Where the toolchain is that builds the workspace at `root`.
pub(super) fn sysroot(root: &Path) -> Result<std::path::PathBuf> {
    let mut rustc = Command::new("rustc");
    let output = rustc.current_dir(root).args(["--print", "sysroot"]).output();
    let output = output.context("cannot start rustc")?;
    ensure!(output.status.success(), "rustc --print sysroot: {}", output.status);
    Ok(String::from_utf8(output.stdout).context("its path is not UTF-8")?.trim_end().into())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| {
        format!("cannot read the licence of what the program is linked with, {}", path.display())
    })
}

/// Each text of the page with the names of what has it: first what is around the texts.
fn of_page(page: &str) -> Result<Vec<(String, String)>> {
    let mut around = String::new();
    let mut texts = BTreeMap::<String, Vec<String>>::new();
    let mut name = String::new();
    let mut rest = page.split_once("<body>").context("the page has no body")?.1;
    while let Some((before, after)) = rest.split_once("<pre>") {
        let (text, after) = after.split_once("</pre>").context("a text of the page has no end")?;
        around.push_str(before);
        if let Some((_, heading)) = before.rsplit_once("<h3>") {
            name = plain(heading.split_once("</h3>").map_or(heading, |(heading, _)| heading));
        }
        ensure!(!name.is_empty(), "a text of the page has no name");
        let of = texts.entry(unescaped(text)).or_default();
        of.push(format!("Rust's standard library: {}", name.trim_start_matches("📦 ")));
        rest = after;
    }
    ensure!(!texts.is_empty(), "the page has no texts");
    around.push_str(rest);
    let mut all = vec![(plain(&around), "Rust's standard library".to_owned())];
    for (text, mut names) in texts {
        names.dedup();
        all.push((text, names.join(", ")));
    }
    Ok(all)
}

/// What a piece of the page says, without tags and empty lines.
fn plain(html: &str) -> String {
    let mut text = String::new();
    let mut pieces = html.split('<');
    text.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        text.push_str(piece.split_once('>').map_or("", |(_, after)| after));
    }
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    unescaped(&lines.collect::<Vec<_>>().join("\n"))
}

/// The references to characters that the page has.
fn unescaped(html: &str) -> String {
    [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&#34;", "\""),
        ("&quot;", "\""),
        ("&#39;", "'"),
        ("&#x27;", "'"),
    ]
    .iter()
    .fold(html.to_owned(), |text, (reference, character)| text.replace(reference, character))
    .replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_page_are_told_apart_and_told_once() {
        let page = "<head>x</head><body>\n<h1>Notices</h1>\n<p><b>License:</b> MIT</p>\n\
                    <h3>📦 libc-0.2</h3><p>by <i>Us</i></p><pre>\n&#34;AS IS&#34; &lt;us&gt;\n</pre>\n\
                    <h3>📦 memchr-2</h3><pre>\n&#34;AS IS&#34; &lt;us&gt;\n</pre><pre>other</pre></body>";
        let texts = of_page(page).expect("a page");
        let own = "Rust's standard library".to_owned();
        let around = "Notices\nLicense: MIT\n📦 libc-0.2by Us\n📦 memchr-2".to_owned();
        assert_eq!(
            texts,
            [
                (around, own.clone()),
                ("\n\"AS IS\" <us>\n".to_owned(), format!("{own}: libc-0.2, {own}: memchr-2")),
                ("other".to_owned(), format!("{own}: memchr-2")),
            ]
        );
    }

    #[test]
    fn a_page_of_another_form_is_refused() {
        for page in ["", "<body></body>", "<body><pre>no name</pre>", "<body><h3>a</h3><pre>no end"]
        {
            assert!(of_page(page).is_err(), "{page}");
        }
    }
}

//! `subpage man`: the manual pages.

use std::collections::BTreeSet;
use std::fs;

use subpage_cli::command_line::definition;

use crate::assert_golden;
use crate::place::{Place, status};

/// Every command has its page under the name that `man` looks for.
#[test]
fn every_command_has_a_page() {
    let place = Place::new();
    fs::create_dir(place.path("man1")).expect("directory");
    let output = place.run(&["man", "man1"]);
    assert_eq!(status(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.is_empty());
    let written: BTreeSet<_> = fs::read_dir(place.path("man1"))
        .expect("directory")
        .map(|entry| entry.expect("entry").file_name().into_string().expect("text"))
        .collect();
    let mut expected = BTreeSet::from(["subpage.1".to_owned()]);
    let mut left = vec![("subpage".to_owned(), definition())];
    while let Some((name, command)) = left.pop() {
        for below in command.get_subcommands() {
            let name = format!("{name}-{}", below.get_name());
            expected.insert(format!("{name}.1"));
            left.push((name, below.clone()));
        }
    }
    assert_eq!(written, expected);
}

#[test]
fn a_page_has_what_the_help_has() {
    let pages = subpage_cli::man_pages::pages(definition()).expect("written to memory");
    let page = |name: &str| {
        let (_, page) = pages.iter().find(|(page, _)| page == name).expect(name);
        String::from_utf8(page.clone()).expect("text")
    };
    assert_golden("commands/man-check.txt", &page("subpage-check.1"));
    let guard = page("subpage-guard.1");
    for part in [".SH \"GUESTS ON KVM\"", "\\-\\-strict", ".SH \"EXIT STATUS\"\n.nf\n  0  nothing"]
    {
        assert!(guard.contains(part), "{part} is not in:\n{guard}");
    }
}

#[test]
fn a_directory_that_is_not_there_is_bad_input() {
    let place = Place::new();
    let output = place.run(&["man", "no"]);
    assert_eq!(status(&output), 2);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("cannot write the manual page no/subpage.1"), "{told}");
}

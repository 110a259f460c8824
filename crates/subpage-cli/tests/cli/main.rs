//! Golden tests. `UPDATE_EXPECT=1 cargo test -p subpage-cli` writes the expected files anew.

mod check;
mod commands;
mod compile;
mod ctl;
mod enforcers;
mod events;
mod fields;
mod files;
mod first_hour;
mod include;
mod kallsyms;
mod kvm;
mod linux;
mod list;
mod machine;
mod man_pages;
mod options;
mod place;
mod policy;
mod policy_linux;
mod record;
mod recorded_fields;
mod report;
mod run_vmm;
mod runs;
mod schema;
mod streams;
mod symbols;
mod top;
mod warnings;

use std::path::{Path, PathBuf};

use expect_test::expect_file;

/// A file of the golden tests.
fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

/// Compares `actual` with a golden file.
fn assert_golden(path: &str, actual: &str) {
    expect_file![golden(path)].assert_eq(actual);
}

/// The text without colours.
fn plain(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

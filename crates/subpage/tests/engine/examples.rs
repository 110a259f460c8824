//! Each public module has an example that shows it.

use std::path::Path;

#[test]
fn each_public_module_has_an_example() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let modules: Vec<_> = include_str!("../../src/lib.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .collect();
    assert!(modules.contains(&"domain"), "the crate's modules are found: {modules:?}");
    for module in modules {
        assert!(examples.join(module).with_extension("rs").exists(), "{module} has no example");
    }
}

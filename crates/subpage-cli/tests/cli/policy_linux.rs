//! `subpage policy linux`, on kernels that the tests make.

use std::fs;
use std::path::Path;

use clap::ValueEnum as _;
use subpage_cli::failure::Failure;
use subpage_cli::linux_policy::{self, Pack};
use subpage_cli::policy::{Draft, PolicySource, read_region_names};

use crate::linux::made::{self, DATA, Wanted, wanted};

/// A kernel in a bzImage with these symbols besides those of every made one.
fn kernel(directory: &Path, more: &[Wanted]) -> std::path::PathBuf {
    let mut symbols = made::symbols(true);
    symbols.extend(more.iter().cloned());
    symbols.sort_by_key(|symbol| symbol.address);
    let path = directory.join("vmlinuz");
    fs::write(&path, made::bzimage(&made::vmlinux(&symbols, made::DEBIAN_6_1))).expect("a kernel");
    path
}

fn written(kernel: &Path, packs: &[Pack]) -> Result<String, Failure> {
    let mut out = Vec::new();
    linux_policy::write(&mut out, kernel, packs)?;
    Ok(String::from_utf8(out).expect("text"))
}

/// The rule of a symbol, with the comment before it.
fn rule<'a>(policy: &'a str, symbol: &str) -> Option<&'a str> {
    policy.split("\n\n").find(|part| part.contains(&format!("symbol = \"{symbol}\"\n")))
}

#[test]
fn what_it_writes_is_a_policy_for_this_kernel() {
    let directory = tempfile::tempdir().expect("directory");
    let kernel = kernel(directory.path(), &[]);
    for packs in [&[Pack::Default][..], Pack::value_variants()] {
        let text = written(&kernel, packs).expect("a policy");
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
        let source = PolicySource::from_text(Path::new("policy.toml"), text.clone());
        let names = read_region_names(&kernel).expect("names");
        let policy = Draft::parse(source).resolve_or(&names, "").expect("no mistake");
        let range = |name: &str| {
            let rule = policy.rules.iter().find(|rule| rule.rule.name.as_str() == name)?;
            Some((rule.rule.range.first().as_u64(), rule.rule.range.bytes()))
        };
        assert_eq!(range("modprobe_path"), Some((0x200_0100, 256)), "{text}");
        let all = packs.len() > 1;
        assert_eq!(range("poweroff_cmd"), all.then_some((0x200_0200, 256)), "of another pack");
        assert_eq!(range("_stext"), all.then_some((0x100_0000, 0x8_0000)));
    }
}

#[test]
fn a_rule_ends_where_the_next_symbol_begins() {
    let directory = tempfile::tempdir().expect("directory");
    let near = wanted(DATA + 0x180, 'd', "near");
    let text = written(&kernel(directory.path(), &[near]), &[Pack::Helpers]).expect("a policy");
    let modprobe = rule(&text, "modprobe_path").expect("a rule");
    assert!(modprobe.contains("length = 128\n"), "{modprobe}");
    assert!(modprobe.contains("in its sub-pages none"), "{modprobe}");
}

#[test]
fn what_shares_memory_is_told() {
    let directory = tempfile::tempdir().expect("directory");
    let more = [wanted(DATA + 0x240, 'b', "hot"), wanted(DATA + 0x800, 'D', "cold")];
    let text = written(&kernel(directory.path(), &more), &[Pack::Helpers]).expect("a policy");
    let poweroff = rule(&text, "poweroff_cmd").expect("a rule");
    assert!(poweroff.contains("length = 64\n"), "{poweroff}");
    let words = poweroff.replace("\n# ", " ");
    assert!(
        words.contains("3 other symbols in its pages can be written, in its sub-pages hot."),
        "{words}"
    );
    // Code and constants are written by nobody.
    let sealed = [
        wanted(DATA, 'D', "__start_ro_after_init"),
        wanted(DATA + 0x1000, 'D', "__end_ro_after_init"),
    ];
    let text = written(&kernel(directory.path(), &sealed), &[Pack::Helpers]).expect("a policy");
    let words = text.replace("\n# ", " ");
    let poweroff = rule(&words, "poweroff_cmd").expect("a rule");
    assert!(poweroff.contains("nothing beside it is written"), "{poweroff}");
}

#[test]
fn what_a_kernel_does_not_have_is_said() {
    let directory = tempfile::tempdir().expect("directory");
    let twice = [
        wanted(DATA + 0x400, 'd', "core_pattern"),
        wanted(DATA + 0x500, 'd', "core_pattern"),
        wanted(DATA + 0x7_0020, 'd', "uevent_helper"),
    ];
    let image = kernel(directory.path(), &twice);
    let text = written(&image, &[Pack::Helpers]).expect("a policy").replace("\n# ", " ");
    for left_out in [
        "core_pattern (several symbols have this name)",
        "uevent_helper (freed when the kernel has started)",
        "reboot_cmd (not in this kernel)",
    ] {
        assert!(text.contains(left_out), "{text}");
    }
    let failure = written(&image, &[Pack::Lsm]).expect_err("nothing");
    let told = failure.event().expect("bad input").message;
    assert!(told.contains("nothing of these packs: selinux_state (not in this kernel)"), "{told}");
}

/// A table that nothing goes by any more gets no rule.
#[test]
fn the_table_of_system_calls_is_guarded_where_it_is_used() {
    let directory = tempfile::tempdir().expect("directory");
    let table = wanted(DATA + 0x400, 'D', "sys_call_table");
    let switch = wanted(made::TEXT + 0x4_0000, 'T', "x64_sys_call");
    let text = written(&kernel(directory.path(), std::slice::from_ref(&table)), &[Pack::Tables]);
    assert!(rule(&text.expect("a policy"), "sys_call_table").is_some());
    let told = written(&kernel(directory.path(), &[table, switch]), &[Pack::Tables]);
    let told = told.expect_err("nothing").event().expect("bad input").message;
    assert!(told.contains("sys_call_table (this kernel's system calls do not go by it)"), "{told}");
}

#[test]
fn other_files_are_refused() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("text");
    fs::write(&path, "no kernel").expect("a file");
    let failure = written(&path, &[Pack::Default]).expect_err("no kernel");
    let told = failure.event().expect("bad input").message;
    assert!(told.starts_with("cannot read the kernel ") && told.contains("text"), "{told}");
}

#[test]
fn data_without_names_is_a_reason() {
    let directory = tempfile::tempdir().expect("directory");
    let functions = made::symbols(true).into_iter().map(|symbol| match symbol.kind {
        'D' | 'd' | 'B' | 'b' => Wanted { kind: 'T', ..symbol },
        _ => symbol,
    });
    let functions: Vec<_> = functions.collect();
    let path = directory.path().join("vmlinuz");
    let image = made::vmlinux(&functions, made::DEBIAN_6_1);
    fs::write(&path, made::bzimage(&image)).expect("a kernel");
    let told = written(&path, &[Pack::Default]).expect_err("no data").event();
    let told = told.expect("bad input").message;
    assert!(told.contains("CONFIG_KALLSYMS_ALL"), "{told}");
}

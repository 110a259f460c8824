//! Names out of a Linux kernel's image, which the tests make.

use std::fs;
use std::path::{Path, PathBuf};

use subpage_cli::policy::{
    Draft, LookupError, Names, PolicySource, SymbolError, build_id, read_region_names,
};

use crate::plain;

#[allow(dead_code, reason = "the tests of the reader use all of it")]
#[path = "../../../subpage-linux/tests/linux/made.rs"]
pub(crate) mod made;

/// A bzImage and a stripped vmlinux in a directory.
fn kernels(directory: &Path) -> [PathBuf; 2] {
    let kernel = made::vmlinux(&made::symbols(true), made::DEBIAN_6_1);
    let files = [directory.join("vmlinuz"), directory.join("vmlinux")];
    fs::write(&files[0], made::bzimage(&kernel)).expect("a kernel");
    fs::write(&files[1], kernel).expect("a kernel");
    files
}

fn resolve(names: &Names, rule: &str) -> Result<(u64, u64), String> {
    let text = format!("version = 1\n[[rule]]\nname = \"x\"\n{rule}\n");
    let source = PolicySource::from_text(Path::new("policy.toml"), text);
    match Draft::parse(source).resolve_or(names, "look elsewhere") {
        Ok(policy) => {
            let range = policy.rules[0].rule.range;
            Ok((range.first().as_u64(), range.bytes()))
        }
        Err(mistakes) => Err(plain(&mistakes.render())),
    }
}

#[test]
fn a_kernels_image_places_a_symbol_without_another_file() {
    let directory = tempfile::tempdir().expect("directory");
    for file in kernels(directory.path()) {
        let names = read_region_names(&file).expect("names");
        let resolve = |rule: &str| resolve(&names, rule);
        assert_eq!(resolve("symbol = \"modprobe_path\""), Ok((0x200_0100, 0x100)));
        assert_eq!(resolve("region = \"modprobe_path\""), Ok((0x200_0100, 0x100)));
        let part = "symbol = \"modprobe_path\"\noffset = 0x80\nlength = 16";
        assert_eq!(resolve(part), Ok((0x200_0180, 16)));
        for (rule, message) in [
            ("symbol = \"linux_banner\"", "does not say how long `linux_banner` is"),
            ("symbol = \"current_task\"", "per-processor data"),
            ("symbol = \"start_it\"", "for the kernel's start only"),
            ("symbol = \"twice\"", "2 symbols are called `twice`"),
            ("symbol = \"modprobepath\"", "the nearest known: `modprobe_path`"),
            ("symbol = \"zzz\"", "look elsewhere"),
            ("symbol = \"modprobe_path\"\nlength = 257", "beyond the end of `modprobe_path`"),
            ("symbol = \"modprobe_path\"\naddress = \"kernel\"", "`address` needs `elf` or `map`"),
            ("symbol = \"modprobe_path\"\nbias = 1", "`bias` needs `elf` or `map`"),
        ] {
            let shown = resolve(rule).expect_err(rule);
            assert!(shown.contains(message), "{rule}: {shown}");
        }
        assert_eq!(build_id(&file), Some(made::BUILD_ID.to_vec()));
    }
}

#[test]
fn a_kernel_that_tells_no_symbols_says_why() {
    let directory = tempfile::tempdir().expect("directory");
    let [bzimage, vmlinux] = kernels(directory.path());
    let mut kernel = fs::read(&vmlinux).expect("a kernel");
    let digits = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\0";
    let at = kernel.windows(digits.len()).position(|window| window == digits);
    kernel[at.expect("a table")] = b'x';
    fs::write(&bzimage, made::bzimage(&kernel)).expect("a kernel");
    let error = read_region_names(&bzimage).map(|_| ()).expect_err("no table");
    assert!(matches!(error, SymbolError::Kallsyms { .. }), "{error}");
    fs::write(&bzimage, &made::bzimage(&kernel)[..0x1000]).expect("a kernel");
    let error = read_region_names(&bzimage).map(|_| ()).expect_err("cut off");
    assert!(error.to_string().contains("cut off"), "{error}");
    // A program without symbols is no kernel, and has none.
    let other =
        made::elf(&[made::Part { address: made::TEXT, bytes: vec![0; 0x10_0000], flags: 5 }]);
    fs::write(&vmlinux, other).expect("a program");
    let names = read_region_names(&vmlinux).expect("a program");
    assert_eq!(names.find("_text"), Err(LookupError::Missing { near: vec![] }));
}

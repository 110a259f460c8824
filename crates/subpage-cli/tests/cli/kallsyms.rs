//! Lists of symbols as `/proc/kallsyms` and `System.map` have them.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use subpage_cli::policy::{
    AddressSpace, Draft, Names, PolicySource, SymbolError, SymbolFormat, read_region_names,
    read_symbols,
};

use crate::plain;

/// A list with everything that lists have.
const LIST: &str = "0000000000000000 A fixed_percpu_data\n\
    000000000001f000 D current_task\n\
    ffffffff81000000 T _text\r\n\
    ffffffff82a5a640 D modprobe_path\n\
    \n\
    ffffffff82b00000 d twin\n\
    ffffffff82b00040 d twin\n\
    ffffffff82c00000 b same\n\
    ffffffff82c00000 b same\n\
                     w __gmon_start__\n\
    ffffffffc0400000 t probe\t[virtio_net]\n\
    ffffffffc0400040 d twice\t[virtio_net]\n\
    ffffffff82d00000 d twice\n";

/// The rule that a policy about a file gives, or its mistakes.
fn resolve(directory: &Path, rule: &str) -> Result<(u64, u64), String> {
    let text = format!("version = 1\n[[rule]]\nname = \"x\"\n{rule}\n");
    let source = PolicySource::from_text(&directory.join("policy.toml"), text);
    match Draft::parse(source).resolve(&Names::default()) {
        Ok(policy) => {
            let range = policy.rules[0].rule.range;
            Ok((range.first().as_u64(), range.bytes()))
        }
        Err(mistakes) => Err(plain(&mistakes.render())),
    }
}

fn list(text: impl AsRef<[u8]>) -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("System.map");
    fs::write(&path, text).expect("list");
    (directory, path)
}

#[test]
fn a_symbol_of_a_list_lies_at_its_value_minus_the_kernels_map() {
    let (directory, _) = list(LIST);
    let resolve = |rule: &str| resolve(directory.path(), &format!("map = \"System.map\"\n{rule}"));
    let path = "symbol = \"modprobe_path\"\nlength = 256";
    assert_eq!(resolve(path), Ok((0x2a5_a640, 256)));
    assert_eq!(resolve(&format!("{path}\naddress = \"kernel\"")), Ok((0x2a5_a640, 256)));
    assert_eq!(resolve(&format!("{path}\nbias = 0x100_0000")), Ok((0x3a5_a640, 256)));
    let by_hand = format!("{path}\naddress = \"virtual\"\nbias = \"-0xffffffff80000000\"");
    assert_eq!(resolve(&by_hand), Ok((0x2a5_a640, 256)));
    let part = "symbol = \"modprobe_path\"\noffset = 0x80\nlength = 16";
    assert_eq!(resolve(part), Ok((0x2a5_a6c0, 16)));
    // Equal lines are one symbol, and what lies in a module is no candidate.
    assert_eq!(resolve("symbol = \"same\"\nlength = 1"), Ok((0x2c0_0000, 1)));
    assert_eq!(resolve("symbol = \"twice\"\nlength = 1"), Ok((0x2d0_0000, 1)));
    for (rule, message) in [
        ("symbol = \"modprobe_path\"", "does not say how long `modprobe_path` is"),
        ("symbol = \"twin\"\nlength = 1", "0x2b00000, 0x2b00040"),
        ("symbol = \"modprobepath\"\nlength = 1", "the nearest known: `modprobe_path`"),
        ("symbol = \"probe\"\nlength = 1", "belongs to a loadable module"),
        ("symbol = \"current_task\"\nlength = 1", "below 0xffffffff80000000"),
        ("symbol = \"_text\"\nlength = 1\nbias = \"-0x100_0001\"", "lies at -0x1, outside"),
        ("symbol = \"_text\"\nlength = 1\naddress = \"virtual\"", "outside the 48 bits"),
        ("symbol = \"_text\"\nlength = 1\naddress = \"physical\"", "has no physical addresses"),
        ("symbol = \"_text\"\nlength = 1\naddress = \"bus\"", "unknown kind of address `bus`"),
        ("symbol = \"_text\"\nlength = 1\nelf = \"vmlinux\"", "has both `elf` and `map`"),
        ("range = \"1..2\"", "`map` does not fit this rule"),
    ] {
        let shown = resolve(rule).expect_err(rule);
        assert!(shown.contains(message), "{rule}: {shown}");
    }
}

#[test]
fn each_key_says_which_the_other_is() {
    let (directory, _) = list(LIST);
    let elf = env!("CARGO_BIN_EXE_subpage");
    let wrong = |rule: String| resolve(directory.path(), &rule).expect_err("the wrong key");
    let shown = wrong("symbol = \"x\"\nelf = \"System.map\"".to_owned());
    assert!(shown.contains("given by `map`"), "{shown}");
    let shown = wrong(format!("symbol = \"main\"\nlength = 1\nmap = \"{elf}\""));
    assert!(shown.contains("is an ELF file, not a list of symbols"), "{shown}");
    // An ELF file with kernel addresses: this program's lie far below them.
    let shown = wrong(format!("symbol = \"main\"\nelf = \"{elf}\"\naddress = \"kernel\""));
    assert!(shown.contains("below 0xffffffff80000000"), "{shown}");
}

#[test]
fn names_for_regions_come_from_either_format() {
    let (_directory, path) = list(LIST);
    let names = read_region_names(&path).expect("a list");
    assert_eq!(names.find("modprobe_path").expect("there").start, 0x2a5_a640);
    let names = read_region_names(Path::new(env!("CARGO_BIN_EXE_subpage"))).expect("ELF");
    assert!(names.find("main").expect("every program has one").length > 0);
}

#[test]
fn what_is_no_list_is_refused() {
    let error = |text: &[u8]| {
        let (_directory, path) = list(text);
        read_region_names(&path).expect_err("no list").to_string()
    };
    let zeros = b"0000000000000000 T _text\n0000000000000000 D modprobe_path\n";
    assert!(error(zeros).contains("as root"), "{}", error(zeros));
    assert!(error(b"").contains("no symbol in it"));
    // As Debian's packages have it; shorter sentences are as good.
    for stub in
        ["B The real System.map is in the linux-image-6.1.0-56-amd64-dbg package", "B it is away"]
    {
        let told = error(format!("ffffffffffffffff {stub}\n").as_bytes());
        assert!(told.contains("a line of text in its place, as Debian's do"), "{told}");
        assert!(
            told.contains("the image (vmlinuz) has the names") && told.contains("Leave `map` out"),
            "{told}"
        );
    }
    assert!(error(b"\n \n\t\n").contains("no symbol in it"));
    for text in [
        "a text of some length\n",
        "ffffffff81000000\n",
        "ffffffff81000000 T\n",
        "0xffffffff81000000 T _text\n",
        "+ffffffff8100000 T _text\n",
        "1ffffffff81000000 T _text\n",
        "ffffffff81000000 TT _text\n",
        "ffffffff81000000 T _text virtio_net\n",
        "ffffffff81000000 T _text [virtio_net] more\n",
        "ffffffff81000000 \u{7f} _text\n",
    ] {
        assert!(error(text.as_bytes()).contains("neither an ELF file nor"), "{text}");
        let later = LIST.to_owned() + text;
        assert!(error(later.as_bytes()).contains("line 14 of "), "{text}");
    }
    // A copy that was cut off is not half a list.
    let cut = &LIST[..LIST.len() - 12];
    assert!(error(cut.as_bytes()).contains("line 13 of "), "{cut}");
}

#[test]
fn the_limits_of_a_list_hold() {
    let (_directory, path) = list("");
    let file = fs::File::create(&path).expect("file");
    file.set_len((64 << 20) + 1).expect("length");
    let error = read_region_names(&path).expect_err("too long").to_string();
    assert!(error.contains("longer than 64 MiB"), "{error}");
    let mut many = String::with_capacity(4_000_001 * 7);
    for _ in 0..=4_000_000 {
        many.push_str("f T a\n");
    }
    fs::write(&path, &many).expect("file");
    assert!(matches!(read_region_names(&path), Err(SymbolError::TooMany { .. })));
    many.truncate(many.len() - 6);
    fs::write(&path, &many).expect("file");
    let space = AddressSpace::Virtual;
    let names = read_symbols(&path, SymbolFormat::Map, space).expect("within the limit");
    assert_eq!(names.iter().count(), 1);
    let mut text = String::new();
    for length in [4096, 4097] {
        writeln!(text, "ffffffff81000000 T {}", "n".repeat(length)).expect("a string");
    }
    fs::write(&path, text).expect("file");
    let names = read_symbols(&path, SymbolFormat::Map, space).expect("a list");
    assert_eq!(names.iter().count(), 1, "a name that is too long is left out");
}

/// The kernel's own list, if there is one: names, or told that the addresses are hidden.
#[test]
fn the_list_of_this_kernel_is_read() {
    let path = Path::new("/proc/kallsyms");
    if !path.exists() {
        println!("skipped: this system has no /proc/kallsyms");
        return;
    }
    match read_region_names(path) {
        Ok(names) => assert!(names.iter().next().is_some()),
        Err(SymbolError::Hidden { .. } | SymbolError::Empty { .. }) => {}
        Err(error) => panic!("{error}"),
    }
}

proptest! {
    /// Whatever the bytes: names or an error, never a panic.
    #[test]
    fn hostile_lists_never_panic(
        at in 0..LIST.len(),
        count in 0..40_usize,
        bytes in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut text = LIST.as_bytes().to_vec();
        let end = (at + count).min(text.len());
        text.splice(at..end, bytes);
        let (_directory, path) = list(text);
        for space in [AddressSpace::Virtual, AddressSpace::Physical, AddressSpace::Kernel] {
            if let Ok(names) = read_symbols(&path, SymbolFormat::Map, space) {
                prop_assert!(names.iter().all(|named| named.length == 0));
            }
        }
    }
}

/// Guarding the image's copy of them would be silently nothing once the kernel runs.
#[test]
fn per_processor_and_init_symbols_have_no_lasting_place() {
    let (directory, _) = list(
        "ffffffff81000000 T _text\n\
         ffffffff83169420 T modprobe_path\n\
         ffffffff838ac000 B __init_begin\n\
         ffffffff8394a900 D boot_command_line\n\
         ffffffff83cc4000 D __per_cpu_start\n\
         ffffffff83cdc018 D current_task\n\
         ffffffff83cfa000 D __per_cpu_end\n\
         ffffffff83cfb000 D __init_end\n",
    );
    let resolve = |name: &str| {
        let rule = format!("map = \"System.map\"\nsymbol = \"{name}\"\nlength = 8");
        resolve(directory.path(), &rule)
    };
    assert_eq!(resolve("modprobe_path"), Ok((0x316_9420, 8)));
    assert_eq!(resolve("__init_end"), Ok((0x3cf_b000, 8)));
    for (name, reason) in [
        ("current_task", "per-processor data"),
        ("__per_cpu_start", "per-processor data"),
        ("boot_command_line", "for the kernel's start only"),
        ("__per_cpu_end", "for the kernel's start only"),
    ] {
        let shown = resolve(name).expect_err("it has no lasting place");
        assert!(shown.contains(reason), "{name}: {shown}");
    }
}

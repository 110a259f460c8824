//! `subpage compile`, up to the hypervisor that loads what it wrote.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use subpage::address::PhysicalWidth;
use subpage::domain::Domain;
use subpage::frames::HeapFrames;
use subpage::rules::{Action, Owner, Rule, RuleId};
use subpage_cli::compile_command::{MAX_PAGES, compile};
use subpage_cli::policy::{Draft, Names, Policy, PolicySource, read_region_names};
use subpage_linux::FirstProgram;
use subpage_vmx::policy;

use crate::assert_golden;

const POLICY: &str = "version = 1\n\
    [[rule]]\nname = \"page tables\"\nrange = \"0x9000..0xb000\"\nlocked = true\n\
    [[rule]]\nname = \"log\"\nrange = \"0x20_0080..0x20_0081\"\naction = \"log\"\nowner = 1\n";

/// The program, which has symbols and load segments.
const ELF: &str = env!("CARGO_BIN_EXE_subpage");

fn run(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(ELF)
        .arg("compile")
        .args(arguments)
        .current_dir(directory)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .expect("the program starts")
}

/// The rules that a hypervisor has after it has loaded a module.
fn loaded(module: &[u8]) -> Vec<Rule> {
    let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
    domain.enable().expect("memory");
    let (_, token) = policy::load(&mut domain, module).expect("a policy");
    domain.finish(&token.without_processors());
    domain.rules().iter().map(|active| active.rule).collect()
}

fn resolved(text: &str) -> Policy {
    let source = PolicySource::from_text(Path::new("policy.toml"), text.to_owned());
    Draft::parse(source).resolve(&Names::default()).expect("a policy")
}

/// A directory with a policy, and the path of the module.
fn place(policy: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("directory");
    fs::write(directory.path().join("policy.toml"), policy).expect("policy");
    let module = directory.path().join("policy.bin");
    (directory, module)
}

fn files(directory: &Path) -> usize {
    fs::read_dir(directory).expect("directory").count()
}

#[test]
fn the_hypervisor_loads_what_is_compiled() {
    let (directory, module) = place(POLICY);
    let output = run(directory.path(), &["--policy", "policy.toml", "-o", "policy.bin"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout.is_empty());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "policy.bin  2 rules  232 B\n");
    let bytes = fs::read(&module).expect("module");
    let rules = loaded(&bytes);
    let expected: Vec<Rule> = resolved(POLICY).rules.iter().map(|rule| rule.rule).collect();
    assert_eq!(rules, expected);
    assert_eq!((rules[0].locked, rules[0].owner), (true, Owner::HOST));
    assert_eq!((rules[1].action, rules[1].owner), (Action::Log, Owner(1)));
    // Written over, the same bytes, and nothing next to them.
    let output = run(directory.path(), &["-p", "policy.toml", "--output", "policy.bin"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(fs::read(&module).expect("module"), bytes);
    assert_eq!(files(directory.path()), 2);
}

#[test]
fn regions_are_symbols_of_the_file() {
    let text = "version = 1\n[[rule]]\nname = \"x\"\nregion = \"main\"\nlength = 1\n";
    let (directory, module) = place(text);
    let arguments = ["-p", "policy.toml", "--symbols", ELF, "-o", "policy.bin"];
    let output = run(directory.path(), &arguments);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let rules = loaded(&fs::read(module).expect("module"));
    let names = read_region_names(Path::new(ELF)).expect("symbols");
    let main = names.find("main").expect("every program has one").start;
    assert_eq!((rules[0].range.first().as_u64(), rules[0].range.bytes()), (main, 1));
}

#[test]
fn regions_are_symbols_of_a_list() {
    let text = "version = 1\n[[rule]]\nname = \"x\"\nregion = \"modprobe_path\"\nlength = 256\n";
    let (directory, module) = place(text);
    let list = "ffffffff81000000 T _text\nffffffff82a5a640 D modprobe_path\n";
    fs::write(directory.path().join("System.map"), list).expect("list");
    let arguments = ["-p", "policy.toml", "--symbols", "System.map", "-o", "policy.bin"];
    let output = run(directory.path(), &arguments);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let rules = loaded(&fs::read(module).expect("module"));
    assert_eq!((rules[0].range.first().as_u64(), rules[0].range.bytes()), (0x2a5_a640, 256));
}

#[test]
fn bad_input_ends_with_2_and_leaves_the_old_module() {
    let (directory, module) = place("version = 1\n[[rule]]\nname = \"x\"\nregion = \"y z\"\n");
    let at = directory.path();
    fs::write(&module, "old").expect("file");
    fs::write(at.join("text"), "not an ELF file").expect("file");
    fs::write(
        at.join("large.toml"),
        POLICY.to_owned() + "[[rule]]\nname = \"large\"\nrange = \"0..0x1_0000_0000\"\n",
    )
    .expect("file");
    for (name, moment) in [("command.toml", "command"), ("init.toml", "init")] {
        let text = POLICY.to_owned() + &format!("arm = \"{moment}\"\n");
        fs::write(at.join(name), text).expect("file");
    }
    let cases: [(&str, &[&str]); 10] = [
        ("no-policy", &["-p", "missing.toml", "-o", "policy.bin"]),
        ("no-names", &["-p", "policy.toml", "-o", "policy.bin"]),
        ("no-such-symbol", &["-p", "policy.toml", "--symbols", ELF, "-o", "policy.bin"]),
        ("not-elf", &["-p", "policy.toml", "--symbols", "text", "-o", "policy.bin"]),
        ("too-large", &["-p", "large.toml", "-o", "policy.bin"]),
        ("in-no-directory", &["-p", "policy.toml", "-o", "no/policy.bin"]),
        ("waits-for-a-command", &["-p", "command.toml", "-o", "policy.bin"]),
        ("waits-for-no-kernel", &["-p", "init.toml", "-o", "policy.bin"]),
        ("waits-for-a-program", &["-p", "init.toml", "--symbols", ELF, "-o", "policy.bin"]),
        ("is-a-directory", &["-p", "policy.toml", "-o", "."]),
    ];
    let mut all = String::new();
    for (name, arguments) in cases {
        let output = run(at, arguments);
        assert_eq!(output.status.code(), Some(2), "{name}");
        assert!(output.stdout.is_empty(), "{name}");
        let shown = arguments.join(" ").replace(ELF, "ELF");
        let errors = String::from_utf8_lossy(&output.stderr);
        write!(all, "=== {name}: subpage compile {shown}\n{errors}").expect("a string");
        assert_eq!(fs::read(&module).expect("module"), b"old", "{name}");
        assert_eq!(files(at), 6, "{name}: something is left behind");
    }
    assert_golden("commands/compile-bad-input.txt", &all);
    assert_eq!(run(at, &["-p", "policy.toml"]).status.code(), Some(2), "no output is named");
}

/// What arms at the first program is there, and not in force until the write that tells of it.
#[test]
fn rules_wait_for_the_first_program() {
    let text = POLICY.to_owned() + "arm = \"init\"\n";
    let first = FirstProgram { at: 0x30_0008, running: 3 };
    let module = compile(&resolved(&text), Some(first)).expect("within the limit");
    let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
    domain.enable().expect("memory");
    let (policy, token) = policy::load(&mut domain, &module).expect("a policy");
    domain.finish(&token.without_processors());
    assert_eq!(
        policy.to_string(),
        "policy: 3 rules (1 locked), 0 access maps, 0 tracked ranges; 1 rules hold from the first program on"
    );
    let mut waiting = policy.waiting.expect("one rule waits");
    let tells = domain.rules().iter().last().expect("three rules");
    assert_eq!(tells.rule.name.as_str(), "system_state=3");
    assert_eq!((tells.rule.range.first().as_u64(), tells.rule.range.bytes()), (0x30_0008, 4));
    for (rule, bytes) in
        [(None, [3, 0, 0, 0]), (Some(RuleId(1)), [3, 0, 0, 0]), (Some(tells.id), [2, 0, 0, 0])]
    {
        waiting.look(rule, &bytes);
        assert!(!waiting.over, "{rule:?} {bytes:?}");
    }
    waiting.look(Some(tells.id), &[3, 0, 0, 0]);
    assert!(waiting.over);
    let without = compile(&resolved(&text), None).expect("within the limit");
    let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
    domain.enable().expect("memory");
    let error = policy::load(&mut domain, &without).expect_err("nothing tells");
    assert!(error.to_string().contains("rules wait for the first program"), "{error}");
}

/// The limit is the hypervisor's, and what is just within it is loaded.
#[test]
fn the_largest_policy_is_loaded() {
    assert_eq!(MAX_PAGES, policy::MAX_PAGES);
    let text = "version = 1\n[[rule]]\nname = \"all\"\nrange = \"0..0x1_0000_0000\"\n";
    assert_eq!(loaded(&compile(&resolved(text), None).expect("within the limit")).len(), 1);
}

/// Names are those of a kernel's image, and nothing is written if there are none.
#[test]
fn names_need_a_kernel() {
    let (directory, module) = place(POLICY);
    let at = directory.path();
    let names = at.join("kernel.names");
    let arguments = ["--policy", "policy.toml", "-o", "policy.bin", "--names", "kernel.names"];
    let output = run(at, &arguments);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--symbols"), "{output:?}");
    let output = run(at, &[&arguments[..], &["--symbols", ELF]].concat());
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("no names of functions from "), "{said}");
    let same = ["--policy", "policy.toml", "-o", "x", "--names", "./x", "--symbols", ELF];
    let output = run(at, &same);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(!names.exists() && !module.exists());
}

//! What is found wrong before a guest starts.

use std::fs;
use std::process::{Command, Stdio};

use super::{LIST, Place, can_run, endless};

#[test]
fn bad_input_is_found_before_the_guest_starts() {
    if !can_run() {
        return;
    }
    let place = Place::new(&endless());
    fs::write(place.path("text"), "no socket").expect("file");
    let wrong = |more: &[&str], told: &str| {
        let output = place.run(more);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{more:?}: {errors}");
        assert!(errors.contains(told), "{more:?}: {errors}");
        assert!(output.stdout.is_empty(), "{more:?}");
    };
    wrong(&["--memory", "1M"], "guest memory of 1 MiB is not a multiple");
    wrong(&["--memory", "2M"], "the rule `helper path` (policy.toml:4) guards 0x200080");
    wrong(&["--memory", "2M"], "the guest would need 3 MiB; give it more by `--memory`");
    for nothing in ["", " ", ",", "avx,", "avx,,cx16"] {
        wrong(&["--cpu", nothing], "a name is empty: write for example `-avx,cx16`");
    }
    wrong(&["--cpu", "-avx9"], "there is no feature `avx9`; the names are sse3, ");
    wrong(&["--cpu", "avx,-xsave"], "`avx` is asked for, and so is `-xsave`");
    let devices =
        super::POLICY.replace("region = \"helper_path\"\nlength = 128", "range = \"0xfee00000+8\"");
    fs::write(place.path("policy.toml"), devices).expect("policy");
    wrong(&[], "devices lie from 3 to 4 GiB, however much memory the guest has; correct the rule");
    fs::write(place.path("policy.toml"), super::POLICY).expect("policy");
    wrong(&["--initrd", "missing"], "missing");
    wrong(&["--control", "text"], "exists and is no socket");
    let moved = LIST.replace("80100000 T", "a0100000 T");
    fs::write(place.path("System.map"), moved).expect("list");
    wrong(&[], "this guest is loaded at 0x100000");
    fs::write(place.path("System.map"), "ffffffff80100000 T _text\n").expect("list");
    wrong(&[], "there is no region `helper_path`");
    assert!(!place.path("socket").exists());
}

/// An ELF file brings its own names, and says itself where it lies.
#[test]
fn a_program_that_is_not_one_is_told() {
    if !can_run() {
        return;
    }
    let place = Place::new(&[]);
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/kernel/guest.elf");
    let image = fs::read(example).expect("the example");
    let policy = |region: &str| {
        let text = format!("version = 1\n[[rule]]\nname = \"path\"\n{region}\n");
        fs::write(place.path("policy.toml"), text).expect("policy");
    };
    let wrong = |image: &[u8], more: &[&str], told: &[&str]| {
        fs::write(place.path("guest"), image).expect("guest");
        let arguments = [&["guard", "-p", "policy.toml"], more, &["guest"]].concat();
        let output = place.program(&arguments).output().expect("the program starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{told:?}: {errors}");
        assert!(output.stdout.is_empty());
        for part in told {
            assert!(errors.contains(part), "{part}: {errors}");
        }
    };
    policy("region = \"modprobe_path\"");
    wrong(
        &image[..image.len() / 2],
        &[],
        &["guest cannot be read as ELF", "a whole ELF file is needed"],
    );
    wrong(&image, &["--memory", "2M"], &["segment 0", "give the guest more memory"]);
    wrong(&image, &["--load-address", "0x100000"], &["leave it out"]);
    wrong(&image, &["--cpus", "0"], &["'0' for '--cpus <N>'", "1..=254"]);
    wrong(
        &image,
        &["--memory", "lots"],
        &["'lots' for '--memory <SIZE>'", "write for example 128M"],
    );
    wrong(
        &image,
        &["--memory", "900000G"],
        &["900000 GiB is not a multiple of 4096 bytes from 2 MiB to 255 GiB"],
    );
    wrong(
        b"text",
        &[],
        &["guest is neither a trace, an ELF file, a Multiboot kernel nor", "--load-address"],
    );
    let twice = "ffffffff80200000 D modprobe_path\nffffffff80200080 D modprobe_path\n";
    fs::write(place.path("twice"), twice).expect("list");
    wrong(&image, &["--symbols", "twice"], &["2 regions are called `modprobe_path`", "`range`"]);
    policy("region = \"modprob_path\"");
    wrong(&image, &[], &["there is no region `modprob_path`", "policy.toml:4", "`modprobe_path`"]);

    policy("range = \"0x202100..0x202180\"");
    wrong(&image[..image.len() / 2], &[], &["`guest`: segment", "beyond the end"]);
    wrong(&image[..100], &[], &["`guest`: the ELF file is cut off"]);
    let mut damaged = image.clone();
    // The offset of the first segment's bytes in the file.
    damaged[64 + 8..64 + 16].fill(0xff);
    wrong(&damaged, &[], &["`guest`: segment 0", "beyond the end"]);
    // The kind of processor.
    damaged.clone_from(&image);
    damaged[18] = 0xb7;
    wrong(&damaged, &[], &["not a 64-bit little-endian one for x86-64"]);
    wrong(&image, &["--input", "nowhere"], &["cannot read the input nowhere", "No such file"]);
    wrong(&image, &["--input", "."], &["cannot read the input .", "directory"]);

    // The memory of a guest is a file, and a file beyond the limit would end the process.
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f 1000; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_subpage")]);
    limited.args(["guard", "-p", "policy.toml", "guest"]).current_dir(&place.directory);
    let output = limited.stdin(Stdio::null()).output().expect("starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("(`ulimit -f`), or give the guest less memory"), "{errors}");

    fs::remove_file(place.path("guest")).expect("it was there");
    let missing = place.program(&["guard", "-p", "policy.toml", "guest"]).output().expect("starts");
    let errors = String::from_utf8_lossy(&missing.stderr);
    assert_eq!(missing.status.code(), Some(2));
    assert!(errors.contains("cannot read the guest guest: No such file"), "{errors}");
}

/// What is no file of code or trace is told by what it is.
#[test]
fn files_that_are_no_guests_are_told_by_their_kind() {
    let place = Place::new(&[]);
    fs::write(place.path("policy.toml"), "version = 1\nrule = []\n").expect("policy");
    fs::create_dir(place.path("directory")).expect("directory");
    fs::write(place.path("code"), [0xf4]).expect("file");
    let pipe = place.path("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("pipe");
    let told = |arguments: &[&str], parts: &[&str]| {
        let output = place.program(arguments).output().expect("the program starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        for part in parts {
            assert!(errors.contains(part), "{arguments:?}, {part}: {errors}");
        }
        // A wrong kind of message.
        assert!(!errors.contains("neither"), "{arguments:?}: {errors}");
    };
    for more in [&[][..], &["--load-address", "0x100000"]] {
        for (file, part) in [
            ("guest", "the guest guest: it is empty"),
            ("/dev/null", "the guest /dev/null: it is a device or a socket"),
            ("directory", "the guest directory"),
        ] {
            let arguments = [&["guard", "-p", "policy.toml"], more, &[file]].concat();
            told(&arguments, &[part]);
        }
    }
    for file in ["guest", "/dev/null", "directory"] {
        told(&["plan", file], &["cannot read the trace", file]);
        told(&["policy", "check", "policy.toml", file], &["cannot read the guest", file]);
    }
    told(&["plan", "/dev/null"], &["it is empty"]);
    // Nobody writes into the pipe: none of these may wait for it.
    told(&["guard", "--restore", "pipe"], &["pipe is not a snapshot of a guest"]);
    told(&["policy", "check", "policy.toml", "--symbols", "pipe"], &["pipe is not a regular file"]);
    told(
        &["compile", "-p", "policy.toml", "--symbols", "pipe", "-o", "m"],
        &["not a regular file"],
    );

    // From a pipe only a trace can be read.
    for option in [&["--load-address", "0x100000"][..], &["--backend", "kvm"]] {
        let arguments = [&["guard", "-p", "policy.toml"], option, &["pipe"]].concat();
        told(&arguments, &["does not fit pipe: from a pipe only a trace can be read"]);
    }
    for (bytes, part) in [
        (&b"\x7fELF and more of a program"[..], "any other guest has to be a regular file"),
        (b"", "it is empty"),
    ] {
        let mut command = place.program(&["guard", "-p", "policy.toml", "-"]);
        let mut child =
            command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let mut input = child.stdin.take().expect("piped");
        std::io::Write::write_all(&mut input, bytes).expect("room in the pipe");
        drop(input);
        let output = child.wait_with_output().expect("ends");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains(part), "{errors}");
    }
}

//! What the guest's serial port receives.

use std::fs;
use std::io::{Read, Write};
use std::process::Stdio;

use iced_x86::code_asm::{al, dx};

use super::{Place, assemble, can_run, exit};

/// Sends back what it receives, until that is a `q`.
fn echoing() -> Vec<u8> {
    assemble(|code| {
        let (mut again, mut end) = (code.create_label(), code.create_label());
        code.set_label(&mut again)?;
        code.mov(dx, 0x3fd)?;
        code.in_(al, dx)?;
        code.test(al, 1)?;
        code.je(again)?;
        code.mov(dx, 0x3f8)?;
        code.in_(al, dx)?;
        code.cmp(al, i32::from(b'q'))?;
        code.je(end)?;
        code.out(dx, al)?;
        code.jmp(again)?;
        code.set_label(&mut end)?;
        exit(code, 0)
    })
}

/// More than the port holds at once.
#[test]
fn a_file_reaches_the_guest_whole_and_in_order() {
    if !can_run() {
        return;
    }
    let place = Place::new(&echoing());
    let line = "a line that is longer than the port is\n";
    let text = format!("{}q and no more", line.repeat(20));
    fs::write(place.path("text"), text).expect("file");
    let output = place.run(&["--json", "--input", "text"]);
    assert_eq!(output.status.code(), Some(0));
    let echoed = format!("guest| {line}").repeat(20);
    assert_eq!(String::from_utf8_lossy(&output.stderr), echoed);
}

/// The process at the other end of standard input holds nothing up.
#[test]
fn standard_input_that_stays_open_does_not_keep_the_program() {
    if !can_run() {
        return;
    }
    let place = Place::new(&echoing());
    let mut command = place.guard(&["--json", "--input", "-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(b"typed\nq").expect("it reads");
    // `wait` would close standard input; this end stays open until after the program has ended.
    let mut told = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut told).expect("text");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    assert_eq!(told, "guest| typed\n");
    drop(stdin);
}

/// Nothing is read that nobody asked for: a list that a script works through stays whole.
#[test]
fn standard_input_is_left_alone_otherwise() {
    if !can_run() {
        return;
    }
    let place = Place::new(&echoing());
    fs::write(place.path("byte"), "q").expect("file");
    fs::write(place.path("list"), "first\nsecond\n").expect("file");
    let mut list = fs::File::open(place.path("list")).expect("file");
    let mut command = place.guard(&["--json", "--input", "byte"]);
    command.stdin(list.try_clone().expect("the same file, at the same place"));
    let output = command.output().expect("starts");
    assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &b""[..]));
    let mut rest = String::new();
    list.read_to_string(&mut rest).expect("text");
    assert_eq!(rest, "first\nsecond\n");
}

//! Headers as bytes, and every rule that a reader checks.

use super::*;
use crate::build_id::MAX_BUILD_ID_BYTES;
use crate::code;

fn read(bytes: &[u8]) -> Result<Header, TraceError> {
    Header::read(&mut Counted::new(bytes))
}

#[test]
fn a_full_header_stays_below_its_limit() {
    let name = |i: u64| Name {
        name: format!("{i:0>255}"),
        start: (1 << 47) + i,
        length: 1 << 46,
        kind: NameKind::Object,
    };
    let process = |i: u16| Process {
        pid: u32::MAX,
        parent: i.checked_sub(1),
        command: "x".repeat(MAX_PROCESS_BYTES),
        build: BuildId::new(&[8; MAX_BUILD_ID_BYTES]).filter(|_| i < 1023),
        ..Process::default()
    };
    let processes: Vec<_> = (0..1024).map(process).collect();
    assert_eq!(processes.len(), MAX_PROCESSES);
    let header = Header {
        is_machine: false,
        command: vec!["x".repeat(MAX_COMMAND_BYTES / MAX_ARGUMENTS); MAX_ARGUMENTS],
        names: Names::new((0..MAX_NAMES as u64).map(name)),
        processes,
        main: 1023,
        code: code::tests::full(),
        build: BuildId::new(&[7; MAX_BUILD_ID_BYTES]),
    };
    assert_eq!(read(&header.encode()).expect("readable"), header);
}

#[test]
fn a_command_that_is_too_long_is_cut_at_a_word() {
    let header = Header {
        is_machine: false,
        command: vec!["a".into(), "b".repeat(MAX_COMMAND_BYTES), "c".into()],
        ..Header::default()
    };
    assert_eq!(read(&header.encode()).expect("readable").command, ["a"]);
    let header = Header { command: vec![String::new(); 5000], ..Header::default() };
    assert_eq!(read(&header.encode()).expect("readable").command.len(), MAX_ARGUMENTS);
}

fn of_three() -> Header {
    let process = |pid, parent, command: &str| Process {
        pid,
        parent,
        command: command.to_owned(),
        ..Process::default()
    };
    let name = Name { name: "c".into(), start: 0x1000, length: 8, kind: NameKind::Object };
    let mut child = process(8, Some(0), "ls");
    child.names = Names::new([name.clone()]);
    Header {
        command: vec!["env".into(), "prog".into()],
        names: Names::new([name]),
        processes: vec![process(7, None, "env prog"), child, process(7, Some(0), "prog")],
        main: 2,
        ..Header::default()
    }
}

#[test]
fn several_processes_have_their_places() {
    let header = of_three();
    let bytes = header.encode();
    assert_eq!(bytes[8], 2, "readers of one process only must not take it for one");
    assert_eq!(read(&bytes).expect("readable"), header);
    let mut long = of_three();
    long.processes[1].command = "é".repeat(MAX_PROCESS_BYTES);
    let cut = read(&long.encode()).expect("readable").processes[1].command.len();
    assert_eq!(cut, MAX_PROCESS_BYTES);
}

#[test]
fn code_stands_with_its_process() {
    for (main, child) in [(true, false), (false, true), (true, true)] {
        let mut header = of_three();
        if main {
            header.code = code::tests::code();
        }
        if child {
            header.processes[1].code = code::tests::code();
        }
        let bytes = header.encode();
        assert_eq!(bytes[8], 3);
        assert_eq!(read(&bytes).expect("readable"), header);
    }
    let alone = Header { code: code::tests::code(), ..Header::default() };
    assert_eq!(read(&alone.encode()).expect("readable"), alone);
    // It is there once.
    let mut header = of_three();
    header.processes[2].code = code::tests::code();
    assert!(std::panic::catch_unwind(move || header.encode()).is_err());
    let mut content = vec![0, 0, 1, 0, 7, 0, 0, 0, 0, 0];
    code::tests::code().put(&mut content);
    assert_eq!(decode(&content, NAMED_CODE), Err("the code of the main process stands with it"));
    assert_eq!(decode(&[0, 0, 0, 0, 0], NAMED_CODE), Err("an instruction is cut off"));
    assert_eq!(decode(&[0, 0, 0, 0, 0, 0], NAMED_CODE), Ok(Header::default()));
}

#[test]
fn builds_stand_with_their_processes() {
    let build = |byte| BuildId::new(&[byte; 20]);
    for (main, child) in [(true, false), (false, true), (true, true)] {
        let mut header = of_three();
        header.build = build(1).filter(|_| main);
        header.processes[1].build = build(2).filter(|_| child);
        let bytes = header.encode();
        assert_eq!(bytes[8], 4);
        assert_eq!(read(&bytes).expect("readable"), header);
    }
    let alone = Header { build: build(1), ..Header::default() };
    assert_eq!(read(&alone.encode()).expect("readable"), alone);
    // It is there once.
    let mut header = of_three();
    header.processes[2].build = build(1);
    assert!(std::panic::catch_unwind(move || header.encode()).is_err());
    assert_eq!([BuildId::new(&[]), BuildId::new(&[0; 65])], [None, None]);
    // A trace of one process, and of one among several.
    let alone = [0; 6];
    let several = [0, 0, 1, 0, 7, 0, 0, 0, 0, 0, 0, 0];
    for (content, rest, rule) in [
        (&alone[..], &[][..], "a build's number is cut off"),
        (&alone, &[2, 1], "a build's number is cut off"),
        (&alone, &[65], "a build's number is longer than 64 bytes"),
        (&alone, &[1, 1, 0], "bytes follow the end of the header"),
        (&several, &[0, 1, 1], "the build of the main process stands with it"),
    ] {
        assert_eq!(decode(&[content, rest].concat(), KNOWN_BUILD), Err(rule), "{rest:?}");
    }
    assert_eq!(decode(&[&alone[..], &[0]].concat(), KNOWN_BUILD), Ok(Header::default()));
}

#[test]
fn a_machine_is_told_from_a_program() {
    let machine = Header { is_machine: true, ..Header::default() };
    let bytes = machine.encode();
    assert_eq!(u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]), VERSION);
    assert_eq!(read(&bytes).expect("readable"), machine);
    let program = [0; 7];
    for (rest, expected) in [
        (&[0][..], Ok(Header::default())),
        (&[1], Ok(machine)),
        (&[2], Err("what was recorded is neither a program nor a machine")),
        (&[], Err("what was recorded is cut off")),
        (&[1, 0], Err("bytes follow the end of the header")),
    ] {
        assert_eq!(decode(&[&program[..], rest].concat(), VERSION), expected, "{rest:?}");
    }
}

/// All together have the room of one.
#[test]
fn code_of_too_many_is_refused() {
    let mut header = of_three();
    header.code = code::tests::full();
    header.encode();
    header.processes[1].code = code::tests::code();
    assert!(std::panic::catch_unwind(move || header.encode()).is_err());
    let mut content = vec![0, 0, 2, 0, 7, 0, 0, 0, 8, 0, 0, 0];
    code::tests::full().put(&mut content);
    content.extend([0, 0, 1, 1, b'a', 0]);
    assert_eq!(decode(&content, NAMED_CODE), Err("there are more than 65,536 texts"));
}

fn some_names(count: u64) -> Names {
    let name = |i: u64| Name { name: "n".into(), start: i, length: 1, kind: NameKind::Object };
    Names::new((0..count).map(name))
}

/// What a reader would refuse is not written.
#[test]
fn a_header_that_breaks_a_rule_is_not_encoded() {
    let encodes = |change: fn(&mut Header)| {
        let mut header = of_three();
        change(&mut header);
        std::panic::catch_unwind(move || header.encode()).is_ok()
    };
    assert!(encodes(|_| {}));
    // With one name in the header and one in the child.
    assert!(encodes(|header| header.processes[0].names = some_names(65_534)));
    for change in [
        (|header| header.processes[0].names = some_names(65_535)) as fn(&mut Header),
        |header| header.processes.resize(1025, Process::default()),
        |header| header.main = 3,
        |header| header.main = 1,
        |header| header.processes[0].parent = Some(0),
        |header| header.processes[1].parent = Some(2),
        |header| header.processes.clear(),
    ] {
        assert!(!encodes(change));
    }
}

#[test]
fn processes_that_break_a_rule_are_refused_with_the_rule() {
    let limits = "a process breaks its limits";
    let many = "there are more than 65,536 names";
    // As long as it may be and one byte longer.
    let with_command = |length: usize| {
        let mut processes = vec![1, 0, 7, 0];
        put_text(&mut processes, &"x".repeat(length));
        processes.push(0);
        processes
    };
    let (fits, long) = (with_command(MAX_PROCESS_BYTES), with_command(MAX_PROCESS_BYTES + 1));
    let content = [&[0, 0][..], &fits].concat();
    let header = decode(&content, SEVERAL_PROCESSES).expect("right");
    assert_eq!(header.processes[0].command.len(), MAX_PROCESS_BYTES);
    // One name, and 65,536 more.
    let (one, full) = ([1, 1, b'n', 1, 0x10, 8], [0x80, 0x80, 4]);
    let second = [&[2, 0, 7, 0, 0, 0, 8, 0, 0][..], &full].concat();
    let third = [&[3, 0, 7, 0, 0, 0, 8, 0, 0][..], &one, &[9, 0, 0], &full].concat();
    for (processes, rule) in [
        (&[][..], "a process is cut off"),
        (&[0], "there is no process"),
        (&[1], "a process is cut off"),
        (&[1, 1], limits),
        (&[0x81, 8, 0], limits),
        (&[1, 0], "a process is cut off"),
        (&[1, 0, 7], "a process is cut off"),
        (&[1, 0, 7, 1], limits),
        (&[1, 0, 0xff, 0xff, 0xff, 0xff, 0x10, 0], limits),
        (&[1, 0, 7, 0, 1], "a text is cut off"),
        (&[1, 0, 7, 0, 0], "the names are cut off"),
        (&[1, 0, 7, 0, 0, 0x81, 0x80, 4], many),
        (&[1, 0, 7, 0, 0, 0, 0], "bytes follow the end of the header"),
        (&long, limits),
        (&second, "a text is cut off"),
        (&third, many),
        (&[&[1, 0, 7, 0, 0][..], &one].concat(), "the names of the main process stand with it"),
    ] {
        let content = [&[0, 0][..], processes].concat();
        assert_eq!(decode(&content, SEVERAL_PROCESSES), Err(rule), "{processes:?}");
    }
    // The header's own names count as well.
    let content = [&[0][..], &one, &second].concat();
    assert_eq!(decode(&content, SEVERAL_PROCESSES), Err(many));
}

#[test]
fn a_lying_length_takes_no_memory() {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(MAX_CONTENT.to_le_bytes());
    assert!(matches!(read(&bytes), Err(TraceError::Truncated { offset: 16, .. })));
    bytes.truncate(12);
    bytes.extend(u32::MAX.to_le_bytes());
    assert!(matches!(read(&bytes), Err(TraceError::Header { .. })));
    bytes[8] = 9;
    assert!(matches!(read(&bytes), Err(TraceError::Version { found: 9, known: 5 })));
}

#[test]
fn content_that_breaks_a_rule_is_refused_with_the_rule() {
    let name = |text: &[u8], rest: &[u8]| {
        let mut content = vec![0, 1];
        varint::put(&mut content, text.len() as u64);
        content.extend(text);
        content.extend(rest);
        content
    };
    assert_eq!(decode(&name(b"ok", &[1, 0x10, 8]), ONE_PROCESS).expect("right").names.len(), 1);
    let limits = "a name breaks its limits";
    for (content, rule) in [
        (vec![], "the command is cut off"),
        (vec![0], "the names are cut off"),
        (vec![0xff, 0xff, 0x7f], "the command has more than 4,096 words"),
        (vec![1, 5, b'x'], "a text is cut off"),
        (vec![1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], "a text is cut off"),
        (vec![1, 1, 0xff, 0], "a text is not UTF-8"),
        (vec![0, 0x81, 0x80, 4], "there are more than 65,536 names"),
        (vec![0, 0, 0], "bytes follow the end of the header"),
        (name(b"ok", &[]), "a name is cut off"),
        (name(b"ok", &[4, 0x10, 8]), "a name is of an unknown kind"),
        (name(b"ok", &[1, 0x10]), "a name is cut off"),
        (name(b"ok", &[1, 0x10, 0]), limits),
        (name(b"", &[1, 0x10, 8]), limits),
        (name(b"\x1b[31m", &[1, 0x10, 8]), limits),
        (name(&[b'x'; 256], &[1, 0x10, 8]), limits),
        (name(b"ok", &[1, 0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]), limits),
    ] {
        assert_eq!(decode(&content, ONE_PROCESS), Err(rule), "{content:?}");
    }
}

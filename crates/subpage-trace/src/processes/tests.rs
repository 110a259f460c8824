//! Processes by their text alone: numbers that no process has, and this test's own.

use std::collections::VecDeque;
use std::process;

use super::*;

/// Numbers above all that Linux gives.
const MAIN: u32 = 1 << 23;
const CHILD: u32 = MAIN + 1;
const OTHER: u32 = MAIN + 2;

/// Text that is there already.
struct Script {
    pid: u32,
    texts: VecDeque<(u32, String)>,
}

impl TextSource for Script {
    fn pid(&self) -> u32 {
        self.pid
    }

    fn began(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    fn receive(&mut self, out: &mut [u8]) -> io::Result<Option<(u32, usize)>> {
        Ok(self.texts.pop_front().map(|(pid, text)| {
            out[..text.len()].copy_from_slice(text.as_bytes());
            (pid, text.len())
        }))
    }

    fn hurry(&mut self) {}
}

fn processes(pid: u32, texts: &[(u32, String)]) -> Processes<Script> {
    let script = Script { pid, texts: texts.iter().cloned().collect() };
    Processes::new(script, Path::new("/program"), true)
}

/// What a program prints at its start, and one write.
fn start(pid: u32, address: u64) -> (u32, String) {
    let text = format!("=={pid}== {BANNER}\n=={pid}== Command: program {address:x}\n");
    (pid, text + &store(pid, address).1)
}

fn store(pid: u32, address: u64) -> (u32, String) {
    (pid, format!("I  401000,4\n S {address:x},8\n"))
}

/// Image and address of every write, to the end.
fn writes(processes: &mut Processes<Script>) -> Vec<(u16, u64)> {
    let mut all = Vec::new();
    let mut writes = Vec::new();
    while let Some(next) = processes.next(&mut writes).expect("memory does not fail") {
        let Next::Writes(image) = next else { panic!("{next:?}") };
        all.extend(writes.drain(..).map(|write| (image, write.address)));
    }
    all
}

/// The recorder panicked at the next line of a process that it had just let go.
#[test]
fn a_process_that_begins_when_there_are_too_many_images_is_let_go() {
    let texts = [
        start(MAIN, 0x10),
        start(CHILD, 0x20),
        // By an exec, with text after it; then it continues, execs again and forks.
        start(CHILD, 0x30),
        store(CHILD, 0x40),
        start(CHILD, 0x50),
        store(OTHER, 0x60),
        start(OTHER, 0x70),
        store(MAIN, 0x80),
        // The program itself as well.
        start(MAIN, 0x90),
        store(MAIN, 0xa0),
        start(MAIN, 0xb0),
    ];
    let mut processes = processes(MAIN, &texts);
    processes.most = 2;
    assert_eq!(writes(&mut processes), [(0, 0x10), (1, 0x20), (0, 0x80)]);
    assert!(processes.followed.is_empty());
    let (_, told) = processes.finish();
    assert_eq!((told.processes.len(), told.main, told.left_out), (2, 0, 3));
    assert_eq!(told.processes[1].command, "program 20");
    // Main and child each up to the line that says that they begin anew.
    assert_eq!(told.text.accesses(), 2 + 2 + 2);
    let bytes: usize = [0, 1, 2, 7, 8].iter().map(|&text| texts[text].1.len()).sum();
    assert_eq!(told.text.bytes, bytes as u64);
}

/// A fork without an image yet has none to lose.
#[test]
fn a_fork_that_finds_no_room_is_let_go() {
    let texts = [start(MAIN, 0x10), (CHILD, "I  401000".to_owned()), start(MAIN, 0x20)];
    let more = [(CHILD, ",4\n S 30,8\n S 38,8\n".to_owned()), store(MAIN, 0x40)];
    let mut processes = processes(MAIN, &[&texts[..], &more].concat());
    processes.most = 2;
    assert_eq!(writes(&mut processes), [(0, 0x10), (1, 0x20), (1, 0x40)]);
    let (_, told) = processes.finish();
    assert_eq!((told.processes.len(), told.main, told.left_out), (2, 1, 1));
}

#[test]
fn processes_left_out_are_counted_up_to_a_limit() {
    let texts: Vec<_> = (0..3000).map(|i| start(CHILD + i, 0x20)).collect();
    let mut processes = processes(MAIN, &[&[start(MAIN, 0x10)][..], &texts].concat());
    processes.most = 2;
    assert_eq!(writes(&mut processes).len(), 2);
    assert_eq!(processes.finish().1.left_out, MAX_PROCESSES);
}

/// This test as the program, which has names, and as a child of its own parent.
fn this_test() -> (u32, u32) {
    let own = process::id();
    (own, parent_of(own).expect("it has one"))
}

/// Before, a copy said that its program had ended.
#[test]
fn a_copy_shares_the_names_or_the_reason_why_there_are_none() {
    let (child, main) = this_test();
    for replaced in [false, true] {
        let mut processes = processes(main, &[start(main, 0x10)]);
        writes(&mut processes);
        let names = Rc::new(Names::default());
        let began = processes.images[0].began;
        processes.images[0].space.program = Some(("/program".into(), PLACE));
        processes.images[0].names =
            if replaced { Err(ElfError::Replaced) } else { Ok(Rc::clone(&names)) };
        processes.traced.texts.push_back(store(child, 0x20));
        assert_eq!(writes(&mut processes), [(1, 0x20)]);
        let copy = &processes.images[1];
        assert_eq!(
            (copy.parent, copy.command.as_str(), copy.began),
            (Some(0), "program 10", began)
        );
        match &copy.names {
            Ok(shared) => assert!(!replaced && Rc::ptr_eq(shared, &names)),
            Err(reason) => assert!(replaced && matches!(reason, ElfError::Replaced), "{reason}"),
        }
    }
}

const PLACE: crate::elf::Placement = crate::elf::Placement { address: 0x10_0000, offset: 0 };

/// Every later program was taken for one that was changed, if it was built during the recording.
#[test]
fn a_program_is_compared_with_its_own_start() {
    let (own, _) = this_test();
    for is_first in [true, false] {
        let main = if is_first { own } else { MAIN };
        let mut processes = processes(main, &[start(main, 0x10), start(own, 0x20)]);
        assert_eq!(writes(&mut processes), [(0, 0x10), (1, 0x20)]);
        let names = |image: usize| processes.images[image].names.as_ref();
        // The first began long before this test was built, if the script is believed.
        let first = names(0).expect_err("no names");
        assert_eq!(matches!(first, ElfError::Replaced), is_first, "{first}");
        assert!(names(1).expect("it was built before").find("program:.data").is_ok());
    }
}

#[test]
fn names_of_others_are_held_as_far_as_there_is_room() {
    let (own, _) = this_test();
    let count = |room: usize, main: u32, images: usize| {
        let texts: Vec<_> = (0..images).map(|_| start(own, 0x20)).collect();
        let mut processes = processes(main, &[&[start(main, 0x10)][..], &texts].concat());
        processes.room = room;
        writes(&mut processes);
        let names =
            processes.images.iter().map(|image| image.names.as_ref().map_or(0, |n| n.len()));
        (names.skip(1).collect::<Vec<_>>(), processes.room, processes.names_left_out)
    };
    let (all, room, _) = count(MAX_NAMES, MAIN, 1);
    let all = all[0];
    assert!(all > 3 && room == MAX_NAMES - all);
    // One fits. The next one is read, and no other.
    assert_eq!(count(2 * all - 1, MAIN, 3), (vec![all, 0, 0], 0, all));
    // The main one always has its names, and loses them when it becomes another.
    assert_eq!(count(0, own, 3), (vec![0, 0, all], 0, 2 * all));
    assert_eq!(count(all + 1, own, 3), (vec![all, 0, all], 1, all));
}

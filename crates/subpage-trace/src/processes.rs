//! The processes of a recorded program, told apart.

mod image;
mod text;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::SystemTime;

use crate::address_space::{AddressSpace, Extents};
use crate::code::{Code, Room};
use crate::elf::{ElfError, mapped_program};
use crate::header::{MAX_PROCESSES, Process};
use crate::lackey::{Item, LackeyReader, LackeySummary};
use crate::names::{MAX_NAMES, Names};
use crate::packets::{self, MAX_PACKET, Packet};
use crate::spool::{Next, Source};
use crate::stores_tool;
use crate::write::Write;
use image::Image;
pub(crate) use text::TextSource;
use text::Waiting;

/// Bytes received at once: any packet.
const CHUNK: usize = 1 << 16;
const _: () = assert!(MAX_PACKET <= CHUNK);
/// Buffer of one process, whose text comes in chunks that are held already.
const BUFFER: usize = 1 << 13;
/// Chunks of text after which the address space counts as not to be found.
const LOOKS: u32 = 64;
/// Storing instructions that are remembered.
const MAX_STORES: usize = 1 << 20;
/// Functions and lines, of all programs, that are held until the end.
const MAX_CODE: usize = 10 << 20;
/// Messages of Valgrind that are passed on.
const MAX_MESSAGES: u64 = 100;
/// First line of what lackey prints at the start of a program.
const BANNER: &str = "Lackey, an example Valgrind tool";

/// The same of our own tool, by its name with a capital.
fn is_banner(text: &str) -> bool {
    let own = text.strip_suffix(", a recorder of stores");
    text == BANNER || own.is_some_and(|name| name.eq_ignore_ascii_case(stores_tool::NAME))
}

/// A process that is followed.
struct Followed {
    text: LackeyReader<Waiting>,
    /// Its program now; none before its first item.
    image: Option<u16>,
}

/// All of them, as one source of writes.
pub(crate) struct Processes<T> {
    traced: T,
    program: PathBuf,
    children: bool,
    /// The most images, and the most processes followed at once.
    most: usize,
    followed: HashMap<u32, Followed>,
    images: Vec<Image>,
    /// Names that images besides the main one may still have; none more are read once it is 0.
    room: usize,
    /// Storing instructions that may still be remembered.
    stores_room: usize,
    /// Functions and lines that may still be held.
    code_room: usize,
    /// Names of images that had no room.
    names_left_out: usize,
    left_out: HashSet<u32>,
    /// What was read of processes that are followed no longer.
    read_before: LackeySummary,
    current: Option<u32>,
    messages: u64,
    /// Packets of our own tool, and what in them was none.
    packets: u64,
    malformed: u64,
    chunk: Box<[u8]>,
    bytes: u64,
}

/// What is known of all processes at the end.
pub(crate) struct Told {
    /// With their names, in the order of their start.
    pub(crate) processes: Vec<Process>,
    /// Place of the main one.
    pub(crate) main: u16,
    /// Why the main one's own data has no names.
    pub(crate) nameless: Option<ElfError>,
    /// Names that do not fit.
    pub(crate) names_left_out: usize,
    /// Processes that were not followed.
    pub(crate) left_out: usize,
    pub(crate) text: LackeySummary,
    /// Packets of our own tool.
    pub(crate) packets: u64,
    /// Stores of all of them that our own tool has told of, and that did not come.
    pub(crate) missing: u64,
    /// Those besides the main one of which our own tool has told no end, and that are no other program now.
    pub(crate) unfinished: usize,
    /// Our own tool has told of the main one's end, and all of its stores came.
    pub(crate) is_whole: bool,
}

/// What came.
enum Received {
    Text,
    /// Writes of an image, or none.
    Writes(Option<u16>),
    End,
}

impl<T: TextSource> Processes<T> {
    /// The program `program` that was just started, with its children if they are asked for.
    pub(crate) fn new(traced: T, program: &Path, children: bool) -> Self {
        Self {
            traced,
            // As the kernel names it in the mappings.
            program: program.canonicalize().unwrap_or_else(|_| program.to_owned()),
            children,
            most: MAX_PROCESSES,
            followed: HashMap::new(),
            images: Vec::new(),
            room: MAX_NAMES,
            stores_room: MAX_STORES,
            code_room: MAX_CODE,
            names_left_out: 0,
            left_out: HashSet::new(),
            read_before: LackeySummary::default(),
            current: None,
            messages: 0,
            packets: 0,
            malformed: 0,
            chunk: vec![0; CHUNK].into_boxed_slice(),
            bytes: 0,
        }
    }

    /// Takes in more text, or a packet.
    fn receive(&mut self, writes: &mut Vec<Write>) -> io::Result<Received> {
        let Some((pid, length)) = self.traced.receive(&mut self.chunk)? else {
            return Ok(Received::End);
        };
        self.bytes += length as u64;
        if !self.followed.contains_key(&pid) {
            let wanted = self.is_main(pid) || self.children && self.followed.len() < self.most;
            // Images only become more, so one that had to be left once is not taken in again.
            if !wanted || self.images.len() >= self.most {
                self.leave_out(pid);
                return Ok(Received::Text);
            }
            let text = LackeyReader::with_buffer(Waiting::default(), BUFFER);
            self.followed.insert(pid, Followed { text, image: None });
        }
        let chunk = std::mem::take(&mut self.chunk);
        let received = match Packet::parse(&chunk[..length]) {
            Packet::Text(text) => {
                self.look(pid);
                let followed = self.followed.get_mut(&pid).expect("just inserted");
                let waiting = followed.text.input_mut();
                waiting.text.clear();
                waiting.text.extend(text);
                waiting.at = 0;
                self.current = Some(pid);
                Received::Text
            }
            packet => Received::Writes(self.packet(pid, &packet, writes)),
        };
        self.chunk = chunk;
        Ok(received)
    }

    /// Takes in a packet; gives the image whose writes it held.
    fn packet(&mut self, pid: u32, packet: &Packet<'_>, writes: &mut Vec<Write>) -> Option<u16> {
        self.packets += 1;
        let image = match self.followed[&pid].image {
            Some(image) => image,
            // A copy of another process, which no start was told of.
            None => self.begin(pid, true)?,
        };
        let known = &mut self.images[usize::from(image)];
        match packet {
            Packet::Stores { records, total } => {
                let first = writes.len();
                self.malformed += packets::writes(records, writes);
                known.received += packets::count(records);
                known.is_whole = false;
                self.malformed += u64::from(!known.told(*total));
                for write in &writes[first..] {
                    known.extents.note(&known.space, *write);
                    known.note_store(write.pc, &mut self.stores_room);
                }
                return Some(image);
            }
            Packet::Maps(maps) => {
                if known.space.program.is_none() {
                    let program = if image == 0 { self.program.as_path() } else { Path::new("") };
                    let space = AddressSpace::of_maps(maps, program);
                    self.place(pid, image, space);
                }
            }
            Packet::End { total } => {
                self.malformed += u64::from(!known.told(*total));
                known.is_whole = known.received == *total;
            }
            Packet::Malformed | Packet::Text(_) => self.malformed += 1,
        }
        None
    }

    /// Whether the process is the program that was to be recorded.
    fn is_main(&self, pid: u32) -> bool {
        pid == self.traced.pid()
    }

    /// The process is followed no longer, or never was.
    fn leave_out(&mut self, pid: u32) {
        if let Some(followed) = self.followed.remove(&pid) {
            self.read_before.add(followed.text.summary());
        }
        if self.current == Some(pid) {
            self.current = None;
        }
        if self.left_out.len() < MAX_PROCESSES {
            self.left_out.insert(pid);
        }
    }

    /// The next item of the process whose text came last; none when all of it is read, or it had to be
    /// left out.
    fn take(&mut self) -> io::Result<Option<(u16, Item)>> {
        loop {
            let Some(pid) = self.current else { return Ok(None) };
            let followed = self.followed.get_mut(&pid).expect("it is followed");
            let item = match followed.text.next_item() {
                Ok(Some(item)) => item,
                Ok(None) => unreachable!("waiting text has no end"),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.current = None;
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
            match (item, followed.image) {
                (Item::Message(line), _) => {
                    if let Some(message) = self.message(pid, &line) {
                        let image = self.followed[&pid].image.unwrap_or_default();
                        return Ok(Some((image, Item::Message(message))));
                    }
                }
                (Item::Write(write), Some(image)) => {
                    let known = &mut self.images[usize::from(image)];
                    known.extents.note(&known.space, write);
                    known.note_store(write.pc, &mut self.stores_room);
                    return Ok(Some((image, Item::Write(write))));
                }
                // A copy of another process, which no start was told of.
                (Item::Write(write), None) => {
                    if let Some(image) = self.begin(pid, true) {
                        return Ok(Some((image, Item::Write(write))));
                    }
                }
            }
        }
    }

    /// What a line of Valgrind says to people; nothing if it is only told that a program starts.
    fn message(&mut self, pid: u32, line: &str) -> Option<String> {
        let text = ["==", "--"].into_iter().find_map(|mark| {
            line.strip_prefix(mark)?.strip_prefix(&pid.to_string())?.strip_prefix(mark)
        });
        let text = text.unwrap_or(line).trim();
        if is_banner(text) {
            self.begin(pid, false);
            return None;
        }
        if let Some(command) = text.strip_prefix("Command: ") {
            if let Some(image) = self.followed[&pid].image {
                command.clone_into(&mut self.images[usize::from(image)].command);
            }
            self.look(pid);
            return None;
        }
        let start = ["Copyright (C)", "Using Valgrind-", "Parent PID:"];
        if text.is_empty() || start.iter().any(|start| text.starts_with(start)) {
            return None;
        }
        self.messages += 1;
        (self.messages <= MAX_MESSAGES).then(|| text.to_owned())
    }

    /// The process continues as a new program, or as a copy of the one that forked it.
    fn begin(&mut self, pid: u32, forked: bool) -> Option<u16> {
        let number = self.images.len();
        if number >= self.most {
            // What it writes from here on would be taken for that of its last program.
            self.leave_out(pid);
            return None;
        }
        let before = self.followed[&pid].image;
        let parent = before.or_else(|| self.followed.get(&parent_of(pid)?)?.image);
        let began = if number == 0 { self.traced.began() } else { SystemTime::now() };
        let mut image = Image {
            pid,
            parent,
            command: String::new(),
            began,
            space: AddressSpace::default(),
            extents: Extents::default(),
            names: Err(ElfError::Gone),
            code: None,
            build: None,
            stores: HashSet::new(),
            last_store: 0,
            looks: 0,
            received: 0,
            missing: 0,
            is_whole: false,
        };
        if let Some(parent) = parent.filter(|_| forked) {
            let parent = &self.images[usize::from(parent)];
            image.command.clone_from(&parent.command);
            image.began = parent.began;
            image.space = parent.space.clone();
            image.names.clone_from(&parent.names);
            image.code.clone_from(&parent.code);
            image.build.clone_from(&parent.build);
        }
        self.images.push(image);
        let index = u16::try_from(number).expect("there are few processes");
        self.followed.get_mut(&pid).expect("it is followed").image = Some(index);
        if !self.is_main(pid) {
            self.make_room(index);
        } else if let Some(before) = before {
            // It was the main one.
            self.make_room(before);
        }
        self.look(pid);
        Some(index)
    }

    /// Gives room to the names of an image besides the main one. If there is too little it loses them.
    fn make_room(&mut self, image: u16) -> bool {
        let names = &mut self.images[usize::from(image)].names;
        let count = names.as_ref().map_or(0, |names| names.len());
        let fits = count <= self.room;
        if fits {
            self.room -= count;
        } else {
            self.names_left_out += count;
            *names = Ok(Rc::default());
        }
        fits
    }

    /// Looks once where the program lies: Valgrind has loaded it before it prints an access. Its names
    /// are read at once, before another file can take its place.
    fn look(&mut self, pid: u32) {
        let Some(number) = self.followed.get(&pid).and_then(|followed| followed.image) else {
            return;
        };
        let image = &mut self.images[usize::from(number)];
        if image.looks >= LOOKS || image.space.program.is_some() {
            return;
        }
        image.looks += 1;
        let is_last_look = image.looks == LOOKS;
        let program = if number == 0 { self.program.as_path() } else { Path::new("") };
        if let Ok(space) = AddressSpace::of_process(pid, program) {
            self.place(pid, number, space);
        }
        if number == 0 && is_last_look {
            self.traced.hurry();
        }
    }

    /// An image lies there, as far as it is known.
    fn place(&mut self, pid: u32, number: u16, space: AddressSpace) {
        let is_main = self.is_main(pid);
        let image = &mut self.images[usize::from(number)];
        image.space = space;
        let Some((path, placement)) = &image.space.program else { return };
        image.names = if is_main || self.room > 0 {
            mapped_program(path, *placement, image.began).map(|program| {
                image.build = program.build;
                let size = program.code.names.size();
                if size <= self.code_room {
                    self.code_room -= size;
                    image.code = Some(Rc::new(program.code));
                }
                Rc::new(program.names)
            })
        } else {
            Ok(Rc::default())
        };
        if number == 0 {
            self.traced.hurry();
        }
        if !is_main && !self.make_room(number) {
            // What does not fit is not read time and again.
            self.room = 0;
        }
    }

    /// The running program, and what is known of it and the others.
    pub(crate) fn finish(self) -> (T, Told) {
        let mut text = self.read_before;
        for followed in self.followed.values() {
            text.add(followed.text.summary());
        }
        text.malformed += self.malformed;
        let pid = self.traced.pid();
        let main = self.images.iter().rposition(|image| image.pid == pid).unwrap_or_default();
        let is_over = |(index, image): (usize, &Image)| {
            let is_another = self.images[index + 1..].iter().any(|other| other.pid == image.pid);
            index == main || image.is_whole || is_another
        };
        let unfinished = self.images.iter().enumerate().filter(|image| !is_over(*image)).count();
        let mut told = Told {
            missing: self.images.iter().map(|image| image.missing).sum(),
            unfinished: if self.packets == 0 { 0 } else { unfinished },
            processes: Vec::new(),
            main: u16::try_from(main).unwrap_or_else(|_| unreachable!("there are few processes")),
            nameless: None,
            names_left_out: self.names_left_out,
            left_out: self.left_out.len(),
            text,
            packets: self.packets,
            is_whole: self.images.get(main).is_some_and(|image| image.is_whole),
        };
        let (mut room, mut code_room) = (MAX_NAMES, Room::ALL);
        let mut images: Vec<_> = self.images.into_iter().enumerate().collect();
        // Its names go first, should not all fit.
        images.sort_by_key(|(number, _)| (*number != main, *number));
        let mut processes = Vec::new();
        for (number, image) in images {
            let areas = image.extents.names(&image.space);
            let own = match image.names {
                Ok(names) => names,
                Err(reason) => {
                    if number == main {
                        told.nameless = Some(reason);
                    }
                    Rc::default()
                }
            };
            told.names_left_out += own.left_out();
            let mut names = Names::default();
            if own.len() <= room {
                names = Names::new(own.iter().cloned().chain(areas));
                told.names_left_out += names.left_out();
            } else {
                told.names_left_out += own.len() + areas.len();
            }
            if names.len() > room {
                told.names_left_out += names.len();
                names = Names::default();
            }
            room -= names.len();
            let Image { pid, parent, command, stores, code, build, .. } = image;
            let code = code.map(|code| Code::new(&code.names, code.bias, stores));
            let mut code = code.unwrap_or_default();
            match code_room.after(&code) {
                Some(left) => code_room = left,
                None => code = Code::default(),
            }
            processes.push((number, Process { pid, parent, command, names, code, build }));
        }
        processes.sort_by_key(|(number, _)| *number);
        told.processes = processes.into_iter().map(|(_, process)| process).collect();
        (self.traced, told)
    }
}

impl<T: TextSource> Source for Processes<T> {
    fn next(&mut self, writes: &mut Vec<Write>) -> io::Result<Option<Next>> {
        loop {
            match self.take()? {
                Some((image, Item::Write(write))) => {
                    writes.push(write);
                    return Ok(Some(Next::Writes(image)));
                }
                Some((_, Item::Message(message))) => return Ok(Some(Next::Message(message))),
                None => {}
            }
            match self.receive(writes)? {
                Received::Writes(Some(image)) => return Ok(Some(Next::Writes(image))),
                Received::Writes(None) | Received::Text => {}
                Received::End => return Ok(None),
            }
        }
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The process that started another, if that still lives.
fn parent_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests;

//! What is written is read.

use proptest::prelude::*;
use subpage_trace::{
    ADDRESS_LIMIT, Header, MAX_BLOCK_WRITES, Name, NameKind, Names, Process, TraceError,
    TraceReader, TraceWriter, Write,
};

use crate::{decode, encode, program};

fn any_write() -> impl Strategy<Value = Write> {
    let edges = prop::sample::select(vec![0_u64, 1, 0xfff, 1 << 31, 1 << 32, 1 << 47]);
    let address = prop_oneof![
        4 => edges.prop_map(|edge| edge),
        4 => 0_u64..0x4000,
        2 => 0..=ADDRESS_LIMIT - 64,
        1 => Just(ADDRESS_LIMIT - 64),
    ];
    let pc = prop_oneof![
        8 => (0_u64..6).prop_map(|site| 0x40_0000 + site),
        1 => any::<u64>(),
        1 => Just(0),
    ];
    (pc, address, prop_oneof![3 => Just(8_u8), 1 => 1_u8..=64])
        .prop_map(|(pc, address, size)| Write { pc, address, size })
}

fn any_name() -> impl Strategy<Value = Name> {
    let kind = prop::sample::select(vec![
        NameKind::Section,
        NameKind::Object,
        NameKind::Heap,
        NameKind::Stack,
    ]);
    ("[a-zäß:._]{1,20}", 0..ADDRESS_LIMIT / 2, 1..ADDRESS_LIMIT / 2, kind)
        .prop_map(|(name, start, length, kind)| Name { name, start, length, kind })
}

proptest! {
    #[test]
    fn any_writes_and_names(
        writes in prop::collection::vec(any_write(), 0..600),
        names in prop::collection::vec(any_name(), 0..20),
        command in prop::collection::vec(".*", 0..4),
    ) {
        let header = Header { command, names: Names::new(names), ..Header::default() };
        let (read_header, read) = decode(&encode(&header, &writes)).expect("readable");
        prop_assert_eq!(read_header, header);
        prop_assert_eq!(read, writes);
    }
}

#[test]
fn lengths_around_a_block() {
    for length in [0, 1, MAX_BLOCK_WRITES - 1, MAX_BLOCK_WRITES, MAX_BLOCK_WRITES + 1, 200_000] {
        let writes = program(length as u64);
        let bytes = encode(&Header::default(), &writes);
        let (_, read) = decode(&bytes).expect("readable");
        assert!(read == writes, "{length} writes");
        let one_by_one = TraceReader::new(bytes.as_slice()).expect("readable").writes();
        assert!(one_by_one.map(|w| w.expect("readable")).eq(writes), "{length} writes");
    }
}

/// More sites than are remembered, twice over, so that each gives way to a later one.
#[test]
fn sites_that_were_forgotten() {
    let site = |i: u64| Write { pc: 0x1000 + i, address: 0x10_0000 + 8 * (i % 512), size: 8 };
    let mut writes: Vec<_> = (0..140_000).map(site).collect();
    writes.extend((0..70_000).map(site));
    writes.extend((0..70_000).rev().map(site));
    // The first site of all, which is defined before the first write.
    writes.push(Write { pc: 0, address: 0, size: 8 });
    writes.push(Write { pc: 0, address: ADDRESS_LIMIT - 8, size: 8 });
    let (_, read) = decode(&encode(&Header::default(), &writes)).expect("readable");
    assert!(read == writes);
}

/// Noise has no pattern: the worst the format can do is bounded, and stays readable.
#[test]
fn writes_without_any_pattern() {
    let mut state = 7_u64;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let writes: Vec<_> = (0..150_000)
        .map(|_| Write {
            pc: noise(),
            address: noise() % (ADDRESS_LIMIT - 64),
            size: u8::try_from(noise() % 64 + 1).expect("small"),
        })
        .collect();
    let bytes = encode(&Header::default(), &writes);
    assert!(bytes.len() <= writes.len() * 24 + 1000);
    let (_, read) = decode(&bytes).expect("readable");
    assert!(read == writes);
}

#[test]
fn a_loop_costs_almost_nothing() {
    let writes: Vec<_> = (0..1_000_000_u64)
        .map(|i| Write { pc: 0x40_0000 + i % 5, address: 0x60_0000 + 8 * (i % 5000), size: 8 })
        .collect();
    let bytes = encode(&Header::default(), &writes);
    assert!(bytes.len() < 5000, "{} bytes for a million writes of one loop", bytes.len());
}

#[test]
fn a_bad_write_is_refused_and_the_trace_goes_on() {
    let good = Write { pc: 1, address: 2, size: 3 };
    let mut writer = TraceWriter::new(Vec::new(), &Header::default()).expect("memory");
    writer.write(good).expect("valid");
    for bad in [
        Write { size: 0, ..good },
        Write { size: 65, ..good },
        Write { address: ADDRESS_LIMIT - 2, ..good },
        Write { address: u64::MAX, ..good },
    ] {
        assert!(matches!(writer.write(bad), Err(TraceError::BadWrite { .. })));
    }
    writer.write(good).expect("valid");
    assert_eq!(writer.writes(), 2);
    let bytes = writer.finish().expect("memory");
    assert_eq!(decode(&bytes).expect("readable").1, [good, good]);
}

/// A disk that is full after some bytes.
struct Full(usize);

impl std::io::Write for Full {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0 == 0 {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        let written = bytes.len().min(self.0);
        self.0 -= written;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_an_error_and_stays_one() {
    let writes = program(60_000);
    let room = encode(&Header::default(), &writes).len();
    for room in [0, 10, 100, 5000, room - 1] {
        let Ok(mut writer) = TraceWriter::new(Full(room), &Header::default()) else {
            continue;
        };
        let failed = writes.iter().position(|&w| writer.write(w).is_err());
        if failed.is_some() {
            assert!(matches!(writer.write(writes[0]), Err(TraceError::Poisoned)));
        }
        assert!(writer.finish().is_err(), "{room} bytes are too few");
    }
}

/// The trace that is shipped names its code.
#[test]
fn the_shipped_trace() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/counter/counter.sptrace");
    let (header, attack) = read_counter(path);
    let place = header.code.find(attack.pc).expect("known");
    assert_eq!((place.function, place.line), (Some(("main", 0x5c)), Some(("counter.c", 52))));
}

/// Version 1 stays readable: this trace of the same program was written once and is not made anew.
#[test]
fn a_trace_of_version_1() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/version-1.sptrace");
    assert_eq!(std::fs::read(path).expect("shipped")[8..12], [1, 0, 0, 0]);
    assert!(read_counter(path).0.code.is_empty());
}

/// Header of a recording of `examples/counter`, and the write that the example is about.
fn read_counter(path: &str) -> (Header, Write) {
    let (header, writes) = decode(&std::fs::read(path).expect("shipped")).expect("readable");
    assert_eq!(header.command, ["./counter"]);
    assert_eq!(writes.len(), 413_348);
    let into = |name: &str| {
        let name = header.names.find(name).expect("named");
        let inside = |w: &Write| (name.start..name.start + name.length).contains(&w.address);
        writes.iter().enumerate().filter(move |(_, w)| inside(w))
    };
    assert_eq!(into("counters").count(), 200_003);
    assert_eq!(into("last_seen").count(), 200_000);
    let path = header.names.find("helper_path").expect("named").start;
    let attack: Vec<_> = into("helper_path").map(|(i, w)| (i, w.address, w.size)).collect();
    assert_eq!(attack, [(252_523, path, 8)]);
    (header, writes[252_523])
}

/// The writes of a trace with their process, in the order of its blocks, and how many blocks it has.
fn with_processes(bytes: &[u8]) -> (Header, Vec<(u16, Write)>, usize) {
    let mut reader = TraceReader::new(bytes).expect("a trace");
    let (mut read, mut block, mut blocks) = (Vec::new(), Vec::new(), 0);
    while reader.next_block(&mut block).expect("undamaged") {
        read.extend(block.iter().map(|write| (reader.process(), *write)));
        blocks += 1;
    }
    (reader.header().clone(), read, blocks)
}

/// Writes keep their process and their order in it, in blocks that hold one process each; the order
/// between processes is not kept.
#[test]
fn several_processes_take_turns() {
    let process = |pid| Process { pid, ..Process::default() };
    let processes = vec![process(1), process(2), process(1)];
    let header = Header { processes, main: 2, ..Header::default() };
    let writes = program(60_000);
    let of = |index: usize| match index {
        0..20_000 => 0,
        20_000..20_010 => u16::try_from(index % 2).expect("small"),
        20_010..40_000 => 2,
        _ => u16::try_from(index % 3).expect("small"),
    };
    let mut writer = TraceWriter::new(Vec::new(), &header).expect("memory does not fail");
    for (index, write) in writes.iter().enumerate() {
        writer.set_process(of(index));
        writer.write(*write).expect("valid");
    }
    assert_eq!(writer.writes(), 60_000);
    let (read_header, read, _) = with_processes(&writer.finish().expect("memory does not fail"));
    assert_eq!(read_header, header);
    let all: Vec<_> = writes.iter().enumerate().map(|(i, write)| (of(i), *write)).collect();
    let by_process = |all: &[(u16, Write)]| {
        [0, 1, 2].map(|number| {
            all.iter().filter(|(of, _)| *of == number).map(|(_, w)| *w).collect::<Vec<_>>()
        })
    };
    assert_eq!(read.len(), all.len());
    assert!(by_process(&read) == by_process(&all));
}

/// Each turn had a block of its own, which costs more than a hundred writes do.
#[test]
fn processes_that_take_turns_at_every_write_share_few_blocks() {
    for count in [2, 3, 100] {
        let processes = vec![Process::default(); count];
        let header = Header { processes, ..Header::default() };
        let mut writer = TraceWriter::new(Vec::new(), &header).expect("memory does not fail");
        for (index, write) in program(100_000).into_iter().enumerate() {
            writer.set_process(u16::try_from(index % count).expect("small"));
            writer.write(write).expect("valid");
        }
        let (_, read, blocks) = with_processes(&writer.finish().expect("memory does not fail"));
        assert_eq!(read.len(), 100_000);
        assert!(blocks <= 100_000 / 256 + count, "{count} processes: {blocks} blocks");
    }
}

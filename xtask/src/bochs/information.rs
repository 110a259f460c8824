//! The Multiboot2 information that a boot loader would hand to the image: "Boot information
//! format" of the Multiboot2 specification, version 2.0.
//!
//! Not made by the crate `multiboot2`, which asserts that what it makes is sensible: the hypervisor
//! is to be told senseless things, too, such as a module of no bytes.

use anyhow::{Context as _, Result, bail, ensure};
/// First byte above the conventional memory: the extended BIOS data area of a PC begins there.
const CONVENTIONAL: u64 = 0x9_f000;
/// Where memory continues.
const EXTENDED: u64 = 0x10_0000;

// Types of tags.
const END: u32 = 0;
const COMMAND_LINE: u32 = 1;
const MODULE: u32 = 3;
const BASIC_MEMORY: u32 = 4;
const MEMORY_MAP: u32 = 6;
const ROOT_POINTER: u32 = 15;

/// Bytes of an entry of the memory map.
const ENTRY_SIZE: u32 = 24;
// Types of memory.
const AVAILABLE: u32 = 1;
const RESERVED: u32 = 2;

/// A file that the boot loader has put into memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Module {
    pub(crate) address: u32,
    /// Bytes.
    pub(crate) length: u32,
    /// Its name, and behind a space what it is to be told.
    pub(crate) text: String,
}

/// Where what is not memory begins, in which firmware has its tables.
pub(super) const FIRMWARE: u64 = CONVENTIONAL;

/// What only some machines have.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct More<'a> {
    /// A copy of ACPI's root pointer.
    pub(crate) root_pointer: Option<&'a [u8]>,
    /// Bytes of memory from 4 GiB on.
    pub(crate) high_memory: u64,
}

/// The information block. Usable memory is all below the EBDA and from 1 MiB up to `memory`, which
/// is an address; the image and the modules lie in it as they do with a boot loader.
pub(crate) fn block(
    command_line: &str,
    modules: &[Module],
    memory: u64,
    more: More<'_>,
) -> Result<Vec<u8>> {
    let texts = modules.iter().map(|module| module.text.as_str()).chain([command_line]);
    for text in texts {
        ensure!(!text.contains('\0'), "{text:?} has a zero byte in it");
    }
    ensure!(
        (EXTENDED + (1 << 20)..=1 << 32).contains(&memory),
        "memory must be 2 MiB to 4 GiB, not {memory} bytes"
    );
    let kib = |bytes: u64| u32::try_from(bytes >> 10).expect("up to 4 GiB, that is 22 bits");

    let mut block = Block(vec![0; 8]);
    block.tag(COMMAND_LINE, &[command_line.as_bytes(), b"\0"]);
    for module in modules {
        let Some(end) = module.address.checked_add(module.length) else {
            bail!("the module {:?} would end above 4 GiB", module.text)
        };
        let range = [module.address.to_le_bytes(), end.to_le_bytes()].concat();
        block.tag(MODULE, &[&range, module.text.as_bytes(), b"\0"]);
    }
    let (lower, upper) = (kib(CONVENTIONAL), kib(memory - EXTENDED));
    block.tag(BASIC_MEMORY, &[&lower.to_le_bytes(), &upper.to_le_bytes()]);
    let mut map = [ENTRY_SIZE.to_le_bytes(), 0_u32.to_le_bytes()].concat();
    for (from, to, kind) in [
        (0, CONVENTIONAL, AVAILABLE),
        (CONVENTIONAL, EXTENDED, RESERVED),
        (EXTENDED, memory, AVAILABLE),
        // I/O APIC, local APICs, firmware.
        (0xfec0_0000, 1 << 32, RESERVED),
        (1 << 32, (1 << 32) + more.high_memory, AVAILABLE),
    ] {
        if from == to {
            continue;
        }
        map.extend(u64::to_le_bytes(from));
        map.extend(u64::to_le_bytes(to - from));
        map.extend(u32::to_le_bytes(kind));
        map.extend([0; 4]);
    }
    block.tag(MEMORY_MAP, &[&map]);
    if let Some(pointer) = more.root_pointer {
        block.tag(ROOT_POINTER, &[pointer]);
    }
    block.tag(END, &[]);
    let Block(mut bytes) = block;
    let size = u32::try_from(bytes.len()).context("the command line is too long")?;
    bytes[..4].copy_from_slice(&size.to_le_bytes());
    Ok(bytes)
}

/// Header (`total_size`, reserved) and tags, each on 8 bytes.
struct Block(Vec<u8>);

impl Block {
    fn tag(&mut self, kind: u32, contents: &[&[u8]]) {
        let contents = contents.concat();
        let size = u32::try_from(8 + contents.len()).expect("texts of a command line");
        self.0.extend(kind.to_le_bytes());
        self.0.extend(size.to_le_bytes());
        self.0.extend(contents);
        self.0.resize(self.0.len().next_multiple_of(8), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Type and contents of each tag, by the words of the specification.
    fn tags(block: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let word = |at: usize| {
            let bytes = block[at..at + 4].try_into().expect("four bytes are four bytes");
            u32::from_le_bytes(bytes)
        };
        assert_eq!(word(0) as usize, block.len(), "total_size");
        assert_eq!(word(4), 0, "reserved");
        let mut at = 8;
        let mut tags = Vec::new();
        loop {
            let (kind, size) = (word(at), word(at + 4) as usize);
            tags.push((kind, block[at + 8..at + size].to_vec()));
            at += size.next_multiple_of(8);
            if kind == 0 {
                break;
            }
        }
        assert_eq!(at, block.len(), "nothing behind the last tag");
        tags
    }

    fn contents(tags: &[(u32, Vec<u8>)], kind: u32) -> Vec<&[u8]> {
        tags.iter().filter(|tag| tag.0 == kind).map(|tag| tag.1.as_slice()).collect()
    }

    #[test]
    fn tags_are_as_specified() {
        let modules = [
            Module { address: 0x80_0000, length: 0x1234, text: "guest run=a".into() },
            Module { address: 0x180_0000, length: 8, text: "cases".into() },
        ];
        let more = More { root_pointer: Some(b"RSD PTR "), high_memory: 1 << 30 };
        let block = block("quiet", &modules, 256 << 20, more).expect("all is as it should be");
        assert_eq!(block.len() % 8, 0);
        let tags = tags(&block);
        assert_eq!(contents(&tags, 1), [b"quiet\0".as_slice()]);
        assert_eq!(
            contents(&tags, 3),
            [
                [&[0, 0, 0x80, 0, 0x34, 0x12, 0x80, 0], b"guest run=a\0".as_slice()].concat(),
                [&[0, 0, 0x80, 1, 8, 0, 0x80, 1], b"cases\0".as_slice()].concat(),
            ]
        );
        // 636 KiB below, 255 MiB above 1 MiB.
        assert_eq!(contents(&tags, 4), [[0x7c, 2, 0, 0, 0, 0xfc, 3, 0]]);
        let map = contents(&tags, 6)[0];
        assert_eq!(map[..8], [24, 0, 0, 0, 0, 0, 0, 0], "entry_size and entry_version");
        assert_eq!(map.len() % 24, 8);
        let last = &map[map.len() - 24..];
        assert_eq!(
            (&last[..8], &last[8..16]),
            (&(1_u64 << 32).to_le_bytes()[..], &(1_u64 << 30).to_le_bytes()[..])
        );
        let third = &map[8 + 2 * 24..8 + 3 * 24];
        assert_eq!(third[..8], 0x10_0000_u64.to_le_bytes());
        assert_eq!(third[8..16], (255_u64 << 20).to_le_bytes());
        assert_eq!(third[16..20], 1_u32.to_le_bytes());
        assert_eq!(contents(&tags, 15), [b"RSD PTR "]);
        assert_eq!(tags.last(), Some(&(0, Vec::new())));
    }

    #[test]
    fn what_cannot_be_told_is_refused() {
        assert!(block("a\0b", &[], 256 << 20, More::default()).is_err());
        assert!(block("", &[], 1 << 20, More::default()).is_err());
        assert!(block("", &[], 5 << 30, More::default()).is_err());
        let module = Module { address: u32::MAX, length: 2, text: "guest".into() };
        assert!(block("", &[module], 256 << 20, More::default()).is_err());
    }
}

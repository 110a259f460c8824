//! Makes kernels: an ELF file of three segments with the tables of its symbols, and a bzImage around it.

use std::collections::BTreeMap;

pub(crate) const TEXT: u64 = 0xffff_ffff_8100_0000;
pub(crate) const DATA: u64 = 0xffff_ffff_8200_0000;
pub(crate) const PER_CPU_BYTES: usize = 0x2000;
pub(crate) const BANNER: &str = "Linux version 6.1.0-test (a@b) (gcc 12) #1 SMP PREEMPT_DYNAMIC";
pub(crate) const BUILD_ID: [u8; 20] = *b"twenty bytes of hash";

/// Bytes of the file before its text.
pub(crate) const HEADER_BYTES: usize = 0x1000;
const TEXT_BYTES: usize = 0x20_0000;
const DATA_BYTES: usize = 0x10_0000;
/// Where the tables lie in the text.
pub(crate) const RODATA: usize = 0x10_0000;
const BANNER_AT: usize = RODATA - 0x1000;
const NOTES_AT: usize = RODATA - 0x800;

/// A count in 32 bits.
pub(crate) fn word(count: usize) -> [u8; 4] {
    u32::try_from(count).expect("small").to_le_bytes()
}

/// How a kernel stores its symbols.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Form {
    pub(crate) addresses: Addresses,
    /// Addresses before the names (until 6.3).
    pub(crate) is_before: bool,
    /// The order by name (from 6.2).
    pub(crate) order: bool,
    pub(crate) marker_bytes: usize,
    pub(crate) alignment: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Addresses {
    Whole,
    FromBase,
    FromBaseOrAbsolute,
    FromItself,
}

/// As those of Debian's 6.1.
pub(crate) const DEBIAN_6_1: Form = Form {
    addresses: Addresses::FromBaseOrAbsolute,
    is_before: true,
    order: false,
    marker_bytes: 4,
    alignment: 8,
};

/// A symbol to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) address: u64,
    pub(crate) kind: char,
    pub(crate) name: String,
}

pub(crate) fn wanted(address: u64, kind: char, name: &str) -> Wanted {
    Wanted { address, kind, name: name.to_owned() }
}

/// The symbols of a kernel, by address; with per-processor data at 0, or in the image (from 6.15).
pub(crate) fn symbols(per_cpu_at_0: bool) -> Vec<Wanted> {
    let per_cpu = if per_cpu_at_0 { 0 } else { DATA + 0x8_0000 };
    let kind = if per_cpu_at_0 { 'A' } else { 'D' };
    let mut symbols = vec![
        wanted(TEXT, 'T', "_text"),
        wanted(TEXT, 'T', "_stext"),
        wanted(TEXT + 0x8_0000, 'T', "_etext"),
        wanted(TEXT + BANNER_AT as u64, 'D', "linux_banner"),
        wanted(per_cpu, kind, "__per_cpu_start"),
        wanted(per_cpu + 0x40, kind, "current_task"),
        wanted(per_cpu + PER_CPU_BYTES as u64, kind, "__per_cpu_end"),
        wanted(DATA + 0x100, 'D', "modprobe_path"),
        wanted(DATA + 0x200, 'D', "poweroff_cmd"),
        wanted(DATA + 0x1000, 'd', "twice"),
        wanted(DATA + 0x1010, 'd', "twice"),
        wanted(DATA + 0x1020, 'd', &"long_name_of_rust".repeat(20)),
        wanted(DATA + 0x7_0000, 'T', "__init_begin"),
        wanted(DATA + 0x7_0010, 't', "start_it"),
        wanted(DATA + 0x8_8000, 'B', "__init_end"),
        wanted(DATA + 0x9_0000, 'B', "_end"),
    ];
    for number in 0..600 {
        let name = format!("function_{number}.{}", number % 7);
        symbols.push(wanted(TEXT + 0x1000 + 64 * number, 't', &name));
    }
    // The sort is stable, as that of the kernel's build.
    symbols.sort_by_key(|symbol| symbol.address);
    symbols
}

/// The tables of symbols, to lie at `address`.
pub(crate) fn tables(symbols: &[Wanted], form: Form, address: u64) -> Vec<u8> {
    let tokens = tokens();
    let mut names = Vec::new();
    let mut markers = Vec::new();
    for (number, symbol) in symbols.iter().enumerate() {
        if number % 256 == 0 {
            markers.push(names.len() as u64);
        }
        let text = format!("{}{}", symbol.kind, symbol.name);
        let packed = pack(text.as_bytes());
        match packed.len() {
            short @ ..=0x7f => names.push(u8::try_from(short).expect("small")),
            long => {
                let byte = |number| u8::try_from(number).expect("small");
                names.extend([0x80 | byte(long & 0x7f), byte(long >> 7)]);
            }
        }
        names.extend(packed);
    }
    let mut made = Made { bytes: Vec::new(), form, address };
    let base = symbols.iter().map(|symbol| symbol.address).find(|address| *address >= TEXT);
    let base = base.expect("a kernel has text");
    if form.is_before {
        made.addresses(symbols, base);
    }
    made.table();
    made.bytes.extend(word(symbols.len()));
    made.table();
    made.bytes.extend(&names);
    made.table();
    for marker in markers {
        made.bytes.extend(&marker.to_le_bytes()[..form.marker_bytes]);
    }
    if form.order && form.is_before {
        made.order(symbols);
    }
    made.table();
    let mut index = Vec::new();
    let mut place = 0_u16;
    for token in &tokens {
        index.extend(place.to_le_bytes());
        made.bytes.extend(token.as_bytes());
        made.bytes.push(0);
        place += u16::try_from(token.len() + 1).expect("small");
    }
    made.table();
    made.bytes.extend(index);
    if !form.is_before {
        made.addresses(symbols, base);
        if form.order {
            made.order(symbols);
        }
    }
    made.table();
    made.bytes
}

struct Made {
    bytes: Vec<u8>,
    form: Form,
    address: u64,
}

impl Made {
    fn table(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(self.form.alignment), 0);
    }

    fn addresses(&mut self, symbols: &[Wanted], base: u64) {
        self.table();
        for symbol in symbols {
            let up = symbol.address.wrapping_sub(base);
            let place = self.address + self.bytes.len() as u64;
            match self.form.addresses {
                Addresses::Whole => self.bytes.extend(symbol.address.to_le_bytes()),
                Addresses::FromBase => self.bytes.extend(&up.to_le_bytes()[..4]),
                Addresses::FromBaseOrAbsolute if symbol.address < base => {
                    self.bytes.extend(&symbol.address.to_le_bytes()[..4]);
                }
                Addresses::FromBaseOrAbsolute => self.bytes.extend(&(!up).to_le_bytes()[..4]),
                Addresses::FromItself => {
                    self.bytes.extend(&symbol.address.wrapping_sub(place).to_le_bytes()[..4]);
                }
            }
        }
        if matches!(self.form.addresses, Addresses::FromBase | Addresses::FromBaseOrAbsolute) {
            self.table();
            self.bytes.extend(base.to_le_bytes());
        }
    }

    fn order(&mut self, symbols: &[Wanted]) {
        self.table();
        let mut numbers: Vec<_> = (0..symbols.len()).collect();
        numbers.sort_by_key(|number| &symbols[*number].name);
        for number in numbers {
            self.bytes.extend(&[word(number)[2], word(number)[1], word(number)[0]]);
        }
    }
}

/// Printable characters stand for themselves, some others for pieces of names.
fn tokens() -> Vec<String> {
    (0..=255_u8)
        .map(|byte| match byte {
            b' '..=b'~' | b'\t' | 0x7f => char::from(byte).to_string(),
            0x80 => "function_".to_owned(),
            0x81 => "tion".to_owned(),
            other => format!("q{other:x}_"),
        })
        .collect()
}

fn pack(text: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(text).expect("ASCII");
    let text = text.replace("function_", "\u{1}").into_bytes();
    text.into_iter().map(|byte| if byte == 1 { 0x80 } else { byte }).collect()
}

/// An ELF file of a kernel with these tables (at [`RODATA`] of its text).
pub(crate) fn vmlinux(symbols: &[Wanted], form: Form) -> Vec<u8> {
    let mut text = vec![0x90; TEXT_BYTES];
    text[BANNER_AT..BANNER_AT + BANNER.len()].copy_from_slice(BANNER.as_bytes());
    text[BANNER_AT + BANNER.len()..][..2].copy_from_slice(b"\n\0");
    let mut note = Vec::new();
    note.extend([4, 0, 0, 0, 20, 0, 0, 0, 3, 0, 0, 0]);
    note.extend(b"GNU\0");
    note.extend(BUILD_ID);
    text[NOTES_AT..NOTES_AT + note.len()].copy_from_slice(&note);
    let tables = tables(symbols, form, TEXT + RODATA as u64);
    text[RODATA..RODATA + tables.len()].copy_from_slice(&tables);
    let mut data = vec![0; DATA_BYTES];
    data[0x100..0x10e].copy_from_slice(b"/sbin/modprobe");
    elf(&[
        Part { address: TEXT, bytes: text, flags: 5 },
        Part { address: DATA, bytes: data, flags: 6 },
        Part { address: 0, bytes: vec![7; PER_CPU_BYTES], flags: 6 },
    ])
}

pub(crate) struct Part {
    pub(crate) address: u64,
    pub(crate) bytes: Vec<u8>,
    /// As in the program header.
    pub(crate) flags: u32,
}

/// The first part has the notes.
pub(crate) fn elf(parts: &[Part]) -> Vec<u8> {
    let headers = u16::try_from(parts.len() + 1).expect("few");
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend(2_u16.to_le_bytes());
    file.extend(62_u16.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    file.extend(0x100_0000_u64.to_le_bytes());
    file.extend(64_u64.to_le_bytes());
    file.extend(0_u64.to_le_bytes());
    file.extend(0_u32.to_le_bytes());
    for half in [64, 56, headers, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let mut header = |kind: u32, flags: u32, offset: u64, address: u64, bytes: u64| {
        let alignment = if kind == 4 { 4 } else { 0x1000 };
        file.extend(kind.to_le_bytes());
        file.extend(flags.to_le_bytes());
        let physical = if address == 0 { 0x300_0000 } else { address - 0xffff_ffff_8000_0000 };
        for long in [offset, address, physical, bytes, bytes, alignment] {
            file.extend(long.to_le_bytes());
        }
    };
    let mut offset = HEADER_BYTES as u64;
    header(4, 4, offset + NOTES_AT as u64, TEXT + NOTES_AT as u64, 36);
    for part in parts {
        header(1, part.flags, offset, part.address, part.bytes.len() as u64);
        offset += part.bytes.len() as u64;
    }
    file.resize(HEADER_BYTES, 0);
    for part in parts {
        file.extend(&part.bytes);
    }
    file
}

/// A bzImage with this payload, as boot protocol 2.15 says.
pub(crate) fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 0x400];
    file[0x1f1] = 1;
    file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    file[0x248..0x24c].copy_from_slice(&0x300_u32.to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&word(payload.len()));
    file.resize(0x400 + 0x300, 0x90);
    file.extend(payload);
    file.extend([0x90; 64]);
    file
}

/// How often each name is there.
pub(crate) fn by_name(symbols: &[Wanted]) -> BTreeMap<&str, Vec<&Wanted>> {
    let mut names = BTreeMap::<_, Vec<_>>::new();
    for symbol in symbols {
        names.entry(&symbol.name[..]).or_default().push(symbol);
    }
    names
}

//! Source lines of a program's instructions, by its debug information.
//!
//! Only the line programs of `.debug_line` are read (DWARF 2 to 5, section "Line Number Information"):
//! one after the other, each once, so time and memory follow the section's length, whatever other
//! sections claim. What cannot be read is left out.

use std::collections::HashMap;
use std::sync::Arc;

use gimli::{
    AttributeValue, DebugLine, DebugLineOffset, EndianSlice, IncompleteLineProgram,
    LineInstruction, LineProgramHeader, LineRow, LittleEndian,
};
use object::{CompressionFormat, Endianness, Object, ObjectSection, ReadRef};

/// Longest `.debug_line` and `.debug_line_str` that are read, in bytes. The Linux kernel's have about a
/// quarter of it.
const MAX_SECTION_BYTES: u64 = 128 << 20;
/// Most changes of line, at 16 bytes each; of a program with more, no line is known.
const MAX_ROWS: usize = 8 << 20;
/// Longest header of a line program, in bytes. Each file that it lists costs memory until it is done.
const MAX_HEADER_BYTES: u64 = 256 << 10;
/// Most files whose names are kept.
const MAX_FILES: usize = 1 << 16;
/// Longest path of a file, in bytes.
const MAX_PATH_BYTES: usize = 512;

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// The source lines of a program's instructions.
#[derive(Clone, Debug, Default)]
pub struct SourceLines {
    files: Vec<Arc<str>>,
    /// Ascending by their first byte.
    sequences: Vec<Sequence>,
    rows: Vec<Row>,
}

/// Instructions that lie side by side, and the rows that tell their lines.
#[derive(Clone, Copy, Debug)]
struct Sequence {
    start: u64,
    end: u64,
    first_row: usize,
    rows: usize,
}

/// The line of the instructions from one address on.
#[derive(Clone, Copy, Debug)]
struct Row {
    address: u64,
    file: u32,
    /// 0 where no line has the instructions.
    line: u32,
}

/// Why a line program is not read to its end.
enum Stop {
    /// It is damaged, or of a kind that is not known.
    Damaged,
    /// There is no room for more rows.
    Full,
}

impl From<gimli::Error> for Stop {
    fn from(_: gimli::Error) -> Self {
        Self::Damaged
    }
}

impl SourceLines {
    /// The lines of an ELF file whose code has the bytes that `is_code` tells of. None where its debug
    /// information is missing, damaged, compressed, too long or of an unknown version.
    pub fn of_elf<'data, R: ReadRef<'data>>(
        file: &object::File<'data, R>,
        is_code: impl Fn(u64) -> bool,
    ) -> Self {
        let section = |name| {
            let section = file.section_by_name(name)?;
            let data = section.compressed_data().ok()?;
            let fits =
                data.format == CompressionFormat::None && section.size() <= MAX_SECTION_BYTES;
            fits.then_some(data.data)
        };
        if file.endianness() != Endianness::Little {
            return Self::default();
        }
        let Some(lines) = section(".debug_line") else { return Self::default() };
        let texts = section(".debug_line_str").unwrap_or_default();
        let address_bytes = if file.is_64() { 8 } else { 4 };
        Self::read(lines, texts, address_bytes, MAX_ROWS, is_code)
    }

    fn read(
        mut lines: &[u8],
        texts: &[u8],
        address_bytes: u8,
        max_rows: usize,
        is_code: impl Fn(u64) -> bool,
    ) -> Self {
        let mut reading = Reading {
            texts,
            is_code,
            max_rows,
            known: HashMap::new(),
            files: HashMap::new(),
            lines: Self::default(),
            first_row: 0,
        };
        while let Some((unit, rest)) = split_unit(lines) {
            lines = rest;
            if let Err(Stop::Full) = reading.unit(unit, address_bytes) {
                return Self::default();
            }
            reading.drop_sequence();
        }
        let mut lines = reading.lines;
        lines.sequences.sort_by_key(|sequence| sequence.start);
        lines.rows.shrink_to_fit();
        lines
    }

    /// Path of the file and number of the line, from 1, that the instruction at `address` comes from.
    /// The path is as the debug information has it, without the directory of the compiler, and not
    /// trusted.
    pub fn find(&self, address: u64) -> Option<(&str, u32)> {
        let at = self.sequences.partition_point(|it| it.start <= address).checked_sub(1)?;
        let sequence = self.sequences[at];
        let rows = &self.rows[sequence.first_row..][..sequence.rows];
        let at = rows.partition_point(|row| row.address <= address).checked_sub(1)?;
        let Row { file, line, .. } = rows[at];
        (address < sequence.end && line > 0).then(|| (&*self.files[file as usize], line))
    }

    /// How many changes of line there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }
}

/// The first unit of a `.debug_line`, and what follows; `None` at the end, or where it is cut off.
fn split_unit(lines: &[u8]) -> Option<(&[u8], &[u8])> {
    let (head, length) = initial_length(lines)?;
    lines.split_at_checked(head.checked_add(usize::try_from(length).ok()?)?)
}

/// How many bytes the field `unit_length` has, and its value.
fn initial_length(unit: &[u8]) -> Option<(usize, u64)> {
    match u32::from_le_bytes(*unit.first_chunk()?) {
        u32::MAX => Some((12, u64::from_le_bytes(*unit.get(4..)?.first_chunk()?))),
        0xffff_fff0.. => None,
        length => Some((4, length.into())),
    }
}

/// The field `header_length` of a unit.
fn header_length(unit: &[u8]) -> Option<u64> {
    let (head, _) = initial_length(unit)?;
    let fields = unit.get(head..)?;
    let version = u16::from_le_bytes(*fields.first_chunk()?);
    let at = fields.get(if version >= 5 { 4 } else { 2 }..)?;
    if head == 4 {
        Some(u32::from_le_bytes(*at.first_chunk()?).into())
    } else {
        Some(u64::from_le_bytes(*at.first_chunk()?))
    }
}

/// Lines as they are read.
struct Reading<'a, F> {
    /// `.debug_line_str`.
    texts: &'a [u8],
    is_code: F,
    max_rows: usize,
    /// Places of the files' names.
    known: HashMap<Arc<str>, u32>,
    /// Places of the files of the unit that is read now, by their numbers there.
    files: HashMap<u64, Option<u32>>,
    lines: SourceLines,
    /// Where the rows of the sequence begin that is read now.
    first_row: usize,
}

impl<F: Fn(u64) -> bool> Reading<'_, F> {
    fn unit(&mut self, unit: &[u8], address_bytes: u8) -> Result<(), Stop> {
        if header_length(unit).is_none_or(|length| length > MAX_HEADER_BYTES) {
            return Err(Stop::Damaged);
        }
        let lines = DebugLine::new(unit, LittleEndian);
        let mut program = lines.program(DebugLineOffset(0), address_bytes, None, None)?;
        self.files.clear();
        let mut instructions = program.header().instructions();
        let mut row = LineRow::new(program.header());
        let mut is_ordered = true;
        while let Some(instruction) = instructions.next_instruction(program.header())? {
            match instruction {
                // No compiler has it, and each costs memory.
                LineInstruction::DefineFile(_) => continue,
                // The linker has left the instructions out. gimli keeps the address as it was.
                LineInstruction::SetAddress(address) => is_ordered &= address >= row.address(),
                _ => {}
            }
            if !row.execute(instruction, &mut program)? {
                continue;
            }
            if row.end_sequence() {
                if is_ordered {
                    self.end_sequence(row.address());
                }
                self.drop_sequence();
                is_ordered = true;
            } else {
                self.row(&program, &row)?;
            }
            row.reset(program.header());
        }
        Ok(())
    }

    fn row(
        &mut self,
        program: &IncompleteLineProgram<Slice<'_>>,
        row: &LineRow,
    ) -> Result<(), Stop> {
        let index = row.file_index();
        let file = self.known_file(program.header(), index);
        let line = row.line().and_then(|line| u32::try_from(line.get()).ok());
        let (file, line) = file.zip(line).unwrap_or((0, 0));
        let new = Row { address: row.address(), file, line };
        let is_full = self.lines.rows.len() >= self.max_rows;
        match self.lines.rows[self.first_row..].last_mut() {
            // Of several for one instruction the last is the one that holds.
            Some(last) if last.address == new.address => *last = new,
            Some(last) if (last.file, last.line) == (file, line) => {}
            _ if is_full => return Err(Stop::Full),
            _ => self.lines.rows.push(new),
        }
        Ok(())
    }

    /// Keeps the rows of a sequence that has ended.
    fn end_sequence(&mut self, end: u64) {
        let first_row = self.first_row;
        let rows = &self.lines.rows[first_row..];
        let Some(start) = rows.first().map(|row| row.address) else { return };
        // Where a linker leaves a function out, its lines stay, often at address 0.
        if start > 0 && start < end && (self.is_code)(start) {
            let rows = rows.len();
            self.lines.sequences.push(Sequence { start, end, first_row, rows });
            self.first_row += rows;
        }
    }

    /// Forgets the rows of a sequence that is not kept.
    fn drop_sequence(&mut self) {
        self.lines.rows.truncate(self.first_row);
    }

    /// The place of a file's path, looked up once in a unit. Numbers of no file are not kept: there are as
    /// many as the program has rows.
    fn known_file(&mut self, header: &LineProgramHeader<Slice<'_>>, index: u64) -> Option<u32> {
        header.file(index)?;
        if let Some(place) = self.files.get(&index) {
            return *place;
        }
        let place = self.file(header, index);
        self.files.insert(index, place);
        place
    }

    /// The place of a file's path.
    fn file(&mut self, header: &LineProgramHeader<Slice<'_>>, index: u64) -> Option<u32> {
        let entry = header.file(index)?;
        let name = self.text(entry.path_name())?;
        // The directory of the compiler is left out: the rest names the file as its build does.
        let directory = match entry.directory_index() {
            0 => None,
            directory => header.directory(directory).and_then(|text| self.text(text)),
        };
        let path = match directory {
            Some(directory) if !name.starts_with('/') => format!("{directory}/{name}"),
            _ => name,
        };
        if path.is_empty() || path.len() > MAX_PATH_BYTES {
            return None;
        }
        if let Some(&place) = self.known.get(&*path) {
            return Some(place);
        }
        let place = u32::try_from(self.lines.files.len()).ok()?;
        if self.lines.files.len() >= MAX_FILES {
            return None;
        }
        let path: Arc<str> = path.into();
        self.lines.files.push(Arc::clone(&path));
        self.known.insert(path, place);
        Some(place)
    }

    fn text(&self, value: AttributeValue<Slice<'_>>) -> Option<String> {
        let text = match value {
            AttributeValue::String(text) => text.slice(),
            AttributeValue::DebugLineStrRef(offset) => {
                let texts = self.texts.get(offset.0..)?;
                texts[..texts.len().min(MAX_PATH_BYTES + 1)].split(|byte| *byte == 0).next()?
            }
            _ => return None,
        };
        (text.len() <= MAX_PATH_BYTES).then(|| String::from_utf8_lossy(text).into_owned())
    }
}

#[cfg(test)]
mod tests;

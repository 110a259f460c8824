//! The sections of an ELF file that hold debug information.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use gimli::RunTimeEndian;
use object::read::ReadCache;
use object::{CompressionFormat, Object, ObjectKind, ObjectSection};

use super::super::notation::NotAPlace;
use super::work::too_large;

/// Longest name of a variable, a type or a field in bytes; a longer one is cut.
pub(super) const MAX_TEXT_BYTES: usize = 4096;

/// Most sections that are looked at; object files that are not linked have the most.
const MAX_SECTIONS: usize = 100_000;

/// A section that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Section {
    Info,
    Types,
    Abbrev,
    Str,
    LineStr,
    StrOffsets,
    Addr,
    Aranges,
    Names,
    PubNames,
    GnuPubNames,
    GdbIndex,
}

impl Section {
    const ALL: [(Self, &'static str); 12] = [
        (Self::Info, ".debug_info"),
        (Self::Types, ".debug_types"),
        (Self::Abbrev, ".debug_abbrev"),
        (Self::Str, ".debug_str"),
        (Self::LineStr, ".debug_line_str"),
        (Self::StrOffsets, ".debug_str_offsets"),
        (Self::Addr, ".debug_addr"),
        (Self::Aranges, ".debug_aranges"),
        (Self::Names, ".debug_names"),
        (Self::PubNames, ".debug_pubnames"),
        (Self::GnuPubNames, ".debug_gnu_pubnames"),
        (Self::GdbIndex, ".gdb_index"),
    ];
}

/// Where the sections lie in their file.
#[derive(Debug)]
pub(super) struct Sections {
    file: File,
    path: PathBuf,
    /// Offset in the file and length of each; 0 bytes of one that is not there.
    places: [(u64, u64); Section::ALL.len()],
    pub(super) endian: RunTimeEndian,
}

impl Sections {
    /// Finds the sections of the file at `path`.
    pub(super) fn open(path: &Path) -> Result<Self, NotAPlace> {
        let shown = path.display();
        let failed = |error: &dyn std::fmt::Display| {
            wrong(format!("cannot read {shown}: {error}"), "a whole ELF file is needed")
        };
        let file = File::open(path).map_err(|error| failed(&error))?;
        let length = file.metadata().map_err(|error| failed(&error))?.len();
        let cache = ReadCache::new(&file);
        let elf = object::File::parse(&cache).map_err(|error| failed(&error))?;
        if elf.kind() == ObjectKind::Relocatable {
            return Err(wrong(
                format!("{shown} is not linked: its debug information has no addresses yet"),
                "take the linked file",
            ));
        }
        let endian =
            if elf.is_little_endian() { RunTimeEndian::Little } else { RunTimeEndian::Big };
        let mut places = [(0, 0); Section::ALL.len()];
        for section in elf.sections().take(MAX_SECTIONS) {
            let Ok(name) = section.name() else { continue };
            let is_old = name.starts_with(".zdebug_");
            let known = Section::ALL.iter().position(|(_, known)| *known == name);
            let packed = section.compressed_file_range();
            let packed = packed.is_ok_and(|range| range.format != CompressionFormat::None);
            if is_old || (packed && known.is_some()) {
                return Err(wrong(
                    format!("the debug information of {shown} is compressed"),
                    format!("unpack it: `objcopy --decompress-debug-sections {shown}`"),
                ));
            }
            if let (Some(known), Some((offset, bytes))) = (known, section.file_range())
                && places[known].1 == 0
            {
                let inside = offset.checked_add(bytes).is_some_and(|end| end <= length);
                if !inside {
                    return Err(failed(&format_args!("the section {name} is cut off")));
                }
                places[known] = (offset, bytes);
            }
        }
        drop(elf);
        drop(cache);
        let sections = Self { file, path: path.to_owned(), places, endian };
        if sections.length(Section::Info) == 0 || sections.length(Section::Abbrev) == 0 {
            return Err(wrong(
                format!("{shown} has no debug information, so its fields are not known"),
                "compile it with `-g` (a Linux kernel with CONFIG_DEBUG_INFO), or write \
                 NAME+OFFSET+LENGTH",
            ));
        }
        Ok(sections)
    }

    /// The file, for messages.
    pub(super) fn path(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// Bytes of a section.
    pub(super) fn length(&self, section: Section) -> u64 {
        self.place(section).1
    }

    fn place(&self, section: Section) -> (u64, u64) {
        let at = Section::ALL.iter().position(|(known, _)| *known == section);
        self.places[at.expect("all of them are listed")]
    }

    /// `length` bytes of a section from `offset` on; fails beyond its end, and for more than `most`.
    pub(super) fn read(
        &self,
        section: Section,
        offset: u64,
        length: u64,
        most: u64,
    ) -> Result<Vec<u8>, NotAPlace> {
        let (start, bytes) = self.place(section);
        if offset.checked_add(length).is_none_or(|end| end > bytes) {
            return Err(self.damaged("an offset lies beyond the end of its section"));
        }
        let Some(length) = usize::try_from(length).ok().filter(|it| *it as u64 <= most) else {
            return Err(too_large("is too large"));
        };
        let mut buffer = vec![0; length];
        self.file.read_exact_at(&mut buffer, start + offset).map_err(|error| {
            wrong(format!("cannot read {}: {error}", self.path()), "a whole ELF file is needed")
        })?;
        Ok(buffer)
    }

    /// The number of `bytes` bytes, at most 8, at `offset` of a section.
    pub(super) fn number(
        &self,
        section: Section,
        offset: u64,
        bytes: usize,
    ) -> Result<u64, NotAPlace> {
        let mut word = [0; 8];
        let read = self.read(section, offset, bytes as u64, 8)?;
        Ok(match self.endian {
            RunTimeEndian::Little => {
                word[..bytes].copy_from_slice(&read);
                u64::from_le_bytes(word)
            }
            RunTimeEndian::Big => {
                word[8 - bytes..].copy_from_slice(&read);
                u64::from_be_bytes(word)
            }
        })
    }

    /// The text that begins at `offset` of a section, up to its zero byte; a long one is cut.
    pub(super) fn text(&self, section: Section, offset: u64) -> Result<Vec<u8>, NotAPlace> {
        // Most names are short.
        let mut most = 64;
        loop {
            let rest = self.length(section).saturating_sub(offset);
            let mut text = self.read(section, offset, rest.min(most), most)?;
            if let Some(end) = text.iter().position(|byte| *byte == 0) {
                text.truncate(end);
                return Ok(text);
            }
            if most >= rest || most >= MAX_TEXT_BYTES as u64 {
                return Ok(text);
            }
            most = MAX_TEXT_BYTES as u64;
        }
    }

    /// What does not follow the format.
    pub(super) fn damaged(&self, reason: impl std::fmt::Display) -> NotAPlace {
        wrong(
            format!("the debug information of {} cannot be read: {reason}", self.path()),
            "compile it anew with `-g`, or write NAME+OFFSET+LENGTH",
        )
    }
}

pub(super) fn wrong(message: impl Into<String>, help: impl Into<String>) -> NotAPlace {
    NotAPlace { message: message.into(), help: help.into() }
}

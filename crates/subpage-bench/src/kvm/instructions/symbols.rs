//! Which function an address of another process belongs to.

use std::collections::HashMap;
use std::fs;

use object::{Object as _, ObjectSegment as _, ObjectSymbol as _, SymbolKind};

/// What is mapped executable in a process, and the functions of the files among that.
#[derive(Debug)]
pub(super) struct Symbols {
    mappings: Vec<Mapping>,
    files: HashMap<String, Functions>,
}

/// A line of `/proc/PID/maps`.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    first: u64,
    end: u64,
    offset: u64,
    name: String,
}

/// Names of functions by offset in their file, ascending.
#[derive(Debug, Default)]
struct Functions(Vec<(u64, String)>);

impl Symbols {
    /// Those of a process. What cannot be read has no names.
    pub(super) fn of(pid: u32) -> Self {
        let text = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let mappings: Vec<_> = text.lines().filter_map(Mapping::of_line).collect();
        let paths =
            mappings.iter().map(|mapping| &mapping.name).filter(|name| name.starts_with('/'));
        let files = paths.map(|path| (path.clone(), Functions::of_file(path))).collect();
        Self { mappings, files }
    }

    /// The function at an address, or what is mapped there.
    pub(super) fn function_at(&self, address: u64) -> String {
        let inside = |mapping: &&Mapping| (mapping.first..mapping.end).contains(&address);
        let Some(mapping) = self.mappings.iter().find(inside) else {
            return "(unmapped)".to_owned();
        };
        let offset = address - mapping.first + mapping.offset;
        let function = self.files.get(&mapping.name).and_then(|file| file.at(offset));
        match function {
            Some(name) => format!("{:#}", rustc_demangle::demangle(name)),
            None if mapping.name.is_empty() => "(generated code)".to_owned(),
            None => mapping.name.clone(),
        }
    }
}

impl Mapping {
    /// None unless it is executable.
    fn of_line(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (first, end) = words.next()?.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        let (first, end) = (number(first)?, number(end)?);
        let executable = words.next()?.contains('x');
        let offset = number(words.next()?)?;
        // Device and inode.
        let name = words.nth(2).unwrap_or_default().to_owned();
        executable.then_some(Self { first, end, offset, name })
    }
}

impl Functions {
    fn of_file(path: &str) -> Self {
        let bytes = fs::read(path).unwrap_or_default();
        let Ok(file) = object::File::parse(bytes.as_slice()) else { return Self::default() };
        let segments: Vec<_> =
            file.segments().map(|segment| (segment.address(), segment.file_range())).collect();
        let offset = |address: u64| {
            segments.iter().find_map(|(first, (offset, bytes))| {
                let into = address.checked_sub(*first)?;
                (into < *bytes).then_some(offset + into)
            })
        };
        let mut functions: Vec<_> = file
            .symbols()
            .chain(file.dynamic_symbols())
            .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
            .filter_map(|symbol| Some((offset(symbol.address())?, symbol.name().ok()?.to_owned())))
            .collect();
        functions.sort_unstable();
        functions.dedup_by_key(|(offset, _)| *offset);
        Self(functions)
    }

    /// The last that begins at or before an offset.
    fn at(&self, offset: u64) -> Option<&str> {
        let behind = self.0.partition_point(|(first, _)| *first <= offset);
        Some(&self.0[behind.checked_sub(1)?].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_executable_mappings_count() {
        let line = "7f10-7f20 r-xp 00002000 fe:00 77                         /usr/lib/libc.so.6";
        let name = "/usr/lib/libc.so.6".to_owned();
        let expected = Mapping { first: 0x7f10, end: 0x7f20, offset: 0x2000, name };
        assert_eq!(Mapping::of_line(line), Some(expected));
        assert_eq!(Mapping::of_line("7f10-7f20 rw-p 00002000 fe:00 77 /usr/lib/libc.so.6"), None);
        let generated = Mapping::of_line("10-20 rwxp 00000000 00:00 0").expect("a mapping");
        assert_eq!(generated.name, "");
    }

    /// This very test is a function of this process.
    #[test]
    fn an_address_of_this_process_has_a_function() {
        #[inline(never)]
        fn known() -> u32 {
            std::hint::black_box(7)
        }
        let known: fn() -> u32 = known;
        let name = Symbols::of(std::process::id()).function_at(known as usize as u64);
        assert!(name.contains("an_address_of_this_process_has_a_function::known"), "{name}");
    }
}

//! What the kernel says about this process's mappings: `/proc/self/smaps`.

use std::fs::File;
use std::io::{self, BufReader};

/// One mapping, as far as it is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostMapping {
    /// Address of the first byte.
    pub(crate) start: u64,
    /// Behind the last one.
    pub(crate) end: u64,
    /// Others see what is written.
    pub(crate) shared: bool,
    /// Pages of a file.
    pub(crate) of_file: bool,
    /// Pages of hugetlbfs.
    pub(crate) huge: bool,
    /// The protection, for `mprotect`.
    pub(crate) protection: i32,
    /// Advice that was given about it, for `madvise`.
    pub(crate) advice: Vec<i32>,
}

/// The mappings that touch addresses from `start` to `end`, ascending.
pub(crate) fn mappings(start: u64, end: u64) -> io::Result<Vec<HostMapping>> {
    read(BufReader::new(File::open("/proc/self/smaps")?), start, end)
}

fn read(lines: impl io::BufRead, start: u64, end: u64) -> io::Result<Vec<HostMapping>> {
    let mut found: Vec<HostMapping> = Vec::new();
    let mut inside = false;
    for line in lines.lines() {
        let line = line?;
        if let Some(mapping) = head(&line) {
            if mapping.start >= end {
                break;
            }
            inside = mapping.end > start;
            if inside {
                found.push(mapping);
            }
        } else if inside
            && let Some(flags) = line.strip_prefix("VmFlags:")
            && let Some(mapping) = found.last_mut()
        {
            mapping.huge = flags.split_whitespace().any(|flag| flag == "ht");
            mapping.advice = flags.split_whitespace().filter_map(advice).collect();
        }
    }
    Ok(found)
}

/// `5600-5700 rw-p 00000000 00:00 0  name`.
fn head(line: &str) -> Option<HostMapping> {
    let mut words = line.split(' ');
    let (start, end) = words.next()?.split_once('-')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    let rights = words.next()?.as_bytes();
    let &[read, write, execute, kind] = rights else { return None };
    let bit = |there: u8, bit: i32| if there == b'-' { 0 } else { bit };
    let protection =
        bit(read, libc::PROT_READ) | bit(write, libc::PROT_WRITE) | bit(execute, libc::PROT_EXEC);
    // Offset and device come before the inode.
    let of_file = words.nth(2)? != "0";
    let (shared, huge, advice) = (kind == b's', false, Vec::new());
    Some(HostMapping { start, end, shared, of_file, huge, protection, advice })
}

/// The advice behind one of the kernel's flags, if there is one that a new mapping has not by itself.
fn advice(flag: &str) -> Option<i32> {
    Some(match flag {
        "dc" => libc::MADV_DONTFORK,
        "mg" => libc::MADV_MERGEABLE,
        "hg" => libc::MADV_HUGEPAGE,
        "nh" => libc::MADV_NOHUGEPAGE,
        "dd" => libc::MADV_DONTDUMP,
        "wf" => libc::MADV_WIPEONFORK,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_touches_the_range() {
        let text = "1000-3000 rw-p 00000000 00:00 0 \nSize: 8 kB\nVmFlags: rd wr mr dc hg \n\
            3000-4000 r--s 00000000 00:01 7 /memfd:ram (deleted)\nVmFlags: rd ht \n\
            9000-a000 rw-p 00000000 00:00 0 [heap]\nVmFlags: rd wr mr dd \n";
        let found = read(text.as_bytes(), 0x2000, 0x9000).expect("text");
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].start, found[0].end, found[0].shared), (0x1000, 0x3000, false));
        assert_eq!(found[0].advice, [libc::MADV_DONTFORK, libc::MADV_HUGEPAGE]);
        assert_eq!((found[1].shared, found[1].huge, found[1].protection), (true, true, 1));
        assert_eq!((found[0].of_file, found[1].of_file), (false, true));
        assert!(read(text.as_bytes(), 0x4000, 0x9000).expect("text").is_empty());
    }
}

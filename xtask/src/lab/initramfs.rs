//! An initramfs: a cpio archive of the form "newc" (Linux, Documentation/driver-api/early-userspace/
//! buffer-format.rst), owned by root.

use std::collections::BTreeSet;

const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// An archive that grows. Directories above an entry come by themselves.
#[derive(Debug, Default)]
pub(crate) struct Initramfs {
    bytes: Vec<u8>,
    inode: u32,
    directories: BTreeSet<String>,
}

impl Initramfs {
    /// With the console, which the kernel opens for init before anything is mounted.
    pub(crate) fn new() -> Self {
        let mut archive = Self::default();
        archive.directory("dev");
        archive.entry("dev/console", CHARACTER_DEVICE | 0o600, (5, 1), b"");
        archive
    }

    /// Adds a directory. Paths here have no slash in front.
    pub(crate) fn directory(&mut self, path: &str) {
        if !path.is_empty() && !self.directories.contains(path) {
            self.parents(path);
            self.entry(path, DIRECTORY | 0o755, (0, 0), b"");
            self.directories.insert(path.to_owned());
        }
    }

    /// Adds a file with its permissions.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, contents: &[u8]) {
        self.parents(path);
        self.entry(path, FILE | permissions & 0o777, (0, 0), contents);
    }

    /// Adds a symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.entry(path, LINK | 0o777, (0, 0), target.as_bytes());
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), b"");
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        // The kernel takes two entries with one number for two names of one file.
        self.inode += 1;
        let length = u32::try_from(contents.len()).expect("a file has less than 4 GiB");
        let name_length = u32::try_from(path.len() + 1).expect("a path is short");
        self.bytes.extend(b"070701");
        let (owner, group, links, time, checksum) = (0, 0, 1, 0, 0);
        let (major, minor) = (0, 0);
        for number in [
            self.inode,
            mode,
            owner,
            group,
            links,
            time,
            length,
            major,
            minor,
            device.0,
            device.1,
            name_length,
            checksum,
        ] {
            self.bytes.extend(format!("{number:08X}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(contents);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_header_a_name_and_contents() {
        let mut archive = Initramfs::default();
        archive.file("init", 0o755, b"hello");
        let bytes = archive.finish();
        let header = "070701000000010000 81ED 00000000 00000000 00000001 00000000 00000005 \
                      00000000 00000000 00000000 00000000 00000005 00000000"
            .replace(' ', "");
        assert_eq!(&bytes[..110], header.as_bytes());
        assert_eq!(&bytes[110..124], b"init\0\0hello\0\0\0");
        assert_eq!(&bytes[124..130], b"070701");
        assert_eq!(bytes.len() % 512, 0);
        assert!(bytes.windows(11).any(|window| window == b"TRAILER!!!\0"));
    }

    #[test]
    fn directories_come_once_and_before_what_is_in_them() {
        let mut archive = Initramfs::new();
        archive.file("a/b/c", 0o644, b"");
        archive.file("a/b/d", 0o644, b"");
        archive.link("a/e", "b/c");
        let bytes = archive.finish();
        let place = |name: &str| {
            let name = format!("{name}\0").into_bytes();
            let found: Vec<_> = (0..bytes.len())
                .filter(|&at| bytes[at..].starts_with(&name) && bytes[at - 1].is_ascii_hexdigit())
                .collect();
            assert_eq!(found.len(), 1, "{name:?}");
            found[0]
        };
        let order = ["dev", "dev/console", "a", "a/b", "a/b/c", "a/b/d", "a/e"].map(place);
        assert!(order.is_sorted());
    }
}

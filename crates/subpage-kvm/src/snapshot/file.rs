//! The file of a snapshot.
//!
//! Version 1, numbers little-endian: the magic `SUBPSNAP`, the version (4 bytes), the length of the
//! header (8 bytes), the header (JSON), the length of the engine's exported state (8 bytes), that
//! state, then runs of pages that are not all zero: first frame and count (8 bytes each) and the pages;
//! a run with count 0 ends them. Last, the SHA-256 of everything before it.
//!
//! A file appears under its name when it is whole and on the disk, or not at all: it is written under
//! another name in the same directory and renamed. The checksum finds damage, not forgery.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subpage::address::{Gfn, GfnRange, PAGE_BYTES};
use subpage_emulate::guest::PhysicalMemory as _;
use tempfile::NamedTempFile;

use super::{Chips, Features, ProcessorState, SnapshotError};
use crate::devices::PortsState;
use crate::memory::Ram;
use subpage_guard::temporary_file::nameless;

const MAGIC: [u8; 8] = *b"SUBPSNAP";
const VERSION: u32 = 1;

/// Longest header: some kilobytes for each processor.
const MAX_HEADER_BYTES: u64 = 64 << 20;

/// Longest exported state of the engine.
const MAX_STATE_BYTES: u64 = 1 << 30;

const CHECKSUM_BYTES: usize = 32;

const PAGE: usize = 4096;

/// Everything but the engine's state and memory.
#[derive(Serialize, Deserialize)]
pub struct Header {
    /// Virtual processors.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Memory with a second address: its first frame there, the count, and the first original frame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<(u64, u64, u64)>,
    /// What the guest has seen of its processor.
    pub features: Features,
    /// What was asked for and left out of it, as [`FeatureChoice`](crate::vcpu::FeatureChoice) is written:
    /// parsed where it is used, so that a name that is not known here is told as at a start.
    #[serde(default = "older_choice")]
    pub feature_choice: String,
    /// State of each processor.
    pub processors: Vec<ProcessorState>,
    /// State of KVM's devices.
    pub chips: Chips,
    /// State of this program's devices.
    pub ports: PortsState,
    /// Rules that are not in force: number, and the word for the moment that it waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<(u64, String)>,
    /// The rule that tells of the guest's first program, the address, and what is written there then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_program: Option<(u64, u64, u32)>,
    /// How far the linear addresses of a Linux kernel were moved that was unpacked here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_slide: Option<u64>,
    /// Trapping pages that were in read-only slots because they hold page tables: first frame and
    /// count of each run. Absent in files of versions that did not keep it.
    #[serde(default)]
    pub held_tables: Vec<(u64, u64)>,
}

/// What guests found before there was a choice: CMPXCHG16B also where KVM cannot emulate it.
fn older_choice() -> String {
    "cx16".to_owned()
}

/// A file that is being written.
pub struct Writer {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
    hash: Sha256,
    bytes: u64,
}

impl Writer {
    /// Begins a file that is to have the name `path`.
    pub fn create(path: &Path) -> Result<Self, SnapshotError> {
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let failed = |error| SnapshotError::Write { path: path.to_owned(), error };
        if path.is_dir() {
            return Err(failed(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        if !may_replace(path) {
            let why = "the file that is there is something else; remove it, or name another";
            return Err(failed(io::Error::new(io::ErrorKind::AlreadyExists, why)));
        }
        let file = tempfile::Builder::new()
            .prefix(".subpage-save-")
            .tempfile_in(directory)
            .map_err(|error| failed(nameless(error)))?;
        let file = BufWriter::with_capacity(1 << 20, file);
        Ok(Self { path: path.to_owned(), file, hash: Sha256::new(), bytes: 0 })
    }

    /// Writes all of it and gives the file its name; how many bytes it has.
    pub fn write(mut self, header: &Header, state: &[u8], ram: &Ram) -> Result<u64, SnapshotError> {
        let path = self.path.clone();
        self.write_all(header, state, ram)
            .and_then(|()| self.finish())
            .map_err(|error| SnapshotError::Write { path, error: nameless(error) })
    }

    fn write_all(&mut self, header: &Header, state: &[u8], ram: &Ram) -> io::Result<()> {
        let header = serde_json::to_vec(header)?;
        self.put(&MAGIC)?;
        self.put(&VERSION.to_le_bytes())?;
        self.put(&(header.len() as u64).to_le_bytes())?;
        self.put(&header)?;
        self.put(&(state.len() as u64).to_le_bytes())?;
        self.put(state)?;
        for region in ram.regions() {
            self.pages(ram, region.pages)?;
        }
        self.put(&[0; 16])
    }

    /// Writes the pages that are not all zero, as runs.
    fn pages(&mut self, ram: &Ram, region: GfnRange) -> io::Result<()> {
        /// Pages in one run at most: what is held in memory at once.
        const RUN: usize = 256;
        let mut run: Vec<u8> = Vec::with_capacity(RUN * PAGE);
        let mut first = region.first();
        let mut page = [0; PAGE];
        for gfn in region.iter() {
            ram.read(gfn.gpa(), &mut page).expect("a page of memory");
            let empty = page.iter().all(|&byte| byte == 0);
            if !run.is_empty() && (empty || run.len() == RUN * PAGE) {
                self.run(first, &run)?;
                run.clear();
            }
            if !empty {
                if run.is_empty() {
                    first = gfn;
                }
                run.extend_from_slice(&page);
            }
        }
        if run.is_empty() { Ok(()) } else { self.run(first, &run) }
    }

    fn run(&mut self, first: Gfn, pages: &[u8]) -> io::Result<()> {
        self.put(&first.as_u64().to_le_bytes())?;
        self.put(&((pages.len() / PAGE) as u64).to_le_bytes())?;
        self.put(pages)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    fn finish(mut self) -> io::Result<u64> {
        let checksum = self.hash.finalize();
        self.file.write_all(&checksum)?;
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        file.persist(&self.path).map_err(|error| error.error)?;
        // The name, too, is to outlive a loss of power; a file system that cannot do that is no reason
        // to fail now.
        if let Some(directory) = self.path.parent().filter(|parent| *parent != Path::new("")) {
            let _ = File::open(directory).and_then(|directory| directory.sync_all());
        }
        Ok(self.bytes + CHECKSUM_BYTES as u64)
    }
}

/// Whether nothing is lost with what has this name: there is no such file, it is empty, or a snapshot.
fn may_replace(path: &Path) -> bool {
    if !path.is_file() {
        return true;
    }
    let mut head = Vec::new();
    let read =
        File::open(path).and_then(|file| file.take(MAGIC.len() as u64).read_to_end(&mut head));
    // Whether a file that cannot be read can be replaced, the rename finds out.
    read.is_err() || head.is_empty() || head == MAGIC
}

/// A file that is being read.
pub struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    hash: Sha256,
}

impl Reader {
    /// Opens a snapshot and reads its header, which is not to be believed before
    /// [`finish`](Self::finish).
    pub fn open(path: &Path) -> Result<(Self, Header), SnapshotError> {
        let failed = |error| SnapshotError::Read { path: path.to_owned(), error };
        // Opening a pipe would wait for its other end.
        if !path.metadata().map_err(failed)?.is_file() {
            return Err(SnapshotError::NotSnapshot { path: path.to_owned() });
        }
        let file = File::open(path).map_err(failed)?;
        let file = BufReader::with_capacity(1 << 20, file);
        let mut reader = Self { path: path.to_owned(), file, hash: Sha256::new() };
        let magic: [u8; 8] =
            reader.array().map_err(|_| SnapshotError::NotSnapshot { path: path.to_owned() })?;
        if magic != MAGIC {
            return Err(SnapshotError::NotSnapshot { path: path.to_owned() });
        }
        let found = u32::from_le_bytes(reader.array()?);
        if found != VERSION {
            return Err(SnapshotError::Version { found, known: VERSION });
        }
        let header = reader.sized(MAX_HEADER_BYTES)?;
        let header = serde_json::from_slice(&header)
            .map_err(|error| SnapshotError::Content(error.to_string()))?;
        Ok((reader, header))
    }

    /// Reads the engine's state and puts the pages into memory; fails if the file is not whole.
    pub fn finish(mut self, ram: &Ram) -> Result<Vec<u8>, SnapshotError> {
        let state = self.sized(MAX_STATE_BYTES)?;
        let mut page = [0; PAGE];
        loop {
            let first = u64::from_le_bytes(self.array()?);
            let pages = u64::from_le_bytes(self.array()?);
            if pages == 0 {
                break;
            }
            let outside = || SnapshotError::Content(format!("pages at frame {first:#x}"));
            let first = Gfn::try_new(first).map_err(|_| outside())?;
            let run = GfnRange::new(first, pages).map_err(|_| outside())?;
            if !ram.regions().iter().any(|region| region.pages.intersection(run) == Some(run)) {
                return Err(outside());
            }
            for gfn in run.iter() {
                self.fill(&mut page)?;
                ram.write(gfn.gpa(), &page).expect("a page of memory");
            }
        }
        let computed = self.hash.clone().finalize();
        let mut stored = [0; CHECKSUM_BYTES];
        self.file.read_exact(&mut stored).map_err(|_| SnapshotError::Checksum)?;
        let ends = self.file.read(&mut [0; 1]).is_ok_and(|more| more == 0);
        if !ends || stored[..] != computed[..] {
            return Err(SnapshotError::Checksum);
        }
        Ok(state)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), SnapshotError> {
        self.file.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => SnapshotError::Checksum,
            _ => SnapshotError::Read { path: self.path.clone(), error },
        })?;
        self.hash.update(&buffer);
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// Bytes behind their length. A length that lies costs no more memory than the file has.
    fn sized(&mut self, most: u64) -> Result<Vec<u8>, SnapshotError> {
        let length = u64::from_le_bytes(self.array()?);
        if length > most {
            return Err(SnapshotError::Content(format!("a part of {length} bytes")));
        }
        let mut bytes = Vec::new();
        let path = &self.path;
        (&mut self.file)
            .take(length)
            .read_to_end(&mut bytes)
            .map_err(|error| SnapshotError::Read { path: path.clone(), error })?;
        if bytes.len() as u64 != length {
            return Err(SnapshotError::Checksum);
        }
        self.hash.update(&bytes);
        Ok(bytes)
    }
}

const _: () = assert!(PAGE as u64 == PAGE_BYTES);

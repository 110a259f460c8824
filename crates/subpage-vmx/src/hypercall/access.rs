//! `GetAccess` and `SetAccess`: `struct kvm_subpage` in guest memory.

use arrayvec::ArrayVec;

use subpage::access::AccessMap;
use subpage::address::{Gfn, Gpa};
use subpage::domain::Observer;
use subpage::frames::TableFrames;
use subpage::uapi::{self, Fault, HEADER_BYTES, MAX_PAGES, RequestMemory};

use subpage_emulate::guest::PhysicalMemory;
use subpage_trap::Origin;

use super::buffer::bytes_at;
use super::{CallContext, CallOutcome, Errno, Refusal, after, done};

/// Bytes of the longest map: 2048.
const MAP_BYTES: usize = MAX_PAGES as usize * size_of::<u32>();

/// Bytes of a map that are read at a time.
const PIECE: usize = 64;

/// A request in guest memory, whose answer is kept until it may be written there.
struct Get<'a, M> {
    memory: &'a M,
    first: Gpa,
    /// Where in the request the answer goes.
    offset: usize,
    answer: ArrayVec<u8, MAP_BYTES>,
}

impl<M: PhysicalMemory> RequestMemory for Get<'_, M> {
    fn read(&mut self, offset: usize, buffer: &mut [u8]) -> Result<(), Fault> {
        let at = self.first.checked_add(offset as u64).ok_or(Fault)?;
        self.memory.read(at, buffer).map_err(|_| Fault)
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Fault> {
        self.offset = offset;
        self.answer.clear();
        self.answer.try_extend_from_slice(bytes).map_err(|_| Fault)
    }
}

/// A request, read: as many of its bytes as guest memory gave.
struct Set {
    bytes: ArrayVec<u8, { HEADER_BYTES + MAP_BYTES }>,
}

impl Set {
    /// Reads the header and then the map that it announces, each byte once.
    fn read(&mut self, memory: &impl PhysicalMemory, first: Gpa) {
        let mut header = [0; HEADER_BYTES];
        if memory.read(first, &mut header).is_err() {
            return;
        }
        self.append(&header);
        let announced = self.pages() as usize * size_of::<u32>();
        if announced > MAP_BYTES {
            return;
        }
        let Some(at) = first.checked_add(HEADER_BYTES as u64) else { return };
        // In pieces: most requests are for few pages, and filling room for the longest takes longer
        // than all else.
        for offset in (0..announced).step_by(PIECE) {
            let mut piece = [0; PIECE];
            let piece = &mut piece[..PIECE.min(announced - offset)];
            let read = at.checked_add(offset as u64).map(|at| memory.read(at, piece));
            if !matches!(read, Some(Ok(()))) {
                self.bytes.truncate(HEADER_BYTES);
                return;
            }
            self.append(piece);
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        self.bytes.try_extend_from_slice(bytes).expect("room for the longest request");
    }

    fn word(&self, at: usize) -> u32 {
        let bytes = self.bytes.get(at..).and_then(<[u8]>::first_chunk);
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    /// `npages`, unchecked.
    fn pages(&self) -> u32 {
        self.word(8)
    }

    /// The pages of the request with their maps; none beyond the last frame.
    fn maps(&self) -> impl Iterator<Item = (Gfn, AccessMap)> {
        let first = u64::from(self.word(0)) | u64::from(self.word(4)) << 32;
        let maps = self.bytes.get(HEADER_BYTES..).unwrap_or_default();
        (0_u64..).zip(maps.chunks_exact(size_of::<u32>())).map_while(move |(index, map)| {
            let gfn = Gfn::try_new(first.checked_add(index)?).ok()?;
            Some((gfn, AccessMap::from_bits(u32::from_le_bytes(*map.first_chunk()?))))
        })
    }
}

impl RequestMemory for Set {
    fn read(&mut self, offset: usize, buffer: &mut [u8]) -> Result<(), Fault> {
        let bytes = self.bytes.get(offset..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(Fault)?);
        Ok(())
    }

    fn write(&mut self, _offset: usize, _bytes: &[u8]) -> Result<(), Fault> {
        Err(Fault)
    }
}

impl<F: TableFrames, O: Observer, M: PhysicalMemory> CallContext<'_, F, O, M> {
    pub(super) fn get_access(
        &mut self,
        address: u64,
        origin: Origin,
    ) -> Result<CallOutcome, Refusal> {
        let first = Gpa::try_new(address).map_err(|_| Errno::Fault)?;
        let answer = ArrayVec::new();
        let mut request = Get { memory: self.memory, first, offset: 0, answer };
        let pages = uapi::get_access(self.domain, &mut request)?;
        let Get { offset, answer, .. } = request;
        if !answer.is_empty() {
            let at = first.checked_add(offset as u64).ok_or(Errno::Fault)?;
            let to = bytes_at(at.as_u64(), answer.len() as u64)?;
            self.write_result(to, &answer, origin)?;
        }
        Ok(done(pages.into()))
    }

    pub(super) fn set_access(&mut self, address: u64) -> Result<CallOutcome, Refusal> {
        let first = Gpa::try_new(address).map_err(|_| Errno::Fault)?;
        let mut request = Set { bytes: ArrayVec::new() };
        request.read(self.memory, first);
        let host = &self.ledger.host_maps;
        if request.maps().any(|(gfn, map)| !host.of(gfn).covers(map)) {
            return Err(Errno::NotPermitted.into());
        }
        let (pages, token) = uapi::set_access(self.domain, &mut request)?;
        Ok(after(token, pages.into()))
    }
}

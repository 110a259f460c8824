//! A small guest: tables built by hand, memory, and virtual CPUs.

use subpage::access::{AccessMap, SppVector};
use subpage::address::{Gpa, PhysicalWidth};
use subpage::exit::ExitReason;
use subpage::frames::{ENTRIES, HeapFrames, TableFrame, TableFrames};
use subpage::level::Level;
use subpage_model::{
    Access, AccessKind, Deviations, Features, Roots, SparseMemory, Staleness, Translation, Vcpu,
    VmExit,
};

/// The page that the measurements were made on.
pub(crate) const P: u64 = 0x80_0000;

pub(crate) const R: u64 = 1;
pub(crate) const W: u64 = 1 << 1;
pub(crate) const X: u64 = 1 << 2;
pub(crate) const WB: u64 = 6 << 3;
pub(crate) const LARGE: u64 = 1 << 7;
pub(crate) const ACCESSED: u64 = 1 << 8;
pub(crate) const DIRTY: u64 = 1 << 9;
pub(crate) const SPP: u64 = 1 << 61;

/// Exit 48 for a write to an R, X page through a supervisor-mode address.
pub(crate) const WRITE_TO_RX: u64 = 0x5aa;

/// What a test expects of an access: nothing, or a reason and a qualification.
pub(crate) type Exit = Option<(u16, u64)>;

pub(crate) const PASSES: Exit = None;
pub(crate) const DENIED: Exit = Some((48, WRITE_TO_RX));
pub(crate) const MISS: Exit = Some((66, 0x800));
pub(crate) const MISCONFIGURATION: Exit = Some((66, 0));

/// Identity-mapped 16 MiB in 2 MiB pages, of which the 2 MiB at [`P`] are 4 KiB pages; the SPPT
/// covers the same 2 MiB and denies everything.
pub(crate) struct Guest {
    pub(crate) frames: HeapFrames,
    pub(crate) memory: SparseMemory,
    pub(crate) roots: Roots,
    pub(crate) cpus: Vec<Vcpu>,
}

pub(crate) fn table(frames: &mut HeapFrames) -> TableFrame {
    let table = frames.allocate().expect("memory");
    frames.make_room(table, ENTRIES).expect("memory");
    table
}

fn number(table: TableFrame) -> u64 {
    table.hpa().as_u64()
}

impl Guest {
    pub(crate) fn new(features: Features, deviations: Deviations, staleness: Staleness) -> Self {
        let mut frames = HeapFrames::new();
        let ept = table(&mut frames);
        let sppt = table(&mut frames);
        let roots = Roots { ept, ept_accessed_dirty: false, sppt: Some(sppt) };
        let memory = SparseMemory::new();
        let cpu = Vcpu::new(features, deviations, staleness);
        let mut guest = Self { frames, memory, roots, cpus: vec![cpu.clone(), cpu] };
        guest.link_ept(P, Level::L4);
        guest.link_ept(P, Level::L3);
        for region in 0..8 {
            let gpa = region << 21;
            guest.set_ept(gpa, Level::L2, gpa | LARGE | WB | R | W | X);
        }
        guest.link_ept(P, Level::L2);
        for page in 0..512 {
            let gpa = P + (page << 12);
            guest.set_ept(gpa, Level::L1, gpa | WB | R | W | X);
        }
        for level in [Level::L4, Level::L3, Level::L2] {
            let below = table(&mut guest.frames);
            guest.set_sppt(P, level, number(below) | 1);
        }
        guest
    }

    /// The architecture, without flags, walking the tables each time.
    pub(crate) fn plain() -> Self {
        Self::new(Features::new(width()), Deviations::NONE, Staleness::None)
    }

    /// Bochs 3.0 on a 40-bit processor.
    pub(crate) fn bochs() -> Self {
        Self::new(Features::new(width()), Deviations::BOCHS, Staleness::UntilExit)
    }

    pub(crate) fn with(staleness: Staleness) -> Self {
        Self::new(Features::new(width()), Deviations::NONE, staleness)
    }

    fn link_ept(&mut self, gpa: u64, level: Level) {
        let below = table(&mut self.frames);
        self.set_ept(gpa, level, number(below) | R | W | X);
    }

    fn find(&self, root: TableFrame, gpa: u64, level: Level) -> TableFrame {
        let gfn = Gpa::new(gpa).gfn();
        let (mut table, mut at) = (root, Level::L4);
        while at != level {
            let bits = self.frames.load(table, at.index(gfn));
            let hpa = subpage::address::Hpa::new(bits & 0x000F_FFFF_FFFF_F000);
            table = TableFrame::try_new(hpa).expect("aligned");
            at = at.below().expect("above the wanted level");
        }
        table
    }

    pub(crate) fn ept(&self, gpa: u64, level: Level) -> u64 {
        let table = self.find(self.roots.ept, gpa, level);
        self.frames.load(table, level.index(Gpa::new(gpa).gfn()))
    }

    pub(crate) fn set_ept(&mut self, gpa: u64, level: Level, bits: u64) {
        let table = self.find(self.roots.ept, gpa, level);
        self.frames.store(table, level.index(Gpa::new(gpa).gfn()), bits);
    }

    /// Maps the page of `gpa` to itself with these bits, write-back.
    pub(crate) fn set_leaf(&mut self, gpa: u64, bits: u64) {
        self.set_ept(gpa, Level::L1, gpa & !0xFFF | WB | bits);
    }

    pub(crate) fn sppt(&self, gpa: u64, level: Level) -> u64 {
        let table = self.find(self.roots.sppt.expect("set"), gpa, level);
        self.frames.load(table, level.index(Gpa::new(gpa).gfn()))
    }

    pub(crate) fn set_sppt(&mut self, gpa: u64, level: Level, bits: u64) {
        let table = self.find(self.roots.sppt.expect("set"), gpa, level);
        self.frames.store(table, level.index(Gpa::new(gpa).gfn()), bits);
    }

    pub(crate) fn set_vector(&mut self, gpa: u64, map: u32) {
        let vector = SppVector::from_map(AccessMap::from_bits(map));
        self.set_sppt(gpa, Level::L1, vector.bits());
    }

    /// Puts the page of `gpa` under SPP with this map.
    pub(crate) fn restrict(&mut self, gpa: u64, map: u32) {
        self.set_leaf(gpa, R | X | SPP);
        self.set_vector(gpa, map);
    }

    pub(crate) fn access(&mut self, cpu: usize, access: &Access) -> Result<Translation, VmExit> {
        self.cpus[cpu].access(&self.roots, &mut self.frames, access)
    }

    pub(crate) fn try_write(&mut self, access: &Access, bytes: &[u8]) -> Result<(), VmExit> {
        self.cpus[0].write(&self.roots, &mut self.frames, &mut self.memory, access, bytes)
    }

    /// A write of `length` bytes of `byte` on CPU 0.
    pub(crate) fn write_bytes(&mut self, gpa: u64, length: usize, byte: u8) -> Exit {
        let access = write(gpa, length as u64);
        seen(self.try_write(&access, &vec![byte; length]))
    }

    /// An 8-byte write on CPU 0.
    pub(crate) fn write(&mut self, gpa: u64) -> Exit {
        self.write_bytes(gpa, 8, 0x11)
    }

    /// An 8-byte access of a kind on CPU 0.
    pub(crate) fn kind(&mut self, kind: AccessKind, gpa: u64) -> Exit {
        seen(self.access(0, &access(kind, gpa, 8)))
    }

    /// Guest memory as it is, past all checks; the mapping is the identity.
    pub(crate) fn peek(&self, gpa: u64, length: usize) -> Vec<u8> {
        use subpage_model::GuestMemory;
        let at = |byte: u64| {
            let mut one = [0];
            self.memory.read(subpage::address::Hpa::new(byte), &mut one);
            one[0]
        };
        (gpa..gpa + length as u64).map(at).collect()
    }

    pub(crate) fn invept(&mut self, cpu: usize) {
        self.cpus[cpu].invept();
    }
}

pub(crate) fn width() -> PhysicalWidth {
    PhysicalWidth::try_new(40).expect("legal")
}

pub(crate) fn access(kind: AccessKind, gpa: u64, length: u64) -> Access {
    Access::new(kind, Gpa::new(gpa), length).expect("a legal access")
}

pub(crate) fn write(gpa: u64, length: u64) -> Access {
    access(AccessKind::Write, gpa, length)
}

pub(crate) fn seen<T>(result: Result<T, VmExit>) -> Exit {
    result.err().map(|exit| (exit.reason.0, exit.qualification))
}

/// A denied 8-byte write, in full.
pub(crate) fn denial(gpa: u64) -> VmExit {
    VmExit {
        reason: ExitReason::EPT_VIOLATION,
        qualification: WRITE_TO_RX,
        gpa: Gpa::new(gpa),
        gla: Some(gpa),
    }
}

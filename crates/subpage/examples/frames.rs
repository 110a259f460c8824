//! Memory for tables of your own: what a backend must bring, and nothing more.

use std::error::Error;

use subpage::address::{ByteRange, Gfn, GfnRange, Gpa, Hpa, PAGE_BYTES, PhysicalWidth};
use subpage::domain::{Domain, DomainError};
use subpage::frames::{ENTRIES, EntryIndex, OutOfFrames, TableFrame, TableFrames};
use subpage::rules::{Action, Owner, Rule, RuleName};
use subpage::slots::{AddressSpace, SlotFlags, SlotId};

/// A pool of frames at a fixed host-physical address. A hypervisor has physical memory here; this
/// example has an array that stands for it.
struct Pool {
    base: u64,
    tables: Vec<[u64; ENTRIES]>,
    free: Vec<usize>,
}

impl Pool {
    fn new(base: u64, frames: usize) -> Self {
        Self { base, tables: vec![[0; ENTRIES]; frames], free: (0..frames).rev().collect() }
    }

    fn number(&self, frame: TableFrame) -> usize {
        usize::try_from((frame.hpa().as_u64() - self.base) / PAGE_BYTES).expect("one of ours")
    }
}

impl TableFrames for Pool {
    fn allocate(&mut self) -> Result<TableFrame, OutOfFrames> {
        let number = self.free.pop().ok_or(OutOfFrames)?;
        self.tables[number] = [0; ENTRIES];
        let hpa = Hpa::new(self.base + number as u64 * PAGE_BYTES);
        Ok(TableFrame::try_new(hpa).expect("frames are aligned"))
    }

    fn release(&mut self, frame: TableFrame) {
        self.free.push(self.number(frame));
    }

    // A table here always has room for its 512 entries.
    fn make_room(&mut self, _frame: TableFrame, _stores: usize) -> Result<(), OutOfFrames> {
        Ok(())
    }

    fn load(&self, frame: TableFrame, index: EntryIndex) -> u64 {
        self.tables[self.number(frame)][index.get()]
    }

    // Where a processor walks the tables, this is an atomic store with release order.
    fn store(&mut self, frame: TableFrame, index: EntryIndex, value: u64) {
        let number = self.number(frame);
        self.tables[number][index.get()] = value;
    }

    // And this an atomic compare-and-exchange: the processor sets flags in the same entries.
    fn compare_exchange(
        &mut self,
        frame: TableFrame,
        index: EntryIndex,
        current: u64,
        new: u64,
    ) -> Result<(), u64> {
        let found = self.load(frame, index);
        if found != current {
            return Err(found);
        }
        self.store(frame, index, new);
        Ok(())
    }

    fn fill(&mut self, frame: TableFrame, value: u64) {
        let number = self.number(frame);
        self.tables[number] = [value; ENTRIES];
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let rule = |gpa| -> Result<Rule, Box<dyn Error>> {
        let range = ByteRange::new(Gpa::try_new(gpa)?, 64)?;
        let (owner, action) = (Owner::HOST, Action::Deny);
        Ok(Rule { name: RuleName::new("path")?, range, owner, action, locked: false })
    };

    // Four frames: the root, and a way of three tables to the vectors of one 2 MiB region.
    let mut domain = Domain::new(Pool::new(0x4000_0000, 4), PhysicalWidth::MAX);
    domain.enable()?;
    domain.add_slot(
        AddressSpace::Normal,
        SlotId(0),
        GfnRange::new(Gfn::new(0), 4096)?,
        SlotFlags::default(),
    )?;
    let (first, token) = domain.add_rule(rule(0x1000)?)?;
    domain.finish(&token.without_processors());
    assert!(domain.frames().free.is_empty());

    // A second region needs a fifth frame. The call fails, and has changed nothing (contract C2).
    assert!(matches!(domain.add_rule(rule(0x20_0000)?), Err(DomainError::OutOfMemory)));
    assert_eq!(domain.rules().len(), 1);

    // Tables without a restricted page go back to the pool, once no processor can reach them.
    let token = domain.remove_rule(first, Owner::HOST)?;
    assert!(domain.frames().free.is_empty());
    domain.finish(&token.without_processors());
    assert_eq!(domain.frames().free.len(), 3);
    Ok(())
}

#[test]
fn runs() {
    main().expect("the example shows what it says");
}

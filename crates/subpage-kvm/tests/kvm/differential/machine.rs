//! A guest for streams of random instructions, and all that one leaves in it.

use std::fmt::Write as _;

use kvm_bindings::{kvm_regs, kvm_sregs};
use subpage_kvm::vm::{Configuration, Ending};

use crate::exceptions::{Received, install, received, use_table};
use crate::guest::Guest;
use crate::privilege::Level;
use crate::stepper::{Registers, Stepper};

/// Where streams run: where RIP keeps its value if it is cut to 16 bits.
pub(super) const CODE: u64 = 0x3000;

/// Linear addresses of the pages that streams store to, without a gap. A hole lies before and behind.
pub(super) const FIRST: u64 = crate::privilege::WINDOW + 0x1000;

/// How many.
pub(super) const PAGES: u64 = 5;

/// What comes of the pages under guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Page {
    /// It traps; one byte of it is reported.
    Traps,
    /// It traps, and all of it is reported.
    Reported,
    /// It does not trap.
    Plain,
    /// All of it is denied.
    Denied,
}

/// Where a page of streams lies in memory: never next to the one before it.
pub(super) const fn page(number: u64) -> u64 {
    0x80_0000 + number * 7 % 16 * 0x2000
}

/// All pages that a stream may change, by their place in memory: its own and those around it.
fn watched() -> Vec<u64> {
    let data = (0..PAGES).map(page);
    // Stacks, the page of flags, task state, the source of nothing; page tables.
    let rest = [0x60_9000, 0x60_4000, 0x50_0000, 0x50_1000, 0x50_2000, 0x50_3000, 0x50_4000];
    data.chain(rest).collect()
}

/// What a stream starts from.
#[derive(Debug, Clone)]
pub(super) struct Start {
    pub(super) registers: Registers,
    /// Of the pages, in order.
    pub(super) memory: Vec<u8>,
}

/// The whole machine after a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct After {
    general: Vec<(&'static str, u64)>,
    extended: Vec<u8>,
    exception: Option<Received>,
    special: Vec<(&'static str, u64)>,
    /// Pages by their place in memory.
    memory: Vec<(u64, Vec<u8>)>,
}

/// A guest.
pub(super) struct Subject {
    pub(super) stepper: Stepper,
    pub(super) level: Level,
}

impl Subject {
    pub(super) fn new(configuration: &Configuration, level: Level) -> Self {
        let mut window = vec![None];
        window.extend((0..PAGES).map(|number| Some(page(number))));
        window.push(None);
        let stepper = Stepper::new(configuration, level, &window);
        install(&stepper.guest);
        stepper.guest.vm.with_processors(|processors| use_table(processors[0]));
        Self { stepper, level }
    }

    pub(super) fn guest(&self) -> &Guest {
        &self.stepper.guest
    }

    /// Writes the pages.
    pub(super) fn set_memory(&self, memory: &[u8]) {
        for (number, bytes) in (0..).zip(memory.chunks(0x1000)) {
            self.guest().write(page(number), bytes);
        }
    }

    /// Reads the pages.
    pub(super) fn memory(&self) -> Vec<u8> {
        (0..PAGES).flat_map(|number| self.guest().read::<0x1000>(page(number))).collect()
    }

    /// Runs `code`, with what lies in memory.
    pub(super) fn run(
        &self,
        code: &[u8],
        registers: &Registers,
    ) -> Result<(Registers, After), Ending> {
        // The stack of handlers, so that two runs find the same there.
        self.guest().write(0x60_9000, &[0; 0x1000]);
        self.place();
        let after = self.stepper.step(code, registers)?;
        let special =
            self.guest().vm.with_processors(|processors| processors[0].fd.get_sregs().unwrap());
        Ok((after.clone(), self.after(&after, &special)))
    }

    /// Puts the processor back to its level: a handler runs at CPL 0.
    fn place(&self) {
        self.guest().vm.with_processors(|processors| {
            let fd = &processors[0].fd;
            let before = fd.get_sregs().unwrap();
            let special = crate::privilege::special_registers(&before, self.level);
            fd.set_sregs(&kvm_sregs { cr2: 0, ..special }).unwrap();
            // A single step or an exception of the stream before is over.
            let mut debug = fd.get_debug_regs().unwrap();
            debug.dr6 = 0xffff_0ff0;
            fd.set_debug_regs(&debug).unwrap();
        });
    }

    fn after(&self, registers: &Registers, special: &kvm_sregs) -> After {
        let r = &registers.general;
        let exception = received(self.guest(), r.rip, special);
        let general = vec![
            ("rax", r.rax),
            ("rcx", r.rcx),
            ("rdx", r.rdx),
            ("rbx", r.rbx),
            ("rsp", r.rsp),
            ("rbp", r.rbp),
            ("rsi", r.rsi),
            ("rdi", r.rdi),
            ("r8", r.r8),
            ("r9", r.r9),
            ("r10", r.r10),
            ("r11", r.r11),
            ("r12", r.r12),
            ("r13", r.r13),
            ("r14", r.r14),
            ("r15", r.r15),
            ("rip", r.rip),
            ("rflags", r.rflags),
        ];
        let segment = |segment: &kvm_bindings::kvm_segment| {
            segment.base
                ^ u64::from(segment.selector) << 48
                ^ u64::from(segment.limit) << 8
                ^ u64::from(segment.type_)
                ^ u64::from(segment.dpl) << 4
        };
        let special = vec![
            ("cr0", special.cr0),
            ("cr2", special.cr2),
            ("cr3", special.cr3),
            ("cr4", special.cr4),
            ("efer", special.efer),
            ("cs", segment(&special.cs)),
            ("ss", segment(&special.ss)),
            ("ds", segment(&special.ds)),
            ("es", segment(&special.es)),
            ("fs", segment(&special.fs)),
            ("gs", segment(&special.gs)),
            ("tr", segment(&special.tr)),
            ("idt", special.idt.base),
            ("gdt", special.gdt.base),
        ];
        let memory = watched();
        let memory =
            memory.into_iter().map(|at| (at, self.guest().read::<0x1000>(at).to_vec())).collect();
        After { general, extended: state(&registers.extended.0), exception, special, memory }
    }
}

/// x87, SSE and AVX registers and MXCSR: what is in its initial state by the header is that.
fn state(area: &[u8; 4096]) -> Vec<u8> {
    let used = area[512];
    let initial = &subpage_emulate::XsaveArea::INITIAL.0;
    let part = |component: u8, bytes: std::ops::Range<usize>| {
        if used & component != 0 { &area[bytes] } else { &initial[bytes] }
    };
    let sse_or_avx = 2 | used & 4;
    [
        part(1, 0..24),
        part(if used & sse_or_avx != 0 { used } else { 2 }, 24..28),
        part(1, 32..160),
        part(2, 160..416),
        part(4, 576..832),
    ]
    .concat()
}

impl After {
    /// The exception that the stream ended in, and the registers there.
    pub(super) fn ended(&self) -> Option<(u64, kvm_regs)> {
        let exception = self.exception.as_ref()?;
        let registers = kvm_regs {
            rax: self.general("rax"),
            rbx: self.general("rbx"),
            rcx: self.general("rcx"),
            rsp: self.general("rsp"),
            rbp: self.general("rbp"),
            rsi: self.general("rsi"),
            rdi: self.general("rdi"),
            r10: self.general("r10"),
            rip: exception.frame[exception.frame.len() - 5],
            ..kvm_regs::default()
        };
        Some((exception.vector, registers))
    }

    /// A register by its name, as the stream left it or as it was when it ended in an exception.
    pub(super) fn general(&self, wanted: &str) -> u64 {
        let found = self.general.iter().find(|(name, _)| *name == wanted);
        let value = found.expect("a register").1;
        match &self.exception {
            Some(exception) if wanted == "rsp" => exception.frame[exception.frame.len() - 2],
            _ => value,
        }
    }

    /// RFLAGS in the frame of the exception that the stream ended in.
    pub(super) fn ended_with_flags(&self) -> Option<u64> {
        let frame = &self.exception.as_ref()?.frame;
        Some(frame[frame.len() - 3])
    }

    /// The bytes of a page that a stream may change, by its place in memory.
    pub(super) fn page(&self, at: u64) -> &[u8] {
        let mut pages = self.memory.iter();
        &pages.find(|(place, _)| *place == at).expect("a page that is watched").1
    }

    /// The same with other bytes in the pages.
    pub(super) fn with_memory(mut self, memory: &[u8]) -> Self {
        for (number, bytes) in (0..).zip(memory.chunks(0x1000)) {
            let at = page(number);
            let kept = self.memory.iter_mut().find(|(page, _)| *page == at);
            kept.expect("a page that is watched").1.copy_from_slice(bytes);
        }
        self
    }

    /// How this differs from what was expected; `None` if it does not.
    pub(super) fn differs(&self, expected: &Self) -> Option<String> {
        let mut text = String::new();
        for ((name, got), (_, expected)) in self
            .general
            .iter()
            .zip(&expected.general)
            .chain(self.special.iter().zip(&expected.special))
        {
            if got != expected {
                let _ = writeln!(text, "  {name} is {got:#x} and not {expected:#x}");
            }
        }
        if self.exception != expected.exception {
            let (got, expected) = (&self.exception, &expected.exception);
            let _ = writeln!(text, "  received {got:x?} and not {expected:x?}");
        }
        let extended = self.extended.iter().zip(&expected.extended).enumerate();
        for (at, (got, expected)) in extended.filter(|(_, (got, expected))| got != expected).take(4)
        {
            let _ = writeln!(text, "  extended byte {at} is {got:#x} and not {expected:#x}");
        }
        for ((page, got), (_, expected)) in self.memory.iter().zip(&expected.memory) {
            let bytes = got.iter().zip(expected).enumerate();
            for (at, (got, expected)) in
                bytes.filter(|(_, (got, expected))| got != expected).take(4)
            {
                let at = page + at as u64;
                let _ = writeln!(text, "  memory at {at:#x} is {got:#x} and not {expected:#x}");
            }
        }
        (!text.is_empty()).then_some(text)
    }
}

//! Messages between virtual processors: the part of a local APIC that guests have.
//!
//! A guest sends INIT, start-up, NMI and fixed interrupts through the x2APIC's command register.
//! Each virtual processor has a box; putting something in wakes it or makes it exit.

use core::sync::atomic::{AtomicBool, Ordering};

use arrayvec::ArrayVec;
use spin::mutex::TicketMutex;

use crate::boot::MAX_PROCESSORS;

/// What a virtual processor is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Running instructions.
    Running,
    /// Waiting for an interrupt after HLT.
    Halted,
    /// Waiting for a start-up message after reset.
    WaitingForStartUp,
}

/// 256 interrupt vectors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Vectors([u64; 4]);

impl Vectors {
    fn set(&mut self, vector: u8) {
        self.0[usize::from(vector / 64)] |= 1 << (vector % 64);
    }

    fn clear(&mut self, vector: u8) {
        self.0[usize::from(vector / 64)] &= !(1 << (vector % 64));
    }

    fn highest(&self) -> Option<u8> {
        let word = self.0.iter().rposition(|&word| word != 0)?;
        #[allow(clippy::cast_possible_truncation)] // Four words of 64 bits.
        Some((word * 64) as u8 + self.0[word].ilog2() as u8)
    }
}

/// The messages for one virtual processor.
#[derive(Debug, Clone, Copy)]
struct Box {
    activity: Activity,
    /// RFLAGS.IF at the HLT.
    interrupts_on: bool,
    init: bool,
    start_up: Option<u8>,
    nmi: bool,
    requested: Vectors,
    in_service: Vectors,
}

/// A message from a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mail {
    /// Reset, then wait for a start-up.
    Init,
    /// Start in real mode at the page.
    StartUp(u8),
    /// Non-maskable interrupt.
    Nmi,
    /// Interrupt with a vector.
    Fixed(u8),
}

/// What a processor has to do before it continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Run; there may be something to deliver.
    Run,
    /// Reset and wait.
    Reset,
    /// Start in real mode at the page.
    Start(u8),
    /// Wait: call again.
    Wait,
    /// Nobody will ever wake anybody: every processor waits.
    AllWait,
}

/// What can be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Deliverable {
    /// An NMI.
    pub nmi: bool,
    /// The interrupt that goes first, if one may interrupt what is in service.
    pub vector: Option<u8>,
}

/// All boxes.
#[derive(Debug)]
pub struct Mailboxes {
    /// In turns: processors that wait ask again and again, and would keep the others out.
    boxes: TicketMutex<ArrayVec<Box, MAX_PROCESSORS>>,
    /// Something lies in the box: looked at before each entry without the lock.
    filled: [AtomicBool; MAX_PROCESSORS],
}

impl Mailboxes {
    /// Boxes for `processors`; number 0 runs, the others wait for a start-up.
    pub fn new(processors: usize) -> Self {
        let boxes = (0..processors).map(|number| Box {
            activity: match number {
                0 => Activity::Running,
                _ => Activity::WaitingForStartUp,
            },
            interrupts_on: false,
            init: false,
            start_up: None,
            nmi: false,
            requested: Vectors::default(),
            in_service: Vectors::default(),
        });
        Self {
            boxes: TicketMutex::new(boxes.collect()),
            // A processor that waits for a start-up must not enter the guest before it has come.
            filled: core::array::from_fn(|number| AtomicBool::new(number != 0)),
        }
    }

    /// Puts a message into a box. The receiver, if it runs, has to be made to exit after this.
    pub fn send(&self, to: usize, mail: Mail) {
        let mut boxes = self.boxes.lock();
        let Some(its) = boxes.get_mut(to) else { return };
        match mail {
            Mail::Init => its.init = true,
            // Only a processor that waits for it takes a start-up.
            Mail::StartUp(page) if its.init || its.activity == Activity::WaitingForStartUp => {
                its.start_up = Some(page);
            }
            Mail::StartUp(_) => {}
            Mail::Nmi => its.nmi = true,
            Mail::Fixed(vector) => its.requested.set(vector),
        }
        self.filled[to].store(true, Ordering::Release);
    }

    /// Makes `cpu` look into its box before it continues.
    pub fn look(&self, cpu: usize) {
        self.filled[cpu].store(true, Ordering::Release);
    }

    /// Whether there may be something for `cpu`.
    pub fn is_filled(&self, cpu: usize) -> bool {
        self.filled[cpu].load(Ordering::Acquire)
    }

    /// Processor `cpu` has executed HLT; `interrupts_on` is its RFLAGS.IF.
    pub fn halt(&self, cpu: usize, interrupts_on: bool) {
        let its = &mut self.boxes.lock()[cpu];
        its.activity = Activity::Halted;
        its.interrupts_on = interrupts_on;
        self.filled[cpu].store(true, Ordering::Release);
    }

    /// What `cpu` does now.
    pub fn next(&self, cpu: usize) -> Next {
        let mut boxes = self.boxes.lock();
        let its = &mut boxes[cpu];
        if its.init {
            *its = Box {
                activity: Activity::WaitingForStartUp,
                interrupts_on: false,
                init: false,
                nmi: false,
                requested: Vectors::default(),
                in_service: Vectors::default(),
                start_up: its.start_up,
            };
            return Next::Reset;
        }
        match its.activity {
            Activity::Running => {
                let more = its.nmi || its.requested != Vectors::default();
                self.filled[cpu].store(more, Ordering::Release);
                Next::Run
            }
            Activity::WaitingForStartUp => match its.start_up.take() {
                Some(page) => {
                    its.activity = Activity::Running;
                    Next::Start(page)
                }
                None => Self::wait(&boxes),
            },
            Activity::Halted => {
                if its.wakes() {
                    its.activity = Activity::Running;
                    Next::Run
                } else {
                    Self::wait(&boxes)
                }
            }
        }
    }

    fn wait(boxes: &[Box]) -> Next {
        let awake = |its: &Box| {
            its.activity == Activity::Running
                || its.init
                || its.start_up.is_some()
                || its.activity == Activity::Halted && its.wakes()
        };
        if boxes.iter().any(awake) { Next::Wait } else { Next::AllWait }
    }

    /// What can be delivered to `cpu` now.
    pub fn deliverable(&self, cpu: usize) -> Deliverable {
        self.boxes.lock()[cpu].deliverable()
    }

    /// The NMI has been delivered.
    pub fn nmi_delivered(&self, cpu: usize) {
        self.boxes.lock()[cpu].nmi = false;
    }

    /// The interrupt has been delivered: it is in service until its end.
    pub fn delivered(&self, cpu: usize, vector: u8) {
        let its = &mut self.boxes.lock()[cpu];
        its.requested.clear(vector);
        its.in_service.set(vector);
    }

    /// The end of the interrupt in service that came last (EOI).
    pub fn end_of_interrupt(&self, cpu: usize) {
        let its = &mut self.boxes.lock()[cpu];
        if let Some(vector) = its.in_service.highest() {
            its.in_service.clear(vector);
        }
        self.filled[cpu].store(true, Ordering::Release);
    }
}

impl Box {
    /// Whether something ends a HLT.
    fn wakes(&self) -> bool {
        self.nmi || self.interrupts_on && self.deliverable().vector.is_some()
    }

    fn deliverable(&self) -> Deliverable {
        let served = self.in_service.highest().map_or(0, |vector| vector >> 4);
        // Only a higher priority class interrupts (SDM Vol. 3A, "Interrupt, Task, and Processor
        // Priority").
        let vector = self.requested.highest().filter(|vector| vector >> 4 > served);
        Deliverable { nmi: self.nmi, vector }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_starts_after_init_and_start_up() {
        let mail = Mailboxes::new(2);
        assert!(!mail.is_filled(0));
        assert!(mail.is_filled(1), "it would enter the guest without a start-up");
        assert_eq!(mail.next(1), Next::Wait);
        mail.send(1, Mail::Init);
        mail.send(1, Mail::StartUp(8));
        assert_eq!(mail.next(1), Next::Reset);
        assert!(mail.is_filled(1), "it would enter the guest without a start-up");
        assert_eq!(mail.next(1), Next::Start(8));
        assert_eq!(mail.next(1), Next::Run);
        mail.send(1, Mail::StartUp(9));
        assert_eq!(mail.next(1), Next::Run, "a running processor takes no start-up");
    }

    #[test]
    fn when_all_wait_nobody_will_wake_anybody() {
        let mail = Mailboxes::new(2);
        mail.halt(0, true);
        assert_eq!(mail.next(0), Next::AllWait);
        mail.send(0, Mail::Fixed(0x40));
        assert_eq!(mail.next(0), Next::Run);
        mail.delivered(0, 0x40);
        mail.halt(0, true);
        mail.send(0, Mail::Fixed(0x4F));
        assert_eq!(mail.next(0), Next::AllWait, "the same class has to wait");
        mail.end_of_interrupt(0);
        assert_eq!(mail.next(0), Next::Run);
        assert_eq!(mail.deliverable(0).vector, Some(0x4F));
        mail.halt(0, false);
        assert_eq!(mail.next(0), Next::AllWait, "interrupts are off");
    }
}

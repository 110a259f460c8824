//! A machine as gdb sees it.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;

use gdbstub::common::{Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps,
    SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use gdbstub_arch::x86::X86_64_SSE;
use gdbstub_arch::x86::reg::X86_64CoreRegs;
use subpage::address::{ByteRange, Gpa, PAGE_BYTES};
use subpage_emulate::guest::{PhysicalMemory as _, State};
use subpage_emulate::{Access, translate};

use super::points::Points;
use super::registers;
use crate::vcpu::Processor;
use crate::vm::{HARDWARE_BREAKPOINTS, Leave, Stop, StopCause, VmShared};

/// A stop, in gdb's words.
pub(super) type Report = MultiThreadStopReason<u64>;

/// A held guest, under a debugger.
pub(super) struct Debugged {
    pub(super) machine: Arc<VmShared>,
    points: Points,
    /// Watched bytes that are in force.
    in_force: Vec<ByteRange>,
    /// What each processor does when the guest goes on.
    leave: Vec<Leave>,
    /// Whose memory is meant where gdb does not say: the processor that stopped last.
    current: usize,
    /// Stops that gdb has not been told.
    pub(super) reports: VecDeque<Report>,
    /// What gdb is to show, before it is told of a stop.
    pub(super) lines: Vec<String>,
}

/// gdb's number of a processor, which cannot be 0.
fn tid(vcpu: u32) -> Tid {
    NonZeroUsize::MIN.saturating_add(vcpu as usize)
}

impl Debugged {
    pub(super) fn new(machine: Arc<VmShared>) -> Self {
        let processors = machine.vcpus.processors();
        Self {
            machine,
            points: Points::default(),
            in_force: Vec::new(),
            leave: vec![Leave::Run; processors],
            current: 0,
            reports: VecDeque::new(),
            lines: Vec::new(),
        }
    }

    /// A debugger has come, perhaps because processors have stopped. It asks for the first itself.
    pub(super) fn attached(&mut self, stops: impl IntoIterator<Item = Stop>) {
        self.stopped(stops);
        self.reports.pop_front();
    }

    fn number(&self, tid: Tid) -> TargetResult<usize, Self> {
        let number = tid.get() - 1;
        if number < self.leave.len() { Ok(number) } else { Err(TargetError::NonFatal) }
    }

    fn with_processor<T>(&self, number: usize, work: impl FnOnce(&mut Processor) -> T) -> T {
        work(&mut self.machine.vcpus.pause().processors[number])
    }

    fn state(&self, number: usize) -> Option<State> {
        self.with_processor(number, |processor| Some(processor.interrupted().ok()?.state))
    }

    /// Where a linear address lies for a processor, whatever its privilege.
    fn place(&self, state: &State, linear: u64) -> Option<Gpa> {
        translate(&self.machine.ram, self.machine.paging, state, linear, Access::SYSTEM_READ)
            .ok()
            .map(|walk| walk.gpa)
    }

    /// The machine has stopped: what gdb is told of it, one after the other. The first names the thread
    /// that it looks at.
    pub(super) fn stopped(&mut self, stops: impl IntoIterator<Item = Stop>) {
        self.machine.take_breakpoints_out();
        let mut named = false;
        for Stop { vcpu, cause } in stops {
            let thread = tid(vcpu);
            match cause {
                StopCause::Watch(range) => {
                    let touched = self.points.touched_by(range);
                    let report = |addr| Report::Watch { tid: thread, kind: WatchKind::Write, addr };
                    self.reports.extend(touched.into_iter().map(report));
                }
                // Others that are at one come to it again: they have not gone on from it.
                StopCause::Breakpoint if !self.reports.is_empty() => continue,
                StopCause::Breakpoint => self.reports.push_back(Report::SwBreak(thread)),
                StopCause::Step | StopCause::Rule(_) => {
                    let signal = Signal::SIGTRAP;
                    self.reports.push_back(Report::SignalWithThread { tid: thread, signal });
                }
            }
            if !named && !self.reports.is_empty() {
                self.current = vcpu as usize;
                named = true;
            }
        }
    }

    /// The guest was stopped by the debugger's wish.
    pub(super) fn interrupted(&mut self) {
        let signal = Signal::SIGINT;
        let vcpu = u32::try_from(self.current).unwrap_or(0);
        self.reports.push_back(Report::SignalWithThread { tid: tid(vcpu), signal });
    }

    /// The next stop that gdb has not been told, and still wants to know.
    pub(super) fn next_report(&mut self) -> Option<Report> {
        while let Some(report) = self.reports.pop_front() {
            if let Report::Watch { addr, .. } = report
                && !self.points.watches(addr)
            {
                continue;
            }
            return Some(report);
        }
        None
    }

    /// Puts in force what gdb has set, and lets the guest go on. Where that fails it stays held, and gdb
    /// is told why.
    pub(super) fn go_on(&mut self) {
        match self.put_in_force() {
            Ok(()) => {
                let leave = self.leave.clone();
                self.machine.release(|number| leave[number]);
            }
            Err(reason) => {
                self.machine.take_breakpoints_out();
                let text = format!(
                    "cannot put a debugger's points in force, and the guest stays held: {reason}"
                );
                self.lines.push(text.clone());
                self.machine.debugger_says(text);
                let signal = Signal::SIGTRAP;
                let tid = NonZeroUsize::MIN.saturating_add(self.current);
                self.reports.push_back(Report::SignalWithThread { tid, signal });
            }
        }
    }

    fn put_in_force(&mut self) -> Result<(), String> {
        let watched = self.points.watched();
        if watched != self.in_force {
            self.machine.watch_bytes(&watched).map_err(|error| error.to_string())?;
            self.in_force = watched;
        }
        let hardware: Vec<u64> = self.points.hardware.iter().copied().collect();
        self.machine
            .set_breakpoints(self.points.breakpoints(), &hardware)
            .map_err(|error| error.to_string())
    }

    /// Takes all out that was set.
    pub(super) fn take_all_back(&mut self) {
        self.points = Points::default();
        if let Err(reason) = self.put_in_force() {
            // Less traps, and fewer breakpoints: nothing of that asks for memory.
            self.machine
                .debugger_says(format!("cannot take all back that a debugger set: {reason}"));
        }
    }

    /// Reads or writes linear memory of a processor page by page; how many bytes.
    fn each_page(
        &self,
        number: usize,
        linear: u64,
        bytes: usize,
        mut work: impl FnMut(Gpa, std::ops::Range<usize>) -> bool,
    ) -> usize {
        let Some(state) = self.state(number) else { return 0 };
        let mut done = 0;
        while done < bytes {
            let at = linear.wrapping_add(done as u64);
            let left = (bytes - done) as u64;
            let here = left.min(PAGE_BYTES - at % PAGE_BYTES);
            let Some(gpa) = self.place(&state, at) else { break };
            let end = done + usize::try_from(here).unwrap_or(0);
            if !work(gpa, done..end) {
                break;
            }
            done = end;
        }
        done
    }
}

impl Target for Debugged {
    type Arch = X86_64_SSE;
    type Error = String;

    fn base_ops(&mut self) -> BaseOps<'_, Self::Arch, Self::Error> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Debugged {
    fn read_registers(&mut self, to: &mut X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        let number = self.number(tid)?;
        *to = self
            .with_processor(number, |processor| registers::read(processor))
            .map_err(|_| TargetError::NonFatal)?;
        Ok(())
    }

    fn write_registers(&mut self, from: &X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        let number = self.number(tid)?;
        match self.with_processor(number, |processor| registers::write(processor, from)) {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(TargetError::NonFatal),
        }
    }

    fn read_addrs(&mut self, start: u64, to: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let number = self.number(tid)?;
        let machine = Arc::clone(&self.machine);
        let done = self
            .each_page(number, start, to.len(), |gpa, part| machine.read_clean(gpa, &mut to[part]));
        if done == 0 && !to.is_empty() { Err(TargetError::NonFatal) } else { Ok(done) }
    }

    fn write_addrs(&mut self, start: u64, from: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let number = self.number(tid)?;
        // All of it or nothing.
        let mut places = Vec::new();
        let found = self.each_page(number, start, from.len(), |gpa, part| {
            let range = ByteRange::new(gpa, part.len() as u64);
            let is_memory = range.is_ok_and(|range| self.machine.ram.holds(range));
            places.push((gpa, part));
            is_memory
        });
        if found < from.len() {
            return Err(TargetError::NonFatal);
        }
        for (gpa, part) in places {
            let bytes = &from[part];
            self.machine.ram.write(gpa, bytes).map_err(|_| TargetError::NonFatal)?;
            if let Ok(range) = ByteRange::new(gpa, bytes.len() as u64) {
                self.machine.debugger_has_written(range, bytes);
            }
        }
        Ok(())
    }

    fn list_active_threads(&mut self, tell: &mut dyn FnMut(Tid)) -> Result<(), Self::Error> {
        // gdb takes the first for the one that has stopped.
        let others = (0..self.leave.len()).filter(|number| *number != self.current);
        for number in std::iter::once(self.current).chain(others) {
            tell(NonZeroUsize::MIN.saturating_add(number));
        }
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl ThreadExtraInfo for Debugged {
    fn thread_extra_info(&self, tid: Tid, buffer: &mut [u8]) -> Result<usize, Self::Error> {
        let text = format!("vcpu {}", tid.get() - 1);
        let bytes = text.len().min(buffer.len());
        buffer[..bytes].copy_from_slice(&text.as_bytes()[..bytes]);
        Ok(bytes)
    }
}

impl MultiThreadResume for Debugged {
    /// Where a stop was not told yet, it is in place of going on.
    fn resume(&mut self) -> Result<(), Self::Error> {
        if let Some(report) = self.next_report() {
            self.reports.push_front(report);
            return Ok(());
        }
        self.go_on();
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), Self::Error> {
        self.leave.fill(Leave::Run);
        Ok(())
    }

    fn set_resume_action_continue(
        &mut self,
        tid: Tid,
        _: Option<Signal>,
    ) -> Result<(), Self::Error> {
        if let Ok(number) = self.number(tid) {
            self.leave[number] = Leave::Run;
        }
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Debugged {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Self::Error> {
        if let Ok(number) = self.number(tid) {
            self.leave[number] = Leave::Step;
        }
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Debugged {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Self::Error> {
        for leave in &mut self.leave {
            if *leave == Leave::Run {
                *leave = Leave::Held;
            }
        }
        Ok(())
    }
}

impl Breakpoints for Debugged {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Debugged {
    fn add_sw_breakpoint(&mut self, linear: u64, _: usize) -> TargetResult<bool, Self> {
        let at = self.state(self.current).and_then(|state| self.place(&state, linear));
        let at =
            at.filter(|at| ByteRange::new(*at, 1).is_ok_and(|byte| self.machine.ram.holds(byte)));
        Ok(at.is_some_and(|at| self.points.break_at(linear, at)))
    }

    fn remove_sw_breakpoint(&mut self, linear: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.points.unbreak(linear))
    }
}

/// The first four are in debug registers, which need no memory that is mapped; others are INT3.
impl HwBreakpoint for Debugged {
    fn add_hw_breakpoint(&mut self, linear: u64, kind: usize) -> TargetResult<bool, Self> {
        let hardware = &mut self.points.hardware;
        if hardware.len() < HARDWARE_BREAKPOINTS || hardware.contains(&linear) {
            hardware.insert(linear);
            return Ok(true);
        }
        self.add_sw_breakpoint(linear, kind)
    }

    fn remove_hw_breakpoint(&mut self, linear: u64, kind: usize) -> TargetResult<bool, Self> {
        if self.points.hardware.remove(&linear) {
            return Ok(true);
        }
        self.remove_sw_breakpoint(linear, kind)
    }
}

impl HwWatchpoint for Debugged {
    fn add_hw_watchpoint(
        &mut self,
        linear: u64,
        bytes: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        // Reads do not trap.
        if kind != WatchKind::Write {
            return Err(TargetError::NonFatal);
        }
        let Some(state) = self.state(self.current) else { return Ok(false) };
        let (ram, paging) = (&self.machine.ram, self.machine.paging);
        Ok(self.points.watch(linear, bytes, |at| {
            let walk = translate(ram, paging, &state, at, Access::SYSTEM_READ).ok()?;
            let byte = ByteRange::new(walk.gpa, 1).ok()?;
            ram.holds(byte).then_some(walk.gpa)
        }))
    }

    fn remove_hw_watchpoint(
        &mut self,
        linear: u64,
        bytes: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        Ok(kind == WatchKind::Write && self.points.unwatch(linear, bytes))
    }
}

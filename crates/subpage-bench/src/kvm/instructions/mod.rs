//! Instructions of the VMM between two stays in the guest: from `KVM_RUN`'s return to its next call.
//!
//! Times of exits differ from machine to machine; what this program adds to one does not. So it is
//! counted, exactly: the guest runs in a process of its own, whose processor thread is executed step by
//! step from here ([`tracer`]).

mod case;
mod symbols;
mod tracer;

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{env, fs, thread};

use nix::unistd::Pid;
use subpage_bench::report::Record;

use crate::rows::{Out, measurable};
pub(crate) use case::Case;
use symbols::Symbols;
use tracer::{Tracer, Turn};

pub(crate) const NAME: &str = "instructions";

/// The same by function.
const BY_FUNCTION: &str = "instructions_by_function";

/// Option by which this program is started again, as the process that has the guest.
pub(crate) const SERVE: &str = "--serve";

/// What it says when the guest runs.
const READY: &str = "ready";

/// Turns that are counted, an odd number.
const TURNS: usize = 9;

/// Thread of the guest's only processor.
const THREAD: &str = "vcpu 0";

/// Long enough for everything to have happened once that happens once.
const WARM_UP: Duration = Duration::from_millis(300);

/// Counts all cases. An error says why nothing can be counted here; one of printing is the inner one.
pub(crate) fn run(by_function: bool, out: &mut Out) -> Result<io::Result<()>, String> {
    for case in Case::ALL {
        match measurable(out, NAME, case.traps_by(), case.note()) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(error) => return Ok(Err(error)),
        }
        let Counted { mut turns, symbols } = count(case)?;
        turns.sort_by_key(Turn::instructions);
        let median = &turns[TURNS / 2];
        let record = Record::figure(NAME, "count", to_f64(median.instructions()))
            .with("min", to_f64(turns[0].instructions()))
            .with("max", to_f64(turns[TURNS - 1].instructions()))
            .with("system_calls", to_f64(median.system_calls))
            .with("code_lines", to_f64(median.code_lines()))
            .with("data_lines", to_f64(median.data_lines()))
            .with("pages", to_f64(median.pages()))
            .with_note(case.note());
        let mut printed = out.print(&record);
        if by_function {
            for (function, instructions) in functions(median, &symbols) {
                printed = printed.and_then(|()| {
                    let record = Record::figure(BY_FUNCTION, "count", to_f64(instructions));
                    out.print(&record.with_note(&function))
                });
            }
        }
        if printed.is_err() {
            return Ok(printed);
        }
    }
    Ok(Ok(()))
}

struct Counted {
    turns: Vec<Turn>,
    symbols: Symbols,
}

/// Has a guest run in another process and counts some turns of its processor's thread.
fn count(case: Case) -> Result<Counted, String> {
    let program = env::current_exe().map_err(|error| format!("this program is gone: {error}"))?;
    let child = Command::new(program)
        .args([SERVE, case.key()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("this program cannot be started again: {error}"))?;
    let mut process = Process { child, traced: None };
    let mut line = String::new();
    let output = process.child.stdout.take().expect("a pipe was asked for");
    let read = BufReader::new(output).read_line(&mut line);
    if read.is_err() || line.trim_end() != READY {
        return Err("the guest did not start".to_owned());
    }
    thread::sleep(WARM_UP);
    let pid = process.child.id();
    let thread = thread_of(pid).ok_or("the processor has no thread")?;
    let mut tracer = Tracer::seize(thread)
        .map_err(|error| format!("the processor's thread cannot be traced (ptrace): {error}"))?;
    process.traced = Some(thread);
    let turns: Result<Vec<_>, _> = (0..TURNS).map(|_| tracer.turn()).collect();
    let turns = turns.map_err(|error| format!("tracing the processor's thread: {error}"))?;
    Ok(Counted { turns, symbols: Symbols::of(pid) })
}

/// The process that has the guest; it ends with the value.
struct Process {
    child: Child,
    /// Its thread that this process traces.
    traced: Option<Pid>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        // A process is not over before its tracer has heard of the end of each thread that it traces.
        if let Some(thread) = self.traced {
            tracer::wait_for_end(thread);
        }
        let _ = self.child.wait();
    }
}

fn thread_of(pid: u32) -> Option<Pid> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    threads.flatten().find_map(|thread| {
        let name = fs::read_to_string(thread.path().join("comm")).ok()?;
        let number = thread.file_name().to_str()?.parse().ok()?;
        (name.trim_end() == THREAD).then_some(Pid::from_raw(number))
    })
}

/// Runs the guest of a case until standard input ends.
pub(crate) fn serve(case: Case) -> io::Result<()> {
    let guest = case.guest();
    guest.begin();
    let mut out = io::stdout().lock();
    writeln!(out, "{READY}")?;
    out.flush()?;
    io::stdin().lock().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Functions and their instructions, the most first.
fn functions(turn: &Turn, symbols: &Symbols) -> Vec<(String, u64)> {
    let mut functions = BTreeMap::new();
    for (address, times) in turn.by_address() {
        *functions.entry(symbols.function_at(address)).or_insert(0) += times;
    }
    let mut functions: Vec<_> = functions.into_iter().collect();
    functions.sort_by_key(|(_, instructions)| std::cmp::Reverse(*instructions));
    functions
}

#[allow(clippy::cast_precision_loss)] // Below 2^52.
const fn to_f64(count: u64) -> f64 {
    count as f64
}

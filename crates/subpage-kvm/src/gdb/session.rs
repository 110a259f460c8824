//! One debugger, from its connection to its end.

use std::io;
use std::time::Duration;

use gdbstub::common::Signal;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, GdbStubError};

use super::connection::Connection;
use super::greeting::MOST_BYTES;
use super::target::{Debugged, Report};
use crate::ending::Ending;

/// How long the debugger is listened to before the guest is looked at, where it does not run.
const IDLE: Duration = Duration::from_millis(50);

/// The same while it runs, and how long the guest is waited for in between.
const RUNNING: Duration = Duration::from_millis(1);
const STOPS: Duration = Duration::from_millis(4);

/// How a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// The debugger is gone.
    Detached,
    /// Somebody wants it gone.
    SentAway,
    /// It has killed the guest.
    Killed,
    /// The guest has ended.
    GuestEnded,
    /// What came is no debugger's.
    Broken(String),
}

/// Serves a debugger, whose guest is held, until one of them is gone. It has `said` something already.
pub(super) fn serve(target: &mut Debugged, connection: Connection, said: &[u8]) -> End {
    converse(target, connection, said).unwrap_or_else(|end| end)
}

fn broken(error: GdbStubError<String, io::Error>) -> End {
    if error.is_connection_error() {
        return End::Detached;
    }
    End::Broken(match error.into_target_error() {
        Some(reason) => reason,
        None => "what it said is no debugger's".to_owned(),
    })
}

/// Bytes of the longest packet that a debugger may send, and of the longest answer.
const LONGEST_PACKET: usize = 16 << 10;

fn converse(target: &mut Debugged, connection: Connection, said: &[u8]) -> Result<End, End> {
    let mut buffer = [0; MOST_BYTES];
    buffer[..said.len()].copy_from_slice(said);
    // A packet that is longer is refused; of its own, the stub would make room without end.
    let mut packet = [0; LONGEST_PACKET];
    let stub = GdbStub::builder(connection).with_packet_buffer(&mut packet).build();
    let stub = stub.map_err(|error| End::Broken(error.to_string()))?;
    let mut gdb = stub.run_state_machine(target).map_err(broken)?;
    // Bytes that have come, and were not looked at.
    let (mut from, mut to) = (0, said.len());
    loop {
        if target.machine.sends_debugger_away() {
            return Ok(End::SentAway);
        }
        gdb = match gdb {
            GdbStubStateMachine::Idle(mut inner) => {
                if from == to {
                    if target.machine.vcpus.has_ended() {
                        return Ok(End::GuestEnded);
                    }
                    let received = inner.borrow_conn().receive(&mut buffer, IDLE);
                    match received {
                        Ok(Some(count)) => (from, to) = (0, count),
                        Ok(None) => {}
                        Err(_) => return Ok(End::Detached),
                    }
                    inner.into()
                } else {
                    let byte = buffer[from];
                    from += 1;
                    inner.incoming_data(target, byte).map_err(broken)?
                }
            }
            GdbStubStateMachine::Running(mut inner) => {
                if let Some(line) = target.lines.pop() {
                    if inner.borrow_conn().show(&line).is_err() {
                        return Ok(End::Detached);
                    }
                    inner.into()
                } else if let Some(report) = target.next_report() {
                    inner.report_stop(target, report).map_err(broken)?
                } else if target.machine.vcpus.has_ended() {
                    let report = farewell(target.machine.ending.get().as_ref());
                    inner.report_stop(target, report).map_err(broken)?
                } else if from < to {
                    let byte = buffer[from];
                    from += 1;
                    inner.incoming_data(target, byte).map_err(broken)?
                } else {
                    let stops = target.machine.wait_for_stops(STOPS);
                    if stops.is_empty() {
                        match inner.borrow_conn().receive(&mut buffer, RUNNING) {
                            Ok(Some(count)) => (from, to) = (0, count),
                            Ok(None) => {}
                            Err(_) => return Ok(End::Detached),
                        }
                    } else {
                        target.stopped(stops);
                        if target.reports.is_empty() {
                            // Written was what is not watched any more.
                            target.go_on();
                        }
                    }
                    inner.into()
                }
            }
            GdbStubStateMachine::CtrlCInterrupt(inner) => {
                target.machine.hold();
                let stops = target.machine.wait_for_stops(Duration::ZERO);
                target.stopped(stops);
                if target.reports.is_empty() {
                    target.interrupted();
                }
                // It is told from the state where the guest runs, as other stops are: where it does not
                // run, in place of going on.
                inner.interrupt_handled(target, None::<Report>).map_err(broken)?
            }
            GdbStubStateMachine::Disconnected(inner) => {
                return Ok(match inner.get_reason() {
                    DisconnectReason::Kill => End::Killed,
                    DisconnectReason::Disconnect => End::Detached,
                    DisconnectReason::TargetExited(_) | DisconnectReason::TargetTerminated(_) => {
                        End::GuestEnded
                    }
                });
            }
        };
    }
}

/// What gdb is told of the guest's end.
fn farewell(ending: Option<&Ending>) -> Report {
    match ending {
        Some(Ending::Exited { code }) => Report::Exited(*code),
        Some(Ending::PoweredOff | Ending::Halted | Ending::Reset) => Report::Exited(0),
        Some(Ending::TripleFault { .. }) => Report::Terminated(Signal::SIGSEGV),
        Some(Ending::Failed(_) | Ending::Panicked { .. }) => Report::Terminated(Signal::SIGABRT),
        Some(Ending::Stopped { .. } | Ending::Requested) | None => {
            Report::Terminated(Signal::SIGKILL)
        }
    }
}

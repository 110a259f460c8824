//! COM1: a 16550A whose output goes to the host.

use std::convert::Infallible;
use std::io::{self, Write};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use vm_superio::Trigger;
use vm_superio::serial::{SerialEvents, SerialState as Registers};
use vmm_sys_util::eventfd::EventFd;

/// Bytes that the receiver holds.
pub(super) const FIFO_BYTES: usize = 64;

/// Registers and received bytes of the port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    baud_divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    received: Vec<u8>,
}

impl SerialState {
    /// Bytes received and not read.
    pub(super) const fn received(&self) -> usize {
        self.received.len()
    }
}

/// The event that KVM turns into the interrupt.
#[derive(Debug, Clone)]
struct Line(Arc<EventFd>);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        // It fails only if the event's counter is full, and then it is signalled already.
        let _ = self.0.write(1);
        Ok(())
    }
}

/// Counts what could not be written.
#[derive(Debug, Default)]
struct Lost(AtomicU64);

impl SerialEvents for Lost {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn in_buffer_empty(&self) {}
}

type Output = Box<dyn Write + Send>;
type Uart = vm_superio::Serial<Line, Arc<Lost>, Output>;

/// The port.
pub(super) struct Serial {
    uart: Uart,
    line: Line,
    lost: Arc<Lost>,
}

impl Serial {
    pub(super) fn new(output: Output, interrupt: EventFd) -> Self {
        let (line, lost) = (Line(Arc::new(interrupt)), Arc::new(Lost::default()));
        let uart = Uart::with_events(line.clone(), Arc::clone(&lost), output);
        Self { uart, line, lost }
    }

    pub(super) fn write(&mut self, register: u8, value: u8) {
        // A full disk or a closed pipe is no matter of the guest; the byte is counted as lost.
        let _ = self.uart.write(register, value);
    }

    pub(super) fn read(&mut self, register: u8) -> u8 {
        self.uart.read(register)
    }

    /// Gives the receiver as many bytes as it has room for, and says how many.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> usize {
        self.uart.enqueue_raw_bytes(bytes).unwrap_or(0)
    }

    pub(super) fn room(&self) -> usize {
        self.uart.fifo_capacity()
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.0.load(Ordering::Relaxed)
    }

    pub(super) fn save(&self) -> SerialState {
        let registers = self.uart.state();
        SerialState {
            baud_divisor: [registers.baud_divisor_low, registers.baud_divisor_high],
            interrupt_enable: registers.interrupt_enable,
            interrupt_identification: registers.interrupt_identification,
            line_control: registers.line_control,
            line_status: registers.line_status,
            modem_control: registers.modem_control,
            modem_status: registers.modem_status,
            scratch: registers.scratch,
            received: registers.in_buffer,
        }
    }

    /// Takes the state, and signals the interrupt again if one is pending.
    ///
    /// # Panics
    /// If more bytes were received than [`FIFO_BYTES`].
    pub(super) fn restore(&mut self, state: &SerialState) {
        self.replace(&Registers {
            baud_divisor_low: state.baud_divisor[0],
            baud_divisor_high: state.baud_divisor[1],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.received.clone(),
        });
    }

    /// As after power-on; what was received is dropped.
    pub(super) fn reset(&mut self) {
        self.replace(&Registers::default());
    }

    fn replace(&mut self, registers: &Registers) {
        let events = Arc::clone(&self.lost);
        // The device gives its output back only with itself.
        let none: Output = Box::new(io::sink());
        let none = Uart::with_events(self.line.clone(), Arc::clone(&events), none);
        let output = mem::replace(&mut self.uart, none).into_writer();
        self.uart = Uart::from_state(registers, self.line.clone(), events, output)
            .expect("what was received fits, and signalling does not fail");
    }
}

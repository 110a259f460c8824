//! Every port as a guest sees it.

use std::io;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::devices::acpi_ports::CONTROL as POWER;

const MEMORY: u64 = 64 << 20;
const INTERRUPT_ENABLE: u16 = COM1 + 1;
const INTERRUPT_IDENTIFICATION: u16 = COM1 + 2;
const MODEM_CONTROL: u16 = COM1 + 4;
const LINE_STATUS: u16 = COM1 + 5;
const SCRATCH: u16 = COM1 + 7;

/// Output that the test reads.
#[derive(Debug, Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("one thread").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A full disk.
struct Full;

impl Write for Full {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::StorageFull.into())
    }
}

fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK).expect("an event")
}

fn ports() -> (Ports, Shared, EventFd) {
    let (output, interrupt) = (Shared::default(), event());
    let ours = interrupt.try_clone().expect("an event");
    (Ports::new(Box::new(output.clone()), interrupt, MEMORY), output, ours)
}

/// The state, without the time that goes on in it.
fn at_rest(ports: &Ports) -> PortsState {
    let mut state = ports.save();
    state.acpi.forget_time();
    state
}

fn byte(ports: &mut Ports, port: u16) -> u8 {
    let mut data = [0];
    ports.read(port, &mut data);
    data[0]
}

#[test]
fn ports_may_be_given_to_another_thread() {
    const fn is_send<T: Send>() {}
    is_send::<Ports>();
}

#[test]
fn what_is_sent_to_com1_comes_out() {
    let (mut ports, output, _) = ports();
    for letter in b"boot\n" {
        assert_eq!(ports.write(COM1, &[*letter]), PortEffect::None);
    }
    assert_eq!(*output.0.lock().expect("one thread"), b"boot\n");
    assert_eq!(byte(&mut ports, LINE_STATUS), 0x60);
}

#[test]
fn output_that_fails_is_counted_and_the_guest_goes_on() {
    let mut ports = Ports::new(Box::new(Full), event(), MEMORY);
    for _ in 0..3 {
        assert_eq!(ports.write(COM1, b"x"), PortEffect::None);
    }
    assert_eq!(ports.lost_output(), 3);
    assert_eq!(byte(&mut ports, LINE_STATUS), 0x60);
    ports.reset();
    assert_eq!(ports.lost_output(), 3);
}

#[test]
fn a_signal_that_fails_does_not_end_the_guest() {
    let (mut ports, _, interrupt) = ports();
    interrupt.write(u64::MAX - 1).expect("the highest count");
    assert_eq!(ports.write(INTERRUPT_ENABLE, &[3]), PortEffect::None);
    assert_eq!(ports.input(b"a"), 1);
    assert_eq!(byte(&mut ports, COM1), b'a');
}

#[test]
fn input_interrupts_and_fills_the_receiver_to_its_end() {
    let (mut ports, _, interrupt) = ports();
    assert_eq!(ports.write(INTERRUPT_ENABLE, &[1]), PortEffect::None);
    assert_eq!(interrupt.read().map_err(|error| error.kind()), Err(io::ErrorKind::WouldBlock));
    assert_eq!(ports.input(&[b'y'; 100]), FIFO_BYTES);
    assert_eq!(interrupt.read().expect("signalled"), 1);
    assert_eq!((ports.input(b"z"), ports.input_room()), (0, 0));
    assert_eq!(byte(&mut ports, LINE_STATUS), 0x61);
    assert_eq!(byte(&mut ports, INTERRUPT_IDENTIFICATION) & 0xf, 4);
    assert_eq!(byte(&mut ports, COM1), b'y');
    assert_eq!(ports.input(b"zz"), 1);
}

#[test]
fn loop_back_takes_no_input() {
    let (mut ports, output, _) = ports();
    assert_eq!(ports.write(MODEM_CONTROL, &[0x10]), PortEffect::None);
    assert_eq!(ports.input(b"a"), 0);
    assert_eq!(ports.write(COM1, b"b"), PortEffect::None);
    assert_eq!(byte(&mut ports, COM1), b'b');
    assert!(output.0.lock().expect("one thread").is_empty());
}

#[test]
fn effects_are_told_only_for_their_writes() {
    let (mut ports, _, _) = ports();
    let cases: [(u16, &[u8], PortEffect); 14] = [
        (KEYBOARD_COMMAND, &[0xfe], PortEffect::Reset),
        (KEYBOARD_COMMAND, &[0xaa], PortEffect::None),
        (KEYBOARD_DATA, &[0xfe], PortEffect::None),
        (RESET, &[0x02], PortEffect::None),
        (RESET, &[0x06], PortEffect::Reset),
        (RESET, &[0x0e], PortEffect::Reset),
        (RESET - 1, &[0xff, 0xff, 0xff, 0xff], PortEffect::None),
        (RESET, &[0xff, 0xff], PortEffect::None),
        (POWER, &[0x00, 0x20], PortEffect::PowerOff),
        (POWER, &[0x01, 0x20], PortEffect::PowerOff),
        (POWER, &[0x20], PortEffect::None),
        (POWER, &[0x00, 0x34], PortEffect::None),
        (EXIT, &[7], PortEffect::Exit { code: 7 }),
        (EXIT, &[9, 1, 0, 0], PortEffect::Exit { code: 9 }),
    ];
    for (port, data, effect) in cases {
        assert_eq!(ports.write(port, data), effect, "{port:#x} {data:x?}");
    }
}

#[test]
fn the_keyboard_controller_is_idle_and_the_rest_open() {
    let (mut ports, _, _) = ports();
    assert_eq!(byte(&mut ports, KEYBOARD_COMMAND), 0);
    let mut data = [0; 4];
    for port in [0, 0x80, 0x2f8, 0xcfa, 0xcfc, RESET, EXIT, CMOS_INDEX - 1, u16::MAX] {
        data.fill(0);
        ports.read(port, &mut data[..1]);
        assert_eq!(data[0], 0xff, "{port:#x}");
    }
    ports.read(0xcfc, &mut data);
    assert_eq!(data, [0xff; 4]);
}

#[test]
fn the_bytes_of_a_wide_access_go_to_ports_side_by_side() {
    let (mut ports, _, _) = ports();
    // The index in the low byte, the register's new value in the high one.
    assert_eq!(ports.write(CMOS_INDEX, &[0x0f, 0x5a]), PortEffect::None);
    assert_eq!(byte(&mut ports, CMOS_DATA), 0x5a);
    let mut data = [0; 2];
    ports.read(CMOS_INDEX, &mut data);
    assert_eq!(data, [0xff, 0x5a]);
}

#[test]
fn a_restored_state_goes_on_where_it_was() {
    let (mut ports, _, _) = ports();
    assert_eq!(ports.write(INTERRUPT_ENABLE, &[1]), PortEffect::None);
    assert_eq!(ports.write(SCRATCH, &[0x77]), PortEffect::None);
    assert_eq!(ports.write(CMOS_INDEX, &[0x0f, 0x0a]), PortEffect::None);
    assert_eq!(ports.input(b"half a li"), 9);
    assert_eq!(byte(&mut ports, COM1), b'h');
    let json = serde_json::to_string(&at_rest(&ports)).expect("a state");
    let state: PortsState = serde_json::from_str(&json).expect("the same state");

    let (mut other, output, interrupt) = self::ports();
    other.restore(&state).expect("a state of ours");
    assert_eq!(at_rest(&other), state);
    assert_eq!(byte(&mut other, SCRATCH), 0x77);
    assert_eq!(byte(&mut other, CMOS_DATA), 0x0a);
    let rest: Vec<u8> = (0..8).map(|_| byte(&mut other, COM1)).collect();
    assert_eq!(rest, b"alf a li");
    assert_eq!(other.write(COM1, b"!"), PortEffect::None);
    assert_eq!(*output.0.lock().expect("one thread"), b"!");
    assert_eq!(other.input(b"c"), 1);
    assert_eq!(interrupt.read().expect("signalled"), 1);
}

#[test]
fn a_pending_interrupt_is_signalled_again() {
    let (mut ports, _, _) = ports();
    assert_eq!(ports.write(INTERRUPT_ENABLE, &[1]), PortEffect::None);
    assert_eq!(ports.input(b"a"), 1);
    let (mut other, _, interrupt) = self::ports();
    other.restore(&ports.save()).expect("a state of ours");
    assert_eq!(interrupt.read().expect("signalled"), 1);
}

#[test]
fn a_damaged_state_is_refused_and_changes_nothing() {
    let (mut ports, _, _) = ports();
    assert_eq!(ports.input(b"kept"), 4);
    let before = at_rest(&ports);
    let json = serde_json::to_value(&before).expect("a state");
    let mut long = json.clone();
    long["serial"]["received"] = vec![1_u8; 65].into();
    let long: PortsState = serde_json::from_value(long).expect("the shape is right");
    let error = ports.restore(&long).expect_err("too much");
    assert_eq!(error, RestoreError::Serial { bytes: 65, most: 64 });
    let mut short = json;
    short["cmos"]["registers"] = vec![0_u8; 127].into();
    let short: PortsState = serde_json::from_value(short).expect("the shape is right");
    let error = ports.restore(&short).expect_err("too little");
    assert_eq!(error, RestoreError::Cmos { registers: 127, expected: 128 });
    assert_eq!(at_rest(&ports), before);
}

#[test]
fn a_reset_empties_com1_and_keeps_its_output() {
    let (mut ports, output, _) = ports();
    assert_eq!(ports.input(b"old"), 3);
    ports.reset();
    assert_eq!(ports.input_room(), FIFO_BYTES);
    assert_eq!(ports.write(COM1, b"n"), PortEffect::None);
    assert_eq!(*output.0.lock().expect("one thread"), b"n");
}

proptest! {
    /// No access of a guest panics, and a saved state is always one that is taken.
    #[test]
    fn any_access_is_answered(
        accesses in prop::collection::vec(
            (any::<u16>(), prop::collection::vec(any::<u8>(), 1..=4), any::<bool>()),
            1..100,
        ),
    ) {
        let (mut ports, _, _) = ports();
        for (port, mut data, out) in accesses {
            // Half of them at the devices.
            let port = if port & 1 == 0 { COM1 + (port >> 1) % 8 } else { port };
            if out {
                let _ = ports.write(port, &data);
            } else {
                ports.read(port, &mut data);
            }
            let _ = ports.input(&data);
        }
        let state = at_rest(&ports);
        prop_assert!(ports.restore(&state).is_ok());
        prop_assert_eq!(at_rest(&ports), state);
    }
}

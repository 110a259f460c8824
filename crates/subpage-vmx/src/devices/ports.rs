//! Ports: all are the guest's but those by which the machine is reset, and the hypervisor's console.

/// Ports by which a guest can reset the machine: the keyboard controller, system control port A, the
/// reset control register.
pub const RESET_PORTS: [u16; 3] = [0x64, 0x92, 0xCF9];

/// Output of Bochs and QEMU, where the hypervisor writes its lines.
const DEBUG_OUTPUT: u16 = 0xE9;

/// Whether a byte that is written to a port resets the machine.
pub const fn is_reset(port: u16, value: u8) -> bool {
    match port {
        // The keyboard controller pulses output lines whose bit is 0; line 0 is the reset.
        0x64 => value & 0xF1 == 0xF0,
        0x92 => value & 1 != 0,
        0xCF9 => value & 4 != 0,
        _ => false,
    }
}

/// The ports that exit: those of a reset and those of the console, whose UART, if it has one, is at
/// `uart`.
pub fn own_ports(uart: Option<u16>) -> impl Iterator<Item = u16> {
    let uart = uart.into_iter().flat_map(|base| base..base + 8);
    RESET_PORTS.into_iter().chain([DEBUG_OUTPUT]).chain(uart)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_resets_the_machine_is_known() {
        for (port, value, expected) in [
            (0x64, 0xFE, true),
            (0x64, 0xF0, true),
            (0x64, 0xFF, false),
            (0x64, 0xAE, false),
            (0x92, 0x01, true),
            (0x92, 0x02, false),
            (0xCF9, 0x06, true),
            (0xCF9, 0x02, false),
            (0x70, 0xFE, false),
        ] {
            assert_eq!(is_reset(port, value), expected, "{value:#x} to {port:#x}");
        }
    }

    #[test]
    fn the_first_serial_line_is_the_guests() {
        assert!(own_ports(None).all(|port| !(0x3F8..0x400).contains(&port)));
        assert!(own_ports(Some(0x2F8)).any(|port| port == 0x2FD));
        assert_eq!(own_ports(Some(0x2F8)).count(), 12);
    }
}

//! Guests that are entered in 32-bit protected mode, as the Multiboot Specification says.

use std::io::Write as _;

use iced_x86::code_asm::{CodeAssembler, al, byte_ptr, dword_ptr, dx, eax, ebx, ecx, edx, esi};
use subpage::rules::Action;
use subpage_kvm::boot::{Format, Request};
use subpage_kvm::vm::{Configuration, Ending, Vm, nowhere};
use subpage_trap::Verdict;

use crate::guest::{EXIT_PORT, Guest, PAGE, PLAIN, both_ways, kvm};

/// Where the file goes, and its header begins.
const IMAGE: u32 = 0x10_0000;
const HEADER_BYTES: u32 = 32;

/// A file whose header says where it goes, with 32-bit code behind the header.
fn image(write: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    let (magic, flags) = (0x1bad_b002_u32, 1_u32 << 16);
    let checksum = 0_u32.wrapping_sub(magic).wrapping_sub(flags);
    let entry = IMAGE + HEADER_BYTES;
    let words = [magic, flags, checksum, IMAGE, IMAGE, 0, 0, entry];
    let mut file: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut code = CodeAssembler::new(32).unwrap();
    write(&mut code);
    file.extend(code.assemble(entry.into()).unwrap());
    file
}

fn low(address: u64) -> u32 {
    u32::try_from(address).unwrap()
}

fn exit(code: &mut CodeAssembler, status: u32) {
    code.mov(eax, status).unwrap();
    code.mov(edx, EXIT_PORT).unwrap();
    code.out(dx, al).unwrap();
}

fn guest(configuration: &Configuration, image: &[u8]) -> Guest {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(image).unwrap();
    let mut vm = Vm::new(configuration, nowhere()).unwrap();
    let cpus = configuration.cpus;
    let (command_line, load_address) = ("quiet", None);
    let request =
        Request { image: file.path(), initrd: None, command_line, load_address, slide: None, cpus };
    assert_eq!(vm.load(&request).unwrap().image.format, Format::Multiboot);
    Guest::of(vm)
}

/// What it finds is what the specification says: it keeps EAX, what EBX leads to, and segments that reach
/// far.
#[test]
fn a_kernel_finds_its_information() {
    if !kvm() {
        return;
    }
    let image = image(|code| {
        code.mov(dword_ptr(PLAIN), eax).unwrap();
        code.mov(ecx, dword_ptr(ebx)).unwrap();
        code.mov(dword_ptr(PLAIN + 4), ecx).unwrap();
        // The command line.
        code.mov(esi, dword_ptr(ebx + 16)).unwrap();
        code.mov(ecx, dword_ptr(esi)).unwrap();
        code.mov(dword_ptr(PLAIN + 8), ecx).unwrap();
        exit(code, 0);
    });
    for configuration in both_ways() {
        let mut guest = guest(&configuration, &image);
        guest.run_well();
        assert_eq!(guest.read(PLAIN), 0x2bad_b002_u32.to_le_bytes());
        let flags = u32::from_le_bytes(guest.read(PLAIN + 4));
        assert_eq!(flags & 0b100_0101, 0b100_0101, "memory, command line, map: {flags:#x}");
        assert_eq!(guest.read(PLAIN + 8), *b"quie");
    }
}

/// Rules hold for 32-bit code without paging, byte by byte.
#[test]
fn stores_of_32_bit_code_are_decided() {
    if !kvm() {
        return;
    }
    let image = image(|code| {
        code.mov(ebx, low(PAGE)).unwrap();
        code.mov(ecx, 3).unwrap();
        let mut again = code.create_label();
        code.set_label(&mut again).unwrap();
        code.inc(dword_ptr(ebx)).unwrap();
        code.dec(ecx).unwrap();
        code.jnz(again).unwrap();
        code.mov(dword_ptr(ebx + 0x7e), 0x5555_5555).unwrap();
        code.mov(byte_ptr(ebx + 0x7f), 9).unwrap();
        exit(code, 7);
    });
    for configuration in both_ways() {
        let mut guest = guest(&configuration, &image);
        guest.guard(PAGE + 0x80, 8, Action::Deny);
        assert_eq!(guest.run(), Ending::Exited { code: 7 });
        assert_eq!(guest.read(PAGE), 3_u32.to_le_bytes());
        assert_eq!(guest.read(PAGE + 0x7e), [0, 9, 0, 0], "the denied store left every byte");
        let events = guest.events();
        let told: Vec<_> = events.iter().map(|it| (it.event.verdict, it.event.gpa)).collect();
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].0, Verdict::Denied);
    }
}

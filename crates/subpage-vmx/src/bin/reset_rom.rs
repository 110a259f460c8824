//! The reset ROM: from the reset vector to the 32-bit entry of the image at 1 MiB, in the state that
//! Multiboot2 prescribes, without a BIOS. For emulators and tests.
//!
//! Bochs gives away its memory in blocks, in the order in which they are used first, and reads an image
//! in one piece: one of several blocks is whole only if these are touched in order before any other.
#![cfg_attr(bare_metal, no_std, no_main)]
// Machine code that runs before there is anything for Rust to stand on.
#![allow(unsafe_code)]

#[cfg(bare_metal)]
extern crate alloc;

#[cfg(bare_metal)]
subpage_vmx::bare_metal_program!();

#[cfg(bare_metal)]
mod rom {
    use core::arch::global_asm;

    use subpage_vmx::boot::{IMAGE_ENTRY, INFORMATION_ADDRESS};

    // The processor starts at F000:FFF0 with CS.base = FFFF0000H (SDM Vol. 3A, "First Instruction
    // Executed"). Offsets within the ROM's segment are the low 16 bits of a symbol.
    global_asm!(
        r#"
        .section .rom.reset, "ax"
        .code16
        .globl reset_vector
        reset_vector:
            .byte 0xe9                            // jmp rom_start: offsets wrap at 64 KiB
            .word rom_start - 0xFFFF0000 + 0x10000 - 0xFFF3
            .byte 0
        // At FFF4H: memory to touch in steps of 8 MiB, from the first address up to the second. Whoever
        // makes the machine puts them there.
        rom_touch_from:
            .long 0
        rom_touch_to:
            .long 0

        .section .rom.code, "ax"
        .code16
        rom_start:
            cli
            cld
            .byte 0x66, 0x2e, 0x0f, 0x01, 0x16   // lgdt cs:[offset], 32-bit base
            .word rom_gdt_pointer - 0xFFFF0000
            mov eax, cr0
            or al, 1
            mov cr0, eax
            .byte 0x66, 0xea                      // jmp far 08H:rom_protected
            .long rom_protected
            .word 0x08
        .code32
        rom_protected:
            mov eax, 0x10
            mov ds, eax
            mov es, eax
            mov fs, eax
            mov gs, eax
            mov ss, eax
            mov ebx, [rom_touch_from]
            mov edx, [rom_touch_to]
        2:
            cmp ebx, edx
            jae 3f
            mov al, [ebx]
            add ebx, 0x800000
            jmp 2b
        3:
            mov eax, {magic}
            mov ebx, {information}
            mov ecx, {entry}
            jmp ecx

        .balign 8
        rom_gdt:
            .quad 0
            .quad 0x00CF9B000000FFFF              // 08H: 32-bit code, 0 to 4 GiB
            .quad 0x00CF93000000FFFF              // 10H: data, 0 to 4 GiB
        rom_gdt_pointer:
            .word rom_gdt_pointer - rom_gdt - 1
            .long rom_gdt
        "#,
        magic = const multiboot2_magic(),
        information = const INFORMATION_ADDRESS,
        entry = const IMAGE_ENTRY,
    );

    const fn multiboot2_magic() -> u32 {
        0x36D7_6289
    }
}

#[cfg(not(bare_metal))]
fn main() {
    eprintln!("this program is a bare-metal image: build it with `cargo xtask bochs build`");
    std::process::exit(2);
}

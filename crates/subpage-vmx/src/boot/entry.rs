//! From 32-bit protected mode to Rust, and from a processor's start-up IPI to Rust.
//!
//! Unsafe because machine code that no compiler checks lies here: it makes the environment that the
//! rest of the program is entitled to (long mode, identity mapping, SSE, a stack, zeroed memory).

use core::arch::global_asm;

use super::{AP_TRAMPOLINE, MAX_PROCESSORS};

/// Bytes of each processor's stack.
pub const STACK_BYTES: usize = 64 << 10;

// Multiboot2, "OS image format": header, then the entry that the reset ROM knows.
global_asm!(
    r#"
    .section .boot.header, "a"
    .balign 8
    multiboot2_header:
        .long 0xE85250D6
        .long 0                                       // protected mode i386
        .long multiboot2_header_end - multiboot2_header
        .long 0x100000000 - (0xE85250D6 + 0 + (multiboot2_header_end - multiboot2_header))
        .word 0, 0                                    // end tag
        .long 8
    multiboot2_header_end:

    .section .boot.entry, "ax"
    .code32
    .globl image_entry
    image_entry:
        cli
        cld
        mov ebp, eax
        mov esi, ebx
        // The program's zeroed memory, which holds stack and page tables.
        mov edi, offset image_bss_start
        mov ecx, offset image_end
        sub ecx, edi
        shr ecx, 2
        xor eax, eax
        rep stosd
        mov esp, offset boot_stacks + {stack}
        mov eax, 0x80000000
        cpuid
        cmp eax, 0x80000001
        jb boot_no_long_mode
        mov eax, 0x80000001
        cpuid
        test edx, 1 << 29
        jz boot_no_long_mode
        // The first 4 GiB mapped to themselves in 2 MiB pages.
        mov eax, offset boot_pdpt + 3
        mov [boot_pml4], eax
        xor ecx, ecx
    2:  mov eax, ecx
        shl eax, 12
        add eax, offset boot_directories + 3
        mov [boot_pdpt + ecx * 8], eax
        inc ecx
        cmp ecx, 4
        jb 2b
        xor ecx, ecx
    3:  mov eax, ecx
        shl eax, 21
        or eax, 0x83
        mov [boot_directories + ecx * 8], eax
        inc ecx
        cmp ecx, 2048
        jb 3b
        mov edi, ebp
        mov ebp, offset boot_processor_start
    .globl boot_to_long_mode
    // EBP: where to go; EDI, ESI: its arguments; ESP: stack.
    boot_to_long_mode:
        mov eax, cr4
        or eax, 0x620                                 // PAE, OSFXSR, OSXMMEXCPT
        mov cr4, eax
        mov eax, offset boot_pml4
        mov cr3, eax
        mov ecx, 0xC0000080
        rdmsr
        or eax, 0x900                                 // LME, NXE
        wrmsr
        mov eax, cr0
        and eax, 0x9FFFFFF3                           // CD, NW, EM, TS off
        or eax, 0x80010023                            // PG, WP, NE, MP, PE
        mov cr0, eax
        lgdt [boot_gdt_pointer]
        .byte 0xea
        .long boot_long_mode
        .word 0x08

    boot_no_long_mode:
        mov esi, offset boot_no_long_mode_text
    4:  lodsb
        test al, al
        jz 6f
        mov ah, al
        mov dx, 0x3FD
        mov ecx, 100000
    5:  in al, dx
        test al, 0x20
        loopz 5b
        mov al, ah
        out 0xE9, al
        mov dx, 0x3F8
        out dx, al
        jmp 4b
    6:  mov esi, offset boot_shutdown_text
        mov dx, 0x8900
        mov ecx, 8
        rep outsb
    7:  hlt
        jmp 7b

    .code64
    boot_long_mode:
        mov eax, 0x10
        mov ds, eax
        mov es, eax
        mov ss, eax
        mov fs, eax
        mov gs, eax
        mov ebp, ebp
        mov edi, edi
        mov esi, esi
        mov esp, esp
        call rbp
        ud2

    .section .boot.text, "ax"
    .balign 8
    boot_gdt:
        .quad 0
        .quad 0x00AF9B000000FFFF                      // 08H: 64-bit code
        .quad 0x00CF93000000FFFF                      // 10H: data
        .quad 0x00CF9B000000FFFF                      // 18H: 32-bit code
    boot_gdt_pointer:
        .word boot_gdt_pointer - boot_gdt - 1
        .long boot_gdt
        .long 0
    boot_no_long_mode_text:
        .asciz "hypervisor: stopped: this processor has no 64-bit mode (CPUID 80000001H EDX bit 29)\n"
    boot_shutdown_text:
        .ascii "Shutdown"

    // Copied to AP_TRAMPOLINE; a start-up IPI begins here in real mode with CS = AP_TRAMPOLINE / 16.
    .balign 16
    .globl boot_trampoline_start
    boot_trampoline_start:
    .code16
        cli
        cld
        xor ax, ax
        mov ds, ax
        .byte 0x66, 0x0f, 0x01, 0x16                  // lgdt [offset], 32-bit base
        .word {trampoline} + (trampoline_gdt_pointer - boot_trampoline_start)
        mov eax, cr0
        or al, 1
        mov cr0, eax
        .byte 0x66, 0xea                              // jmp far 18H:boot_application_processor
        .long boot_application_processor
        .word 0x18
    .balign 4
    trampoline_gdt_pointer:
        .word boot_gdt_pointer - boot_gdt - 1
        .long boot_gdt
    .globl boot_trampoline_end
    boot_trampoline_end:

    .code32
    boot_application_processor:
        mov eax, 0x10
        mov ds, eax
        mov es, eax
        mov ss, eax
        // A number and with it a stack for each processor that comes here.
        mov eax, 1
        lock xadd [boot_processors], eax
        cmp eax, {max}
        jae 8f
        mov edi, eax
        inc eax
        imul eax, eax, {stack}
        lea esp, [boot_stacks + eax]
        xor esi, esi
        mov ebp, offset application_processor_start
        jmp boot_to_long_mode
    8:  hlt
        jmp 8b
    .code64

    .section .data.boot, "aw"
    .balign 4
    .globl boot_processors
    boot_processors: .long 1

    .section .bss.boot, "aw", @nobits
    .balign 4096
    boot_pml4: .skip 4096
    boot_pdpt: .skip 4096
    boot_directories: .skip 16384
    .globl boot_stacks
    boot_stacks: .skip {stack} * {max}
    .text
    "#,
    stack = const STACK_BYTES,
    max = const MAX_PROCESSORS,
    trampoline = const AP_TRAMPOLINE,
);

unsafe extern "C" {
    static image_start: u8;
    static image_end: u8;
    static boot_trampoline_start: u8;
    static boot_trampoline_end: u8;
    static boot_processors: core::sync::atomic::AtomicU32;
}

/// First byte of the image and the first byte after it, zeroed memory included.
pub fn image() -> core::ops::Range<u64> {
    (&raw const image_start) as u64..(&raw const image_end) as u64
}

/// The machine code that other processors start with.
pub fn trampoline() -> &'static [u8] {
    let start = &raw const boot_trampoline_start;
    let length = (&raw const boot_trampoline_end) as usize - start as usize;
    // SAFETY: both symbols bound bytes of the image's read-only text, defined above.
    unsafe { core::slice::from_raw_parts(start, length) }
}

/// How many processors have been started, this one included; those beyond the maximum count too.
pub fn started_processors() -> u32 {
    // SAFETY: the symbol is four aligned bytes of writable data, only ever changed by locked
    // instructions.
    let counter = unsafe { &boot_processors };
    counter.load(core::sync::atomic::Ordering::Acquire)
}

# What the compilers of build.sh do not write: a vector of three elements in the room of four, as LLVM
# tells of it, and types of Fortran in a unit that others have in common and that has no language, as dwz
# leaves them.

        .globl  _start, padded, several, counted, unknown
        .text
_start: jmp     _start

        .data
        .balign 16
padded: .skip   16
        .type   padded, @object
        .size   padded, 16
several:
        .skip   32
        .type   several, @object
        .size   several, 32
counted:
        .skip   40
        .type   counted, @object
        .size   counted, 40
unknown:
        .skip   40
        .type   unknown, @object
        .size   unknown, 40

        .section .debug_abbrev, "", @progbits
        # A unit with a language (1), one without (2), and a part of others (3).
        .uleb128 1, 0x11
        .byte   1
        .uleb128 0x13, 0x05, 0, 0
        .uleb128 2, 0x11
        .byte   1
        .uleb128 0, 0
        .uleb128 3, 0x3c
        .byte   1
        .uleb128 0, 0
        # A variable: name, type anywhere, location.
        .uleb128 4, 0x34
        .byte   0
        .uleb128 0x03, 0x08, 0x49, 0x10, 0x02, 0x18, 0, 0
        # A basic type: name, bytes, encoding.
        .uleb128 5, 0x24
        .byte   0
        .uleb128 0x03, 0x08, 0x0b, 0x0b, 0x3e, 0x0b, 0, 0
        # A vector: type, bytes.
        .uleb128 6, 0x01
        .byte   1
        .uleb128 0x2107, 0x19, 0x49, 0x13, 0x0b, 0x0b, 0, 0
        # An array: type.
        .uleb128 7, 0x01
        .byte   1
        .uleb128 0x49, 0x13, 0, 0
        # A dimension: how many.
        .uleb128 8, 0x21
        .byte   0
        .uleb128 0x37, 0x0b, 0, 0
        # A dimension: the last one.
        .uleb128 9, 0x21
        .byte   0
        .uleb128 0x2f, 0x0b, 0, 0
        .byte   0

        .section .debug_info, "", @progbits
info:
        # C (0x0c).
        .long   c_end - c
c:      .value  4
        .long   .debug_abbrev
        .byte   8
        .uleb128 1
        .value  0x0c
        .uleb128 4
        .asciz  "padded"
        .long   vector - info
        .uleb128 9
        .byte   3
        .quad   padded
        .uleb128 4
        .asciz  "several"
        .long   vectors - info
        .uleb128 9
        .byte   3
        .quad   several
float:  .uleb128 5
        .asciz  "float"
        .byte   4, 4
vector: .uleb128 6
        .long   float - c + 4
        .byte   16
        .uleb128 8
        .byte   3
        .uleb128 0
vectors:
        .uleb128 7
        .long   vector - c + 4
        .uleb128 8
        .byte   2
        .uleb128 0
        .uleb128 0
c_end:
        # What the next two have in common.
        .long   common_end - common
common: .value  4
        .long   .debug_abbrev
        .byte   8
        .uleb128 3
integer:
        .uleb128 5
        .asciz  "integer"
        .byte   4, 5
array:  .uleb128 7
        .long   integer - common + 4
        .uleb128 9
        .byte   10
        .uleb128 0
        .uleb128 0
common_end:
        # Fortran 95 (0x0e).
        .long   fortran_end - fortran
fortran:
        .value  4
        .long   .debug_abbrev
        .byte   8
        .uleb128 1
        .value  0x0e
        .uleb128 4
        .asciz  "counted"
        .long   array - info
        .uleb128 9
        .byte   3
        .quad   counted
        .uleb128 0
fortran_end:
        .long   other_end - other
other:  .value  4
        .long   .debug_abbrev
        .byte   8
        .uleb128 2
        .uleb128 4
        .asciz  "unknown"
        .long   array - info
        .uleb128 9
        .byte   3
        .quad   unknown
        .uleb128 0
other_end:

#!/bin/sh
# Builds the programs that the tests of debug information read: build.sh [DIRECTORY]; beside this file if
# DIRECTORY is left out. Made with gcc 12.2, binutils 2.40 and gdb 13.1 of Debian 12, and rustc 1.95.
set -eu
here=$(cd -- "$(dirname -- "$0")" && pwd)
there=${1:-$here}
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
cd -- "$work"
cp -- "$here"/*.c "$here"/*.cc "$here"/*.rs "$here"/*.s .

flags="-O1 -Wall -ffreestanding -fno-inline -fno-pie -fno-stack-protector -fcf-protection=none
    -fno-asynchronous-unwind-tables -fno-ident -mgeneral-regs-only -mno-red-zone -fdebug-prefix-map=$work=."
link="-static -no-pie -z noseparate-code -z max-page-size=4096 -z noexecstack --build-id=none -Ttext-segment=0x200000"

# build NAME SOURCE COMPILER FLAG...
build() {
    name=$1 source=$2
    shift 2
    # shellcheck disable=SC2086
    "$@" $flags -c -o "$name.o" "$source"
    # shellcheck disable=SC2086
    ld $link -o "$there/$name.elf" "$name.o"
}

build dwarf5 places.c cc -gdwarf-5
# Types in units of their own, and an index of public names.
build dwarf4 places.c cc -gdwarf-4 -fdebug-types-section -ggnu-pubnames
build dwarf5-types places.c cc -gdwarf-5 -fdebug-types-section
# Bit fields as they were told of before version 4.
build dwarf2 places.c cc -gdwarf-2 -gstrict-dwarf
build split places.c cc -gdwarf-5 -gsplit-dwarf
# Two builds of one program: nothing but the number differs.
for number in 1 2; do
    # shellcheck disable=SC2086
    ld $link --build-id=0x000000000000000$number -s -o "$there/build-$number.elf" dwarf5.o
done
# The same program with a number.
# shellcheck disable=SC2086
ld $link --build-id=0x0000000000000001 -o "$there/number-1.elf" dwarf5.o
objcopy --compress-debug-sections=zlib "$there/dwarf5.elf" "$there/compressed.elf"
cp "$there/dwarf5.elf" gdb-index.elf
cp "$there/dwarf5.elf" debug-names.elf
gdb-add-index gdb-index.elf
gdb-add-index -dwarf-5 debug-names.elf
cp gdb-index.elf debug-names.elf "$there"
build open open.c cc -gdwarf-5
# Two units, one of which has a variable without bytes where the other's begins, and an index.
for number in 1 2; do
    # shellcheck disable=SC2086
    cc $flags -gdwarf-5 -ggnu-pubnames -c "neighbour-$number.c"
done
# shellcheck disable=SC2086
ld $link -o "$there/neighbours.elf" neighbour-1.o neighbour-2.o
build cpp places.cc c++ -gdwarf-5 -fno-exceptions
build bases bases.cc c++ -gdwarf-5 -fno-exceptions -fno-rtti
as -o vectors.o vectors.s
# shellcheck disable=SC2086
ld $link -o "$there/vectors.elf" vectors.o
rustc --edition 2024 -g -O -C panic=abort -C relocation-model=static --emit=obj --remap-path-prefix="$work=." \
    --crate-type lib -A warnings -o rust.o places.rs
# shellcheck disable=SC2086
ld $link --gc-sections -o "$there/rust.elf" rust.o

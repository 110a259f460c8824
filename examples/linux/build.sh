#!/bin/sh
# Builds init and packs it into initrd.cpio: an initramfs of one file, in the form "newc"
# (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
set -eu
cd "$(dirname "$0")"
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
${CC:-cc} -std=gnu11 -Os -Wall -Wextra -Werror -static -nostdlib -ffreestanding -fno-pie -no-pie \
    -fno-stack-protector -fno-asynchronous-unwind-tables -mno-red-zone \
    -Wl,--build-id=none -Wl,-z,noseparate-code -s -o "$scratch/init" init.c

# entry NAME MODE MAJOR MINOR SIZE: the header and the name, up to a multiple of 4
number=0
entry() {
    number=$((number + 1))
    printf '070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\0' \
        $number $(($2)) 0 0 1 0 "$5" 0 0 "$3" "$4" $((${#1} + 1)) 0 "$1"
    pad $((110 + ${#1} + 1))
}
pad() { head -c $(((4 - $1 % 4) % 4)) /dev/zero; }

size=$(wc -c <"$scratch/init")
{
    entry dev 0040755 0 0 0
    entry dev/console 0020600 5 1 0
    entry init 0100755 0 0 "$size"
    cat "$scratch/init"
    pad "$size"
    entry 'TRAILER!!!' 0 0 0 0
} >initrd.cpio

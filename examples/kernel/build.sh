#!/bin/sh
# Builds the guest: build.sh [OUTPUT]; guest.elf beside this file if OUTPUT is left out.
# Made with gcc 12.2 and ld 2.40 of Debian 12.
set -eu
here=$(dirname -- "$0")
output=${1:-$here/guest.elf}
case $output in /*) ;; *) output=$PWD/$output ;; esac
object=$(mktemp)
trap 'rm -f -- "$object"' EXIT

# The debug information names the file and not where it was built.
cd -- "$here"
# General registers only, so that KVM's emulator knows every instruction; and nothing of the host.
cc -c -O1 -Wall -Wextra -Werror -ffreestanding -fno-inline -fno-pie -fno-stack-protector -fcf-protection=none \
    -fno-asynchronous-unwind-tables -fno-ident -mgeneral-regs-only -mno-red-zone \
    -g -gdwarf-5 -fdebug-prefix-map="$PWD"=. -o "$object" kernel.c
ld -static -no-pie -z noseparate-code -z max-page-size=4096 -z noexecstack --build-id=none \
    -Ttext-segment=0x200000 -o "$output" "$object"

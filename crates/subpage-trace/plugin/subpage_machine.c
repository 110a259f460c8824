/*
 * subpage-machine: a plugin of QEMU that sends every store of a whole machine to the recorder of
 * Subpage, by its physical address.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 * Copyright (C) the authors of Subpage. This program is free software; you can redistribute it
 * and/or modify it under the terms of the GNU General Public License as published by the Free
 * Software Foundation; either version 2 of the License, or (at your option) any later version. It
 * comes without any warranty. See LICENSE-GPL-2.0 beside this file.
 *
 * The packets are those of ../recorder/README.md. Distributions ship no header of QEMU's plugins, so
 * what is used of it is declared here, as QEMU has it from 9.0 on.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

typedef struct {
   const char *target_name;
   struct {
      int min;
      int cur;
   } version;
   bool system_emulation;
} Info;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_plugin_hwaddr;
enum { NO_REGISTERS = 0, WRITES = 2 };

extern void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id,
                                                  void (*call)(uint64_t, struct qemu_plugin_tb *));
extern void qemu_plugin_register_atexit_cb(uint64_t id, void (*call)(uint64_t, void *), void *data);
extern void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *insn,
                                             void (*call)(unsigned, uint32_t, uint64_t, void *),
                                             int flags, int which, void *data);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t i);
extern uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);
extern bool qemu_plugin_mem_is_store(uint32_t info);
extern unsigned qemu_plugin_mem_size_shift(uint32_t info);
extern struct qemu_plugin_hwaddr *qemu_plugin_get_hwaddr(uint32_t info, uint64_t vaddr);
extern bool qemu_plugin_hwaddr_is_io(const struct qemu_plugin_hwaddr *hwaddr);
extern uint64_t qemu_plugin_hwaddr_phys_addr(const struct qemu_plugin_hwaddr *hwaddr);

/* Looked at once the plugin is loaded. Version 2 came with QEMU 9.0, as the scoreboards did. To an older
   QEMU it says version 1, so that it is loaded and can say itself why it does not run. */
__attribute__((visibility("default"))) int qemu_plugin_version = 1;

__attribute__((constructor)) static void choose_version(void)
{
   if (dlsym(RTLD_DEFAULT, "qemu_plugin_scoreboard_new") != NULL)
      qemu_plugin_version = 2;
}

#define MAGIC 0x54535300u
enum { STORES = 1, END = 3 };
#define RECORDS 4064
#define PC_MASK 0xffffffffffffULL
#define PAGE 4096u

static struct {
   uint32_t magic;
   uint32_t kind;
   uint64_t total;
   struct {
      uint64_t what;
      uint64_t address;
   } records[RECORDS];
} packet = {.magic = MAGIC};

static size_t count;
static int to = -1;

static void send_packet(uint32_t kind, size_t length)
{
   packet.kind = kind;
   while (to >= 0 && send(to, &packet, 16 + length, MSG_NOSIGNAL) < 0) {
      if (errno != EINTR) {
         /* The recorder has enough, or is gone. The machine runs on until it is ended. */
         to = -1;
      }
   }
}

static void flush(void)
{
   if (count > 0) {
      packet.total += count;
      send_packet(STORES, count * sizeof packet.records[0]);
      count = 0;
   }
}

static void put(uint32_t info, uint64_t place, unsigned size, uint64_t pc)
{
   struct qemu_plugin_hwaddr *hwaddr = qemu_plugin_get_hwaddr(info, place);
   if (hwaddr == NULL) {
      /* It counts, so that the recorder sees that one is missing. */
      packet.total++;
      return;
   }
   /* What goes to a device is no memory. */
   if (qemu_plugin_hwaddr_is_io(hwaddr))
      return;
   if (count == RECORDS)
      flush();
   packet.records[count].what = (pc & PC_MASK) | (uint64_t)size << 48;
   packet.records[count].address = qemu_plugin_hwaddr_phys_addr(hwaddr);
   count++;
}

static void stored(unsigned processor, uint32_t info, uint64_t place, void *data)
{
   (void)processor;
   if (to < 0 || !qemu_plugin_mem_is_store(info))
      return;
   unsigned size = 1u << qemu_plugin_mem_size_shift(info);
   unsigned here = PAGE - (unsigned)(place % PAGE);
   uint64_t pc = (uint64_t)(uintptr_t)data;
   if (size <= here) {
      put(info, place, size, pc);
   } else {
      /* Two pages, which may lie anywhere. */
      put(info, place, here, pc);
      put(info, place + here, size - here, pc);
   }
}

static void translated(uint64_t id, struct qemu_plugin_tb *tb)
{
   (void)id;
   size_t all = qemu_plugin_tb_n_insns(tb);
   for (size_t i = 0; i < all; i++) {
      struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
      void *pc = (void *)(uintptr_t)qemu_plugin_insn_vaddr(insn);
      qemu_plugin_register_vcpu_mem_cb(insn, stored, NO_REGISTERS, WRITES, pc);
   }
}

static void finish(uint64_t id, void *data)
{
   (void)id;
   (void)data;
   flush();
   send_packet(END, 0);
}

__attribute__((visibility("default"))) int qemu_plugin_install(uint64_t id, const Info *info, int argc,
                                                               char **argv)
{
   for (int i = 0; i < argc; i++)
      if (strncmp(argv[i], "stores=", 7) == 0)
         to = atoi(argv[i] + 7);
   if (info->version.cur < 2) {
      fprintf(stderr, "subpage-machine: QEMU before 9.0 tells plugins other addresses than those of its "
                      "memory: use 9.0 or later\n");
      return 1;
   }
   if (to < 0 || !info->system_emulation) {
      fprintf(stderr, "subpage-machine: it needs a whole machine, and stores=DESCRIPTOR\n");
      return 1;
   }
   qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
   qemu_plugin_register_atexit_cb(id, finish, NULL);
   return 0;
}

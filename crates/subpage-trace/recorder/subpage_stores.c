/*
 * subpage-stores: a Valgrind tool that sends every store of a program to the recorder of Subpage.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 * Copyright (C) the authors of Subpage. This program is free software; you can redistribute it
 * and/or modify it under the terms of the GNU General Public License as published by the Free
 * Software Foundation; either version 2 of the License, or (at your option) any later version. It
 * comes without any warranty. See LICENSE-GPL-2.0 beside this file.
 *
 * Every message on the socket is one packet: MAGIC, a kind, and what README.md says of it. A text of
 * Valgrind on the same socket holds no zero byte, so it is no such packet.
 */
#include "pub_tool_basics.h"
#include "pub_tool_libcassert.h"
#include "pub_tool_libcbase.h"
#include "pub_tool_libcfile.h"
#include "pub_tool_libcprint.h"
#include "pub_tool_libcproc.h"
#include "pub_tool_machine.h"
#include "pub_tool_options.h"
#include "pub_tool_tooliface.h"
#include "pub_tool_vki.h"

/* Of the core; both have been the same since Valgrind 3.0. */
extern Int VG_(safe_fd)(Int oldfd);
extern Int VG_(write_socket)(Int sd, const void *msg, Int count);

#define MAGIC 0x54535300u /* 00 53 53 54: "\0SST" */
enum { STORES = 1, MAPS = 2, END = 3 };

typedef struct {
   UInt magic;
   UInt kind;
   ULong total; /* Stores of this image up to the end of this packet. */
} Head;

/* Low 48 bits: address of the instruction; above: how many bytes. */
typedef struct {
   ULong what;
   ULong address;
} Record;

#define RECORDS 4064
#define PC_MASK 0xffffffffffffULL
/* A write of the kernel may be longer than a size can tell. */
#define LONGEST 0x8000

static struct {
   Head head;
   Record records[RECORDS];
} packet;

/* Where the next store goes. The code of the program reads and writes it by its address. */
static Record *cursor = packet.records;
static ULong sent = 0;
static Int to = -1;
/* False in a process that nobody asked for, and once nobody listens. */
static Bool records = True;
static Bool began = False;

static Int clo_fd = -1;
static Int clo_recorder = 0;
static Bool clo_children = False;
static Bool clo_kernel_writes = False;

static void send_packet(const void *bytes, SizeT length)
{
   if (records && VG_(write_socket)(to, bytes, (Int)length) < 0) {
      /* The recorder is gone. The program is none the worse for it. */
      records = False;
   }
}

static void send_kind(UInt kind, SizeT length)
{
   packet.head.magic = MAGIC;
   packet.head.kind = kind;
   packet.head.total = sent;
   send_packet(&packet, sizeof packet.head + length);
}

static void flush(void)
{
   SizeT count = cursor - packet.records;
   if (count > 0) {
      sent += count;
      send_kind(STORES, count * sizeof(Record));
      cursor = packet.records;
   }
}

/* Where the program lies, before its first instruction. The place of the records is free. */
static void begin(void)
{
   began = True;
   if (!records)
      return;
   SysRes file = VG_(open)("/proc/self/maps", VKI_O_RDONLY, 0);
   SizeT length = 0;
   if (!sr_isError(file)) {
      Int fd = (Int)sr_Res(file);
      HChar *text = (HChar *)packet.records;
      while (length < sizeof packet.records) {
         Int read = VG_(read)(fd, text + length, (Int)(sizeof packet.records - length));
         if (read <= 0)
            break;
         length += read;
      }
      VG_(close)(fd);
   }
   send_kind(MAPS, length);
}

/* --- Stores of the program --- */

static IRExpr *word(Addr value)
{
   return IRExpr_Const(IRConst_U64(value));
}

static IRExpr *temporary(IRSB *out, IRType type, IRExpr *value)
{
   IRTemp made = newIRTemp(out->tyenv, type);
   addStmtToIRSB(out, IRStmt_WrTmp(made, value));
   return IRExpr_RdTmp(made);
}

/* Adds a record behind `at`, and gives where the next one goes. Where `guard` is false nothing was
   stored, and the place is used again. */
static IRExpr *record(IRSB *out, IRExpr *at, Addr pc, IRExpr *address, UInt size, IRExpr *guard)
{
   IRExpr *second = temporary(out, Ity_I64, IRExpr_Binop(Iop_Add64, at, word(8)));
   IRExpr *next = temporary(out, Ity_I64, IRExpr_Binop(Iop_Add64, at, word(sizeof(Record))));
   if (guard != NULL)
      next = temporary(out, Ity_I64, IRExpr_ITE(guard, next, at));
   addStmtToIRSB(out, IRStmt_Store(Iend_LE, at, word((pc & PC_MASK) | ((ULong)size << 48))));
   addStmtToIRSB(out, IRStmt_Store(Iend_LE, second, address));
   addStmtToIRSB(out, IRStmt_Store(Iend_LE, word((Addr)&cursor), next));
   return next;
}

static UInt most_stores(const IRSB *in)
{
   UInt most = 0;
   for (Int i = 0; i < in->stmts_used; i++) {
      const IRStmt *st = in->stmts[i];
      if (st->tag == Ist_Store || st->tag == Ist_StoreG || st->tag == Ist_CAS ||
          st->tag == Ist_Dirty || (st->tag == Ist_LLSC && st->Ist.LLSC.storedata != NULL))
         most++;
   }
   return most;
}

/* Sends what there is if the stores of a block might not fit; gives the place of its first one. */
static IRExpr *begin_block(IRSB *out, UInt most)
{
   Record *last = packet.records + RECORDS - most;
   tl_assert(most < RECORDS);
   IRExpr *at = temporary(out, Ity_I64, IRExpr_Load(Iend_LE, Ity_I64, word((Addr)&cursor)));
   IRExpr *full = temporary(out, Ity_I1, IRExpr_Binop(Iop_CmpLT64U, word((Addr)last), at));
   IRDirty *call = unsafeIRDirty_0_N(0, "flush", VG_(fnptr_to_fnentry)(&flush), mkIRExprVec_0());
   call->guard = full;
   addStmtToIRSB(out, IRStmt_Dirty(call));
   return temporary(out, Ity_I64, IRExpr_Load(Iend_LE, Ity_I64, word((Addr)&cursor)));
}

static IRSB *instrument(VgCallbackClosure *closure, IRSB *in, const VexGuestLayout *layout,
                        const VexGuestExtents *extents, const VexArchInfo *host, IRType guest_word,
                        IRType host_word)
{
   if (!began)
      begin();
   if (guest_word != Ity_I64 || host_word != Ity_I64)
      VG_(tool_panic)("the program is not of 64 bits");
   UInt most = records ? most_stores(in) : 0;
   if (most == 0)
      return in;
   IRSB *out = deepCopyIRSBExceptStmts(in);
   IRTypeEnv *types = in->tyenv;
   IRExpr *at = begin_block(out, most);
   Addr pc = 0;
   for (Int i = 0; i < in->stmts_used; i++) {
      IRStmt *st = in->stmts[i];
      /* A store that faults is none, so its record follows it. */
      if (st != NULL)
         addStmtToIRSB(out, st);
      if (st == NULL)
         continue;
      switch (st->tag) {
      case Ist_IMark:
         pc = st->Ist.IMark.addr;
         break;
      case Ist_Store: {
         UInt size = sizeofIRType(typeOfIRExpr(types, st->Ist.Store.data));
         at = record(out, at, pc, st->Ist.Store.addr, size, NULL);
         break;
      }
      case Ist_StoreG: {
         IRStoreG *store = st->Ist.StoreG.details;
         UInt size = sizeofIRType(typeOfIRExpr(types, store->data));
         at = record(out, at, pc, store->addr, size, store->guard);
         break;
      }
      case Ist_Dirty: {
         IRDirty *dirty = st->Ist.Dirty.details;
         if (dirty->mFx == Ifx_Write || dirty->mFx == Ifx_Modify)
            at = record(out, at, pc, dirty->mAddr, dirty->mSize, NULL);
         break;
      }
      case Ist_CAS: {
         IRCAS *cas = st->Ist.CAS.details;
         UInt size = sizeofIRType(typeOfIRExpr(types, cas->dataLo));
         at = record(out, at, pc, cas->addr, cas->dataHi != NULL ? 2 * size : size, NULL);
         break;
      }
      case Ist_LLSC:
         if (st->Ist.LLSC.storedata != NULL) {
            UInt size = sizeofIRType(typeOfIRExpr(types, st->Ist.LLSC.storedata));
            at = record(out, at, pc, st->Ist.LLSC.addr, size, NULL);
         }
         break;
      default:
         break;
      }
   }
   return out;
}

/* --- What else happens to the program --- */

static void kernel_wrote(CorePart part, ThreadId thread, Addr address, SizeT length)
{
   if (!records || !began)
      return;
   while (length > 0) {
      SizeT size = length < LONGEST ? length : LONGEST;
      if (cursor == packet.records + RECORDS)
         flush();
      cursor->what = (ULong)size << 48;
      cursor->address = address;
      cursor++;
      address += size;
      length -= size;
   }
}

/* What a call does may be seen by others, or end the program: the stores before it go first. */
static void before_call(ThreadId thread, UInt number, UWord *arguments, UInt count)
{
   flush();
}

static void after_call(ThreadId thread, UInt number, UWord *arguments, UInt count, SysRes result)
{
}

static void before_fork(ThreadId thread)
{
   flush();
}

static void in_child(ThreadId thread)
{
   records = records && clo_children;
   cursor = packet.records;
   sent = 0;
}

static Bool take_option(const HChar *arg)
{
   if VG_BINT_CLO(arg, "--stores-fd", clo_fd, 0, 0x7fffffff) {}
   else if VG_BINT_CLO(arg, "--recorder", clo_recorder, 0, 0x7fffffff) {}
   else if VG_BOOL_CLO(arg, "--children", clo_children) {}
   else if VG_BOOL_CLO(arg, "--kernel-writes", clo_kernel_writes) {}
   else
      return False;
   return True;
}

static void print_usage(void)
{
   VG_(printf)("    --stores-fd=<number>      where the packets go: a socket\n"
               "    --recorder=<pid>          only the children of this process are recorded [0, all]\n"
               "    --children=no|yes         forked processes are recorded, too [no]\n"
               "    --kernel-writes=no|yes    what the kernel writes is recorded, too [no]\n");
}

static void print_debug_usage(void)
{
   VG_(printf)("    (none)\n");
}

static void after_options(void)
{
   if (clo_fd < 0)
      VG_(fmsg_bad_option)("--stores-fd", "this option is needed\n");
   /* The number stays open, for a program that takes the place of this one. */
   SysRes copy = VG_(dup)(clo_fd);
   if (sr_isError(copy))
      records = False;
   else
      to = VG_(safe_fd)((Int)sr_Res(copy));
   if (!clo_children && clo_recorder != 0 && VG_(getppid)() != clo_recorder)
      records = False;
   if (clo_kernel_writes)
      VG_(track_post_mem_write)(kernel_wrote);
}

static void finish(Int code)
{
   flush();
   send_kind(END, 0);
}

static void before_options(void)
{
   VG_(details_name)("Subpage-stores");
   VG_(details_version)(NULL);
   VG_(details_description)("a recorder of stores");
   VG_(details_copyright_author)("Copyright (C) the authors of Subpage, GNU GPL'd.");
   VG_(details_bug_reports_to)("the authors of Subpage");
   VG_(details_avg_translation_sizeB)(400);
   VG_(basic_tool_funcs)(after_options, instrument, finish);
   VG_(needs_command_line_options)(take_option, print_usage, print_debug_usage);
   VG_(needs_syscall_wrapper)(before_call, after_call);
   VG_(atfork)(before_fork, NULL, in_child);
}

VG_DETERMINE_INTERFACE_VERSION(before_options)

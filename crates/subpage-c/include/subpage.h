/* Subpage: write protection for any 128 bytes of a virtual machine's memory.
 *
 * Made from crates/subpage-c by cbindgen; do not edit. License: Apache-2.0 OR MIT.
 *
 * Results: 0 or more is a success; a negative result is a Linux error number with its sign changed
 * (-SUBPAGE_EINVAL and so on), and then nothing has changed. Every pointer is valid for the call, and
 * aligned, and what two of one call point to does not overlap; one that a call does not document as
 * optional gives -EFAULT if it is NULL.
 *
 * A domain has no lock. Whoever uses it holds one lock of their own over every call, and from
 * subpage_authorize_write to the last byte of the write that it permits. */

#ifndef SUBPAGE_H
#define SUBPAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Every byte may be written.
#define SUBPAGE_ALLOWED 0

// Every byte may be written, and a rule wants to know.
#define SUBPAGE_REPORTED 1

// No byte may be written.
#define SUBPAGE_DENIED 2

// The slot is read-only for the guest; permissions do not apply.
#define SUBPAGE_NOT_ELIGIBLE 3

// A byte belongs to no slot.
#define SUBPAGE_NOT_MAPPED 4

// `rule` and, in an origin, `rip` and the others: not known.
#define SUBPAGE_UNKNOWN UINT64_MAX

// The ordinary address space of a guest.
#define SUBPAGE_SPACE_NORMAL 0

// That of system-management mode.
#define SUBPAGE_SPACE_SMM 1

// The version of this interface; a program that was compiled for another one must not go on.
#define SUBPAGE_INTERFACE 1

// Bytes of a write that an event keeps.
#define SUBPAGE_EVENT_BYTES 64

// A write took effect and was logged.
#define SUBPAGE_EVENT_LOGGED 0

// A write took effect; the next one will not.
#define SUBPAGE_EVENT_ALLOWED_ONCE 1

// A write had no effect.
#define SUBPAGE_EVENT_DENIED 2

// A write had no effect, and the rule wants the guest stopped.
#define SUBPAGE_EVENT_STOPPED 3

// The tables permit the access now: enter the guest again.
#define SUBPAGE_RESUME 0

// They permitted it all along: invalidate this processor's translations and enter again.
#define SUBPAGE_RETRY 1

// Emulate the access; a write by `subpage_authorize_write`.
#define SUBPAGE_EMULATE 2

// The processor was setting flags in the guest paging-structure entry at `gpa`: set them in software, or
// step over the instruction if `on_every_walk`.
#define SUBPAGE_PAGE_WALK 3

// The write is denied; there is an event.
#define SUBPAGE_DENY_WRITE 4

// No slot holds the address.
#define SUBPAGE_NO_SLOT 5

// The host does not let the guest execute the page.
#define SUBPAGE_NOT_EXECUTABLE 6

// The guest wrote to a read-only slot.
#define SUBPAGE_READ_ONLY_SLOT 7

// Map the page at `gpa` and enter again.
#define SUBPAGE_MAP_PAGE 8

// Make the host page at `gpa` writable, map it anew, and enter again.
#define SUBPAGE_MAKE_WRITABLE 9

// No memory is left for a table; nothing has changed.
#define SUBPAGE_OUT_OF_MEMORY 10

// Somebody else wrote the permission table: stop the guest.
#define SUBPAGE_DAMAGED_TABLE 11

// Harvests that wait to be read in one domain; one more gives -ENOSPC.
#define SUBPAGE_MOST_HARVESTS 64

// The guest may not write to the slot at all; permissions do not apply there.
#define SUBPAGE_SLOT_READ_ONLY 1

// The pages of the slot that are written are noted, for subpage_harvest_dirty.
#define SUBPAGE_SLOT_LOG_DIRTY 2

// A write takes effect and is an event.
#define SUBPAGE_LOG 0

// The first write takes effect, later ones are denied.
#define SUBPAGE_ALLOW_ONCE 1

// A write has no effect.
#define SUBPAGE_DENY 2

// A write has no effect, and the guest is to be stopped.
#define SUBPAGE_STOP 3

// Nothing loosens or removes the rule, its owner included.
#define SUBPAGE_RULE_LOCKED 1

// The rule waits for `subpage_arm_rule` and neither denies nor counts before.
#define SUBPAGE_RULE_UNARMED 2

// Only in what `subpage_rule_at` gives: an allowed-once write has happened.
#define SUBPAGE_RULE_SPENT 4

// Bytes of a rule's name with the zero behind it.
#define SUBPAGE_NAME_BYTES 63

// The caller may not, a rule is locked or another's, or a map would permit what the host denies.
#define SUBPAGE_EPERM 1

// There is no such rule, tracked range or harvest.
#define SUBPAGE_ENOENT 2

// No memory is left for tables or records.
#define SUBPAGE_ENOMEM 12

// A pointer is NULL that must not be, or a frame belongs to no slot.
#define SUBPAGE_EFAULT 14

// A page is tracked already, or a harvest's change is not in force yet.
#define SUBPAGE_EBUSY 16

// Something is there already.
#define SUBPAGE_EEXIST 17

// Sub-page permissions are not enabled: call subpage_enable first.
#define SUBPAGE_ENODEV 19

// An argument has a value that it cannot have.
#define SUBPAGE_EINVAL 22

// A limit is reached, or the buffer is too small.
#define SUBPAGE_ENOSPC 28

// The memory of one virtual machine and who may write it.
typedef struct subpage_domain subpage_domain;

// What a write meets.
typedef struct subpage_decision {
  // SUBPAGE_ALLOWED and so on.
  uint32_t kind;
  // The rule wants the guest stopped.
  bool stop;
  // Number of the rule that decides; SUBPAGE_UNKNOWN if none does, or an access map.
  uint64_t rule;
  // The first byte that decides; that of the write if it is allowed.
  uint64_t at;
} subpage_decision;

// Who wrote, as far as the caller knows.
typedef struct subpage_origin {
  // Number of the virtual processor.
  uint32_t vcpu;
  // Privilege level, 0 to 3; above: not known.
  uint32_t cpl;
  // Address of the instruction, or SUBPAGE_UNKNOWN.
  uint64_t rip;
  // The guest's page-table base, or SUBPAGE_UNKNOWN.
  uint64_t cr3;
  // Linear address of the write, or SUBPAGE_UNKNOWN.
  uint64_t gla;
  // Nanoseconds since the first moment of 1970, UTC, and since the guest was made; both 0 if not
  // known.
  uint64_t unix_ns;
  // See `unix_ns`.
  uint64_t since_start_ns;
} subpage_origin;

// Where tables lie that a processor walks: 4 KiB frames of physical memory, given by functions of the
// embedding program. Each gets `context` as its first argument and must not call back into the library.
typedef struct subpage_frames {
  // Handed to each function.
  void *context;
  // Returns the host-physical address of a frame of 4096 zeros, a multiple of 4096 that the processor
  // can address and that is not in use; 0 if none is left. One that is no frame counts as none.
  uint64_t (*allocate)(void *context);
  // Takes a frame back.
  void (*release)(void *context, uint64_t hpa);
  // Returns where an allocated frame is mapped: 512 entries, valid until it is released.
  uint64_t *(*table)(void *context, uint64_t hpa);
} subpage_frames;

// How a domain is made.
typedef struct subpage_options {
  // Bits of a physical address of the processor, 32 to 52 (CPUID 80000008H, EAX 7:0).
  uint32_t physical_width;
  // The processor walks the permission table: "sub-page write permissions for EPT" is 1.
  bool sub_page_permissions;
  // EPTP bit 6 is set.
  bool ept_accessed_dirty;
  // Events that are kept until they are fetched, 1 to 65536; 0 stands for 1024.
  uint32_t events;
  // Where tables lie that a processor walks. With all functions NULL they lie on the heap, no processor
  // walks them, and every change is in force at once: its number is 0.
  struct subpage_frames frames;
} subpage_options;

// A write that met a rule or an access map. SUBPAGE_UNKNOWN stands for a number that is not known.
typedef struct subpage_event {
  // Its number, from 1. A gap tells of events that there was no room for.
  uint64_t number;
  // Which write it was of those that were decided about, from 1.
  uint64_t write;
  // SUBPAGE_EVENT_LOGGED and so on.
  uint32_t verdict;
  // The rule's action; SUBPAGE_DENY for an access map.
  uint32_t action;
  // The rule that decided; SUBPAGE_UNKNOWN for an access map.
  uint64_t rule;
  // First byte of the write.
  uint64_t gpa;
  // Length of the write.
  uint64_t length;
  // First byte that the rule or map holds.
  uint64_t at;
  // Linear address of the write.
  uint64_t gla;
  // Address of the instruction.
  uint64_t rip;
  // The guest's page-table base.
  uint64_t cr3;
  // See `subpage_origin`.
  uint64_t unix_ns;
  // See `subpage_origin`.
  uint64_t since_start_ns;
  // Number of the virtual processor.
  uint32_t vcpu;
  // Privilege level, 0 to 3; 4 if it is not known.
  uint32_t cpl;
  // The write was part of delivering an interrupt or exception.
  bool during_delivery;
  // The write was decided about in software.
  bool in_software;
  // How many of `bytes` are known.
  uint8_t known_bytes;
  // The first bytes of what was stored or would have been.
  uint8_t bytes[SUBPAGE_EVENT_BYTES];
} subpage_event;

// What a processor was last told to retry: one for each, all zeros at first. The fields are the library's.
typedef struct subpage_retry {
  // Whether there is one.
  bool retried;
  // The instruction.
  uint64_t rip;
  // The address.
  uint64_t gpa;
} subpage_retry;

// Fields of the control structure at exit reason 48 (EPT violation) or 66 (SPP-related event).
typedef struct subpage_exit {
  // Exit qualification.
  uint64_t qualification;
  // Guest-physical address.
  uint64_t gpa;
  // Guest-linear address; not used at exit reason 66.
  uint64_t gla;
  // The guest's instruction pointer.
  uint64_t rip;
  // Bytes of the access from `gpa` on, cut at the end of the page; 0 if they are not known.
  uint64_t length;
  // SUBPAGE_SPACE_NORMAL or SUBPAGE_SPACE_SMM.
  uint32_t space;
  // IDT-vectoring information.
  uint32_t vectoring;
  // IDT-vectoring error code.
  uint32_t error_code;
  // The control "virtual NMIs" is 1.
  bool virtual_nmis;
} subpage_exit;

// What is to be done about an exit.
typedef struct subpage_answer {
  // SUBPAGE_RESUME and so on.
  uint32_t kind;
  // With SUBPAGE_PAGE_WALK: setting the flags does not end the traps.
  bool on_every_walk;
  // With SUBPAGE_DENY_WRITE: the rule wants the guest stopped.
  bool stop;
  // With SUBPAGE_DENY_WRITE: there is no instruction to skip.
  bool during_delivery;
  // Whatever the kind: block NMIs again before the next entry.
  bool block_nmi;
  // Whatever the kind: deliver the event of `vectoring` and `error_code` again.
  bool reinject;
  // Entry-interruption information of that event.
  uint32_t vectoring;
  // Its error code.
  uint32_t error_code;
  // The rule that denies; SUBPAGE_UNKNOWN if an access map does, or nothing.
  uint64_t rule;
  // The address that the answer is about; with SUBPAGE_DENY_WRITE the first byte that may not be
  // written.
  uint64_t gpa;
} subpage_answer;

// A page with written sub-pages.
typedef struct subpage_written {
  // Frame number of the page.
  uint64_t gfn;
  // Bit i: one of bytes 128 i to 128 i + 127 was written since the harvest before.
  uint32_t sub_pages;
} subpage_written;

// A host page behind guest frames.
typedef struct subpage_page {
  // Host-physical address of its first byte, a multiple of its size.
  uint64_t hpa;
  // Its size in bytes: 4 KiB, 2 MiB or 1 GiB.
  uint64_t bytes;
  // The host lets the guest write to it now.
  bool writable;
  // The guest may execute it.
  bool executable;
  // EPT memory type: 0 UC, 1 WC, 4 WT, 5 WP, 6 WB.
  uint8_t memory_type;
} subpage_page;

// A rule.
typedef struct subpage_rule {
  // Its number; the library gives it.
  uint64_t id;
  // Guest-physical address of the first byte.
  uint64_t gpa;
  // Number of bytes, from 1 on.
  uint64_t length;
  // Whose it is: that owner and the host, which is 0, may remove and lock it.
  uint32_t owner;
  // SUBPAGE_LOG, SUBPAGE_ALLOW_ONCE, SUBPAGE_DENY or SUBPAGE_STOP.
  uint32_t action;
  // SUBPAGE_RULE_LOCKED, SUBPAGE_RULE_UNARMED.
  uint32_t flags;
  // UTF-8 without control characters, 1 to 62 bytes, then a zero.
  char name[SUBPAGE_NAME_BYTES];
} subpage_rule;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Sets the maps of `pages` frames from `first_gfn` on, all or none, and returns their number.
//
// -EINVAL: no frames. -EFAULT: a frame belongs to no slot. -EPERM: a locked rule forbids it.
//
// # Safety
// `maps` has `pages` elements.
int64_t subpage_set_access(struct subpage_domain *domain,
                           uint64_t first_gfn,
                           const uint32_t *maps,
                           size_t pages,
                           uint64_t *change);

// Reads the maps of `pages` frames, as they follow from maps and rules, and returns their number.
//
// # Safety
// `maps` has `pages` elements, which may be written.
int64_t subpage_get_access(const struct subpage_domain *domain,
                           uint64_t first_gfn,
                           uint32_t *maps,
                           size_t pages);

// KVM_SUBPAGES_SET_ACCESS of the KVM series: `request` is a `struct kvm_subpage` in a buffer of `length`
// bytes. Returns the number of pages; errors are the series'.
//
// # Safety
// `request` has `length` bytes that nobody else writes during the call.
int64_t subpage_request_set(struct subpage_domain *domain,
                            uint8_t *request,
                            size_t length,
                            uint64_t *change);

// KVM_SUBPAGES_GET_ACCESS of the KVM series: fills the map of `request`.
//
// # Safety
// As for `subpage_request_set`.
int64_t subpage_request_get(const struct subpage_domain *domain, uint8_t *request, size_t length);

// Decides about a write of `length` bytes at `gpa`, with no effect and no event.
int64_t subpage_check_write(const struct subpage_domain *domain,
                            uint32_t space,
                            uint64_t gpa,
                            uint64_t length,
                            struct subpage_decision *decision);

// Decides about a write that the caller is about to do for the guest, and notes what follows from it:
// an allowed-once rule is spent, the page is dirty, and what met a rule or a map becomes an event.
//
// Write all of the bytes, or none of them, before the lock over the domain is let go. `bytes`, those
// that would be written, and `origin` are for the event; either may be NULL. -ENOMEM: nothing was
// decided; do not write.
//
// # Safety
// `bytes` is NULL or has `length` bytes.
int64_t subpage_authorize_write(struct subpage_domain *domain,
                                uint32_t space,
                                uint64_t gpa,
                                uint64_t length,
                                const uint8_t *bytes,
                                const struct subpage_origin *origin,
                                struct subpage_decision *decision);

// The version of the interface that the library has: compare it with SUBPAGE_INTERFACE.
uint32_t subpage_interface(void);

// Makes a domain without memory, rules or tables and puts it into `*made`.
//
// -EINVAL: a width, a number of events, or functions of which some are NULL and some are not. -ENOMEM:
// no room for the domain or its events.
int64_t subpage_create(const struct subpage_options *options,
                       struct subpage_domain **made);

// Drops a domain; NULL is nothing to drop. Frames from `subpage_frames.allocate` are given back, so no
// processor may use its tables any more.
//
// # Safety
// `domain` is from `subpage_create` and is not used again.
void subpage_destroy(struct subpage_domain *domain);

// Turns sub-page permissions on: allocates the root of the permission table. Twice does no harm.
int64_t subpage_enable(struct subpage_domain *domain);

// Says that every processor has invalidated its translations (INVEPT) after the change with this number
// was made. That change and all before it are then in force, and their tables are freed.
//
// -EINVAL: no change has that number. 0, or one that was completed before, does no harm.
int64_t subpage_invalidated(struct subpage_domain *domain,
                            uint64_t change);

// How many changes wait for `subpage_invalidated`.
int64_t subpage_pending_changes(const struct subpage_domain *domain);

// The address of the root of the permission table (SPPTP); -ENODEV before `subpage_enable`.
//
// It means something to a processor only if the tables lie in frames that the program gave.
int64_t subpage_sppt_root(const struct subpage_domain *domain);

// The address of the root of an address space's EPT; -ENODEV while nothing was mapped there.
int64_t subpage_ept_root(const struct subpage_domain *domain, uint32_t space);

// Puts the oldest event that waits into `*event`, takes it from the domain and returns 1; 0 if none
// waits.
int64_t subpage_next_event(struct subpage_domain *domain, struct subpage_event *event);

// How many events happened since the domain was made, those without room included.
int64_t subpage_events(const struct subpage_domain *domain);

// Writes the oldest event that waits as one line of JSON, as `subpage guard --json` has it, without a
// zero or a newline behind it. Returns its length, and takes the event from the domain if it was not
// longer than `capacity`; 0 if none waits. `write` counts the writes that were decided about; `response`
// is always `skip`, since what the caller did with the instruction is not known here. A library without
// the feature `std` does not have this call.
//
// # Safety
// `text` is NULL or has `capacity` bytes, which may be written.
int64_t subpage_next_event_json(struct subpage_domain *domain,
                                char *text,
                                size_t capacity);

// Answers an EPT violation (exit reason 48). `retry` is that of the processor. `origin`, for the event of
// a denial, may be NULL; `rip` and the linear address are taken from the exit.
int64_t subpage_ept_violation(struct subpage_domain *domain,
                              struct subpage_retry *retry,
                              const struct subpage_exit *exit,
                              const struct subpage_origin *origin,
                              struct subpage_answer *answer);

// Answers an SPP miss or misconfiguration (exit reason 66).
int64_t subpage_spp_event(struct subpage_domain *domain,
                          struct subpage_retry *retry,
                          const struct subpage_exit *exit,
                          struct subpage_answer *answer);

// For a library without the feature `std`, from the program. Returns `bytes` bytes, aligned to `alignment`, a power of two; NULL if there are none.
extern uint8_t *subpage_platform_allocate(size_t bytes,
                                          size_t alignment);

// For a library without the feature `std`, from the program. Takes back what `subpage_platform_allocate` gave for the same size and alignment.
extern void subpage_platform_release(uint8_t *memory,
                                     size_t bytes,
                                     size_t alignment);

// For a library without the feature `std`, from the program. Stops everything, and must not return: the library found its own state broken. `text` has
// `length` bytes of UTF-8.
extern void subpage_platform_panic(const uint8_t *text,
                                   size_t length);

// Starts to track which sub-pages of `length` bytes from `gpa` on are written. `*track` becomes the
// number of the range.
//
// -ENODEV: sub-page permissions are not enabled. -EBUSY: a page of it is tracked already.
int64_t subpage_track(struct subpage_domain *domain,
                      uint64_t gpa,
                      uint64_t length,
                      uint64_t *track,
                      uint64_t *change);

// Stops tracking a range. What it has not told is lost; harvests that were taken can still be read.
//
// -ENOENT: no such range.
int64_t subpage_untrack(struct subpage_domain *domain, uint64_t track, uint64_t *change);

// Takes the pages of a tracked range that were written since the harvest before, and tracks them anew.
// `*harvest` becomes the number for `subpage_read_written`. Returns how many pages were written by now.
//
// -ENOENT: no such range. -ENOSPC: SUBPAGE_MOST_HARVESTS wait to be read.
int64_t subpage_harvest_written(struct subpage_domain *domain,
                                uint64_t track,
                                uint64_t *harvest,
                                uint64_t *change);

// Takes the dirty pages of a slot with SUBPAGE_SLOT_LOG_DIRTY, and logs them anew. `*harvest` becomes the
// number for `subpage_read_dirty`.
//
// -EINVAL: no such slot, or it does not log. -ENOSPC: SUBPAGE_MOST_HARVESTS wait to be read.
int64_t subpage_harvest_dirty(struct subpage_domain *domain,
                              uint32_t space,
                              uint16_t id,
                              uint64_t *harvest,
                              uint64_t *change);

// Reads a harvest of `subpage_harvest_written`: its pages in ascending order, and forgets it. Returns
// their number; if it is greater than `capacity`, nothing is written and the harvest stays.
//
// -EBUSY: its change is not in force yet: call subpage_invalidated first. -ENOENT: no such harvest.
//
// # Safety
// `pages` is NULL or has `capacity` elements, which may be written.
int64_t subpage_read_written(struct subpage_domain *domain,
                             uint64_t harvest,
                             struct subpage_written *pages,
                             size_t capacity);

// Reads a harvest of `subpage_harvest_dirty` and forgets it: a bit a page, from the first page of the
// slot on, the lowest bit of each word first, as KVM_GET_DIRTY_LOG has them. Returns the number of
// words; if it is greater than `capacity`, nothing is written and the harvest stays.
//
// -EBUSY: its change is not in force yet: call subpage_invalidated first. -ENOENT: no such harvest.
//
// # Safety
// `words` is NULL or has `capacity` elements, which may be written.
int64_t subpage_read_dirty(struct subpage_domain *domain,
                           uint64_t harvest,
                           uint64_t *words,
                           size_t capacity);

// Gives the guest `pages` frames of memory from frame `first_gfn` on, as slot `id`.
//
// -EINVAL: it overlaps another slot, or the number is taken; no frames, or some that the processor
// cannot address; a flag that is not known.
int64_t subpage_add_slot(struct subpage_domain *domain,
                         uint32_t space,
                         uint16_t id,
                         uint64_t first_gfn,
                         uint64_t pages,
                         uint32_t flags);

// Gives the guest `pages` frames from `first_gfn` on that are the memory of the frames from
// `original_gfn` on, which the guest has already: one more name. What guards one name guards all.
//
// As for subpage_add_slot, and -EFAULT: an original frame belongs to no slot. -EBUSY: a page of the new
// name is tracked. The guest may use the new name once the change is in force.
int64_t subpage_add_alias(struct subpage_domain *domain,
                          uint32_t space,
                          uint16_t id,
                          uint64_t first_gfn,
                          uint64_t pages,
                          uint32_t flags,
                          uint64_t original_gfn,
                          uint64_t *change);

// Takes a slot away and unmaps its frames; rules there stay and hold again when memory comes back.
// `*change` becomes the number for `subpage_invalidated`, 0 if nothing is to be invalidated.
int64_t subpage_remove_slot(struct subpage_domain *domain,
                            uint32_t space,
                            uint16_t id,
                            uint64_t *change);

// Moves a slot to another first frame; permissions belong to addresses and do not move.
int64_t subpage_move_slot(struct subpage_domain *domain,
                          uint32_t space,
                          uint16_t id,
                          uint64_t first_gfn,
                          uint64_t *change);

// Changes the flags of a slot.
int64_t subpage_set_slot_flags(struct subpage_domain *domain,
                               uint32_t space,
                               uint16_t id,
                               uint32_t flags,
                               uint64_t *change);

// Maps a host page at frame `gfn`; it is broken into smaller leaves where pages of it are restricted.
int64_t subpage_map(struct subpage_domain *domain,
                    uint32_t space,
                    uint64_t gfn,
                    const struct subpage_page *page);

// Unmaps frames.
int64_t subpage_unmap(struct subpage_domain *domain,
                      uint32_t space,
                      uint64_t first_gfn,
                      uint64_t pages,
                      uint64_t *change);

// Says whether the host lets the guest write to frames that are mapped now.
int64_t subpage_protect(struct subpage_domain *domain,
                        uint32_t space,
                        uint64_t first_gfn,
                        uint64_t pages,
                        bool writable,
                        uint64_t *change);

// Adds a rule; its `id` is not read. `*id` becomes its number.
//
// -EINVAL: a name, an action, a flag or a range that cannot be.
int64_t subpage_add_rule(struct subpage_domain *domain,
                         const struct subpage_rule *rule,
                         uint64_t *id,
                         uint64_t *change);

// Arms a rule that was added unarmed; one that is armed stays so.
int64_t subpage_arm_rule(struct subpage_domain *domain, uint64_t id, uint64_t *change);

// Removes a rule. -ENOENT: there is none. -EPERM: it is locked, or another owner's.
int64_t subpage_remove_rule(struct subpage_domain *domain,
                            uint64_t id,
                            uint32_t owner,
                            uint64_t *change);

// Locks a rule for good.
int64_t subpage_lock_rule(struct subpage_domain *domain, uint64_t id, uint32_t owner);

// How many rules there are.
int64_t subpage_rules(const struct subpage_domain *domain);

// Puts rule number `index`, from 0 in the order of their addresses, into `*rule`. -ENOENT behind the last.
int64_t subpage_rule_at(const struct subpage_domain *domain,
                        size_t index,
                        struct subpage_rule *rule);

// Writes rules, maps and tracked ranges as bytes. Returns their number; if it is greater than `capacity`,
// nothing was written, so that a first call with NULL and 0 tells how much room is needed.
//
// # Safety
// `bytes` is NULL or has `capacity` bytes, which may be written.
int64_t subpage_export(const struct subpage_domain *domain,
                       uint8_t *bytes,
                       size_t capacity);

// Takes what `subpage_export` wrote into a domain that is enabled and has no rules and maps. At most
// `max_pages` pages may be concerned.
//
// -EINVAL: it is damaged, or no such state. -ENOSPC: too many pages. -EEXIST: the domain is not empty.
//
// # Safety
// `bytes` has `length` bytes.
int64_t subpage_import(struct subpage_domain *domain,
                       const uint8_t *bytes,
                       size_t length,
                       uint64_t max_pages,
                       uint64_t *change);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* SUBPAGE_H */

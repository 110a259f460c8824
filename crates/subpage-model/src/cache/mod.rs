//! What a processor remembers of the tables, and for how long.
//!
//! SDM Vol. 3C, "Caching Translation Information" (guest-physical mappings and guest-physical
//! paging-structure caches), "Operations that Invalidate Cached Mappings" and "Guidelines for Use of
//! the INVEPT Instruction"; `docs/spp.md` 1.9. Facts used:
//!
//! - Nothing is remembered of entries that are absent or misconfigured.
//! - INVEPT, single-context or global, forgets all; the model has one EPT context at a time, so the
//!   two types are one.
//! - An EPT violation forgets whatever would translate the guest-physical address that caused it,
//!   so that a stale entry that forbids too much costs one exit, not an endless row of them.
//! - Other VM exits need not forget anything. None of the sources says that an SPP miss does.
//! - A processor may forget anything at any time.
//! - That vectors and upper SPPT entries may be remembered until INVEPT is the cautious reading of
//!   `docs/spp.md` 1.9: no source denies it.
//!
//! Combined and linear mappings are not modelled apart: what they add is keyed by linear address
//! and forgotten at least whenever the mapping of the guest-physical address is.

mod front;
mod store;

use subpage::access::AccessMap;
use subpage::address::{Gfn, Hpa};

use crate::decision::{Demand, PageRights};
use crate::ept_walk::{EptWalk, Start, Step};
use crate::sppt_walk::SpptStart;

use front::Front;
pub(crate) use front::Slot;
use store::Store;

/// How long remembered translations are used. Each choice is one that the architecture allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Staleness {
    /// Nothing is remembered: each access walks the tables.
    None,
    /// As Bochs 2.8 to 3.0: mappings live until the next VM exit and are used for accesses that
    /// they allow; nothing read from the SPPT is remembered (`docs/spp.md` 1.9).
    UntilExit,
    /// Mappings and vectors live until they are invalidated or another page takes their place in an
    /// array of 4096. Fast, and of fixed size: for replays.
    UntilEvicted,
    /// Mappings of every size, vectors and upper entries of both tables live until the architecture
    /// demands that they go. For tests; memory grows with the guest memory that is mapped.
    Longest,
    /// As [`Longest`](Self::Longest), but each use tosses a coin between memory and the tables, and
    /// now and then something is forgotten. The seed makes it repeatable.
    Random(u64),
}

/// The translation of one 4 KiB guest frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// Host-physical address of the frame's first byte.
    pub(crate) frame: Hpa,
    pub(crate) page: PageRights,
    /// The leaf's dirty flag is known to be set, or flags are off: writes need no walk.
    pub(crate) dirty: bool,
    /// The page's vector, if it has been read.
    pub(crate) vector: Option<AccessMap>,
}

/// Caches of one virtual CPU.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    staleness: Staleness,
    front: Front,
    store: Store,
    coin: Coin,
}

impl Cache {
    pub(crate) fn new(staleness: Staleness) -> Self {
        let seed = if let Staleness::Random(seed) = staleness { seed } else { 0 };
        Self { staleness, front: Front::new(), store: Store::default(), coin: Coin(seed) }
    }

    /// The translation that answers at once, if there is one; never with [`Staleness::None`] and
    /// [`Staleness::Random`], which leave the array empty.
    #[inline]
    pub(crate) fn slot(&self, gfn: Gfn) -> Option<Slot> {
        self.front.slot(gfn)
    }

    /// The remembered translation to use for an access of this kind.
    pub(crate) fn mapping(&mut self, gfn: Gfn, demand: Demand) -> Option<Mapping> {
        match self.staleness {
            Staleness::None => None,
            Staleness::UntilExit => {
                self.front.get(gfn).filter(|mapping| demand.is_met_by(mapping.page.rights))
            }
            Staleness::UntilEvicted => self.front.get(gfn),
            Staleness::Longest => self.store.mapping(gfn),
            Staleness::Random(_) => {
                if self.coin.one_in(16) {
                    self.store.remove(gfn);
                }
                if self.coin.one_in(2) { self.store.mapping(gfn) } else { None }
            }
        }
    }

    /// Where a walk of the EPT begins.
    pub(crate) fn ept_start(&mut self, gfn: Gfn, root: Start) -> Start {
        if !self.remembers_tables() {
            return root;
        }
        self.store.deepest_ept_table(gfn).unwrap_or(root)
    }

    /// Where a walk of the SPPT begins.
    pub(crate) fn sppt_start(&mut self, gfn: Gfn, root: SpptStart) -> SpptStart {
        if !self.remembers_tables() {
            return root;
        }
        self.store.deepest_sppt_table(gfn).unwrap_or(root)
    }

    /// Whether upper entries are remembered and used this time.
    fn remembers_tables(&mut self) -> bool {
        match self.staleness {
            Staleness::Random(_) => self.coin.one_in(2),
            _ => self.uses_store(),
        }
    }

    const fn uses_store(&self) -> bool {
        matches!(self.staleness, Staleness::Longest | Staleness::Random(_))
    }

    /// Remembers a translation that has been used.
    pub(crate) fn insert(&mut self, gfn: Gfn, mapping: &Mapping) {
        match self.staleness {
            Staleness::None => {}
            Staleness::UntilExit => self.front.insert(gfn, &Mapping { vector: None, ..*mapping }),
            Staleness::UntilEvicted => self.front.insert(gfn, mapping),
            Staleness::Longest => {
                self.store.insert(gfn, mapping);
                self.front.insert(gfn, mapping);
            }
            Staleness::Random(_) => self.store.insert(gfn, mapping),
        }
    }

    /// Remembers the upper entries of a walk of the EPT.
    pub(crate) fn insert_ept_tables(&mut self, gfn: Gfn, walk: &EptWalk) {
        if self.uses_store() {
            for table in walk.steps.iter().filter_map(Step::below) {
                self.store.insert_ept_table(gfn, table);
            }
        }
    }

    /// Remembers the upper entries of a walk of the SPPT.
    pub(crate) fn insert_sppt_tables(&mut self, gfn: Gfn, passed: &[SpptStart]) {
        if self.uses_store() {
            for table in passed {
                self.store.insert_sppt_table(gfn, *table);
            }
        }
    }

    /// An EPT violation at `gfn`.
    pub(crate) fn ept_violation(&mut self, gfn: Gfn) {
        if self.uses_store() && self.store.remove(gfn) {
            // The array holds the frames of a large page one by one.
            self.front.clear();
        }
        self.front.remove(gfn);
    }

    /// Any VM exit.
    pub(crate) fn vm_exit(&mut self) {
        if self.staleness == Staleness::UntilExit {
            self.front.clear();
        }
    }

    /// INVEPT, or a change of the EPT context.
    pub(crate) fn invalidate(&mut self) {
        self.front.clear();
        self.store.clear();
    }
}

/// A repeatable row of coin tosses (SplitMix64).
#[derive(Debug, Clone)]
struct Coin(u64);

impl Coin {
    /// True once in `n` tosses on average; `n` is a power of two.
    fn one_in(&mut self, n: u64) -> bool {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (bits ^ bits >> 31) & (n - 1) == 0
    }
}

//! Features of the processor that whoever runs a guest can ask for or leave out.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use thiserror::Error;

/// A register of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

use Output::{Eax, Ebx, Ecx, Edx};

impl Output {
    fn of(self, entry: &mut kvm_cpuid_entry2) -> &mut u32 {
        match self {
            Self::Eax => &mut entry.eax,
            Self::Ebx => &mut entry.ebx,
            Self::Ecx => &mut entry.ecx,
            Self::Edx => &mut entry.edx,
        }
    }
}

/// A bit of CPUID that has a name, and the feature without which it makes no sense.
#[derive(Debug)]
struct Feature {
    name: &'static str,
    leaf: u32,
    subleaf: u32,
    output: Output,
    bit: u32,
    needs: Option<&'static str>,
}

impl Feature {
    /// The register of CPUID that tells of it.
    fn register<'a>(&self, cpuid: &'a mut CpuId) -> Option<&'a mut u32> {
        let place = (self.leaf, self.subleaf);
        let mut entries = cpuid.as_mut_slice().iter_mut();
        let entry = entries.find(|entry| (entry.function, entry.index) == place)?;
        Some(self.output.of(entry))
    }
}

const fn feature(
    name: &'static str,
    (leaf, subleaf): (u32, u32),
    output: Output,
    bit: u32,
    needs: Option<&'static str>,
) -> Feature {
    Feature { name, leaf, subleaf, output, bit, needs }
}

const BASIC: (u32, u32) = (1, 0);
/// Of KVM, for its guests.
const PARAVIRTUAL: (u32, u32) = (0x4000_0001, 0);
const STRUCTURED: (u32, u32) = (7, 0);
const STRUCTURED_1: (u32, u32) = (7, 1);
const XSTATE: (u32, u32) = (0xd, 0);
const XSTATE_1: (u32, u32) = (0xd, 1);
const EXTENDED: (u32, u32) = (0x8000_0001, 0);
const EXTENDED_8: (u32, u32) = (0x8000_0008, 0);

/// The features that can be chosen, each behind the one that it needs. Names as in Linux's
/// `/proc/cpuinfo`, but SSE3 and LZCNT by those of the manuals.
#[rustfmt::skip]
const FEATURES: &[Feature] = &[
    feature("sse3", BASIC, Ecx, 0, None),
    feature("ssse3", BASIC, Ecx, 9, Some("sse3")),
    feature("sse4_1", BASIC, Ecx, 19, Some("ssse3")),
    feature("sse4_2", BASIC, Ecx, 20, Some("sse4_1")),
    feature("pclmulqdq", BASIC, Ecx, 1, None),
    feature("cx16", BASIC, Ecx, 13, None),
    feature("pcid", BASIC, Ecx, 17, None),
    feature("x2apic", BASIC, Ecx, 21, None),
    feature("movbe", BASIC, Ecx, 22, None),
    feature("popcnt", BASIC, Ecx, 23, None),
    feature("aes", BASIC, Ecx, 25, None),
    feature("rdrand", BASIC, Ecx, 30, None),
    feature("xsave", BASIC, Ecx, 26, None),
    feature("xsaveopt", XSTATE_1, Eax, 0, Some("xsave")),
    feature("xsavec", XSTATE_1, Eax, 1, Some("xsave")),
    feature("xgetbv1", XSTATE_1, Eax, 2, Some("xsave")),
    feature("xsaves", XSTATE_1, Eax, 3, Some("xsavec")),
    feature("avx", BASIC, Ecx, 28, Some("xsave")),
    feature("fma", BASIC, Ecx, 12, Some("avx")),
    feature("f16c", BASIC, Ecx, 29, Some("avx")),
    feature("xop", EXTENDED, Ecx, 11, Some("avx")),
    feature("fma4", EXTENDED, Ecx, 16, Some("avx")),
    feature("avx2", STRUCTURED, Ebx, 5, Some("avx")),
    feature("vaes", STRUCTURED, Ecx, 9, Some("avx")),
    feature("vpclmulqdq", STRUCTURED, Ecx, 10, Some("avx")),
    feature("avx_vnni", STRUCTURED_1, Eax, 4, Some("avx2")),
    feature("avx_ifma", STRUCTURED_1, Eax, 23, Some("avx2")),
    feature("avx_vnni_int8", STRUCTURED_1, Edx, 4, Some("avx2")),
    feature("avx_ne_convert", STRUCTURED_1, Edx, 5, Some("avx2")),
    feature("avx512f", STRUCTURED, Ebx, 16, Some("avx2")),
    feature("avx512dq", STRUCTURED, Ebx, 17, Some("avx512f")),
    feature("avx512ifma", STRUCTURED, Ebx, 21, Some("avx512f")),
    feature("avx512cd", STRUCTURED, Ebx, 28, Some("avx512f")),
    feature("avx512bw", STRUCTURED, Ebx, 30, Some("avx512f")),
    feature("avx512vl", STRUCTURED, Ebx, 31, Some("avx512f")),
    feature("avx512vbmi", STRUCTURED, Ecx, 1, Some("avx512f")),
    feature("avx512_vbmi2", STRUCTURED, Ecx, 6, Some("avx512f")),
    feature("avx512_vnni", STRUCTURED, Ecx, 11, Some("avx512f")),
    feature("avx512_bitalg", STRUCTURED, Ecx, 12, Some("avx512f")),
    feature("avx512_vpopcntdq", STRUCTURED, Ecx, 14, Some("avx512f")),
    feature("avx512_4vnniw", STRUCTURED, Edx, 2, Some("avx512f")),
    feature("avx512_4fmaps", STRUCTURED, Edx, 3, Some("avx512f")),
    feature("avx512_vp2intersect", STRUCTURED, Edx, 8, Some("avx512f")),
    feature("avx512_fp16", STRUCTURED, Edx, 23, Some("avx512f")),
    feature("avx512_bf16", STRUCTURED_1, Eax, 5, Some("avx512f")),
    feature("fsgsbase", STRUCTURED, Ebx, 0, None),
    feature("bmi1", STRUCTURED, Ebx, 3, None),
    feature("smep", STRUCTURED, Ebx, 7, None),
    feature("bmi2", STRUCTURED, Ebx, 8, None),
    feature("erms", STRUCTURED, Ebx, 9, None),
    feature("invpcid", STRUCTURED, Ebx, 10, None),
    feature("rtm", STRUCTURED, Ebx, 11, None),
    feature("tsxldtrk", STRUCTURED, Edx, 16, Some("rtm")),
    feature("hle", STRUCTURED, Ebx, 4, None),
    feature("rdseed", STRUCTURED, Ebx, 18, None),
    feature("adx", STRUCTURED, Ebx, 19, None),
    feature("smap", STRUCTURED, Ebx, 20, None),
    feature("clflushopt", STRUCTURED, Ebx, 23, None),
    feature("clwb", STRUCTURED, Ebx, 24, None),
    feature("sha_ni", STRUCTURED, Ebx, 29, None),
    feature("umip", STRUCTURED, Ecx, 2, None),
    feature("waitpkg", STRUCTURED, Ecx, 5, None),
    feature("gfni", STRUCTURED, Ecx, 8, None),
    feature("rdpid", STRUCTURED, Ecx, 22, None),
    feature("movdiri", STRUCTURED, Ecx, 27, None),
    feature("movdir64b", STRUCTURED, Ecx, 28, None),
    feature("fsrm", STRUCTURED, Edx, 4, None),
    feature("serialize", STRUCTURED, Edx, 14, None),
    feature("fzrm", STRUCTURED_1, Eax, 10, None),
    feature("fsrs", STRUCTURED_1, Eax, 11, None),
    feature("fsrc", STRUCTURED_1, Eax, 12, None),
    feature("lzcnt", EXTENDED, Ecx, 5, None),
    feature("sse4a", EXTENDED, Ecx, 6, None),
    feature("tbm", EXTENDED, Ecx, 21, None),
    feature("nx", EXTENDED, Edx, 20, None),
    feature("pdpe1gb", EXTENDED, Edx, 26, None),
    feature("rdtscp", EXTENDED, Edx, 27, None),
    feature("clzero", EXTENDED_8, Ebx, 0, None),
    feature("wbnoinvd", EXTENDED_8, Ebx, 9, None),
    feature("tsc_deadline_timer", BASIC, Ecx, 24, None),
    feature("kvmclock", PARAVIRTUAL, Eax, 3, None),
    feature("kvmclock_stable", PARAVIRTUAL, Eax, 24, Some("kvmclock")),
];

/// Components of XCR0 that AVX and AVX-512 bring.
const AVX_STATE: u32 = 1 << 2;
const AVX512_STATE: u32 = 0b111 << 5;

fn find(name: &str) -> Option<&'static Feature> {
    FEATURES.iter().find(|feature| feature.name == name)
}

/// Why a choice of features is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FeatureError {
    /// There is no such name.
    #[error("there is no feature `{name}`; the names are {}", names())]
    Unknown {
        /// What was given.
        name: String,
    },
    /// It is asked for and left out.
    #[error("`{name}` is asked for, and so is `-{without}`")]
    Contradiction {
        /// What is asked for.
        name: &'static str,
        /// What is left out: the same, or what it needs.
        without: &'static str,
    },
    /// It is asked for and not there.
    #[error("guests of this KVM do not find the feature `{name}`, which is asked for")]
    Missing {
        /// What is asked for.
        name: &'static str,
    },
    /// It is left out and there all the same.
    #[error(
        "guests of this KVM find the feature `{name}` whatever CPUID they are given: it cannot be left \
         out here"
    )]
    Stays {
        /// What is left out.
        name: &'static str,
    },
}

/// The names of all features that can be chosen.
pub fn all() -> impl Iterator<Item = &'static str> {
    FEATURES.iter().map(|feature| feature.name)
}

fn names() -> String {
    all().collect::<Vec<_>>().join(", ")
}

/// Which features a guest is to find, over those that it finds anyway: written `FEATURE` for one that it
/// must find, `-FEATURE` for one that it must not, which takes those with it that need it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FeatureChoice {
    wanted: BTreeSet<&'static str>,
    left_out: BTreeSet<&'static str>,
}

impl FeatureChoice {
    /// Leaves a feature out, unless it is asked for.
    pub fn rather_without(&mut self, name: &'static str) {
        assert!(find(name).is_some(), "a feature of the list");
        if !self.wanted.contains(name) {
            self.left_out.insert(name);
        }
    }

    /// The feature on the way to those that `name` needs which is left out.
    fn without(&self, name: &'static str) -> Option<&'static str> {
        let mut at = Some(name);
        while let Some(name) = at {
            if self.left_out.contains(name) {
                return Some(name);
            }
            at = find(name).and_then(|feature| feature.needs);
        }
        None
    }

    /// Whether nothing is chosen.
    pub fn is_empty(&self) -> bool {
        self.wanted.is_empty() && self.left_out.is_empty()
    }

    /// The leaves and subleaves that tell of what is chosen.
    pub fn leaves(&self) -> BTreeSet<(u32, u32)> {
        let chosen = FEATURES
            .iter()
            .filter(|it| self.wanted.contains(it.name) || self.without(it.name).is_some());
        chosen.map(|feature| (feature.leaf, feature.subleaf)).collect()
    }

    /// Whether a guest that finds `cpuid` finds what was chosen.
    pub fn check(&self, cpuid: &mut CpuId) -> Result<(), FeatureError> {
        for feature in FEATURES {
            let is_there = feature.register(cpuid).is_some_and(|it| *it >> feature.bit & 1 != 0);
            let name = feature.name;
            if self.wanted.contains(name) && !is_there {
                return Err(FeatureError::Missing { name });
            }
            // What is left out with others need not be named.
            if self.left_out.contains(name) && is_there {
                return Err(FeatureError::Stays { name });
            }
        }
        Ok(())
    }

    /// Takes what is left out of a guest's CPUID.
    pub fn apply(&self, cpuid: &mut CpuId) {
        for feature in FEATURES.iter().filter(|feature| self.without(feature.name).is_some()) {
            if let Some(register) = feature.register(cpuid) {
                *register &= !(1 << feature.bit);
            }
        }
        let entries = cpuid.as_mut_slice();
        let mut gone = 0;
        for (name, state) in [("xsave", u32::MAX), ("avx", AVX_STATE), ("avx512f", AVX512_STATE)] {
            gone |= if self.without(name).is_some() { state } else { 0 };
        }
        let state = entries.iter_mut().find(|entry| (entry.function, entry.index) == XSTATE);
        if let Some(state) = state {
            state.eax &= !gone;
        }
    }
}

impl FromStr for FeatureChoice {
    type Err = FeatureError;

    /// From words with commas between them.
    fn from_str(text: &str) -> Result<Self, FeatureError> {
        let mut choice = Self::default();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let (set, name) = match word.strip_prefix('-') {
                Some(name) => (&mut choice.left_out, name),
                None => (&mut choice.wanted, word),
            };
            let known =
                find(name).ok_or_else(|| FeatureError::Unknown { name: name.to_owned() })?;
            set.insert(known.name);
        }
        for name in &choice.wanted {
            if let Some(without) = choice.without(name) {
                return Err(FeatureError::Contradiction { name, without });
            }
        }
        Ok(choice)
    }
}

impl fmt::Display for FeatureChoice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wanted = self.wanted.iter().map(|name| ("", name));
        let left_out = self.left_out.iter().map(|name| ("-", name));
        for (number, (sign, name)) in wanted.chain(left_out).enumerate() {
            write!(out, "{}{sign}{name}", if number > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// What the bits of a register of CPUID are called, for people.
pub fn names_of(leaf: u32, subleaf: u32, output: usize, bits: u32) -> Vec<String> {
    let outputs = [(Eax, "EAX"), (Ebx, "EBX"), (Ecx, "ECX"), (Edx, "EDX")];
    let (output, name) = outputs[output];
    let of_bit = |bit: u32| {
        let known = FEATURES.iter().find(|feature| {
            (feature.leaf, feature.subleaf, feature.output, feature.bit)
                == (leaf, subleaf, output, bit)
        });
        known.map_or_else(
            || format!("bit {bit} of {name} of CPUID leaf {leaf:#x}.{subleaf}"),
            |feature| feature.name.to_owned(),
        )
    };
    (0..u32::BITS).filter(|bit| bits >> bit & 1 != 0).map(of_bit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All leaves, all bits.
    fn everything() -> CpuId {
        let mut leaves: Vec<_> = FEATURES.iter().map(|it| (it.leaf, it.subleaf)).collect();
        leaves.push(XSTATE);
        leaves.dedup();
        let entry = |(function, index)| kvm_cpuid_entry2 {
            function,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..kvm_cpuid_entry2::default()
        };
        let leaves: BTreeSet<_> = leaves.into_iter().collect();
        CpuId::from_entries(&leaves.into_iter().map(entry).collect::<Vec<_>>()).expect("few")
    }

    /// The features that are there.
    fn seen(cpuid: &CpuId) -> Vec<&'static str> {
        let mut cpuid = cpuid.clone();
        let mut is_there =
            |it: &Feature| it.register(&mut cpuid).is_some_and(|word| *word >> it.bit & 1 != 0);
        FEATURES.iter().filter(|it| is_there(it)).map(|it| it.name).collect()
    }

    fn chosen(text: &str) -> CpuId {
        let mut cpuid = everything();
        let choice: FeatureChoice = text.parse().expect(text);
        choice.apply(&mut cpuid);
        assert_eq!(choice.check(&mut cpuid), Ok(()), "{text}");
        cpuid
    }

    fn components(cpuid: &CpuId) -> u32 {
        let state = cpuid.as_slice().iter().find(|it| (it.function, it.index) == XSTATE);
        state.expect("a leaf").eax
    }

    #[test]
    fn each_name_and_each_bit_is_there_once_behind_what_it_needs() {
        for (index, one) in FEATURES.iter().enumerate() {
            let before = &FEATURES[..index];
            assert!(before.iter().all(|it| it.name != one.name), "{}", one.name);
            let bit = |it: &Feature| (it.leaf, it.subleaf, it.output as u32, it.bit);
            assert!(before.iter().all(|it| bit(it) != bit(one)), "{}", one.name);
            let needed = |name| before.iter().any(|it| it.name == name);
            assert!(one.needs.is_none_or(needed), "{}", one.name);
        }
    }

    #[test]
    fn what_is_left_out_takes_with_it_what_needs_it() {
        assert_eq!(seen(&chosen("")).len(), FEATURES.len());
        let without = |text: &str| {
            let cpuid = chosen(text);
            let seen = seen(&cpuid);
            let gone = FEATURES.iter().map(|it| it.name).filter(|name| !seen.contains(name));
            (gone.collect::<Vec<_>>(), !components(&cpuid))
        };
        assert_eq!(without("-cx16"), (vec!["cx16"], 0));
        assert_eq!(without(" -ssse3 , popcnt"), (vec!["ssse3", "sse4_1", "sse4_2"], 0));
        let (gone, state) = without("-avx2");
        assert!(gone.contains(&"avx512_bf16") && gone.contains(&"avx_vnni"), "{gone:?}");
        assert!(!gone.contains(&"avx") && !gone.contains(&"xsavec"), "{gone:?}");
        assert_eq!(state, AVX512_STATE);
        let (gone, state) = without("-avx");
        assert!(gone.contains(&"fma") && gone.contains(&"avx512f"), "{gone:?}");
        assert_eq!(state, AVX_STATE | AVX512_STATE);
        let (gone, state) = without("-xsave");
        assert!(gone.contains(&"xsaves") && gone.contains(&"avx512vl"), "{gone:?}");
        assert_eq!(state, u32::MAX);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let wrong = |text: &str| text.parse::<FeatureChoice>().expect_err(text);
        assert_eq!(wrong("avx,avx9"), FeatureError::Unknown { name: "avx9".into() });
        assert_eq!(wrong("--avx"), FeatureError::Unknown { name: "-avx".into() });
        let contradiction = |name, without| FeatureError::Contradiction { name, without };
        assert_eq!(wrong("avx,-avx"), contradiction("avx", "avx"));
        assert_eq!(wrong("avx512bw,-xsave"), contradiction("avx512bw", "xsave"));
        let mut poor = everything();
        poor.as_mut_slice().iter_mut().for_each(|entry| entry.ebx = 0);
        let asks: FeatureChoice = "avx2".parse().expect("a choice");
        assert_eq!(asks.check(&mut poor), Err(FeatureError::Missing { name: "avx2" }));
        assert_eq!(asks.leaves(), [STRUCTURED].into());
        let less: FeatureChoice = "-avx".parse().expect("a choice");
        assert_eq!(less.check(&mut everything()), Err(FeatureError::Stays { name: "avx" }));
        assert!(less.leaves().contains(&BASIC) && less.leaves().contains(&STRUCTURED_1));
    }

    #[test]
    fn a_choice_is_kept_as_it_is_typed() {
        let choice: FeatureChoice = "rdtscp,-avx,-aes".parse().expect("a choice");
        assert_eq!(choice.to_string(), "rdtscp,-aes,-avx");
        assert_eq!(choice.to_string().parse(), Ok(choice.clone()));
        let mut rather = choice.clone();
        rather.rather_without("rdtscp");
        assert_eq!(rather, choice, "it is asked for");
        rather.rather_without("cx16");
        assert_eq!(rather.to_string(), "rdtscp,-aes,-avx,-cx16");
    }

    #[test]
    fn bits_have_names_or_numbers() {
        assert_eq!(names_of(1, 0, 2, 1 << 13 | 1 << 28), ["cx16", "avx"]);
        assert_eq!(names_of(1, 0, 3, 1 << 4), ["bit 4 of EDX of CPUID leaf 0x1.0"]);
    }
}

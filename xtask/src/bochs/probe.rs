//! Tries a Bochs out: a small ROM asks the processor itself what it can do.
//!
//! What a build was configured with is not told by Bochs in any form that a program could rely
//! on. A run of a twentieth of a second shows all at once: the version, the CPU models, VMX, SPP,
//! several processors, a display that needs no screen, the output port and the way to the end.

use std::{fmt, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};

use super::configuration::{self, Configuration, Logging, MEMORY_MIB, SerialLines};
use crate::session::Interrupt;

/// The model with SPP that the suites run on.
pub(crate) const WITH_SPP: &str = "tigerlake";
/// The model without SPP, but with VMX and EPT, that they run on.
pub(crate) const WITHOUT_SPP: &str = "corei7_skylake_x";
/// A 64-bit model without VMX.
pub(crate) const WITHOUT_VMX: &str = "athlon64_clawhammer";

/// Up to 2.7 the wrong bits of an SPP vector are looked at.
const OLDEST: Version = Version { major: 2, minor: 8 };

/// Far more than a start takes, also on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(30);

/// A version of Bochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    major: u32,
    minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

impl Version {
    /// Reads it from the banner, `Bochs x86 Emulator 3.0`, perhaps with `.devel` behind.
    fn in_banner(output: &str) -> Option<Self> {
        let (_, rest) = output.split_once("Bochs x86 Emulator ")?;
        let mut numbers = rest.split(|character: char| !character.is_ascii_digit());
        let major = numbers.next()?.parse().ok()?;
        let minor = numbers.next()?.parse().ok()?;
        Some(Self { major, minor })
    }
}

/// What the ROM prints: these words and the end of the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Virtualization {
    NoVmx,
    Vmx,
    VmxAndSpp,
}

impl Virtualization {
    const ALL: [Self; 3] = [Self::NoVmx, Self::Vmx, Self::VmxAndSpp];

    fn words(self) -> &'static str {
        match self {
            Self::NoVmx => "probe: no VMX",
            Self::Vmx => "probe: VMX, no SPP",
            Self::VmxAndSpp => "probe: VMX and SPP",
        }
    }

    fn told(output: &str) -> Option<Self> {
        let said = |processor: &Self| output.lines().any(|line| line == processor.words());
        Self::ALL.into_iter().find(said)
    }
}

/// Why a Bochs is of no use, or its version.
pub(crate) fn probe(program: &Path, interrupt: &Interrupt) -> Result<Result<Version, String>> {
    let mut version = None;
    for (model, expected) in [
        (WITH_SPP, Virtualization::VmxAndSpp),
        (WITHOUT_SPP, Virtualization::Vmx),
        (WITHOUT_VMX, Virtualization::NoVmx),
    ] {
        let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
        fs::write(directory.path().join(configuration::ROM), rom())
            .context("cannot write a ROM image")?;
        let configuration = Configuration {
            model,
            processors: 4,
            memory_mib: MEMORY_MIB,
            images: &[],
            medium: None,
            logging: Logging::Errors,
            serial_lines: SerialLines::None,
            instructions_per_second: None,
        };
        let run = configuration.start(program, directory.path(), LIMIT, interrupt, &mut |_| {});
        let run = match run {
            Ok(run) => run,
            // Not a program, or none for this machine.
            Err(error) => return Ok(Err(format!("{error:#}"))),
        };
        let Some(found) = Version::in_banner(&run.banner) else {
            return Ok(Err("it does not say which version it is".into()));
        };
        if found < OLDEST {
            let reason = format!("version {found} is older than {OLDEST} and wrong about SPP");
            return Ok(Err(reason));
        }
        version = Some(found);
        let text = run.lines.join("\n");
        match Virtualization::told(&text) {
            Some(processor) if processor == expected => {}
            Some(other) => {
                return Ok(Err(format!(
                    "version {found}, CPU model {model}: {:?} instead of {:?}",
                    other.words(),
                    expected.words()
                )));
            }
            None => {
                return Ok(Err(format!(
                    "version {found} does not run 4 processors of the model {model}: {}",
                    run.complaint()
                )));
            }
        }
    }
    Ok(version.context("no model was tried").map_err(|error| error.to_string()))
}

/// A 64 KiB ROM at the top of the first MiB and of the first 4 GiB: in real mode it reads CPUID
/// and `IA32_VMX_PROCBASED_CTLS2`, prints to port E9H and asks Bochs to end.
fn rom() -> Vec<u8> {
    const CODE: [u8; 75] = [
        0xfa, // cli
        0x8c, 0xc8, // mov ax, cs
        0x8e, 0xd8, // mov ds, ax
        0x66, 0xb8, 1, 0, 0, 0, // mov eax, 1
        0x0f, 0xa2, // cpuid
        0x66, 0x0f, 0xba, 0xe1, 5, // bt ecx, 5 (VMX)
        0x73, 25, // jnc no_vmx
        0x66, 0xb9, 0x8b, 0x04, 0, 0, // mov ecx, IA32_VMX_PROCBASED_CTLS2
        0x0f, 0x32, // rdmsr
        0x66, 0x0f, 0xba, 0xe2, 23, // bt edx, 23 (sub-page write permissions allowed)
        0x73, 5, // jnc no_spp
        0xbe, 0x00, 0x03, // mov si, 0x300
        0xeb, 8, // jmp say
        0xbe, 0x00, 0x02, // no_spp: mov si, 0x200
        0xeb, 3, // jmp say
        0xbe, 0x00, 0x01, // no_vmx: mov si, 0x100
        0xfc, // say: cld
        0xac, // next: lodsb
        0x84, 0xc0, // test al, al
        0x74, 4, // jz end
        0xe6, 0xe9, // out 0xe9, al
        0xeb, 0xf7, // jmp next
        0xbe, 0x00, 0x04, // end: mov si, 0x400
        0xba, 0x00, 0x89, // mov dx, 0x8900
        0xac, // letter: lodsb
        0x84, 0xc0, // test al, al
        0x74, 3,    // jz halt
        0xee, // out dx, al
        0xeb, 0xf8, // jmp letter
        0xf4, // halt: hlt
        0xeb, 0xfd, // jmp halt
    ];
    let mut rom = vec![0; 1 << 16];
    rom[..CODE.len()].copy_from_slice(&CODE);
    for (text, at) in Virtualization::ALL.iter().zip([0x100, 0x200, 0x300]) {
        let line = [text.words().as_bytes(), b"\n"].concat();
        rom[at..at + line.len()].copy_from_slice(&line);
    }
    rom[0x400..0x408].copy_from_slice(b"Shutdown");
    // The first instruction is fetched from FFFFFFF0H: jmp 0, sixteen bits wide.
    rom[0xfff0..0xfff3].copy_from_slice(&[0xe9, 0x0d, 0x00]);
    rom
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers() {
        let version = |text| Version::in_banner(text);
        let banner = "====\n        Bochs x86 Emulator 3.0\n  Built from GitHub";
        assert_eq!(version(banner), Some(Version { major: 3, minor: 0 }));
        assert_eq!(version("Bochs x86 Emulator 2.10.devel"), Some(Version { major: 2, minor: 10 }));
        assert!(version("Bochs x86 Emulator 2.10").is_some_and(|version| version >= OLDEST));
        assert!(version("Bochs x86 Emulator 2.7").is_some_and(|version| version < OLDEST));
        assert_eq!(version("Bochs x86 Emulator"), None);
        assert_eq!(version("Bochs x86 Emulator three"), None);
    }

    #[test]
    fn the_rom_ends_where_the_processor_begins() {
        let rom = rom();
        assert_eq!(rom.len(), 0x10000);
        // A jump counts from the instruction behind it and stays within the segment.
        let displacement = u16::from_le_bytes([rom[0xfff1], rom[0xfff2]]);
        assert_eq!(0xfff3_u16.wrapping_add(displacement), 0);
    }

    #[test]
    fn what_the_rom_says_is_told_apart() {
        for processor in Virtualization::ALL {
            let text = format!("banner\n{}\nend", processor.words());
            assert_eq!(Virtualization::told(&text), Some(processor));
        }
        assert_eq!(Virtualization::told("probe: VMX"), None);
    }
}

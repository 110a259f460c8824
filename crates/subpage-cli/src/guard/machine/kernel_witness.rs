//! Who writes in a Linux guest: functions, calls and tasks, by its kernel's image.

use std::path::Path;

use subpage::address::Gpa;
use subpage_kvm::boot::{Boot, Format};
use subpage_kvm::event::{Functions, Scene, Testimony, Witness};
use subpage_kvm::vm::Vm;
use subpage_linux::{
    Banner, Btf, Kallsyms, KernelImage, Memory, Registers, RuntimeAddress, Slide, Symbol, Tasks,
    Unwinder,
};
use subpage_trap::{Function, Task};

use super::functions;
use crate::failure::Failure;

/// What names the writers of a guest: its kernel's image if it is Linux and where it runs is known, else the
/// functions of its ELF file.
pub(super) fn of(image: &Path, boot: &Boot, functions: Functions) -> Box<dyn Witness> {
    let slide = match (boot.image.format, boot.image.kernel) {
        (_, Some(kernel)) => Slide::new(kernel.slide),
        // Its own loader moves it.
        (Format::LinuxBzImage, None) => return Box::new(functions),
        (_, None) => Slide::ZERO,
    };
    match KernelImage::open(image) {
        Ok(image) => of_kernel(&image, slide, functions),
        Err(_) => Box::new(functions),
    }
}

/// The same for a guest that was saved, whose kernel or ELF file is given again. Fails if it is neither, or
/// another kernel than the one in the guest's memory.
pub(super) fn of_restored(path: &Path, vm: &Vm) -> Result<Box<dyn Witness>, Failure> {
    let functions = functions::of_elf(path);
    let image = match KernelImage::open(path) {
        Ok(image) => image,
        Err(_) if functions.is_empty() => {
            return Err(Failure::Input(format!(
                "{} names no functions of a saved guest: it is neither the image of a Linux kernel \
                 nor an ELF file with symbols and code",
                path.display()
            )));
        }
        Err(_) => return Ok(Box::new(functions)),
    };
    let is_ours = |kallsyms: &Kallsyms| {
        let banner = Banner::of(&image, kallsyms);
        let Some((at, text)) = banner.physical(&image) else { return false };
        let mut found = vec![0; text.len()];
        let read = Gpa::try_new(at).is_ok_and(|at| vm.read_memory(at, &mut found));
        read && found == text
    };
    if Kallsyms::read(&image).is_ok_and(|kallsyms| !is_ours(&kallsyms)) {
        return Err(Failure::Input(format!(
            "the kernel in {} ({}) is not the one in the saved guest's memory",
            path.display(),
            image.release()
        )));
    }
    let slide = Slide::new(vm.kernel_slide().unwrap_or_default());
    Ok(of_kernel(&image, slide, functions))
}

fn of_kernel(image: &KernelImage, slide: Slide, functions: Functions) -> Box<dyn Witness> {
    let Ok(kallsyms) = Kallsyms::read(image) else { return Box::new(functions) };
    let banner = Banner::of(image, &kallsyms);
    let unwinder = Unwinder::of(image, &kallsyms);
    let tasks = Btf::read(image, &kallsyms).and_then(|btf| Tasks::of(&kallsyms, &btf));
    Box::new(KernelWitness { banner, kallsyms, unwinder, tasks, slide, functions })
}

/// What a kernel's image tells about who writes. What the image lacks is left out.
#[derive(Debug)]
struct KernelWitness {
    /// What tells this kernel from one that the guest has put in its place.
    banner: Banner,
    kallsyms: Kallsyms,
    unwinder: Unwinder,
    tasks: Option<Tasks>,
    /// How far the kernel's linear addresses were moved.
    slide: Slide,
    /// Of an image that has debug information: source lines.
    functions: Functions,
}

impl Witness for KernelWitness {
    fn testify(&self, scene: &Scene<'_>) -> Testimony {
        // The stack and the base of a program are not the kernel's.
        if scene.cpl() != 0 {
            return Testimony::default();
        }
        let memory = SceneMemory(scene);
        if !self.banner.is_in(&memory, self.slide) {
            return Testimony::default();
        }
        let linked = |rip| RuntimeAddress::new(rip).linked(self.slide);
        let function = scene.rip.and_then(linked);
        let function = function.and_then(|address| self.kallsyms.function_at(address)).map(named);
        let from = Registers { rip: scene.stands_at(), general: scene.registers() };
        let calls = self.unwinder.calls(&self.kallsyms, &memory, self.slide, from);
        let current = |tasks: &Tasks| tasks.current(&memory, scene.gs_base(), self.slide);
        let task = self.tasks.as_ref().and_then(current).map(|task| Task {
            pid: task.pid,
            tid: task.tid,
            name: task.name,
            uid: task.uid,
        });
        let call_trace = calls.into_iter().map(named).collect();
        // The file knows addresses as linked.
        let mut as_linked = *scene;
        as_linked.rip = scene.rip.and_then(|rip| rip.checked_sub(self.slide.bytes()));
        let source = self.functions.testify(&as_linked).source;
        Testimony { function, source, call_trace, task }
    }
}

fn named((symbol, offset): (Symbol<'_>, u64)) -> Function {
    Function { name: symbol.name.to_owned(), offset }
}

/// The guest's memory as the processor that wrote maps it.
struct SceneMemory<'a>(&'a Scene<'a>);

impl Memory for SceneMemory<'_> {
    fn read(&self, address: RuntimeAddress, buffer: &mut [u8]) -> bool {
        self.0.read(address.as_u64(), buffer)
    }
}

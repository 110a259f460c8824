//! Who writes in a Linux guest: functions, calls and tasks, by its kernel's image.

use std::path::Path;

use subpage_kvm::boot::{Boot, Format};
use subpage_kvm::event::{Functions, Scene, Testimony, Witness};
use subpage_linux::{
    Btf, Kallsyms, KernelImage, Memory, Registers, RuntimeAddress, Slide, Symbol, Tasks, Unwinder,
};
use subpage_trap::{Function, Task};

/// What names the writers of a guest: its kernel's image if it is Linux and where it runs is known, else the
/// functions of its ELF file.
pub(super) fn of(image: &Path, boot: &Boot, functions: Functions) -> Box<dyn Witness> {
    let slide = match (boot.format, boot.kernel) {
        (_, Some(kernel)) => Slide::new(kernel.slide),
        // Its own loader moves it.
        (Format::LinuxBzImage, None) => return Box::new(functions),
        (_, None) => Slide::ZERO,
    };
    let Ok(image) = KernelImage::open(image) else { return Box::new(functions) };
    let Some(kallsyms) = Kallsyms::read(&image).ok() else { return Box::new(functions) };
    let unwinder = Unwinder::of(&image, &kallsyms);
    let tasks = Btf::read(&image, &kallsyms).and_then(|btf| Tasks::of(&kallsyms, &btf));
    Box::new(KernelWitness { kallsyms, unwinder, tasks, slide, functions })
}

/// What a kernel's image tells about who writes. What the image lacks is left out.
#[derive(Debug)]
struct KernelWitness {
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
        let linked = |rip| RuntimeAddress::new(rip).linked(self.slide);
        let function = scene.rip.and_then(linked);
        let function = function.and_then(|address| self.kallsyms.function_at(address)).map(named);
        let memory = SceneMemory(scene);
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

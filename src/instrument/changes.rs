//! Applies each [`Change`] to the instructions of a function.

use std::ops::Range;

use wasm_encoder::{BlockType, Instruction, MemArg};
use wasmparser::Operator;

use super::bodies::{
    CancelKey, Kill, Report, calls_of, cleared, own_process_id, reported_all, stack_measure, wait_site,
};
use super::caches::caches_made;
use super::evidence::Found;
use super::hooks::Hook;
use super::module::Module;
use super::real_time;
use super::target::{Change, Target};
use super::{ADDED_GLOBALS, HAS_CACHES, HAS_CHECKPOINTER, InstrumentError, STACK_CHECKS};

/// Instructions that replace some of a function's. Their indices are those of the rewritten module.
pub(super) struct Edit {
    /// The original instructions that are left out, counted from the body's first; empty to insert before one.
    pub(super) at: Range<usize>,
    pub(super) with: Vec<Instruction<'static>>,
}

/// The facts about the module that changes need.
pub(super) struct Surroundings<'a> {
    pub(super) found: &'a Found,
    /// Address of `MyProcPid`.
    pub(super) my_proc_pid: u32,
    /// Address of `InterruptPending`.
    pub(super) interrupt_pending: u32,
    /// Index of the first of [`super::ADDED_GLOBALS`].
    pub(super) first_added_global: u32,
    /// Index of the first hook.
    pub(super) first_hook: u32,
    /// Index of the first hook's type.
    pub(super) first_hook_type: u32,
}

/// Of so many comparisons of the stack's depth, a power of two, the host adjusts one: its call takes many times as long
/// as the rest, and one more level of recursion makes at least one comparison, so that no more levels than that are
/// overlooked.
const STACK_CHECKS_FOR_EACH_CALL: i32 = 16;

impl Surroundings<'_> {
    /// The edits for the change in a function of the table; none if it changes no instructions.
    ///
    /// # Errors
    /// If the function's body does not contain exactly one place to change.
    pub(super) fn edits(&self, module: &Module, target: &Target, change: Change) -> Result<Vec<Edit>, InstrumentError> {
        let operators = module.operators(self.found.function(target.name)?)?;
        let whole = 0..operators.len().saturating_sub(1);
        let process_id = self.found.process_id;
        let edit = match change {
            Change::Export => return Ok(Vec::new()),
            Change::Enter(hook) => Edit { at: 0..0, with: self.pass_on(hook) },
            Change::Replace(hook) => Edit { at: whole, with: self.pass_on(hook) },
            Change::ReplaceFrom { hook, parameter, least } => {
                Edit { at: 0..0, with: self.replaced_from(hook, parameter, least) }
            }
            Change::Ask(hook) => Edit { at: 0..0, with: self.ask(hook, 0) },
            Change::AskIfBegins { hook, with } => Edit { at: 0..0, with: self.ask_if_begins(hook, with) },
            Change::RefuseLocales => Edit { at: 0..0, with: self.refuse_locales() },
            Change::Nothing => Edit { at: whole, with: Vec::new() },
            Change::LeaveToCheckpointer(hook) => {
                let mut with = self.pass_on(hook);
                with.extend([Instruction::I32Const(1), Instruction::Return]);
                self.if_set(HAS_CHECKPOINTER, with)
            }
            Change::NothingIf(global) => self.if_set(global, vec![Instruction::Return]),
            Change::EnterIf(global, hook) => self.if_set(global, self.pass_on(hook)),
            Change::ReplaceIf(global, hook) => {
                let mut with = self.pass_on(hook);
                with.push(Instruction::Return);
                self.if_set(global, with)
            }
            Change::InheritCaches(hook) => return self.inherit_caches(target, &operators, hook),
            Change::OwnProcessId => {
                let at = own_process_id(target, &operators, process_id)?;
                Edit { at: at..at + 1, with: load(self.my_proc_pid, 2).to_vec() }
            }
            Change::AnswerProcessId => {
                let [address, value] = load(self.my_proc_pid, 2);
                let own = [address.clone(), value.clone(), Instruction::I32Const(process_id)];
                Edit { at: whole, with: own.into_iter().chain([address, value, Instruction::Select]).collect() }
            }
            Change::StackDepth => {
                let at = stack_measure(target, &operators)?.compared_at;
                Edit { at: at..at, with: self.stack_depth() }
            }
            Change::RememberReport => self.remember_report(target, &operators)?,
            Change::ForgetReports => self.forget_reports(module, target, &operators)?,
            Change::Wait => {
                let (at, latch) = wait_site(target, &operators)?;
                let with = vec![
                    Instruction::LocalGet(1),
                    Instruction::LocalGet(0),
                    Instruction::I32Load(word(latch, 2)),
                    Instruction::LocalGet(0),
                    self.call(Hook::WaitEventSetWait),
                ];
                Edit { at: at..at, with }
            }
            Change::Kill => {
                let kill = Kill::read(target, &operators, process_id)?;
                Edit { at: whole, with: self.kill(kill.errno) }
            }
            Change::Compare(hook) => {
                let calls = calls_of(target, &operators, self.found.function("strcmp")?)?;
                return Ok(calls.map(|at| Edit { at: at..at + 1, with: vec![self.call(hook)] }).collect());
            }
            Change::ProcessInterrupts(hook) => Edit { at: 0..0, with: self.process_interrupts(hook)? },
            Change::RealTime => return real_time::edits(target, &operators, self),
            Change::ShownWait => {
                let at = real_time::wait_start(target, &operators)?;
                Edit { at: at..at, with: vec![self.call(Hook::ShownTimestamp)] }
            }
            Change::CancelKey => {
                let key = CancelKey::read(target, &operators)?;
                Edit { at: key.sent_at..key.sent_at + 1, with: load(key.address, 0).to_vec() }
            }
            Change::ClearMapping => {
                let (at, arguments) = cleared(target, &operators, self.found.function("memset")?)?;
                let arguments = arguments.map(Instruction::LocalGet);
                Edit { at, with: arguments.into_iter().chain([self.call(Hook::ClearMapping)]).collect() }
            }
        };
        Ok(vec![edit])
    }

    pub(super) fn call(&self, hook: Hook) -> Instruction<'static> {
        Instruction::Call(self.first_hook + hook.position())
    }

    fn replaced_from(&self, hook: Hook, parameter: u32, least: i32) -> Vec<Instruction<'static>> {
        let mut instructions = vec![
            Instruction::LocalGet(parameter),
            Instruction::I32Const(least),
            Instruction::I32GeU,
            Instruction::If(BlockType::Empty),
        ];
        instructions.extend(self.pass_on(hook));
        instructions.extend([Instruction::Return, Instruction::End]);
        instructions
    }

    /// Asks the host, inside of `depth` blocks.
    fn ask(&self, hook: Hook, depth: u32) -> Vec<Instruction<'static>> {
        // The label of the whole body takes the answer; what is none is dropped, and the body follows.
        let mut instructions = self.pass_on(hook);
        instructions.extend([Instruction::BrIf(depth), Instruction::Drop]);
        instructions
    }

    fn ask_if_begins(&self, hook: Hook, with: u8) -> Vec<Instruction<'static>> {
        let mut instructions = vec![
            Instruction::LocalGet(3),
            Instruction::If(BlockType::Empty),
            Instruction::LocalGet(2),
            Instruction::I32Load8U(word(0, 0)),
            Instruction::I32Const(with.into()),
            Instruction::I32Eq,
            Instruction::If(BlockType::Empty),
        ];
        instructions.extend(self.ask(hook, 2));
        instructions.extend([Instruction::End, Instruction::End]);
        instructions
    }

    fn process_interrupts(&self, hook: Hook) -> Result<Vec<Instruction<'static>>, InstrumentError> {
        let mut instructions = load(self.interrupt_pending, 2).to_vec();
        instructions.extend([
            Instruction::If(BlockType::Empty),
            self.call(hook),
            Instruction::If(BlockType::Empty),
            self.function("ProcessInterrupts")?,
            Instruction::End,
            Instruction::End,
        ]);
        Ok(instructions)
    }

    fn refuse_locales(&self) -> Vec<Instruction<'static>> {
        vec![
            Instruction::LocalGet(1),
            self.call(Hook::LocaleExists),
            Instruction::I32Eqz,
            Instruction::If(BlockType::Empty),
            // LOC_MAP_FAILED
            Instruction::I32Const(-1),
            Instruction::Return,
            Instruction::End,
        ]
    }

    fn stack_depth(&self) -> Vec<Instruction<'static>> {
        let count = self.added_global(STACK_CHECKS);
        // The block takes the depth from the operand stack, and leaves it there, as the hook does.
        let ty = BlockType::FunctionType(self.first_hook_type + Hook::StackDepth.position());
        vec![
            Instruction::GlobalGet(count),
            Instruction::I32Const(1),
            Instruction::I32Add,
            Instruction::GlobalSet(count),
            Instruction::GlobalGet(count),
            Instruction::I32Const(STACK_CHECKS_FOR_EACH_CALL - 1),
            Instruction::I32And,
            Instruction::I32Eqz,
            Instruction::If(ty),
            self.call(Hook::StackDepth),
            Instruction::End,
        ]
    }

    fn added_global(&self, name: &str) -> u32 {
        let indices = self.first_added_global..;
        let index = indices.zip(ADDED_GLOBALS).find_map(|(index, added)| (added == name).then_some(index));
        index.expect("one of ADDED_GLOBALS")
    }

    /// Instructions at the beginning of a function that run if the added global of this name is not zero.
    fn if_set(&self, name: &str, then: Vec<Instruction<'static>>) -> Edit {
        let mut with = vec![Instruction::GlobalGet(self.added_global(name)), Instruction::If(BlockType::Empty)];
        with.extend(then);
        with.push(Instruction::End);
        Edit { at: 0..0, with }
    }

    /// Calls the host in place of the part of a function that makes caches, if the process has some.
    fn inherit_caches(
        &self,
        target: &Target,
        operators: &[Operator],
        hook: Hook,
    ) -> Result<Vec<Edit>, InstrumentError> {
        let [create, register] =
            ["CreateCacheMemoryContext", "before_shmem_exit"].map(|name| self.found.function(name));
        let made = caches_made(target, operators, create?, register?)?;
        let asks = vec![
            Instruction::GlobalGet(self.added_global(HAS_CACHES)),
            Instruction::If(BlockType::Empty),
            self.call(hook),
            Instruction::Else,
        ];
        Ok(vec![
            Edit { at: made.start..made.start, with: asks },
            Edit { at: made.end..made.end, with: vec![Instruction::End] },
        ])
    }

    fn remember_report(&self, target: &Target, operators: &[Operator]) -> Result<Edit, InstrumentError> {
        let report = Report::read(target, operators)?;
        let with = vec![
            Instruction::LocalGet(report.before),
            self.function("free")?,
            Instruction::LocalGet(0),
            Instruction::LocalGet(report.value),
            self.function("strdup")?,
            Instruction::I32Store(word(report.last_reported, 2)),
        ];
        Ok(Edit { at: report.sent_at..report.sent_at, with })
    }

    fn forget_reports(
        &self,
        module: &Module,
        target: &Target,
        operators: &[Operator],
    ) -> Result<Edit, InstrumentError> {
        let report = self.found.function("ReportGUCOption")?;
        let (at, setting) = reported_all(target, operators, report)?;
        let last_reported = self.found.read(module, "ReportGUCOption", Report::read)?.last_reported;
        let with = vec![
            Instruction::LocalGet(setting),
            Instruction::I32Const(0),
            Instruction::I32Store(word(last_reported, 2)),
        ];
        Ok(Edit { at: at..at, with })
    }

    /// A call of the host with the parameters of the function that contains it.
    fn pass_on(&self, hook: Hook) -> Vec<Instruction<'static>> {
        let parameters = (0_u32..).take(hook.parameters().len()).map(Instruction::LocalGet);
        parameters.chain([self.call(hook)]).collect()
    }

    /// A call of a function of the table.
    fn function(&self, name: &str) -> Result<Instruction<'static>, InstrumentError> {
        let added = u32::try_from(Hook::ALL.len()).unwrap_or(u32::MAX);
        Ok(Instruction::Call(self.found.function(name)? + added))
    }

    fn kill(&self, errno: i32) -> Vec<Instruction<'static>> {
        vec![
            Instruction::LocalGet(0),
            Instruction::LocalGet(1),
            self.call(Hook::Kill),
            Instruction::LocalTee(0),
            Instruction::I32Const(0),
            Instruction::I32GeS,
            Instruction::If(BlockType::Empty),
            Instruction::I32Const(0),
            Instruction::Return,
            Instruction::End,
            Instruction::I32Const(errno),
            Instruction::I32Const(0),
            Instruction::LocalGet(0),
            Instruction::I32Sub,
            Instruction::I32Store(word(0, 2)),
            Instruction::I32Const(-1),
        ]
    }
}

fn load(address: u32, align: u32) -> [Instruction<'static>; 2] {
    [Instruction::I32Const(address.cast_signed()), Instruction::I32Load(word(0, align))]
}

fn word(offset: u64, align: u32) -> MemArg {
    MemArg { offset, align, memory_index: 0 }
}

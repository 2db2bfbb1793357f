//! Finds the functions of the table in [`super::targets()`].

use std::collections::{BTreeMap, BTreeSet, HashMap};

use wasmparser::{ExternalKind, Operator, ValType};

use super::InstrumentError;
use super::bodies::{Kill, stack_measure};
use super::module::Module;
use super::processes::PostmasterSignals;
use super::target::{Evidence, Signature, Target};
use crate::postgres::database_statistics::{COUNTERS, PENDING, SHARED, STATISTICS};

/// The indices of the table's functions, by name.
pub(super) struct Found {
    functions: BTreeMap<&'static str, (u32, &'static Target)>,
    /// The result of the exported `getpid`, which the compiler also put where C calls it.
    pub(super) process_id: i32,
}

impl Found {
    /// Searches for every function of the table.
    ///
    /// `memory` is the module's memory with its data segments, for the string constants.
    ///
    /// # Errors
    /// If one of them is not found exactly once; the error names it.
    pub(super) fn search(module: &Module, memory: &[u8]) -> Result<Self, InstrumentError> {
        let mut found = Self { functions: BTreeMap::new(), process_id: process_id(module)? };
        let mentions = Mentions::scan(module, memory)?;
        for target in super::targets() {
            let candidates = found.candidates(module, memory, &mentions, target)?;
            let [function] = candidates[..] else {
                return Err(target.refusal(&describe(&candidates)));
            };
            if !target.signature.is_that_of(module, function) {
                return Err(target.refusal(&format!("function {function}, which takes or returns something else")));
            }
            found.functions.insert(target.name, (function, target));
        }
        Ok(found)
    }

    /// The index of a function of the table.
    ///
    /// # Errors
    /// If it is not above the function that refers to it in the table.
    pub(super) fn function(&self, name: &str) -> Result<u32, InstrumentError> {
        Ok(self.entry(name)?.0)
    }

    /// Reads a fact from the body of a function of the table.
    pub(super) fn read<T>(
        &self,
        module: &Module,
        name: &str,
        reader: impl FnOnce(&Target, &[Operator]) -> Result<T, InstrumentError>,
    ) -> Result<T, InstrumentError> {
        let (function, target) = self.entry(name)?;
        reader(target, &module.operators(function)?)
    }

    fn functions(&self, names: &[&str]) -> Result<BTreeSet<u32>, InstrumentError> {
        names.iter().map(|name| self.function(name)).collect()
    }

    fn entry(&self, name: &str) -> Result<(u32, &'static Target), InstrumentError> {
        self.functions.get(name).copied().ok_or_else(|| InstrumentError::Evidence {
            function: name.to_owned(),
            expected: "an entry in the table of functions, above its references".to_owned(),
            found: "none".to_owned(),
        })
    }

    /// Every function of the table with its index.
    pub(super) fn all(&self) -> impl Iterator<Item = (&'static Target, u32)> {
        self.functions.values().map(|&(function, target)| (target, function))
    }

    fn candidates(
        &self,
        module: &Module,
        memory: &[u8],
        mentions: &Mentions,
        target: &Target,
    ) -> Result<Vec<u32>, InstrumentError> {
        let of_signature =
            || module.defined_functions().filter(|&function| target.signature.is_that_of(module, function));
        match &target.evidence {
            Evidence::Exported => Ok(module.exported(ExternalKind::Func, target.name).into_iter().collect()),
            Evidence::Mentions(strings) => {
                Ok(of_signature().filter(|&it| mentions.all_in(module, it, strings)).collect())
            }
            Evidence::CalledBy(caller) => Ok(calls(&module.operators(self.function(caller)?)?)),
            Evidence::Between { caller, callee } => {
                let callee = self.function(callee)?;
                keep(self.called_by(module, caller, target)?, |it| Ok(calls(&module.operators(it)?).contains(&callee)))
            }
            Evidence::Reads { caller, variables } => {
                let symbols = module.data_symbols();
                let wanted: Vec<Option<&u32>> = variables.iter().map(|&name| symbols.get(name)).collect();
                keep(self.called_by(module, caller, target)?, |it| {
                    let constants = constants(&module.operators(it)?);
                    Ok(wanted.iter().all(|address| address.is_some_and(|address| constants.contains(address))))
                })
            }
            Evidence::ReadsTable(numbers) => {
                let starts = starts_of_table(memory, numbers);
                keep(of_signature(), |it| Ok(!constants(&module.operators(it)?).is_disjoint(&starts)))
            }
            Evidence::CallsOnly(callees) => {
                let callees = self.functions(callees)?;
                keep(of_signature(), |it| Ok(calls_only(&module.operators(it)?, &callees)))
            }
            Evidence::CallsOnlyWith { callees, constant } => {
                let callees = self.functions(callees)?;
                keep(of_signature(), |it| {
                    let operators = module.operators(it)?;
                    Ok(calls_only(&operators, &callees) && constants(&operators).contains(&constant.cast_unsigned()))
                })
            }
            Evidence::KillItself => keep(small(module, of_signature()), |it| {
                Ok(Kill::read(target, &module.operators(it)?, self.process_id).is_ok())
            }),
            Evidence::CalledByKill => {
                let kill = self.read(module, "kill", |kill, body| Kill::read(kill, body, self.process_id))?;
                Ok(vec![kill.raise])
            }
            Evidence::SignalsPostmaster => {
                let kill = self.function("kill")?;
                keep(small(module, of_signature()), |it| {
                    let operators = module.operators(it)?;
                    Ok(calls(&operators) == [kill] && PostmasterSignals::read(target, &operators).is_ok())
                })
            }
            Evidence::MeasuresStack => {
                let check = self.read(module, "check_stack_depth", stack_measure)?;
                keep(small(module, of_signature()), |it| {
                    let measure = stack_measure(target, &module.operators(it)?);
                    Ok(measure.is_ok_and(|measure| measure.variables == check.variables))
                })
            }
            Evidence::AddsDatabaseStatistics => {
                keep(of_signature(), |it| Ok(adds_database_statistics(&module.operators(it)?)))
            }
            Evidence::ChecksProcessIdOfSignal => {
                let raise = self.function("raise")?;
                let pqsignal = module.exported(ExternalKind::Func, "pqsignal_be");
                let my_proc_pid = module.data_symbols().get("MyProcPid").copied();
                keep(small(module, of_signature()), |it| {
                    let operators = module.operators(it)?;
                    let called = calls(&operators);
                    let compares = operators.windows(4).any(|window| match *window {
                        [
                            Operator::I32Const { value: address },
                            Operator::I32Load { .. },
                            Operator::I32Const { value },
                            Operator::I32Ne,
                        ] => value == self.process_id && Some(address.cast_unsigned()) == my_proc_pid,
                        _ => false,
                    });
                    Ok(compares && called.contains(&raise) && pqsignal.is_some_and(|it| called.contains(&it)))
                })
            }
        }
    }

    /// The functions of the target's signature that `caller`, a function of the table, calls.
    fn called_by(
        &self,
        module: &Module,
        caller: &str,
        target: &Target,
    ) -> Result<impl Iterator<Item = u32>, InstrumentError> {
        let called: BTreeSet<u32> = calls(&module.operators(self.function(caller)?)?).into_iter().collect();
        Ok(called.into_iter().filter(|&it| target.signature.is_that_of(module, it)))
    }
}

impl Signature {
    fn is_that_of(self, module: &Module, function: u32) -> bool {
        let Some(ty) = module.function_type(function) else { return false };
        let of = |is_i64: bool| if is_i64 { ValType::I64 } else { ValType::I32 };
        let parameters = (0..self.parameters).map(|at| of(self.i64_at == Some(at)));
        ty.params().iter().copied().eq(parameters) && ty.results().iter().copied().eq(self.result)
    }
}

/// The result of the exported `getpid`, if that is a constant.
fn process_id(module: &Module) -> Result<i32, InstrumentError> {
    let function = module.exported(ExternalKind::Func, "getpid");
    match function.map(|function| module.operators(function)).transpose()?.as_deref() {
        Some(&[Operator::I32Const { value }, Operator::End]) => Ok(value),
        other => Err(InstrumentError::Evidence {
            function: "getpid".to_owned(),
            expected: "an exported function that only returns a number".to_owned(),
            found: other.map_or("no such export".to_owned(), |body| format!("{} instructions", body.len())),
        }),
    }
}

/// Functions of at most as many bytes as the ones without a name string that we look for have.
fn small(module: &Module, functions: impl Iterator<Item = u32>) -> impl Iterator<Item = u32> {
    functions.filter(|&function| module.body(function).is_some_and(|body| body.range().len() < 128))
}

/// Whether a function takes its first parameter for a `PgStat_EntryRef`, and adds the counters of a
/// `PgStat_StatDBEntry` to its shared statistics, as many and at the places that `postgres::database_statistics` has.
fn adds_database_statistics(operators: &[Operator]) -> bool {
    let pointers = operators.windows(2).filter_map(|window| match *window {
        [Operator::LocalGet { local_index: 0 }, Operator::I32Load { memarg }] => Some(memarg.offset),
        _ => None,
    });
    let mut added: Vec<u64> = operators
        .windows(3)
        .filter_map(|window| match *window {
            [Operator::I64Load { memarg: counter }, Operator::I64Add, Operator::I64Store { memarg: sum }]
                if sum.offset == counter.offset + u64::from(STATISTICS) =>
            {
                Some(counter.offset)
            }
            _ => None,
        })
        .collect();
    added.sort_unstable();
    let wanted = [u64::from(SHARED), u64::from(PENDING)];
    pointers.take(wanted.len()).eq(wanted) && added == COUNTERS
}

fn keep(
    functions: impl Iterator<Item = u32>,
    matches: impl Fn(u32) -> Result<bool, InstrumentError>,
) -> Result<Vec<u32>, InstrumentError> {
    functions.filter_map(|function| matches(function).map(|yes| yes.then_some(function)).transpose()).collect()
}

/// The functions that a body calls directly.
fn calls(operators: &[Operator]) -> Vec<u32> {
    let call = |operator: &Operator| match operator {
        Operator::Call { function_index } => Some(*function_index),
        _ => None,
    };
    operators.iter().filter_map(call).collect()
}

/// Whether a body calls all of these functions, and no others directly.
fn calls_only(operators: &[Operator], callees: &BTreeSet<u32>) -> bool {
    calls(operators).into_iter().collect::<BTreeSet<u32>>() == *callees
}

/// The constants in a body, among them the addresses of the variables that it uses.
fn constants(operators: &[Operator]) -> BTreeSet<u32> {
    let constant = |operator: &Operator| match operator {
        Operator::I32Const { value } => Some(value.cast_unsigned()),
        _ => None,
    };
    operators.iter().filter_map(constant).collect()
}

/// The addresses at which a table of these numbers begins.
fn starts_of_table(memory: &[u8], numbers: &[u32]) -> BTreeSet<u32> {
    let table: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let places = (0_u32..).zip(memory.windows(table.len())).step_by(4);
    places.filter(|(_, window)| *window == table).map(|(start, _)| start).collect()
}

/// The strings of the table that each function refers to.
struct Mentions {
    /// One bit for each string.
    bits: HashMap<&'static str, u128>,
    /// The bits of every function that is not imported.
    functions: Vec<u128>,
}

impl Mentions {
    fn scan(module: &Module, memory: &[u8]) -> Result<Self, InstrumentError> {
        let mut bits: HashMap<&'static str, u128> = HashMap::new();
        for target in super::targets() {
            if let Evidence::Mentions(strings) = target.evidence {
                for string in strings {
                    let next = 1 << bits.len();
                    bits.entry(string).or_insert(next);
                }
            }
        }
        let addresses = addresses(memory, &bits);
        let mut functions = Vec::with_capacity(module.bodies.len());
        for body in &module.bodies {
            let mut mentioned = 0;
            for operator in body.get_operators_reader()? {
                if let Operator::I32Const { value } = operator? {
                    mentioned |= addresses.get(&value).copied().unwrap_or(0);
                }
            }
            functions.push(mentioned);
        }
        Ok(Self { bits, functions })
    }

    fn all_in(&self, module: &Module, function: u32, strings: &[&str]) -> bool {
        let wanted = strings.iter().fold(0, |wanted, string| wanted | self.bits.get(string).copied().unwrap_or(0));
        let defined = function.checked_sub(module.imported_functions);
        let mentioned = defined.and_then(|defined| self.functions.get(defined as usize));
        mentioned.is_some_and(|mentioned| mentioned & wanted == wanted)
    }
}

/// The addresses of these strings in memory. A string may begin inside another that has the same end, because the
/// linker merges those.
fn addresses(memory: &[u8], strings: &HashMap<&'static str, u128>) -> HashMap<i32, u128> {
    let mut addresses = HashMap::new();
    let mut end = 0;
    for string in memory.split(|&byte| byte == 0) {
        end += string.len();
        for (wanted, bit) in strings {
            if string.ends_with(wanted.as_bytes())
                && let Ok(address) = i32::try_from(end - wanted.len())
            {
                addresses.insert(address, *bit);
            }
        }
        end += 1;
    }
    addresses
}

impl Target {
    /// The evidence in words.
    pub(super) fn expectation(&self) -> String {
        let Signature { parameters, result, .. } = self.signature;
        let result = result.map_or("no result".to_owned(), |result| format!("a result of type {result}"));
        let evidence = match &self.evidence {
            Evidence::Exported => "that is exported under this name".to_owned(),
            Evidence::Mentions(strings) => format!("that mentions {strings:?}"),
            Evidence::CalledBy(caller) => format!("that is the only one that {caller} calls"),
            Evidence::Between { caller, callee } => {
                format!("that {caller} calls and that calls {callee}")
            }
            Evidence::Reads { caller, variables } => format!("that {caller} calls and that reads {variables:?}"),
            Evidence::ReadsTable(numbers) => format!("that reads a table that begins with {numbers:x?}"),
            Evidence::CallsOnly(callees) => format!("that calls {callees:?} and no others"),
            Evidence::CallsOnlyWith { callees, constant } => {
                format!("that calls {callees:?} and no others, and has the number {constant}")
            }
            Evidence::KillItself => "that raises a signal in its own process and fails for any other".to_owned(),
            Evidence::CalledByKill => "that kill calls".to_owned(),
            Evidence::SignalsPostmaster => "that sets a flag and sends SIGUSR1 to the postmaster".to_owned(),
            Evidence::MeasuresStack => "that measures the stack as check_stack_depth does".to_owned(),
            Evidence::AddsDatabaseStatistics => "that adds the counters of a PgStat_StatDBEntry".to_owned(),
            Evidence::ChecksProcessIdOfSignal => "that compares MyProcPid and calls pqsignal_be and raise".to_owned(),
        };
        format!("one function with {parameters} parameters and {result} {evidence}")
    }

    /// The error for a function that was not found, or whose body is not the expected one.
    pub(super) fn refusal(&self, found: &str) -> InstrumentError {
        InstrumentError::Evidence {
            function: self.name.to_owned(),
            expected: self.expectation(),
            found: found.to_owned(),
        }
    }
}

fn describe(candidates: &[u32]) -> String {
    match candidates {
        [] => "none".to_owned(),
        several => format!("functions {several:?}"),
    }
}

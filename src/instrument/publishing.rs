//! What `pgoutput`, PostgreSQL's plugin for logical replication, needs of PGlite: functions that PGlite has and does not
//! export, and the list of callbacks that only it adds to. The host has what the linker left out, because nothing else
//! calls it (`guest::pgoutput`).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use wasmparser::{ExternalKind, Operator};

use super::{
    InstrumentError,
    module::Module,
    target::{Change, Evidence, Target, signature},
};
use crate::postgres::system_cache;

/// These functions, each after those by which it is found.
pub(super) const TARGETS: &[Target] = &[
    exported("pfree", 1, 0),
    exported("pstrdup", 1, 1),
    exported("lappend", 2, 1),
    exported("lappend_oid", 2, 1),
    exported("datumCopy", 3, 1),
    exported("SearchSysCacheList", 5, 1),
    exported("ReleaseCatCacheList", 1, 0),
    exported("expression_planner", 1, 1),
    exported("ExecInitExpr", 2, 1),
    exported("slot_getsomeattrs_int", 2, 0),
    exported("ExecStoreVirtualTuple", 1, 1),
    exported("ChangeVarNodes", 4, 0),
    exported("makeTargetEntry", 4, 1),
    exported("ExecConstraints", 3, 0),
    Target {
        name: "get_publication_oid",
        signature: signature(2, 1),
        evidence: Evidence::Mentions(&["get_publication_oid", "lsyscache.c"]),
        changes: &[],
    },
    Target {
        name: "GetPublication",
        signature: signature(1, 1),
        evidence: Evidence::Mentions(&["GetPublication", "pg_publication.c"]),
        changes: &[],
    },
    wanted("GetPublicationByName", 2, Evidence::CallsOnly(&["get_publication_oid", "GetPublication"])),
    wanted("GetRelationPublications", 1, LISTS_PUBLICATIONS_OF_RELATION),
    wanted("GetSchemaPublications", 1, LISTS_PUBLICATIONS_OF_SCHEMA),
    wanted("defGetStreamingMode", 1, Evidence::Mentions(&["defGetStreamingMode", "subscriptioncmds.c"])),
    Target {
        name: "populate_compact_attribute_internal",
        signature: signature(2, 0),
        evidence: Evidence::Mentions(&["populate_compact_attribute_internal", "tupdesc.c"]),
        changes: &[],
    },
    wanted(
        "CreateTupleDescCopyConstr",
        1,
        Evidence::CallsOnly(&["palloc", "populate_compact_attribute_internal", "palloc0", "pstrdup", "datumCopy"]),
    ),
    Target {
        name: "build_attrmap_by_name",
        signature: signature(3, 1),
        evidence: Evidence::Mentions(&["build_attrmap_by_name", "attmap.c"]),
        changes: &[],
    },
    wanted("build_attrmap_by_name_if_req", 3, Evidence::CallsOnly(&["build_attrmap_by_name", "pfree"])),
    wanted("execute_attr_map_slot", 3, Evidence::CallsOnly(&["slot_getsomeattrs_int", "ExecStoreVirtualTuple"])),
    wanted("addRTEPermissionInfo", 2, Evidence::CallsOnly(&["palloc0", "lappend"])),
    wanted("ExecPrepareExpr", 2, Evidence::CallsOnly(&["expression_planner", "ExecInitExpr"])),
    Target {
        name: "build_generation_expression",
        signature: signature(2, 1),
        evidence: Evidence::Mentions(&["build_generation_expression", "rewriteHandler.c"]),
        changes: &[],
    },
    Target {
        name: "expand_generated_columns_internal",
        signature: signature(3, 1),
        evidence: Evidence::CallsOnly(&["build_generation_expression", "ChangeVarNodes", "makeTargetEntry", "lappend"]),
        changes: &[],
    },
    wanted(
        "expand_generated_columns_in_expr",
        3,
        Evidence::Between { caller: "ExecConstraints", callee: "expand_generated_columns_internal" },
    ),
];

/// They differ in the system cache that they search.
const LISTS_PUBLICATIONS_OF_RELATION: Evidence =
    Evidence::CallsOnlyWith { callees: LISTS_PUBLICATIONS, constant: system_cache::PUBLICATION_RELATION_MAP };
const LISTS_PUBLICATIONS_OF_SCHEMA: Evidence =
    Evidence::CallsOnlyWith { callees: LISTS_PUBLICATIONS, constant: system_cache::PUBLICATION_NAMESPACE_MAP };
const LISTS_PUBLICATIONS: &[&str] = &["SearchSysCacheList", "lappend_oid", "ReleaseCatCacheList"];

const fn exported(name: &'static str, parameters: usize, results: usize) -> Target {
    Target { name, signature: signature(parameters, results), evidence: Evidence::Exported, changes: &[] }
}

/// A function that gets an export.
const fn wanted(name: &'static str, parameters: usize, evidence: Evidence) -> Target {
    Target { name, signature: signature(parameters, 1), evidence, changes: &[Change::Export] }
}

/// A list of callbacks (`src/backend/utils/cache/inval.c`): elements of a function and its argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Callbacks {
    /// Address of the number of callbacks, an `int`.
    pub count: u32,
    /// Address of the first of them.
    pub list: u32,
}

impl Callbacks {
    /// `relsync_callback_list`: the only list that is called wherever `relcache_callback_list` is, in the same way.
    ///
    /// # Errors
    /// If it is not found.
    pub(super) fn of_relation_syncs(module: &Module) -> Result<Self, InstrumentError> {
        const REGISTER: &str = "CacheRegisterRelcacheCallback";
        let refusal = |found: String| InstrumentError::Evidence {
            function: "relsync_callback_list".to_owned(),
            expected: "the only list that is called where relcache_callback_list is".to_owned(),
            found,
        };
        let register = module.exported(ExternalKind::Func, REGISTER);
        let register = module.operators(register.ok_or_else(|| refusal(format!("no {REGISTER}")))?)?;
        let count = register.windows(2).find_map(|pair| match *pair {
            [Operator::I32Const { value }, Operator::I32Load { .. }] => Some(value.cast_unsigned()),
            _ => None,
        });
        let mut together: BTreeMap<Self, usize> = BTreeMap::new();
        let mut callers = 0;
        for function in module.defined_functions() {
            let called = Self::called_in(&module.operators(function)?);
            if called.iter().any(|callbacks| Some(callbacks.count) == count) {
                callers += 1;
                for other in called.into_iter().filter(|callbacks| Some(callbacks.count) != count) {
                    *together.entry(other).or_default() += 1;
                }
            }
        }
        let always: Vec<Self> = together.into_iter().filter(|it| it.1 == callers).map(|it| it.0).collect();
        match always[..] {
            [callbacks] => Ok(callbacks),
            _ => Err(refusal(format!("{} of them in {callers} functions", always.len()))),
        }
    }

    /// The lists, of elements of 8 bytes, all of whose callbacks a function calls: it loads the number and compares it
    /// with 0, and then adds eight times an index to the list.
    fn called_in(operators: &[Operator]) -> BTreeSet<Self> {
        let mut count = None;
        let mut called = BTreeSet::new();
        for window in operators.windows(4) {
            match *window {
                [
                    Operator::I32Const { value },
                    Operator::I32Load { .. },
                    Operator::I32Const { value: 0 },
                    Operator::I32GtS,
                ] => count = Some(value.cast_unsigned()),
                [Operator::I32Const { value: 3 }, Operator::I32Shl, Operator::I32Const { value }, Operator::I32Add] => {
                    called.extend(count.take().map(|count| Self { count, list: value.cast_unsigned() }));
                }
                _ => {}
            }
        }
        called
    }
}

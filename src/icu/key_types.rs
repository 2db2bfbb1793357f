//! `keyTypeData.res`: the names that ICU's own locale names use for the `-u-` keys of a language tag and their types.
//!
//! ICU can use an attribute of a collation, such as `ks-level2`, only if this file maps it to `colstrength=secondary`.
//! The facts are those of CLDR 46 (`common/bcp47/*.xml`). A key or type that has only one name needs no entry. Time
//! zones and currencies are left out, because collations do not use them.

use super::resource::Resource;

/// A key: its name in ICU's locale names, in language tags, and the types that have two names, in the same order.
type Key = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const NO_OR_YES: &[(&str, &str)] = &[("no", "false"), ("yes", "true")];

const KEYS: &[Key] = &[
    (
        "calendar",
        "ca",
        &[("ethiopic-amete-alem", "ethioaa"), ("gregorian", "gregory"), ("islamic-civil", "islamic-civil")],
    ),
    ("colalternate", "ka", &[("non-ignorable", "noignore"), ("shifted", "shifted")]),
    ("colbackwards", "kb", NO_OR_YES),
    ("colcasefirst", "kf", &[("lower", "lower"), ("no", "false"), ("upper", "upper")]),
    ("colcaselevel", "kc", NO_OR_YES),
    ("colhiraganaquaternary", "kh", NO_OR_YES),
    (
        "collation",
        "co",
        &[("dictionary", "dict"), ("gb2312han", "gb2312"), ("phonebook", "phonebk"), ("traditional", "trad")],
    ),
    ("colnormalization", "kk", NO_OR_YES),
    ("colnumeric", "kn", NO_OR_YES),
    // A word in capitals stands for all types of a kind (`uloc_keytype.cpp`).
    ("colreorder", "kr", &[("REORDER_CODE", "REORDER_CODE")]),
    (
        "colstrength",
        "ks",
        &[
            ("identical", "identic"),
            ("primary", "level1"),
            ("quaternary", "level4"),
            ("secondary", "level2"),
            ("tertiary", "level3"),
        ],
    ),
    ("currency", "cu", &[]),
    ("hours", "hc", &[]),
    ("measure", "ms", &[("imperial", "uksystem")]),
    ("numbers", "nu", &[("traditional", "traditio")]),
    ("rg", "rg", &[("RG_KEY_VALUE", "RG_KEY_VALUE")]),
    ("timezone", "tz", &[]),
    ("variabletop", "vt", &[("CODEPOINTS", "CODEPOINTS")]),
];

/// Returns the file.
pub(super) fn file() -> Vec<u8> {
    let key_map: Resource = KEYS.iter().map(|&(name, tag, _)| (name, tag)).collect();
    let type_map: Resource =
        KEYS.iter().map(|&(name, _, types)| (name, types.iter().copied().collect::<Resource>())).collect();
    let aliases = Resource::from([("colstrength", Resource::from([("quarternary", "quaternary")]))]);
    let tag_aliases = Resource::from([("ca", Resource::from([("islamicc", "islamic-civil")]))]);
    Resource::from([("keyMap", key_map), ("typeMap", type_map), ("typeAlias", aliases), ("bcpTypeAlias", tag_aliases)])
        .to_file()
}

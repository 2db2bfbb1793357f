//! Locales that sort as the root collation does, and locales with other collations, whose data PGlite does not
//! contain.
//!
//! The facts are those of ICU 76 (CLDR 46): the locales of its `res_index.res`, and the files and types of its
//! `coll/` directory.

use super::{DIRECTORY, resource::Resource};

/// Locales that use the root collation: each language, then the suffixes of its further locales.
const ROOT_LOCALES: &str = "\
    agq CM; ak GH; asa TZ; ast ES; bas CM; bem ZM; bez TZ; bgc IN; bho IN; blo BJ; bm ML; brx IN; ca AD ES FR IT; \
    ccp BD IN; ce RU; cgg UG; ckb IQ IR; csw CA; cv RU; dav KE; de AT BE CH DE IT LI LU; dje NE; doi IN; dua CM; dyo \
    SN; dz BT; ebu KE; en 001 150 AE AG AI AS AT AU BB BE BI BM BS BW BZ CA CC CH CK CM CX CY DE DG DK DM ER FI FJ \
    FK FM GB GD GG GH GI GM GU GY HK ID IE IL IM IN IO JE JM KE KI KN KY LC LR LS MG MH MO MP MS MT MU MV MW MY NA \
    NF NG NL NR NU NZ PG PH PK PN PR PW RW SB SC SD SE SG SH SI SL SS SX SZ TC TK TO TT TV TZ UG UM US VC VG VI VU \
    WS ZA ZM ZW; eu ES; ewo CM; ff Latn Latn_BF Latn_CM Latn_GH Latn_GM Latn_GN Latn_GW Latn_LR Latn_MR Latn_NE \
    Latn_NG Latn_SL Latn_SN; fr BE BF BI BJ BL CD CF CG CH CI CM DJ DZ FR GA GF GN GP GQ HT KM LU MA MC MF MG ML MQ \
    MR MU NC NE PF PM RE RW SC SN SY TD TG TN VU WF YT; fur IT; ga GB IE; gaa GH; gd GB; gsw CH FR LI; guz KE; gv \
    IM; ia 001; id ID; ie EE; ii CN; it CH IT SM VA; jgo CM; jmc TZ; jv ID; kab DZ; kam KE; kde TZ; kea CV; kgp BR; \
    khq ML; ki KE; kkj CM; kln KE; ks Arab Arab_IN Deva Deva_IN; ksb TZ; ksf CM; ksh DE; kw GB; kxv Deva Deva_IN \
    Latn Latn_IN Orya Orya_IN Telu Telu_IN; lag TZ; lb LU; lg UG; lij IT; lmo IT; lrc IQ IR; lu CD; luo KE; luy KE; \
    mai IN; mas KE TZ; mer KE; mfe MU; mg MG; mgh MZ; mgo CM; mi NZ; mni Beng Beng_IN; ms BN ID MY SG; mua CM; mzn \
    IR; naq NA; nd ZW; nds DE NL; nl AW BE BQ CW NL SR SX; nmg CM; nnh CM; nqo GN; nus SS; nyn UG; oc ES FR; os GE \
    RU; pcm NG; prg PL; pt AO BR CH CV GQ GW LU MO MZ PT ST TL; qu BO EC PE; raj IN; rm CH; rn BI; rof TZ; rw RW; \
    rwk TZ; sa IN; sah RU; saq KE; sat Olck Olck_IN; sbp TZ; sc IT; sd Arab Arab_PK Deva Deva_IN; seh MZ; ses ML; sg \
    CF; shi Latn Latn_MA Tfng Tfng_MA; sn ZW; so DJ ET KE SO; st LS ZA; su Latn Latn_ID; sw CD KE TZ UG; syr IQ SY; \
    szl PL; teo KE UG; tg TJ; ti ER ET; tok 001; tt RU; twq NE; tzm MA; vai Latn Latn_LR Vaii Vaii_LR; vec IT; vmw \
    MZ; vun TZ; wae CH; xh ZA; xnr IN; xog UG; yav CM; yrl BR CO VE; za CN; zgh MA; zu ZA";

/// Languages with their own collation.
const TAILORED_LANGUAGES: &str = "\
    af am ar ars as az be bg bn bo br bs ceb chr cs cy da dsb ee el eo es et fa fi fil fo fy gl gu ha haw he hi hr \
    hsb hu hy ig is iw ja ka kk kl km kn ko kok ku ky lkt ln lo lt lv mk ml mn mo mr mt my nb ne nn no nso om or pa \
    pl ps ro ru se sh si sk sl smn sq sr sv ta te th tk tn to tr ug uk ur uz vi wo yi yo yue zh";

/// Locales with their own collation, of languages without one.
const TAILORED_LOCALES: [&str; 3] = ["en_US_POSIX", "ff_Adlm", "fr_CA"];

/// Further collations of languages whose standard collation is the root's: language and type.
const FURTHER_COLLATIONS: [(&str, &str); 3] = [("ca", "search"), ("de", "phonebk"), ("de", "search")];

/// `res_index.res`: the locales that ICU lists as installed. Without further data these are the locales that use the
/// root collation.
pub(super) fn index_file() -> Vec<u8> {
    let installed: Resource = root_locales().map(|locale| (locale, "")).collect();
    let aliases = Resource::Table(std::collections::BTreeMap::new());
    Resource::from([("InstalledLocales", installed), ("AliasLocales", aliases)]).to_file()
}

fn root_locales() -> impl Iterator<Item = String> {
    ROOT_LOCALES.split("; ").flat_map(|entry| {
        let mut words = entry.split(' ');
        let language = words.next().unwrap_or_default();
        [language.to_owned()].into_iter().chain(words.map(move |rest| format!("{language}_{rest}")))
    })
}

/// A collation whose data is not installed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Lacking {
    /// The locale of the collation, with the type if the type was requested, as a language tag.
    pub(crate) collation: String,
}

/// The collation that a locale needs but whose data is not installed. ICU would use the root collation instead.
///
/// `locale` is a language tag or a name in ICU's own style (`sv-SE-u-co-trad`, `sv_SE@collation=traditional`);
/// `is_there` returns whether the guest has a file.
pub(crate) fn lacking(locale: &str, is_there: impl Fn(&str) -> bool) -> Option<Lacking> {
    let locale = Locale::parse(locale);
    let has_data = |name: &str| is_there(&format!("{DIRECTORY}/coll/{name}.res"));
    let has_language = || has_data(&locale.language);
    if let Some(kind) = &locale.collation
        && FURTHER_COLLATIONS.contains(&(locale.language.as_str(), kind.as_str()))
        && !has_language()
    {
        return Some(Lacking { collation: format!("{}-u-co-{kind}", locale.language) });
    }
    if TAILORED_LANGUAGES.split(' ').any(|language| language == locale.language) && !has_language() {
        return Some(Lacking { collation: locale.language });
    }
    let tailored = TAILORED_LOCALES.iter().find(|name| locale.names.iter().any(|own| own == *name));
    let tailored = tailored.filter(|name| !has_data(name));
    tailored.map(|name| Lacking { collation: name.replace('_', "-") })
}

/// The parts of a locale's name that select its collation.
struct Locale {
    language: String,
    /// The names of files that may contain its collation, except for the language alone.
    names: Vec<String>,
    /// The requested type of collation.
    collation: Option<String>,
}

impl Locale {
    fn parse(locale: &str) -> Self {
        let (name, keywords) = locale.split_once('@').unwrap_or((locale, ""));
        let subtags: Vec<String> = name.split(['-', '_']).map(str::to_ascii_lowercase).collect();
        let extensions = subtags.iter().position(|subtag| subtag.len() == 1).unwrap_or(subtags.len());
        let (subtags, extensions) = subtags.split_at(extensions);
        let (mut script, mut region, mut is_posix) = (None, None, false);
        // Tags are ASCII (RFC 5646, 2.1); anything else names neither a script nor a region.
        for subtag in subtags.iter().skip(1).filter(|subtag| subtag.is_ascii()) {
            match subtag.len() {
                _ if subtag == "posix" => is_posix = true,
                4 if script.is_none() => script = Some(capitalized(subtag)),
                2 | 3 if region.is_none() => region = Some(subtag.to_ascii_uppercase()),
                _ => {}
            }
        }
        let pairs = extensions.windows(2).map(|pair| (pair[0].as_str(), pair[1].as_str()));
        let old_pairs = keywords.split(';').filter_map(|keyword| keyword.split_once('='));
        let mut collation = None;
        for (key, value) in pairs.chain(old_pairs) {
            match (key.to_ascii_lowercase().as_str(), value.to_ascii_lowercase().as_str()) {
                ("co" | "collation", kind) if collation.is_none() => {
                    collation = Some(if kind == "phonebook" { "phonebk" } else { kind }.to_owned());
                }
                ("va", "posix") => is_posix = true,
                _ => {}
            }
        }
        let language = subtags.first().cloned().unwrap_or_default();
        let mut names = Vec::new();
        names.extend(script.map(|script| format!("{language}_{script}")));
        if let Some(region) = region {
            names.push(format!("{language}_{region}"));
            names.extend(is_posix.then(|| format!("{language}_{region}_POSIX")));
        }
        Self { language, names, collation }
    }
}

fn capitalized(script: &str) -> String {
    let mut capitalized = script.to_owned();
    if let Some(first) = capitalized.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    capitalized
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lacks(locale: &str) -> Option<String> {
        lacking(locale, |_| false).map(|lacking| lacking.collation)
    }

    #[test]
    fn locales_that_sort_as_the_root_does_need_no_data() {
        for locale in [
            "",
            "und",
            "und-u-ks-level2",
            "en",
            "en-US",
            "en_US",
            "de-AT",
            "fr",
            "fr-BE",
            "pt-BR",
            "xx",
            "und-u-co-emoji",
        ] {
            assert_eq!(lacks(locale), None, "{locale}");
        }
    }

    #[test]
    fn collations_of_their_own_need_data() {
        for (locale, collation) in [
            ("sv", "sv"),
            ("SV-fi-u-kn-true", "sv"),
            ("da_DK", "da"),
            ("zh-Hans-CN", "zh"),
            ("fr-CA", "fr-CA"),
            ("fr_CA", "fr-CA"),
            ("ff-adlm-GN", "ff-Adlm"),
            ("en-US-u-va-posix", "en-US-POSIX"),
            ("en_US_POSIX", "en-US-POSIX"),
            ("de-u-co-phonebk", "de-u-co-phonebk"),
            ("de@collation=phonebook", "de-u-co-phonebk"),
        ] {
            assert_eq!(lacks(locale).as_deref(), Some(collation), "{locale}");
            let file = if locale.starts_with("de") { "de" } else { collation };
            let path = format!("{DIRECTORY}/coll/{}.res", file.replace('-', "_"));
            assert_eq!(lacking(locale, |asked| asked == path), None, "{locale}");
        }
    }

    #[test]
    fn what_is_not_ascii_is_no_part_of_a_locale() {
        for locale in ["en-éab", "en_éab@collation=x", "en-aéb-CA", "éab", "en-日", "en-u-é-co"] {
            assert_eq!(lacks(locale), None, "{locale}");
        }
        assert_eq!(lacks("fr-éab-CA").as_deref(), Some("fr-CA"));
    }

    proptest! {
        #[test]
        fn any_text_can_be_a_locale(
            text: String,
            subtags in prop::collection::vec("(?s)[a-z]{0,3}.{0,4}", 0..6),
            separators in prop::collection::vec("[-_@=;]", 6),
        ) {
            let parts = subtags.iter().zip(&separators);
            let tag: String = parts.flat_map(|(tag, separator)| [tag.as_str(), separator]).collect();
            for rest in [text.clone(), format!("{text}@collation={text}"), tag] {
                prop_assert_eq!(lacks(&format!("sv-{rest}")), Some("sv".to_owned()));
                prop_assert_eq!(lacks(&format!("sw-{rest}")), None);
                let further = lacks(&format!("de_{rest}"));
                let known = [None, Some("de-u-co-phonebk"), Some("de-u-co-search")];
                prop_assert!(known.contains(&further.as_deref()), "{rest:?}: {further:?}");
                for locale in [rest.clone(), format!("sv-{rest}"), format!("fr-{rest}")] {
                    prop_assert_eq!(lacking(&locale, |_| true), None);
                }
            }
        }
    }

    #[test]
    fn a_language_is_tailored_or_not() {
        let installed: Vec<String> = root_locales().collect();
        assert_eq!(installed.len(), 524);
        assert!(["en", "en_US", "ff_Latn_BF", "zu_ZA"].iter().all(|locale| installed.iter().any(|own| own == locale)));
        assert!(installed.iter().all(|locale| lacks(locale).is_none()));
    }
}

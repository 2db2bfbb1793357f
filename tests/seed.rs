//! The random numbers of a cluster, which a test seeds.

mod support;

use std::{collections::BTreeSet, sync::Arc};

use pglite_port::{
    connection::Connections,
    databases::{Leave, Settings},
    session::{Choice, Mode, Outcome, Task},
};
use support::{
    cache,
    local::{Connect, Local, frozen},
};

/// What is random in SQL, with so many possible values each that two are never the same by chance. The table `t` has
/// 20,000 rows in 89 pages.
const RANDOM: [&str; 13] = [
    "select random()",
    "select random(1, 1000000000)",
    "select random_normal()",
    "select gen_random_uuid()",
    "select right(uuidv7()::text, 16)",
    "select md5(string_agg(n::text, ',')) from t tablesample bernoulli (10)",
    "select md5(string_agg(n::text, ',')) from t tablesample system (50)",
    "select array_shuffle(array(select generate_series(1, 50)))",
    "select string_agg(n::text, ',' order by random()) from generate_series(1, 50) n",
    "select encode(gen_random_bytes(16), 'hex')",
    "select gen_salt('bf')",
    "select crypt('secret', gen_salt('md5'))",
    // The salt; what follows has the time in it.
    "select left(encode(pgp_sym_encrypt('secret', 'key'), 'hex'), 28)",
];

fn connections() -> Arc<Connections> {
    cache::connections(Settings { leave: Leave { clock: false, seed: true }, ..Settings::default() })
}

fn isolated(connections: &Arc<Connections>) -> Local {
    prepared(Local::connect(connections, Connect::default()).0)
}

fn prepared(mut local: Local) -> Local {
    local.values("create extension pgcrypto; create table t as select generate_series(1, 20000) n");
    local
}

fn try_to_seed(local: &Local, seed: u64) -> Outcome {
    local.perform(Task::Choose(Choice::Seed(seed)))
}

fn seed(local: &Local, seed: u64) {
    try_to_seed(local, seed).expect("it is seeded");
}

/// The values of all that is random.
fn dice(local: &mut Local) -> Vec<String> {
    RANDOM.iter().flat_map(|sql| local.values(sql)).collect()
}

/// How many of the values are alike.
fn alike(one: &[String], other: &[String]) -> usize {
    assert_eq!([one.len(), other.len()], [RANDOM.len(); 2]);
    one.iter().zip(other).filter(|(one, other)| one == other).count()
}

#[test]
fn two_clones_with_one_seed_have_the_same_numbers_and_others_do_not() {
    let connections = connections();
    let (mut one, mut two) = (isolated(&connections), isolated(&connections));
    assert_eq!(alike(&dice(&mut one), &dice(&mut two)), 0, "without a seed");
    seed(&one, 42);
    seed(&two, 42);
    let first = dice(&mut one);
    assert_eq!(dice(&mut two), first);
    let second = dice(&mut one);
    assert_eq!(alike(&first, &second), 0, "they go on");
    assert_eq!(dice(&mut two), second);
    seed(&two, 43);
    assert_eq!(alike(&dice(&mut two), &first), 0, "another seed");
    seed(&two, 42);
    assert_eq!(dice(&mut two), first);
    assert_eq!(alike(&dice(&mut isolated(&connections)), &first), 0, "another clone has no seed");
}

#[test]
fn a_reset_clone_has_the_numbers_of_its_seed_from_the_first_one_on() {
    let connections = connections();
    let mut local = isolated(&connections);
    let first = |local: &mut Local| {
        local.values("select random(), gen_random_uuid(), array_shuffle('{1,2,3,4,5,6,7,8}'::int[])")
    };
    let before = first(&mut local);
    local.reset();
    assert_ne!(first(&mut local), before, "without a seed");
    seed(&local, 7);
    let of_seven = first(&mut local);
    for _ in 0..2 {
        local.reset();
        assert_eq!(first(&mut local), of_seven);
    }
    local.reset();
    seed(&local, 7);
    assert_eq!(first(&mut local), of_seven);
}

#[test]
fn what_a_login_trigger_rolls_does_not_count() {
    let trigger = "create function f() returns event_trigger language plpgsql as \
        $$ begin perform random(), gen_random_uuid(); end $$; \
        create event trigger e on login execute function f(); alter event trigger e enable always";
    drop(frozen("rolling", trigger));
    let connections = connections();
    let mut local = Local::connect_as(&connections, "rolling", "postgres").0;
    seed(&local, 1);
    let first = local.values("select random(), gen_random_uuid()");
    local.reset();
    assert_eq!(local.values("select random(), gen_random_uuid()"), first);
}

#[test]
fn the_sessions_of_a_shared_cluster_have_different_numbers_which_a_seed_repeats() {
    let connections = connections();
    let connect = || Local::connect(&connections, Connect { mode: Mode::Shared, ..Connect::default() }).0;
    let (mut one, mut two) = (connect(), connect());
    let mut roll = |seeded: u64| {
        seed(&one, seeded);
        let mut three = connect();
        let sessions = [&mut one, &mut two, &mut three];
        sessions.map(|session| session.values("select random(), random(1, 1000000000), gen_random_uuid()"))
    };
    let of_five = roll(5);
    assert_eq!(of_five.iter().flatten().collect::<BTreeSet<_>>().len(), 9, "{of_five:?}");
    assert_ne!(roll(6), of_five);
    assert_eq!(roll(5), of_five);
}

#[test]
fn the_cancel_keys_of_a_seeded_cluster_are_unpredictable() {
    let connections = connections();
    for mode in [Mode::Isolated, Mode::Shared] {
        let connect = || Local::connect(&connections, Connect { mode, ..Connect::default() });
        let (seeded, _) = connect();
        let keys: BTreeSet<Vec<u8>> = (0..3)
            .map(|_| {
                seed(&seeded, 1);
                let (_later, startup) = connect();
                let key = startup.into_iter().find(|message| message.kind == b'K').expect("a key");
                key.body[4..].to_vec()
            })
            .collect();
        assert_eq!(keys.len(), 3, "{mode}");
    }
}

#[test]
fn without_leave_nothing_is_seeded_and_the_error_says_what_to_do() {
    let connections = cache::connections(Settings { leave: Leave { clock: true, seed: false }, ..Settings::default() });
    for mode in [Mode::Isolated, Mode::Shared] {
        let connect = || Local::connect(&connections, Connect { mode, ..Connect::default() }).0;
        let values = [connect(), connect()].map(|mut local| {
            let refusal = try_to_seed(&local, 1).expect_err("there is no leave");
            assert_eq!((refusal.code, refusal.message.as_str()), ("42501", "permission denied to seed random numbers"));
            assert!(refusal.hint.as_deref().is_some_and(|hint| hint.contains("--allow-seed")), "{refusal:?}");
            local.values("select random(), gen_random_uuid()")
        });
        assert_ne!(values[0], values[1]);
    }
}

//! PostGIS: geometry, geography, indexes and coordinate systems in every kind of cluster, and errors of its C++.

mod support;

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use pglite_port::{
    administration::{Administration, ClusterOrigin, NewCluster},
    connection::Connections,
    databases::{Databases, Paths, Settings},
    log::LogSink,
    session::Mode,
};
use support::{
    cache,
    extension::{self, Use, extension, try_one},
    local::{Connect, Local},
    peer::Peer,
    server::{Server, text},
    session::errors,
};
use tempfile::TempDir;

/// Queries and what they return. Lengths, areas and coordinates are those that PROJ 9.7 computes natively (pyproj).
const QUERIES: &[(&str, &str)] = &[
    ("st_area('POLYGON((0 0,0 2,2 2,2 0,0 0),(0.5 0.5,0.5 1,1 1,1 0.5,0.5 0.5))'::geometry)", "3.75"),
    (
        "st_astext(st_intersection('POLYGON((0 0,0 2,2 2,2 0,0 0))', 'POLYGON((1 1,1 3,3 3,3 1,1 1))'::geometry))",
        "POLYGON((2 2,2 1,1 1,1 2,2 2))",
    ),
    ("st_area(st_union('POLYGON((0 0,0 2,2 2,2 0,0 0))'::geometry, 'POLYGON((1 1,1 3,3 3,3 1,1 1))'::geometry))", "7"),
    ("st_isvalidreason('POLYGON((0 0,1 1,1 0,0 1,0 0))')", "Self-intersection[0.5 0.5]"),
    ("round(st_area(st_buffer('POINT(0 0)'::geometry, 1, 64))::numeric, 3)", "3.141"),
    (
        "st_astext(st_voronoipolygons('MULTIPOINT(0 0,1 0)'), 1)",
        "GEOMETRYCOLLECTION(POLYGON((-1 -1,-1 1,0.5 1,0.5 -1,-1 -1)),POLYGON((2 1,2 -1,0.5 -1,0.5 1,2 1)))",
    ),
    ("st_asgeojson('SRID=4326;POINT(13.4 52.5)'::geometry)", "{\"type\":\"Point\",\"coordinates\":[13.4,52.5]}"),
    ("st_astext(st_geomfromgeojson('{\"type\":\"LineString\",\"coordinates\":[[1,2],[3,4]]}'))", "LINESTRING(1 2,3 4)"),
    ("st_astext(st_geomfromkml('<Point><coordinates>1,2</coordinates></Point>'))", "POINT(1 2)"),
    ("st_relate('POINT(1 1)', 'POLYGON((0 0,0 2,2 2,2 0,0 0))'::geometry)", "0FFFFF212"),
    ("st_astext(st_transform('SRID=4326;POINT(13.4 52.5)'::geometry, 3857), 3)", "POINT(1491681.177 6891041.724)"),
    ("st_astext(st_transform('SRID=4326;POINT(13.4 52.5)'::geometry, 25832), 3)", "POINT(798609.521 5825756.242)"),
    (
        "st_astext(st_transform(st_transform('SRID=4326;POINT(13.4 52.5)'::geometry, 25832), 4326), 9)",
        "POINT(13.4 52.5)",
    ),
    ("round(st_distance('POINT(13.4 52.5)'::geography, 'POINT(2.35 48.85)'::geography)::numeric, 4)", "879035.3878"),
    ("round(st_area('POLYGON((0 0,0 1,1 1,1 0,0 0))'::geography)::numeric, 2)", "12308778361.47"),
    ("st_dwithin('POINT(0 0)'::geography, 'POINT(0 1)'::geography, 110574)", "f"),
    ("st_dwithin('POINT(0 0)'::geography, 'POINT(0 1)'::geography, 110575)", "t"),
];

/// Compares all of these queries, each of which `value` runs.
fn try_all(queries: &[(&str, &str)], mut value: impl FnMut(&str) -> String) {
    for (query, expected) in queries {
        assert_eq!(value(&format!("select {query}")), *expected, "{query}");
    }
}

/// Points in a grid of 1000 by 100, and two indexes.
const POINTS: &str = "create table points as \
    select n, st_setsrid(st_makepoint(n % 1000 / 100.0, n / 1000 / 100.0), 4326) g from generate_series(0, 99999) n; \
    create index by_geometry on points using gist (g); \
    create index by_geography on points using gist ((g::geography)); analyze points";

/// 201 by 51 of the points, those on the border included.
const IN_BOX: &str = "select count(*) from points where st_intersects(g, st_makeenvelope(1, 0.25, 3, 0.75, 4326))";
const IN_CIRCLE: &str =
    "select count(*) from points where st_intersects(g, st_buffer('SRID=4326;POINT(5 0.5)'::geometry, 0.3))";
const NEAR: &str = "select count(*) from points where st_dwithin(g::geography, 'POINT(5 0.5)'::geography, 20000)";
const NEAREST: &str = "select n from points order by g <-> 'SRID=4326;POINT(7.001 0.301)'::geometry limit 1";

/// A polygon that crosses itself, which GEOS finds out in the middle of its work.
const INVALID: &str = "select st_intersection('POLYGON((0 0,1 1,1 0,0 1,0 0))'::geometry, \
    'POLYGON((0.5 0,1 2,1 0,0 1,0.5 0))'::geometry)";

/// PGlite's files with PostGIS, whose libraries are compiled. That takes minutes where the processor has much to do,
/// and other waits of the tests would end before.
fn with_postgis() -> TempDir {
    static COMPILED: OnceLock<()> = OnceLock::new();
    let pglite = extension::with_postgis();
    COMPILED.get_or_init(|| {
        let server = server(pglite.path(), &["--mode", "shared"]);
        let all = "create extension postgis_topology cascade; create extension postgis_raster";
        assert_eq!(text(&server.psql(&["-c", all])), "");
    });
    pglite
}

fn server(pglite: &Path, arguments: &[&str]) -> Server {
    Server::with(&[&["--pglite-dir", pglite.to_str().expect("text")], arguments].concat())
}

/// Queries 100,000 points with the indexes and without them.
fn compare_with_scans(peer: &Peer) {
    for (query, index) in
        [(IN_BOX, "by_geometry"), (IN_CIRCLE, "by_geometry"), (NEAR, "by_geography"), (NEAREST, "by_geometry")]
    {
        peer.send(&format!("explain (costs off) {query}"));
        let plan = peer.rows().join("\n");
        assert!(plan.contains(&format!("Index Scan on {index}")) || plan.contains(&format!("using {index}")), "{plan}");
        let found = peer.value(query);
        peer.run("set enable_indexscan = off; set enable_bitmapscan = off");
        peer.send(&format!("explain (costs off) {query}"));
        let plan = peer.rows().join("\n");
        assert!(plan.contains("Seq Scan on points"), "{plan}");
        assert_eq!(peer.value(query), found, "{query}");
        peer.run("reset enable_indexscan; reset enable_bitmapscan");
    }
    assert_eq!(peer.value(IN_BOX), (201 * 51).to_string());
    assert_eq!(peer.value(NEAREST), "30700");
}

#[test]
fn a_shared_cluster_has_it_with_its_indexes_and_an_error_in_its_code_ends_no_session() {
    let pglite = with_postgis();
    let server = server(pglite.path(), &["--mode", "shared"]);
    let [peer, other] = [(); 2].map(|()| Peer::connect(&server));
    peer.run("create extension postgis");
    peer.run(POINTS);
    for session in [&peer, &other] {
        try_all(QUERIES, |query| session.value(query));
        compare_with_scans(session);
    }
    other.run("begin; declare c cursor for select n from points order by n");
    peer.send(INVALID);
    let failure = peer.answer().expect_err("it is invalid");
    assert_eq!(failure.sqlstate(), "XX000");
    assert!(failure.field('M').starts_with("TopologyException: side location conflict at "), "{failure:?}");
    assert!(failure.field('D').contains("geos::util::TopologyException"), "{failure:?}");
    assert_eq!(peer.fail("select st_transform('POINT(1 1)'::geometry, 'EPSG:4326', 'nonsense')"), "XX000");
    assert_eq!(peer.fail("select st_aspng(null::geometry)"), "42883");
    try_all(QUERIES, |query| peer.value(query));
    assert_eq!(other.value("fetch c"), "0", "the other session is as it was");
}

#[test]
fn a_cluster_in_a_directory_has_it_after_a_restart_and_says_when_it_is_missing() {
    let (pglite, data) = (with_postgis(), tempfile::tempdir().expect("a directory"));
    let data = ["--data", data.path().to_str().expect("text")];
    let running = server(pglite.path(), &data);
    let peer = Peer::connect(&running);
    peer.run("create extension postgis");
    peer.run(POINTS);
    assert_eq!(peer.fail(INVALID), "XX000");
    drop(peer);
    running.kill();
    let running = server(pglite.path(), &data);
    let peer = Peer::connect(&running);
    compare_with_scans(&peer);
    try_all(QUERIES, |query| peer.value(query));
    drop(peer);
    running.stop();
    let without = extension::without_packages();
    let running = server(without.path(), &data);
    let peer = Peer::connect(&running);
    peer.send(IN_BOX);
    let failure = peer.answer().expect_err("it is not installed");
    assert_eq!(failure.sqlstate(), "58P01");
    assert!(failure.field('H').contains("npm install --no-save @electric-sql/pglite-postgis@0.2.8"), "{failure:?}");
}

/// Has a clone prepared, makes a template of it, and tries what all have that come from there: clones, sessions of a
/// cluster, a branch.
fn with_template(prepare: impl Fn(&mut Local), behaviour: impl Fn(&mut Local)) {
    let pglite = with_postgis();
    let pglite = Some(pglite.path().to_owned());
    let paths = Paths { cache: Some(cache::shared()), pglite, ..Paths::default() };
    let opened = Databases::open(&paths, Mode::Isolated, Settings::default(), LogSink::to_own_log());
    let databases = Arc::new(opened.expect("databases"));
    let connections = Arc::new(Connections::new(databases.clone()));
    let mut origin = Local::connect(&connections, Connect::default()).0;
    prepare(&mut origin);
    behaviour(&mut origin);
    origin.freeze("with postgis");
    let connect = Connect { template: Some("with postgis"), ..Connect::default() };
    let of = |origin| databases.create_cluster(NewCluster { origin, ..NewCluster::default() }).expect("a cluster").name;
    let cluster = of(ClusterOrigin::Template("with postgis".to_owned()));
    let branch = of(ClusterOrigin::Branch(cluster.clone()));
    let clones = [(); 2].map(|()| Local::connect(&connections, connect).0);
    let sessions = [&cluster, &cluster, &branch].map(|name| Local::connect_to(&connections, name));
    for mut session in clones.into_iter().chain(sessions) {
        behaviour(&mut session);
    }
}

#[test]
fn clones_and_clusters_of_a_template_and_branches_have_it() {
    let prepare = |session: &mut Local| {
        session.values("create extension postgis");
        session.values(POINTS);
    };
    with_template(prepare, |session| {
        assert_eq!(session.values(IN_BOX), [(201 * 51).to_string()]);
        assert_eq!(errors(&session.query(INVALID)), ["XX000"]);
        try_all(QUERIES, |query| session.values(query).concat());
    });
}

#[test]
fn a_cluster_that_has_loaded_it_when_it_started_has_it_in_every_session() {
    let pglite = with_postgis();
    let server = server(pglite.path(), &["--mode", "shared", "--set", "shared_preload_libraries=postgis-3"]);
    let peer = Peer::connect(&server);
    peer.run("create extension postgis");
    for session in [peer, Peer::connect(&server)] {
        try_all(QUERIES, |query| session.value(query));
        assert_eq!(session.fail(INVALID), "XX000");
    }
}

/// The other extensions of the package, each of which stores something.
const OTHERS: [Use; 3] = [
    extension(
        "create extension postgis_topology cascade",
        "select topology.createtopology('city', 4326); \
         select topology.st_addisonode('city', 0, 'SRID=4326;POINT(1 2)') is null; \
         select node_id, st_astext(geom) from city.node; create table places (name text); \
         select topology.addtopogeometrycolumn('city', 'public', 'places', 'spot', 'POINT'); \
         insert into places values ('there', topology.createtopogeom('city', 1, 1, '{{1,1}}'))",
        &["1", "f", "1", "POINT(1 2)", "1"],
    ),
    extension(
        "create extension postgis_raster",
        "create table rasters as select n, \
            st_addband(st_makeemptyraster(10, 10, 13 + n, 52, 0.1, -0.1, 0, 0, 4326), '8BUI'::text, n, 0) r \
         from generate_series(1, 20) n; \
         create index on rasters using gist (st_convexhull(r)); \
         select addrasterconstraints('rasters'::name, 'r'::name); \
         select (st_summarystats(r)).sum from rasters where n = 2; \
         select st_area(geom), val from rasters, st_dumpaspolygons(r) where n = 2; \
         select st_srid(st_transform(r, 3857)) from rasters where n = 2",
        &["t", "200", "1", "2", "3857"],
    ),
    extension(
        "create extension postgis_tiger_geocoder cascade",
        "insert into tiger.state (statefp, region, division, stusps, name) \
            values ('25', '1', '1', 'MA', 'Massachusetts'); \
         insert into tiger.zip_state (zip, stusps, statefp) values ('02109', 'MA', '25'); \
         insert into tiger.place (statefp, placefp, plcidfp, name) values ('25', '07000', '2507000', 'Boston'); \
         insert into tiger.faces (tfid, statefp, placefp) values (1, '25', '07000'); \
         insert into tiger.edges (statefp, tlid, tfidl, tfidr, mtfcc, the_geom) \
            values ('25', 1, 1, 1, 'S1400', 'SRID=4269;MULTILINESTRING((-71.06 42.35,-71.05 42.36))'); \
         insert into tiger.featnames (tlid, fullname, name, suftypabrv, mtfcc, statefp) \
            values (1, 'Devonshire Pl', 'Devonshire', 'Pl', 'S1400', '25'); \
         insert into tiger.addr (tlid, fromhn, tohn, side, zip, statefp) values (1, '1', '101', 'R', '02109', '25'); \
         select pprint_addy(normalize_address('1 Devonshire Place, Boston, MA 02109'))",
        &["1 Devonshire Pl, Boston, MA 02109"],
    ),
];

/// What they make of what [`OTHERS`] have stored. The first one makes a new session load a library that needs another.
const STORED: &[(&str, &str)] = &[
    ("st_value(st_mapalgebra(r, 1, null, '[rast] * 21'), 3, 3) from rasters where n = 2", "42"),
    ("n from rasters where st_convexhull(r) && 'SRID=4326;POINT(20.05 51.95)'::geometry", "7"),
    ("sum((st_summarystats(r)).sum) from rasters", "21000"),
    ("srid || ' ' || pixel_types::text from raster_columns", "4326 {8BUI}"),
    ("st_astext(spot::geometry) from places", "MULTIPOINT((1 2))"),
    ("topology.st_moveisonode('city', 1, 'SRID=4326;POINT(1 3)')", "Isolated Node 1 moved to location 1,3"),
    ("st_astext(spot::geometry) from places", "MULTIPOINT((1 3))"),
    ("topology.st_moveisonode('city', 1, 'SRID=4326;POINT(1 2)')", "Isolated Node 1 moved to location 1,2"),
    ("count(*) from topology.validatetopology('city')", "0"),
    ("st_astext(geomout, 3) from geocode('51 Devonshire Place, Boston, MA 02109')", "POINT(-71.055 42.355)"),
];

/// A raster that those in the table are not aligned with.
const OTHER_RASTER: &str =
    "insert into rasters values (0, st_makeemptyraster(10, 10, 13.05, 52, 0.1, -0.1, 0, 0, 4326))";

/// Uses the other extensions in a server, in a session for each.
fn try_others(server: &Server) {
    for used in &OTHERS {
        let mut session = server.session(&[]);
        try_one(used, |sql| {
            session.query(sql);
            session.until_ready()
        });
    }
}

/// Has a session use what [`OTHERS`] have stored.
fn read_others(session: &Peer) {
    try_all(STORED, |query| session.value(query));
    assert_eq!(session.fail(OTHER_RASTER), "23514");
}

#[test]
fn its_other_extensions_do_what_they_are_for_in_a_shared_cluster() {
    let pglite = with_postgis();
    let server = server(pglite.path(), &["--mode", "shared"]);
    try_others(&server);
    [(); 2].iter().for_each(|()| read_others(&Peer::connect(&server)));
}

#[test]
fn its_other_extensions_do_what_they_are_for_in_a_directory_and_go_on_after_a_restart() {
    let (pglite, data) = (with_postgis(), tempfile::tempdir().expect("a directory"));
    let data = ["--data", data.path().to_str().expect("text")];
    let running = server(pglite.path(), &data);
    try_others(&running);
    read_others(&Peer::connect(&running));
    running.kill();
    let running = server(pglite.path(), &data);
    read_others(&Peer::connect(&running));
    running.stop();
    let running = server(pglite.path(), &data);
    let peer = Peer::connect(&running);
    read_others(&peer);
    peer.run("select topology.st_addisonode('city', 0, 'SRID=4326;POINT(3 4)')");
    peer.run("insert into rasters select 21, r from rasters where n = 20");
    assert_eq!(
        peer.value("select string_agg(st_astext(geom), ' ' order by node_id) from city.node"),
        "POINT(1 2) POINT(3 4)"
    );
    assert_eq!(peer.value("select sum((st_summarystats(r)).sum) from rasters"), "23000");
}

#[test]
fn its_other_extensions_do_what_they_are_for_in_clones_and_clusters_of_a_template_and_branches() {
    let prepare = |session: &mut Local| OTHERS.iter().for_each(|used| try_one(used, |sql| session.query(sql)));
    with_template(prepare, |session| {
        try_all(STORED, |query| session.values(query).concat());
        assert_eq!(errors(&session.query(OTHER_RASTER)), ["23514"]);
    });
}

/// A raster of ten by ten numbers, which are 2, and 9 in one place.
const RASTER: &str = "st_setvalue(st_addband(st_makeemptyraster(10, 10, 13, 52, 0.1, -0.1, 0, 0, 4326), '8BUI'::text, 2, 0), \
    1, 3, 3, 9)";

/// What is made of [`RASTER`], which is `r()`, and of a larger one.
const RASTERS: &[(&str, &str)] = &[
    ("st_value(st_fromgdalraster(st_astiff(r())), 3, 3)", "9"),
    ("st_value(st_fromgdalraster(st_astiff(r(), 'LZW')), 3, 3)", "9"),
    ("st_value(st_fromgdalraster(st_astiff(r(), 'DEFLATE9')), 3, 3)", "9"),
    ("st_value(st_fromgdalraster(st_asgdalraster(r(), 'GTiff', array['COMPRESS=PACKBITS'])), 3, 3)", "9"),
    ("st_value(st_fromgdalraster(st_asgdalraster(r(), 'COG', array['COMPRESS=DEFLATE'])), 3, 3)", "9"),
    ("st_srid(st_fromgdalraster(st_astiff(st_transform(r(), 3857), 'DEFLATE')))", "3857"),
    ("substr(st_astiff(r()), 1, 4)", "\\x49492a00"),
    ("st_value(r(), 3, 3)", "9"),
    ("st_value(r(), 'SRID=4326;POINT(13.25 51.75)'::geometry)", "9"),
    ("st_astext(st_polygon(r()))", "MULTIPOLYGON(((14 52,14 51,13 51,13 52,14 52)))"),
    ("st_value(st_mapalgebra(r(), 1, null, '[rast] * 21'), 3, 3)", "189"),
    ("st_summarystats(st_clip(r(), st_makeenvelope(13, 51.5, 13.5, 52, 4326)))", "(25,57,2.28,1.3717142559585798,2,9)"),
    (
        "st_summarystats(st_asraster('POLYGON((0 0,0 5,5 5,5 0,0 0))'::geometry, 1.0, 1.0, '8BUI'::text, 7, 0))",
        "(25,175,7,0,7,7)",
    ),
    ("count(*) from st_contour(r(), 1, 1.0)", "8"),
    // A gradient that takes many strips and blocks, compressed and not.
    (
        "(st_fromgdalraster(st_astiff(large(), 'DEFLATE')) = large(), st_fromgdalraster(st_astiff(large())) = large())",
        "(t,t)",
    ),
    (
        "st_fromgdalraster(st_asgdalraster(large(), 'GTiff', array['COMPRESS=DEFLATE', 'BLOCKYSIZE=400'])) = large()",
        "t",
    ),
    ("(st_summarystats(st_union(tile))).sum from st_tile(large(), 100, 100) tile", "20090100000"),
];

/// What needs another build, or is damaged, and what is said.
const NO_RASTERS: &[(&str, &str)] = &[
    ("st_aspng(r())", "Could not load the output GDAL driver"),
    ("st_asjpeg(r())", "Could not load the output GDAL driver"),
    ("st_astiff(r(), 'JPEG')", "Could not create the output GDAL dataset"),
    ("st_asgdalraster(r(), 'GTiff', array['COMPRESS=ZSTD'])", "Could not create the output GDAL dataset"),
    ("st_fromgdalraster('\\x00ff')", "Could not open bytea with GDAL"),
    (
        "st_fromgdalraster(overlay(tiff placing '\\xffffffffff' from length(tiff) - 10)) from st_astiff(r(), 'DEFLATE') tiff",
        "Could not get data from GDAL raster",
    ),
];

#[test]
fn rasters_are_read_and_written_in_the_formats_of_the_build_and_others_are_errors() {
    let pglite = with_postgis();
    let loaded = ["--mode", "shared", "--set", "shared_preload_libraries=postgis-3,postgis_raster-3"];
    for arguments in [&loaded[..2], &loaded] {
        let server = server(pglite.path(), arguments);
        let peer = Peer::connect(&server);
        peer.run("create extension postgis_raster cascade");
        peer.run(&format!(
            "create table rasters as select {RASTER} r, st_mapalgebra(st_addband(st_makeemptyraster(500, 400, 13, 52, 0.01, \
             -0.01, 0, 0, 4326), '32BF'::text, 2, 0), 1, '32BF', '[rast.x] * [rast.y] * 2') large; \
             create function r() returns raster stable language sql return (select r from rasters); \
             create function large() returns raster stable language sql return (select large from rasters)"
        ));
        assert_eq!(peer.value("select count(*) from st_gdaldrivers()"), "0", "all of them are disabled");
        for session in [&peer, &Peer::connect(&server)] {
            session.run("set postgis.gdal_enabled_drivers = 'ENABLE_ALL'");
            let drivers = "select string_agg(short_name, ' ' order by short_name) from st_gdaldrivers()";
            assert_eq!(session.value(drivers), "COG GTiff MEM VRT");
            for (query, expected) in RASTERS {
                assert_eq!(session.value(&format!("select {query}")), *expected, "{query}");
            }
            for (query, message) in NO_RASTERS {
                session.send(&format!("select {query}"));
                let failure = session.answer().expect_err(query);
                assert_eq!((failure.sqlstate(), failure.has_ended), ("XX000", false), "{query}");
                assert!(failure.field('M').contains(message), "{query}: {failure:?}");
            }
            assert_eq!(session.value("select st_value(r(), 3, 3)"), "9");
        }
    }
}

/// Statements that each fail in GEOS and lose the more memory the more points a circle has; `count` of them.
fn many_exceptions(count: u32, points: u32) -> String {
    format!(
        "do $$ declare circle geometry := st_buffer('POINT(0.5 0.5)'::geometry, 0.4, {points}); begin \
         for i in 1..{count} loop \
         begin perform st_intersection('POLYGON((0 0,1 1,1 0,0 1,0 0))'::geometry, st_collect(circle, st_scale(circle, 2, 1))); \
         exception when internal_error then null; end; end loop; end $$"
    )
}

#[test]
fn memory_that_its_code_does_not_get_is_an_error_of_the_statement() {
    let pglite = with_postgis();
    let server = server(pglite.path(), &["--mode", "shared", "--cluster-memory-limit", "250MB"]);
    let [peer, other] = [(); 2].map(|()| Peer::connect(&server));
    peer.run("create extension postgis");
    other.run("create temporary table t (a int)");
    assert_eq!(peer.fail(&many_exceptions(100_000, 300)), "53200");
    assert_eq!(peer.value("select 1"), "1");
    assert_eq!(other.value("select count(*) from t"), "0", "the cluster has not been started again");
}

#[test]
fn a_session_that_exceptions_have_cost_much_memory_ends_and_no_other_one_does() {
    let pglite = with_postgis();
    let server = server(pglite.path(), &["--mode", "shared"]);
    let [peer, other] = [(); 2].map(|()| Peer::connect(&server));
    peer.run("create extension postgis");
    other.run("create temporary table t (a int)");
    peer.send(&many_exceptions(100_000, 300));
    let failure = peer.answer().expect_err("it ends");
    assert!(failure.has_ended, "{failure:?}");
    assert_eq!(failure.sqlstate(), "53200");
    assert!(failure.field('M').contains("exceptions in C++: connect again"), "{failure:?}");
    assert_eq!(other.value("select count(*) from t"), "0");
    assert_eq!(Peer::connect(&server).fail(INVALID), "XX000");
}
